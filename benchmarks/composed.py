#!/usr/bin/env python
"""How near composed images come to real ones, figure by figure

    python benchmarks/composed.py --real FOLDER

`FOLDER` holds ID_{red,green,blue,yellow}.png, fields that are 164 µm wide, and a CSV of Id and Target. The networks
that ship with the package learn from `simulate.layers.compose`; what no composed image has, they don't know. So the
10th, 50th and 90th percentile of each figure of real images should lie within those of composed ones:
    bright    99.5 % of the channel's pixels are below this
    noise     deviation from the local mean where the channel is lit, as a share of it
    skewness  of that deviation: 0 if it is as often above as below, 2 for single photons
    grain     its correlation with itself one pixel aside
    nucleus   mean in the nuclei over mean in the cytoplasm, as a logarithm
    R and B   and so on: correlation of two channels within the cells, both blurred
"""
import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.stats import skew

from hpa_fastai.labels import LABELS
from hpa_fastai.simulate.layers import compose, draw_layers
from shipped import fields_of, WIDTH

UM, SIDE = .34, 160 # as the networks see them
CHANNELS = 'RGBY'

def of_noise(a):
    "Noise, skewness and grain of a channel where it is lit"
    a = a.astype(np.float32)
    mean = cv2.GaussianBlur(a, (0, 0), 2.5)
    top = np.quantile(mean, .97)
    lit = (mean > .25*top) & (mean < .8*top)
    if top < 4 or lit.sum() < 500: return {}
    rest = (a - mean)/np.sqrt(np.maximum(mean, 1))
    aside = (rest*np.roll(rest, 1, 1))[lit].mean()/(rest[lit]**2).mean()
    return dict(noise=(a - mean)[lit].std()/mean[lit].mean(), skewness=skew(rest[lit]), grain=aside)

def of_pairs(img):
    "Correlations of channels within the cells, and how much brighter nuclei are than cytoplasm"
    r, g, b, y = (cv2.GaussianBlur(np.sqrt(o.astype(np.float32)/max(np.quantile(o, .995), 1)), (0, 0), 1.5)
                  for o in np.moveaxis(img, 2, 0))
    nucleus, cell = b > .5, r + y > .4
    cytoplasm = cell & ~cv2.dilate(nucleus.astype(np.uint8), np.ones((5, 5))).astype(bool)
    if min(nucleus.sum(), cytoplasm.sum()) < 200: return {}
    pairs = {'R and B': (r, b), 'Y and B': (y, b), 'R and Y': (r, y), 'G and Y': (g, y), 'G and B': (g, b)}
    out = {k: np.corrcoef(p[cell | nucleus], q[cell | nucleus])[0, 1] for k, (p, q) in pairs.items()}
    return out | {f'{c} nucleus': np.log(o[nucleus].mean() + .02) - np.log(o[cytoplasm].mean() + .02)
                  for c, o in zip('RGY', (r, g, y))}

def figures(img):
    "All figures of an image"
    out = {f'{c} bright': np.quantile(img[..., k], .995) for k, c in enumerate(CHANNELS)}
    for k, c in enumerate(CHANNELS): out |= {f'{c} {name}': o for name, o in of_noise(img[..., k]).items()}
    return out | of_pairs(img)

def composed(fields, images, seed=0):
    "Images of all four stains, composed from that many fields"
    rng = np.random.default_rng(seed)
    layers = [draw_layers([0, 25, *rng.choice(len(LABELS), 6, replace=False)], seed=[seed, k]) for k in range(fields)]
    while images:
        img, labels = compose(layers[rng.integers(fields)], rng, SIDE, UM)
        if img[..., 0].any() and img[..., 3].any():
            images -= 1
            yield img

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real', type=Path, required=True)
    p.add_argument('--fields', type=int, default=96, help='fields to draw')
    p.add_argument('--images', type=int, default=600, help='images to compose from them')
    a = p.parse_args()
    side = round(WIDTH/UM)
    real = [cv2.resize(o, (side, side), interpolation=cv2.INTER_AREA) for o in fields_of(a.real)[1]]
    found = {name: pd.DataFrame(list(map(figures, imgs))).quantile([.1, .5, .9])
             for name, imgs in dict(real=real, composed=composed(a.fields, a.images)).items()}
    print(f'{"":12}{len(real)} real fields: 10, 50, 90 %{a.images:8} composed images')
    for c in found['real']:
        r, s = found['real'][c], found['composed'][c]
        outside = '' if s.iloc[0] <= r.iloc[1] <= s.iloc[2] else '  real median outside'
        print(f'{c:12}' + ''.join(f'{v:8.2f}' for v in [*r]) + '      ' + ''.join(f'{v:8.2f}' for v in [*s]) + outside)

if __name__ == '__main__': main()
