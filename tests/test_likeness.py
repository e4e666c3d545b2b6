"""A run knows what it was trained on: it notes whether that was simulated, and says of new images whether they are
unlike it."""
import re, shutil
from functools import cache
import cv2, numpy as np, pandas as pd, pytest, torch

from hpa_fastai.labels import LABELS
from hpa_fastai.cli_predict import hpa_predict
from hpa_fastai.files import read_json, write_json
from hpa_fastai.images.samples import find_samples, open_rgby, resize_rgby
from hpa_fastai.data.likeness import describe_training
from hpa_fastai.runs.combine import ensemble_runs
from hpa_fastai.runs.crossval import cross_validate
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.recipes import load_recipe
from hpa_fastai.runs.report import write_report
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_dataset, simulate_field

torch.set_num_threads(1)

def toy(seed=0):
    recipe = load_recipe('demo').override(size=48, body='test_resnet', model_args={}, head='linear', bs=20)
    return recipe.override(epochs=1, folds=2, tta=1, thresholds='RatioRule', seed=seed)

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('sim')/'data'
    return simulate_dataset(out, n=80, n_test=12, size=64, balanced=True, workers=0, progress=False)

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    cross_validate(data, out, toy(), device='cpu', workers=0)
    return out

@pytest.fixture
def real(data, tmp_path):
    "The test images, darkened, in a folder that nobody has marked"
    out = tmp_path/'real'
    out.mkdir()
    for file in (data/'test').glob('*.png'): cv2.imwrite(str(out/file.name), cv2.imread(str(file), 0)//16)
    return out

def altered(run, to, change):
    "A copy of a run whose model.json is changed"
    shutil.copytree(run, to)
    config = read_json(to/'model.json')
    change(config)
    write_json(to/'model.json', config)
    return to

def predict(run, images, capsys, **kwargs):
    "The table of `predict_folder`, and what it prints"
    capsys.readouterr()
    df = Predictor.load(run, 'cpu').predict_folder(images, **kwargs)
    return df, '\n'.join(o for o in capsys.readouterr().out.splitlines() if '|' not in o)   # no progress bars

def test_a_run_notes_what_it_was_trained_on(run, data):
    trained_on = read_json(run/'model.json')['trained_on']
    assert trained_on['simulated'] and trained_on['images'] == 80 and trained_on['sizes'] == {'64 × 64': 80}
    assert read_json(data/'simulated.json')['seed'] == 0 and read_json(data/'simulated.json')['version']

def test_a_simulated_folder_of_another_version_goes_on(data):
    file = data/'simulated.json'
    before = read_json(file)
    write_json(file, before | dict(version='0.0.0'))
    simulate_dataset(data, n=80, n_test=12, size=64, balanced=True, workers=0, progress=False)
    write_json(file, before)

def test_unlike_images_are_called_so(run, real, capsys, tmp_path):
    df, said = predict(run, real, capsys, out=tmp_path/'labels.csv', bs=5)
    assert said.count('Careful') == 1 and 'simulated cells' in said and '12 of these 12 images are unlike' in said
    written = pd.read_csv(tmp_path/'labels.csv')
    assert list(written.columns) == ['Id', 'Labels', 'Flags', 'Unlike', *LABELS]
    assert written.Unlike.str.contains('darker').any()

def test_the_command_says_it(run, real, capsys, tmp_path):
    hpa_predict(run=str(run), images=str(real), out=str(tmp_path/'labels.csv'), device='cpu')
    assert "don't trust" in capsys.readouterr().out

def test_nothing_is_said_of_images_that_are_alike(run, data, capsys, tmp_path):
    df, said = predict(run, data/'test', capsys)
    assert 'simulated cells' not in said and (df.Unlike != '').sum() <= 1
    shutil.copytree(data/'test', tmp_path/'real')
    assert 'simulated cells' in predict(run, tmp_path/'real', capsys)[1]   # alike or not

def test_a_run_on_other_images_warns_of_unlike_ones_only(run, data, real, tmp_path, capsys):
    own = altered(run, tmp_path/'own', lambda o: o['trained_on'].update(simulated=False))
    said = predict(own, real, capsys)[1]
    assert '12 of these 12 images are unlike' in said and 'simulated' not in said
    shutil.copytree(data/'test', tmp_path/'alike')
    df, said = predict(own, tmp_path/'alike', capsys)
    assert ('Careful' in said) == (df.Unlike != '').any()

def test_an_old_run_predicts_and_says_once_that_it_does_not_know(run, real, tmp_path, capsys):
    old = altered(run, tmp_path/'old', lambda o: o.pop('trained_on'))
    df, said = predict(old, real, capsys, bs=5)
    assert 'has not noted what it was trained on' in said and said.count('noted') == 1 and 'Unlike' not in df
    assert df[list(LABELS)].equals(predict(run, real, capsys, bs=5)[0][list(LABELS)])
    assert 'simulated' not in re.sub('<pre>.*?</pre>', '', write_report(old).read_text(encoding='utf-8'), flags=re.S)

def test_a_wrong_note_is_one_line(run, tmp_path):
    def change(o): o['trained_on']['likeness']['quantiles'].popitem()
    with pytest.raises(Exception, match=r'^[^\n]*model.json: trained_on.likeness.quantiles[^\n]*$'):
        Predictor.load(altered(run, tmp_path/'wrong', change))

def test_a_list_and_arrays_are_what_they_were(run, capsys):
    imgs = [np.zeros((48, 48, 4), np.uint8)]
    predictor = Predictor.load(run, 'cpu')
    assert isinstance(predictor.predict(imgs)[0], list) and predictor.predict_probs(imgs).shape == (1, 28)
    assert not capsys.readouterr().out

def test_the_report_says_it(run):
    page = write_report(run).read_text(encoding='utf-8')
    assert re.search('<title>[^<]*simulated', page) and re.search('<h1>[^<]*simulated', page)
    assert '80 images of 64 × 64 pixels' in page.replace('\n', ' ')
    unlike = read_json(run/'scores.json')['test_unlike']
    assert unlike['images'] == 12 and f'{unlike["unlike"]} of the 12 test images' in page.replace('\n', ' ')

def test_an_ensemble_asks_each_of_its_runs(run, data, real, tmp_path, capsys):
    def know_nothing(o): o['trained_on'].update(simulated=False, likeness=None)
    other = altered(run, tmp_path/'other', know_nothing)
    ensemble_runs([run, other], tmp_path/'both')
    df, said = predict(tmp_path/'both', real, capsys)
    assert '12 of these 12 images are unlike' in said and 'simulated cells' in said and said.count('Careful') == 1
    assert (df.Unlike != '').all()
    page = write_report(tmp_path/'both').read_text(encoding='utf-8')
    assert re.search('<title>[^<]*simulated', page) and '12 test images' in page.replace('\n', ' ')

@cache
def fields(n, seed, size=64):
    sets = draw_label_sets(n, seed, balanced=True)
    return [simulate_field(o, size, [seed, i]).image for i, o in enumerate(sets)]

def share_unlike(trained_on, imgs): return np.mean([o != '' for o in trained_on.unlike(imgs)])

def shrunk(img): return cv2.resize(img, None, fx=.25, fy=.25, interpolation=cv2.INTER_AREA)

@pytest.mark.parametrize('n', (40, 120))
def test_other_images_of_the_same_kind_are_rarely_called_unlike(n):
    assert share_unlike(describe_training(fields(120, 0)[:n]), fields(60, 1)) <= .02

def test_a_failed_stain_now_and_then_does_not_hide_everything_else():
    imgs = np.array(fields(120, 0))
    for i in range(0, 120, 20): imgs[i, ..., i//20 % 4] = 0
    assert share_unlike(describe_training(imgs), [o//16 for o in fields(60, 1)]) == 1

@pytest.mark.parametrize('change', (
    lambda o: o//16, lambda o: 255 - o, lambda o: o[..., ::-1], lambda o: cv2.resize(shrunk(o), o.shape[:2]),
    lambda o: cv2.resize(o[16:48, 16:48], o.shape[:2])), ids='12 bits,inverted,permuted,blurred,enlarged'.split(','))
def test_other_kinds_are(change):
    assert share_unlike(describe_training(fields(120, 0)), [change(o) for o in fields(60, 1)]) > .9

def test_real_images_are_unlike_simulated_ones(shared):
    trained_on = describe_training(fields(120, 0, 128))
    for name in ('rgby_fields', 'mosaics'):
        folder = shared/'data/images'/name
        if not folder.exists(): pytest.skip(f'no {folder}')
        imgs = [resize_rgby(open_rgby(o), 128) for o in find_samples(folder).values()]
        assert share_unlike(trained_on, imgs) > .9
