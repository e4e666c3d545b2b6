"Real fields in fifty forms: each gives the images that the original PNGs give, or a message that says what to do."
import os, pickle
from pathlib import Path
import numpy as np, pytest, tifffile
from inputs import EXPECTED, field_of, KINDS, LOSS, planes, save, stack, UM, zarr_image, SAME
from hpa_fastai.images.samples import find_samples, open_rgby, pixel_size
from hpa_fastai.images.scale import rescale
from hpa_fastai.labels import CHANNELS, DataError

shared = Path(os.environ.get('HPA_SHARED', Path(__file__).resolve().parents[2]/'shared'))/'data/images/rgby_fields'

@pytest.fixture(scope='module')
def fields():
    "Two real fields, or simulated ones where there are no real ones"
    if not shared.exists():
        from hpa_fastai.simulate.dataset import simulate_field
        return {f'field{k}': simulate_field([o], size=256, seed=k, um_per_px=UM).image for k, o in enumerate((7, 12))}
    found = find_samples(shared)
    return {i: open_rgby(found[i]) for i in list(found)[:2]}

extras = dict(ome_zarr='zarr', ome_zarr_stack='zarr', czi='pylibCZIrw', lif='liffile')

@pytest.mark.parametrize('kind', KINDS)
def test_same_image(kind, fields, tmp_path):
    if kind in extras: pytest.importorskip(extras[kind])
    kwargs = KINDS[kind](fields, tmp_path)
    samples = pickle.loads(pickle.dumps(find_samples(tmp_path, **kwargs)))
    assert len(samples) == (1 if kind == 'field_of_3072' else len(fields))
    for sid, source in samples.items():
        img = EXPECTED[kind](fields[field_of(sid, fields)])
        got = rescale(open_rgby(source), pixel_size(source), UM)
        assert got.shape == img.shape and got.dtype == np.uint8
        lacks = [c for k, c in enumerate(CHANNELS) if not img[..., k].any()]
        assert samples.missing.get(sid, []) == lacks
        if LOSS[kind] is not None: assert np.abs(got.astype(int) - img).mean() <= LOSS[kind]
        else:
            for a, b in zip(np.moveaxis(got, -1, 0), np.moveaxis(img, -1, 0)):
                assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > .9

def test_there_are_thirty(): assert len(KINDS) >= 30

def test_exact_kinds(fields, tmp_path):
    "Eight bits in lossless files come back exactly"
    for kind in ('png', 'npy', 'ome_zcyx', 'slices_in_files', 'rgb_and_yellow', 'imagej', 'interleaved',
                 'folder_per_sample'):
        (tmp_path/kind).mkdir()
        samples = find_samples(tmp_path/kind, **KINDS[kind](fields, tmp_path/kind))
        for sid, source in samples.items(): assert np.array_equal(open_rgby(source), fields[field_of(sid, fields)])

small = {i: np.random.default_rng(k).integers(0, 256, (24, 20, 4)).astype(np.uint8) for k, i in enumerate('ab')}

def message(f, *args, **kwargs):
    "What a call is refused with: one line"
    with pytest.raises(DataError) as e: f(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)

asks = {   # What a folder needs that does not say enough, and what the message says
    'tif_of_dyes': "say what they are, as channels='red=Cy5'", 'metaxpress': 'names end with w1, w2, w3, w4: say which',
    'harmony': 'say which is which', 'leica_export': 'names end with ch00, ch01, ch02, ch03: say',
    'missing_red': 'red=none', 'folder_per_stain_numbered': "or say: channels='red=",
    'ome_of_dyes': 'which is red? Its 4 planes are called',
    'imagej_stack': 'with several images in one', 'nucleus_and_protein': 'red=none'}

@pytest.mark.parametrize('kind', asks)
def test_what_is_not_said_is_asked(kind, tmp_path):
    KINDS[kind](small, tmp_path)
    assert asks[kind] in message(find_samples, tmp_path)

def test_assumptions_are_said_once_and_kept(tmp_path, capsys):
    KINDS['ome_in_folders'](small, tmp_path)
    KINDS['ome_zcyx'](small, tmp_path/'z')
    for folder in (tmp_path/'z', tmp_path/'z'):
        samples = find_samples(folder)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == len(set(printed))
        for o in printed: assert o.partition(': ')[2] in samples.assumed
    assert any('maximum projection' in o for o in samples.assumed)
    assert any(o.startswith('by the names of planes, ') and 'blue is Hoechst 33342' in o for o in samples.assumed)

