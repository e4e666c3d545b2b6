"""Every threshold rule, out of sample, on a network's probabilities with known truth.

    python benchmarks/thresholds.py --preds FILE.npy [FILE2.npy ...] --labels val_ids.csv [--json FILE]

Protocol: repeated 2-fold, multilabel-stratified; a rule is fitted on one half and scored (macro F1) on the other.
Several FILEs are averaged. The rows in the table:
  auto           `choose_rule`: chooses among the rules by nested cross-validation within the fitted half
  auto, adapted  the same, with thresholds set for the scored half from its unlabelled probabilities (`adapt_rule`)
  logits only    `StackedRule` whose calibrator sees no probabilities, and all labels alike
  not blended    the same with probabilities
  the others     the candidates of `choose_rule`, always taken"""
import argparse, time
from statistics import mean, stdev

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import RepeatedMultilabelStratifiedKFold

from hpa_fastai.decide.calibration import CalibratedRule, StackedCalibrator, StackedRule
from hpa_fastai.files import write_json
from hpa_fastai.labels import DataError, encode_targets, read_labels
from hpa_fastai.train.metrics import macro_f1
from hpa_fastai.decide.shift import adapt_rule
from hpa_fastai.decide.thresholds import candidate_rules, choose_rule
from hpa_fastai.decide.rules import constant_floor

def parts():
    "`StackedRule` without some of its parts"
    return {'logits only': StackedRule(calibrator=StackedCalibrator(probs=0.)),
            'not blended': StackedRule(calibrator=StackedCalibrator())}

def score_rules(probs, targs, repeats, seed):
    "Macro F1 by rule: out of sample, one score per fitted half; and in sample"
    out, inside = {}, {}
    def note(name, rule, a, b, to=None):
        out.setdefault(name, []).append(macro_f1((to or rule).predict(probs[b]), targs[b]))
        inside.setdefault(name, []).append(macro_f1(rule.predict(probs[a]), targs[a]))
    halves = RepeatedMultilabelStratifiedKFold(n_splits=2, n_repeats=repeats, random_state=seed)
    for a, b in halves.split(probs, targs.astype(int)):
        for name, rule in (candidate_rules() | parts()).items(): note(name, rule.fit(probs[a], targs[a]), a, b)
        rule = choose_rule(probs[a], targs[a])
        note('auto', rule, a, b)
        adapted = adapt_rule(rule, probs[b]) if isinstance(rule, CalibratedRule) else None
        note('auto, adapted', rule, a, b, adapted)
    return out, inside

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--preds', nargs='+', required=True, help='.npy files (images, classes), averaged')
    parser.add_argument('--labels', required=True, help='CSV with Id and Target, in the order of the rows')
    parser.add_argument('--json', help='where to write {rule: {mean, sd}}')
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        targs = encode_targets(read_labels(args.labels).Target)
        probs = np.mean([np.load(o, allow_pickle=False) for o in args.preds], 0)
        if len(probs) != len(targs):
            raise DataError(f'{args.labels}: {len(targs)} rows for {len(probs)} predictions; '
                            'give the list that the predictions were made for')
        out, inside = score_rules(probs, targs, args.repeats, args.seed)
    except DataError as e: raise SystemExit(str(e))
    scores = {name: dict(mean=mean(o), sd=stdev(o)) for name, o in out.items()}
    in_sample = {name: mean(o) for name, o in inside.items()}
    table = pd.DataFrame(scores).T.assign(in_sample=in_sample).sort_values('mean', ascending=False)
    print(table.round(4).to_string())
    print(f'{len(probs):,} images; best constant answer {constant_floor(targs):.4f}; '
          f'{args.repeats} x 2 halves, {time.perf_counter() - start:.0f} s')
    if args.json: write_json(args.json, scores)
