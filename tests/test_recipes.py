"""Every recipe, in miniature: from a folder of simulated cells to a valid submission; each network as the recipe has
it, through one step of training; and the recipes' files against what their authors state."""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from hpa_fastai.labels import LABELS
from hpa_fastai.images.kaggle import VALIDATION
from hpa_fastai.simulate.dataset import simulate_dataset
from hpa_fastai.models.factory import NETWORKS, rgby_model
from hpa_fastai.train.losses import LOSSES
from hpa_fastai.decide.outcome import check_decisions
from hpa_fastai.runs.recipes import RECIPES, Recipe, load_recipe, recipe_table, recipe_text
from hpa_fastai.runs.fold import check_recipe
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.compare import compare_runs

torch.set_num_threads(1)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return simulate_dataset(tmp_path_factory.mktemp('sim')/'data', n=48, n_test=5, size=64, balanced=True, workers=0,
                            progress=False)

@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')

def miniature(name):
    """A recipe with all that makes it what it is, but small: images of 64 pixels, an epoch for each phase, two folds,
    and the smallest residual network where it has one of timm's"""
    r = load_recipe(name)
    changes = {'size': 64, 'folds': 2, 'bs': 12, 'weights': 'none'}
    if r.crop: changes['crop'] = max(32, round(r.crop*64/r.size))
    if r.accumulate: changes['accumulate'] = 24
    if r.body not in NETWORKS:
        changes['body'] = 'test_resnet'
        changes['model_args'] = {k: v for k, v in r.model_args.items() if k == 'input_norm'}
    if r.neighbours:
        small = dict(body='test_resnet', weights='none', epochs=1, n_embed=8, bs=12)
        changes |= {f'neighbours.{k}': v for k, v in small.items()}
    for i, phase in enumerate(r.phases):
        changes[f'phases.{i}.epochs'] = min(phase.epochs, phase.schedule_args.get('n_cycles', 1))
        changes[f'phases.{i}.size'] = 48 if phase.size else 0
    return r.override(**changes)

@pytest.mark.parametrize('name', RECIPES)
def test_recipe_ends_in_a_submission(name, data, runs):
    recipe, out = miniature(name), runs/name
    scores = cross_validate(data, out, recipe, packs=runs/'packs', device='cpu', workers=0)   # checks its submission
    assert 0 <= scores['macro_f1'] <= 1 and 0 <= scores['mean_ap'] <= 1
    run = RunFolder(out)
    assert len(run.ids) == 48 and run.decided.any(1).all()
    assert pd.read_csv(out/'submission.csv').Id.tolist() == pd.read_csv(data/'sample_submission.csv').Id.tolist()
    assert np.isfinite(run.test[1]).all()
    logged = pd.read_csv(out/'fold0/log.csv')
    assert np.isfinite(logged.train_loss).all() and len(logged) <= sum(p.epochs for p in recipe.phases)

# gapnet_pretrained is another name for the first of its three
@pytest.mark.parametrize('name', [o for o in RECIPES if o != 'gapnet_pretrained'])
def test_recipe_network_takes_a_step(name):
    "The recipe's own body, stem and head, built from random weights; every weight takes part"
    r = RECIPES[name]
    check_recipe(r)
    check_decisions(r)
    side = 96 if 'inception' in r.body else 64
    model = rgby_model(r.body, stem=r.stem, head=r.head, weights=None, dropout=r.dropout,
                       stains=r.stains or None, **r.model_args)
    x, y = torch.randn(2, 4, side, side), torch.zeros(2, len(LABELS))
    y[:, 0] = 1
    loss = LOSSES[r.loss](**r.loss_args)(model(x), y)
    loss.backward()
    idle = [k for k, p in model.named_parameters() if p.grad is None]
    assert loss.isfinite() and not idle, idle

