"""All named recipes on the same simulated cells, with the same number of images seen: macro F1 out of sample.

    python benchmarks/recipes.py --out DIR [--data DIR] [--seed 7] [--json FILE] [--recipes 'gapnet iafoss']
                                 [--budget 8000] [--images 1600] [--variants 4] [--threads 2]

What is the same for all, and what is not, where there are no pretrained weights and two cores:

- Data: simulated fields of 41 µm and 256 pixels. Half of the images have the competition's frequencies of labels and
  half are balanced, so that the rarest label has some dozens. Two folds (`--folds`).
- Budget: every network sees about the same number of images in training; its phases are shortened in proportion, and
  patience with them. (The first place's second network sees a quarter as many on top.)
- Sizes: a quarter of the recipe's own side (at most 256 pixels), for a field whose side is a quarter of that of a whole
  image. So structures have the size that the recipe would see in whole images; there are only fewer cells. A recipe
  that looks closer does so here too, and pays in time, which the table shows. `demo`, made for small images, stays as
  it is.
- Bodies: pretrained ones (ResNet, VGG, DenseNet, ...) are all replaced by one small residual network from scratch. So
  bodies and the starts of stems are not compared; heads, losses, sampling, schedules, augmentation, crops, views and
  thresholds are. Networks that are the system itself (GapNet-PL, the plain CNN) stay as they are.
- Rates: a recipe for pretrained weights has its rates scaled so that the highest is right for that network from scratch
  (Adam: 4e-3, or 1e-3 where the schedule has no warm-up; SGD: 0.1; Muon: .032), and nothing is frozen before all has
  been trained once. GapNet's and the CNN's own rates stay.

Each run is a folder under DIR: after a stop, the same command goes on. `--variants 4` adds GapNet-PL with one choice
changed at a time, each with 4 times the budget (it is quick, and learns slowly).
"""
import shutil, time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse

from hpa_fastai.runs.compare import compare_runs
from hpa_fastai.decide.rules import RULES, cross_decide
from hpa_fastai.decide.outcome import decide_run, FOLD_ENSEMBLES
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.files import write_json
from hpa_fastai.decide.submission import read_probs
from hpa_fastai.labels import encode_targets, read_labels
from hpa_fastai.train.metrics import macro_f1
from hpa_fastai.models.factory import NETWORKS
from hpa_fastai.runs.recipes import RECIPES, load_recipe
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.data.sampling import SAMPLING
from hpa_fastai.simulate.dataset import simulate_dataset

SIDE, UM = 256, .16   # of a field: pixels, and µm in one; whole images have 1024 of that width, or 512 of .32
SMALL = dict(body='resnet10t', model_args=dict(channels=[32, 64, 128, 256], stem_width=16))
VARIANTS = dict(
    gapnet={},
    gapnet_bce_f1={},
    gapnet_crops={},
    gapnet_loss_bce=dict(loss='bce', label_weights=0.),
    gapnet_loss_f1=dict(loss='soft_f1', label_weights=0.),
    gapnet_loss_focal_unweighted=dict(label_weights=0.),
    gapnet_sampling_none=dict(sampling='none'),
    gapnet_sampling_all=dict(sampling='inverse'),
    gapnet_five_folds=dict(folds=5))
RULE_NAMES = 'FixedRule', 'GlobalRule', 'ClassRule', 'RatioRule', 'ShrinkRule', 'SoftF1Rule', 'MeanRule'


