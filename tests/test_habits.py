"What somebody who knows fastai writes first works, or is answered in one line that says what to write instead."
from contextlib import nullcontext
from functools import partial
from unittest import mock
import numpy as np
import pytest
import torch
from fastai.vision.all import (
    accuracy, ClassificationInterpretation, CrossEntropyLossFlat, DataBlock, get_image_files, load_learner,
    MultiCategoryBlock, nn, Resize, resnet18
)

from hpa_fastai.labels import DataError, read_labels
from hpa_fastai.images.samples import find_samples, open_rgby, TensorRGBY
from hpa_fastai.images.pack import build_pack
from hpa_fastai.data.block import RGBYBlock, rgby_dls, source_dl
from hpa_fastai.train.learner import rgby_learner
from hpa_fastai.decide.rules import RatioRule
from hpa_fastai.decide.thresholds import choose_rule
from hpa_fastai.explain.interpret import RGBYInterpretation
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.simulate.dataset import simulate_dataset

def toy():
    "Any network: its labels don't matter here, only that they are the same in every way"
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, 2), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 28)))

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp('habits')/'cells', n=24, n_test=3, size=80, workers=0,
                            progress=False)

@pytest.fixture(scope='module')
def pack(folder): return build_pack(folder/'train', folder/'pack', size=64, workers=0, progress=False)

@pytest.fixture(scope='module')
def dls(folder, pack): return rgby_dls(folder/'train.csv', pack, bs=8, device='cpu')

def quiet(learn):
    learn.remove_cbs([o for o in learn.cbs if o.name == 'progress'])
    return learn

@pytest.fixture(scope='module')
def learn(dls, folder): return quiet(rgby_learner(dls, toy(), path=folder, log=None, precision='fp32'))

@pytest.fixture(scope='module', params=['with its pack', 'loaded elsewhere'])
def either(request, learn, folder, pack):
    "A learner, and the same one where its pack is gone"
    if request.param == 'with its pack': return learn
    learn.export('learner.pkl')
    pack.path.rename(folder/'away')
    try: return quiet(load_learner(folder/'learner.pkl'))
    finally: (folder/'away').rename(pack.path)

def one_line(match): return pytest.raises(DataError, match=match)

@pytest.fixture(scope='module')
def expected(learn, folder, pack):
    "Probabilities of the test images, as `Predictor` gives them"
    predictor = Predictor([learn.model], None, pack.size, *pack.stats(pack.index(learn.dls.train.items)), device='cpu',
                          views=dict(n=1))
    imgs = [open_rgby(o) for o in find_samples(folder/'test').values()]
    with mock.patch('hpa_fastai.runs.networks.best_autocast', lambda device: nullcontext()):   # as in the learner
        return torch.from_numpy(predictor.predict_probs(imgs))

def test_predict_labels_a_new_image(either, expected, folder):
    sample = next(iter(find_samples(folder/'test').values()))
    img = open_rgby(sample)
    np.save(folder/'one.npy', img)
    tensor = TensorRGBY.create(img)
    for o in (folder/'one.npy', str(folder/'one.npy'), sample, img, tensor, tensor.float()/255):
        names, decided, probs = either.predict(o)
        assert torch.allclose(probs, expected[0], atol=1e-5)
        assert torch.equal(decided, probs > .5)
        assert list(names) == [either.dls.vocab[i] for i in torch.where(decided)[0]]

def test_an_image_of_the_pack_is_the_same_by_id_and_by_pixels(learn, pack):
    expected = learn.get_preds(dl=learn.dls.test_dl(pack.ids[:1]))[0][0]
    for o in (pack.ids[0], pack[0]): assert torch.allclose(learn.predict(o)[2], expected, atol=1e-6)

def test_dl_of_new_images(either, expected, folder):
    samples = find_samples(folder/'test')
    imgs = [open_rgby(o) for o in samples.values()]
    given = folder/'test', str(folder/'test'), samples, list(samples.values()), imgs, np.stack(imgs)
    for o in given: assert torch.allclose(either.get_preds(dl=either.dls.test_dl(o))[0], expected, atol=1e-5)
    from_folder = either.get_preds(dl=source_dl(either.dls, folder/'test'))[0]
    assert torch.allclose(from_folder, expected, atol=1e-5), 'resized as the pack was'

def test_what_is_no_image_is_refused(either, folder):
    for o in (np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 4))):
        with one_line('is no image of four stains; give a path'): either.predict(o)
    with one_line('missing'): either.predict(folder/'nowhere.npy')
    with one_line('holds one stain of a sample; give find_samples'): either.dls.test_dl(get_image_files(folder/'test'))
    with one_line('new images have no labels'): either.dls.test_dl(folder/'test', with_labels=True)

