"""`find_cells` against true masks of simulated fields, and against the masks of a network on real ones.

Simulated fields of all four kinds of cell line are as large as the competition's. Real ones are those of the
competition of 2021, each with its four channels (`Id_red.png` …) and the mask that HPA-Cell-Segmentation draws
(`Id_predictedmask.png`, a number for each cell): a good mask, but no truth. Give the folder that holds them.

    python benchmarks/cells.py [--real FOLDER] [--n 24] [--json FILE]
"""
import argparse, warnings
from pathlib import Path
from time import process_time

warnings.filterwarnings('ignore')
import cv2
import numpy as np
import pandas as pd

from hpa_fastai.files import write_json
from hpa_fastai.images.cells import find_cells, mask_scores
from hpa_fastai.images.samples import open_rgby
from hpa_fastai.labels import CHANNELS
from hpa_fastai.simulate.cells import CELL_LINES
from hpa_fastai.simulate.dataset import simulate_field

def visible(field, um=.32):
    "Cells and nuclei of a simulated field of which at least 20 µm² of the nucleus can be seen"
    seen = np.bincount(field.nuclei.ravel(), minlength=field.cells.max() + 1)*um**2 >= 20
    seen[0] = False
    return field.cells*seen[field.cells], field.nuclei*seen[field.nuclei]

def row(name, img, um, true_cells, true_nuclei=None):
    "Scores and seconds of one field"
    start = process_time()
    cells, nuclei = find_cells(img, um, nuclei=True)
    seconds = process_time() - start
    of_cells = mask_scores(cells, true_cells)
    out = dict(field=name, px=len(img), cells=of_cells['true'], found=of_cells['found'], cell_f1=of_cells['f1'],
               cell_iou=of_cells['iou'], seconds=seconds)
    if true_nuclei is None: return out
    of_nuclei = mask_scores(nuclei, true_nuclei)
    return out | dict(nucleus_f1=of_nuclei['f1'], nucleus_iou=of_nuclei['iou'])

def simulated(n):
    "Rows of simulated fields, every line and both sites in turn"
    for k in range(n):
        line = list(CELL_LINES)[k % len(CELL_LINES)]
        field = simulate_field([(7*k) % 28], seed=[5, k], line=line, site=('train', 'test')[k//4 % 2])
        yield row(line, field.image, .32, *visible(field))

def real(folder, um):
    "Rows of real fields with a mask"
    for file in sorted(Path(folder).glob('*_predictedmask.png')):
        stem = str(file).removesuffix('_predictedmask.png')
        img = open_rgby({c: Path(f'{stem}_{c}.png') for c in CHANNELS})
        yield row(Path(stem).name[:8], img, um, cv2.imread(str(file), cv2.IMREAD_UNCHANGED))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--real', help='folder of real fields with masks')
    parser.add_argument('--um', type=float, default=.08, help='their µm per pixel')
    parser.add_argument('--n', type=int, default=24, help='simulated fields')
    parser.add_argument('--json', help='where to write the table')
    args = parser.parse_args()
    cv2.setNumThreads(1)
    tables = {'simulated': pd.DataFrame(simulated(args.n))}
    print(f'{args.n} simulated fields, means')
    print(tables['simulated'].groupby('field').mean().round(3).to_string())
    print(tables['simulated'].drop(columns='field').mean().round(3).to_string())
    if args.real:
        tables['real'] = pd.DataFrame(real(args.real, args.um))
        print("\nreal fields, beside the network's masks")
        print(tables['real'].round(3).to_string())
        print(tables['real'].drop(columns='field').mean().round(3).to_string())
    if args.json: write_json(args.json, {k: o.to_dict('records') for k, o in tables.items()})
