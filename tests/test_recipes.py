"""Every recipe, in miniature: from a folder of simulated cells to a valid submission; each network as the recipe has
it, through one step of training; and the recipes' files against what their authors state."""
import json, random
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from hpa_fastai.labels import DataError, LABELS
from hpa_fastai.images.kaggle import VALIDATION
from hpa_fastai.simulate.dataset import simulate_dataset
from hpa_fastai.models.factory import NETWORKS, rgby_model
from hpa_fastai.train.f1_losses import LOSSES
from hpa_fastai.decide.outcome import check_decisions
from hpa_fastai.runs.recipes import RECIPES, Phase, Recipe, keep_recipe, load_recipe, recipe_table, recipe_text
from hpa_fastai.runs.setup import check_network
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
        changes['model_args'] = {k: v for k, v in r.model_args.items() if k in ('input_norm', 'image_norm')}
    if r.neighbours:
        small = dict(body='test_resnet', weights='none', epochs=1, n_embed=8, bs=12)
        changes |= {f'neighbours.{k}': v for k, v in small.items()}
    for i, phase in enumerate(r.phases):
        least = 2 if r.loss == 'bce_f1' else phase.schedule_args.get('n_cycles', 1)   # each loss has its turn
        changes[f'phases.{i}.epochs'] = min(phase.epochs, least)
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

# each network once
networks = {(r.body, r.head, str(r.stains), str(r.model_args)): name for name, r in RECIPES.items()}

@pytest.mark.parametrize('name', networks.values())
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
    pudae=dict(size=1024, body='seresnext50_32x4d', head='spatial', loss='focal', thresholds='RatioRule', epochs=[23],
               lr=5e-4, bs=8, accumulate=32, opt='adam', wd=0., model_args={'image_norm': 'zscore'}),
    shisu=dict(size=512, body='seresnext50_32x4d', stem='mean', head='concat', dropout=0., loss='present_f1', opt='sgd',
               wd=4e-4, sampling_args={'rule': 'log', 'combine': 'sum', 'most': 100}, epochs=[10], monitors='macro_f1',
               thresholds='FixedRule', threshold_args={'threshold': .205}),
    agn=dict(size=512, body='resnet18', loss='focal_f1', thresholds='FixedRule', threshold_args={'threshold': .2}),
    nguyen=dict(size=512, body='seresnext50_32x4d', loss='bce_f1', thresholds='FixedRule',
                threshold_args={'threshold': .2}),
    feifei=dict(size=512, body='densenet121', loss='bce', opt='sgd', sampling_args={'rule': 'log'},
                thresholds='ScaledRule', threshold_args={'factor': .4}),
    flym=dict(size=1024, stains=['red', 'green', 'blue'], body='resnet50', loss='bce', opt='sgd',
              sizes=[512, 768, 0], model_args={'image_norm': 'gamma', 'input_norm': True}),
    gujingxiao=dict(size=512, body='densenet121', stem='red', dropout=.5, loss='focal_f1', bs=32, lr=1e-3,
                    loss_args={'per_image': True}, epochs=[1, 40, 8], trains=['stem_head', 'all', 'all'],
                    monitors='macro_f1', thresholds='ClassRule'),
    ildoonet=dict(size=512, body='densenet121', stem='red_blue', head='linear', dropout=.2, sampling='rare',
                  loss='soft_f1', epochs=[300], lr=1e-4, opt='adam', wd=1e-5, thresholds='GlobalRule'),
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
    assert "'assets/*/*'" in setup

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

