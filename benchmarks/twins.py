"""Near-duplicate test images that answer together: what that is worth on simulated cells.

    python benchmarks/twins.py [--n 160] [--size 256] [--seeds 2] [--json FILE]

For each seed a balanced test set is simulated, and half of its fields get a twin: shifted, enlarged, brighter and
noisier. The network that ships with the library predicts all of them; twins are found by `duplicate_groups`. Macro F1
with one threshold for all labels (the best of a grid for single answers, so that it favours these)."""
import argparse, warnings
from time import perf_counter

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
from hpa_fastai.files import write_json
from hpa_fastai.images.duplicates import average_groups, duplicate_groups, hash_images
from hpa_fastai.labels import encode_targets
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.simulate.dataset import draw_label_sets, near_duplicate, simulate_field
from hpa_fastai.train.metrics import macro_f1, mean_average_precision

def one(seed, n, size, predictor):
    "Scores of one simulated test set, answered alone and together"
    sets = draw_label_sets(n, seed=seed, balanced=True)
    fields = [simulate_field(o, size=size, seed=(seed, i), um_per_px=.32, site='test').image
              for i, o in enumerate(sets)]
    images = fields + [near_duplicate(o, seed=1000*seed + i) for i, o in enumerate(fields[:n//2])]
    of = np.r_[np.arange(n), np.arange(n//2)]
    targs = encode_targets([' '.join(map(str, o)) for o in sets])[of]
    groups = duplicate_groups(hash_images(images, progress=False))
    same, truth = groups[:, None] == groups, of[:, None] == of
    pairs = np.triu(np.ones_like(same), 1)
    probs = predictor.predict_probs(images, um=.32)
    together = average_groups(probs, groups)
    twins = np.bincount(of)[of] > 1
    grid = np.linspace(.05, .6, 12)
    t = grid[np.argmax([macro_f1(probs >= o, targs) for o in grid])]
    return dict(seed=seed, images=len(images), recall=(same & truth & pairs).sum()/(truth & pairs).sum(),
                precision=(same & truth & pairs).sum()/max((same & pairs).sum(), 1), threshold=t,
                f1_alone=macro_f1(probs >= t, targs), f1_together=macro_f1(together >= t, targs),
                f1_twins_alone=macro_f1(probs[twins] >= t, targs[twins]),
                f1_twins_together=macro_f1(together[twins] >= t, targs[twins]),
                ap_alone=mean_average_precision(probs, targs), ap_together=mean_average_precision(together, targs))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=160, help='simulated fields; half of them get a twin')
    p.add_argument('--size', type=int, default=256)
    p.add_argument('--seeds', type=int, default=2)
    p.add_argument('--json', help='where to write the scores')
    args = p.parse_args()
    start, predictor = perf_counter(), Predictor.load('simulated')
    rows = [one(seed, args.n, args.size, predictor) for seed in range(args.seeds)]
    table = pd.DataFrame(rows).set_index('seed')
    print(table.round(4).T.to_string())
    gain = table.f1_together - table.f1_alone
    print(f'macro F1 {gain.mean():+.4f} by answering together; {perf_counter() - start:.0f} s')
    if args.json: write_json(args.json, rows)
