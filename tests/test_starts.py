"""Weights from simulated cells as a start, and the recipe for a few fields

The network that comes with the library is replaced by a tiny one, so that these tests don't depend on it."""
import shutil
import numpy as np, pandas as pd, pytest, safetensors.torch, torch

from hpa_fastai.cli import hpa_train
from hpa_fastai.labels import DataError, encode_targets, LABELS, read_labels
from hpa_fastai.data.block import rgby_dls
from hpa_fastai.images.pack import build_pack
from hpa_fastai.images.samples import find_samples
from hpa_fastai.models.heads import HEADS
from hpa_fastai.models import simulated
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import read_config, record_networks, save_config
from hpa_fastai.models.weights import read_weights
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.recipes import load_recipe, Recipe
from hpa_fastai.runs.setup import check_network, recipe_learner, recipe_dls, recipe_stats
from hpa_fastai.simulate.dataset import simulate_dataset
from hpa_fastai.train.learner import rgby_learner
from hpa_fastai.train.probe import last_linear

torch.set_num_threads(1)
tiny = dict(body='test_resnet', image_norm='sqrt')

@pytest.fixture(scope='module', autouse=True)
def shipped(tmp_path_factory):
    "A tiny network where that of the library lies; it says 'Rods & rings' to everything"
    run = tmp_path_factory.mktemp('simulated')
    torch.manual_seed(0)
    net = rgby_model(**tiny, weights=None)
    with torch.no_grad(): net[1][2].bias[:], last_linear(net).weight[27] = 1, .1
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    (run/'fold0').mkdir()
    (run/'fold0/model.safetensors').write_bytes(safetensors.torch.save(half, {'format': 'pt'}))
    save_config(run, net.config, 64, [0.]*4, [1.]*4)
    record_networks(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, 'SIMULATED', run)
        yield net.eval()

@pytest.fixture(scope='module')
def few(tmp_path_factory):
    "Seven fields; five of their labels occur once"
    path = simulate_dataset(tmp_path_factory.mktemp('few')/'data', n=7, n_test=2, size=64, workers=0, progress=False)
    df = read_labels(path/'train.csv')
    df['Target'] = ['0', '0 25', '25', '23', '5', '12 14', '21']
    df.to_csv(path/'train.csv', index=False)
    return path

def few_shot(**changes):
    "The recipe, for the tiny network"
    more = {'phases.0.schedule_args.passes': 2, **changes}
    return load_recipe('few_shot').override(size=64, body='test_resnet', **more)

def test_model_starts_where_the_shipped_network_ended(shipped):
    model, x = rgby_model('test_resnet', weights='simulated').eval(), torch.rand(2, 4, 64, 64)
    assert model.config['image_norm'] == 'sqrt' and model.pretrained and model.knows_labels
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(model(x), shipped(x), atol=.05, rtol=.05)   # from half precision
    again = rgby_model(**model.config)                                     # as a finished run builds it
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(x), model(x))

@pytest.mark.parametrize('own', [dict(n_out=5), dict(head='linear')], ids=str)
def test_another_head_keeps_its_random_start(shipped, own):
    model = rgby_model('test_resnet', weights='simulated', **own).eval()
    assert model.pretrained and not model.knows_labels
    x = torch.rand(2, 4, 64, 64)
    torch.testing.assert_close(model[0](x), shipped[0](x), atol=.05, rtol=.05)

@pytest.mark.parametrize('wrong,says', [
    (dict(), 'those of a test_resnet, not of resnet34; take body=test_resnet'),
    (dict(body='test_resnet', image_norm='zscore'), 'need image_norm=sqrt, not zscore; leave out image_norm'),
    (dict(body='test_resnet', stains=['green', 'blue']), 'leave out stains'),
    (dict(body='test_resnet', channels=[16, 16, 16, 16]), 'leave out model_args')], ids=str)
def test_what_does_not_fit_is_refused(wrong, says):
    with pytest.raises(DataError, match=says): rgby_model(**wrong, weights='simulated')

