"Ensembles: what must hold for any predictions, and what they are worth on real ones."
import sys
from importlib.util import find_spec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hpa_fastai.runs.combine import fit_ensemble_rule
from hpa_fastai.decide.rules import cross_decide
from hpa_fastai.decide.ensembles import ENSEMBLES, FITTED_ENSEMBLES, cross_predict, make_ensemble
from hpa_fastai.labels import DataError, encode_targets, read_labels
from hpa_fastai.train.metrics import macro_f1, mean_average_precision
from hpa_fastai.decide.rules import MeanRule, Serializable

FITTED = [o for o in FITTED_ENSEMBLES if o != 'boosting' or find_spec('lightgbm')]      # LightGBM is an extra

def predictions(seed, models=3, n=80, labels=5):
    rng = np.random.default_rng(seed)
    targs = rng.random((n, labels)) < .3
    targs[0] = True
    return np.clip(.3*targs + .7*rng.random((models, n, labels)), .001, .999), targs

@pytest.mark.parametrize('how', [*ENSEMBLES, *FITTED])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_does_not_matter(how, seed):
    "Neither the order of the models nor that of the images changes an answer; answers lie between 0 and 1"
    probs, targs = predictions(seed)
    rng = np.random.default_rng(seed)
    models, images = rng.permutation(3), rng.permutation(80)
    out = make_ensemble(how).fit(probs, targs).predict(probs)
    assert out.shape == probs.shape[1:] and 0 <= out.min() and out.max() <= 1
    assert np.allclose(make_ensemble(how).fit(probs[models], targs).predict(probs[models]), out, atol=1e-4) or how in ('climbing', 'boosting')   # these take the first of equals
    assert np.allclose(make_ensemble(how).fit(probs[:, images], targs[images]).predict(probs[:, images]), out[images], atol=1e-4)

@pytest.mark.parametrize('how', [*ENSEMBLES, *FITTED])
def test_twins_say_what_one_says(how):
    "Three copies of a model rank images as the model does"
    probs, targs = predictions(0, models=1)
    out = make_ensemble(how).fit(np.repeat(probs, 3, 0), targs).predict(np.repeat(probs, 3, 0))
    for a, b in zip(out.T, probs[0].T): assert (np.argsort(a) == np.argsort(b)).all() or how == 'boosting'   # trees may rank anew

@pytest.mark.parametrize('how', [*ENSEMBLES, *FITTED])
def test_an_image_alone_and_among_others(how):
    "What is said of an image does not depend on the images beside it"
    probs, targs = predictions(3)
    fitted = make_ensemble(how).fit(probs, targs)
    assert np.allclose(fitted.predict(probs[:, 5:6]), fitted.predict(probs)[5:6], atol=1e-12)

def test_without_lightgbm(monkeypatch):
    "One line says what to do"
    monkeypatch.setitem(sys.modules, 'lightgbm', None)
    with pytest.raises(DataError, match=r"pip install 'hpa_fastai\[stacking\]', or choose stacking"): make_ensemble('boosting').fit(*predictions(0))

@pytest.mark.parametrize('how', FITTED)
def test_label_without_positives(how):
    "A label that nobody has, or everybody, is no error"
    probs, targs = predictions(1)
    targs[:, 0], targs[:, 1] = False, True
    out = make_ensemble(how).fit(probs, targs).predict(probs)
    assert np.isfinite(out).all()
    assert (Serializable.from_dict(make_ensemble(how).fit(probs, targs).to_dict()).predict(probs) == out).all()

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_not_finite(bad):
    probs, targs = predictions(2)
    probs[1, 7, 2] = bad
    for how in (*ENSEMBLES, *FITTED):
        with pytest.raises(DataError, match='model 1: row 7 is not finite'): make_ensemble(how).fit(probs, targs)

@pytest.fixture(scope='module')
def real(shared):
    folder = shared/'data/predictions'
    if not folder.exists(): pytest.skip(f'no real predictions in {folder}')
    targs = encode_targets(read_labels(folder/'val_ids.csv').Target)
    probs = np.stack([np.load(folder/f'{o}_val.npy', allow_pickle=False) for o in ('vgg16_224', 'resnet34_256')])
    return probs, targs, np.random.default_rng(0).integers(3, size=len(targs))

def test_real_weights_out_of_sample(real):
    "Weights that no scored image had a say in beat the mean, and the mean beats each network"
    probs, targs, folds = real
    ap = {how: mean_average_precision(cross_predict(how, probs, targs, folds), targs) for how in ('mean', 'weighted')}
    assert ap['weighted'] > ap['mean'] > max(mean_average_precision(o, targs) for o in probs) + .01

def test_real_weights_and_thresholds_out_of_sample(real):
    "The whole chain, nested, beats the better network"
    probs, targs, folds = real
    decided = cross_decide(lambda p, t, f: fit_ensemble_rule('weighted', 'MeanRule', p, t, f), probs.swapaxes(0, 1), targs, folds)
    alone = cross_decide(lambda p, t, f: MeanRule().fit(p, t), probs[0], targs, folds)
    assert macro_f1(decided, targs) > macro_f1(alone, targs)
