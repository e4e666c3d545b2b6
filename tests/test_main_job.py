"The main job from the command line: it runs, repeats itself, survives kills, and refuses bad input in one line."
import json, os, shutil, subprocess, sysconfig, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image

from hpa_fastai.cli import hpa_train

scripts = Path(sysconfig.get_path('scripts'))
toy = ['--folds', '2', '--epochs', '2', '--device', 'cpu', '--recipe', 'demo',
       '--set', 'size=64 bs=16 body=test_resnet model_args={}']

def command(name, *args): return [str(scripts/name), *map(str, args)]
def run(name, *args, **env):
    return subprocess.run(command(name, *args), capture_output=True, text=True, env={**os.environ, **env})
def train(data, out, *more, **env): return run('hpa-train', '--data', data, '--out', out, *toy, *more, **env)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('sim')/'data'
    done = run('hpa-simulate', '--out', out, '--n', 60, '--test', 12, '--size', 64, '--balanced')
    assert not done.returncode, done.stderr
    return out

@pytest.fixture(scope='module')
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'whole'
    done = train(data, out)
    assert not done.returncode, done.stderr
    return out

def results(run):
    files = {f: (run/f).read_bytes() for f in ('submission.csv', 'folds.csv', 'thresholds.json', 'recipe.yaml')}
    return files | {f: pd.read_parquet(run/f) for f in ('oof.parquet', 'test.parquet')}

def assert_same(a, b):
    for f, x in results(a).items():
        y = results(b)[f]
        if isinstance(x, bytes): assert x == y, f
        else: pd.testing.assert_frame_equal(x, y, check_exact=True)

def test_the_run_holds_what_it_promises(data, finished):
    for f in ('recipe.yaml', 'folds.csv', 'fold0/model.safetensors', 'fold0/log.csv', 'fold1/model.safetensors',
              'oof.parquet', 'test.parquet', 'thresholds.json', 'scores.json', 'submission.csv', 'batch.png', 'f1.png',
              'curves.png'):
        assert (finished/f).stat().st_size, f
    scores = json.loads((finished/'scores.json').read_text())
    assert 0 <= scores['macro_f1'] <= 1 and 0 < scores['macro_f1_floor'] < .3
    assert len(scores['classes']) == 28 and {'train', 'predict'} <= set(scores['seconds'])
    assert {'train_loss', 'valid_loss', 'macro_f1', 'mean_ap'} <= set(pd.read_csv(finished/'fold0/log.csv').columns)
    done = run('hpa-check', finished/'submission.csv', '--data', data)
    assert not done.returncode and 'valid' in done.stdout, done.stderr

def test_a_finished_run_is_left_alone(data, finished):
    before = {f: f.stat().st_mtime_ns for f in finished.glob('fold*/*')}
    assert not train(data, finished).returncode
    assert before == {f: f.stat().st_mtime_ns for f in finished.glob('fold*/*')}

def test_same_seed_same_probabilities(data, tmp_path):
    "With two threads, and two folds in one process"
    for out in ('once', 'again'): assert not train(data, tmp_path/out, OMP_NUM_THREADS='2').returncode
    assert_same(tmp_path/'once', tmp_path/'again')

def killed_when(args, happened, timeout=240):
    "Start a command and kill it, without warning, as soon as `happened()`"
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.time() + timeout
    while not happened():
        if process.poll() is not None:
            raise AssertionError(f'ended before it could be killed: {process.stderr.read().decode()[-2000:]}')
        assert time.time() < end, 'never came to the point where it was to be killed'
        time.sleep(.002)
    process.kill()
    process.wait()

@pytest.mark.parametrize('moment', ['packing', 'training', 'predicting'])
def test_killed_and_started_again(data, finished, tmp_path, moment):
    out = tmp_path/'run'
    log = out/'fold0/log.csv'
    def packing(): return any((out/'packs').glob('*'))
    def training(): return log.exists() and len(log.read_text().splitlines()) > 1
    def predicting(): return (out/'fold0/model.safetensors').exists()
    happened = dict(packing=packing, training=training, predicting=predicting)
    killed_when(command('hpa-train', '--data', data, '--out', out, *toy), happened[moment])
    assert not (out/'submission.csv').exists()
    done = train(data, out)
    assert not done.returncode, done.stderr
    assert_same(out, finished)

def test_other_arguments_are_refused(data, finished):
    done = run('hpa-train', '--data', data, '--out', finished, *toy[:3], '3', *toy[4:])
    assert done.returncode == 2 and 'started with other choices (phases.0.epochs was 2, is 3)' in done.stderr

