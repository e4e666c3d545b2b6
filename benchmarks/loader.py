"""From files to batches: the pack and the library's loader beside the plain fastai way, both sides in one run.

Makes its own data: PNGs of about 110 KB each (at 512 px). Prints one table of samples per second and ratios;
`--json FILE` writes the same.

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
    rng = np.random.default_rng(0)
    folder = Path(folder)
    folder.mkdir(parents=True)
    smooth = [cv2.GaussianBlur(rng.gamma(.4, 60, (size, size)).astype(np.float32), (0, 0), size/40) for _ in range(8)]
    noise = [rng.standard_normal((size, size)).astype(np.float32) for _ in range(8)]
    def plane(k, amount): return (smooth[k % 8] + amount*noise[(3*k + 1) % 8]).clip(0, 255).astype(np.uint8)
    def kbytes(amount): return np.mean([len(cv2.imencode('.png', plane(k, amount))[1]) for k in range(4)])/1000
    wanted = kb*(size/512)**2
    lo, hi = 0., 40.
    for _ in range(12):     # find the amount of noise by halving
        middle = (lo + hi)/2
        if kbytes(middle) > wanted: hi = middle
        else: lo = middle
    for i in range(n):
        for c, name in enumerate(CHANNELS):
            image = np.roll(plane(4*i + c, lo), (7*i, 13*i), (0, 1))
            cv2.imwrite(str(folder/f's{i:05}_{name}.png'), image)
    return kbytes(lo)

class PlainOpen(Transform):
    "The usual item transform: four PNGs opened with Pillow"
    def __init__(self, folder): self.folder = Path(folder)
    def encodes(self, i:str):
        planes = [np.asarray(Image.open(self.folder/f'{i}_{c}.png')) for c in CHANNELS]
        return TensorImage(torch.from_numpy(np.stack(planes)))

def plain_dls(df, folder, bs, workers, batch_tfms=None):
    "The plain fastai way: a data block whose items are opened one by one"
    def label_names(row): return [LABELS[int(k)] for k in row[1].split()]
    blocks = TransformBlock(PlainOpen(folder), batch_tfms=batch_tfms), MultiCategoryBlock(vocab=list(LABELS))
    block = DataBlock(blocks, splitter=IndexSplitter([0]), get_x=ItemGetter(0), get_y=label_names)
    return block.dataloaders(list(zip(df.Id, df.Target)), bs=bs, num_workers=workers, device='cpu')

def rate(loader, seconds):
    "Samples per second: the best of passes, over at least `seconds` and two passes after a first one that warms up"
    for b in loader: break
    best, n_passes = 0., 0
    start = perf_counter()
    while n_passes < 2 or perf_counter() - start < seconds:
        n, t = 0, perf_counter()
        for b in loader: n += len(b[0] if isinstance(b, tuple) else b)
        best = max(best, n/(perf_counter() - t))
        n_passes += 1
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
    shares = [parts[k::workers] for k in range(workers)]
    pack_share = partial(pack_plainly, folder=folder, out=out, size=size)
    with ProcessPoolExecutor(workers) as ex: list(ex.map(pack_share, shares))
    with open(out, 'r+b') as f: os.fsync(f.fileno())

def time_packing(folder, out, size, workers, rounds=3):
    "Seconds to pack with the library, and with a plain loop in as many processes: the best of rounds that take turns"
    samples = find_samples(folder)
    def ours(): build_pack(samples, out/'pack', size=size, workers=workers, progress=False).close()
    def plain(): pack_all_plainly(samples, folder, out/'plain.npy', size, workers)
    best = [np.inf, np.inf]
    for _ in range(rounds):
        for k, f in enumerate((ours, plain)):
            t = perf_counter()
            f()
            best[k] = min(best[k], perf_counter() - t)
        shutil.rmtree(out/'pack')
        (out/'plain.npy').unlink()
    return best

def crop_bytes(pack, side, n=10000):
    """Of a whole sample: the share of bytes that a random crop copies, and of those in the 4 KiB tiles that it touches

    A tile is a page of the disk; `pack.py` measures what a disk really reads."""
    assert not (pack.rows['offset'] % 4096).any()
    at = np.random.default_rng(0).integers(0, pack.size - side + 1, (2, n))
    touched = -(-(at + side)//32) - at//32
    return (side/pack.size)**2, touched.prod(0).mean()*4096/(pack.size**2*4)

def train_on_gpu(loader, steps, resident):
    "Images per second of ResNet-50 in bf16 and channels_last: fed by the loader, or one batch that stays on the device"
    import timm
    model = timm.create_model('resnet50', in_chans=4, num_classes=len(LABELS))
    model = model.cuda().to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), fused=True)
    loss_func = nn.BCEWithLogitsLoss()
    def plain_tensor(o):
        o = o.as_subclass(Tensor)
        return o.contiguous(memory_format=torch.channels_last) if o.ndim == 4 else o
    def batches():
        while True:
            for b in loader: yield tuple(plain_tensor(o) for o in b)
    source = batches()
    fixed = next(source)
    for i in range(steps + 10):
        if i == 10:     # the steps before warm up
            torch.cuda.synchronize()
            t = perf_counter()
        if resident: x, y = fixed
        else: x, y = next(source)
        with torch.autocast('cuda', torch.bfloat16): loss = loss_func(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return steps*len(fixed[0])/(perf_counter() - t)

def usual_tfms(**kwargs):
    "What a fastai user would write: floats, augmentation, normalisation"
    normalize = Normalize.from_stats([.08, .05, .05, .08], [.14, .1, .15, .14], cuda=False)
    return [IntToFloatTensor(), *aug_transforms(**kwargs), normalize]

def bench(size, n, bs, seconds, workers, here):
    "All rows of the table for images of one size"
    folder, cores = here/f'png{size}', os.cpu_count()
    res = dict(kb_per_png=make_images(folder, n, size))
    def label_set(i): return ' '.join(map(str, np.random.default_rng(i).choice(28, 2, False)))
    df = pd.DataFrame(dict(Id=list(find_samples(folder)), Target=[label_set(i) for i in range(n)]))
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
    res['batches_plain_workers'] = w
    res['ratio_batches'] = res['batches']/res['batches_plain']
    res['ratio_limit'] = res['batches']/res['limit']
    res['train_batches'] = rate(ours_dl(), seconds)
    w, res['train_batches_plain'] = best(usual_tfms())
    res['train_batches_plain_workers'] = w
    res['ratio_train_batches'] = res['train_batches']/res['train_batches_plain']
    # fastai's transforms are fed from the pack too: only the transforms differ
    plain_tfms = aug_transforms(flip_vert=True, max_rotate=45., max_zoom=1.2, max_warp=0., max_lighting=.2)
    res['affine'] = rate(ours_dl(batch_tfms=rgby_augments(affine=True, gamma=.2)), seconds)
    res['affine_plain'] = rate(ours_dl(batch_tfms=plain_tfms), seconds)
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
    cores = os.cpu_count()
    p.add_argument('--workers', type=int, nargs='+', default=sorted({0, cores//2, cores, 2*cores}),
                   help='numbers of workers to try for the plain way')
    args = p.parse_args()
    res = {}
    with tempfile.TemporaryDirectory() as d:
        for size in args.sizes:
            n = args.n*max(args.sizes)//size
            res[size] = bench(size, n, args.bs, args.seconds, args.workers, Path(d))
    load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
    print(f'{cores} cores, load {load:.1f}, torch {torch.__version__}, {torch.get_num_threads()} threads; '
          f'{args.n} samples of the largest size, batches of {args.bs}; samples per second\n')
    with pd.option_context('display.float_format', '{:,.2f}'.format): print(pd.DataFrame(res).to_string())
    if args.json:
        settings = dict(cores=cores, bs=args.bs, n=args.n)
        figures = {str(size): row for size, row in res.items()}
        Path(args.json).write_text(json.dumps(figures | settings, indent=1))
