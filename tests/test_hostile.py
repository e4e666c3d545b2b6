"A stranger's run, recipe, ensemble or weights may not make the library connect, or open what lies elsewhere."
import json, os, shutil, socket, subprocess, sys, threading, urllib.request
from pathlib import Path
import numpy as np, pytest, torch, yaml
if sys.platform != 'linux': pytest.skip('knows the paths of Linux', allow_module_level=True)

import fuzz
from watch import watched
from hpa_fastai.labels import DataError
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.weights import read_weights, save_weights
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.recipes import load_recipe, Recipe
from hpa_fastai.runs.setup import check_network

@pytest.fixture(scope='module')
def server():
    "A loopback server: its address, and the connections that it has seen"
    seen, s = [], socket.create_server(('127.0.0.1', 0))
    def listen():
        while True:
            try: c, _ = s.accept()
            except OSError: return
            seen.append(c.recv(200))
            c.close()
    threading.Thread(target=listen, daemon=True).start()
    yield f'http://127.0.0.1:{s.getsockname()[1]}', seen
    s.close()

@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "Two small finished runs, their ensemble, and weights that lie elsewhere"
    from hpa_fastai.runs.combine import ensemble_runs
    from hpa_fastai.runs.crossval import cross_validate
    from hpa_fastai.simulate.dataset import simulate_dataset
    base = tmp_path_factory.mktemp('hostile')
    fuzz.set_up()
    simulate_dataset(base/'data', n=24, n_test=4, size=32, seed=0, balanced=True, workers=0, progress=False)
    for name, own in dict(a=dict(neighbours=fuzz.neighbours), b={}).items():
        recipe = Recipe.from_dict(fuzz.tiny | dict(body='test_resnet') | own)
        cross_validate(base/'data', base/'runs'/name, recipe, device='cpu', workers=0)
    ensemble_runs([base/'runs/a', base/'runs/b'], base/'runs/e')
    (base/'elsewhere').mkdir()
    (base/'elsewhere/secret.txt').write_text('a secret')
    save_weights(rgby_model('test_resnet', weights=None), base/'elsewhere/model.safetensors')
    torch.save(rgby_model('test_resnet', weights=None).state_dict(), base/'elsewhere/model.pth')
    return base

def hostile_args(base, url):
    "Arguments by which a network of timm's could be told to look elsewhere"
    file = str(base/'elsewhere/model.safetensors')
    return dict(
        pretrained=dict(pretrained=True),
        url=dict(pretrained=True, pretrained_cfg_overlay=dict(url=f'{url}/w.pth', hf_hub_id=None)),
        file=dict(pretrained=True, pretrained_cfg_overlay=dict(file=file)),
        hub=dict(pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id='a/b', source='hf-hub')),
        cfg=dict(pretrained=True, pretrained_cfg=dict(url=f'{url}/w.pth')),
        cfg_name=dict(pretrained=True, pretrained_cfg=file),
        state=dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict={})),
        overlay=dict(pretrained_cfg_overlay=dict(url=url)),
        checkpoint=dict(checkpoint_path=file), pth=dict(checkpoint_path=str(base/'elsewhere/model.pth')),
        cache=dict(pretrained=True, cache_dir=str(base/'elsewhere')), scriptable=dict(scriptable=True),
        jit=dict(exportable=True),
        features=dict(features_only=True), weights=dict(weights=f'{url}/w.pth'),
        weights_file=dict(weights=str(base/'elsewhere/secret.txt')))

bodies = ['hf-hub:x/y', 'hf_hub:x/y', 'local-dir:ELSEWHERE', 'URL/model', 'ELSEWHERE/model.safetensors',
          '../elsewhere',
          'test_resnet.r160_in1k', 'resnet18.a1_in1k', 'test_resnet.nothing', 'timm/resnet18']
names = list(hostile_args(Path('.'), ''))

def place(o, base, url): return o.replace('ELSEWHERE', str(base/'elsewhere')).replace('URL', url)

def try_all(calls, server, *folders):
    "Make calls that may fail by `DataError` only; nothing connects, runs, or opens a file outside of `folders`"
    before = len(server[1])
    with watched(*folders) as seen:
        for f in calls:
            try: f()
            except DataError: pass
    assert not seen, seen
    assert len(server[1]) == before, 'somebody connected'

def edited(base, tmp_path, name, file, change):
    "A copy of a run with a JSON file that was changed"
    run = shutil.copytree(base/'runs'/name, tmp_path/name)
    obj = json.loads((run/file).read_text())
    change(obj)
    (run/file).write_text(json.dumps(obj))
    return run

def predict(run): return lambda: Predictor.load(run, 'cpu').predict([np.zeros((32, 32, 4), np.uint8)])

@pytest.mark.parametrize('file', ['model.json', 'fold0/arcface/known.json'])
@pytest.mark.parametrize('name', names)
def test_a_run_with_other_arguments(base, server, tmp_path, file, name):
    args = hostile_args(base, server[0])[name]
    run = edited(base, tmp_path, 'a', file, lambda o: o['model'].update(args))
    try_all([predict(run), lambda: RunFolder(run).near('oof', RunFolder(run).ids)], server, tmp_path)

@pytest.mark.parametrize('file', ['model.json', 'fold0/arcface/known.json'])
@pytest.mark.parametrize('body', bodies)
def test_a_run_with_another_body(base, server, tmp_path, file, body):
    run = edited(base, tmp_path, 'a', file, lambda o: o['model'].update(body=place(body, base, server[0])))
    try_all([predict(run)], server, tmp_path)

