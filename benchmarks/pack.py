"""The pack by itself: raw and compressed, from memory and from a cold disk, and the memory that packing takes.

Makes its own data (PNGs of about 110 KB each). Packing and batches beside the plain way are in `loader.py`.

    python benchmarks/pack.py [--n 400] [--images FOLDER] [--json FILE]
"""
import argparse, json, mmap, os, subprocess, sys, tempfile, warnings
from pathlib import Path
from time import perf_counter

warnings.filterwarnings('ignore')
import numpy as np
from hpa_fastai.images.samples import find_samples
from hpa_fastai.images.pack import build_pack, open_pack

def best_rate(f, batches, passes=5):
    "Samples per second of the fastest pass"
    best = 0.
    for _ in range(passes):
        t = perf_counter()
        for b in batches: f(b)
        best = max(best, sum(map(len, batches))/(perf_counter() - t))
    return best

def gathers(pack, bs, crop):
    "Samples per second from memory: whole, and random crops, into a buffer that is used again"
    rng = np.random.default_rng(0)
    batches = [o for o in np.split(rng.permutation(len(pack)), range(bs, len(pack), bs)) if len(o) == bs]
    whole_buffer = np.empty((bs, pack.size, pack.size, 4), np.uint8)
    crop_buffer = np.empty((bs, crop, crop, 4), np.uint8)
    def whole(b): return pack.gather(b, whole_buffer)
    def cropped(b): return pack.gather(b, crop_buffer, (*rng.integers(0, pack.size - crop + 1, (2, bs)), crop))
    return dict(whole=best_rate(whole, batches), crop=best_rate(cropped, batches))

def bytes_read(): return int(next(o for o in open('/proc/self/io') if o.startswith('read_bytes')).split()[1])

def cold(path, bs, crop, announced):
    "Samples per second from a disk without this file in its cache, and bytes read from it for each byte of the samples"
    known = mmap.MADV_WILLNEED
    if not announced: del mmap.MADV_WILLNEED
    out, rng = {}, np.random.default_rng(1)
    try:
        for name, side in dict(whole=None, crop=crop).items():
            pack = open_pack(path)
            fd = os.open(pack.pixels, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
            rows = rng.permutation(len(pack))[:len(pack)//2]
            before, t = bytes_read(), perf_counter()
            for k in range(0, len(rows), bs):
                b = rows[k:k+bs]
                box = (*rng.integers(0, pack.size - side + 1, (2, len(b))), side) if side else None
                pack.gather(b, crop=box)
            out[name] = len(rows)/(perf_counter() - t)
            out[f'{name} bytes'] = (bytes_read() - before)/(len(rows)*pack.size**2*4)
            pack.close()
    finally: mmap.MADV_WILLNEED = known
    return out

def peak_memory(n, folder):
    "MiB of a process that packs `n` samples, all made from one file"
    code = f'''
import resource
from hpa_fastai.images.samples import find_samples
from hpa_fastai.images.pack import build_pack
source = next(iter(find_samples({str(folder)!r}).values()))
samples = {{f's{{i}}': source for i in range({n})}}
build_pack(samples, {str(folder.parent/f'memory{n}')!r}, size=256, workers=2, progress=False)
own = next(o for o in open('/proc/self/status') if o.startswith('VmHWM'))
print(int(own.split()[1])/1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024)
'''
    command = [sys.executable, '-W', 'ignore', '-c', code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(o) for o in done.stdout.split()[-2:]]

def measure(pack, seconds, args):
    "All figures of a pack that was built in so many seconds"
    raw_bytes = len(pack)*args.size**2*4
    row = dict(packed=len(pack)/seconds, share_of_raw=pack.pixels.stat().st_size/raw_bytes)
    row |= gathers(pack, args.bs, args.crop)
    t = perf_counter()
    open_pack(pack.path)
    row['open_ms'] = 1000*(perf_counter() - t)
    t = perf_counter()
    pack.verify(progress=False)
    row['verified'] = len(pack)/(perf_counter() - t)
    return row

def figures(row):
    "A row of the table: names and numbers"
    return '   '.join(f'{k} {v:,.{0 if v > 50 else 2}f}' for k, v in row.items())

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=400, help='samples to make')
    p.add_argument('--size', type=int, default=512, help='side of the samples in pixels')
    p.add_argument('--crop', type=int, default=256, help='side of the crops in pixels')
    p.add_argument('--bs', type=int, default=32, help='samples in a batch')
    p.add_argument('--images', type=Path, help='a folder of images of your own instead')
    p.add_argument('--json', type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get('TMPDIR')) as tmp:
        here = Path(tmp)
        folder = args.images
        if not folder:
            from loader import make_images
            folder = here/'png'
            make_images(folder, args.n, args.size)
        samples = find_samples(folder)
        res = {}
        for name in ('raw', 'zstd'):
            t = perf_counter()
            pack = build_pack(samples, here/name, size=args.size, compress=name == 'zstd', progress=False)
            res[name] = measure(pack, perf_counter() - t, args)
            pack.close()
        if sys.platform == 'linux':
            res['cold, announced'] = cold(here/'raw', args.bs, args.crop, announced=True)
            res['cold, left to the kernel'] = cold(here/'raw', args.bs, args.crop, announced=False)
            for n in (200, 2000):
                own, worker = peak_memory(n, folder)
                res[f'packing {n} samples'] = {'MiB': own, 'MiB of a worker': worker}
    print('Samples per second unless named otherwise')
    for name, row in res.items(): print(f'{name:26s}{figures(row)}')
    if args.json: args.json.write_text(json.dumps(res, indent=1))