def test_sizes(tmp_path, capsys):
    "From the files, unless you say it; a screen's resolution is not believed"
    KINDS['finer_by_resolution'](small, tmp_path)
    assert {o.um for o in find_samples(tmp_path).values()} == {.16}
    assert '0.16 µm per pixel, as the files say; um= changes that' in capsys.readouterr().out
    assert {o.um for o in find_samples(tmp_path, um=.3).values()} == {.3}
    assert '0.3 µm per pixel, as you say, although the files say 0.16' in capsys.readouterr().out
    for o in tmp_path.iterdir(): save(o, small['a'][..., 0], resolution=(72, 72), resolutionunit='INCH')
    samples = find_samples(tmp_path)
    assert isinstance(samples['a'], dict) and pixel_size(samples['a']) is None and not capsys.readouterr().out
    for um in (0, -1, 300, 'wide'): assert 'give µm per pixel' in message(find_samples, tmp_path, um=um)

def test_ranges(tmp_path):
    "By folder dim images stay dim; by plate and by file they don't"
    for k, i in ((1, 'P1_a'), (1, 'P1_b'), (4, 'P2_a')): save(tmp_path/f'{i}.npy', small['a'].astype(np.uint16)*k)
    def brightest(**kwargs): return [int(open_rgby(o).max()) for o in find_samples(tmp_path, **kwargs).values()]
    assert brightest(intensity='folder')[:2] == [64, 64] and brightest(intensity='folder')[2] == 255
    assert brightest(intensity='plate') == brightest(intensity='file') == [255]*3
    assert brightest() == brightest(intensity='bits') and brightest()[0] <= 64

@pytest.mark.parametrize('intensity', ['bits', 'file', 'folder'])
def test_numbers_that_are_none(intensity, tmp_path):
    a = small['a'].astype(np.float32)/255
    a[3, 3, 1] = np.nan
    save(tmp_path/'a.npy', a)
    assert 'NaN or infinite' in message(open_rgby, find_samples(tmp_path, intensity=intensity)['a'])

def test_hostile_zarr(tmp_path):
    "Pickles, arrays elsewhere and giants are refused; what is damaged is one line"
    zarr = pytest.importorskip('zarr')
    path = tmp_path/'a.zarr'
    def fresh():
        zarr_image(path, planes(small['a']), 'cyx', SAME, '0.4')
        return path/'0/.zarray', path/'.zattrs'
    array, attrs = fresh()
    def change(file, a, b): file.write_text(file.read_text().replace(a, b))
    assert np.array_equal(open_rgby(find_samples(tmp_path)['a']), small['a'])
    change(array, '"filters": null', '"filters": [{"id": "pickle"}]')
    assert "is packed with 'pickle'" in message(open_rgby, path)
    fresh()
    change(attrs, '"path": "0"', '"path": "../../etc"')
    assert 'names an array outside of it' in message(open_rgby, path)
    fresh()
    change(array, '24,', '2400000,')
    assert 'for 75,000 chunks' in message(open_rgby, path)
    fresh()
    array.write_text('{}')
    assert 'a.zarr: not a whole image' in message(open_rgby, path)
    attrs.write_text('[')
    message(open_rgby, path)

@pytest.mark.parametrize('kind', ['czi', 'lif'])
def test_damaged_files_of_microscopes(kind, tmp_path):
    pytest.importorskip(extras[kind])
    KINDS[kind](small, tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for k in range(30):
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 4000), 8): data[at] = rng.integers(256)
        path.write_bytes(data[:rng.integers(8, len(data))] if k % 2 else data)
        try: [open_rgby(o) for o in find_samples(tmp_path).values()]
        except DataError as e: assert len(str(e).splitlines()) == 1

def test_a_stack_too_large_for_memory(tmp_path):
    "Each slice is read by itself; a declared giant is refused"
    tifffile.imwrite(tmp_path/'a.ome.tif', stack(planes(small['a']), 40), metadata=dict(axes='ZCYX'))
    assert np.array_equal(open_rgby(find_samples(tmp_path)['a']), small['a'])
    with open(tmp_path/'b.npy', 'wb') as f:
        np.lib.format.write_array_header_1_0(f, dict(descr='<u2', fortran_order=False, shape=(200, 9000, 9000)))
    message(open_rgby, tmp_path/'b.npy')
