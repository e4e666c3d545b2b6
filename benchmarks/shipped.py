#!/usr/bin/env python
"""What the networks that ship with the package are worth on real images, label by label.

`--real` is a folder with `rgby_fields/` (ID_red.png … and a CSV of Id, Target) and, if they are there, `composites/`
(CLASS-….jpg, .085 µm per pixel), `mosaics/`, `hpav18_jpeg/` and `full_size_2021/`. Nothing is trained on them.
Thresholds and calibration are chosen on some of the fields and measured on the others; `--write` keeps what all of them
together give beside the networks: thresholds.json, trust.json, conformal.json and card.md.
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save as as_bytes

from hpa_fastai.labels import LABELS, encode_targets, read_labels, train_label_sets
from hpa_fastai.files import read_json, whole_file
from hpa_fastai.images.samples import find_samples, open_rgby
from hpa_fastai.models.heads import Competing
from hpa_fastai.models.trained import record_networks
from hpa_fastai.models.weights import read_weights
from hpa_fastai.explain.atypical import Atypical
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.train.metrics import average_precision_per_class, macro_f1
from hpa_fastai.decide.rules import constant_floor, cross_decide, GlobalRule
from hpa_fastai.decide.conformal import ConformalSets
from hpa_fastai.decide.outcome import EnsembleRule
from hpa_fastai.decide.trust import choose_calibrator, measure_missing, measure_trust, TrustTable
from sim_to_real import read_real

WIDTH = 164 # µm that a field of the competition is wide
WHOLE = [('HPAv18 fields', 'hpav18_jpeg', 'TargetHPAv18'), ('Full-size fields', 'full_size_2021', 'Target2018')]
LEAN = .35 # how far to lean towards the competition's frequencies: 0 not at all, 1 wholly

def fields_of(folder, table=None):
    "Ids, images and truth of a folder in the competition's layout"
    df = read_labels(table or next(folder.glob('*.csv')))
    samples = find_samples(folder)
    df = df[df.Id.isin(list(samples))]
    return list(df.Id), [open_rgby(samples[o]) for o in df.Id], encode_targets(df.Target)

def full_size(folder, column):
    "Images and truth of fields of 2048 pixels or more, some of them JPEGs; those without a label in `column` left out"
    df = pd.read_csv(folder/'labels.csv', dtype=str).dropna(subset=[column])
    df = df[df.Channels == 'rgby']
    samples = find_samples(folder, ids=list(df.Id))
    return [open_rgby(samples[o]) for o in df.Id], encode_targets(df[column])

def asked(predictor, images, um):
    "Probabilities of images, 8 at a time"
    return np.concatenate([predictor.predict_probs(images[i:i+8], um=um) for i in range(0, len(images), 8)])

def hits(probs, y, k):
    "Which images have a true label among the first `k`"
    return np.take_along_axis(y, np.argsort(-probs, 1)[:, :k], 1).any(1)

def mean_ap(probs, y, least=3):
    "Mean average precision over the labels of at least so many images"
    enough = y.sum(0) >= least
    return average_precision_per_class(probs, y)[enough].mean()

def interval(f, *arrays, n=1000, seed=0):
    "95 % bootstrap interval of `f` over images"
    rng, size = np.random.default_rng(seed), len(arrays[0])
    found = []
    for _ in range(n):
        rows = rng.integers(size, size=size)
        value = f(*(a[rows] for a in arrays))
        if np.isfinite(value): found.append(value)
    return np.quantile(found, [.025, .975])

def line(name, f, *arrays):
    "Print a figure with its interval, and return both as text"
    low, high = interval(f, *arrays)
    print(f'  {name:28} {f(*arrays):.3f}  ({low:.3f} to {high:.3f})')
    return f'{f(*arrays):.2f} ({low:.2f} to {high:.2f})'

def constant_top(y, k):
    "How often one of the `k` most frequent labels is right"
    return y[:, np.argsort(y.sum(0))[::-1][:k]].any(1).mean()

def halves(n, times=50, seed=0):
    "Random halves, each with the rest"
    rng = np.random.default_rng(seed)
    for _ in range(times):
        rows = rng.permutation(n)
        yield rows[:n//2], rows[n//2:]
        yield rows[n//2:], rows[:n//2]

def by_halves(fit, probs, y):
    "Macro F1 of decisions about one half by a rule that was fitted on the other; mean over halves"
    found = [macro_f1(fit(probs[a], y[a]).predict(probs[b]), y[b]) for a, b in halves(len(y))]
    return np.mean(found), np.std(found)

def within(name):
    "A name as it stands within a sentence"
    return name if name.startswith('HPA') else name.lower()

def describe(name, probs, y, least=3):
    "Print what ranking and first labels are worth, and return it as a row of text"
    print(f'\n{name}: {len(y)} images, {int((y.sum(0) > 0).sum())} labels')
    row = [f'{len(y)} {within(name)}']
    row.append(line(f'mAP ({least} images or more)', lambda p, t: mean_ap(p, t, least), probs, y))
    for k in (1, 3):
        row += [line(f'top-{k}', lambda p, t: hits(p, t, k).mean(), probs, y), f'{constant_top(y, k):.2f}']
        print(f'  {f"the best constant top-{k}":28} {row[-1]}')
    return row

def by_label(probs, y):
    "Print each label's average precision with its interval, beside its frequency"
    ap = average_precision_per_class(probs, y)
    print(f'\n  {"label":30}{"images":>7}{"AP":>7}   95 % interval   chance')
    for c in np.argsort(y.sum(0))[::-1]:
        if not y[:, c].sum(): continue
        low, high = interval(lambda p, t: average_precision_per_class(p[:, None], t[:, None])[0] if t.any() else np.nan,
                             probs[:, c], y[:, c])
        print(f'  {LABELS[c]:30}{int(y[:, c].sum()):7}{ap[c]:7.2f}   {low:.2f} to {high:.2f}    {y[:, c].mean():.2f}')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--real', type=Path, required=True)
    p.add_argument('--run', default='simulated', help='a run, instead of the network that ships with the package')
    p.add_argument('--lean', action='store_true', help='first shift its outputs towards real frequencies')
    p.add_argument('--write', action='store_true', help='keep thresholds, trust and sets beside the network')
    p.add_argument('--out', type=Path, help='.npz for the probabilities')
    a = p.parse_args()
    predictor = Predictor.load(a.run)
    ids, images, y = fields_of(a.real/'rgby_fields')
    if a.lean: predictor = lean(predictor, images)
    probs = asked(predictor, images, WIDTH/images[0].shape[1])
    rows = [describe('Fields', probs, y)]
    by_label(probs, y)
    print(f'\n  {"macro F1 of all 28 labels":28} {macro_f1(predictor.decider.rule.predict(probs), y):.3f}'
          f'   the best constant answer {constant_floor(y):.3f}')
    others = {}
    if (a.real/'composites').exists():
        pictures, targets, _ = read_real(a.real/'composites')
        pictures = [np.dstack([o, np.zeros_like(o[..., 0])]) for o in pictures]
        others['Composites'] = asked(predictor, pictures, .085), encode_targets(targets)
    if (a.real/'mosaics').exists():
        _, mosaics, truth = fields_of(a.real/'mosaics', a.real/'mosaics/train.csv')
        others['Mosaics'] = asked(predictor, mosaics, .24), truth
    for name, folder, column in WHOLE:
        if (a.real/folder).exists():
            large, truth = full_size(a.real/folder, column)
            others[name] = asked(predictor, large, .08), truth
    for name, (q, t) in others.items():
        rows.append(describe(name, q, t, 3 if name == 'Mosaics' else 1))
        by_label(q, t)
    if a.out: np.savez(a.out, fields=probs, y=y, **{k.lower(): q for k, (q, _) in others.items()})
    if a.write: write_card(predictor, rows, write_beside(predictor, images, probs, y, others))

def log_odds(p): return np.log(p) - np.log1p(-p)

def expected_frequencies():
    "How often the competition's training images have each label; one in 2,000 at least"
    df = train_label_sets()
    shares = df['count'].to_numpy()/df['count'].sum()
    return np.maximum((encode_targets(df.Target)*shares[:, None]).sum(0), 1/2000)

def own_log_odds(predictor, images):
    "What each network says of each label by itself, without competition: (networks, images, labels)"
    for model in predictor.models:
        for m in model.modules():
            if isinstance(m, Competing): m.share = 0.
    um = WIDTH/images[0].shape[1]
    batches = [images[i:i+8] for i in range(0, len(images), 8)]
    probs = np.concatenate([predictor._ask(predictor._prepared(o, um), None) for o in batches])
    return log_odds(probs.astype(float).clip(1e-6, 1 - 1e-6)).swapaxes(0, 1)

def lean(predictor, images):
    """Shift the networks' outputs, so that on real fields they name labels about as often as the truth suggests in part

    Trained on all labels alike, and on drawn cells, they name some of them far too often. Only the mean of a network's
    own answers on the fields is used, and the competition's frequencies, not the fields' labels."""
    run = predictor.runs[0]
    for k, said in enumerate(own_log_odds(predictor, images)):
        shift, file = LEAN*log_odds(expected_frequencies()) - said.mean(0), run/f'fold{k}/model.safetensors'
        weights = read_weights(file)
        # the last layer has no bias; what its batch norm adds can do the same
        norm, last = '1.6.bias', weights['1.8.weight'].double()
        weights[norm] = (weights[norm].double() + torch.linalg.pinv(last) @ torch.tensor(shift)).half()
        with whole_file(file) as tmp: tmp.write_bytes(as_bytes(weights, {'format': 'pt'}))
    record_networks(run)
    return Predictor.load(run)

def write_atypical(predictor, images):
    "Keep what features of the fields look like on which it was measured, so that others can be told from them"
    embeddings = predictor.embed([predictor.prepare(o, WIDTH/o.shape[1]) for o in images])
    Atypical.fit(embeddings, quantile=.98).save(predictor.runs[0]/'atypical.npz')

def write_beside(predictor, images, probs, y, others):
    "Fit on all real images, and keep beside the network: thresholds from the fields, trust from everything"
    run = predictor.runs[0]
    EnsembleRule(rule=GlobalRule().fit(probs, y)).save(run)
    ConformalSets.fit(probs, y, keep=.9).save(run/'conformal.json')
    write_atypical(predictor, images)
    decided = cross_decide(lambda p, t, _: GlobalRule().fit(p, t), probs, y, np.arange(len(y)) % 5)
    rule = GlobalRule().fit(probs, y)
    every = [(probs, y, decided), *((q, t, rule.predict(q)) for q, t in others.values())]
    all_probs, all_y, all_decided = (np.concatenate(o) for o in zip(*every))
    names = ', '.join(f'{len(t)} {within(name)}' for name, (_, t) in others.items())
    table = measure_trust(all_probs, all_y, all_decided)
    missing = measure_missing(lambda imgs: asked(predictor, imgs, WIDTH/images[0].shape[1]), images, y)
    measured_on = f'{len(y)} fields of the competition, {names}'
    TrustTable(table, measured_on, missing, choose_calibrator(probs, y)).save(run/'trust.json')
    print(table[['label', 'n', 'ap', 'precision', 'recall', 'word']].round(2).to_string(index=False))
    return table

CARD = """# The networks that ship with hpa_fastai

