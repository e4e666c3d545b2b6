"A bundle gives the run's probabilities with PyTorch, and with NumPy and onnxruntime alone; a changed one is refused."
import hashlib, json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch

ort = pytest.importorskip('onnxruntime')

from hpa_fastai.labels import DataError, LABELS
from hpa_fastai.choices import read_yaml
from hpa_fastai.files import read_json, write_json
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks, save_config
from hpa_fastai.models.weights import save_weights
from hpa_fastai.decide.calibration import CalibratedRule
from hpa_fastai.decide.ensembles import make_ensemble
from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.runs.bioimageio import write_rdf
from hpa_fastai.runs.bundle import write_bundle
from hpa_fastai.runs.folder import write_ensemble_runs
from hpa_fastai.runs.onnx import OnnxPredictor, read_bundle
from hpa_fastai.runs.predictor import Predictor

rng = np.random.default_rng(0)
probs = rng.random((200, 28))
targs = probs + rng.normal(0, .2, probs.shape) > .7
shapes = [(64, 64), (100, 70), (40, 40), (128, 128)]
images = [np.cumsum(rng.integers(-3, 4, (*o, 4)), 0).clip(0, 255).astype(np.uint8) + 20 for o in shapes]

def make_run(run, size=64, folds=2, rule=None, ensemble=None, **kwargs):
    torch.manual_seed(0)
    for k in range(folds):
        net = rgby_model('test_resnet', head='linear', image_norm='sqrt', weights=None).eval()
        save_weights(net, run/f'fold{k}/model.safetensors')
    save_config(run, net.config, size, [.1]*4, [.2]*4, **kwargs)
    record_networks(run)
    (rule or FixedRule(.5)).fit(probs, targs).save(run/'thresholds.json')
    if ensemble: ensemble.save(run/'weights.json')
    return run

@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    at = tmp_path_factory.mktemp('bundle')
    run = make_run(at/'run', rule=CalibratedRule(), ensemble=make_ensemble('vote'), um_per_px=.3, licence='MIT')
    write_bundle(run, at/'mine')
    return at/'mine'

def same(bundle, **kwargs):
    "Do PyTorch and onnxruntime agree about a bundle? Its `OnnxPredictor`"
    full, alone = Predictor.load(bundle, 'cpu', fp32=True), OnnxPredictor(bundle, threads=1)
    a, b = full.predict_probs(images, **kwargs), alone.predict_probs(images, **kwargs)
    assert a.shape == (len(images), 28) and np.abs(a - b).max() < 1e-4 and np.ptp(a, 0).max() > 1e-3
    assert full.predict(images, **kwargs) == alone.predict(images, **kwargs)
    return alone

def test_a_folder_in_place_of_networks(bundle, tmp_path):
    runs = [make_run(tmp_path/f'run{k}') for k in range(2)]
    write_ensemble_runs(tmp_path/'ensemble', 'mean', runs)
    make_ensemble('mean').save(tmp_path/'ensemble/weights.json')
    FixedRule(.5).fit(probs, targs).save(tmp_path/'ensemble/thresholds.json')
    for folder in bundle, str(bundle), runs[0], tmp_path/'ensemble', 'simulated':
        opened, loaded = Predictor(folder, 'cpu', fp32=True), Predictor.load(folder, 'cpu', fp32=True)
        assert type(opened) is type(loaded) and opened.labels == loaded.labels
        assert (opened.predict_probs(images[:1]) == loaded.predict_probs(images[:1])).all()
    with pytest.raises(DataError, match='no_such'): Predictor(tmp_path/'no_such')

def test_the_same_as_the_run(bundle):
    wanted = Predictor.load(bundle.parent/'run', 'cpu', fp32=True).predict_probs(images)
    assert np.abs(same(bundle).predict_probs(images) - wanted).max() < 1e-4

def test_any_number_of_images_of_any_size(bundle):
    session = OnnxPredictor(bundle).session
    for img in images:
        one = session.run(None, dict(image=img[None]))[0]
        five = session.run(['probabilities'], dict(image=np.stack([img]*5)))[0]
        assert one.shape == (1, 28) and five.shape == (5, 28) and np.abs(five - one).max() < 1e-6

def test_tiles_need_a_mean(bundle, tmp_path):
    with pytest.raises(DataError, match='by PyTorch only'): OnnxPredictor(bundle).predict(images[3:], um=.3)
    write_bundle(make_run(tmp_path/'run', um_per_px=.3, views=dict(n=4, reduce='max')), tmp_path/'mean')
    same(tmp_path/'mean', um=.3)
    same(tmp_path/'mean', um=.1)