@pytest.mark.parametrize('file', ['model.json', 'fold0/arcface/known.json'])
@pytest.mark.parametrize('weights', [None, 'imagenet'])
def test_a_run_that_asks_for_weights_of_the_hub(base, server, tmp_path, file, weights):
    "By the name, or by saying nothing, which means the same to `rgby_model`"
    def change(o):
        o['model'].pop('weights', None)
        if weights: o['model']['weights'] = weights
    try_all([predict(edited(base, tmp_path, 'a', file, change))], server, tmp_path)

@pytest.mark.parametrize('name', names)
def test_a_recipe_with_other_arguments(base, server, tmp_path, name):
    args = hostile_args(base, server[0])[name]
    own = dict(fuzz.tiny, body='test_resnet', model_args=args)
    (tmp_path/'r.yaml').write_text(yaml.safe_dump(own))
    def network(): return rgby_model('test_resnet',
                                     **dict(weights=None) | {k: v for k, v in args.items() if k != 'weights'})
    try_all([lambda: check_network(load_recipe(tmp_path/'r.yaml')), network], server, tmp_path)

@pytest.mark.parametrize('body', [o for o in bodies if 'resnet18' not in o])
def test_a_recipe_with_another_body(base, server, tmp_path, body):
    body = place(body, base, server[0])
    (tmp_path/'r.yaml').write_text(yaml.safe_dump(dict(fuzz.tiny, body=body)))
    try_all([lambda: check_network(load_recipe(tmp_path/'r.yaml')), lambda: rgby_model(body, weights=None)], server,
            tmp_path)

@pytest.mark.parametrize('runs', [['/etc'], ['/etc/passwd'], ['/proc/self/root/etc'], ['URL'], ['\\\\host\\share'],
                                  ['ELSEWHERE'],
                                  ['../../elsewhere'], ['.'], ['../e'], [''], ['ELSEWHERE/secret.txt'], ['/'],
                                  ['~'], ['$HOME']])
def test_an_ensemble_of_runs_elsewhere(base, server, tmp_path, runs):
    "Each of the places named holds no run, so that nothing in it is opened"
    shutil.copytree(base/'runs', tmp_path/'runs')
    shutil.copytree(base/'elsewhere', tmp_path/'elsewhere')
    run = tmp_path/'runs/e'
    config = json.loads((run/'ensemble.json').read_text())
    config['runs'] = [place(o, base, server[0]) for o in runs] + config['runs'][:1]
    (run/'ensemble.json').write_text(json.dumps(config))
    calls = [predict(run), lambda: RunFolder(run).members, lambda: RunFolder(run).near('oof', RunFolder(run).ids),
             lambda: RunFolder(run).images()]
    try_all(calls, server, tmp_path)

def test_links_that_lead_out_of_a_run(base, server, tmp_path):
    "What is linked is read as what it should be, and no further"
    for file in ('model.json', 'thresholds.json', 'weights.json', 'oof.csv', 'scores.json', 'oof.parquet',
                 'fold0/model.safetensors'):
        run = shutil.copytree(base/'runs/a', tmp_path/file.replace('/', '_'))
        (run/file).unlink()
        (run/file).symlink_to(base/'elsewhere/secret.txt')
        try_all([predict(run), lambda: RunFolder(run).interpret(), lambda: repr(RunFolder(run))], server, tmp_path,
                base)

empty_states = dict(nothing={}, none=None, wrapped=dict(state_dict={}), list=[], model=dict(model={}))

@pytest.mark.parametrize('name', empty_states)
def test_weights_that_hold_no_weights(server, tmp_path, name):
    "timm would get its own from the hub instead"
    torch.save(empty_states[name], tmp_path/'w.pth')
    try_all([lambda: rgby_model('test_resnet', weights=tmp_path/'w.pth')], server, tmp_path)

class Runs:
    def __init__(self, file): self.file = file
    def __reduce__(self): return Path.touch, (self.file,)

@pytest.mark.parametrize('zipped', [True, False])
def test_weights_that_run_code(server, tmp_path, zipped):
    torch.save(dict(a=Runs(tmp_path/'pwned')), tmp_path/'w.pth', _use_new_zipfile_serialization=zipped)
    try_all([lambda: read_weights(tmp_path/'w.pth'), lambda: rgby_model('test_resnet', weights=tmp_path/'w.pth')],
            server, tmp_path)
    assert not (tmp_path/'pwned').exists()

def test_the_watch_sees_what_it_should(tmp_path, server):
    "Files elsewhere, connections, and other processes"
    (tmp_path/'in').mkdir()
    (tmp_path/'out.txt').write_text('x')
    with watched(tmp_path/'in') as seen:
        (tmp_path/'out.txt').read_text()
        (tmp_path/'in/a').write_text('x')
        os.listdir(tmp_path)
        subprocess.run([sys.executable, '-c', ''])
        try: urllib.request.urlopen(f'{server[0]}/x', timeout=2)
        except OSError: pass
    for o in (f'reads {tmp_path}/out.txt', f'lists {tmp_path}', 'subprocess.Popen', 'socket.connect'):
        assert any(s.startswith(o) for s in seen), (o, seen)
    assert not any(f'{tmp_path}/in' in s for s in seen)
