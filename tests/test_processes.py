"Real processes, connected by gloo on the CPU, do the same as one process: same files, same draws, also after a kill."
import json, os, shutil, subprocess, sys, time
from pathlib import Path
import numpy as np
import psutil
import pytest
import torch

results = ['folds.csv', 'oof.parquet', 'oof.csv', 'test.parquet', 'thresholds.json', 'submission.csv', 'recipe.yaml']
each = ['model.safetensors', 'oof.parquet', 'test.parquet']

def launch(*command, n=2):
    "Start a command in `n` processes"
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen([*launcher, *map(str, command)], env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)

def kill(process):
    "Kill started processes; what they printed"
    launcher = psutil.Process(process.pid)
    for o in [launcher, *launcher.children(recursive=True)]: o.kill()
    return process.communicate()[0]

def wait(process, seconds=300):
    "Wait for started processes; what they printed"
    try: return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired: pytest.fail(f'still running after {seconds} s: {kill(process)[-3000:]}')

def finish(process):
    "Wait for processes that end well; what they printed"
    printed = wait(process)
    assert process.returncode == 0, printed[-3000:]
    return printed

def train(data, out, folds=2, neighbours=None, **kwargs):
    "A program that trains a tiny recipe, as arguments of `launch`"
    program = out.with_suffix('.py')
    kwargs = ', '.join(f'{k}={v!r}' for k, v in dict(device='cpu', workers=0, **kwargs).items())
    program.write_text(f'''
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.recipes import load_recipe
recipe = load_recipe('demo').override(size=64, body='test_resnet', model_args={{}}, bs=16, folds={folds}, epochs=3)
if {neighbours}: recipe = recipe.override(epochs=1, neighbours={neighbours})
cross_validate({str(data)!r}, {str(out)!r}, recipe, {kwargs})
''')
    return [program]

def kill_when(process, file):
    "Kill started processes as soon as a file is there"
    deadline = time.time() + 120
    while not file.exists() and time.time() < deadline and process.poll() is None: time.sleep(.005)
    printed = kill(process)
    assert file.exists(), printed[-3000:]

def same_files(a, b, folds):
    "Check that two runs left the same bytes"
    for o in [*results, *(f'fold{k}/{o}' for k in range(folds) for o in each)]:
        assert (a/o).read_bytes() == (b/o).read_bytes(), o

@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    from hpa_fastai.simulate.dataset import simulate_dataset
    return simulate_dataset(tmp_path_factory.mktemp('cells'), n=84, n_test=6, size=64, balanced=True, workers=0,
                            progress=False)

@pytest.fixture(scope='module')
def alone(cells, tmp_path_factory):
    "A run of three folds by one process, and how long it took"
    start, out = time.time(), tmp_path_factory.mktemp('runs')/'alone'
    finish(launch(*train(cells, out, 3), n=1))
    return out, time.time() - start

def test_folds_over_two_processes(cells, alone, tmp_path):
    one, seconds = alone
    start = time.time()
    printed = finish(launch(*train(cells, tmp_path/'two', 3)))
    print(f'one process {seconds:.1f} s, two {time.time() - start:.1f} s')
    same_files(one, tmp_path/'two', 3)
    assert 'fold 0 (1 of 3)' in printed and 'fold 2 (3 of 3)' in printed and 'fold 1 (2 of 3)' not in printed
    assert 'fold 1 (2 of 3)' in (tmp_path/'two/process1.txt').read_text()
    scores = [json.loads((o/'scores.json').read_text()) for o in (one, tmp_path/'two')]
    assert scores[0]['macro_f1'] == scores[1]['macro_f1']

def test_killed_and_started_again(cells, alone, tmp_path):
    "Two processes go on where two were killed, and so does one alone"
    out = tmp_path/'killed'
    kill_when(launch(*train(cells, out, 3)), out/'fold1/phase0.pt')
    assert not (out/'scores.json').exists()
    shutil.copytree(out, tmp_path/'fewer')
    finish(launch(*train(cells, out, 3)))
    finish(launch(*train(cells, tmp_path/'fewer', 3), n=1))
    for o in (out, tmp_path/'fewer'): same_files(alone[0], o, 3)

def test_each_fold_on_two_processes(cells, tmp_path):
    "Two processes train one network: stopped and continued as without a stop; one process can go on alone"
    whole, killed = tmp_path/'whole', tmp_path/'killed'
    finish(launch(*train(cells, whole, distribute='data')))
    kill_when(launch(*train(cells, killed, distribute='data')), killed/'fold0/phase0.pt')
    shutil.copytree(killed, tmp_path/'fewer')
    printed = finish(launch(*train(cells, killed, distribute='data')))
    assert 'epochs are done; going on after them' in printed
    same_files(whole, killed, 2)
    printed = finish(launch(*train(cells, tmp_path/'fewer'), n=1))
    assert 'the number of processes was 2, is 1' in printed and 'the batch size was 8, is 16' in printed

