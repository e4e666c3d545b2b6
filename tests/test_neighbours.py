"A second network that passes labels on: fit for a GPU, kept with the run, checked before the training, and told about."
import shutil
from contextlib import redirect_stdout
from io import StringIO
import numpy as np, pandas as pd, pytest, timm, torch
from safetensors.torch import save_file

from hpa_fastai.labels import DataError
from hpa_fastai.models import factory
from hpa_fastai.models.weights import read_weights
from hpa_fastai.train import learner
from hpa_fastai.train.metrics import macro_f1
from hpa_fastai.explain import neighbours
from hpa_fastai.explain.embeddings import nearest
from hpa_fastai.explain.neighbours import KnownImages, read_near, write_near
from hpa_fastai.models.arcface import arcface_model
from hpa_fastai.runs import fold
from hpa_fastai.runs.combine import ensemble_runs
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.runs.report import write_report
from hpa_fastai.runs.stages import check_run
from hpa_fastai.simulate.dataset import simulate_dataset

torch.set_num_threads(1)

second = dict(body='test_resnet', weights='none', epochs=3, lr=2e-3, n_embed=16, bs=16, threshold=.98)
toy = load_recipe('demo').override(size=64, body='test_resnet', model_args={}, head='linear', bs=16, epochs=1, tta=1,
                                   thresholds='RatioRule', neighbours=second)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('sim')/'data'
    return simulate_dataset(out, n=56, n_test=6, size=64, balanced=True, near_duplicates=.5, workers=0, progress=False)

def train(data, out, recipe=toy):
    "What a run printed"
    with redirect_stdout(StringIO()) as printed: cross_validate(data, out, recipe, device='cpu', workers=0)
    return printed.getvalue()

@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    train(data, out)
    return out

@pytest.fixture
def run(trained, tmp_path): return shutil.copytree(trained, tmp_path/'run')

def test_size_of_its_images(data, tmp_path, monkeypatch):
    "In training and afterwards it sees images of a size of its own"
    sides = set()
    def watched(*args, build=fold.arcface_learner, **kwargs):
        learn = build(*args, **kwargs)
        learn.model[0].register_forward_pre_hook(lambda module, x: sides.add(x[0].shape[-1]))
        return learn
    monkeypatch.setattr(fold, 'arcface_learner', watched)
    train(data, tmp_path/'run', toy.override(**{'neighbours.size': 32}))
    assert sides == {32}
    assert load_recipe('bestfitting').neighbours.size == 512

def test_precision(monkeypatch):
    "Images are embedded in the precision that the device is fastest in"
    model, seen = arcface_model(2, 'test_resnet', n_embed=8, weights=None), []
    model[1][-2].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    known = KnownImages(model, None, 32, [.1]*4, [.2]*4, device='cpu')
    for precision in ('fp32', 'bf16'):
        monkeypatch.setattr(learner, 'best_precision', lambda device: precision)
        assert known.embed(np.zeros((1, 32, 32, 4), np.uint8)).dtype == np.float32
    assert seen == [torch.float32, torch.bfloat16]

def test_all_of_a_pretrained_network_learns(data, tmp_path):
    weights = timm.create_model('test_resnet', num_classes=0).state_dict()
    save_file(weights, tmp_path/'body.safetensors')
    train(data, tmp_path/'run', toy.override(**{'neighbours.weights': str(tmp_path/'body.safetensors')}))
    after = read_weights(tmp_path/'run/fold0/arcface/model.safetensors')
    convolutions = [k for k, w in weights.items() if w.ndim == 4 and w.shape[1] != 3]
    assert convolutions and not any(torch.equal(weights[k], after[f'0.model.{k}']) for k in convolutions)

def test_batches_may_change(data, run):
    "Too large for the memory: go on with smaller batches"
    printed = train(data, run, toy.override(bs=8, **{'neighbours.bs': 4}))
    assert 'bs was 16, is 8' in printed and 'neighbours.bs was 16, is 4' in printed
    with pytest.raises(DataError, match='accumulate was 0, is 32'): train(data, run, toy.override(accumulate=32))

def test_checked_before_the_training(tmp_path, monkeypatch):
    "The second network is asked for before the first one is trained"
    def nowhere(name, make): raise OSError('no route to host')
    monkeypatch.setattr(factory, '_fetch', nowhere)
    check_run(toy, tmp_path/'run')
    recipe = toy.override(**{'neighbours.body': 'resnet18', 'neighbours.weights': 'imagenet'})
    with pytest.raises(DataError, match='resnet18: its pretrained weights could not be fetched'):
        check_run(recipe, tmp_path/'run')
    for body, says in dict(resnet81="did you mean 'resnet18'", gapnet='gapnet').items():
        with pytest.raises(DataError, match=says): check_run(toy.override(**{'neighbours.body': body}), tmp_path/'run')

