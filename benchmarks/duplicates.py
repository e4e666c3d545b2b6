"""All pairs of near-duplicates in 31,072 + 74,606 hashes, folds of 31,072 rows, and hashing.

    python benchmarks/duplicates.py [--json FILE]
"""
import argparse, json, warnings
from pathlib import Path
from time import perf_counter

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
from hpa_fastai.images.duplicates import hash_images, near_pairs
from hpa_fastai.labels import train_label_sets
from hpa_fastai.images.splits import fold_counts, stratified_folds

def timed(f, *args, **kwargs):
    t = perf_counter()
    out = f(*args, **kwargs)
    return out, perf_counter() - t

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--json', type=Path)
    args = p.parse_args()
    rng = np.random.default_rng(0)
    res = {}

    hashes = rng.integers(0, 256, (31072 + 74606, 24), np.uint8)
    a, b = rng.permutation(len(hashes))[:2000].reshape(2, 1000)
    flips = rng.integers(0, 41, 1000)                       # planted pairs that differ in 0 to 40 bits
    for i, j, n in zip(a, b, flips):
        bits = np.unpackbits(hashes[i])
        bits[rng.permutation(192)[:n]] ^= 1
        hashes[j] = np.packbits(bits)
    pairs, res['all_pairs_s'] = timed(near_pairs, hashes)
    planted = {(min(o), max(o), n) for *o, n in zip(a, b, flips)}
    found = set(zip(pairs.i, pairs.j, pairs.distance))
    res['pairs'] = len(hashes)*(len(hashes) - 1)//2
    res['planted'] = len(planted)
    res['found'] = len(planted & found)
    res['others'] = len(found - planted)

    imgs = rng.integers(0, 256, (16, 512, 512, 4), np.uint8)
    _, s = timed(hash_images, imgs, rows=np.arange(800) % 16, progress=False)
    res['hashes_per_s'] = 800/s

    combos = train_label_sets()
    df = pd.DataFrame(dict(Target=combos.Target.repeat(combos['count'])))
    df = df.sample(frac=1, random_state=0).reset_index(drop=True)
    df.insert(0, 'Id', [f'{o:08x}' for o in rng.permutation(len(df))])
    group = np.repeat(np.arange(len(df)), rng.integers(2, 41, len(df)))[:len(df)][rng.permutation(len(df))]
    for name, groups in dict(folds=None, grouped_folds=group).items():
        folds, res[f'{name}_s'] = timed(stratified_folds, df, groups=groups)
        table = fold_counts(df, folds)
        res[f'{name}_worst_percent'] = table[table.images >= 50].worst_percent.max()
    for k, v in res.items(): print(f'{k:26s}{v:,.2f}' if isinstance(v, float) else f'{k:26s}{v:,}')
    if args.json: args.json.write_text(json.dumps({k: float(v) for k, v in res.items()}, indent=1))