def test_neighbours_in_two_processes(cells, tmp_path):
    "Known images of each fold are there, whatever the processes share, and everybody finishes"
    second = dict(body='test_resnet', weights='none', epochs=2, n_embed=8, bs=16)
    for distribute in ('folds', 'data'):
        finish(launch(*train(cells, tmp_path/distribute, neighbours=second, distribute=distribute)))
        for k in (0, 1): assert (tmp_path/distribute/f'fold{k}/arcface/known.json').exists()
        assert 'neighbours' in json.loads((tmp_path/distribute/'scores.json').read_text())
    for k in (0, 1):
        near = [(tmp_path/o/f'fold{k}/near_test.csv').read_text() for o in ('folds', 'data')]
        assert near[0] == near[1]     # the second network is trained by one process in both cases

def test_the_command_in_two_processes(cells, tmp_path):
    "Of what is wrong the first process tells you, and nobody waits for ever"
    command = ['--no-python', Path(sys.executable).with_name('hpa-train'), '--data', cells, '--out', tmp_path/'run']
    start = launch(*command, '--device', 'cpu', '--workers', 0, '--distribute', 'data', '--recipe', 'demo',
                   '--set', 'bs=15')
    printed = wait(start, 120)
    assert start.returncode and printed.count('bs is 15, which 2 processes cannot share equally') == 1

script = '''
import json, sys, warnings
from safetensors.torch import load_file
warnings.simplefilter('ignore')
from pathlib import Path
from fastai.vision.all import np, set_seed, torch
from hpa_fastai.all import *
from hpa_fastai.models.masks import MaskDice, MaskTask
from hpa_fastai.train.checkpoint import SaveBest
from hpa_fastai.train.processes import join_processes

data, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
processes = join_processes('cpu')
def repeats(targets): return np.linspace(.5, 2, len(targets))
valid = list(read_labels(data/'train.csv').Id[:15])
dls = rgby_dls(data/'train.csv', data/'train', bs=8//processes.n, repeats=repeats, valid=valid, device='cpu', seed=5)
rows, take = [], dls.train.create_batches
def note(samps):
    samps = list(samps)
    rows.append(samps)
    return take(samps)
dls.train.create_batches = note
set_seed(0, reproducible=True)
learn = rgby_learner(dls, 'gapnet_mask', weights=None, path=out, precision='fp32', metrics=MaskDice(), cbs=MaskTask())
best = out/'best.safetensors'
with learn.no_bar(), processes.together(learn):
    learn.fit(2, 1e-3, cbs=SaveBest(best, 'nuclei_dice'))
saved = {k: v.sum().item() for k, v in load_file(best).items()}
whole = learn.validate()[-1]
with learn.no_bar(), processes.together(learn): parts = learn.validate()[-1]
same = all(abs(v.sum().item() - saved[k]) < 1e-4 for k, v in learn.model.state_dict().items())
logged = [[float(x) for x in o] for o in learn.recorder.values]
everyone = processes.gather(dict(rows=rows, same=same, logged=logged, dice=[whole, parts]))
if processes.first: (out/'seen.json').write_text(json.dumps(everyone))
'''

def test_draws_masks_and_best_epoch(cells, tmp_path):
    "What an epoch drew is what the sampler says; masks and the best epoch are the same in both processes"
    from hpa_fastai.all import read_labels, rgby_dls
    (tmp_path/'script.py').write_text(script)
    finish(launch(tmp_path/'script.py', cells, tmp_path))
    seen = json.loads((tmp_path/'seen.json').read_text())
    def repeats(targets): return np.linspace(.5, 2, len(targets))
    valid = list(read_labels(cells/'train.csv').Id[:15])
    dls = rgby_dls(cells/'train.csv', cells/'train', bs=8, repeats=repeats, valid=valid, device='cpu', seed=5)
    for epoch in (0, 1):
        dls.train.randomize()
        dls.train.before_iter()
        expected = list(dls.train.get_idxs())
        drawn = seen[0]['rows'][epoch] + seen[1]['rows'][epoch]
        padding = len(drawn) - len(expected)
        assert padding in (0, 1) and drawn[:len(expected)] == expected
    assert seen[0]['same'] and seen[1]['same']
    assert seen[0]['logged'] == seen[1]['logged']
    assert seen[0]['dice'] == seen[1]['dice'] == [seen[0]['dice'][0]]*2   # though one image was shown twice