def test_ensemble_of_two_sizes(tmp_path):
    runs = [make_run(tmp_path/'a'), make_run(tmp_path/'b', 48, 1, views=dict(n=1))]
    write_ensemble_runs(tmp_path/'both', 'stacking', runs)
    make_ensemble('stacking').fit(np.stack([probs, probs**2]), targs).save(tmp_path/'both/weights.json')
    FixedRule(.4).fit(probs, targs).save(tmp_path/'both/thresholds.json')
    about = write_bundle(tmp_path/'both', tmp_path/'bundle')
    for o in runs: shutil.rmtree(o)     # the bundle is whole
    same(tmp_path/'bundle')
    assert sum(o.endswith('model.safetensors') for o in about['files']) == 3 and not about['tiles']

def test_says_what_it_is(bundle):
    about, card = read_bundle(bundle), (bundle/'README.md').read_text(encoding='utf-8')
    assert about['labels'] == list(LABELS) and about['channels'] == ['red', 'green', 'blue', 'yellow']
    assert (about['size'], about['um_per_px'], about['views']) == (64, .3, [8])
    assert about['onnx']['largest_difference'] < 1e-4
    assert all(o in card for o in ('CC BY-SA', 'Weights: MIT', 'Nobody has measured', 'Where not to believe it'))

changes = {
    'fold0/model.safetensors: not the file': lambda o: (o/'fold0/model.safetensors').write_bytes(b'other'),
    'thresholds.json: not the file': lambda o: (o/'thresholds.json').write_text('{}'),
    'model.onnx: missing': lambda o: (o/'model.onnx').unlink(),
    'trust.json: no file of this bundle': lambda o: (o/'trust.json').write_text('{}'),
    'a link': lambda o: (o/'fold9').symlink_to(o/'fold0'),
    'bundle.json: files is': lambda o: change(o, files={'../run/model.json': '0'*64}),
    'bundle.json: format is': lambda o: change(o, format=True),
    'bundle.json: not readable': lambda o: (o/'bundle.json').write_bytes(b'\xff[')}

def change(bundle, **kwargs): write_json(bundle/'bundle.json', read_json(bundle/'bundle.json') | kwargs)

@pytest.mark.parametrize('text', changes)
def test_tampered(bundle, tmp_path, text):
    copy = tmp_path/'copy'
    shutil.copytree(bundle, copy)
    changes[text](copy)
    for load in (OnnxPredictor, Predictor.load):
        with pytest.raises(DataError, match=text): load(copy)

def test_a_lone_ensemble_stays_inside(bundle, tmp_path):
    copy = tmp_path/'copy'
    shutil.copytree(bundle, copy)
    write_json(copy/'ensemble.json', dict(format=2, how='mean', runs=[str(bundle.parent/'run')]))
    digest = hashlib.sha256((copy/'ensemble.json').read_bytes()).hexdigest()
    change(copy, files=read_json(copy/'bundle.json')['files'] | {'ensemble.json': digest})
    with pytest.raises(DataError, match='names runs outside of the bundle'): Predictor.load(copy)

def test_nothing_is_left_of_a_bundle_that_differs(tmp_path, monkeypatch):
    import hpa_fastai.runs.bundle as module
    def fail(*args): raise DataError('ONNX and PyTorch differ')
    monkeypatch.setattr(module, 'compare_graph', fail)
    run = make_run(tmp_path/'run', folds=1)
    with pytest.raises(DataError, match='differ'): write_bundle(run, tmp_path/'new')
    assert [o.name for o in tmp_path.iterdir()] == ['run']

@pytest.fixture(scope='module')
def zoo(tmp_path_factory):
    at = tmp_path_factory.mktemp('zoo')
    write_bundle(make_run(at/'run', folds=1, licence='CC BY-SA 4.0'), at/'zoo', also=write_rdf)
    return at/'zoo'

def files_of(o):
    "All files that a description names, with their checksums"
    if isinstance(o, dict) and 'source' in o: yield o['source'], o['sha256']
    for v in o.values() if isinstance(o, dict) else o if isinstance(o, list) else (): yield from files_of(v)

