"Folders of images as microscopes write them: read rightly, or refused in one line that says what to do."
import pickle, struct
from pathlib import Path
import cv2, numpy as np, pytest, tifffile
from PIL import Image
from hpa_fastai.images.formats import StackError, image_info
from hpa_fastai.images.kaggle import KaggleFolder
from hpa_fastai.images.samples import find_samples, open_channel, open_rgby
from hpa_fastai.labels import CHANNELS, DataError

# Each stain differs from the others, so that a wrong order is seen; each is bright somewhere, and never saturated.
fields = {i: np.random.default_rng(k).integers(0, [[[200, 120, 160, 240]]], (24, 20, 4)).astype(np.uint8)
          for k, i in enumerate('ab')}
deep = {i: o.astype(np.uint16)*16 for i, o in fields.items()}   # 12 bits in 16

def message(f, *args, **kwargs):
    "What a call is refused with: one line"
    with pytest.raises(DataError) as e: f(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)

def write(path, a, **kwargs):
    path.parent.mkdir(exist_ok=True)
    if path.suffix.lower() in ('.tif', '.tiff'): tifffile.imwrite(path, a, **kwargs)
    else: Image.fromarray(a).save(path)

def one_by_one(pattern, names, imgs=fields):
    "A writer of one file per stain"
    def f(folder):
        for i, img in imgs.items():
            for k, name in enumerate(names): write(folder/pattern.format(i=i, name=name), img[..., k])
    return f

def hyperstack(folder, **kwargs):
    for i, img in fields.items():
        planes = np.moveaxis(img[..., [2, 1, 3, 0]], -1, 0)
        labels = ['DAPI', 'FITC', 'Calnexin', 'Tubulin']
        tifffile.imwrite(folder/f'{i}.tif', planes, imagej=True, metadata=dict(axes='CYX', Labels=labels))

def ome(names, order, imgs=fields, **kwargs):
    def f(folder):
        for i, img in imgs.items():
            planes = np.moveaxis(img[..., order], -1, 0)
            about = dict(axes='CYX', Channel=dict(Name=names), **kwargs)
            tifffile.imwrite(folder/f'{i}.ome.tif', planes, metadata=about)
    return f

def composites(pattern):
    def f(folder):
        for i, img in fields.items(): write(folder/pattern.format(i=i), img[..., :3].copy())
    return f

dyes = ['Cy5', 'FITC', 'DAPI', 'TRITC']
is_cy5 = 'red=Cy5, yellow=TRITC'
waves = dict(red='w3', green='w2', blue='w1', yellow='w4')
# Name: what writes the folder, `channels=`, what is said without it (None: it is read), what is printed, planes wrong
schemes = dict(
    kaggle=(one_by_one('{i}_{name}.png', CHANNELS), None, None, ''),
    dyes=(one_by_one('{i}_{name}.tif', dyes), is_cy5,
          "a_red.tif: missing; sample a needs a file for each of red, green, blue, and has a_DAPI.tif, a_FITC.tif; "
          "names also end with Cy5, TRITC: say what they are, as channels='red=Cy5'",
          'by the names of files, blue is DAPI, green is FITC'),
    metaxpress=(one_by_one('{i}_s1_{name}.TIF', ['w3', 'w2', 'w1', 'w4']), waves,
                "names end with w1, w2, w3, w4: say which is which: channels='red=", ''),
    harmony=(one_by_one('r01c0{i}f01p01-{name}sk1fk1fl1.tiff', ['ch3', 'ch2', 'ch1', 'ch4']),
             'red=ch3, green=ch2, blue=ch1, yellow=ch4', 'names end with ch1, ch2, ch3, ch4: say', ''),
    leica=(one_by_one('{i}_{name}.tif', ['ch02', 'ch01', 'ch00', 'ch03']),
           'red=ch02, green=ch01, blue=ch00, yellow=ch03', 'names end with ch00, ch01, ch02, ch03: say', ''),
    imagej=(hyperstack, None, None, ''),
    ome_tiff=(ome(['Hoechst 33342', 'ER', 'Alexa Fluor 488', 'Microtubules'], [2, 3, 1, 0]), None, None, ''),
    ome_tiff_dyes=(ome(dyes, [0, 1, 2, 3]), is_cy5,
                   "a.ome.tif: which is red? Its 4 planes are called ['Cy5', 'FITC', 'DAPI', 'TRITC']; "
                   "say which is which: channels='red=", ''),
    twelve_bits=(one_by_one('{i}_{name}.tif', CHANNELS, deep), None, None,
                 'the highest value is 3824, so 16-bit files are taken to use 12 bits; if not, give bits='),
    told_bits=(ome(['blue', 'green', 'red', 'yellow'], [2, 1, 0, 3], deep, SignificantBits=12), None, None, ''),
    subfolders=(one_by_one('{name}/{i}.png', ['tubulin', 'GFP', 'DAPI', 'ER']), None, None,
                'by the names of files, blue is DAPI, yellow is ER, green is GFP, red is tubulin'),
    unknown_subfolders=(one_by_one('{name}/{i}.png', ['c1', 'c2', 'c3', 'c4']), 'red=c1, green=c2, blue=c3, yellow=c4',
                        "4 subfolders (c1, …); name the files of a sample a_red.png, …, or say: channels='red=", ''),
    composites=(composites('{i}.png'), None, None,
                'planes without names are taken as red, green and blue in 2 of 2 samples'),
    atlas_composites=(composites('{i}_blue_red_green.png'), None, None, '2 of 2 samples have no yellow stain'))