stops = """
import os, signal, sys, warnings
warnings.simplefilter('ignore')
from pathlib import Path
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import Callback, np, set_seed, torch
from hpa_fastai.all import *
from hpa_fastai.labels import DataError
from hpa_fastai.train.averaging import WeightEMA
from hpa_fastai.train.checkpoint import Checkpoint
from hpa_fastai.train.processes import join_processes, Processes

data, out, todo = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
processes = join_processes('cpu')
valid = list(read_labels(data/'train.csv').Id[:15])
seen = {}

class Stop(Callback):
    order = 90
    def __init__(self, stop): self.stop = stop
    def after_batch(self):
        if self.training and self.epoch == 2 and self.iter == 1: self.stop()

def interrupt(): raise KeyboardInterrupt
def kill():
    if processes.rank == 1: os.kill(os.getpid(), signal.SIGKILL)

def fit(name, seed, cbs=(), file=None, team=processes):
    "Train with a seed of its own in each process, and note crops and weights"
    def repeats(targets): return np.linspace(.5, 2, len(targets))
    dls = rgby_dls(data/'train.csv', data/'train', bs=4, crop=48, repeats=repeats, valid=valid, device='cpu', seed=seed)
    crops, draw = [], dls.train._crops
    def note(*args):
        crops.append(draw(*args))
        return crops[-1]
    dls.train._crops = note
    set_seed(seed + processes.rank, reproducible=True)
    learn = rgby_learner(dls, 'test_resnet', weights=None, log=None, precision='fp32',
                         cbs=[GradientAccumulation(12), *cbs])
    cbs = [WeightEMA(), Checkpoint(file or out/f'{name}.pt')]
    with learn.no_bar(), learn.no_logging(), team.together(learn): learn.fit(4, 3e-3, cbs=cbs)
    seen[f'{name} crops'] = [np.stack(o[:2]).tolist() for o in crops]
    seen[name] = {k: v.clone() for k, v in learn.model.state_dict().items()}

if todo == 'begin':
    with Processes(processes.rank, processes.n, 'folds').apart():
        try: processes.first and fit('more', 0, [Stop(interrupt)], team=Processes())
        except KeyboardInterrupt: pass
    fit('whole', 0)
    try: fit('stopped', 0, [Stop(interrupt)])
    except KeyboardInterrupt: pass
    part = (out/'stopped.pt').read_bytes()
    processes.gather(None)
    fit('stopped', 50)
    files = [out/'part0.pt', out/'elsewhere.pt']   # as if the second process had a disk of its own
    if processes.first: files[0].write_bytes(part)
    processes.gather(None)
    try: fit('apart', 0, file=files[processes.rank])
    except DataError as e: seen['refused'] = str(e)
    torch.save(seen, out/f'begin{processes.rank}.pth')
    fit('killed', 0, [Stop(kill)])
if todo == 'continue':
    fit('killed', 50)
    fit('more', 50)
    torch.save(seen, out/f'continue{processes.rank}.pth')
"""

def check_same(a, b, where=''):
    "Check that two states are equal to the last bit"
    if isinstance(a, torch.Tensor): assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for k in a: check_same(a[k], b[k], f'{where}/{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)): check_same(x, y, f'{where}/{i}')
    else: assert a == b, where

def test_stopped_and_killed_fits(cells, tmp_path):
    "To the last bit: weights, optimizer, gradients that wait, averages, and the random state of each process"
    program = tmp_path/'stops.py'
    program.write_text(stops)
    printed = wait(launch(program, cells, tmp_path, 'begin'), 120)
    assert 'SIGKILL' in printed or 'exitcode  : -9' in printed, printed[-3000:]
    def seen(name): return [torch.load(tmp_path/f'{name}{r}.pth', weights_only=True) for r in (0, 1)]
    begun = seen('begin')
    for o in begun: assert 'all processes' in o['refused']
    assert begun[0]['whole crops'] != begun[1]['whole crops']
    printed = finish(launch(program, cells, tmp_path, 'continue'))
    assert 'more.pt: the number of processes was 1, is 2; the weights will differ a little' in printed
    states = [torch.load(tmp_path/f'{o}.pt', weights_only=True) for o in ('whole', 'stopped', 'killed')]
    assert states[0]['grads'] and states[0]['waiting'] and len(states[0]['random']) == 2
    for o in states: del o['seconds']
    for o in states[1:]: check_same(states[0], o)
    for first, then in zip(begun, seen('continue')):
        for o in (first['whole'], first['stopped'], then['killed']): check_same(begun[0]['whole'], o)
