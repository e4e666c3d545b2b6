"""From files to batches: the pack and the library's loader beside the plain fastai way, both sides in one run.

Makes its own data: PNGs of about 110 KB each (at 512 px). Prints one table of samples per second and ratios; `--json FILE` writes the same.

    python benchmarks/loader.py --json loader.json
"""
import argparse, json, os, shutil, tempfile, warnings
from functools import partial
from pathlib import Path
from time import perf_counter

warnings.filterwarnings('ignore')
import cv2
import numpy as np
import pandas as pd
from fastai.vision.all import *
from PIL import Image

from concurrent.futures import ProcessPoolExecutor   # after fastai's star, which brings its own

from hpa_fastai.data.augment import rgby_augments
from hpa_fastai.data.block import rgby_dls
from hpa_fastai.images.samples import find_samples
from hpa_fastai.labels import CHANNELS, LABELS
from hpa_fastai.images.pack import build_pack

def make_images(folder, n, size, kb=110):
    "`n` samples of four PNGs: smooth blobs with so much noise that each file has about `kb` KB at 512 px"
    rng, folder = np.random.default_rng(0), Path(folder)
    folder.mkdir(parents=True)
    smooth = [cv2.GaussianBlur(rng.gamma(.4, 60, (size, size)).astype(np.float32), (0, 0), size/40) for _ in range(8)]
    noise = [rng.standard_normal((size, size)).astype(np.float32) for _ in range(8)]
    def plane(k, amount): return (smooth[k % 8] + amount*noise[(3*k + 1) % 8]).clip(0, 255).astype(np.uint8)
    def kbytes(amount): return np.mean([len(cv2.imencode('.png', plane(k, amount))[1]) for k in range(4)])/1000
    lo, hi = 0., 40.
    for _ in range(12): lo, hi = (lo, (lo + hi)/2) if kbytes((lo + hi)/2) > kb*(size/512)**2 else ((lo + hi)/2, hi)
    for i in range(n):
        for c, name in enumerate(CHANNELS): cv2.imwrite(str(folder/f's{i:05}_{name}.png'), np.roll(plane(4*i + c, lo), (7*i, 13*i), (0, 1)))
    return kbytes(lo)

class PlainOpen(Transform):
    "The usual item transform: four PNGs opened with Pillow"
    def __init__(self, folder): self.folder = Path(folder)
    def encodes(self, i:str): return TensorImage(torch.from_numpy(np.stack([np.asarray(Image.open(self.folder/f'{i}_{c}.png')) for c in CHANNELS])))

def plain_dls(df, folder, bs, workers, batch_tfms=None):
    "The plain fastai way: a data block whose items are opened one by one"
    block = DataBlock((TransformBlock(PlainOpen(folder), batch_tfms=batch_tfms), MultiCategoryBlock(vocab=list(LABELS))), splitter=IndexSplitter([0]), get_x=ItemGetter(0), get_y=lambda o: [LABELS[int(k)] for k in o[1].split()])
    return block.dataloaders(list(zip(df.Id, df.Target)), bs=bs, num_workers=workers, device='cpu')

def rate(loader, seconds):
    "Samples per second: the best of passes, over at least `seconds` and two passes after a first one that warms up"
    for b in loader: break
    best, start, n_passes = 0., perf_counter(), 0
    while n_passes < 2 or perf_counter() - start < seconds:
        n, t = 0, perf_counter()
        for b in loader: n += len(b[0] if isinstance(b, tuple) else b)
        best, n_passes = max(best, n/(perf_counter() - t)), n_passes + 1
    return best

class BareGather:
    "numpy alone: the same rows of the same file copied into one buffer"
    def __init__(self, pack, bs):
        self.rows, self.bs = np.random.default_rng(0).permutation(len(pack)), bs
        self.map = np.load(pack.path/'pixels.npy', mmap_mode='r')
        self.buffer = np.empty((bs, *self.map.shape[1:]), np.uint8)
    def __iter__(self):
        for k in range(0, len(self.rows) - self.bs + 1, self.bs):
            for o, r in zip(self.buffer, self.rows[k:k+self.bs]): o[:] = self.map[r]
            yield self.buffer

def pack_plainly(part, folder, out, size):
    "Packing without the library: Pillow, one sample after the other"
    a = np.load(out, mmap_mode='r+')
    for row, sid in part:
        planes = [Image.open(Path(folder)/f'{sid}_{c}.png') for c in CHANNELS]
        a[row] = np.stack([np.asarray(o if o.width == size else o.resize((size, size))) for o in planes], -1)

def pack_all_plainly(samples, folder, out, size, workers):
    "The plain loop in `workers` processes; in the end the bytes are on the disk, as they are on the library's side"
    np.lib.format.open_memmap(out, 'w+', np.uint8, (len(samples), size, size, 4)).flush()
    parts = list(enumerate(samples))
    with ProcessPoolExecutor(workers) as ex: list(ex.map(partial(pack_plainly, folder=folder, out=out, size=size), [parts[k::workers] for k in range(workers)]))
    with open(out, 'r+b') as f: os.fsync(f.fileno())

def time_packing(folder, out, size, workers, rounds=3):
    "Seconds to pack with the library, and with a plain loop in as many processes: the best of rounds that take turns"
    samples, best = find_samples(folder), [np.inf, np.inf]
    for _ in range(rounds):
        for k, f in enumerate((lambda: build_pack(samples, out/'pack', size=size, workers=workers, progress=False).close(), lambda: pack_all_plainly(samples, folder, out/'plain.npy', size, workers))):
            t = perf_counter()
            f()
            best[k] = min(best[k], perf_counter() - t)
        shutil.rmtree(out/'pack'); (out/'plain.npy').unlink()
    return best

