"Packs under bad luck: killed, out of space, damaged, built and read by several processes."
import hashlib, multiprocessing, os, shutil, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np, pytest
from hpa_fastai.labels import DataError
from hpa_fastai.images.pack import build_pack, open_pack

size, n = 64, 240
has_forkserver = 'forkserver' in multiprocessing.get_all_start_methods()
ctx = multiprocessing.get_context('forkserver' if has_forkserver else 'spawn')
if has_forkserver:     # fastai is imported once for all processes
    ctx.set_forkserver_preload(['pytest', 'hpa_fastai.images.pack'])

def field(i):
    "A sample from its number, slowly, as if it had been decoded"
    time.sleep(.004)
    rng = np.random.default_rng(int(i))
    return (rng.gamma(1, 20, (size, size, 4)) + np.linspace(0, 40, size)[:, None, None]).clip(0, 255).astype(np.uint8)

def sources(n=n): return {f'f{i:04d}': str(i) for i in range(n)}
def digest(folder): return {o.name: hashlib.sha256(o.read_bytes()).hexdigest() for o in sorted(folder.iterdir())}

def build(path, codec, n=n, reader=field, workers=0):
    compress = codec == 'zstd'
    return build_pack(sources(n), path, size, compress, workers=workers, reader=reader, progress=False)

def in_another_process(send, path, codec, workers, limit):
    "Build a pack, and send the error or None"
    if hasattr(os, 'setsid'): os.setsid()
    if limit:
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: build(path, codec, workers=workers)
    except DataError as e: send.send(str(e))
    else: send.send(None)

def start(path, codec='raw', workers=2, limit=None):
    "A process that builds a pack, and where its error can be received"
    receive, send = ctx.Pipe(duplex=False)
    p = ctx.Process(target=in_another_process, args=(send, path, codec, workers, limit))
    p.start()
    return p, receive

@pytest.fixture(scope='module', params=['raw', 'zstd'])
def whole(request, tmp_path_factory):
    "A pack built without a disturbance, by no other process"
    return request.param, build(tmp_path_factory.mktemp('whole')/'pack', request.param)

def rows_done(part):
    try: return int((np.load(part/'rows.npy')['nbytes'] > 0).sum())
    except (OSError, ValueError): return 0

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
@pytest.mark.parametrize('progress', [.1, .8])
def test_killed_then_run_again_gives_the_same_bytes(whole, tmp_path, progress):
    codec, expected = whole
    part = tmp_path/'pack.part'
    p, _ = start(tmp_path/'pack', codec)
    end = time.time() + 120
    while rows_done(part) < progress*n and p.is_alive() and time.time() < end: time.sleep(.003)
    p.kill()
    p.join()
    assert not (tmp_path/'pack').exists()
    with pytest.raises(DataError, match='not finished|no such pack'): open_pack(tmp_path/'pack')
    kept = rows_done(part)
    pack = build(tmp_path/'pack', codec)
    assert kept >= progress*n*.9
    assert digest(pack.path) == digest(expected.path)
    with pytest.raises(ProcessLookupError):        # the workers of the killed run have ended too
        for _ in range(100):
            os.killpg(p.pid, 0)
            time.sleep(.1)

def test_a_power_cut_may_lose_any_page(whole, tmp_path):
    "Rows without their pixels, pixels without their rows, half of a row: all are done again"
    codec, expected = whole
    p, _ = start(tmp_path/'pack', codec)
    while rows_done(tmp_path/'pack.part') < n//2: time.sleep(.005)
    p.kill()
    p.join()
    part = tmp_path/'pack.part'
    time.sleep(.5)
    pixels = next(part.glob('pixels.*'))
    rng = np.random.default_rng(0)
    for f in (pixels, part/'rows.npy'):
        with open(f, 'r+b') as o:
            for at in rng.integers(1024, f.stat().st_size - 512, 12):
                o.seek(at)
                o.write(bytes(512))
    pack = build(tmp_path/'pack', codec)
    pack.verify(progress=False)
    if codec == 'raw': assert digest(pack.path) == digest(expected.path)
    assert (pack.gather(slice(None)) == expected.gather(slice(None))).all()

def test_every_flipped_byte_is_noticed(whole, tmp_path):
    codec, expected = whole
    rng = np.random.default_rng(0)
    for name in digest(expected.path):
        for _ in range(5):
            copy = Path(shutil.copytree(expected.path, tmp_path/'copy'))
            with open(copy/name, 'r+b') as f:
                at = rng.integers((copy/name).stat().st_size)
                f.seek(at)
                flipped = f.read(1)[0] ^ int(rng.integers(1, 256))
                f.seek(at)
                f.write(bytes([flipped]))
            with pytest.raises(DataError) as e: open_pack(copy).verify(progress=False)
            assert '\n' not in str(e.value) and 'copy' in str(e.value)
            shutil.rmtree(copy)