def simulated(path, images, seed=7):
    "A data set, half with the competition's label frequencies, half balanced"
    if (path/'train.csv').exists(): return path
    half = images//2
    kwargs = dict(n_test=half//4, size=SIDE, um_per_px=UM)
    simulate_dataset(path/'natural', n=half, seed=seed, **kwargs)
    simulate_dataset(path/'balanced', n=images - half, seed=seed + 1, balanced=True, **kwargs)
    for part in ('train', 'test'):
        (path/part).mkdir(exist_ok=True)
        for source in ('natural', 'balanced'):
            for file in (path/source/part).iterdir(): shutil.move(file, path/part/file.name)
    for name in ('sample_submission.csv', 'solution.csv', 'train.csv'):    # the last one says that all is there
        tables = [pd.read_csv(path/source/name, dtype=str) for source in ('natural', 'balanced')]
        pd.concat(tables).to_csv(path/name, index=False)
    return path


def highest_rate(recipe):
    "The highest learning rate that is right for the small network from scratch"
    if recipe.opt == 'sgd': return .1
    if recipe.opt == 'muon': return .032
    warmed = all(p.schedule in ('one_cycle', 'cycles', 'cosine') for p in recipe.phases)
    return 4e-3 if warmed else 1e-3


def scaled(recipe, df, budget, folds, bs=32):
    "The recipe as this benchmark can run it; the module's docstring says how"
    small = recipe.name == 'demo'
    own = small or recipe.body in NETWORKS
    size = recipe.size if small else min(SIDE, recipe.size//4)
    crop = round(recipe.crop*size/recipe.size) if recipe.crop else 0
    changes = dict(size=size, crop=crop, folds=folds, weights='none', bs=bs, accumulate=0)
    if not own:
        model_args = dict(SMALL['model_args'])
        model_args |= {k: v for k, v in recipe.model_args.items() if k in ('input_norm', 'image_norm')}
        changes |= {**SMALL, 'model_args': model_args}
    if recipe.masks: changes['masks.um_per_px'] = UM*SIDE/size
    repeats = SAMPLING[recipe.sampling]
    seen = repeats(encode_targets(df.Target), **recipe.sampling_args).sum() if repeats else len(df)
    share = 1 - 1/folds
    shorter = budget/(share*seen)/sum(p.epochs for p in recipe.phases)
    highest = max(p.lr for p in recipe.phases if p.train == 'all')
    top = highest if own else highest_rate(recipe)
    if recipe.neighbours:
        changes |= {'neighbours.body': 'resnet10t', 'neighbours.weights': 'none', 'neighbours.lr': 1e-3}
        changes['neighbours.epochs'] = max(1, round(budget/4/(share*len(df))))
    whole = False
    for i, p in enumerate(recipe.phases):
        whole |= p.train == 'all'
        changes[f'phases.{i}.epochs'] = max(1, round(p.epochs*shorter))
        changes[f'phases.{i}.lr'] = min(p.lr*top/highest, top)
        changes[f'phases.{i}.size'] = p.size//4
        changes[f'phases.{i}.patience'] = max(3, round(p.patience*shorter)) if p.patience else 0
        if not whole: changes[f'phases.{i}.train'] = 'all'
        if 'patience' in p.schedule_args:
            patience = max(1, round(p.schedule_args['patience']*shorter))
            changes[f'phases.{i}.schedule_args.patience'] = patience
    return recipe.override(**changes)


def variant(name, changes, df, budget, folds):
    "GapNet-PL, or a recipe of its family, with one choice changed"
    recipe = load_recipe(name if name in RECIPES else 'gapnet')
    return scaled(recipe, df, budget, changes.get('folds', folds)).override(**changes)


def by_rule(run):
    "Macro F1 of a run's networks under several kinds of thresholds, each fitted on the other folds"
    def score(name):
        def fit(probs, targs, folds): return RULES[name]().fit(probs, targs)
        return macro_f1(cross_decide(fit, run.probs, run.targs, run.folds), run.targs)
    return {name: round(float(score(name)), 4) for name in RULE_NAMES}


def by_ensemble(path, data):
    """Macro F1 on test images of a run's networks, combined in several ways

    There is one threshold, fitted on out-of-fold predictions that are combined alike."""
    run = RunFolder(path)
    truth = pd.read_csv(data/'solution.csv', dtype=str)
    targs = encode_targets(truth.Target)
    each = np.stack([read_probs(o, truth.Id)[1] for o in sorted(path.glob('fold*/test.parquet'))], 1)
    def score(how):
        outcome = decide_run(run.probs, run.targs, run.folds, how, 'GlobalRule')
        return macro_f1(outcome.decider.predict(each), targs)
    return {how: round(float(score(how)), 4) for how in FOLD_ENSEMBLES}


@call_parse
def main(
    out: str = 'runs-benchmark', # Folder of the runs, and of the data where none is given
    data: str = None, # A data set in Kaggle's layout with solution.csv; simulated if None
    json: str = None, # Write table and findings there too
    recipes: str = None, # Names, with spaces between; by default all
    budget: int = 8000, # Images that each network sees in training
    images: int = 1600, # Simulated training images
    seed: int = 7, # Of the simulated images
    folds: int = 2, # Of each run
    variants: int = 0, # Run GapNet-PL with one choice changed at a time, too, with so many times the budget
    threads: int = None # PyTorch's threads; by default its own choice
):
    "All recipes on the same cells"
    if threads: torch.set_num_threads(threads)
    out = Path(out)
    data = Path(data) if data else simulated(out/'cells', images, seed)
    df = read_labels(data/'train.csv')
    if recipes: names = recipes.split()
    else: names = [o for o in RECIPES if o != 'gapnet_pretrained']   # that is the first of its three
    jobs = {name: scaled(load_recipe(name), df, budget, folds) for name in names}
    if variants:
        for name, changes in VARIANTS.items():
            jobs[f'variants/{name}'] = variant(name, changes, df, budget*variants, folds)
    for i, (name, recipe) in enumerate(jobs.items()):
        if (out/name/'scores.json').exists(): continue
        print(f'--- {name} ({i+1} of {len(jobs)}), {time.strftime("%H:%M")}', flush=True)
        cross_validate(data, out/name, recipe, packs=out/'packs')

    table = compare_runs([out/name for name in names]).reset_index()
    print(table.drop(columns='recipe').round(3).to_string(index=False))
    source = 'simulated' if (data/'solution.csv').exists() else data.name
    result = dict(
        settings=dict(budget=budget, images=len(df), folds=folds, data=source),
        table=table.round(4).to_dict('records'),
        rules={name: by_rule(RunFolder(out/name)) for name in names})
    print(pd.DataFrame(result['rules']).T.round(3).to_string())
    if variants:
        of_gapnet = compare_runs([out/'variants'/name for name in VARIANTS], against='gapnet').reset_index()
        result['settings']['variants'] = variants
        result['variants'] = of_gapnet.round(4).to_dict('records')
        result['ensembles'] = by_ensemble(out/'variants/gapnet_five_folds', data)
        print(of_gapnet.drop(columns='recipe').round(3).to_string(index=False))
        print('five folds on test images:', result['ensembles'])
    if json: write_json(json, result)
