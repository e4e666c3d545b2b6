#!/usr/bin/env python
"""What `quality_flags` finds: the share of spoilt images that it flags, and of untouched ones.

    python benchmarks/flags.py --real FOLDER [--others FOLDER=UM ...] [--splits 50] [--json FILE]

FOLDER holds real fields, ID_{red,green,blue,yellow}.png, at about .32 µm per pixel. Each is spoilt in every way below.
Two columns: with the limits that the library ships, and with limits chosen on half of the fields and counted on the
other half, averaged over splits. The rules behind the limits were learnt from simulated fields only; the fixed
limits (roundness, contrast, alike, radius) are the same in both. Other folders are only counted as they are, with the
µm per pixel that is given, and, where that isn't .32, as if it were not known."""
import argparse
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import skimage.data
from scipy.stats import binomtest

from hpa_fastai.labels import CHANNELS, DataError
from hpa_fastai.files import write_json
from hpa_fastai.data.quality import LIMITS, flags_of, measure_quality

# -- the images

def read_fields(folder):
    "Images (h, w, 4) uint8 of a folder, by Id"
    ids = sorted(o.name.rsplit('_', 1)[0] for o in Path(folder).glob('*_blue.*'))
    def stain(i, c):
        found = list(Path(folder).glob(f'{i}_{c}.*'))
        if not found: return None
        plane = cv2.imread(str(found[0]), cv2.IMREAD_UNCHANGED)
        return plane if plane.ndim == 2 else plane[..., :3].max(2)
    read = {i: [stain(i, c) for c in CHANNELS] for i in ids}
    if not read: raise DataError(f'{folder}: no ID_blue.png; give a folder of fields')
    return {i: np.dstack(o) for i, o in read.items() if all(p is not None for p in o)}

def noisy(img, photons=60):
    "An image with the noise of so many photons at its brightest"
    rng = np.random.default_rng(0)
    return (img + rng.normal(size=img.shape)*np.sqrt(img*(255/photons))).clip(0, 255).astype(np.uint8)

