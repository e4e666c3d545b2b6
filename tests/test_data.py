"Loaders where things go wrong, in several processes, and on a device that isn't there."
import contextlib, random, subprocess, sys, threading
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Flatten, Learner, Transform, load_learner, set_seed, to_device
from torch import nn

from hpa_fastai.data.augment import rgby_augments
from hpa_fastai.data.sampling import sample_epoch
from hpa_fastai.data.loader import PackDL
from hpa_fastai.data.block import rgby_dls, source_dl
from hpa_fastai.images.samples import TensorRGBY
from hpa_fastai.labels import DataError, encode_targets
from hpa_fastai.data.buffers import BufferPool
from hpa_fastai.images.pack import build_pack

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Forty small samples as files and as a pack, with labels"
    path, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    (path/'train').mkdir()
    def label_set(): return ' '.join(map(str, sorted(rng.choice(28, 2, False))))
    df = pd.DataFrame(dict(Id=[f'id{i:02}' for i in range(40)], Target=[label_set() for _ in range(40)]))
    for i in df.Id: np.save(path/'train'/f'{i}.npy', rng.integers(0, 256, (32, 32, 4), np.uint8))
    return df, build_pack(path/'train', path/'pack', size=32, workers=0, progress=False), path/'train'

def make(data, **kwargs):
    df, pack, _ = data
    return rgby_dls(df, pack, **{'valid': list(df.Id[:8]), 'bs': 8, 'device': 'cpu', **kwargs})

def same(a, b):
    for (x, y), (x1, y1) in zip(a, b, strict=True):
        assert torch.equal(x, x1) and torch.equal(y, y1)

def n_threads(): return sum(o.name.startswith('ThreadPool') for o in threading.enumerate())

def test_epoch_that_is_left_early_leaves_no_thread(data):
    dls, before = make(data, prefetch=3), n_threads()
    for _ in range(5): dls.train.one_batch()
    for b in dls.train: break
    del b
    it = iter(dls.train)
    next(it)
    it.close()
    assert n_threads() == before

def test_error_in_the_thread_comes_to_the_caller(data):
    df, pack, _ = data
    class Broken:
        ids, size, index = pack.ids, pack.size, pack.index
        def stats(self, rows): return pack.stats(rows)
        def __len__(self): return len(pack)
        def __getitem__(self, i): return pack[i]
        def gather(self, rows, out=None, crop=None):
            if 20 in rows: raise DataError('sample 20 is damaged')
            return pack.gather(rows, out=out, crop=crop)
    dls, before = rgby_dls(df, Broken(), valid=list(df.Id[:8]), bs=8, device='cpu'), n_threads()
    with pytest.raises(DataError, match='sample 20 is damaged'): list(dls.train)
    assert n_threads() == before

def test_every_image_once(data):
    df, pack, _ = data
    dl = make(data, drop_last=False, bs=5).train.new(after_batch=[])
    seen = [o.numpy().transpose(1, 2, 0).tobytes() for x, _ in dl for o in x]
    assert sorted(seen) == sorted(pack[i].tobytes() for i in pack.index(df.Id[8:]))
    assert len(dl) == 7

def test_two_loops_over_one_loader(data):
    dl = make(data).valid
    pairs = list(zip(dl, dl))
    same([a for a, _ in pairs], list(dl))
    same([b for _, b in pairs], list(dl))

class Nothing(Transform):
    "An item transform, so that items are opened one by one"
    def encodes(self, x:TensorRGBY): return x

@pytest.mark.skipif(sys.platform != 'linux', reason='fastai uses no workers elsewhere')
@pytest.mark.parametrize('item_tfms', [None, Nothing])
def test_worker_processes(data, item_tfms):
    "Each worker gathers its own batches; together they are those of one process"
    one, two = (make(data, num_workers=n, item_tfms=item_tfms).train.new(after_batch=[]) for n in (0, 2))
    same(list(one), list(two))

def test_files_and_pack_agree_under_all_transforms(data):
    df, pack, folder = data
    def batches(source):
        tfms = rgby_augments(affine=True, blur=.5, noise=.5, cutout=.5, gamma=.2, yellow_drop=.2)
        return list(rgby_dls(df, source, valid=.2, bs=8, crop=24, device='cpu', batch_tfms=tfms, seed=3).train)
    same(batches(pack), batches(folder))

def test_another_process_draws_the_same(data, tmp_path):
    df, pack, _ = data
    df.to_csv(tmp_path/'train.csv', index=False)
    code = f'''import zlib
from hpa_fastai.data.block import rgby_dls
dls = rgby_dls({str(tmp_path/'train.csv')!r}, {str(pack.path)!r}, bs=8, crop=24, device='cpu', seed=5)
for x, y in dls.train: print(zlib.crc32(x.contiguous().numpy()), zlib.crc32(y.numpy()))'''
    command = [sys.executable, '-W', 'ignore', '-c', code]
    def run(): return subprocess.run(command, capture_output=True, text=True, check=True)
    a, b = run().stdout, run().stdout
    assert a == b and len(a.splitlines()) == 4

def test_global_generators_are_left_alone(data):
    dls = make(data)
    set_seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for b in dls.train: pass
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before

def test_export_holds_no_images(data, tmp_path):
    "fastai's own export pickles the loaders: Ids and the pack's path go in, no pixels"
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4, 28))
    learn = Learner(make(data), net, path=tmp_path)
    for b in learn.dls.train: pass
    learn.export('learner.pkl')
    assert (tmp_path/'learner.pkl').stat().st_size < 200_000
    again = load_learner(tmp_path/'learner.pkl')
    df, pack, _ = data
    with learn.no_bar(), again.no_bar():
        expected = learn.get_preds(dl=source_dl(learn.dls, pack, df.Id[:8]))[0]
        assert torch.allclose(again.get_preds(dl=source_dl(again.dls, pack, df.Id[:8]))[0], expected)