@pytest.mark.parametrize('scheme', schemes)
def test_naming_schemes(scheme, tmp_path, capsys):
    writer, channels, asked, printed = schemes[scheme]
    writer(tmp_path)
    (tmp_path/'overview.png').write_bytes(b'')
    (tmp_path/'a_mask.png').write_bytes(b'')
    (tmp_path/'Thumbs.db').write_bytes(b'')
    (tmp_path/'raw.czi').write_bytes(b'')
    if asked: assert asked in message(find_samples, tmp_path)
    capsys.readouterr()
    samples = pickle.loads(pickle.dumps(find_samples(tmp_path, channels=channels)))
    said = capsys.readouterr().out
    assert printed in said and (printed or len(said.splitlines()) == 1)
    for o in ('1 mask (a_mask.png)', '1 overview (overview.png)', '1 of no type that is read (Thumbs.db)',
              '1 of Zeiss (.czi; export them as TIFF)'): assert o in said.splitlines()[0]
    assert len(samples) == 2
    for source, img in zip(samples.values(), fields.values()):
        got = open_rgby(source).astype(int)
        if 'composites' in scheme: img = img*np.uint8([1, 1, 1, 0])
        assert np.abs(got - img).max() <= ('bits' in scheme)
    if 'bits' in scheme: assert {o.bits for o in samples.values()} == {12}

def test_channels_by_number_and_name(tmp_path):
    ome(dyes, [0, 1, 2, 3])(tmp_path)
    for channels in (dict(red=0, yellow=3), dict(red='cy5', yellow='TRITC'), 'red=0, yellow=TRITC'):
        source = find_samples(tmp_path, channels=channels)['a']
        assert np.array_equal(open_rgby(source), fields['a'])
        assert np.array_equal(open_rgby(tmp_path/'a.ome.tif', channels=channels), fields['a'])
    assert 'which is red?' in message(open_rgby, tmp_path/'a.ome.tif')

missing = dict(
    png=lambda d, img, name: [write(d/f'{name}_{c}.png', img[..., k]) for k, c in enumerate(CHANNELS) if c != 'yellow'],
    tif=lambda d, img, name: [write(d/f'{name}_{c}.tif', img[..., k]) for k, c in enumerate(CHANNELS) if c != 'yellow'],
    npy=lambda d, img, name: np.save(d/f'{name}.npy', img[..., :3]),
    rgb=lambda d, img, name: write(d/f'{name}.png', img[..., :3].copy()),
    rgba=lambda d, img, name: Image.fromarray(img[..., :3].copy()).convert('RGBA').save(d/f'{name}.png'),
    planes=lambda d, img, name: tifffile.imwrite(d/f'{name}.tif', np.moveaxis(img[..., :3], -1, 0),
                                                 photometric='minisblack'),
    named=lambda d, img, name: tifffile.imwrite(d/f'{name}.ome.tif', np.moveaxis(img[..., :3], -1, 0), metadata=dict(
        axes='CYX', Channel=dict(Name=['tubulin', 'GFP', 'DAPI']))))

@pytest.mark.parametrize('kind', missing)
def test_missing_yellow_is_black_and_said(kind, tmp_path, capsys):
    for name in 'ab': missing[kind](tmp_path, fields['a'], name)
    source = find_samples(tmp_path)['a']
    assert '2 of 2 samples have no yellow stain, the first is a; it is taken as black' in capsys.readouterr().out
    assert np.array_equal(open_rgby(source), fields['a']*np.uint8([1, 1, 1, 0]))

@pytest.mark.parametrize('c', CHANNELS[:3])
def test_other_stains_are_needed(c, tmp_path):
    one_by_one('{i}_{name}.png', CHANNELS)(tmp_path)
    (tmp_path/f'b_{c}.png').unlink()
    assert f'b_{c}.png: missing; sample b needs a file for each of red, green, blue' in message(find_samples, tmp_path)

