"Packs under bad luck: killed, out of space, damaged, built and read by several processes."
import copy, hashlib, multiprocessing, os, shutil, signal, subprocess, sys, time, zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
import numpy as np, pytest
from hpa_fastai.labels import DataError
from hpa_fastai.files import read_json, write_json
from hpa_fastai.storage import SampleFile
from hpa_fastai.images.pack import Pack, _json_crc, build_pack, open_pack

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
        for _ in range(600):
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

# Files that hold something else

swaps = [None, True, 0, -1, 2**70, .5, 'x', '', [], {}, [[]], [None], {'a': None}]

def swapped(obj, path=()):
    "Every copy of a JSON object in which one value is of another type"
    for o in swaps:
        if o != obj or type(o) is not type(obj): yield path, o
    items = obj.items() if isinstance(obj, dict) else enumerate(obj[:2]) if isinstance(obj, list) else ()
    for key, value in items:
        for where, o in swapped(value, (*path, key)): yield where, o

def put(obj, path, value):
    obj = copy.deepcopy(obj)
    if not path: return value
    at = obj
    for o in path[:-1]: at = at[o]
    at[path[-1]] = value
    return obj

@pytest.mark.parametrize('signed', [False, True])
def test_any_other_manifest_is_refused_in_one_line(tmp_path, signed):
    "Whether or not its checksum was made to agree"
    made = build(tmp_path/'pack', 'raw', n=5)
    file = made.path/'manifest.json'
    m = read_json(file)
    del m['crc32']
    for path, value in swapped(m):
        if path[:-1] == ('plan', 'ids') and type(value) in (str, int): continue      # an Id as good as any
        wrong = put(m, path, value)
        if isinstance(wrong, dict): wrong['crc32'] = _json_crc(wrong) if signed else 5
        write_json(file, wrong)
        with pytest.raises(DataError) as e: open_pack(made.path).gather(slice(None))
        assert '\n' not in str(e.value) and str(made.path) in str(e.value), (path, value)

def test_rows_of_another_kind_are_refused(tmp_path):
    made = build(tmp_path/'pack', 'raw', n=5)
    file, m = made.path/'rows.npy', read_json(made.path/'manifest.json')
    rows = made.rows
    far = rows.copy()
    far['offset'][3] = 2**63
    for other in (rows[:4], rows['offset'], rows[None], np.zeros(5), np.array(3), far, rows[::-1]):
        np.save(file, other)
        m['files']['rows.npy'], m['rows_crc32'] = file.stat().st_size, zlib.crc32(file.read_bytes())
        del m['crc32']
        m['crc32'] = _json_crc(m)
        write_json(made.path/'manifest.json', m)
        with pytest.raises(DataError, match='rows.npy: '): open_pack(made.path).gather(slice(None))

def test_any_other_plan_is_refused_in_one_line(tmp_path):
    with pytest.raises(DataError): build(tmp_path/'pack', 'raw', n=10, reader=broken)
    file = tmp_path/'pack.part/plan.json'
    plan = read_json(file)
    for wrong in (put(plan, *o) for o in swapped(plan)):
        if wrong == plan: continue      # 0 in place of False
        write_json(file, wrong)
        with pytest.raises(DataError, match='begun with other samples'): build(tmp_path/'pack', 'raw', n=10)
    write_json(file, plan)
    np.save(tmp_path/'pack.part/rows.npy', np.zeros(3))      # then nothing is taken for done
    assert len(build(tmp_path/'pack', 'raw', n=10)) == 10

# Damage, and files that change under a reader

def test_a_pack_is_opened_by_its_class(whole):
    _, pack = whole
    assert (Pack(pack.path)[3] == pack[3]).all() and Pack(str(pack.path)).ids == pack.ids
    with pytest.raises(DataError, match='no such pack'): Pack(pack.path/'none')

@pytest.mark.parametrize('codec', ['raw', 'zstd'])
def test_a_file_that_is_cut_off_while_it_is_open(tmp_path, codec):
    "Reading on would end the process"
    pack = build(tmp_path/'pack', codec, n=20)
    pack.gather([0])
    os.truncate(pack.pixels, 5000)
    for read in (lambda: pack.gather([19]), lambda: pack.gather([19], crop=(0, 0, 32)), lambda: pack[19],
                 lambda: pack.verify(progress=False)):
        with pytest.raises(DataError, match='pixels.*5000 bytes'): read()
    pack.close()
    with pytest.raises(DataError, match='pixels'): pack.gather([19])
    pack.close()
    pack.pixels.unlink()
    with pytest.raises(DataError, match='pixels'): pack.gather([19])

def test_opening_looks_at_a_few_samples(whole, tmp_path):
    codec, expected = whole
    copy = Path(shutil.copytree(expected.path, tmp_path/'copy'))
    file = copy/expected.pixels.name
    half = file.stat().st_size//2
    with open(file, 'r+b') as f:
        f.seek(half)
        f.write(bytes(half))
    with pytest.raises(DataError, match='damaged'): open_pack(copy)

def test_verified_once(tmp_path, monkeypatch):
    pack, verified = build(tmp_path/'pack', 'raw', n=20), []
    verify = SampleFile.verify
    monkeypatch.setattr(SampleFile, 'verify', lambda self, **kwargs: (verified.append(1), verify(self, **kwargs)))
    for _ in range(2): pack.verify_once(progress=False)
    assert len(verified) == 1
    for text in ('', '[]', '{"a": 1}', '3'):
        (pack.path/'verified.json').write_text(text)
        pack.verify_once(progress=False)
    assert len(verified) == 5
    with open(pack.pixels, 'r+b') as f:
        f.seek(-1, os.SEEK_END)
        last = f.read(1)
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last[0] ^ 1]))
    with pytest.raises(DataError, match='1 of 20 samples are damaged, the first is f0019'):
        pack.verify_once(progress=False)

def test_verified_where_nothing_can_be_written(tmp_path, monkeypatch):
    import hpa_fastai.storage as module
    def refuse(*args): raise DataError('read-only')
    monkeypatch.setattr(module, 'write_json', refuse)
    pack = build(tmp_path/'pack', 'raw', n=3)
    pack.verify_once(progress=False)
    assert not (pack.path/'verified.json').exists()

def test_a_resumed_build_leaves_nothing_behind(tmp_path):
    "Files that a killed run was writing, and its lock"
    expected = digest(build(tmp_path/'whole', 'raw', n=10).path)
    with pytest.raises(DataError): build(tmp_path/'pack', 'raw', n=10, reader=broken)
    for o in ('.rows.1.tmp.npy', '.plan.1.tmp.json', 'manifest.json'): (tmp_path/'pack.part'/o).write_text('half')
    (tmp_path/'.pack.lock').touch()
    assert digest(build(tmp_path/'pack', 'raw', n=10).path) == expected
    assert sorted(o.name for o in tmp_path.iterdir()) == ['pack', 'whole']
