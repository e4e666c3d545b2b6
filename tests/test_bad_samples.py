"Folders in which some images can't be read, and jobs that are stopped: the good images are packed and labelled."
import os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hpa_fastai.labels import DataError
from hpa_fastai.files import read_json, write_json
from hpa_fastai.images.pack import build_pack
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks, save_config
from hpa_fastai.models.weights import save_weights

size, n = 32, 10

def write_images(folder, n=n, bad=(), seed=0):
    "Images of noise; those with the numbers in `bad` are cut off"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        file = folder/f'f{i:02d}.npy'
        np.save(file, rng.integers(0, 256, (size, size, 4), np.uint8))
        if i in bad: os.truncate(file, 1000)
    return folder

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The folder of a run in miniature"
    run = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    net = rgby_model('test_resnet', head='linear', weights=None).eval()
    save_weights(net, run/'fold0/model.safetensors')
    save_config(run, net.config, size, np.full(4, .5), np.full(4, .3), views=dict(n=1), bs=2)
    record_networks(run)
    FixedRule(.5).fit(np.zeros((1, 28)), np.zeros((1, 28))).save(run/'thresholds.json')
    return run

def predict(run, images, out, **kwargs):
    return Predictor.load(run, device='cpu').predict_folder(images, out, **kwargs)

def names(folder): return sorted(o.name for o in folder.iterdir())

# Packs

def pack(folder, path, **kwargs): return build_pack(folder, path, size, workers=0, progress=False, **kwargs)

def test_a_pack_is_made_of_the_good_samples(tmp_path, capsys):
    "It is byte for byte the pack of a folder that has only those; errors.csv and the last lines name the others"
    images, good = write_images(tmp_path/'images', bad=(0, 4)), write_images(tmp_path/'good')
    for o in ('f00.npy', 'f04.npy'): (good/o).unlink()
    expected = pack(good, tmp_path/'expected')
    made = pack(images, tmp_path/'pack', strict=False)
    assert made.ids == expected.ids
    for o in ('pixels.npy', 'rows.npy'): assert (made.path/o).read_bytes() == (expected.path/o).read_bytes()
    errors = pd.read_csv(tmp_path/'pack.errors.csv')
    assert list(errors.columns) == ['Id', 'file', 'error'] and list(errors.Id) == ['f00', 'f04']
    assert errors.file[0] == str(images/'f00.npy') and errors.error[0].startswith('not a whole image')
    printed = capsys.readouterr().out
    assert '2 of 10 samples could not be read' in printed and 'pack.errors.csv' in printed
    assert f'{images/"f04.npy"}: not a whole image' in printed

def test_a_pack_without_some_samples_is_opened_again_but_not_for_training(tmp_path):
    images = write_images(tmp_path/'images', bad=(3,))
    made = pack(images, tmp_path/'pack', strict=False)
    assert pack(images, tmp_path/'pack', strict=False).ids == made.ids
    with pytest.raises(DataError, match='made without 1 of these samples.*f03.npy: not a whole image'):
        pack(images, tmp_path/'pack')
    write_images(images)        # all are whole
    with pytest.raises(DataError, match='1 of 10 samples have changed since.*f03.*delete the pack and build it'):
        pack(images, tmp_path/'pack', strict=False)
    shutil.rmtree(made.path)
    assert len(pack(images, tmp_path/'pack', strict=False)) == n
    assert names(tmp_path) == ['images', 'pack']

@pytest.mark.parametrize('compress', [False, True])
def test_a_strict_build_is_taken_up_by_one_that_is_not(tmp_path, compress):
    images = write_images(tmp_path/'images', bad=(3, 9))
    with pytest.raises(DataError, match='2 of 10 samples could not be packed; the first: .*f03.npy'):
        pack(images, tmp_path/'pack', compress=compress)
    assert names(tmp_path) == ['images', 'pack.errors.csv', 'pack.part']
    made = pack(images, tmp_path/'pack', compress=compress, strict=False)
    made.verify(progress=False)
    assert len(made) == 8 and names(tmp_path) == ['images', 'pack', 'pack.errors.csv']

def test_a_sample_that_lacks_a_file_is_left_out(tmp_path):
    import cv2
    (tmp_path/'images').mkdir()
    for i in 'ab':
        for c in ('red', 'green', 'blue', 'yellow'):
            cv2.imwrite(str(tmp_path/f'images/{i}_{c}.png'), np.zeros((size, size), np.uint8))
    (tmp_path/'images/b_blue.png').unlink()
    with pytest.raises(DataError, match='b_blue.png: missing'): pack(tmp_path/'images', tmp_path/'pack')
    assert pack(tmp_path/'images', tmp_path/'pack', strict=False).ids == ['a']
    assert 'the blue stain of this sample is missing' in (tmp_path/'pack.errors.csv').read_text()

def test_no_good_sample_is_an_error(tmp_path, run):
    images = write_images(tmp_path/'images', 3, bad=range(3))
    with pytest.raises(DataError, match='3 of 3 samples could not be packed'):
        pack(images, tmp_path/'pack', strict=False)
    with pytest.raises(DataError, match='none of 3 images could be read.*f00.npy'):
        predict(run, images, tmp_path/'a.csv')
    assert not (tmp_path/'a.csv').exists()