def test_two_files_for_one_stain_or_sample(tmp_path):
    one_by_one('{i}_{name}.png', CHANNELS)(tmp_path)
    write(tmp_path/'a.png', fields['a'][..., :3].copy())
    assert f"{tmp_path/'a.png'} and a_blue.png: both are a; remove one of them" == message(find_samples, tmp_path)
    (tmp_path/'a.png').unlink()
    write(tmp_path/'a_red.tif', fields['a'][..., 0])
    assert 'a_red.png and a_red.tif: both are red' in message(find_samples, tmp_path)

def test_the_few_are_left_out(tmp_path, capsys):
    "A listed Id is found whatever its file; without a list, whole files beside channel files are foreign"
    one_by_one('{i}_{name}.png', CHANNELS)(tmp_path)
    write(tmp_path/'plate.png', fields['a'][..., :3].copy())
    assert list(find_samples(tmp_path)) == ['a', 'b']
    assert '1 file left out: 1 without the name of a stain (plate.png)' in capsys.readouterr().out
    assert list(find_samples(tmp_path, ['plate', 'a'])) == ['plate', 'a']
    for i in range(3): write(tmp_path/f'{i}.png', fields['a'][..., :3].copy())
    assert list(find_samples(tmp_path)) == ['0', '1', '2', 'plate']
    assert '8 files left out: 8 with the name of a stain (a_blue.png, …)' in capsys.readouterr().out

def test_stacks(tmp_path, capsys):
    composites('{i}.png')(tmp_path)
    z = np.zeros((5, 24, 20), np.uint8)
    tifffile.imwrite(tmp_path/'z.tif', np.stack([z[:4]]*5), imagej=True, metadata=dict(axes='ZCYX'))
    assert list(find_samples(tmp_path)) == ['a', 'b']
    assert '1 with several images in one (z.tif)' in capsys.readouterr().out
    assert 'z.tif: holds 5 slices, 4 channels; give a maximum projection' in message(open_rgby, tmp_path/'z.tif')
    for i, axes in enumerate(('ZYX', 'TYX')):
        path = tmp_path/f'stack{i}.tif'
        tifffile.imwrite(path, z[:4 + i], imagej=True, metadata=dict(axes=axes))
        said = message(open_rgby, path)
        assert f'{path}: a stack of {4 + i} planes without names; give a maximum projection' in said
        assert 'channels=' in said
        assert open_rgby(path, channels='red=0, green=1, blue=2').shape == (24, 20, 4)
        path.unlink()
    write(tmp_path/'c_red.tif', z)
    said = message(open_channel, tmp_path/'c_red.tif', 'red')
    assert 'c_red.tif: holds 5 planes; a red file holds one grey image' in said

@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate', 'packbits', 'jpeg'])
def test_compressed_tiffs(compression, tmp_path):
    img = fields['a'] if compression != 'jpeg' else np.full((24, 20, 4), 80, np.uint8)
    for k, c in enumerate(CHANNELS): Image.fromarray(img[..., k]).save(tmp_path/f'a_{c}.tif', compression=compression)
    assert np.abs(open_rgby(find_samples(tmp_path)['a']).astype(int) - img).max() <= (compression == 'jpeg')
    if compression != 'tiff_lzw': return
    for k, c in enumerate(CHANNELS):
        Image.fromarray(deep['a'][..., k]).save(tmp_path/f'a_{c}.tif', compression=compression)
    assert np.abs(open_rgby(find_samples(tmp_path)['a']).astype(int) - img).max() <= 1

def test_unknown_compression(tmp_path):
    write(tmp_path/'a_red.tif', fields['a'][..., 0])
    data = bytearray((tmp_path/'a_red.tif').read_bytes())
    at = data.find(struct.pack('<HHI', 259, 3, 1))   # the tag Compression
    data[at + 8:at + 10] = struct.pack('<H', 34933)  # PNG in a TIFF
    (tmp_path/'a_red.tif').write_bytes(data)
    said = message(open_channel, tmp_path/'a_red.tif', 'red')
    assert 'is compressed with PNG' in said and 'pip install imagecodecs' in said

arrays = dict(
    empty=(np.zeros((0, 0, 4), np.uint8), 'is 0 × 0 pixels'),
    objects=(np.array([dict(a=1)]*4), 'holds Python objects'),
    large_floats=(fields['a']/128., 'and full scale is 1; divide it by the camera'),
    nan=(np.full((8, 8, 4), np.nan), 'holds values that are no numbers'),
    complex=(np.ones((8, 8, 4), complex), 'pixels are complex128'),
    text=(np.full((8, 8, 4), 'a'), 'pixels are <U1'),
    negative=(np.full((8, 8, 4), -1, np.int16), 'values from -1 to -1'),
    dim=(deep['a'], 'a.npy: 16 bits a pixel, but the highest value is 3808; say how many bits are used: bits=12'),
    four_axes=(np.zeros((2, 3, 8, 8)), 'has the shape (2, 3, 8, 8)'),
    opaque=(np.full((8, 8, 4), 255, np.uint8), 'its fourth plane is white everywhere'))