def test_before_there_are_folds_other_arguments_are_welcome(data, tmp_path):
    for bs in 16, 8:
        changes = f'size=64 bs={bs} body=test_resnet model_args={{}} validation=groups'
        done = train(data, tmp_path/'run', '--set', changes)
        assert done.returncode == 2 and 'no column group' in done.stderr
        assert f'bs: {bs}\n' in (tmp_path/'run/recipe.yaml').read_text()

def test_predict(data, finished, tmp_path):
    done = run('hpa-predict', '--run', finished, '--images', data/'test', '--out', tmp_path/'labels.csv',
               '--device', 'cpu')
    assert not done.returncode, done.stderr
    got = pd.read_csv(tmp_path/'labels.csv').set_index('Id')
    expected = pd.read_parquet(finished/'test.parquet').set_index('Id')
    difference = got.loc[expected.index, expected.columns] - expected
    assert np.abs(difference).to_numpy().max() < .02

# ---- bad input ----

damages = ['missing channel file', 'truncated png', 'wrong size', 'composite', 'unknown label', 'duplicate id',
           'empty target', 'missing column', 'not utf-8', 'empty folder']

def spoil(data, to, what):
    "A copy of the data set, spoilt in one place; what the message must hold"
    shutil.copytree(data, to)
    lines = (to/'train.csv').read_text().splitlines()
    sid = lines[5].split(',')[0]
    file = to/f'train/{sid}_blue.png'
    img = np.asarray(Image.open(file))
    def rewrite(i, line, says):
        (to/'train.csv').write_text('\n'.join([*lines[:i], line, *lines[i+1:]]) + '\n')
        return says
    if what == 'unknown label': return rewrite(5, f'{sid},99', 'line 6')
    if what == 'duplicate id': return rewrite(6, f'{sid},1', 'line 7')
    if what == 'empty target': return rewrite(5, f'{sid},', 'line 6')
    if what == 'missing column': return rewrite(0, 'Id,Label', 'Target')
    if what == 'not utf-8':
        (to/'train.csv').write_bytes((to/'train.csv').read_bytes() + b'\xff\xfe,1\n')
        return 'UTF-8'
    if what == 'empty folder':
        shutil.rmtree(to/'train')
        (to/'train').mkdir()
        return 'holds no images'
    if what == 'missing channel file': file.unlink()
    if what == 'truncated png': file.write_bytes(file.read_bytes()[:99])
    if what == 'wrong size': Image.fromarray(img[:-3]).save(file)
    if what == 'composite':
        colours = np.random.default_rng(0).integers(0, 255, (*img.shape, 3), np.uint8)
        Image.fromarray(colours).save(file)
    return file.name

@pytest.mark.parametrize('what', damages)
def test_bad_input_is_one_clear_line(data, tmp_path, capsys, what):
    said = spoil(data, tmp_path/'data', what)
    with pytest.raises(SystemExit) as end:
        hpa_train.main(['--data', str(tmp_path/'data'), '--out', str(tmp_path/'run'), *toy])
    printed = capsys.readouterr().err
    assert end.value.code == 2 and 'Traceback' not in printed, printed
    message = [l for l in printed.splitlines() if l.startswith('hpa-train: ')]
    assert len(message) == 1 and said in message[0], printed
    assert not list((tmp_path/'run').glob('**/*.tmp*')) and not (tmp_path/'run/submission.csv').exists()

def test_sixteen_bits_are_understood(data, tmp_path):
    "The same images with 16 bits give the same pack"
    from hpa_fastai.images.samples import find_samples, open_rgby
    sid, source = next(iter(find_samples(data/'test').items()))
    for f in source.values():
        Image.fromarray(np.asarray(Image.open(f)).astype(np.uint16)*257).save(tmp_path/f.name)
    assert np.array_equal(open_rgby(find_samples(tmp_path)[sid]), open_rgby(source))

may_mount = Path('/dev/full').exists() and hasattr(os, 'geteuid') and os.geteuid() == 0 and shutil.which('mount')

@pytest.mark.skipif(not may_mount, reason='a small disk can be made by root on Linux only')
def test_no_space_left(data, tmp_path):
    small = tmp_path/'small'
    small.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'none', small]
    if subprocess.run(mount, capture_output=True).returncode: pytest.skip('no small disk can be mounted here')
    try:
        done = train(data, small/'run')
        assert done.returncode == 2 and 'space' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    finally: subprocess.run(['umount', small])
