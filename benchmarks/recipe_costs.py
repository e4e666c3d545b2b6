"""What the network of each recipe costs: operations for one training image, and memory for it

    python benchmarks/recipe_costs.py            writes hpa_fastai/assets/recipe_costs.csv, and prints it
    python benchmarks/recipe_costs.py --t4 'default best shisu' [--rounds 5]      hours and memory on a T4, estimated

Nothing is computed: the network lives on PyTorch's `meta` device, which knows shapes only. Counted are the operations
of a step forwards and backwards (a multiplication and an addition are two), and the bytes of all tensors that are kept
for the way back, in half precision. `hpa-recipes` makes hours and gigabytes of that.

With `--t4`, steps of the named recipes are also run here, on one core in single precision, in turns, and timed by the
processor's own clock, which doesn't count what others do. A network whose operations take longer than those of the
first recipe's (small or grouped convolutions, memory) gets that ratio as a factor of its hours. So the ratio is
measured, on a processor; operations and memory are counted; and the rate of the first recipe's network on a T4, 20 or
8 TFLOP/s, is assumed. Nothing was measured on a T4."""
import csv, time
from pathlib import Path
import numpy as np, torch
from fastcore.script import call_parse
from torch.utils.flop_counter import FlopCounterMode
from hpa_fastai.cli import _cost
from hpa_fastai.labels import LABELS
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.train.f1_losses import LOSSES
from hpa_fastai.runs.recipes import RECIPES

def costs(model, side):
    "GFLOP and kept MB for one image of `side` pixels, in training"
    kept, own = {}, {id(o) for o in model.parameters()}
    def keep(t):
        if id(t) not in own:
            kept[id(t.untyped_storage())] = t.numel()*(2 if t.is_floating_point() else t.element_size())
        holds.append(t)   # or its id would be given to another one
        return t
    holds, n = [], 2      # batch norm wants two images
    x = torch.zeros(n, 4, side, side, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counted, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(x).sum().backward()
    return counted.get_total_flops()/n/1e9, sum(kept.values())/n/1e6

def network(recipe):
    "The recipe's network, with random weights"
    args = dict(recipe.model_args)
    if recipe.stains: args['stains'] = recipe.stains
    return rgby_model(recipe.body, stem=recipe.stem, head=recipe.head, weights=None, dropout=recipe.dropout, **args)

def row(recipe):
    "The row of a recipe"
    model = network(recipe)
    side, million = recipe.crop or recipe.size, sum(o.numel() for o in model.parameters())/1e6
    gflop, mb = costs(model.to('meta').train(), side)
    return dict(recipe=recipe.name, side=side, million=round(million, 2), gflop=round(gflop, 2), kept_mb=round(mb, 1))

def write_rows():
    "Count all recipes, and write the table"
    rows = [row(o) for o in RECIPES.values()]
    for o in rows: print(*o.values())
    file = Path(__file__).parents[1]/'hpa_fastai/assets/recipe_costs.csv'
    with open(file, 'w', newline='', encoding='utf-8') as f:
        table = csv.DictWriter(f, rows[0], lineterminator='\n')
        table.writeheader()
        table.writerows(rows)

def step_times(recipes, rounds):
    "Processor seconds of a step with two images, (rounds, recipes), after one step each that isn't counted"
    torch.set_num_threads(1)
    models = [network(o).to(memory_format=torch.channels_last).train() for o in recipes]
    losses = [LOSSES[o.loss](**o.loss_args) for o in recipes]
    def step(model, loss_func, recipe):
        side = recipe.crop or recipe.size
        x, y = torch.rand(2, 4, side, side).to(memory_format=torch.channels_last), torch.eye(2, len(LABELS))
        began = time.process_time()
        loss_func(model(x), y).backward()
        seconds = time.process_time() - began
        model.zero_grad()
        return seconds
    return np.array([[step(*o) for o in zip(models, losses, recipes)] for _ in range(rounds + 1)])[1:]

def on_t4(names, rounds):
    "Print hours and memory of some recipes on a T4, and what they come from"
    recipes = [RECIPES[o] for o in names]
    counted = [row(o) for o in recipes]
    costs = [_cost(o, c) for o, c in zip(recipes, counted)]   # GB, and hours at 20 TFLOP/s
    seconds = step_times(recipes, rounds)
    per_gflop = seconds/np.array([2*o['gflop'] for o in counted])
    ratios = per_gflop/per_gflop[:, :1]
    print('recipe      GFLOP/image  GB   step ratio (each round)      hours at 20 TFLOP/s   at 8')
    for recipe, c, (gb, hours), ratio in zip(recipes, counted, costs, ratios.T):
        slower = np.median(ratio)
        each = ' '.join(f'{o:.2f}' for o in ratio)
        print(f"{recipe.name:12}{c['gflop']:9.1f}{gb:7.1f}   {slower:.2f} ({each}) "
              f"{slower*hours:12.1f}{slower*hours*20/8:12.1f}")

@call_parse
def main(
    t4:str='', # Names of recipes whose hours on a T4 are estimated; by default the table of all is counted and written
    rounds:int=5 # Steps of each that are timed
):
    "What the recipes cost"
    if t4: on_t4(t4.split(), rounds)
    else: write_rows()