@pytest.mark.parametrize('a, said', arrays.values(), ids=arrays)
def test_arrays(a, said, tmp_path):
    np.save(tmp_path/'a.npy', a, allow_pickle=True)
    found = message(open_rgby, tmp_path/'a.npy')
    assert found.startswith(f"{tmp_path/'a.npy'}: ") and said in found

def test_arrays_that_are_read(tmp_path):
    img = fields['a']
    for a in (img/255, (img/255).astype(np.float32), img.astype(np.uint16)*257, img.astype(np.int32)*257):
        np.save(tmp_path/'a.npy', a)
        assert np.array_equal(open_rgby(tmp_path/'a.npy'), img)
    np.save(tmp_path/'a.npy', img > 50)
    assert np.array_equal(open_rgby(tmp_path/'a.npy'), (img > 50)*np.uint8(255))

def test_huge_declared_sizes(tmp_path):
    "Refused before memory is taken"
    for name in ('a_red.png', 'b.npy'):
        with open(tmp_path/name, 'wb') as f:
            if name == 'b.npy':
                about = dict(descr='|u1', fortran_order=False, shape=(100_000, 100_000, 4))
                np.lib.format.write_array_header_1_0(f, about)
            else:
                f.write(b'\x89PNG\r\n\x1a\n')
                f.write(struct.pack('>I4sIIBBBBB', 13, b'IHDR', 100_000, 100_000, 8, 0, 0, 0, 0))
    assert 'a_red.png: is 100000 × 100000 pixels' in message(open_channel, tmp_path/'a_red.png', 'red')
    message(open_rgby, tmp_path/'b.npy')

def test_one_full_scale_for_all(tmp_path, capsys):
    "A dim image does not become bright; one that is too bright is refused; train and test are alike"
    imgs = dict(a=deep['a'], b=deep['b']//16)
    one_by_one('{i}_{name}.png', CHANNELS, imgs)(tmp_path/'train')
    one_by_one('{i}_{name}.png', CHANNELS, dict(c=imgs['b']))(tmp_path/'test')
    (tmp_path/'train.csv').write_text('Id,Target\na,0\nb,1\n')
    (tmp_path/'sample_submission.csv').write_text('Id,Predicted\nc,0\n')
    data = KaggleFolder(tmp_path)
    assert capsys.readouterr().out.count('taken to use 12 bits') == 1
    assert np.array_equal(open_rgby(data.train_samples['b']), open_rgby(data.test_samples['c']))
    assert open_rgby(data.train_samples['b']).max() <= 16
    dark = KaggleFolder(tmp_path, bits=16)
    assert open_rgby(dark.train_samples['a']).max() < 16 and not capsys.readouterr().out
    cv2.imwrite(str(tmp_path/'test/c_red.png'), np.full((24, 20), 5000, np.uint16))
    assert 'c_red.png: values from 5000 to 5000, and full scale is 4095; give bits=' in message(
        open_rgby, data.test_samples['c'])

def test_sixteen_bits_in_colour(tmp_path):
    cv2.imwrite(str(tmp_path/'a.png'), deep['a'][..., 2::-1])
    assert image_info(tmp_path/'a.png').wide
    assert np.abs(open_rgby(find_samples(tmp_path)['a'])[..., :3].astype(int) - fields['a'][..., :3]).max() <= 1

def test_damaged_files_are_one_line(tmp_path):
    ome(dyes, [0, 1, 2, 3])(tmp_path)
    whole = (tmp_path/'a.ome.tif').read_bytes()
    rng = np.random.default_rng(0)
    for k in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, 900, 8): data[at] = rng.integers(256)
        (tmp_path/'a.ome.tif').write_bytes(data[:rng.integers(8, len(data))] if k % 2 else data)
        try: open_rgby(tmp_path/'a.ome.tif', channels=is_cy5)
        except DataError as e: assert len(str(e).splitlines()) == 1

def test_a_sample_that_lacks_a_stain(tmp_path):
    "It is an error, or if you are not strict, one of its own; where all lack the same, names are meant otherwise"
    for c in CHANNELS: Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path/f'a_{c}.png')
    for c in ('green', 'blue'): Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path/f'b_{c}.png')
    with pytest.raises(DataError, match='b_red.png: missing'): find_samples(tmp_path)
    found = find_samples(tmp_path, strict=False)
    assert list(found) == ['a', 'b'] and open_rgby(found['a']).shape == (8, 8, 4)
    with pytest.raises(DataError, match='the red stain of this sample is missing'): open_rgby(found['b'])
    for c in CHANNELS: (tmp_path/f'a_{c}.png').unlink()
    with pytest.raises(DataError, match='b_red.png: missing'): find_samples(tmp_path, strict=False)