def test_learner_loads_where_its_pack_is_not(data, tmp_path):
    "The images of a loaded learner are new ones: an array, files, another folder; its own are missing, and it says so"
    df, pack, folder = data
    away = build_pack(folder, tmp_path/'pack', size=32, workers=0, progress=False)
    learn = Learner(make((df, away, None)), nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4, 28)),
                    path=tmp_path)
    with learn.no_bar(): expected = learn.get_preds(dl=source_dl(learn.dls, pack, df.Id[:3]))[0]
    learn.export('learner.pkl')
    away.close()
    (tmp_path/'pack').rename(tmp_path/'elsewhere')
    again = load_learner(tmp_path/'learner.pkl', cpu=True)
    files = [folder/f'{i}.npy' for i in df.Id[:3]]
    with again.no_bar():
        for dl in (source_dl(again.dls, folder, df.Id[:3]), again.dls.test_dl(files)):
            assert torch.allclose(again.get_preds(dl=dl)[0], expected, atol=1e-6)
        assert torch.allclose(again.predict(pack[pack.index([df.Id[1]])[0]])[2], expected[1], atol=1e-6)
        for ask in (lambda: again.predict(df.Id[1]), lambda: again.get_preds(dl=again.dls.test_dl(list(df.Id[:2])))):
            with pytest.raises(DataError, match='no such pack.*source_dl'): ask()
    assert 'elsewhere' not in repr(again.dls.valid) and not len(again.dls.train_ds)

@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_an_epoch(data, world_size):
    from fastai.distributed import DistributedDL
    class Played(DistributedDL):
        def _broadcast(self, t, rank): return t
    df, pack, _ = data
    repeats = 1 + 3*encode_targets(df.Target[8:])[:, 4].astype(float)
    def part(rank):
        dl = make(data, repeats=repeats, seed=1, drop_last=False).train.new(after_batch=[])
        return [x for x, _ in Played(dl, rank=rank, world_size=world_size)]
    parts = [torch.cat(part(r)) for r in range(world_size)]
    assert len({len(o) for o in parts}) == 1
    drawn = Counter(o.numpy().tobytes() for p in parts for o in p)
    rows = pack.index(df.Id[8:])
    expected = Counter({pack[i].transpose(2, 0, 1).tobytes(): int(k) for i, k in zip(rows, repeats)})
    assert not expected - drawn and (drawn - expected).total() < world_size

def test_epoch_keeps_to_its_repeats():
    rng = np.random.default_rng(0)
    for _ in range(200):
        repeats = rng.gamma(.5, 2, rng.integers(1, 50))
        repeats *= max(round(repeats.sum()), 1)/repeats.sum()
        times = np.bincount(sample_epoch(repeats, rng), minlength=len(repeats))
        assert times.sum() == round(repeats.sum())
        assert (times >= np.floor(repeats - 1e-9)).all() and (times <= np.ceil(repeats + 1e-9)).all()

def test_wrong_number_of_repeats(data):
    with pytest.raises(DataError, match='repeats has 3 numbers for 32 images'): make(data, repeats=[1, 2, 3])

def test_labels_in_and_out_as_a_matrix(data):
    df, pack, _ = data
    targets = encode_targets(df.Target)
    dls = make((df[['Id']], pack, None), targets=targets)
    same(list(dls.valid), list(make(data).valid))
    assert (dls.train.targs == targets[8:]).all() and (dls.valid.targs == targets[:8]).all()

def test_loaders_of_another_source_leave_the_first_alone(data):
    "Also after the epoch has begun, and with the same pack"
    df, pack, folder = data
    dls = make(data)
    batches = iter(dls.valid)
    first_half = source_dl(dls, folder, df.Id[:4]).one_batch()[0]
    x, _ = next(batches)
    assert torch.equal(first_half, x[:4]) and dls.valid.reader.source is pack

def test_pool_under_threads():
    "No two threads ever hold the same memory"
    pool, bad = BufferPool(3), []
    def work(k):
        for _ in range(300):
            a = pool.empty(64).fill_(k)
            b = pool.empty(32).fill_(k)
            if (a != k).any() or (b != k).any(): bad.append(k)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for o in threads: o.start()
    for o in threads: o.join()
    assert not bad and len(pool.buffers) <= 3

def test_cuda_path_without_cuda(data, monkeypatch):
    "On CUDA a batch is gathered into pinned memory and sent without blocking; the device is played by the CPU"
    expected, pinned, sent = list(make(data, seed=2).train), [], []
    real_empty, real_to = torch.empty, to_device
    def empty(*args, pin_memory=False, **kwargs):
        if pin_memory: pinned.append(args)
        return real_empty(*args, **kwargs)
    def to(b, device=None, non_blocking=False):
        if non_blocking: sent.append(device)
        return real_to(b, device, non_blocking)
    dls = make(data, seed=2)
    monkeypatch.setattr(PackDL, '_pins', True)
    monkeypatch.setattr(torch.cuda, 'device', lambda d: contextlib.nullcontext())
    monkeypatch.setattr(torch, 'empty', empty)
    monkeypatch.setattr('hpa_fastai.data.loader.to_device', to)
    same(list(dls.train), expected)
    assert len(pinned) == len(sent) == 4

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_agrees_with_cpu(data):
    tfms = dict(batch_tfms=rgby_augments(gamma=.2, yellow_drop=.2), seed=4, crop=24)
    for (x, y), (x1, y1) in zip(make(data, **tfms).train, make(data, **tfms, device='cuda').train, strict=True):
        assert x1.is_cuda and torch.allclose(x, x1.cpu(), atol=1e-3) and torch.equal(y, y1.cpu())