# What the systems' authors state of them, and what must therefore not change by an oversight
stated = dict(
    kaze=dict(size=512, body='resnet50', loss='focal', monitors='focal_loss'),
    gapnet=dict(size=256, body='gapnet', dropout=.3, sampling='rare', loss='focal', opt='adam', lr=1e-3,
                thresholds='GlobalRule'),
    gapnet_bce_f1=dict(losses=['', 'soft_f1'], loss='bce', trains=['all', 'head']),
    gapnet_crops=dict(size=512, crop=256),
    gapnet_pretrained_vgg16=dict(body='vgg16', head='gapnet_pretrained', epochs=[15, 2], trains=['stem_head', 'all']),
    gapnet_pretrained_resnet50=dict(body='resnet50', epochs=[15, 5]),
    gapnet_pretrained_inception_v3=dict(body='inception_v3', epochs=[15, 5]),
    gapnet_mask=dict(body='gapnet_mask', size=512, crop=256),
    basic_cnn=dict(size=512, stains=['red', 'green', 'blue'], body='basic_cnn', loss='bce', epochs=[10], lr=1e-4,
                   thresholds='FixedRule'),
    resnet_transfer=dict(size=512, stains=['red', 'green', 'blue'], body='resnet50', loss='bce', schedules=['cycles'],
                         thresholds='FixedRule'),
    zij212=dict(size=512, body='resnet34', stem='mean', loss='focal', trains=['stem_head', 'all'],
                thresholds='ClassRule'),
    optima=dict(size=512, stem='red', sampling='rare', loss='focal'),
    iafoss=dict(size=256, body='resnet34', stem='red_blue', loss='focal', epochs=[1, 8, 8, 8], tta=8,
                tta_reduce='logits', thresholds='SoftF1Rule'),
    bestfitting=dict(size=1536, crop=1024, body='densenet121', stem='red', loss='bestfitting', opt='adam',
                     epochs=[45], lr=30e-5, clip=1., accumulate=32, tta=8, tta_reduce='max', thresholds='RatioRule',
                     validation='no_duplicates'),
    pudae=dict(size=1024, body='seresnext50_32x4d', head='spatial', loss='focal', thresholds='RatioRule'),
    vpp=dict(body='inception_v4', sampling='inverse', opt='sgd', sizes=[512, 650, 0], size=800))

@pytest.mark.parametrize('name', stated)
def test_recipe_holds_what_its_author_states(name):
    recipe = RECIPES[name]
    of_phases = dict(epochs='epochs', trains='train', losses='loss', schedules='schedule', sizes='size')
    for key, value in stated[name].items():
        if key in of_phases: assert [getattr(o, of_phases[key]) for o in recipe.phases] == value, key
        elif key == 'lr': assert recipe.phases[0].lr == value
        elif key == 'monitors': assert recipe.phases[-1].monitor == value
        else: assert getattr(recipe, key) == value, key

def test_bestfitting_schedule_and_neighbours():
    "Adam [30, 15, 7.5, 3, 1]e-5 over [25, 5, 5, 5, 5] epochs; labels passed on above a cosine of .65"
    recipe = RECIPES['bestfitting']
    args = recipe.phases[0].schedule_args
    assert np.allclose(30e-5*np.array(args['factors']), np.array([30, 15, 7.5, 3, 1])*1e-5)
    assert args['lengths'] == [25, 5, 5, 5, 5]
    assert (recipe.neighbours.body, recipe.neighbours.threshold) == ('resnet50', .65)

def test_recipes_are_files():
    "Named like the recipe in it, installed with the package, with comments, without a value that is the default anyway"
    plain = asdict(Recipe())
    assert {'default', 'fast', 'best', 'demo', *stated} <= set(RECIPES)
    for name, recipe in RECIPES.items():
        text = recipe_text(name)
        assert recipe.name == name and text.startswith('# ')
        written = [line.partition(':')[0] for line in text.splitlines() if line[:1].isalpha()]
        assert len(written) == len(set(written))
        assert not [k for k in written if asdict(recipe)[k] == plain[k] and k != 'name']
    setup = (Path(__file__).resolve().parent.parent/'setup.py').read_text()
    assert "'assets/recipes/*'" in setup

def test_own_file_and_changes_leave_the_named_ones_alone(tmp_path):
    recipe = load_recipe('gapnet')
    recipe.phases[0].epochs, recipe.model_args['act'] = 1, 'relu'
    assert (RECIPES['gapnet'].phases[0].epochs, RECIPES['gapnet'].model_args) == (60, {'act': 'prelu'})
    phases = [dict(epochs=2)]
    Recipe(phases=phases)
    assert phases == [dict(epochs=2)]
    (tmp_path/'mine.yaml').write_text(recipe_text('gapnet').replace('dropout: 0.3', 'dropout: 0.5'))
    assert load_recipe(tmp_path/'mine.yaml') == RECIPES['gapnet'].override(dropout=.5)

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
