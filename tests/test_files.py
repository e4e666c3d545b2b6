"Files on disks that refuse, beside processes that were killed, and from strangers; and what must be installed."
import ast, errno, os, re, stat, struct, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import DataLoader, DataLoaders, Learner, MSELossFlat
from safetensors.torch import save_file
from hpa_fastai.files import whole_file, write_json
from hpa_fastai.labels import DataError
from hpa_fastai.models.weights import load_weights, save_weights
from hpa_fastai.train.checkpoint import Checkpoint

root = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name == 'nt', reason='needs kill -9 and permissions')

def test_a_parent_that_is_a_file(tmp_path):
    "The real error is told, not the one of tidying up after it"
    (tmp_path/'scores').write_text('a file')
    with pytest.raises(DataError, match='scores/a.json: not written') as e: write_json(tmp_path/'scores/a.json', {})
    assert '\n' not in str(e.value)

def test_a_disk_that_cannot_be_written_to(tmp_path, monkeypatch):
    "On a read-only disk even removing a file that isn't there fails"
    def read_only(path, *args, **kwargs): raise OSError(errno.EROFS, 'Read-only file system', str(path))
    for o in ('unlink', 'touch', 'write_text'): monkeypatch.setattr(Path, o, read_only)
    with pytest.raises(DataError, match=r'a.json: not written \(Read-only file system\)'):
        write_json(tmp_path/'a.json', {})

def test_a_folder_that_goes_away(tmp_path):
    "Somebody deletes the folder of a run while it is written to"
    with pytest.raises(DataError, match='a.csv: not written'), whole_file(tmp_path/'run/a.csv') as tmp:
        tmp.parent.rmdir()
        tmp.write_text('x')

def test_a_missing_source_is_not_blamed_on_the_destination(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path/'a.csv'): (tmp_path/'none.csv').read_text()

dies = '''
import os, signal, sys, time
from hpa_fastai.files import whole_file
with whole_file(sys.argv[1]) as tmp:
    tmp.write_text('half')
    print('writing', flush=True)
    time.sleep(60)
'''

def start_writing(path):
    "A process that has begun to write"
    p = subprocess.Popen([sys.executable, '-c', dies, str(path)], stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'writing\n'
    return p

@posix
@pytest.mark.parametrize('name', ['phase0.pt', 'a.b.csv', 'plain'])
def test_what_a_killed_process_left_is_removed(tmp_path, name):
    p = start_writing(tmp_path/name)
    p.kill()
    p.wait()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith('.')
    with whole_file(tmp_path/name) as tmp: tmp.write_text('whole')
    assert [o.name for o in tmp_path.iterdir()] == [name]

@posix
def test_what_others_are_writing_stays(tmp_path):
    "A process that still runs, and one on another machine, which may still run"
    p = start_writing(tmp_path/'a.csv')
    try:
        elsewhere = tmp_path/'.a.elsewhere.999999999.tmp.csv'
        elsewhere.write_text('half')
        before = set(tmp_path.iterdir())
        assert len(before) == 2
        write_json(tmp_path/'b.json', {})
        assert set(tmp_path.iterdir()) == before | {tmp_path/'b.json'}
    finally:
        p.kill()
        p.wait()

def test_what_is_a_week_old_is_removed_whoever_left_it(tmp_path):
    old, own = tmp_path/'.a.elsewhere.1.tmp.csv', tmp_path/'.notes.tmp.csv'
    for o in (old, own):
        o.write_text('half')
        os.utime(o, (0, 0))
    write_json(tmp_path/'b.json', {})
    assert {o.name for o in tmp_path.iterdir()} == {own.name, 'b.json'}

writers = dict(
    json=lambda p: write_json(p, {}),
    csv=lambda p: pd.DataFrame(dict(a=[1])).to_csv(p, index=False),
    parquet=lambda p: pd.DataFrame(dict(a=[1])).to_parquet(p),
    npy=lambda p: np.save(p, np.zeros(2)),
    pt=lambda p: torch.save({}, p),
    safetensors=lambda p: save_weights(torch.nn.Linear(2, 2), p))

@posix
@pytest.mark.parametrize('suffix', writers)
@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o002, 0o664)])
def test_colleagues_may_read_what_the_umask_lets_them(tmp_path, suffix, umask, mode):
    before = os.umask(umask)
    try:
        if suffix in ('json', 'safetensors'): writers[suffix](tmp_path/f'a.{suffix}')
        else:
            with whole_file(tmp_path/f'a.{suffix}') as tmp: writers[suffix](tmp)
    finally: os.umask(before)
    assert stat.S_IMODE((tmp_path/f'a.{suffix}').stat().st_mode) == mode

def tensors_of(path, **tensors):
    "A safetensors file, whatever is in it"
    save_file(tensors, path)
    return path

weight, bias = torch.zeros(2, 2), torch.zeros(2)
def cut(path): path.write_bytes(tensors_of(path, weight=weight, bias=bias).read_bytes()[:-8])
def evil(path): torch.save(dict(weight=Evil(path.with_name('run')), bias=bias), path)

class Evil:
    "Runs a command when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)