def test_new_images_of_a_block_without_a_source(folder):
    samples = find_samples(folder/'test')
    block = DataBlock((RGBYBlock(), MultiCategoryBlock(vocab=['a'])), get_y=lambda o: ['a'])
    dls = block.dataloaders(list(samples.values()), bs=2)
    for o in (samples, folder/'test', list(samples.values())): assert len(next(iter(dls.test_dl(o)))[0]) == 2

def test_a_loaded_learner_says_that_it_has_no_images(either, learn):
    if either is learn: pytest.skip('has images')
    for f in (either.show_results, either.dls.show_batch, either.summary, either.tta, partial(either.fit, 1)):
        with one_line('this loader has no images'): f()

@pytest.mark.parametrize('call', ['show_results', 'lr_find', 'validate', 'tta', 'summary', 'fine_tune', 'get_preds'])
def test_calls_of_a_learner(dls, folder, call):
    learn = quiet(rgby_learner(dls, toy(), path=folder, log=None))
    kwargs = dict(lr_find=dict(num_it=5, show_plot=False), fine_tune=dict(epochs=1)).get(call, {})
    with learn.no_logging(), learn.no_bar(): getattr(learn, call)(**kwargs)

def test_network_by_function_and_pretrained(dls):
    learn = rgby_learner(dls, resnet18, pretrained=False, n_in=4, log=None)
    assert learn.model.config['body'] == 'resnet18' and not learn.model.pretrained

@pytest.mark.parametrize('kwargs, answer', [
    (dict(arch=resnet18), 'write body'), (dict(n_in=3), 'four channels'), (dict(cut=-2), 'nn.Sequential'),
    (dict(normalize=False), 'batch_tfms'), (dict(y_range=(0, 1)), 'probability'),
    (dict(custom_head=nn.Identity()), 'HEADS'),
    (dict(weight='none'), 'did you mean weights'), (dict(metrics=accuracy), 'accuracy_multi'),
    (dict(loss_func=CrossEntropyLossFlat()), 'BCEWithLogitsLossFlat'),
    (dict(pretrained=True, weights='none'), 'leave out one of them')])
def test_arguments_of_vision_learner(dls, kwargs, answer):
    with one_line(answer): rgby_learner(dls, log=None, **kwargs)

def test_batches_are_expected_first(pack):
    with one_line('make them with rgby_dls'): rgby_learner(pack)

def test_splitter(dls):
    learn = rgby_learner(dls, toy(), splitter=lambda m: [list(m.parameters())], log=None)
    learn.create_opt()
    assert len(learn.opt.param_lists) == 1

def test_labels_first_images_second(folder, pack):
    df = read_labels(folder/'train.csv')
    for args in ((pack, df), (pack.path, df), (folder/'train', folder/'train.csv'), (pack, pack)):
        with one_line(r'write rgby_dls\(labels, images\)'): rgby_dls(*args)
    with one_line('give its CSV'): rgby_dls(folder, pack)

def test_arguments_that_would_be_dropped(folder, pack):
    for kwargs, answer in ((dict(valid_pct=.2), 'did you mean valid'), (dict(item_tfms=Resize(32)), 'write size='),
                           (dict(bs=0), '1 or more')):
        with one_line(answer): rgby_dls(folder/'train.csv', pack, **kwargs)

def test_samples_are_a_source(folder):
    samples = find_samples(folder/'train')
    assert RGBYBlock(samples).type_tfms[0].source.size == 80
    assert len(rgby_dls(folder/'train.csv', samples, bs=4).valid_ds)

def test_rules_want_probabilities():
    rng = np.random.default_rng(0)
    probs, targs = rng.random((40, 28)), rng.random((40, 28)) > .7
    for f in (choose_rule, RatioRule().fit):
        with one_line(r'give probabilities, such as learn.get_preds\(\) returns'): f(probs*8 - 4, targs)
        with one_line('differ in shape'): f(probs.T, targs)
        with one_line('differ in shape'): f(probs[:30], targs)
    with one_line('give probabilities'): RatioRule().fit(probs, targs).predict(probs*8 - 4)

def test_interpretation_of_one_label_is_refused(learn):
    with one_line(r'write RGBYInterpretation.from_learner\(learn\)'): ClassificationInterpretation.from_learner(learn)
    assert RGBYInterpretation.from_learner(learn, ds_idx=0).probs.shape[1] == 28
