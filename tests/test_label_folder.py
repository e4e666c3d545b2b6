"""Labels without training: the network beside the package, scale and tiles, trust words, flags, the note beside the
result, a dry run, statistics of one's own images."""
import shutil
import cv2, numpy as np, pandas as pd, pytest, safetensors.torch, tifffile, torch

from hpa_fastai.labels import CHANNELS, DataError, LABELS
from hpa_fastai.cli_predict import hpa_predict
from hpa_fastai.files import read_json, write_json
from hpa_fastai.decide.conformal import ConformalSets
from hpa_fastai.decide.ensembles import make_ensemble
from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.decide.trust import measure_missing, measure_trust, TrustTable, WORDS
from hpa_fastai.explain.atypical import Atypical
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks
from hpa_fastai.runs import shipped
from hpa_fastai.runs.folder import write_ensemble_runs
from hpa_fastai.runs.networks import Networks
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.runs.scale import field_tiles, MOST_TILES

torch.set_num_threads(1)
size, um = 32, .4
rng = np.random.default_rng(0)
targs = rng.random((60, 28)) < .3
probs = (targs*.5 + rng.random((60, 28))*.5).clip(0, 1)

def make_network(folder, half=True, alter=None):
    "A tiny random network as it ships: half precision, thresholds, trust, conformal sets"
    torch.manual_seed(0)
    net = rgby_model('test_resnet', head='linear', weights=None).eval()
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in net.state_dict().items()}
    (folder/'fold0').mkdir(parents=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, folder/'fold0/model.safetensors')
    config = dict(format=1, model=net.config, size=size, mean=[.1]*4, std=[.2]*4, labels=list(LABELS), views=dict(n=1),
                  um_per_px=um)
    write_json(folder/'model.json', config | (alter or {}))
    record_networks(folder)
    FixedRule(.5).fit(np.zeros((1, 28)), np.zeros((1, 28))).save(folder/'thresholds.json')
    missing = {'yellow': {'Endoplasmic reticulum': [.61, .34], 'Nucleoplasm': [.8, .79]}}
    TrustTable(measure_trust(probs, targs, targs), '60 made-up images', missing).save(folder/'trust.json')
    ConformalSets.fit(probs, targs, keep=.9).save(folder/'conformal.json')
    return folder

@pytest.fixture(scope='module')
def network(tmp_path_factory): return make_network(tmp_path_factory.mktemp('network')/'simulated')

@pytest.fixture
def ships(network, monkeypatch):
    "Let the tiny network be the one that ships"
    monkeypatch.setattr(shipped, 'SHIPPED', network.parent)
    return network

def images(n=4, side=size, seed=0):
    rng = np.random.default_rng(seed)
    return [cv2.GaussianBlur(rng.integers(0, 256, (side, side, 4), np.uint8), (0, 0), 2)*2 for _ in range(n)]

def folder_of(path, imgs):
    path.mkdir()
    for k, img in enumerate(imgs): np.save(path/f'f{k:02}.npy', img)
    return path

@pytest.fixture
def folder(tmp_path): return folder_of(tmp_path/'images', images())

def printed(capsys): return '\n'.join(o for o in capsys.readouterr().out.splitlines() if '|' not in o)

# The network that ships

def test_it_is_found_by_its_name(ships, folder):
    predictor = Predictor.load('simulated', 'cpu')
    assert predictor.trained_um == um and predictor.runs == [ships] and predictor.beside.trust and predictor.beside.sets
    assert len(predictor.predict(images())) == 4

def test_half_precision_becomes_single(ships):
    stored = safetensors.torch.load_file(ships/'fold0/model.safetensors')
    for k, v in Predictor.load('simulated', 'cpu').models[0].state_dict().items():
        assert v.dtype == (torch.float32 if v.is_floating_point() else torch.int64)
        assert torch.equal(v, stored[k].to(v.dtype))

def test_a_folder_of_that_name_is_reached_by_its_path(ships, tmp_path, monkeypatch, capsys):
    mine = make_network(tmp_path/'simulated', half=False)
    monkeypatch.chdir(tmp_path)
    assert Predictor.load('simulated', 'cpu').runs == [ships] and 'give ./simulated' in printed(capsys)
    for o in ('./simulated', str(mine), mine):
        assert Predictor.load(o, 'cpu').runs[0].resolve() == mine.resolve() and not printed(capsys)