@pytest.mark.parametrize('shape', [(0, 0, 4), (0, 9, 4), (1, 1, 4)])
def test_images_without_pixels(tmp_path, run, shape):
    images = write_images(tmp_path/'images', 3)
    np.save(images/'f01.npy', np.zeros(shape, np.uint8))
    assert pack(images, tmp_path/'pack', strict=False).ids == ['f00', 'f02']
    assert list(predict(run, images, tmp_path/'a.csv').Id) == ['f00', 'f02']

# Predictions

def test_good_images_are_labelled_and_bad_ones_listed(tmp_path, run, capsys):
    images = write_images(tmp_path/'images', 30, bad=[1, *range(12, 25)])
    out = tmp_path/'labels.csv'
    df = predict(run, images, out)
    bad = [f'f{i:02d}' for i in (1, *range(12, 25))]
    assert list(df.Id) == [f'f{i:02d}' for i in range(30) if f'f{i:02d}' not in bad]
    assert list(pd.read_csv(out).Id) == list(df.Id)
    assert list(pd.read_csv(tmp_path/'labels.errors.csv').Id) == bad
    printed = capsys.readouterr().out
    assert '14 of 30 images could not be read' in printed and '4 more' in printed
    assert printed.count('not a whole image') == 10
    assert names(tmp_path) == ['images', 'labels.csv', 'labels.errors.csv', 'labels.json']
    for i in bad: (images/f'{i}.npy').unlink()
    pd.testing.assert_frame_equal(predict(run, images, out)[['Id', 'Labels']], df[['Id', 'Labels']])
    assert names(tmp_path) == ['images', 'labels.csv', 'labels.json']

def test_strict_stops_at_the_first(tmp_path, run):
    images = write_images(tmp_path/'images', bad=(5,))
    with pytest.raises(DataError, match='f05.npy: not a whole image'):
        predict(run, images, tmp_path/'labels.csv', strict=True)
    assert not (tmp_path/'labels.csv').exists()

class Stopped(KeyboardInterrupt): pass

def stop_after(monkeypatch, k):
    "Let the networks predict `k` batches, and then press Ctrl-C; returns the sizes of the batches"
    asked, ask = [], Predictor._ask
    def _ask(self, prepared, n):
        if len(asked) == k: raise Stopped
        asked.append(len(prepared))
        return ask(self, prepared, n)
    monkeypatch.setattr(Predictor, '_ask', _ask)
    return asked

def test_a_stopped_prediction_goes_on(tmp_path, run, monkeypatch):
    images = write_images(tmp_path/'images', bad=(3,))
    predict(run, images, tmp_path/'whole.csv')
    out = tmp_path/'labels.csv'
    with monkeypatch.context() as m:
        stop_after(m, 3)
        with pytest.raises(Stopped): predict(run, images, out)
    assert not out.exists()
    asked = stop_after(monkeypatch, 99)
    predict(run, images, out)
    assert len(asked) == 2
    assert out.read_bytes() == (tmp_path/'whole.csv').read_bytes()
    assert (tmp_path/'labels.errors.csv').read_text() == (tmp_path/'whole.errors.csv').read_text()
    assert not [o for o in names(tmp_path) if o.startswith('.')]

@pytest.mark.parametrize('change', ['image', 'weights', 'views', 'batch'])
def test_another_prediction_starts_afresh(tmp_path, run, monkeypatch, change):
    images, out = write_images(tmp_path/'images'), tmp_path/'labels.csv'
    run = Path(shutil.copytree(run, tmp_path/'run'))
    with monkeypatch.context() as m:
        stop_after(m, 3)
        with pytest.raises(Stopped): predict(run, images, out)
    if change == 'image': np.save(images/'f00.npy', np.zeros((size, size, 4), np.uint8))
    if change == 'weights': os.utime(run/'fold0/model.safetensors', (1, 1))
    asked = stop_after(monkeypatch, 99)
    predict(run, images, out, n=4 if change == 'views' else None, bs=5 if change == 'batch' else None)
    assert sum(asked) == n and not [o for o in names(tmp_path) if o.startswith('.')]

def test_a_damaged_part_is_predicted_again(tmp_path, run, monkeypatch):
    images, out = write_images(tmp_path/'images'), tmp_path/'labels.csv'
    with monkeypatch.context() as m:
        stop_after(m, 4)
        with pytest.raises(Stopped): predict(run, images, out)
    parts = sorted((tmp_path/'.labels.csv.part').glob('*.parquet'))
    assert len(parts) == 4
    parts[0].write_bytes(b'')
    parts[1].write_bytes(parts[1].read_bytes()[:500])
    asked = stop_after(monkeypatch, 99)
    assert list(predict(run, images, out).Id) == [f'f{i:02d}' for i in range(n)]
    assert len(asked) == 3

slow = """import sys, time
from hpa_fastai.runs.predictor import Predictor
ask = Predictor._ask
def _ask(self, *args):
    time.sleep(float(sys.argv[4]))
    return ask(self, *args)
Predictor._ask = _ask
Predictor.load(sys.argv[1], 'cpu').predict_folder(sys.argv[2], sys.argv[3])"""

