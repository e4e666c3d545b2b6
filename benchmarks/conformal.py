#!/usr/bin/env python
"""Do `ConformalSets` keep what they promise, on a network's probabilities with known truth?

    python benchmarks/conformal.py --preds FILE.npy [FILE2.npy ...] --labels val_ids.csv [--keep .9] [--json FILE]

Protocol: random halves; sets are fitted on one half (or on fewer of its images) and their coverage is measured on the
other. Each FILE is taken by itself. A row says for how many images the sets were fitted: the mean coverage, its 5 %
and 95 % over the splits, the number of labels in a set (images have 1.6 on average), and the least kept label of those
with twenty images or more in the other half."""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from hpa_fastai.labels import DataError, LABELS, encode_targets, read_labels
from hpa_fastai.files import write_json
from hpa_fastai.decide.conformal import ConformalSets, coverage

def on_halves(probs, targs, keep, n, splits, seed=0):
    "Coverage, labels in a set, and share kept of each label, for each split"
    rng, out = np.random.default_rng(seed), []
    for _ in range(splits):
        order = rng.permutation(len(probs))
        a, b = order[:len(order)//2][:n], order[len(order)//2:]
        decisions = ConformalSets.fit(probs[a], targs[a], keep).predict(probs[b])
        truth = targs[b].astype(bool)
        kept = np.where(truth.sum(0) >= 20, (decisions & truth).sum(0)/np.maximum(truth.sum(0), 1), np.nan)
        out.append((coverage(decisions, truth), decisions.sum(1).mean(), kept))
    return [np.array(o) for o in zip(*out)]

def row(name, probs, targs, keep, n, splits):
    "One row of the table"
    covered, size, kept = on_halves(probs, targs, keep, n, splits)
    kept = np.array([np.nanmean(o) if np.isfinite(o).any() else np.nan for o in kept.T])
    low, high = np.quantile(covered, [.05, .95])
    return dict(network=name, fitted_on=min(n, len(probs)//2), coverage=covered.mean(), low=low, high=high,
                labels_in_a_set=size.mean(), least_kept=f'{np.nanmin(kept):.2f} {LABELS[np.nanargmin(kept)]}')

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preds', nargs='+', required=True, help='.npy files (images, labels)')
    parser.add_argument('--labels', required=True, help='CSV with Id and Target, in the order of the rows')
    parser.add_argument('--keep', type=float, default=.9)
    parser.add_argument('--splits', type=int, default=50)
    parser.add_argument('--json', help='where to write the table')
    args = parser.parse_args()
    try:
        targs = encode_targets(read_labels(args.labels).Target)
        rows = []
        for file in args.preds:
            probs = np.load(file, allow_pickle=False)
            if len(probs) != len(targs): raise DataError(f'{file}: {len(probs)} rows for {len(targs)} labels')
            rows += [row(Path(file).stem, probs, targs, args.keep, n, args.splits) for n in (50, 200, 1000, len(probs))]
    except DataError as e: raise SystemExit(str(e))
    print(f'to keep: {args.keep:g}; {args.splits} splits of {len(targs):,} images')
    print(pd.DataFrame(rows).round(3).to_string(index=False))
    if args.json: write_json(args.json, rows)