def test_without_it_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, 'SHIPPED', tmp_path)
    with pytest.raises(DataError, match='^simulated: this copy of hpa_fastai came without its network'):
        Predictor.load('simulated')

def test_it_is_packaged():
    text = (shipped.Path(__file__).resolve().parent.parent/'setup.py').read_text()
    assert "'assets/*/*/*'" in text     # assets/simulated/fold0/model.safetensors

# The command

def test_the_command_needs_no_run(ships, folder, tmp_path, capsys):
    hpa_predict(images=str(folder), out=str(tmp_path/'labels.csv'), device='cpu')
    said = printed(capsys)
    assert "network: 'simulated'" in said and '4 images labelled; of' in said
    assert said.count('µm per pixel unknown') == 1
    df = pd.read_csv(tmp_path/'labels.csv', keep_default_na=False)
    assert list(df.columns) == ['Id', 'Labels', 'Trust', 'Flags', *LABELS]
    for labels, words in zip(df.Labels, df.Trust):
        assert len(labels.split(';')) == len(words.split(';')) and set(words.split(';')) <= set(WORDS)

def test_the_note_says_what_was_assumed(ships, folder, tmp_path, capsys):
    def note(**kwargs):
        Predictor.load('simulated', 'cpu').predict_folder(folder, tmp_path/'labels.csv', **kwargs)
        return read_json(tmp_path/'labels.json')
    first, text = note(keep=.9), printed(capsys)
    assert note(keep=.9) == first
    assert first['options']['keep'] == .9 and first['network']['um_per_px'] == um and first['images']['labelled'] == 4
    assert all(o in text for o in first['said']) and any('planes without names' in o for o in first['said'])

def test_a_dry_run_labels_nothing(ships, folder, tmp_path, capsys):
    hpa_predict(images=str(folder), out=str(tmp_path/'labels.csv'), device='cpu', dry_run=True, um_per_px=.1)
    said = printed(capsys)
    assert 'nothing is labelled' in said and '32 × 32' in said
    assert sorted(o.name for o in tmp_path.iterdir()) == ['images', 'labels.png']
    assert cv2.imread(str(tmp_path/'labels.png')) is not None

def test_sets_that_keep_true_labels(ships, folder):
    predictor = Predictor.load('simulated', 'cpu')
    df = predictor.predict_folder(folder, keep=.9)
    sets = ConformalSets.load(ships/'conformal.json').predict(predictor.predict_probs(images()))
    assert [set(o.split(';')) for o in df.Kept] == [{LABELS[k] for k in np.flatnonzero(row)} for row in sets]
    with pytest.raises(DataError, match='fitted to keep 0.9'): predictor.predict_folder(folder, keep=.8)

@pytest.mark.parametrize('file', ['trust.json', 'conformal.json'])
def test_damaged_files_beside_the_network_are_one_line(tmp_path, file):
    mine = make_network(tmp_path/'mine')
    content = read_json(mine/file)
    write_json(mine/file, content | dict(surprise=1))
    with pytest.raises(DataError, match=rf'^[^\n]*{file}[^\n]*$'): Predictor.load(mine, 'cpu')

# Scale

def same_field(side, seed=3):
    "One field at a number of pixels"
    return cv2.resize(images(1, 256, seed)[0], (side, side), interpolation=cv2.INTER_AREA)

@pytest.mark.parametrize('side, pixel', [(96, um), (192, um/2)])
def test_a_pixel_of_another_size_changes_little(network, side, pixel):
    "The same field, coarse and fine, is cut into tiles of the same place and content"
    predictor = Predictor.load(network, 'cpu')
    whole = predictor.predict_probs([cv2.resize(same_field(192), (96, 96), interpolation=cv2.INTER_AREA)], um=um)
    assert len(predictor.prepare(same_field(side), pixel)) == len(predictor.prepare(same_field(48), 2*um))
    other = predictor.predict_probs([same_field(side)], um=pixel)
    assert np.abs(other - whole).max() < .03

def test_a_large_field_is_the_mean_of_its_tiles(network):
    predictor, field = Predictor.load(network, 'cpu'), images(1, 80)[0]
    parts = predictor.prepare(field, um)
    assert len(parts) == 9
    each = predictor.predict_probs(list(parts))
    np.testing.assert_allclose(predictor.predict_probs([field], um=um)[0], each.mean(0), atol=5e-3)

