"Cells: against masks of a network, at the limits of what a field may be, and in jobs that are stopped."
import sys
from pathlib import Path
import cv2, numpy as np, pandas as pd, pytest, torch

from hpa_fastai.labels import CHANNELS, DataError
from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.images.cells import cell_places, find_cells, mask_scores
from hpa_fastai.images.samples import open_rgby
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.runs import cells as module
from hpa_fastai.runs.cells import cell_crops, predict_cells, predict_cells_folder
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.simulate.dataset import simulate_field

torch.set_num_threads(1)

def test_real_fields(shared):
    "Fields of 2021 against the masks that HPA-Cell-Segmentation draws: most cells are the same"
    folder = shared/'data/images/full_size_2021'
    masks = sorted(folder.glob('*_predictedmask.png'))
    if not masks: pytest.skip(f'no masks in {folder}')
    scores = []
    for file in masks:
        stem = str(file).removesuffix('_predictedmask.png')
        img = open_rgby({c: Path(f'{stem}_{c}.png') for c in CHANNELS})
        scores.append(mask_scores(find_cells(img, .08), cv2.imread(str(file), cv2.IMREAD_UNCHANGED)))
    assert np.mean([o['f1'] for o in scores]) > .85 and np.mean([o['iou'] for o in scores]) > .78

@pytest.mark.parametrize('shape', [(1, 1), (3, 200), (64, 5), (33, 70)])
@pytest.mark.parametrize('um', [.02, .32, 2])
def test_any_shape(shape, um):
    "Noise of any shape has a mask of its shape, with numbers from 1"
    img = np.random.default_rng(0).integers(0, 256, (*shape, 4), dtype=np.uint8)
    mask, nuclei = find_cells(img, um, nuclei=True)
    assert mask.shape == nuclei.shape == shape and mask.dtype == nuclei.dtype == np.int32
    assert {0, *np.unique(mask)} == set(range(mask.max() + 1))
    assert list(cell_places(mask, um).Cell) == list(range(1, mask.max() + 1))

@pytest.mark.parametrize('value', [0, 7, 255])
def test_plain_fields(value):
    "A field of one value has no cells"
    assert not find_cells(np.full((80, 80, 4), value, np.uint8), .32).any()

def test_each_cell_holds_its_nucleus():
    field = simulate_field([0], size=256, seed=[1, 2], line='island')
    cells, nuclei = find_cells(field.image, .32, nuclei=True)
    assert (cells[nuclei > 0] == nuclei[nuclei > 0]).all() and set(np.unique(cells)) == set(np.unique(nuclei))

