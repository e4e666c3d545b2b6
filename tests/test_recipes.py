"Every recipe, in miniature: from a folder of simulated cells to a valid submission; and each network as the recipe has it, through one step of training."
import json
from dataclasses import asdict

import numpy as np, pandas as pd, pytest, torch

from hpa_fastai.runs.compare import compare_runs
from hpa_fastai.runs.crossval import VALIDATION, cross_validate
from hpa_fastai.labels import LABELS
from hpa_fastai.train.losses import LOSSES
from hpa_fastai.models.factory import NETWORKS, rgby_model
from hpa_fastai.runs.recipes import RECIPES, load_recipe, recipe_table
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.simulate.dataset import simulate_dataset
from hpa_fastai.runs.fold import check_recipe

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp('sim')/'data', n=48, n_test=5, size=64, balanced=True, workers=0, progress=False)

@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')

def miniature(name):
    "A recipe with all that makes it what it is, but small: images of 64 pixels, an epoch for each phase, two folds, and the smallest residual network where it has one of timm's"
    r = load_recipe(name)
    scale = 64/r.size
    changes = {'size': 64, 'crop': max(32, round(r.crop*scale)) if r.crop else 0, 'folds': 2, 'bs': 12, 'accumulate': 24 if r.accumulate else 0, 'weights': 'none'}
    if r.body not in NETWORKS: changes |= {'body': 'test_resnet', 'model_args': {k: v for k, v in r.model_args.items() if k == 'input_norm'}}
    if r.neighbours: changes |= {'neighbours.body': 'test_resnet', 'neighbours.weights': 'none', 'neighbours.epochs': 1, 'neighbours.n_embed': 8, 'neighbours.bs': 12}
    for i, phase in enumerate(r.phases): changes |= {f'phases.{i}.epochs': min(phase.epochs, phase.schedule_args.get('n_cycles', 1)), f'phases.{i}.size': 48 if phase.size else 0}
    return r.override(**changes)

@pytest.mark.parametrize('name', RECIPES)
def test_recipe_ends_in_a_submission(name, data, runs):
    recipe, out = miniature(name), runs/name
    scores = cross_validate(data, out, recipe, packs=runs/'packs', device='cpu', workers=0)      # checks its submission itself
    assert 0 <= scores['macro_f1'] <= 1 and 0 <= scores['mean_ap'] <= 1
    run = RunFolder(out)
    assert len(run.ids) == 48 and run.decided.any(1).all()
    assert pd.read_csv(out/'submission.csv').Id.tolist() == pd.read_csv(data/'sample_submission.csv').Id.tolist()
    assert np.isfinite(run.test[1]).all()
    logged = pd.read_csv(out/'fold0/log.csv')
    assert np.isfinite(logged.train_loss).all() and len(logged) <= sum(p.epochs for p in recipe.phases)

@pytest.mark.parametrize('name', [o for o in RECIPES if o != 'gapnet_pretrained'])     # another name for the first of its three
def test_recipe_network_takes_a_step(name):
    "The recipe's own body, stem and head, built from random weights; every weight takes part"
    r = RECIPES[name]
    check_recipe(r)
    side = 96 if 'inception' in r.body else 64
    model = rgby_model(r.body, stem=r.stem, head=r.head, weights=None, dropout=r.dropout, stains=r.stains or None, **r.model_args)
    x, y = torch.randn(2, 4, side, side), torch.zeros(2, len(LABELS))
    y[:, 0] = 1
    loss = LOSSES[r.loss](**r.loss_args)(model(x), y)
    loss.backward()
    idle = [k for k, p in model.named_parameters() if p.grad is None]
    assert loss.isfinite() and not idle, idle

def test_recipes_say_what_they_are():
    table = recipe_table()
    for r in RECIPES.values():
        assert r.summary and r.source and r.name in table
        assert r.validation in VALIDATION
        assert json.loads(json.dumps(asdict(r)))          # plain data

def test_runs_can_be_compared(runs):
    "Those of the first test; all judged on the same images"
    done = sorted(o for o in runs.iterdir() if (o/'oof.csv').exists())
    if len(done) < 2: pytest.skip('the runs of the first test are not here')
    df = compare_runs(done, n_boot=200)
    assert len(df) == len(done) and (df.low <= df.macro_f1).all() and (df.difference <= 0).all()