def test_bioimageio_names_its_files(zoo):
    rdf, about = read_yaml((zoo/'rdf.yaml').read_text(encoding='utf-8'), 'rdf.yaml'), read_bundle(zoo)
    named = dict(files_of(rdf))
    assert set(named) == {'model.onnx', 'README.md', 'cover.png', 'test_image.npy', 'test_probabilities.npy',
                          'thresholds.json'}
    for o, digest in named.items():
        assert hashlib.sha256((zoo/o).read_bytes()).hexdigest() == digest == about['files'][o]
    assert set(about['files']) - set(named) == {'rdf.yaml', 'model.json', 'fold0/model.safetensors'}
    assert rdf['license'] == 'CC-BY-SA-4.0' and rdf['format_version'].startswith('0.5.')

def test_bioimageio_test_tensors(zoo):
    rdf = read_yaml((zoo/'rdf.yaml').read_text(encoding='utf-8'), 'rdf.yaml')
    (given,), (wanted,) = rdf['inputs'], rdf['outputs']
    image, probs = (np.load(zoo/o['test_tensor']['source']) for o in (given, wanted))
    session = ort.InferenceSession(zoo/rdf['weights']['onnx']['source'], providers=['CPUExecutionProvider'])
    assert [o.name for o in session.get_inputs()] == [given['id']]
    assert [o.name for o in session.get_outputs()] == [wanted['id']]
    assert np.abs(session.run(None, {given['id']: image})[0] - probs).max() < 1e-4 and np.ptp(probs) > 1e-3
    assert (str(image.dtype), str(probs.dtype)) == (given['data']['type'], wanted['data']['type'])
    batch, *sides, stains = given['axes']
    assert [o['type'] for o in given['axes']] == ['batch', 'space', 'space', 'channel']
    assert all(n >= o['size']['min'] for n, o in zip(image.shape[1:], sides))
    assert len(stains['channel_names']) == image.shape[-1]
    least = np.zeros((2, *(o['size']['min'] for o in sides), 4), np.uint8)
    assert session.run(None, {given['id']: least})[0].shape == (2, len(wanted['axes'][1]['channel_names']))

def test_bioimageio_accepts_it(zoo):
    spec = pytest.importorskip('bioimageio.spec', reason='bioimageio.spec, which validates, isn\'t installed')
    with spec.ValidationContext(root=zoo, perform_io_checks=True):
        summary = spec.load_description(zoo/'rdf.yaml').validation_summary
    if 'package_file_descr_serializer' in summary.format():
        pytest.skip("this bioimageio.spec can't work with this pydantic")
    assert summary.status in ('valid-format', 'passed'), summary.format()

alone = """
import sys
from pathlib import Path

class Blocked:
    "Of all that is installed, NumPy and onnxruntime alone (and what that needs) can be found"
    def find_spec(self, name, path=None, target=None):
        first = name.partition('.')[0]
        if first in sys.stdlib_module_names or first in ALLOWED: return None
        raise ModuleNotFoundError(f'{name} is blocked', name=name)
ALLOWED = {'numpy', 'onnxruntime', 'hpa_fastai', 'flatbuffers', 'google', 'packaging', 'coloredlogs', 'humanfriendly',
           'sympy', 'mpmath'}
sys.meta_path.insert(0, Blocked())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ('torch', 'fastai') else real(name, package)

import json
import numpy as np
from hpa_fastai import Predictor
predictor = Predictor(sys.argv[1])
images = [np.load(o) for o in sorted(Path(sys.argv[2]).glob('*.npy'))]
said = dict(probs=predictor.predict_probs(images).tolist(), labels=predictor.predict(images),
            names=predictor.labels, thresholds=predictor.thresholds.tolist(), kind=type(predictor).__name__)
said['loaded'] = [o for o in ('torch', 'fastai', 'pandas', 'cv2', 'scipy', 'fastcore', 'pydantic') if o in sys.modules]
print(json.dumps(said))
"""

def test_numpy_and_onnxruntime_alone(bundle, tmp_path):
    for i, o in enumerate(images): np.save(tmp_path/f'{i}.npy', o)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, '-c', alone, bundle, tmp_path], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(root)})
    assert not done.returncode, done.stderr
    said, full = json.loads(done.stdout), Predictor.load(bundle, 'cpu', fp32=True)
    assert said['kind'] == 'OnnxPredictor' and said['loaded'] == []
    assert np.abs(np.array(said['probs']) - full.predict_probs(images)).max() < 1e-4
    assert said['labels'] == full.predict(images) and said['names'] == full.labels
    assert said['thresholds'] == full.decider.rule.thresholds.tolist()