def start(run, images, out, seconds):
    args = [sys.executable, '-W', 'ignore', '-c', slow, run, images, out, seconds]
    return subprocess.Popen([str(o) for o in args], stdout=subprocess.DEVNULL)

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
def test_killed_and_started_twice_at_once(tmp_path, run):
    images, out = write_images(tmp_path/'images'), tmp_path/'labels.csv'
    predict(run, images, tmp_path/'whole.csv')
    p = start(run, images, out, .3)
    end = time.time() + 60
    while len(list(tmp_path.glob('.labels.csv.part/*.parquet'))) < 2 and time.time() < end: time.sleep(.01)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not out.exists()
    both = [start(run, images, out, 0) for _ in range(2)]
    assert [o.wait() for o in both] == [0, 0]
    assert out.read_bytes() == (tmp_path/'whole.csv').read_bytes()
    assert names(tmp_path) == ['images', 'labels.csv', 'labels.json', 'whole.csv', 'whole.json']

@pytest.mark.parametrize('where', ['os.fsync', '_finish'])
def test_killed_while_gaps_are_closed(tmp_path, monkeypatch, where):
    import hpa_fastai.images.pack as module
    images = write_images(tmp_path/'images', bad=(0, 4))
    expected = pack(images, tmp_path/'expected', strict=False)
    calls = []
    def stop(*args):
        calls.append(1)
        if where == '_finish' or len(calls) == 3: raise Stopped      # the first two are of the journal
    with monkeypatch.context() as m:
        m.setattr(module.os if where == 'os.fsync' else module, where.split('.')[-1], stop)
        with pytest.raises(Stopped): pack(images, tmp_path/'pack', strict=False)
    made = pack(images, tmp_path/'pack', strict=False)
    for o in ('pixels.npy', 'rows.npy'): assert (made.path/o).read_bytes() == (expected.path/o).read_bytes()
    assert not (tmp_path/'pack.part').exists()

# Sources that change

def test_changed_images_are_noticed(tmp_path):
    images = write_images(tmp_path/'images')
    pack(images, tmp_path/'pack').close()
    np.save(images/'f06.npy', np.zeros((size, size, 4), np.uint8))      # as long as before
    with pytest.raises(DataError) as e: pack(images, tmp_path/'pack')
    assert '1 of 10 samples have changed since' in str(e.value) and 'f06' in str(e.value)
    assert 'delete the pack and build it again' in str(e.value) and '\n' not in str(e.value)

def test_a_copy_with_other_times_is_the_same(tmp_path, monkeypatch):
    "Where only times differ the samples are compared, once"
    images = write_images(tmp_path/'images')
    before = pack(images, tmp_path/'pack')
    copy = tmp_path/'copy'
    shutil.copytree(images, copy, copy_function=shutil.copyfile)
    for o in copy.iterdir(): os.utime(o, (1, 1))
    assert pack(copy, tmp_path/'pack').ids == before.ids
    import hpa_fastai.images.pack as module
    def opened(*args): raise AssertionError('compared again')
    monkeypatch.setattr(module, '_load', opened)
    assert pack(copy, tmp_path/'pack').ids == before.ids

def test_sources_that_are_no_files_are_not_compared(tmp_path):
    imgs = {f'f{i}': np.full((size, size, 4), i, np.uint8) for i in range(3)}
    first = pack(imgs, tmp_path/'pack', reader=lambda o: o)
    assert names(first.path) == ['manifest.json', 'pixels.npy', 'rows.npy']
    imgs['f1'] = imgs['f1'] + 1
    assert pack(imgs, tmp_path/'pack', reader=lambda o: o).ids == first.ids

def test_a_resumed_build_packs_again_what_has_changed(tmp_path):
    images = write_images(tmp_path/'images', bad=(2,))
    with pytest.raises(DataError): pack(images, tmp_path/'pack')
    new = np.zeros((size, size, 4), np.uint8)
    for i in (2, 5): np.save(images/f'f{i:02d}.npy', new)
    made = pack(images, tmp_path/'pack')
    assert (made[5] == new).all() and (made[2] == new).all()
    assert names(tmp_path) == ['images', 'pack']

def test_a_pack_without_recorded_sources_is_opened(tmp_path):
    "As it was written before sources were recorded"
    from hpa_fastai.images.pack import _json_crc
    images = write_images(tmp_path/'images')
    made = pack(images, tmp_path/'pack')
    m = read_json(made.path/'manifest.json')
    for o in ('crc32', 'left_out', 'sources_crc32'): m.pop(o, None)
    m['files'] = {o: m['files'][o] for o in ('pixels.npy', 'rows.npy')}
    for o in made.path.iterdir():
        if o.name not in ('pixels.npy', 'rows.npy'): o.unlink()
    write_json(made.path/'manifest.json', m | dict(crc32=_json_crc(m)))
    np.save(images/'f06.npy', np.zeros((size, size, 4), np.uint8))
    assert pack(images, tmp_path/'pack').ids == made.ids