def test_dimmer_field():
    "Half the light, the same cells"
    field = simulate_field([0], size=320, seed=[1, 3], line='spread')
    bright, dim = find_cells(field.image, .32), find_cells(field.image//2, .32)
    assert mask_scores(dim, bright)['f1'] > .9

class Known:
    "A predictor that counts what it is shown"
    size, bs, labels, runs, trained_um = 32, 4, ['a', 'b'], [], None
    def __init__(self, most=10**9): self.shown, self.most = 0, most
    def prepare(self, img): return img
    def embed(self, prepared): return np.ones((len(prepared), 3), np.float32)
    def decide(self, probs): return [['a'] for _ in probs]
    def predict_probs(self, imgs, n=None):
        self.shown += len(imgs)
        if self.shown > self.most: raise KeyboardInterrupt
        return np.tile([.75, .25], (len(imgs), 1))

@pytest.fixture
def folder(tmp_path):
    folder = tmp_path/'images'
    folder.mkdir()
    img = np.zeros((64, 64, 4), np.uint8)
    cv2.circle(img, (32, 32), 18, (200, 200, 0, 200), -1)
    blue = np.zeros((64, 64), np.uint8)
    img[..., 2] = cv2.circle(blue, (32, 32), 10, 200, -1)
    for k in range(10): np.save(folder/f'f{k}.npy', img)
    return folder

def known(folder, most=10**9):
    "A predictor of a run, so that a job can go on"
    predictor = Known(most)
    run = folder.parent/'run'
    run.mkdir(exist_ok=True)
    if not (run/'model.json').exists(): (run/'model.json').write_text('{}')
    predictor.runs = [run]
    return predictor

def test_goes_on(folder, tmp_path):
    "A stopped job does not label again what is kept, and leaves nothing behind at its end"
    out = tmp_path/'cells.csv'
    with pytest.raises(KeyboardInterrupt): predict_cells_folder(known(folder, most=9), folder, out, um=.5)
    assert not out.exists()
    again = known(folder)
    df = predict_cells_folder(again, folder, out, um=.5)
    assert again.shown == 2 and list(df.Id) == [f'f{k}' for k in range(10)] and (df.Cell == 1).all()
    assert {o.name for o in tmp_path.iterdir()} == {'cells.csv', 'cells.json', 'images', 'run'}

def test_other_options_begin_anew(folder, tmp_path):
    out = tmp_path/'cells.csv'
    with pytest.raises(KeyboardInterrupt): predict_cells_folder(known(folder, most=9), folder, out, um=.5)
    again = known(folder)
    predict_cells_folder(again, folder, out, um=.5, alone=False)
    assert again.shown == 10

def test_sizes_in_um(folder):
    "The same picture at half the magnification is four times the area"
    small, large = (predict_cells_folder(Known(), folder, um=o) for o in (.5, 1.))
    assert large.Area.mean()/small.Area.mean() == pytest.approx(4, rel=.2)
    radius = np.sqrt(small.Area.mean()/np.pi)
    assert radius == pytest.approx(9, rel=.15)

def test_unknown_scale(folder):
    with pytest.raises(DataError, match='give um='): predict_cells_folder(Known(), folder)

def test_nothing_but_the_cell():
    "Crops are wide enough, centred and black outside the cell, at the edge of the field too"
    mask = np.zeros((60, 60), np.int32)
    mask[:10, :10], mask[30:50, 20:40] = 1, 2
    img = np.full((60, 60, 4), 90, np.uint8)
    crops = cell_crops(img, mask, 1., 32, width=32)
    assert [int((o[..., 0] > 0).sum()) for o in crops] == [100, 400]
    ys, xs = np.nonzero(crops[1][..., 0])
    assert abs(ys.mean() - 15.5) <= .5 and abs(xs.mean() - 15.5) <= .5
    assert (cell_crops(img, mask, 1., 32, width=32, alone=False)[1] == 90).all()

def test_real_network():
    "Cells of a field, one by one or in batches"
    net = rgby_model('test_resnet', head='linear', weights=None).eval()
    rule = FixedRule(.5).fit(np.zeros((1, 28)), np.zeros((1, 28)))
    predictor = Predictor([net], rule, 32, [.1]*4, [.2]*4, device='cpu', views=dict(n=1))
    img = simulate_field([2], size=200, seed=[3, 3]).image
    a, b = (predict_cells(predictor, img, .32, bs=o).drop(columns='Labels').to_numpy(float) for o in (1, 50))
    assert a == pytest.approx(b, abs=.01)

def test_anndata(folder, tmp_path):
    "What scanpy's users get"
    anndata = pytest.importorskip('anndata')
    (folder/'f3.npy').write_bytes(b'')
    df = predict_cells_folder(known(folder), folder, tmp_path/'cells.h5ad', um=.5)
    found = anndata.read_h5ad(tmp_path/'cells.h5ad')
    assert found.shape == (9, 3) and list(found.obs.Id) == list(df.Id) and found.obs_names[0] == 'f0_1'
    assert found.obsm['probabilities'] == pytest.approx(np.tile([.75, .25], (9, 1)))
    assert found.obsm['spatial'] == pytest.approx(df[['X', 'Y']].to_numpy())
    assert list(found.uns['labels']) == ['a', 'b'] and found.uns['um'] == .5 and 'run' in found.uns['network']
    assert pd.read_csv(tmp_path/'cells.h5ad.errors.csv').Id.tolist() == ['f3']

def test_anndata_is_missing(folder, tmp_path, monkeypatch):
    "An error before anything is opened"
    monkeypatch.setitem(sys.modules, 'anndata', None)
    monkeypatch.setattr(module, 'find_samples', None)
    with pytest.raises(DataError, match=r'hpa_fastai\[anndata\]'):
        predict_cells_folder(Known(), folder, tmp_path/'cells.h5ad', um=.5)
