"""Whoever decides about an image, decides the same: a run's submission, its files, `Predictor` (which hpa-predict
calls), the report, and an ensemble of the run with a copy of itself."""
import re, shutil
from html import unescape
import numpy as np, pandas as pd, pytest, torch
from fastcore.basics import AttrDict

from hpa_fastai.labels import LABELS, encode_targets, read_submission
from hpa_fastai.images.kaggle import KaggleFolder
from hpa_fastai.models.weights import read_weights
from hpa_fastai.decide.submission import read_probs
from hpa_fastai.decide.rules import load_rule
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.train import learner
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
    out = tmp_path_factory.mktemp('sim')/'data'
    return simulate_dataset(out, n=56, n_test=24, size=64, balanced=True, workers=0, progress=False)

def toy(folds):
    recipe = load_recipe('demo').override(size=64, body='test_resnet', model_args={}, head='linear', bs=10, epochs=1)
    return recipe.override(folds=folds, tta=1, thresholds='RatioRule')

@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    "Two runs, of two and of three folds, whose networks are not equally sure of themselves; without predictions"
    runs = tmp_path_factory.mktemp('trained')
    for folds in (2, 3):
        cross_validate(data, runs/str(folds), toy(folds), packs=runs/'packs', device='cpu', workers=0)
        for k in range(folds):
            file = runs/f'{folds}/fold{k}/model.safetensors'
            weights = read_weights(file)
            bias = next(k for k, w in weights.items() if w.shape == (28,))
            save_file({**weights, bias: weights[bias] + (1.5, -1, 0)[k]}, file)
            for o in file.parent.glob('*.parquet'): o.unlink()
    return runs

@pytest.fixture(scope='module', params=[(how, folds) for how in ('mean', 'rank', 'vote') for folds in (2, 3)],
                ids=lambda o: f'{o[0]} of {o[1]}')
def finished(request, data, trained, tmp_path_factory):
    "The run with another ensemble: its folder, its test images, and what it submitted"
    (how, folds), run = request.param, tmp_path_factory.mktemp('runs')/'run'
    for k in range(folds): shutil.copytree(trained/f'{folds}/fold{k}', run/f'fold{k}')
    cross_validate(data, run, toy(folds).override(ensemble=how), packs=trained/'packs', device='cpu', workers=0)
    ids = KaggleFolder(data).test_ids
    submitted = encode_targets(read_submission(run/'submission.csv').set_index('Id').Predicted[ids])
    return AttrDict(run=run, ids=ids, submitted=submitted, images=data/'test', how=how)

def predicted(run, images, ids, **kwargs):
    "What hpa-predict says about image files, as a matrix"
    df = Predictor.load(run, device='cpu').predict_folder(images, **kwargs).set_index('Id').loc[ids]
    sets = [[LABELS.index(o) for o in labels.split(';')] for labels in df.Labels]
    return np.array([np.isin(range(28), o) for o in sets]).astype(np.uint8)

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
    assert (rule.predict(probs) == finished.submitted).all()

def test_predict(finished):
    "In the batches of the run, and one by one"
    for bs in (None, 1):
        assert (predicted(finished.run, finished.images, finished.ids, bs=bs) == finished.submitted).all()

def test_report(finished):
    shares = reported(write_report(finished.run, packs=finished.run.parent, examples=1))
    assert shares == {k: f'{100*v:.1f} %' for k, v in zip(LABELS, finished.submitted.mean(0))}

def test_ensemble_with_a_copy(finished):
    "Of two equal runs, combined in each way in which two equal answers stay what they are"
    copy, out = finished.run.parent/'copy', finished.run.parent/'both'
    if not copy.exists(): shutil.copytree(finished.run, copy)
    for how in ('mean', 'max', 'vote'):
        ensemble_runs([finished.run, copy], out, how=how, thresholds='RatioRule')
        submitted = encode_targets(read_submission(out/'submission.csv').set_index('Id').Predicted[finished.ids])
        assert (submitted == finished.submitted).all()
        assert (predicted(out, finished.images, finished.ids) == finished.submitted).all()