def magnified(img):
    "The middle quarter at the size of the whole"
    h, w = img.shape[:2]
    return cv2.resize(img[h//4:h - h//4, w//4:w - w//4], (w, h), interpolation=cv2.INTER_CUBIC)

def reordered(img, order): return np.ascontiguousarray(img[..., list(order)])

def without(img, k): return np.where(np.arange(4) == k, 0, img).astype(np.uint8)

def ways():
    "Each way to spoil a field, by its kind and name"
    blur = {f'blurred, sigma {s} px': partial(cv2.GaussianBlur, ksize=None, sigmaX=s) for s in (1.5, 2, 3, 5)}
    blur['blurred, sigma 2.5 px, then noise'] = lambda o: noisy(cv2.GaussianBlur(o, None, 2.5))
    bright = {f'{k} times as bright': partial(cv2.convertScaleAbs, alpha=k) for k in (3, 4, 8)}
    scale = {'half as large': partial(cv2.resize, dsize=None, fx=.5, fy=.5, interpolation=cv2.INTER_AREA),
             'twice as large': magnified}
    swap = {}
    for a, b in combinations(range(4), 2):
        order = [b if k == a else a if k == b else k for k in range(4)]
        swap[f'{CHANNELS[a]} and {CHANNELS[b]} swapped'] = partial(reordered, order=order)
    swap['order BGYR'] = partial(reordered, order=(2, 1, 3, 0))
    swap['order GRYB'] = partial(reordered, order=(1, 0, 3, 2))
    missing = {f'no {c}': partial(without, k=k) for k, c in enumerate(CHANNELS)}
    return dict(blurred=blur, saturated=bright, scale=scale, swapped=swap, missing=missing)

def no_cells():
    "Photographs, noise and gradients as four stains"
    out, rng = {}, np.random.default_rng(0)
    for name in ('astronaut', 'camera', 'coins', 'moon', 'page', 'text', 'clock', 'checkerboard', 'coffee', 'chelsea',
                 'rocket', 'brick', 'grass', 'gravel', 'colorwheel', 'horse', 'hubble_deep_field', 'retina',
                 'immunohistochemistry', 'binary_blobs', 'cell'):
        img = getattr(skimage.data, name)()
        if img.dtype == bool: img = img*255
        img = cv2.resize(img.astype(np.uint8), (512, 512), interpolation=cv2.INTER_AREA)
        if img.ndim == 2: out[name] = np.dstack([img]*4)
        else:
            out[name] = np.dstack([img[..., :3], img[..., :3].mean(2).astype(np.uint8)])
            out[f'{name}, three stains'] = np.dstack([img[..., :3], img[..., 0]*0])
    for k in range(4): out[f'noise {k}'] = rng.integers(0, 256, (512, 512, 4), dtype=np.uint8)
    for s in (1, 2, 4, 8, 16, 32):
        z = np.dstack([cv2.GaussianBlur(rng.normal(size=(512, 512)), None, s) for _ in range(4)])
        out[f'smooth noise, {s} px'] = (z/z.std()*40 + 60).clip(0, 255).astype(np.uint8)
    ramp = np.tile(np.arange(512)[:, None]/2, (1, 512)).astype(np.uint8)
    for k in range(4): out[f'gradient {k}'] = np.dstack([np.rot90(ramp, j + k) for j in range(4)])
    return out

def empty():
    "Black images, and noise of a few grey levels"
    out = {'black': np.zeros((512, 512, 4), np.uint8)}
    for k in range(1, 10):
        rng = np.random.default_rng(k)
        out[f'dark noise {k}'] = rng.poisson(k/3, (512, 512, 4)).astype(np.uint8)
    return out

# -- limits from half of the fields

OWN = dict(sharp='blurred', clean='blurred', clipped='saturated', small='scale', misplaced='swapped')
LOW = ('sharp', 'clean')
ALLOWED = dict(misplaced=.03) # Share of real fields beyond a limit; of the others none

def choose_limit(real, spoilt, allowed, is_low, part=.25):
    "The limit that `allowed` of the real ones are beyond; if none may be, half way to this part of the spoilt ones"
    sign = -1 if is_low else 1
    real, spoilt = sign*np.asarray(real), sign*np.asarray(spoilt)
    limit, gap = np.quantile(real, 1 - allowed), np.quantile(spoilt, part)
    return float(sign*(limit if allowed or gap <= limit else (limit + gap)/2))

def choose_limits(table):
    "Limits from the measures of real and spoilt fields"
    out, real = dict(LIMITS), table[table.kind == 'untouched']
    for name, kind in OWN.items():
        spoilt = table[table.kind == kind]
        if name == 'small': spoilt = spoilt[spoilt.way == 'half as large']
        if name == 'clean': spoilt = spoilt[spoilt.way.str.contains('noise')]
        if name == 'sharp': spoilt = table[table.way.eq('twice as large') | table.way.eq('blurred, sigma 1.5 px')]
        out[name] = choose_limit(real[name], spoilt[name], ALLOWED.get(name, 0), name in LOW,
                                 part=dict(sharp=.02, clipped=.05).get(name, .25))
    return out

def flagged(table, limits): return np.array([bool(flags_of(o, limits)) for o in table.to_dict('records')])

def held_out(table, splits, seed=0):
    "How often each row is flagged with limits from halves that its field is not in"
    fields, rng = table.field.unique(), np.random.default_rng(seed)
    hits, times = np.zeros(len(table)), np.zeros(len(table))
    for _ in range(splits):
        half = rng.permutation(fields)[:len(fields)//2]
        inside = table.field.isin(half).to_numpy()
        for a in (inside, ~inside):
            hits[~a] += flagged(table[~a], choose_limits(table[a]))
            times[~a] += 1
    return hits/times

def interval(rate, n):
    "A share with its 95 % interval (Wilson)"
    ci = binomtest(round(rate*n), n).proportion_ci(method='wilson')
    return f'{rate:4.0%} ({ci.low:.0%} to {ci.high:.0%})'

# -- the table

def measure_all(real):
    "Measures of the fields, untouched and spoilt"
    rows = [dict(kind='untouched', way='', field=i, **measure_quality(o)) for i, o in real.items()]
    for kind, named in ways().items():
        for name, spoil in named.items():
            rows += [dict(kind=kind, way=name, field=i, **measure_quality(spoil(o))) for i, o in real.items()]
    return pd.DataFrame(rows)

def report(table, splits):
    "Shares flagged, by kind and by way"
    table = table.assign(shipped=flagged(table, LIMITS), halves=held_out(table, splits))
    n, rows = table.field.nunique(), []
    for keys, part in [(k, p) for by in (['kind'], ['kind', 'way']) for k, p in table.groupby(by, sort=False)]:
        name = ': '.join(o for o in keys if o)
        if len(keys) == 2 and not keys[1]: continue
        rows.append({'images': name, 'number': len(part), 'shipped limits': interval(part.shipped.mean(), n),
                     'limits of other half': interval(part.halves.mean(), n)})
    return pd.DataFrame(rows).set_index('images')

def others(named, um=None):
    "Share flagged of other images, and the words"
    found = {i: flags_of(measure_quality(o, um)) for i, o in named.items()}
    words = Counter(w for o in found.values() for w in o)
    not_flagged = [i for i, o in found.items() if not o]
    return found, words, not_flagged

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', required=True, help='folder of real fields')
    parser.add_argument('--others', nargs='*', default=[], help='FOLDER=UM: other real images')
    parser.add_argument('--splits', type=int, default=20)
    parser.add_argument('--json', help='where to write the table')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        real = read_fields(args.real)
        table = measure_all(real)
        print(f'{len(real)} real fields; intervals are those of as many fields\n')
        found = report(table, args.splits)
        print(found.to_string())
        which = [(i, flags_of(o)) for i, o in zip(table.field, table.to_dict('records')) if o['kind'] == 'untouched']
        print('\nuntouched and flagged:', *(f'{i}: {", ".join(o)}' for i, o in which if o), sep='\n  ')
        for name, images in {'no cells': no_cells(), 'empty': empty()}.items():
            each, words, rest = others(images)
            print(f'\n{name}: {len(each) - len(rest)} of {len(each)} flagged; not: {", ".join(rest) or "none"}; '
                  f'{dict(words)}')
        for o in args.others:
            folder, um = o.rsplit('=', 1)
            images = read_fields(folder)
            for given in dict.fromkeys([float(um), .32]):
                each, words, rest = others(images, given)
                print(f'\n{folder}, {given} µm per pixel: {len(each) - len(rest)} of {len(each)} flagged; '
                      f'{dict(words)}')
        if args.json: write_json(args.json, found.reset_index().to_dict('records'))
    except DataError as e: raise SystemExit(str(e))