{number} small residual networks ({million:.1f} million parameters each) that name the places in the cell, of 28, in
which a protein is seen, from images of four stains. They have learnt from **simulated cells alone**, composed from
drawn fields. No real image and no other network's weights were used in training. Real images, of the Human Protein
Atlas (proteinatlas.org, CC BY-SA), chose among ways to draw cells, sizes of networks and lengths of training, chose
the thresholds, and measured them. So expect a little less on yours.

| network | made by | drawn fields | images | hours on one core |
|---|---|---|---|---|
{made}

Then `python benchmarks/shipped.py --real FOLDER --lean --write` shifted the 28 outputs of each, by the mean of its own
answers on the real fields and the competition's label frequencies (no label of a field was used), and measured them
together.

They see {um} µm per pixel. Labels of images at another scale are worth less, and nobody can know the scale of a PNG.

## What it is worth

With 95 % intervals over images. mAP is the mean average precision over the labels of three images or more (of one where
each label has hardly any: composites, HPAv18 and full-size fields). Beside the share of images with a true label among
the first one and three stands what the best constant answer reaches.

| images | mAP | first | constant | first three | constant |
|---|---|---|---|---|---|
{rows}

## Label by label

All of these images together. Precision and recall are those of the labels that it gives, by thresholds that had not
seen the fields. The word is what `hpa-predict` writes in the column Trust.

