"""Eight views of each image: `learn.dihedral_tta` beside fastai's `learn.tta`, in one run, on packed images with a small network.

Counts the bytes that are read from the pack, and takes the time of both in turn, several rounds. fastai's way makes eight passes over the
images (seven augmented, one plain); the library's makes one, and turns and mirrors each batch where the network is.

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

def make_pack(folder, n, size):
    "`n` images of noise: a network's time does not depend on what it sees"
    rng, folder = np.random.default_rng(0), Path(folder)
    (folder/'images').mkdir()
    for i in range(n): np.save(folder/f'images/s{i:04}.npy', rng.integers(256, size=(size, size, 4), dtype=np.uint8))
    return build_pack(folder/'images', folder/'pack', size=size, workers=0, progress=False)

def small_network():
    "A few strided convolutions, 24 thousand parameters"
    def block(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(nn.Conv2d(4, 8, 4, 4), nn.ReLU(), block(8, 16), block(16, 32), block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 28))

class Reads:
    "Counts what `gather` takes from a pack"
    def __init__(self, pack):
        self.bytes, gather = 0, pack.gather
        def counted(*args, **kwargs):
            out = gather(*args, **kwargs)
            self.bytes += out.nbytes
            return out
        pack.gather = counted

def measure(learn, reads, predict):
    "Seconds and bytes of one prediction of all images"
    reads.bytes, start = 0, perf_counter()
    with learn.no_bar(), torch.no_grad(): probs = predict(learn)[0]
    return perf_counter() - start, reads.bytes, probs

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
        reads, df = Reads(pack), pd.DataFrame(dict(Id=pack.ids, Target='0'))
        def learner(tfms): return Learner(rgby_dls(df, pack, valid=pack.ids[1:], bs=args.bs, batch_tfms=tfms, device='cpu'), small_network(), loss_func=BCEWithLogitsLossFlat())
        ours, usual = learner(rgby_augments(stats=pack.stats())), learner([*aug_transforms(do_flip=True, flip_vert=True, max_lighting=0), StainNormalize(stats=pack.stats())])
        usual.model.load_state_dict(ours.model.state_dict())
        ways = {"fastai: tta, aug_transforms": (usual, lambda o: o.tta(n=7)), "fastai: tta, the library's augments": (ours, lambda o: o.tta(n=7)),
                'dihedral_tta': (ours, lambda o: o.dihedral_tta()), 'no TTA': (ours, lambda o: o.get_preds())}
        rows = {}
        for _ in range(args.rounds):
            for name, (learn, predict) in ways.items():
                seconds, nbytes, probs = measure(learn, reads, predict)
                if name == 'dihedral_tta': ours_probs = probs
                old = rows.get(name, dict(seconds=seconds))
                rows[name] = dict(seconds=min(seconds, old['seconds']), read_mb=nbytes/1e6)
        # what dihedral_tta says is what eight predictions say, one after another
        x = torch.cat([b[0].as_subclass(torch.Tensor) for b in ours.dls.valid])
        with torch.no_grad(): one_by_one = torch.stack([torch.cat([ours.model(o).sigmoid() for o in v.split(args.bs)]) for v in dihedral_views(x)]).mean(0)
        assert torch.allclose(ours_probs, one_by_one, atol=1e-5)
        pack.close()
    table = pd.DataFrame(rows).T
    table['images_per_s'] = (args.n - 1)/table.seconds
    table['times_dihedral_tta'] = table.seconds/table.seconds['dihedral_tta']
    print(f'{args.n - 1} images of {args.size} px, eight views, batches of {args.bs}, {args.threads} thread(s), the fastest of {args.rounds} rounds')
    print(table.round(2).to_string())
    if args.json: write_json(args.json, table.to_dict('index'))
