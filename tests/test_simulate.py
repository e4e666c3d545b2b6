"""What the simulator promises, beyond its notebooks: any size, label set and seed; any number of workers; a fork after
OpenCV's threads."""
import hashlib, subprocess, sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from hpa_fastai.labels import CHANNELS, LABELS, DataError, encode_targets, read_labels
from hpa_fastai.simulate.cells import CELL_LINES
from hpa_fastai.simulate.layout import draw_layout
from hpa_fastai.simulate.patterns import PATTERNS, pattern, pattern_names
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_dataset, simulate_field
from hpa_fastai.simulate.stains import draw_stains

label_sets = st.lists(st.integers(0, 27), min_size=1, max_size=4, unique=True)

@settings(max_examples=60, deadline=None)
@given(labels=label_sets, size=st.integers(16, 300), seed=st.integers(0, 2**32), um=st.floats(.1, 1.5),
       site=st.sampled_from(['train', 'test']))
def test_any_field(labels, size, seed, um, site):
    f = simulate_field(labels, size, seed, um, site=site)
    assert f.image.shape == (size, size, 4) and f.image.dtype == np.uint8
    assert f.labels == tuple(sorted(labels)) == tuple(sorted(f.patterns))
    assert all(f.image[..., c].max() > 0 for c in (0, 1, 3)), 'a stain is all dark'
    assert f.nuclei.shape == f.cells.shape == (size, size) and f.cells.min() == 0 or f.cells.min() > 0
    assert (f.cells[f.nuclei > 0] == f.nuclei[f.nuclei > 0]).all()
    for a in f.patterns.values(): assert a.shape == (size, size) and np.isfinite(a).all() and a.min() >= 0

@pytest.mark.parametrize('label', range(28))
def test_the_pattern_is_in_green(label):
    "Green holds more light where the pattern's truth is, on the mean of a few fields"
    more = []
    for seed in range(4):
        f = simulate_field(label, 384, [seed, label])
        truth, green = f.patterns[label], f.image[..., 1].astype(float)
        assert truth.max() > .5, 'the label is not to be seen'
        more.append(green[truth > .5].mean()/max(green.mean(), 1e-6))
    assert np.mean(more) > 1.3

def test_same_seed_same_bytes():
    for site in ('train', 'test'):
        a, b = (simulate_field('0 25 7', 128, [3, 4], site=site) for _ in range(2))
        assert (a.image == b.image).all() and (a.cells == b.cells).all()
        assert all((a.patterns[k] == b.patterns[k]).all() for k in a.patterns)
    assert (simulate_field(0, 128, 1).image != simulate_field(0, 128, 2).image).any()

def test_threads_do_not_matter():
    before = cv2.getNumThreads()
    images = []
    for n in (0, 4):
        cv2.setNumThreads(n)
        images.append(simulate_field(23, 256, 5).image)
    cv2.setNumThreads(before)
    assert (images[0] == images[1]).all()

def _digest(folder):
    files = [o for o in sorted(folder.rglob('*')) if o.is_file()]
    return {str(o.relative_to(folder)): hashlib.sha1(o.read_bytes()).hexdigest() for o in files}

def test_dataset_is_the_same_with_any_number_of_workers(tmp_path):
    kw = dict(n=20, n_test=6, size=64, seed=7, progress=False)
    kw |= dict(near_duplicates=.2, label_noise=.2, missing=.2, masks=True)
    digests = [_digest(simulate_dataset(tmp_path/str(w), workers=w, **kw)) for w in (0, 1, 2, 3)]
    assert len(digests[0]) == 26*6 + 5 and all(o == digests[0] for o in digests)
    simulate_dataset(tmp_path/'0', workers=0, **kw) # over an old one
    assert _digest(tmp_path/'0') == digests[0]

def test_no_deadlock_after_opencv_threads(tmp_path):
    "A process forked while OpenCV holds threads must not wait for them"
    code = f'''
import cv2, numpy as np
from hpa_fastai.simulate.dataset import simulate_dataset
if __name__ == '__main__':
    a = np.random.randint(0, 255, (1500, 1500, 3), np.uint8)
    for _ in range(5):
        cv2.resize(a, (300, 300), interpolation=cv2.INTER_AREA)
        cv2.GaussianBlur(a, (0, 0), 3)
    simulate_dataset({str(tmp_path/'cells')!r}, n=16, n_test=0, size=32, workers=2, progress=False)
'''
    script = tmp_path/'run.py'
    script.write_text(code)
    subprocess.run([sys.executable, str(script)], check=True, timeout=120)
    assert len(read_labels(tmp_path/'cells/train.csv')) == 16

def test_balanced_and_real_frequencies():
    y = encode_targets(draw_label_sets(2000, 1, balanced=True)).sum(0)
    assert y.max() - y.min() <= 2
    assert encode_targets(draw_label_sets(2000, 1)).sum(0)[0] > 600
    assert draw_label_sets(50, 3) == draw_label_sets(50, 3)

def test_sites_differ():
    def mean(site): return np.mean([simulate_field(0, 128, s, site=site).image.mean() for s in range(30)])
    assert mean('test') < .95*mean('train') # the competition's test images are darker

