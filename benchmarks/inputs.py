#!/usr/bin/env python
"""Does a field get the same first label in whatever form it comes? For each form of `tests/inputs.py`.

`--real` is a folder of ID_{red,green,blue,yellow}.png. Fields are labelled by the network that ships with the package,
as PNGs and in every other form, and the first labels are compared. Forms in which a stain is missing or that another
microscope sees are counted by themselves."""
import argparse, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hpa_fastai.labels import DataError
from hpa_fastai.images.samples import find_samples, open_rgby, pixel_size
from hpa_fastai.runs.predictor import Predictor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'tests'))
from inputs import field_of, KINDS, LOSS, UM

def first_labels(predictor, folder, fields, kwargs):
    "Number of the first label of each sample, by the Id of its field"
    out = {}
    for sid, source in find_samples(folder, **kwargs).items():
        probs = predictor.predict_probs([open_rgby(source)], n=1, um=pixel_size(source) or UM)
        out.setdefault(field_of(sid, fields), int(probs[0].argmax()))
    return out

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--real', type=Path, required=True)
    p.add_argument('--fields', type=int, default=6)
    a = p.parse_args()
    found = find_samples(a.real)
    fields = {i: open_rgby(found[i]) for i in list(found)[:a.fields]}
    predictor = Predictor.load('simulated')
    truth = {i: int(predictor.predict_probs([img], n=1, um=UM)[0].argmax()) for i, img in fields.items()}
    same, count, told = 0, 0, 0
    for name, make in KINDS.items():
        with TemporaryDirectory() as d, redirect_stdout(StringIO()):
            try: got = first_labels(predictor, Path(d), fields, make(fields, Path(d)))
            except DataError as e: got, why = None, str(e)
        if got is None:
            told += 1
            print(f'{name:28} says: {why[-120:]}')
            continue
        right = sum(truth[i] == o for i, o in got.items())
        same, count = same + right, count + len(got)
        alike = '' if LOSS[name] is not None else '  (alike only)'
        if right < len(got): print(f'{name:28} {right} of {len(got)}{alike}')
    print(f'{len(KINDS)} forms: the same first label in {same} of {count} samples ({same/max(count, 1):.3f}); '
          f'{told} say what to do')

if __name__ == '__main__': main()
