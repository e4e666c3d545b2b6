"What `quality_flags` says of spoilt images, and what `ConformalSets` and MAPIE agree about"
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from hpa_fastai.data.quality import ADVICE, LIMITS, describe_flags, flags_of, measure_quality, quality_flags
from hpa_fastai.decide.conformal import ConformalSets, coverage
from hpa_fastai.simulate.dataset import simulate_field

shared = Path(os.environ.get('HPA_SHARED', Path(__file__).parents[2]/'shared'))

@pytest.fixture(scope='module')
def field(): return simulate_field('Nucleoplasm', 512, seed=3).image

@pytest.mark.parametrize('um', [None, .32, .3])
def test_a_good_field_has_no_flags(field, um): assert quality_flags(field, um, um) == []

@pytest.mark.parametrize('sigma', [1.5, 2, 4, 8])
def test_blur(field, sigma): assert 'out of focus' in quality_flags(cv2.GaussianBlur(field, None, sigma))

@pytest.mark.parametrize('k, name', enumerate(('red', 'green', 'blue', 'yellow')))
def test_a_black_stain_is_named(field, k, name):
    assert f'no {name}' in quality_flags(np.where(np.arange(4) == k, 0, field).astype(np.uint8))

def test_scale(field):
    fine = cv2.resize(field, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    assert 'scale?' in quality_flags(fine)   # nuclei of 40 µm
    assert quality_flags(fine, um=.08) == []
    assert 'scale?' in quality_flags(field, um=.32, trained_um=.6)

@pytest.mark.parametrize('shape', [(32, 32), (33, 47), (64, 700), (101, 90)])
def test_any_shape_and_any_content_gets_words(shape):
    rng = np.random.default_rng(0)
    line = np.eye(*shape)[..., None]*np.full(4, 200)
    for img in (np.zeros((*shape, 4)), np.full((*shape, 4), 255), rng.integers(0, 256, (*shape, 4)), line):
        flags = quality_flags(np.ascontiguousarray(img.astype(np.uint8)))
        assert flags and len(describe_flags(flags)) == len(flags) == len(set(flags))
        assert all(o in ADVICE for o in flags)

def test_views_of_an_array_are_read_like_copies(field):
    view = field[::-1, :, ::-1]
    assert measure_quality(view) == measure_quality(view.copy())

def test_real_fields():
    folder = shared/'data/images/rgby_fields'
    if not folder.exists(): pytest.skip('the shared real fields are not here')
    blue = sorted(folder.glob('*_blue.png'))[::6]
    stains = 'red', 'green', 'blue', 'yellow'
    def read(o): return np.dstack([cv2.imread(str(o).replace('_blue', f'_{c}'), 0) for c in stains])
    imgs = [read(o) for o in blue]
    assert np.mean([bool(quality_flags(o)) for o in imgs]) <= .25
    assert all(quality_flags(cv2.GaussianBlur(o, None, 2)) for o in imgs)
    assert np.mean([bool(quality_flags(o[..., [2, 1, 0, 3]])) for o in imgs]) >= .9

def test_limits_of_ones_own(field):
    measured = measure_quality(field)
    assert flags_of(measured) == [] and flags_of(measured, LIMITS | dict(sharp=9.)) == ['out of focus']

def predictions(n, seed):
    rng = np.random.default_rng(seed)
    targs = rng.random((n, 6)) < np.geomspace(.05, .5, 6)
    targs[:, 0] |= ~targs.any(1)
    return np.clip(.35*targs + .65*rng.random(targs.shape), 0, 1), targs

@pytest.mark.parametrize('keep', [.7, .9, .95])
def test_mapie_finds_the_same_threshold(keep):
    risk = pytest.importorskip('mapie.risk_control', reason='MAPIE is not installed')
    probs, targs = predictions(120, 0)
    # a label that no image has and that is always the most probable one: so all others can be lost, as in MAPIE
    probs, targs = np.c_[probs, np.ones(120)], np.c_[targs, np.zeros(120, bool)]
    ours = ConformalSets.fit(probs, targs, keep)
    grid = np.arange(0, 1, .01)
    theirs = risk.MultiLabelClassificationController(lambda x: x, risk='recall', method='crc', target_level=keep,
                                                     predict_params=grid)
    theirs.calibrate(probs, targs.astype(int))
    assert abs(ours.threshold - float(theirs.best_predict_param[0])) <= .011

def test_coverage_on_other_halves_of_real_predictions():
    folder = shared/'data/predictions'
    if not folder.exists(): pytest.skip('the shared predictions are not here')
    from hpa_fastai.labels import encode_targets, read_labels
    targs, probs = encode_targets(read_labels(folder/'val_ids.csv').Target), np.load(folder/'vgg16_224_val.npy')
    rng, found = np.random.default_rng(0), []
    for _ in range(10):
        a, b = np.split(rng.permutation(len(targs)), [len(targs)//2])
        found.append(coverage(ConformalSets.fit(probs[a], targs[a], .9).predict(probs[b]), targs[b]))
    assert abs(np.mean(found) - .9) < .01 and np.abs(np.array(found) - .9).max() < .02
