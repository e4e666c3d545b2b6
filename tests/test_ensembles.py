"Ensembles: what must hold for any predictions, and what they are worth on real ones."
import sys
from importlib.util import find_spec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hpa_fastai.labels import DataError, encode_targets, read_labels
from hpa_fastai.files import write_json
from hpa_fastai.train.metrics import macro_f1, mean_average_precision
from hpa_fastai.decide.rules import MeanRule, Serializable, cross_decide
from hpa_fastai.decide.ensembles import ENSEMBLES, FITTED_ENSEMBLES, cross_predict, load_ensemble, make_ensemble
from hpa_fastai.decide.outcome import fit_ensemble_rule

FITTED = [o for o in FITTED_ENSEMBLES if o != 'boosting' or find_spec('lightgbm')]   # LightGBM is an extra

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
    other_images = make_ensemble(how).fit(probs[:, images], targs[images]).predict(probs[:, images])
    assert np.allclose(other_images, out[images], atol=1e-4)
    if how in ('climbing', 'boosting'): return   # of equal models or splits these take the first
    other_models = make_ensemble(how).fit(probs[models], targs).predict(probs[models])
    assert np.allclose(other_models, out, atol=1e-4)

@pytest.mark.parametrize('how', [*ENSEMBLES, *FITTED])
def test_copies_of_a_model_say_what_it_says(how):
    "Three copies of a model rank images as the model does"
    probs, targs = predictions(0, models=1)
    copies = np.repeat(probs, 3, 0)
    out = make_ensemble(how).fit(copies, targs).predict(copies)
    if how == 'boosting': return   # trees may rank anew
    for a, b in zip(out.T, probs[0].T): assert (np.argsort(a) == np.argsort(b)).all()

@pytest.mark.parametrize('how', [*ENSEMBLES, *FITTED])
def test_an_image_alone_and_among_others(how):
    "An image's answer does not depend on the images beside it"
    probs, targs = predictions(3)
    fitted = make_ensemble(how).fit(probs, targs)
    assert np.allclose(fitted.predict(probs[:, 5:6]), fitted.predict(probs)[5:6], atol=1e-12)

def test_without_lightgbm(monkeypatch):
    "One line says what to do"
    monkeypatch.setitem(sys.modules, 'lightgbm', None)
    with pytest.raises(DataError, match=r"pip install 'hpa_fastai\[stacking\]', or choose stacking"):
        make_ensemble('boosting').fit(*predictions(0))

@pytest.mark.parametrize('how', FITTED)
def test_label_without_positives(how):
    "A label that no image has, or every image, is no error"
    probs, targs = predictions(1)
    targs[:, 0], targs[:, 1] = False, True
    fitted = make_ensemble(how).fit(probs, targs)
    out = fitted.predict(probs)
    assert np.isfinite(out).all()
    assert (Serializable.from_dict(fitted.to_dict()).predict(probs) == out).all()

@pytest.mark.parametrize('trees', [
    {}, dict(trees='tree'), dict(trees=['tree']), dict(trees=[[[0, .5]], [['x', 1., 2., 3.]]])
], ids=['none', 'text', 'texts', 'name'])
def test_damaged_trees_are_refused(trees, tmp_path):
    "A file of boosting holds its trees as lists of numbers"
    write_json(tmp_path/'weights.json', dict(kind='Boosting', params={}, state=dict(weights=[.5, .5], **trees)))
    with pytest.raises(DataError, match='weights.json: not an ensemble'): load_ensemble(tmp_path/'weights.json')

def test_trees_need_no_lightgbm(monkeypatch):
    "Whoever only predicts can do without it"
    pytest.importorskip('lightgbm', reason='LightGBM is an extra')
    probs, targs = predictions(0)
    fitted = make_ensemble('boosting').fit(probs, targs)
    expected = fitted.predict(probs)
    monkeypatch.setitem(sys.modules, 'lightgbm', None)
    assert (Serializable.from_dict(fitted.to_dict()).predict(probs) == expected).all()

@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_not_finite(bad):
    probs, targs = predictions(2)
    probs[1, 7, 2] = bad
    for how in (*ENSEMBLES, *FITTED):
        with pytest.raises(DataError, match='model 1.*row 7'): make_ensemble(how).fit(probs, targs)

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
    def ap(how): return mean_average_precision(cross_predict(how, probs, targs, folds), targs)
    alone = max(mean_average_precision(o, targs) for o in probs)
    assert ap('weighted') > ap('mean') > alone + .01

def test_real_weights_and_thresholds_out_of_sample(real):
    "The whole chain, nested, beats the better network"
    probs, targs, folds = real
    def fit(p, t, f): return fit_ensemble_rule('weighted', 'MeanRule', p, t, f)
    decided = cross_decide(fit, probs.swapaxes(0, 1), targs, folds)
    alone = cross_decide(lambda p, t, f: MeanRule().fit(p, t), probs[0], targs, folds)
    assert macro_f1(decided, targs) > macro_f1(alone, targs)

def test_adapting_helps_where_it_may_be_judged(real):
    "Thresholds set for the half that is scored, from its unlabelled probabilities, against those of the other half"
    from hpa_fastai.decide.calibration import StackedRule
    from hpa_fastai.decide.shift import AdaptiveRule
    probs, targs, _ = real
    gains = []
    for p in (probs[0], probs[1]):
        rule = StackedRule().fit(p[::2], targs[::2])
        own, adapted = (macro_f1(o.predict(p[1::2]), targs[1::2]) for o in (rule, AdaptiveRule(rule)))
        gains.append(adapted - own)
    assert np.mean(gains) > -.003, gains
