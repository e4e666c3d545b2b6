"Files on disks that refuse, beside processes that were killed, and from strangers; and what must be installed."
import ast, errno, os, re, signal, stat, subprocess, sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hpa_fastai.files import read_json, whole_file, write_json
from hpa_fastai.labels import DataError
from hpa_fastai.models.weights import save_weights

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
    provides = packages_distributions()
    names = set(imported()) - set(sys.stdlib_module_names) - {'hpa_fastai'} - extras
    known = set().union(*(required(f'{o}requirements') for o in ('', 'stacking_', 'distributed_')))
    lacking = {n for n in names if not {o.lower().replace('_', '-') for o in provides.get(n, [n])} & known}
    assert not lacking, f'imported, but not in settings.ini: {lacking}'