no_weights = {
    'folder.safetensors': (lambda p: p.mkdir(), 'no such file'),
    'pipe.pth': (lambda p: os.mkfifo(p), 'no such file'),
    'cut.safetensors': (cut, 'not weights'),
    'empty.safetensors': (lambda p: p.write_bytes(b''), 'not weights'),
    'header.safetensors': (lambda p: p.write_bytes(struct.pack('<Q', 10**10) + b'{}'), 'not weights'),
    'text.safetensors': (lambda p: p.write_text('{"weight": [1]}'), 'not weights'),
    'text.pth': (lambda p: p.write_text('{"weight": [1]}'), 'not weights'),
    'evil.pth': (evil, 'not weights'),
    'evil.safetensors': (evil, 'not weights'),
    'number.pth': (lambda p: torch.save(3, p), 'not weights'),
    'words.pth': (lambda p: torch.save(dict(weight='x', bias=bias), p), 'no ordinary tensor'),
    'sparse.pth': (lambda p: torch.save(dict(weight=weight.to_sparse(), bias=bias), p), 'no ordinary tensor'),
    'huge.pth': (lambda p: torch.save(dict(weight=bias[:1].expand(10**6, 10**6)), p), 'larger than the file'),
    'ints.safetensors': (lambda p: tensors_of(p, weight=weight.int(), bias=bias), 'another model; 1 tensors'),
    'shape.safetensors': (lambda p: tensors_of(p, weight=weight[:1], bias=bias), 'another model; 1 tensors'),
    'nan.safetensors': (lambda p: tensors_of(p, weight=weight/0, bias=bias), "'weight' holds nan")}

@posix
@pytest.mark.parametrize('name', no_weights)
def test_what_is_no_weights(tmp_path, name):
    "One line with the file's name; the network stays as it was, and nothing has run"
    make, message = no_weights[name]
    make(tmp_path/name)
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(DataError, match=message) as e: load_weights(model, tmp_path/name)
    assert name in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 500
    assert torch.equal(model.weight, before)
    assert [o.name for o in tmp_path.iterdir()] == [name]

@pytest.mark.parametrize('version, may', [('2.4.0', False), ('2.5.1+cu124', False), ('2.9.1', False),
                                          ('2.10.0', True), ('2.10.0+cpu', True), ('3.0.0.dev1', True)])
def test_pickles_are_for_versions_without_a_known_hole(tmp_path, monkeypatch, version, may):
    model = torch.nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path/'a.pth')
    save_weights(model, tmp_path/'a.safetensors')
    monkeypatch.setattr(torch, '__version__', version)
    load_weights(model, tmp_path/'a.safetensors')
    if may: load_weights(model, tmp_path/'a.pth')
    else:
        with pytest.raises(DataError, match=f'a.pth: torch {re.escape(version)}.*update.*safetensors'):
            load_weights(model, tmp_path/'a.pth')

def learner(path):
    items = [(torch.ones(2), torch.ones(1))]*4
    dls = DataLoaders(*(DataLoader(items, bs=2, num_workers=0) for _ in range(2)), device='cpu')
    return Learner(dls, torch.nn.Linear(2, 1), MSELossFlat(), path=path)

def fit(path, epochs=2):
    learn = learner(path)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=Checkpoint(path/'phase0.pt'))
    return learn

wrong_states = dict(
    evil=lambda s, p: s | dict(kind=Evil(p/'run')),
    a_list=lambda s, p: [s],
    no_model=lambda s, p: {k: v for k, v in s.items() if k != 'model'},
    other_weights=lambda s, p: s | dict(model=dict(weight=torch.zeros(3))),
    words=lambda s, p: s | dict(model=dict(weight='x', bias='y')),
    random=lambda s, p: s | dict(random=[{}]),
    no_random=lambda s, p: s | dict(random=[]),
    optimizer=lambda s, p: s | dict(opt={}),
    rows=lambda s, p: s | dict(values=s['values']*3),
    times=lambda s, p: s | dict(seconds=['x', 'y']))

@pytest.mark.parametrize('change', wrong_states.values(), ids=wrong_states)
def test_a_state_that_was_tampered_with(tmp_path, change):
    fit(tmp_path)
    state = torch.load(tmp_path/'phase0.pt', weights_only=True)
    torch.save(change(state, tmp_path), tmp_path/'phase0.pt')
    with pytest.raises(DataError, match='phase0.pt: .*Delete it to start') as e: fit(tmp_path)
    line = str(e.value).splitlines()[-1].strip()     # fastai adds lines before it
    assert line.startswith(str(tmp_path/'phase0.pt')) and len(line) < 500 and not (tmp_path/'run').exists()

@posix
@pytest.mark.parametrize('make', [lambda p: p.mkdir(), os.mkfifo, lambda p: p.write_bytes(b'PK'), lambda p: p.touch()])
def test_a_state_that_is_no_state(tmp_path, make):
    make(tmp_path/'phase0.pt')
    with pytest.raises(DataError, match='phase0.pt: '): fit(tmp_path)

def required(option):
    "Names of the distributions in a list of requirements"
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return {re.split('[<>=!~ ]', o)[0].lower().replace('_', '-') for o in parser['DEFAULT'][option].split()}

def imported():
    "Top names of all that the package imports from elsewhere"
    for path in (root/'hpa_fastai').glob('**/*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): names = [o.name for o in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level: names = [node.module]
            else: continue
            yield from (o.partition('.')[0] for o in names)

extras = {'umap'}   # a message says how to install it where it is asked for

def test_all_that_is_imported_is_required():
    "What other packages happen to bring along may be gone with their next version"
    provides = dict(sklearn=['scikit-learn'], skimage=['scikit-image']) | packages_distributions()   # not in 3.10
    names = set(imported()) - set(sys.stdlib_module_names) - {'hpa_fastai'} - extras
    known = set().union(*(required(f'{o}requirements') for o in ('', 'stacking_', 'distributed_', 'zarr_', 'fast_',
                                                          'anndata_', 'microscopes_', 'onnx_', 'app_')))
    lacking = {n for n in names if not {o.lower().replace('_', '-') for o in provides.get(n, [n])} & known}
    assert not lacking, f'imported, but not in settings.ini: {lacking}'
