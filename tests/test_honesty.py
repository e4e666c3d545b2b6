"What a run says about itself: scores are out of sample, or the run says why they are not."
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import numpy as np, pytest, torch

from hpa_fastai.labels import DataError
from hpa_fastai.files import write_json
from hpa_fastai.decide.rules import RatioRule
from hpa_fastai.decide.submission import write_probs
from hpa_fastai.decide.outcome import fit_ensemble_rule
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.runs.folder import write_decisions
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.combine import ensemble_runs
from hpa_fastai.runs.compare import compare_runs
from hpa_fastai.runs.report import write_report
from hpa_fastai.simulate.dataset import simulate_dataset

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('sim')/'data'
    return simulate_dataset(out, n=40, n_test=2, size=64, balanced=True, workers=0, progress=False)

def toy(**changes):
    recipe = load_recipe('demo').override(size=64, body='test_resnet', model_args={}, bs=10, epochs=1, tta=1)
    return recipe.override(**changes)

def simulated(n=90, seed=0):
    rng = np.random.default_rng(seed)
    targs = rng.random((n, 28)) < .1
    targs[:, 0] |= ~targs.any(1)
    return targs, (.4*targs + .6*rng.random(targs.shape)).astype(np.float32)

def finished(path, folds):
    "A folder like that of a finished run, with these folds"
    targs, probs = simulated(len(folds))
    ids, rule = [f'i{k}' for k in range(len(folds))], RatioRule().fit(probs, targs)
    write_decisions(path/'oof.csv', ids, folds, targs, rule.predict(probs))
    write_probs(path/'oof.parquet', ids, probs)
    rule.save(path/'thresholds.json')
    write_json(path/'scores.json', dict(macro_f1=.5, macro_f1_in_sample=.5, macro_f1_floor=.1, mean_ap=.5))
    return path

def test_runs_of_other_folds_are_not_combined(tmp_path):
    "What is fitted without a fold must not have been seen by any of the networks that predicted it"
    folds = np.arange(90) % 3
    one, same = finished(tmp_path/'one', folds), finished(tmp_path/'same', (folds + 1) % 3)
    ensemble_runs([one, same], tmp_path/'both', thresholds='RatioRule')
    moved = folds.copy()
    moved[7] = 2
    for name, other in dict(moved=moved, fewer=np.minimum(folds, 1), more=np.arange(90) % 6).items():
        with pytest.raises(DataError, match=f'{name}: divides the images into other folds than .*one, e.g. i'):
            ensemble_runs([one, finished(tmp_path/name, other)], tmp_path/'none')
    assert not (tmp_path/'none').exists()

def test_maximum_of_runs_has_thresholds_of_its_own():
    "About as many labels as there are, on new images, too"
    def world(seed):
        targs = simulated(600, seed)[0]
        noise = np.random.default_rng(seed + 10).random((600, 3, 28))
        return .4*targs[:, None] + .6*noise, targs
    (probs, targs), (new, new_targs) = world(0), world(1)
    decider = fit_ensemble_rule('max', 'RatioRule', probs, targs, np.arange(600) % 3)
    assert .8 < decider.predict(new).sum()/new_targs.sum() < 1.25

def test_maximum_over_folds_is_refused(data, tmp_path):
    with pytest.raises(DataError, match='choose mean, rank, vote, or combine finished runs with hpa-ensemble'):
        cross_validate(data, tmp_path/'run', toy(ensemble='max'), device='cpu', workers=0)
    assert not (tmp_path/'run').exists()

@pytest.mark.parametrize('changes, names', [
    ({}, []),
    ({'phases.0.monitor': 'macro_f1'}, ['phases.0.monitor']),
    ({'phases.0.monitor': 'train_loss', 'phases.0.patience': 3}, []),
    ({'phases.0.schedule': 'plateau', 'phases.0.patience': 3}, ['phases.0.patience', 'phases.0.schedule'])])
def test_choices_on_held_out_images(changes, names):
    from hpa_fastai.runs.fold import dependent_choices
    assert dependent_choices(toy(**changes)) == names

def test_a_run_says_that_its_epoch_was_chosen_on_held_out_images(data, tmp_path):
    "In scores.json, in its last line, in the report, in comparisons and in ensembles; another run says nothing"
    said, how = {}, {'chosen': {'phases.0.monitor': 'macro_f1'}, 'plain': {}}
    for name, changes in how.items():
        with redirect_stdout(StringIO()) as out:
            cross_validate(data, tmp_path/name, toy(**changes), packs=tmp_path/'packs', device='cpu', workers=0)
        said[name] = out.getvalue().splitlines()[-1]
    def scores(name): return json.loads((tmp_path/name/'scores.json').read_text())['chosen_on_held_out']
    assert scores('chosen') == ['phases.0.monitor'] and scores('plain') == []
    assert 'phases.0.monitor' in said['chosen'] and 'held-out' not in said['plain']
    def page(name): return write_report(tmp_path/name, packs=tmp_path/'packs', examples=1).read_text(encoding='utf-8')
    assert 'Too high' in page('chosen') and 'phases.0.monitor in the' in page('chosen')
    assert 'Too high' not in page('plain')
    runs = [tmp_path/o for o in how]
    with redirect_stdout(StringIO()) as out: ensemble_runs(runs, tmp_path/'both', thresholds='RatioRule')
    assert scores('both') == ['chosen: phases.0.monitor'] and 'chosen: phases.0.monitor' in out.getvalue()
    table = compare_runs([tmp_path/o for o in (*how, 'both')], n_boot=10).chosen_on_held_out
    assert table.to_dict() == dict(chosen='phases.0.monitor', plain='', both='chosen: phases.0.monitor')
