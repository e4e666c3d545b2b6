"Tables of any number of images: stopped and resumed, shared by processes, with a few batches in memory."
import os, shutil, signal, subprocess, sys, threading, time, weakref
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.explain.atypical import Atypical
from hpa_fastai.files import read_json
from hpa_fastai.images import tables
from hpa_fastai.images.pack import build_pack
from hpa_fastai.images.packed import open_pack
from hpa_fastai.images.samples import find_samples, open_rgby
from hpa_fastai.images.tables import stream_table, table_job
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks, save_config
from hpa_fastai.runs.label_folder import FolderToLabel
from hpa_fastai.runs.networks import Networks
from hpa_fastai.runs.predictor import Predictor

size, n, bs = 32, 30, 3
names = [f'f{k:03}' for k in range(n)]

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scale')/'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for o in names: np.save(folder/f'{o}.npy', rng.integers(0, 256, (size, size, 4), np.uint8))
    (folder/'f007.npy').write_bytes(b'')
    return folder

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('scale')/'run'
    net = rgby_model('test_resnet', head='linear', weights=None).eval()
    (folder/'fold0').mkdir(parents=True)
    tensors = {k: v.contiguous() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(tensors, folder/'fold0/model.safetensors')
    save_config(folder, net.config, size, np.full(4, .5), np.full(4, .3), views=dict(n=1), bs=bs)
    record_networks(folder)
    FixedRule(.5).fit(np.zeros((1, 28)), np.zeros((1, 28))).save(folder/'thresholds.json')
    return folder

def mean_of(ids, imgs): return pd.DataFrame(dict(Id=ids, mean=[float(np.asarray(o).mean()) for o in imgs]))

def expected(images):
    good = [o for o in names if o != 'f007']
    return pd.DataFrame(dict(Id=good, mean=[np.load(images/f'{o}.npy').mean() for o in good])).to_csv(index=False)

def left(folder): return sorted(o.name for o in folder.iterdir() if o.name.startswith('.'))

# Memory: by design, so by counting

class Counted(np.ndarray):
    "An opened image that is counted as long as it is alive"
    alive, most, lock = 0, 0, threading.Lock()

def counted(source):
    img = open_rgby(source).view(Counted)
    with Counted.lock:
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
    def gone():
        with Counted.lock: Counted.alive -= 1
    weakref.finalize(img, gone)
    return img

@pytest.mark.parametrize('out', ['table.csv', 'table.parquet'])
def test_a_few_batches_are_in_memory(images, tmp_path, monkeypatch, out):
    monkeypatch.setattr(tables, 'MOST_SHARDS', 4)      # three batches a shard
    samples = {f'{o}-{k}': images/f'{o}.npy' for k in range(4) for o in names if o != 'f007'}
    Counted.alive = Counted.most = 0
    rows, shards = [], []
    def slow(ids, imgs):
        time.sleep(.002)      # opening is ahead
        return mean_of(ids, imgs)
    def seen(df): shards.append(len(df))
    job = table_job(samples, bs, 'mean')
    assert stream_table(samples, slow, counted, bs, tmp_path/out, job, seen=seen) == len(samples) == 116
    assert Counted.most <= 3*bs and Counted.alive <= bs
    assert sum(shards) == 116 and max(shards) == 30 and len(shards) == 4 and not left(tmp_path)
    df = pd.read_csv(tmp_path/out) if out.endswith('csv') else pd.read_parquet(tmp_path/out)
    assert list(df.Id) == list(samples)

def test_the_command_holds_no_table(images, run, tmp_path, monkeypatch):
    "The rows of one shard at a time pass by"
    predictor, alive = Predictor.load(run, 'cpu'), []
    read = tables.TableParts.read
    def noted(self, k):
        df = read(self, k)
        if df is not None: alive.append(weakref.ref(df))
        assert sum(o() is not None for o in alive) <= 2
        return df
    monkeypatch.setattr(tables.TableParts, 'read', noted)
    assert FolderToLabel(predictor, images).write(tmp_path/'labels.csv').images == n - 1
    assert len(alive) >= 2*n//bs

# Stopped and resumed

class Stopped(Exception): pass

def test_stopped_twice_and_resumed(images, run, tmp_path, monkeypatch):
    predictor = Predictor.load(run, 'cpu')
    whole = predictor.predict_folder(images, tmp_path/'whole.csv')
    assert (tmp_path/'whole.csv').read_text() == whole.to_csv(index=False)
    ask, asked = Networks._ask, []
    def _ask(self, prepared, n):
        if len(asked) in (3, 7): raise Stopped
        asked.append(len(prepared))
        return ask(self, prepared, n)
    with monkeypatch.context() as m:
        m.setattr(Networks, '_ask', _ask)
        for _ in range(2):
            with pytest.raises(Stopped): FolderToLabel(predictor, images).write(tmp_path/'labels.csv')
            asked.append(0)
        tally = FolderToLabel(predictor, images).write(tmp_path/'labels.csv')
    assert sum(asked) == n - 1 and tally.images == n - 1
    for o in ('.csv', '.errors.csv'): assert (tmp_path/f'labels{o}').read_bytes() == (tmp_path/f'whole{o}').read_bytes()
    assert not left(tmp_path)
    def never(*args): raise AssertionError
    monkeypatch.setattr(Networks, '_ask', never)
    assert FolderToLabel(predictor, images).write(tmp_path/'labels.csv') is None      # it is written

def test_a_shard_is_whole_or_not_there(images, tmp_path, monkeypatch):
    samples, out = find_samples(images, strict=False), tmp_path/'table.csv'
    job, to_parquet, wrote = table_job(samples, bs, 'mean'), pd.DataFrame.to_parquet, []
    def half(self, path, **kwargs):
        if len(wrote) == 4:
            Path(path).write_bytes(b'half')
            raise OSError(28, 'No space left on device', str(path))
        wrote.append(path)
        to_parquet(self, path, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(pd.DataFrame, 'to_parquet', half)
        with pytest.raises(Exception, match='No space left'): stream_table(samples, mean_of, bs=bs, out=out, job=job)
    shards = list((tmp_path/'.table.csv.part').glob('*.parquet'))
    assert len(shards) == 4 and [len(pd.read_parquet(o)) for o in shards] == [bs]*4
    asked = []
    def noted(ids, imgs):
        asked.extend(ids)
        return mean_of(ids, imgs)
    stream_table(samples, noted, bs=bs, out=out, job=job)
    assert len(asked) == n - 1 - (4*bs - 1) and out.read_text() == expected(images) and not left(tmp_path)

# Processes

program = '''
import os, sys, time
import numpy as np
import pandas as pd
from hpa_fastai.images.samples import find_samples
from hpa_fastai.images.tables import stream_table, table_job
images, out, log, gate = sys.argv[1:]
def mean_of(ids, imgs):
    with open(log, 'a') as f: f.write(''.join(f'{i} {os.getpid()}\\n' for i in ids))
    while not os.path.exists(gate): time.sleep(.01)
    return pd.DataFrame(dict(Id=ids, mean=[float(np.asarray(o).mean()) for o in imgs]))
samples = find_samples(images, strict=False)
print(stream_table(samples, mean_of, bs=3, out=out, job=table_job(samples, 3, 'mean')), flush=True)
'''

def start(images, out, log, gate):
    "Begin in a process that notes what it is asked about, and answers once the file `gate` is there"
    args = [sys.executable, '-W', 'ignore', '-c', program, images, out, log, gate]
    return subprocess.Popen(list(map(str, args)), stdout=subprocess.PIPE, text=True)

def wait_until(condition, seconds=400):
    end = time.time() + seconds
    while not condition() and time.time() < end: time.sleep(.01)
    assert condition()

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
def test_processes_share_and_take_over(images, tmp_path):
    "One of three processes is killed: the others do its part, and no image is lost or asked about in vain"
    log, out, gate = tmp_path/'log.txt', tmp_path/'table.csv', tmp_path/'gate'
    def lines(): return [o.split() for o in log.read_text().splitlines()] if log.exists() else []
    first = start(images, out, log, tmp_path/'never')      # is asked for the first batch, and doesn't answer
    wait_until(lines)
    others = [start(images, out, log, gate) for _ in range(2)]
    wait_until(lambda: len({pid for _, pid in lines()}) == 3)   # one that began after the end would do all anew
    first.send_signal(signal.SIGKILL)
    first.communicate()
    gate.touch()
    said = [o.communicate()[0] for o in others]
    assert [o.returncode for o in others] == [0, 0]
    assert all(o.splitlines()[-1].startswith('  ') or '29' in o for o in said)
    assert out.read_text() == expected(images) and not left(tmp_path)
    killed = {i for i, pid in lines() if int(pid) == first.pid}
    asked = [i for i, pid in lines() if int(pid) != first.pid]
    assert sorted(asked) == [o for o in names if o != 'f007']      # once each
    assert killed == set(names[:bs])

def test_two_launched_commands(images, run, tmp_path):
    "`torchrun` starts hpa-predict twice: one table, one voice, as of one process"
    Predictor.load(run, 'cpu').predict_folder(images, tmp_path/'whole.csv')
    (tmp_path/'predict.py').write_text('from hpa_fastai.cli_predict import hpa_predict\nhpa_predict()\n')
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--']
    args = ['--run', run, '--images', images, '--out', tmp_path/'labels.csv', '--device', 'cpu']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    command = [*launcher, *map(str, [tmp_path/'predict.py', *args])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('labelled') + done.stdout.count('written it before') == 1
    assert (tmp_path/'labels.csv').read_bytes() == (tmp_path/'whole.csv').read_bytes() and not left(tmp_path)
    assert {**read_json(tmp_path/'labels.json'), 'job': 0} == {**read_json(tmp_path/'whole.json'), 'job': 0}

# Packs

packing = '''
import os, sys, time
from hpa_fastai.images.pack import build_pack
from hpa_fastai.images.packed import open_pack
from hpa_fastai.images.samples import open_rgby
images, out, log, seconds = sys.argv[1:]
def reader(source):
    with open(log, 'a') as f: f.write(f'{source} {os.getpid()}\\n')
    time.sleep(float(seconds))
    return open_rgby(source)
samples = {f'{k:03}': f'{images}/f{k % 7:03}.npy' for k in range(100)}
build_pack(samples, out, size=32, reader=reader, workers=0, progress=False)
'''

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
def test_processes_share_a_pack(images, tmp_path):
    "(`test_pack.py` has the same for two builders that live, also for compressed packs)"
    samples = {f'{k:03}': f'{images}/f{k % 7:03}.npy' for k in range(100)}
    whole = build_pack(samples, tmp_path/'whole', size=32, workers=0, progress=False)
    log = tmp_path/'log.txt'
    def lines(): return [o.split() for o in log.read_text().splitlines()] if log.exists() else []
    def begin(seconds):
        args = [sys.executable, '-W', 'ignore', '-c', packing, images, tmp_path/'pack', log, seconds]
        return subprocess.Popen(list(map(str, args)), stdout=subprocess.PIPE, text=True)
    first = begin(600)      # holds the first chunk, and never finishes it
    wait_until(lines)
    others = [begin(.005) for _ in range(2)]
    wait_until(lambda: len(lines()) > 20)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    for o in others: o.communicate()
    assert [o.returncode for o in others] == [0, 0]
    assert len([o for o, pid in lines() if int(pid) != first.pid]) == 100
    made = open_pack(tmp_path/'pack')
    made.verify(progress=False)
    for o in ('pixels.npy', 'rows.npy'): assert (made.path/o).read_bytes() == (whole.path/o).read_bytes()
    assert sorted(o.name for o in tmp_path.iterdir()) == ['log.txt', 'pack', 'whole']

# One pass

def test_features_are_noted_in_passing(run, tmp_path):
    "Whether an image is unusual costs no further pass, and is decided by the very same numbers"
    mine = Path(shutil.copytree(run, tmp_path/'run'))
    imgs = [np.random.default_rng(k).integers(0, 256, (size, size, 4), np.uint8) for k in range(20)]
    fresh = Predictor.load(run, 'cpu')
    prepared = [fresh.prepare(o) for o in imgs]
    Atypical.fit(fresh.embed(prepared), quantile=.9).save(mine/'atypical.npz')
    known, passes = Predictor.load(mine, 'cpu'), []
    known.models[0].register_forward_hook(lambda *args: passes.append(1))
    for views in (1, 8):
        passes.clear()
        probs = known._ask(prepared, views)
        np.testing.assert_array_equal(known.embed(prepared), fresh.embed(prepared))
        np.testing.assert_array_equal(probs, fresh._ask(prepared, views))
        assert len(passes) == views
    assert known._adapted(prepared, .5)[0]._noted is None