@pytest.mark.parametrize('shape', [(32, 64), (20, 32), (200, 30), (31, 33), (1, 500), (3000, 2000)])
def test_no_field_is_squeezed(shape):
    "A white disc stays a disc: as high as it is wide in each tile that holds all of it"
    img = np.zeros((*shape, 4), np.uint8)
    tiles = field_tiles(img, size, um, um)
    assert tiles.shape[1:] == (size, size, 4) and 1 <= len(tiles) <= MOST_TILES
    h, w = shape
    cv2.circle(view := np.zeros((h, w), np.uint8), (w//2, h//2), max(1, min(h, w, size)//5), 255, -1)
    img[...] = view[..., None]
    for o in field_tiles(img, size, um, um)[..., 0] > 127:
        rows, columns = np.flatnonzero(o.any(1)), np.flatnonzero(o.any(0))
        if not len(rows) or 0 in (rows[0], columns[0]) or size - 1 in (rows[-1], columns[-1]): continue
        assert abs(len(rows) - len(columns)) <= 2

def test_networks_without_a_scale_take_fields_whole(tmp_path):
    mine = make_network(tmp_path/'mine', alter=dict(um_per_px=None))
    predictor = Predictor.load(mine, 'cpu')
    assert predictor.prepare(images(1, 500)[0], um=.05).shape == (1, size, size, 4)

def test_the_scale_is_read_from_the_files(network, tmp_path, capsys):
    (tmp_path/'images').mkdir()
    planes = np.moveaxis(same_field(192), -1, 0)
    tifffile.imwrite(tmp_path/'images/a.ome.tif', planes, metadata=dict(
        axes='CYX', Channel=dict(Name=['tubulin', 'GFP', 'DAPI', 'Calnexin']),
        PhysicalSizeX=um/2, PhysicalSizeXUnit='µm', PhysicalSizeY=um/2, PhysicalSizeYUnit='µm'))
    predictor = Predictor.load(network, 'cpu')
    df = predictor.predict_folder(tmp_path/'images')
    assert f'brought to {um} µm per pixel' in printed(capsys)
    probs = predictor.predict_probs([same_field(192)], um=um/2)
    np.testing.assert_allclose(df[list(LABELS)].to_numpy(), probs, atol=1e-3)
    given = predictor.predict_folder(tmp_path/'images', um=um)
    assert not np.allclose(given[list(LABELS)], df[list(LABELS)], atol=1e-3)

def test_another_scale_is_another_job(network, folder, tmp_path, monkeypatch):
    predictor, out = Predictor.load(network, 'cpu'), tmp_path/'labels.csv'
    ask, asked = Networks._ask, []
    def _ask(self, prepared, n):
        if len(asked) == 1: raise KeyboardInterrupt
        asked.append(len(prepared))
        return ask(self, prepared, n)
    with monkeypatch.context() as m:
        m.setattr(Networks, '_ask', _ask)
        with pytest.raises(KeyboardInterrupt): predictor.predict_folder(folder, out, bs=2, um=.1)
    fresh = predictor.predict_folder(folder, bs=2, um=.4)
    pd.testing.assert_frame_equal(predictor.predict_folder(folder, out, bs=2, um=.4), fresh)
    with monkeypatch.context() as m:
        asked.clear()
        m.setattr(Networks, '_ask', _ask)
        with pytest.raises(KeyboardInterrupt): predictor.predict_folder(folder, out, bs=2, um=.2)
    asked.append(0)
    calls = []
    def counted(self, prepared, n): return calls.append(len(prepared)) or ask(self, prepared, n)
    monkeypatch.setattr(Networks, '_ask', counted)
    predictor.predict_folder(folder, out, bs=2, um=.2)
    assert calls == [2]     # the first batch was kept

# Missing stains

def test_a_missing_stain_and_what_it_costs(network, tmp_path, capsys):
    (tmp_path/'images').mkdir()
    for k, img in enumerate(images(2)):
        for c, name in enumerate(CHANNELS[:3]): cv2.imwrite(str(tmp_path/f'images/f{k}_{name}.png'), img[..., c])
    out = tmp_path/'labels.csv'
    Predictor.load(network, 'cpu').predict_folder(tmp_path/'images', out)
    said = printed(capsys)
    assert '2 of 2 images without yellow: Endoplasmic reticulum .61 → .34 (average precision on 60' in said
    assert read_json(tmp_path/'labels.json')['missing'] == dict(yellow=2)

def test_measuring_what_a_stain_costs(network):
    imgs = images(12)
    truth = np.zeros((12, 28), bool)
    truth[::2, :3] = truth[1::2, 3:5] = True
    found = measure_missing(Predictor.load(network, 'cpu').predict_probs, imgs, truth)
    assert set(found) == {'yellow', 'red', 'blue', 'red+yellow'} and set(found['red']) == set(LABELS[:5])
    assert all(0 <= v <= 1 for row in found.values() for pair in row.values() for v in pair)

# Statistics of one's own images

def test_adapting_is_deterministic_and_leaves_the_old_one(network, tmp_path):
    folder = folder_of(tmp_path/'many', images(20))
    predictor = Predictor.load(network, 'cpu')
    before = predictor.predict_folder(folder)
    first, second = (predictor.predict_folder(folder, adapt=.5) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(predictor.predict_folder(folder), before)
    columns = list(LABELS)
    assert np.abs(first[columns] - before[columns]).to_numpy().max() > 1e-3
    np.testing.assert_allclose(predictor.adapt(images(20), .5).predict_probs(images(20)), first[columns], atol=5e-3)

def test_adapting_to_a_few_images_is_left_out(network, folder, capsys):
    predictor = Predictor.load(network, 'cpu')
    before = predictor.predict_folder(folder)
    pd.testing.assert_frame_equal(predictor.predict_folder(folder, adapt=1.), before)
    assert '4 images are too few' in printed(capsys)

# Trust

def test_too_few_images_are_never_trusted():
    few = np.zeros((40, 28), bool)
    few[:4, 0] = few[4:12, 1] = True
    words = dict(zip(LABELS, measure_trust(few*.9 + .05, few, few).word))
    assert words[LABELS[0]] == 'look twice' and words[LABELS[1]] == 'trust' and words[LABELS[2]] == "don't"

def test_words_are_lowered_where_no_label_reached_its_threshold(tmp_path, folder):
    mine = make_network(tmp_path/'mine')
    FixedRule(.999).fit(np.zeros((1, 28)), np.zeros((1, 28))).save(mine/'thresholds.json')
    df = Predictor.load(mine, 'cpu').predict_folder(folder)
    assert set(df.Trust) <= {'look twice', "don't"}

# Unusual images, and ensembles

def test_unusual_images_are_flagged(tmp_path):
    mine = make_network(tmp_path/'mine')
    predictor = Predictor.load(mine, 'cpu')
    usual = predictor.embed([predictor.prepare(o) for o in images(40, seed=1)])
    Atypical.fit(usual, quantile=.9).save(mine/'atypical.npz')
    odd = [np.zeros((size, size, 4), np.uint8), np.full((size, size, 4), 250, np.uint8)]
    folder = folder_of(tmp_path/'images', images(8, seed=2) + odd)
    df = Predictor.load(mine, 'cpu').predict_folder(folder)
    assert list(df.Flags[8:]) == ['atypical']*2 and (df.Flags[:8] == 'atypical').sum() <= 3
    assert not df.Trust[8:].str.split(';').explode().eq('trust').any()

def test_an_ensemble_has_scale_trust_and_a_look(tmp_path, folder):
    for name in 'ab': make_network(tmp_path/name)
    write_ensemble_runs(tmp_path/'both', 'mean', [tmp_path/'a', tmp_path/'b'])
    make_ensemble('mean').save(tmp_path/'both/weights.json')
    for o in ('thresholds.json', 'trust.json'): shutil.copy(tmp_path/'a'/o, tmp_path/'both'/o)
    both, one = (Predictor.load(tmp_path/o, 'cpu') for o in ('both', 'a'))
    large = folder_of(tmp_path/'large', images(2, 80))
    pd.testing.assert_frame_equal(both.predict_folder(large, um=um), one.predict_folder(large, um=um), atol=2e-3)
    assert list(both.look_at_folder(large, um=um).tiles) == [9, 9]
    many = images(16)
    assert np.abs(both.adapt(many).predict_probs(many) - both.predict_probs(many)).max() > 1e-3