# What a recipe's file may say by mistake or by malice, and what its author is told
mistakes = {
    'size: -5': 'size is -5, but should be a whole number from',
    'size: true': 'size is True, but should be a whole number',
    'size: 64\ncrop: 65': 'crop is 65, but should be at most 64, the size of images',
    'bs: 0': 'bs is 0, but should be a whole number from 1 to',
    'bs: many': "bs is 'many', but should be a whole number",
    'seed: -1': 'seed is -1, but should be a whole number from 0 to',
    'folds: 1': 'folds is 1, but should be a whole number from 2 to',
    'tta: 3': 'tta is 3, but should be 1, 4 or 8',
    'tta: true': 'tta is True, but should be 1, 4 or 8',
    'tta_crops: 2': 'tta_crops is 2, but should be 0, 1, 4 or 5',
    'tta_reduce: sum': "tta_reduce is 'sum', but should be mean, max or logits",
    'dropout: 1.5': 'dropout is 1.5, but should be a number from 0 to 1',
    'wd: .inf': 'wd is inf, but should be a number from 0 to',
    'clip: 1e999': 'clip is inf, but should be a number from 0 to',
    'label_weights: .nan': 'label_weights is nan, but should be a number from 0 to',
    'stains: [red, rde]': "stains is ['red', 'rde'], but should be a list of red, green, blue or yellow",
    'phases: []': 'phases is [], but should be a list of 1 to',
    'phases: [{epochs: -1}]': 'phase 1: epochs is -1, but should be a whole number from 1 to',
    'phases: [{epochs: 1}, {lr: .nan}]': 'phase 2: lr is nan, but should be a number above 0',
    'phases: [{body_lr: 0}]': 'phase 1: body_lr is 0, but should be a number above 0',
    'phases: [{patience: -1}]': 'phase 1: patience is -1, but should be a whole number from 0 to',
    'phases: [{mix: {mixup: -0.4}}]': "phase 1: mix is {'mixup': -0.4}, but should be",
    'augment: {gain: .nan}': "augment is {'gain': nan}, but should be `key: value` pairs of finite numbers",
    'masks: {wieght: 1}': "masks: unknown key 'wieght'; did you mean 'weight'?",
    'masks: {um_per_px: 0}': 'masks: um_per_px is 0, but should be a number above 0',
    'neighbours: {exclude: [28]}': 'neighbours: exclude is [28], but should be a list of label numbers, 0 to 27',
    'neighbours: {threshold: 2}': 'neighbours: threshold is 2, but should be a number from -1 to 1',
    'neighbours: {body: "hf-hub:stranger/net"}': "neighbours: body is 'hf-hub:stranger/net', but should be",
    'neighbours: 7': 'neighbours: 7 should be `key: value` pairs',
    'body: "hf-hub:stranger/net"': "body is 'hf-hub:stranger/net', but should be the name of a network",
    'body: "local-dir:/etc"': "body is 'local-dir:/etc', but should be the name of a network",
    'weights: /etc/passwd': "weights is '/etc/passwd', but should be imagenet, simulated, none, or a",
    'name: "a\\nb"': "name is 'a\\nb', but should be",
    'summary: "\\e[2J"': 'summary is',
    '1: 2': "unknown key 1; did you mean",
    'null: 2': 'unknown key None; did you mean',
    '[a]: 2': 'not YAML',
    'lr: 1\nlr: 2': "'lr' is there twice",
    'phases: [{epochs: 1, epochs: 2}]': "'epochs' is there twice",
    'phases: &a [*a]': 'no anchors',
    'x: &a [1]\ny: *a': 'no anchors',
    'a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]': 'no anchors',
    'name: !!binary aGk=': 'no anchors, aliases or tags',
    'bs: !!int x': 'no anchors, aliases or tags',
    'bs: ' + '9'*5000: 'not YAML',
    'bs: 0x' + 'f'*5000: 'bs is a number of thousands of digits, but',
    'bs: 0b_': 'not YAML',
    'wd: ' + '1:'*300 + '1.5': 'not YAML',
    '- '*3_000: 'nested too deeply',
    'name: ' + 'x'*200_000: 'more than 100,000 characters'}

@pytest.mark.parametrize('text', mistakes, ids=lambda o: o[:40])
def test_mistake_in_a_file_is_one_line(text, tmp_path):
    "It names the file and says what should be there"
    file = tmp_path/'mine.yaml'
    file.write_text(text)
    with pytest.raises(DataError) as e: Recipe.load(file)
    assert str(e.value).startswith(str(file)) and mistakes[text] in str(e.value)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600

