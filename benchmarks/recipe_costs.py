"""What the network of each recipe costs: operations for one training image, and memory for it

    python benchmarks/recipe_costs.py            writes hpa_fastai/assets/recipe_costs.csv, and prints it

Nothing is computed: the network lives on PyTorch's `meta` device, which knows shapes only. Counted are the operations
of a step forwards and backwards (a multiplication and an addition are two), and the bytes of all tensors that are kept
for the way back, in half precision. `hpa-recipes` makes hours and gigabytes of that."""
import csv
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.runs.recipes import RECIPES

def costs(model, side):
    "GFLOP and kept MB for one image of `side` pixels, in training"
    kept, own = {}, {id(o) for o in model.parameters()}
    def keep(t):
        if id(t) not in own: kept[id(t.untyped_storage())] = t.numel()*(2 if t.is_floating_point() else t.element_size())
        holds.append(t)   # or its id would be given to another one
        return t
    holds, n = [], 2      # batch norm wants two images
    x = torch.zeros(n, 4, side, side, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counted, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(x).sum().backward()
    return counted.get_total_flops()/n/1e9, sum(kept.values())/n/1e6

def row(recipe):
    "The row of a recipe"
    args = dict(recipe.model_args)
    if recipe.stains: args['stains'] = recipe.stains
    model = rgby_model(recipe.body, stem=recipe.stem, head=recipe.head, weights=None, dropout=recipe.dropout, **args)
    side, million = recipe.crop or recipe.size, sum(o.numel() for o in model.parameters())/1e6
    gflop, mb = costs(model.to('meta').train(), side)
    return dict(recipe=recipe.name, side=side, million=round(million, 2), gflop=round(gflop, 2), kept_mb=round(mb, 1))

if __name__ == '__main__':
    rows = [row(o) for o in RECIPES.values()]
    for o in rows: print(*o.values())
    file = Path(__file__).parents[1]/'hpa_fastai/assets/recipe_costs.csv'
    with open(file, 'w', newline='', encoding='utf-8') as f:
        table = csv.DictWriter(f, rows[0], lineterminator='\n')
        table.writeheader()
        table.writerows(rows)
