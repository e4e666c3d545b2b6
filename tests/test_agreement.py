"""Whoever decides about an image, decides the same: a run's submission, its files, `Predictor` (which hpa-predict
calls), the report, and an ensemble of the run with a copy of itself; with and without labels from neighbours."""
import re, shutil
from html import unescape
import numpy as np, pandas as pd, pytest, torch
from fastcore.basics import AttrDict
from PIL import Image

from hpa_fastai.labels import LABELS, encode_targets, read_submission
from hpa_fastai.images.kaggle import KaggleFolder
from hpa_fastai.images.samples import find_samples, open_rgby
from hpa_fastai.models.weights import read_weights
from hpa_fastai.decide.submission import read_probs
from hpa_fastai.decide.rules import load_rule
from hpa_fastai.train import learner
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.combine import ensemble_runs
from hpa_fastai.runs.report import write_report
from hpa_fastai.simulate.dataset import simulate_dataset
from safetensors.torch import save_file

torch.set_num_threads(1)

@pytest.fixture(scope='module', autouse=True)
def fp32():
    "With 16 bits, an image's probabilities depend a little on how many images are in its batch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, 'best_precision', lambda device: 'fp32')
        yield

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Eight of the test images are near-copies of training images"
    out = tmp_path_factory.mktemp('sim')/'data'
    simulate_dataset(out, n=56, n_test=24, size=64, balanced=True, near_duplicates=.3, workers=0, progress=False)
    folder, rng = KaggleFolder(out), np.random.default_rng(0)
    for new, old in zip(folder.test_ids[:8], folder.train.Id[::7]):
        for file in (out/'train').glob(f'{old}_*.png'):
            img = np.array(Image.open(file)).astype(int)
            noisy = (img + rng.integers(-2, 3, img.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(out/'test'/file.name.replace(old, new))
    return out

second = dict(body='test_resnet', weights='none', epochs=6, lr=2e-3, n_embed=16, bs=16, threshold=.98, exclude=[25],
              size=48)

def toy(folds, near=False):
    recipe = load_recipe('demo').override(size=64, body='test_resnet', model_args={}, head='linear', bs=10, epochs=1)
    return recipe.override(folds=folds, tta=1, thresholds='RatioRule', neighbours=second if near else 'null')

@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    "Runs of two and of three folds, whose networks are not equally sure of themselves; without predictions"
    runs = tmp_path_factory.mktemp('trained')
    for folds in (2, 3):
        cross_validate(data, runs/str(folds), toy(folds, near=True), packs=runs/'packs', device='cpu', workers=0)
        for k in range(folds):
            file = runs/f'{folds}/fold{k}/model.safetensors'
            weights = read_weights(file)
            bias = next(k for k, w in weights.items() if w.shape == (28,))
            save_file({**weights, bias: weights[bias] + (1.5, -1, 0)[k]}, file)
            for o in file.parent.glob('*.parquet'): o.unlink()
    return runs

def submission(run, ids): return encode_targets(read_submission(run/'submission.csv').set_index('Id').Predicted[ids])

def finish(data, trained, run, how, folds, near):
    "Let trained networks predict and decide in another way"
    left_out = None if near else shutil.ignore_patterns('arcface', 'near_*')
    for k in range(folds): shutil.copytree(trained/f'{folds}/fold{k}', run/f'fold{k}', ignore=left_out)
    recipe = toy(folds, near).override(ensemble=how)
    cross_validate(data, run, recipe, packs=trained/'packs', device='cpu', workers=0)
    return run

kinds = [(how, *o) for how in ('mean', 'rank', 'vote') for o in ((2, False), (3, False), (3, True))]

@pytest.fixture(scope='module', params=kinds, ids=lambda o: f'{o[0]} of {o[1]}' + ', neighbours'*o[2])
def finished(request, data, trained, tmp_path_factory):
    "The run with another ensemble: its folder, its test images, and what it submitted"
    how, folds, near = request.param
    run = finish(data, trained, tmp_path_factory.mktemp('runs')/'run', how, folds, near)
    ids = KaggleFolder(data).test_ids
    return AttrDict(run=run, ids=ids, submitted=submission(run, ids), images=data/'test', how=how, near=near)

def predicted(run, images, ids, **kwargs):
    "What hpa-predict says about image files, as a matrix"
    df = Predictor.load(run, device='cpu').predict_folder(images, **kwargs).set_index('Id').loc[ids]
    return matrix(df.Labels.str.split(';'))

def matrix(sets):
    "Names of labels as zeros and ones"
    return np.array([[o in labels for o in LABELS] for labels in sets]).astype(np.uint8)

def test_batches(finished, monkeypatch):
    "As many images at a time as the recipe has in a batch, unless told otherwise"
    asked, ask = [], Predictor._ask
    def counted(self, prepared, n):
        asked.append(len(prepared))
        return ask(self, prepared, n)
    monkeypatch.setattr(Predictor, '_ask', counted)
    for bs in (None, 16): Predictor.load(finished.run, device='cpu').predict_folder(finished.images, bs=bs)
    assert asked == [10, 10, 4, 16, 8]

def reported(page):
    "The shares of test images, in percent, that a report names"
    tables = re.findall('<table>.*?</table>', page.read_text(encoding='utf-8'), re.S)
    table = next(o for o in tables if 'test images' in o)
    rows = [re.findall(r'<td[^>]*>\s*(.*?)\s*</td>', o, re.S) for o in re.findall('<tr>.*?</tr>', table, re.S)[1:]]
    return {unescape(row[0]): row[-1] for row in rows}

def test_networks_differ(finished):
    "Otherwise the tests below would show nothing"
    each = [read_probs(o, finished.ids)[1] for o in sorted(finished.run.glob('fold*/test.parquet'))]
    assert np.abs(each[0] - each[1]).mean() > .2

def test_files_of_the_run(finished):
    "thresholds.json, applied to test.parquet"
    rule = load_rule(finished.run/'thresholds.json')
    probs = read_probs(finished.run/'test.parquet', finished.ids)[1]
    same = (rule.predict(probs) == finished.submitted).all(1)
    if not finished.near: assert same.all()
    else: assert 6 <= (~same).sum() < 24   # those that took over labels

def test_neighbours(finished, data):
    "The copies have the labels of their originals, but for label 25, which is left to the networks"
    if not finished.near: return
    of_originals = KaggleFolder(data).targs[::7]
    assert (finished.submitted[:8, :25] == of_originals[:, :25]).all()
    passed = RunFolder(finished.run).scores['neighbours']
    assert 8 <= passed['test_taken'] < 24 and 0 < passed['taken'] < 56

def test_predict(finished):
    "In the batches of the run, and one by one"
    for bs in (None, 1):
        assert (predicted(finished.run, finished.images, finished.ids, bs=bs) == finished.submitted).all()

def test_predict_in_a_notebook(finished):
    "`predict` gives the labels of `predict_folder`"
    predictor, samples = Predictor.load(finished.run, device='cpu'), find_samples(finished.images, finished.ids)
    labels = predictor.predict([open_rgby(o) for o in samples.values()])
    assert (matrix(labels) == finished.submitted).all()

def test_report(finished):
    shares = reported(write_report(finished.run, packs=finished.run.parent, examples=1))
    assert shares == {k: f'{100*v:.1f} %' for k, v in zip(LABELS, finished.submitted.mean(0))}

def test_ensemble_with_a_copy(finished):
    "Of two equal runs, combined in each way in which two equal answers stay what they are"
    copy, out = finished.run.parent/'copy', finished.run.parent/'both'
    if not copy.exists(): shutil.copytree(finished.run, copy)
    for how in ('mean', 'max', 'vote'):
        ensemble_runs([finished.run, copy], out, how=how, thresholds='RatioRule')
        assert (submission(out, finished.ids) == finished.submitted).all()
        assert (predicted(out, finished.images, finished.ids) == finished.submitted).all()
        assert (RunFolder(out).decided == RunFolder(finished.run).decided).all()

def test_ensemble_of_different_runs(data, trained, tmp_path):
    "One run has neighbours, the other has none, and their ensemble is a member of another one"
    for name, near in dict(a=True, b=False).items(): finish(data, trained, tmp_path/name, 'mean', 2, near)
    ids, images = KaggleFolder(data).test_ids, data/'test'
    ensemble_runs([tmp_path/'a', tmp_path/'b'], tmp_path/'ab', thresholds='RatioRule')
    ensemble_runs([tmp_path/'ab', tmp_path/'b'], tmp_path/'abb', thresholds='RatioRule')
    a = submission(tmp_path/'a', ids)
    for out in (tmp_path/'ab', tmp_path/'abb'):
        submitted = submission(out, ids)
        assert (predicted(out, images, ids) == submitted).all()
        assert (submitted[:8, :25] == a[:8, :25]).all()
        shares = reported(write_report(out, packs=trained/'packs', examples=1))
        assert shares == {k: f'{100*v:.1f} %' for k, v in zip(LABELS, submitted.mean(0))}