@pytest.mark.parametrize('key, value, says', [
    ('bs', '[', 'recipe default, bs: not YAML'), ('bs', '0', 'bs is 0, but should be'),
    ('bs', '- '*3_000, 'recipe default, bs: not YAML (nested too deeply'),
    ('bs', '!!binary aGk=', 'no anchors, aliases or tags'),
    ('phases.0', '{epochs: 0}', 'phase 1: epochs is 0'), ('phases.x', '{}', 'has no phases.x; there are 0, 1'),
    ('phases.9', '{}', 'has no phases.9; there are 0, 1'), ('lr', float('nan'), 'phase 2: lr is nan'),
    ('phases.0.lr', '.inf', 'phase 1: lr is inf'), ('bs', np.int64(8), 'bs is')])
def test_mistake_on_the_command_line(key, value, says):
    with pytest.raises(DataError) as e: load_recipe('default').override(**{key: value})
    assert says in str(e.value) and '\n' not in str(e.value)

def test_mistake_in_python():
    for wrong in (dict(bs=0), dict(phases=[Phase(epochs=0)]), dict(phases=[dict(epochs=0)]), dict(wd=float('inf'))):
        with pytest.raises(DataError, match='recipe mine'): Recipe('mine', **wrong)
    with pytest.raises(DataError, match="recipe mine: bs is 'x'"): Recipe('mine', bs='x')

# Names and arguments, which are looked up before any image is packed
misnamed = {
    'augment: {nope: 1}': "augment: unknown key 'nope'; did you mean",
    'augment: {gian: .1}': "augment: unknown key 'gian'; did you mean 'gain'?",
    'augment: {blur: 2}': 'augment: blur is 2, but should be a number from 0 to 1',
    'augment: {gain: a bit}': "augment: gain is 'a bit', but should be a number",
    'augment: {stats: [0, 1]}': "augment: unknown key 'stats'",
    'sampling_args: {most: 2}': "sampling_args: unknown key 'most'; there are none",
    'sampling: repeat\nsampling_args: {treshold: 2}':
        "sampling_args: unknown key 'treshold'; did you mean 'threshold'?",
    'sampling: inverse\nsampling_args: {most: .5}': 'sampling_args: ',
    'sampling: inverse\nsampling_args: {rule: x}': "sampling_args: rule is 'x'; choose 'inverse'",
    'sampling: rare\nsampling_args: {factors: {28: 4}}': 'sampling_args: factors is {28: 4}, but should be',
    'sampling: rare\nsampling_args: {factors: {8: 1.0e9}}': 'sampling_args: factors is',
    'loss: focl': "no loss 'focl'; there are bce, focal",
    'loss_args: {gama: 1}': "loss_args: unknown key 'gama'; did you mean 'gamma'?",
    'loss_args: {gamma: much}': "loss_args: gamma is 'much', but should be a number",
    'loss_args: {alpha: 7}': 'loss_args: alpha is 7',
    'loss_args: {weight: [1, 2]}': 'loss_args: ',
    'loss_args: {reduction: none}': 'loss_args: the loss of a batch is',
    'loss: asymmetric\nloss_args: {nope: 1}': 'loss_args: ',
    'loss: soft_f1\nlabel_weights: 1': 'loss_args with label_weights: ',
    'phases: [{loss: focal, loss_args: {gama: 1}}]': "phase 1, loss_args: unknown key 'gama'",
    'phases: [{loss_args: {gamma: 1}}]': 'phase 1: loss_args without loss; name it, too',
    'phases: [{schedule: sine}]': "no schedule 'sine'; there are one_cycle",
    'phases: [{schedule_args: {pct_strat: .3}}]':
        "phase 1, schedule_args: unknown key 'pct_strat'; did you mean 'pct_start'",
    'phases: [{schedule_args: {pct_start: 3}}]':
        'phase 1, schedule_args: pct_start is 3, but should be a number from 0',
    'phases: [{schedule_args: {cbs: 3}}]': "phase 1, schedule_args: unknown key 'cbs'",
    'phases: [{schedule: cycles, schedule_args: {n_cycles: 0}}]': 'schedule_args: n_cycles is 0, but should be',
    'phases: [{schedule: cycles, schedule_args: {nope: 0}}]': "schedule_args: unknown key 'nope'",
    'phases: [{schedule: steps, schedule_args: {factors: []}}]': 'schedule_args: factors is [], but should be',
    'phases: [{schedule: steps, schedule_args: {lengths: [1, 2]}}]': 'schedule_args: lengths has 2 numbers, factors 3',
    'phases: [{schedule: plateau, schedule_args: {monitor: nope}}]': "no monitor 'nope'",
    'phases: [{schedule: plateau, schedule_args: {patience: 0}}]': 'schedule_args: patience is 0, but should be',
    'phases: [{schedule: plateau, schedule_args: {nope: 0}}]': "schedule_args: unknown key 'nope'",
    'phases: [{mix: {blend: 1}}]': "no mix 'blend'",
    'phases: [{average: eam}]': "no average 'eam'",
    'threshold_args: {threshold: .3}': "threshold_args: unknown key 'threshold'; there are none",
    'thresholds: FixedRule\nthreshold_args: {treshold: .3}': "threshold_args: unknown key 'treshold'; did you mean",
    'thresholds: FixedRule\nthreshold_args: {threshold: 3}': 'threshold_args: threshold is 3, but should be',
    'thresholds: MeanRule\nthreshold_args: {rules: [ClassRule]}': 'threshold_args: ',
    'thresholds: SoftF1Rule\nthreshold_args: {halves: 1000000000}':
        'threshold_args: halves is 1000000000, but should be',
    'thresholds: RatioRule\nthreshold_args: {shares: [.1, .2]}': 'threshold_args: ',
    'model_args: {nope: 1}': "resnet34 takes no argument 'nope'",
    'model_args: {pretrained: true}': "resnet34 takes no argument 'pretrained'",
    'model_args: {pretrained_cfg_overlay: {url: "http://localhost"}}': "takes no argument 'pretrained_cfg_overlay'",
    'model_args: {checkpoint_path: /etc/passwd}': "takes no argument 'checkpoint_path'",
    'model_args: {cache_dir: /tmp}': "takes no argument 'cache_dir'",
    'body: gapnet\nmodel_args: {input_norm: true}': "gapnet takes no argument 'input_norm'",
    'body: gapnet\nmodel_args: {n_out: 3}': 'model_args cannot choose n_out',
    'body: basic_cnn\nmodel_args: {stains: [red]}': 'model_args cannot choose stains; set stains in the recipe itself',
    'label_weights: 1\nloss_args: {weight: [1]}': 'loss_args with label_weights: ',
    'opt: adagrad': "no opt 'adagrad'; there are adamw"}

