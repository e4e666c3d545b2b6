"""Is the score that is reported the score that new images get? On simulated probabilities, so new images can be drawn.

1. The out-of-sample estimate of several ways to fit (`held_out_score`): its mean error against the score on 20,000 new
   images, how often its 90 % interval holds that score, and the error of the score in sample.
2. A test set in which the shares of the labels are halved and doubled in turn, and one like the training set: macro F1
   of a `StackedRule` as fitted, and of the same rule adapted to the unlabelled test set with `adapt_rule`.

    python benchmarks/honesty.py [--trials 100] [--json FILE]
"""
import argparse, time, warnings

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
from scipy.special import expit

from hpa_fastai.decide.calibration import StackedRule
from hpa_fastai.files import write_json
from hpa_fastai.train.metrics import macro_f1
from hpa_fastai.decide.rules import ClassRule, MeanRule, RatioRule
from hpa_fastai.decide.shift import adapt_rule
from hpa_fastai.decide.thresholds import choose_rule, held_out_score

def simulate(n, seed, labels=8):
    "Distorted probabilities, and labels drawn from the true ones"
    rng = np.random.default_rng(seed)
    z = np.linspace(-5.5, -1, labels) + 2*rng.normal(size=(n, labels))
    return expit(.5*z + 1), rng.random((n, labels)) < expit(z)

def simulate_shares(n, shares, seed):
    "What a network reports of labels with given shares, which look the same whatever their share"
    rng = np.random.default_rng(seed)
    targs = rng.random((n, len(shares))) < shares
    return expit(1.5*rng.normal(np.where(targs, 1.5, -1.5)) + .5), targs

def honesty(fit, trials):
    "Errors of the estimate and of the score in sample, and whether the interval held"
    rows = []
    for seed in range(trials):
        probs, targs = simulate(1000, seed)
        new, new_targs = simulate(20_000, 10_000 + seed)
        o = held_out_score(fit, probs, targs, repeats=1)
        later = macro_f1(fit(probs, targs).predict(new), new_targs)
        rows.append(dict(
            estimate_minus_later=o['mean'] - later,
            in_interval=o['low'] <= later <= o['high'],
            in_sample_minus_later=o['in_sample'] - later))
    df = pd.DataFrame(rows)
    return {**df.mean(), 'standard_error': df.estimate_minus_later.std()/trials**.5, 'trials': trials}

def shift(trials):
    "Macro F1 with and without adapting, where shares are the same and where they are not"
    train = np.geomspace(.01, .3, 20)
    shifted = train*np.where(np.arange(20) % 2, 2, .5)
    rows = []
    for name, shares in dict(same=train, shifted=shifted).items():
        for seed in range(trials):
            rule = StackedRule().fit(*simulate_shares(4000, train, seed))
            probs, targs = simulate_shares(4000, shares, 10_000 + seed)
            adapted = adapt_rule(rule, probs)
            rows.append(dict(
                test_set=name,
                uncorrected=macro_f1(rule.predict(probs), targs),
                adapted=macro_f1(adapted.predict(probs), targs)))
    df = pd.DataFrame(rows).groupby('test_set').mean()
    return df.assign(gain=df.adapted - df.uncorrected)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', help='where to write both tables')
    parser.add_argument('--trials', type=int, default=100, help='of each way to fit; a fifth of that for the shift')
    args = parser.parse_args()
    start = time.perf_counter()
    fits = dict(
        per_class=ClassRule().fit,
        ratio=RatioRule().fit,
        mean=MeanRule().fit,
        stacked=StackedRule().fit,
        auto=choose_rule)
    estimates = pd.DataFrame({name: honesty(fit, args.trials) for name, fit in fits.items()}).T
    shifted = shift(max(args.trials//5, 2))
    took = f'{time.perf_counter() - start:.0f} s'
    print(estimates.round(4).to_string(), shifted.round(4).to_string(), took, sep='\n\n')
    if args.json: write_json(args.json, dict(estimates=estimates.to_dict('index'), shift=shifted.to_dict('index')))
