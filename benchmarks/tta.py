"""Eight views of each image: `learn.dihedral_tta` beside fastai's `learn.tta`, in one run.

Packed images go through a small network. Counts the bytes that are read from the pack, and takes the time of both in
turn, several rounds. fastai's way makes eight passes over the images (seven augmented, one plain); the library's makes
one, and turns and mirrors each batch where the network is.

    python benchmarks/tta.py [--json FILE]
"""
import argparse, tempfile, warnings
from pathlib import Path
from time import perf_counter

warnings.filterwarnings('ignore')
import numpy as np
import pandas as pd
from fastai.vision.all import BCEWithLogitsLossFlat, Learner, aug_transforms, nn, torch

from hpa_fastai.data.augment import rgby_augments
from hpa_fastai.data.block import rgby_dls
from hpa_fastai.files import write_json
from hpa_fastai.data.symmetries import dihedral_views
from hpa_fastai.data.normalize import StainNormalize
from hpa_fastai.images.pack import build_pack
import hpa_fastai.decide.tta   # noqa: F401 - gives learners `dihedral_tta`

def make_pack(folder, n, size):
    "`n` images of noise: a network's time does not depend on what it sees"
    rng = np.random.default_rng(0)
    folder = Path(folder)
    (folder/'images').mkdir()
    for i in range(n):
        noise = rng.integers(256, size=(size, size, 4), dtype=np.uint8)
        np.save(folder/f'images/s{i:04}.npy', noise)
    return build_pack(folder/'images', folder/'pack', size=size, workers=0, progress=False)

def small_network():
    "A few strided convolutions, 24 thousand parameters"
    def block(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(4, 8, 4, 4), nn.ReLU(),
        block(8, 16), block(16, 32), block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 28))

class Reads:
    "Counts what `gather` takes from a pack"
    def __init__(self, pack):
        self.bytes = 0
        gather = pack.gather
        def counted(*args, **kwargs):
            out = gather(*args, **kwargs)
            self.bytes += out.nbytes
            return out
        pack.gather = counted

def measure(learn, reads, predict):
    "Seconds and bytes of one prediction of all images"
    reads.bytes = 0
    start = perf_counter()
    with learn.no_bar(), torch.no_grad(): probs = predict(learn)[0]
    return perf_counter() - start, reads.bytes, probs

def eight_predictions(learn, bs):
    "Mean probabilities of the eight views, predicted one after another"
    x = torch.cat([b[0].as_subclass(torch.Tensor) for b in learn.dls.valid])
    def predict(view): return torch.cat([learn.model(o).sigmoid() for o in view.split(bs)])
    with torch.no_grad(): return torch.stack([predict(view) for view in dihedral_views(x)]).mean(0)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', help='where to write the table')
    parser.add_argument('--n', type=int, default=256, help='images')
    parser.add_argument('--size', type=int, default=256, help='their side, in pixels')
    parser.add_argument('--bs', type=int, default=32, help='batch size')
    parser.add_argument('--rounds', type=int, default=3, help='of which the fastest counts')
    parser.add_argument('--threads', type=int, default=1, help="torch's threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as d:
        pack = make_pack(d, args.n, args.size)
        reads = Reads(pack)
        df = pd.DataFrame(dict(Id=pack.ids, Target='0'))
        def learner(tfms):
            dls = rgby_dls(df, pack, valid=pack.ids[1:], bs=args.bs, batch_tfms=tfms, device='cpu')
            return Learner(dls, small_network(), loss_func=BCEWithLogitsLossFlat())
        usual_tfms = aug_transforms(do_flip=True, flip_vert=True, max_lighting=0)
        ours = learner(rgby_augments(stats=pack.stats()))
        usual = learner([*usual_tfms, StainNormalize(stats=pack.stats())])
        usual.model.load_state_dict(ours.model.state_dict())
        ways = {
            'fastai: tta, aug_transforms': (usual, lambda o: o.tta(n=7)),
            "fastai: tta, the library's augments": (ours, lambda o: o.tta(n=7)),
            'dihedral_tta': (ours, lambda o: o.dihedral_tta()),
            'no TTA': (ours, lambda o: o.get_preds())}
        rows = {}
        for _ in range(args.rounds):
            for name, (learn, predict) in ways.items():
                seconds, nbytes, probs = measure(learn, reads, predict)
                if name == 'dihedral_tta': ours_probs = probs
                old = rows.get(name, dict(seconds=seconds))
                rows[name] = dict(seconds=min(seconds, old['seconds']), read_mb=nbytes/1e6)
        assert torch.allclose(ours_probs, eight_predictions(ours, args.bs), atol=1e-5)
        pack.close()
    table = pd.DataFrame(rows).T
    table['images_per_s'] = (args.n - 1)/table.seconds
    table['times_dihedral_tta'] = table.seconds/table.seconds['dihedral_tta']
    print(f'{args.n - 1} images of {args.size} px, eight views, batches of {args.bs}, {args.threads} thread(s), '
          f'the fastest of {args.rounds} rounds')
    print(table.round(2).to_string())
    if args.json: write_json(args.json, table.to_dict('index'))