def check_all(recipe):
    check_recipe(recipe)
    check_decisions(recipe)

@pytest.mark.parametrize('text', misnamed, ids=lambda o: o[:40])
def test_argument_is_checked_before_training(text, tmp_path):
    (tmp_path/'mine.yaml').write_text('name: mine\n' + text)
    recipe = Recipe.load(tmp_path/'mine.yaml')
    with pytest.raises(DataError) as e: check_all(recipe)
    assert str(e.value).startswith('recipe mine') and misnamed[text] in str(e.value)
    assert '\n' not in str(e.value) and len(str(e.value)) < 2000

def test_network_is_checked_before_training():
    tiny = Recipe('mine', body='test_resnet', weights='none')
    check_network(tiny)
    with pytest.raises(DataError, match='masks'): check_network(tiny.override(masks='{weight: 1}'))
    with pytest.raises(DataError, match='no such file'): check_network(tiny.override(weights='nowhere.pth'))

@pytest.mark.parametrize('name', RECIPES)
def test_named_recipe_passes_all_checks(name): check_all(RECIPES[name])

def test_run_of_another_version_is_named(tmp_path):
    file, recipe = tmp_path/'recipe.yaml', load_recipe('demo')
    for text in ('', 'nope: 1', recipe.to_yaml() + 'warmth: 3\n', '{' + recipe.to_yaml()):
        file.write_text(text)
        with pytest.raises(DataError, match='another version') as e: keep_recipe(recipe, file, begun=True)
        assert str(e.value).startswith(str(file)) and '\n' not in str(e.value)
        assert file.read_text() == text
        keep_recipe(recipe, tmp_path/'other.yaml', begun=False)