def test_several_builders_end_with_one_pack(whole, tmp_path):
    codec, expected = whole
    for p, receive in [start(tmp_path/'pack', codec, 0) for _ in range(2)]:
        assert receive.recv() is None
        p.join()
    assert digest(tmp_path/'pack') == digest(expected.path)

def checksum(pack, seed):
    idxs = np.random.default_rng(seed).permutation(len(pack))
    return sum(int(pack.gather(o).sum(dtype=np.int64)) for o in np.array_split(idxs, 9))

def test_several_readers(whole):
    _, pack = whole
    with ProcessPoolExecutor(2, mp_context=ctx) as ex:
        sums = list(ex.map(checksum, [pack]*4, range(4)))
    assert len(set(sums)) == 1 and sums[0] == checksum(pack, 5)

@pytest.mark.skipif(os.name == 'nt', reason='no resource limits')
def test_no_space_left_keeps_what_is_done(tmp_path):
    "A limit on the size of files stands in for a full disk"
    p, receive = start(tmp_path/'pack', 'zstd', 0, 1_000_000)
    assert 'free some space or choose another place, then run again: what is done is kept' in receive.recv()
    p.join()
    kept = rows_done(tmp_path/'pack.part')
    assert 0 < kept < n
    assert len(build(tmp_path/'pack', 'zstd')) == n

def test_a_full_disk_is_seen_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10, 9, 1))
    message = 'needs 0.0 GB and 0.0 GB are free; choose another disk, a smaller size, or compress=True'
    with pytest.raises(DataError, match=message):
        build(tmp_path/'pack', 'raw', workers=None)
    assert not (tmp_path/'pack.part').exists()

def broken(i):
    if int(i) % 100 == 7: raise DataError(f'{i}.png: not a whole image')
    return field(i)

def three_channels(i): return field(i)[..., :3]

@pytest.mark.parametrize('workers', [0, 2])
def test_broken_samples_are_counted_and_the_others_kept(tmp_path, workers):
    with pytest.raises(DataError, match=r'3 of 240 samples could not be packed; the first: 7.png: not a whole image'):
        build(tmp_path/'pack', 'raw', reader=broken, workers=workers)
    assert rows_done(tmp_path/'pack.part') == n - 3

def test_a_reader_that_gives_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=r'the reader must give \(height, width, 4\) uint8'):
        build(tmp_path/'pack', 'raw', n=3, reader=three_channels)

def kills_its_process(i): os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
def test_a_killed_worker_is_told_in_one_line(tmp_path):
    with pytest.raises(DataError, match='a worker process was killed.*fewer workers'):
        build(tmp_path/'pack', 'raw', reader=kills_its_process, workers=2)

@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_does_not_grow_with_the_samples(tmp_path):
    "Packing 2,000 samples after 200 needs no more memory; in a process that holds nothing else yet"
    code = f"""import numpy as np; from hpa_fastai.images.pack import build_pack
img = np.random.default_rng(0).integers(0, 256, ({size}, {size}, 4), np.uint8)
for n in (200, 2000):
    samples = {{f'f{{i}}': i for i in range(n)}}
    path = {str(tmp_path)!r} + f'/{{n}}'
    pack = build_pack(samples, path, {size}, reader=lambda i: img.copy(), workers=0, progress=False)
    pack.close()
    # not ru_maxrss, which begins with the parent's
    print(next(o for o in open('/proc/self/status') if o.startswith('VmHWM')).split()[1])"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True)
    few, many = done.stdout.split()
    assert (int(many) - int(few))/1024 < 10, 'MiB; the pixels of the larger pack are 31 MiB'

def test_the_order_of_samples_is_kept_and_ids_are_free_text(tmp_path):
    ids = ['z', 'a', 'Ünï', '10580_1610_C1_1', 'with space']
    pack = build_pack(dict(zip(ids, '01234')), tmp_path/'pack', size, reader=field, workers=0, progress=False)
    assert open_pack(pack.path).ids == ids
    assert (pack[2] == field(2)).all()

def test_killed_after_the_renaming(tmp_path):
    pack = build(tmp_path/'pack', 'raw', n=5)
    before = digest(pack.path)
    (pack.path/'plan.json').write_text('{}')       # its removal is the last step
    assert digest(build(tmp_path/'pack', 'raw', n=5).path) == before