def crop_bytes(pack, side, n=10000):
    "Of a whole sample: the bytes that a random crop copies, and those of the 4 KiB tiles (pages of the disk) that it touches; `pack.py` measures what a disk really reads"
    assert not (pack.rows['offset'] % 4096).any()
    at = np.random.default_rng(0).integers(0, pack.size - side + 1, (2, n))
    touched = -(-(at + side)//32) - at//32
    return (side/pack.size)**2, touched.prod(0).mean()*4096/(pack.size**2*4)

def train_on_gpu(loader, steps, resident):
    "Images per second of ResNet-50 in bf16 and channels_last: fed by the loader, or with one batch that stays on the device"
    import timm
    model = timm.create_model('resnet50', in_chans=4, num_classes=len(LABELS)).cuda().to(memory_format=torch.channels_last)
    opt, lossf = torch.optim.AdamW(model.parameters(), fused=True), nn.BCEWithLogitsLoss()
    def batches():
        while True:
            for b in loader: yield tuple(o.as_subclass(Tensor).contiguous(memory_format=torch.channels_last) if o.ndim == 4 else o.as_subclass(Tensor) for o in b)
    source = batches()
    fixed = next(source)
    for i in range(steps + 10):
        if i == 10: torch.cuda.synchronize(); t = perf_counter()
        x, y = fixed if resident else next(source)
        with torch.autocast('cuda', torch.bfloat16): loss = lossf(model(x), y)
        loss.backward(); opt.step(); opt.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return steps*len(fixed[0])/(perf_counter() - t)

def usual_tfms(**kwargs): return [IntToFloatTensor(), *aug_transforms(**kwargs), Normalize.from_stats([.08, .05, .05, .08], [.14, .1, .15, .14], cuda=False)]

def bench(size, n, bs, seconds, workers, here):
    "All rows of the table for images of one size"
    res, (folder, cores) = {}, (here/f'png{size}', os.cpu_count())
    res['kb_per_png'] = make_images(folder, n, size)
    known = [' '.join(map(str, np.random.default_rng(i).choice(28, 2, False))) for i in range(n)]
    df = pd.DataFrame(dict(Id=list(find_samples(folder)), Target=known))
    (here/f'pack{size}').mkdir()
    ours, plain = time_packing(folder, here/f'pack{size}', size, cores)
    res |= dict(pack_ours=n/ours, pack_plain=n/plain, ratio_pack=plain/ours)
    pack = build_pack(find_samples(folder), here/f'pack{size}'/'ours', size=size, progress=False)
    def ours_dl(**kwargs): return rgby_dls(df, pack, valid=[df.Id[0]], bs=bs, device='cpu', **kwargs).train
    def best(tfms=None):
        rates = {w: rate(plain_dls(df, folder, bs, w, tfms).train, seconds) for w in workers}
        return max(rates.items(), key=lambda o: o[1])
    res['limit'] = rate(BareGather(pack, bs), seconds)
    res['batches'] = rate(ours_dl().new(after_batch=[]), seconds)
    w, res['batches_plain'] = best()
    res |= dict(batches_plain_workers=w, ratio_batches=res['batches']/res['batches_plain'], ratio_limit=res['batches']/res['limit'])
    res['train_batches'] = rate(ours_dl(), seconds)
    w, res['train_batches_plain'] = best(usual_tfms())
    res |= dict(train_batches_plain_workers=w, ratio_train_batches=res['train_batches']/res['train_batches_plain'])
    res['affine'] = rate(ours_dl(batch_tfms=rgby_augments(affine=True, gamma=.2)), seconds)
    res['affine_plain'] = rate(ours_dl(batch_tfms=aug_transforms(flip_vert=True, max_rotate=45., max_zoom=1.2, max_warp=0., max_lighting=.2)), seconds)   # fed from the pack too: only the transforms differ
    res['ratio_affine'] = res['affine']/res['affine_plain']
    if size == 512: res |= dict(zip(('crop_256_bytes', 'crop_256_pages'), crop_bytes(pack, 256)))
    if torch.cuda.is_available():
        dl = rgby_dls(df, pack, valid=[df.Id[0]], bs=bs, device='cuda').train
        res |= dict(gpu=train_on_gpu(dl, 100, False), gpu_resident=train_on_gpu(dl, 100, True))
        res['ratio_gpu'] = res['gpu']/res['gpu_resident']
    return res

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--json', help='write the figures to this file')
    p.add_argument('--sizes', type=int, nargs='+', default=[512, 256], help='sides of the images, in pixels')
    p.add_argument('--n', type=int, default=384, help='samples of the largest size; of smaller ones more')
    p.add_argument('--bs', type=int, default=32, help='samples in a batch')
    p.add_argument('--seconds', type=float, default=3, help='at least so long for each figure')
    p.add_argument('--workers', type=int, nargs='+', default=sorted({0, os.cpu_count()//2, os.cpu_count(), 2*os.cpu_count()}), help='numbers of workers to try for the plain way')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        res = {size: bench(size, args.n*max(args.sizes)//size, args.bs, args.seconds, args.workers, Path(d)) for size in args.sizes}
    print(f'{os.cpu_count()} cores, load {os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"):.1f}, torch {torch.__version__}, {torch.get_num_threads()} threads; {args.n} samples of the largest size, batches of {args.bs}; samples per second\n')
    with pd.option_context('display.float_format', '{:,.2f}'.format): print(pd.DataFrame(res).to_string())
    if args.json: Path(args.json).write_text(json.dumps({str(k): v for k, v in res.items()} | dict(cores=os.cpu_count(), bs=args.bs, n=args.n), indent=1))