def test_text_that_looks_like_a_number_stays_text(tmp_path):
    for name in ('1e-3', '2018-10-05', 'yes', '0x10', '1:30', 'null', '1e5'):
        Recipe(name).save(tmp_path/'mine.yaml')
        assert Recipe.load(tmp_path/'mine.yaml').name == name
    (tmp_path/'mine.yaml').write_text('name: 2018-10-05')
    assert Recipe.load(tmp_path/'mine.yaml').name == '2018-10-05'

odd = [None, True, False, 0, 1, -1, 3, 10**9, 10**400, .5, -.5, 1e300, float('nan'), float('inf'), '', 'x', 'none',
       'all', '\x00', '\ud800', 'é\n', 'a:b', '../x', [], [1], ['x'], [[]], [None], {}, {'x': 1}, {1: 2}, {None: 1},
       {'lr': {}}, [{}], 'auto', 'focal', 'MeanRule', 'cycles', 8]

def places(o, at=()):
    for k, v in o.items() if isinstance(o, dict) else enumerate(o):
        yield *at, k
        if isinstance(v, (dict, list)): yield from places(v, (*at, k))

def swapped(d, rng):
    "A recipe's data with one or two values, or a key, replaced by something odd"
    d = deepcopy(d)
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(places(d)))
        o = d
        for k in path: o = o[k]
        if isinstance(o, dict) and rng.random() < .1:
            o[rng.choice(['x', 1, None, 'gain', 'lr', 'monitor'])] = o.pop(last)
        else: o[last] = deepcopy(rng.choice(odd))
    return d

def test_odd_values_give_a_recipe_or_one_line(tmp_path):
    rng, plain, n_good = random.Random(1), [asdict(o) for o in RECIPES.values()], 0
    args = dict(sampling='rare', sampling_args={'factors': {8: 4}}, loss_args={'gamma': 1.}, masks={'weight': 1.},
                thresholds='FixedRule', threshold_args={'threshold': .3}, neighbours={}, name='all')
    plain.append(asdict(Recipe(**args, phases=[dict(mix={'mixup': .4}, schedule_args={'div': 10.})])))
    for i in range(500):
        d = swapped(rng.choice(plain), rng)
        try:
            recipe = Recipe.from_dict(d)
            check_all(recipe)
            if not i % 10:
                recipe.save(tmp_path/'mine.yaml')
                assert Recipe.load(tmp_path/'mine.yaml') == recipe
            n_good += 1
        except DataError as e: assert '\n' not in str(e), d
    assert 20 < n_good < 400

def test_any_text_is_a_recipe_or_one_line(tmp_path):
    "Files with lines that were cut, doubled or mixed up"
    rng, texts = random.Random(2), [recipe_text(o) for o in RECIPES]
    for _ in range(100):
        text = list(rng.choice(texts))
        for _ in range(rng.randint(1, 8)): text[rng.randrange(len(text))] = rng.choice('{}[]:,&*!|>\'"%@#?- \n\t0e.x')
        (tmp_path/'mine.yaml').write_text(''.join(text))
        try: Recipe.load(tmp_path/'mine.yaml')
        except DataError as e: assert '\n' not in str(e)

def test_costs_are_those_of_the_networks():
    "`hpa-recipes` quotes a table that benchmarks/recipe_costs.py writes"
    from csv import DictReader
    from importlib.util import module_from_spec, spec_from_file_location
    root = Path(__file__).parents[1]
    spec = spec_from_file_location('recipe_costs', root/'benchmarks/recipe_costs.py')
    spec.loader.exec_module(counting := module_from_spec(spec))
    with open(root/'hpa_fastai/assets/recipe_costs.csv', encoding='utf-8') as f:
        rows = {o['recipe']: o for o in DictReader(f)}
    assert list(rows) == list(RECIPES)
    for name in ('demo', 'gapnet'):
        assert {k: str(v) for k, v in counting.row(RECIPES[name]).items()} == rows[name]