def test_recipe_says_what_to_change():
    with pytest.raises(DataError, match='recipe default: .*not of resnet34; take body=test_resnet'):
        check_network(load_recipe('default').override(weights='simulated'))
    with pytest.raises(DataError, match='imagenet, simulated, none'): Recipe(weights='simulate')

def test_images_are_not_normalised_twice(few, tmp_path):
    df = read_labels(few/'train.csv')
    pack = build_pack(find_samples(few/'train', df.Id), tmp_path/'pack', size=64, workers=0, progress=False)
    recipe = few_shot()
    assert recipe_stats(recipe, pack) == ([0.]*4, [1.]*4)
    x = recipe_dls(recipe, pack, df, df.Id[:3], device='cpu').valid.one_batch()[0]
    assert x.min() >= 0 and x.max() <= 1
    dls = rgby_dls(df, pack, valid=list(df.Id[:3]), bs=2, device='cpu')
    with pytest.raises(DataError, match='normalises each image by itself'):
        rgby_learner(dls, 'test_resnet', weights='simulated')
    kept = recipe_learner(recipe, recipe_dls(recipe, pack, df, df.Id[:3], device='cpu'), tmp_path, 'none')
    assert kept.model.config['image_norm'] == 'sqrt'   # a fold that is trained is read into the same network

def test_few_shot_with_labels_that_occur_once(few, tmp_path, shipped):
    scores = cross_validate(few, tmp_path/'run', few_shot(), device='cpu', workers=0)
    run = RunFolder(tmp_path/'run')
    assert len(run.ids) == 7 and run.decided.any(1).all() and 0 <= scores['macro_f1'] <= 1
    config = read_config(tmp_path/'run')
    assert config.mean == [0.]*4 and config.std == [1.]*4 and config.model.image_norm == 'sqrt'
    # labels without an example keep the answers of the shipped network, and the body all of its weights
    unseen = np.flatnonzero(~encode_targets(read_labels(few/'train.csv').Target).any(0))
    start = rgby_model('test_resnet', weights='simulated').state_dict()
    *_, last = [k for k in start if k.endswith('weight')]
    for k in range(3):
        weights = read_weights(tmp_path/f'run/fold{k}/model.safetensors')
        changed = [o for o in start if not torch.equal(start[o], weights[o])]
        assert changed == [last]
        assert torch.equal(weights[last][unseen], start[last][unseen])
    images = [np.full((64, 64, 4), 60, np.uint8)]
    probs = Predictor.load(tmp_path/'run', 'cpu').predict_probs(images)
    with torch.no_grad(): theirs = shipped(torch.full((1, 4, 64, 64), 60/255)).sigmoid().numpy()
    np.testing.assert_allclose(probs[0, unseen], theirs[0, unseen], atol=.02)

def test_few_shot_goes_on_where_it_was(few, tmp_path):
    first = cross_validate(few, tmp_path/'run', few_shot(), device='cpu', workers=0)
    for o in ('oof.parquet', 'test.parquet'): (tmp_path/'run/fold1'/o).unlink()      # killed before it predicted
    shutil.rmtree(tmp_path/'run/fold2')
    again = cross_validate(few, tmp_path/'run', few_shot(), device='cpu', workers=0)
    assert {k: v for k, v in first.items() if k != 'seconds'} == {k: v for k, v in again.items() if k != 'seconds'}

def test_few_shot_by_command(few, tmp_path):
    hpa_train(data=few, out=tmp_path/'run', recipe='few_shot', set='size=64 body=test_resnet folds=2', device='cpu')
    assert (tmp_path/'run/submission.csv').exists()
    assert len(pd.read_csv(tmp_path/'run/fold0/log.csv')) == 1

def test_the_shipped_network_is_what_few_shot_starts_from():
    folder = simulated.Path(simulated.__file__).parent.parent/'assets/simulated'
    if not (folder/'model.json').exists(): pytest.skip('this copy of the library has no assets/simulated')
    config, recipe = read_config(folder), load_recipe('few_shot')
    def layers(head): return list(HEADS[head](8, 28, .5).state_dict())   # labels that compete need no weights for it
    assert (recipe.body, recipe.size) == (config.model.body, config.size)
    assert layers(recipe.head) == layers(config.model.head)
    assert config.labels == list(LABELS)