def test_options():
    f = simulate_field('0 25', 96, 1, missing=('yellow', 'red'), bits=16)
    assert f.image.dtype == np.uint16 and not f.image[..., [0, 3]].any() and f.image[..., 1].max() > 255
    for line in CELL_LINES: assert simulate_field(0, 96, 1, line=line, n_cells=3).cells.max() > 0
    with pytest.raises(DataError, match='unknown label'): simulate_field(28, 64)
    with pytest.raises(DataError): simulate_field('', 64)

def test_divisions_and_neighbours_are_there():
    assert len(np.unique(simulate_field(16, 256, 0).nuclei)) > 2
    assert simulate_field(17, 256, 0).patterns[17].max() > .5
    assert simulate_field(22, 256, 0).patterns[22].max() > .5

def _layouts(n=4, **kw): return [draw_layout(384, .2, seed, line='spread', **kw) for seed in range(n)]

def test_aggresomes_displace_red_and_dent_the_nucleus():
    inside, beside = {c: [] for c in CHANNELS}, {c: [] for c in CHANNELS}
    for f in _layouts(aggresomes=1.):
        light = {**draw_stains(f), 'green': PATTERNS['Aggresome'].draw(f)}
        core, near = f.taken > .9, (f.taken == 0) & (f.cells > 0) & (f.rim < 4)
        assert not f.nuclei[core].any() and (f.cells[core] > 0).all()
        for c, a in light.items():
            inside[c].append(a[core].mean())
            beside[c].append(a[near].mean())
    i, b = ({c: np.mean(v) for c, v in o.items()} for o in (inside, beside))
    assert i['green'] > 3*b['green'] and i['red'] < .3*b['red'] and i['yellow'] < .3*b['yellow'] and i['blue'] == 0
    assert not any(len(f.blobs) for f in _layouts()) # no label, no aggresome

in_nucleus = ['Nucleoplasm', 'Nuclear membrane', 'Nucleoli', 'Nucleoli fibrillar center', 'Nuclear speckles',
              'Nuclear bodies']

@pytest.mark.parametrize('name', in_nucleus)
def test_dividing_cells_have_no_nucleus(name):
    "What was in it is all over the cell: less of the contrast that nuclei at rest show"
    calm, torn = [], []
    for f in _layouts(8, metaphase=1):
        a = PATTERNS[name].draw(f)
        rest, plate = (f.nuclei > 0) & (f.dividing == 0), (f.nuclei > 0) & (f.dividing > 0)
        around = (f.dividing > 0) & (f.cyto > 0)
        if rest.any(): calm.append(a[rest].mean()/(a[rest].mean() + a[(f.dividing == 0) & (f.cyto > 0)].mean()))
        torn.append(a[plate].mean()/(a[plate].mean() + a[around].mean()))
    assert np.mean(torn) < .6 < .75 < np.mean(calm)

def test_dividing_cells_have_two_poles_and_few_filaments():
    def mean(name, where): return np.mean([PATTERNS[name].draw(f)[where(f)].mean() for f in _layouts(6, metaphase=1)])
    def poles(f):
        out = np.zeros(f.cells.shape, np.uint8)
        for x,y in f.poles.reshape(-1, 2)/f.um: cv2.circle(out, (int(x), int(y)), 4, 1, -1)
        return out > 0
    def cell(f): return (f.dividing > 0) & (f.edge > 2) & ~poles(f)
    def others(f): return (f.cells > 0) & (f.dividing == 0) & (f.edge > 2)
    for name in ('Centrosome', 'Microtubule organizing center'): assert mean(name, poles) > 4*mean(name, cell), name
    def spindle(f): return (f.dividing > 0) & (f.taken > .5)
    assert mean('Microtubules', spindle) > mean('Microtubules', others) # green follows red into the spindle
    def taken(f): return (f.dividing > 0) & (f.taken > .9)
    def free(f): return (f.dividing > 0) & (f.taken == 0)
    for name in ('Peroxisomes', 'Lysosomes', 'Mitochondria', 'Golgi apparatus', 'Endoplasmic reticulum'):
        assert mean(name, taken) < .5*mean(name, free), name

def test_a_29th_pattern(tmp_path):
    "It has a number, occurs in balanced sets, and reaches a network's targets where `labels` says so"
    from hpa_fastai import rgby_dls
    @pattern('Halo')
    def halo(layout): return layout.cyto
    try:
        labels = pattern_names()
        folder = simulate_dataset(tmp_path/'cells', n=40, n_test=0, size=16, balanced=True, workers=0, progress=False)
        df = read_labels(folder/'train.csv', labels=labels)
        dls = rgby_dls(df, folder/'train', bs=4, labels=labels)
        assert dls.one_batch()[1].shape == (4, 29) and any('28' in o.split() for o in df.Target)
        with pytest.raises(DataError, match="unknown label '28'"): read_labels(folder/'train.csv')
        assert pattern_names()[28] == 'Halo' and simulate_field('0 28', 64).labels == (0, 28)
        assert set(' '.join(draw_label_sets(200, balanced=True)).split()) == {str(i) for i in range(29)}
    finally: del PATTERNS['Halo']
    assert pattern_names() == LABELS