@pytest.mark.parametrize('lost', ['known.npy', 'known.csv', 'known.json', 'model.safetensors', ''])
def test_fold_is_done_with_its_known_images(data, run, lost):
    "What was lost is made again, and comes out the same; without it nobody predicts"
    files = list((run/'fold1/arcface').glob(lost or '*'))
    before = {o: o.read_bytes() for o in files}
    for o in files: o.unlink()
    with pytest.raises(DataError, match='start the same'): Predictor.load(run)
    train(data, run)
    for file, content in before.items():
        if file.name != 'log.csv': assert file.read_bytes() == content, file
    Predictor.load(run)

def test_no_known_images_at_all(run):
    "A run with neighbours isn't read as one without"
    for k in (0, 1): shutil.rmtree(run/f'fold{k}/arcface')
    with pytest.raises(DataError, match='start the same'): Predictor.load(run)

def test_nothing_else_is_needed(data, run):
    "Neither packs nor train.csv: the folder of a run labels new images"
    shutil.rmtree(run/'packs')
    predictor = Predictor.load(run, device='cpu')
    df = predictor.predict_folder(data/'test')
    assert len(predictor.known) == 2 and set(df.Nearest) <= set(pd.read_csv(data/'train.csv').Id)
    assert df.Cosine.between(-1, 1).all()

def from_features(features, targets, **kwargs):
    model = arcface_model(2, 'test_resnet', n_embed=2, weights=None)
    known = KnownImages(model, None, 32, [.1]*4, [.2]*4, device='cpu', **kwargs)
    known.labels = pd.DataFrame(dict(Id=[f'k{i}' for i in range(len(targets))], Target=targets))
    known.features = np.asarray(features, np.float16)
    return known

def test_a_file_decides_as_its_network(tmp_path):
    "A cosine just above the threshold, in a file and as it was found"
    known = from_features([[1, 0]], ['3'], threshold=.65)
    angles = np.arccos([.650004, .649996, .65002])
    near = known.near(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    write_near(tmp_path/'near.csv', 'abc', near)
    none, again = np.zeros((3, 28), bool), read_near(tmp_path/'near.csv', 'abc')
    assert near.taken(none).tolist() == again.taken(none).tolist() == [False, False, True]

def test_equally_near(tmp_path):
    "Of images that are equally near the first is taken, by every network and however many are asked at a time"
    rng = np.random.default_rng(0)
    some = rng.normal(size=(40, 512)).astype(np.float32)
    known = np.concatenate([some]*50)
    queries = some[:33] + .1*rng.normal(size=(33, 512)).astype(np.float32)
    for chunk in (1, 7, 33): assert nearest(queries, known, chunk=chunk)[0].tolist() == list(range(33))

def test_many_known_images(monkeypatch):
    "For each batch only the labels that were found are looked at, not those of all known images"
    asked, encode = [], neighbours.encode_targets
    monkeypatch.setattr(neighbours, 'encode_targets', lambda o: asked.append(len(o)) or encode(o))
    known = from_features(np.random.default_rng(0).normal(size=(1000, 2)), ['0 25']*1000)
    known.near(np.eye(2, dtype=np.float32))
    assert asked == [2]

def test_scores_and_report(data, run):
    "How many images took over labels, and whether that was right"
    folder = RunFolder(run)
    alone = folder.rule.predict(folder.probs)
    scores, near = folder.scores['neighbours'], folder.near('oof', folder.ids)
    assert 0 < scores['taken'] == near.taken(alone).sum() < 56 and scores['better'] + scores['worse'] <= scores['taken']
    assert scores['macro_f1_without'] != folder.scores['macro_f1'] == macro_f1(folder.decided, folder.targs)
    assert folder.scores['macro_f1_in_sample'] == macro_f1(near.pass_on(alone), folder.targs)
    text = ' '.join(write_report(run, examples=1).read_text(encoding='utf-8').split())
    assert f"{scores['taken']} of the 56 images" in text and f"{scores['test_taken']} of the 6 test images" in text
    assert f"{scores['better']} of them have better label sets" in text and f"{scores['worse']} have worse" in text
    assert f"would be {scores['macro_f1_without']:.3f}" in text

def test_scores_of_an_ensemble(run, tmp_path):
    shutil.copytree(run, tmp_path/'copy')
    scores = ensemble_runs([run, tmp_path/'copy'], tmp_path/'both', thresholds='RatioRule')
    one = RunFolder(run).scores
    assert scores['neighbours'] == one['neighbours'] and scores['macro_f1_in_sample'] == one['macro_f1_in_sample']
    ensemble_runs([tmp_path/'both', run], tmp_path/'three', thresholds='RatioRule')
    shutil.move(tmp_path/'copy', tmp_path/'elsewhere')
    with pytest.raises(DataError, match='its run copy is not at'):
        ensemble_runs([tmp_path/'both', run], tmp_path/'again', thresholds='RatioRule')
    write_report(tmp_path/'both', examples=1)     # a page needs no neighbours of its own