| label | images | average precision | precision | recall | word |
|---|---|---|---|---|---|
{labels}

## Where not to believe it

- Every label whose word is *don't*: in real images it is seldom right about them, or nobody has measured it.
- Images that are blurred, saturated, dark, of another scale or with other stains: see the column Flags.
- Tissue, bright field, anything but cultured cells in one confocal slice.
- Few images were measured, so the intervals are wide: label a few dozen of your own and train from it
  (`hpa-train --recipe few_shot`), which is what it is best for.
"""

def write_card(predictor, rows, table):
    "Write card.md beside the network"
    run = predictor.runs[0]
    made = read_json(run/'made.json')
    def cell(o, name):
        low, high = getattr(o, f'{name}_low'), getattr(o, f'{name}_high')
        return '–' if np.isnan(low) else f'{getattr(o, name):.2f} ({low:.2f} to {high:.2f})'
    labels = [f'| {o.label} | {o.n} | {cell(o, "ap")} | {cell(o, "precision")} | {cell(o, "recall")} | {o.word} |'
              for o in table.itertuples()]
    million = sum(o.numel() for o in predictor.models[0].parameters())/1e6
    networks = [f'| {k} | {o.get("with", "")}`{o["command"]}` | {o["fields"]:,} | {o["images"]:,} | {o["hours"]} |'
                for k, o in sorted(made.items())]
    text = CARD.format(made='\n'.join(networks), um=predictor.trained_um, number=len(predictor.models), million=million,
                       rows='\n'.join(f'| {" | ".join(o)} |' for o in rows), labels='\n'.join(labels))
    with whole_file(run/'card.md') as tmp: tmp.write_text(text, encoding='utf-8')

if __name__ == '__main__': main()
