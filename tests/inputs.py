"""Fields of cells in the forms in which people have them: `KINDS[name](fields, folder)` writes a folder.

A maker takes `fields` (Id → (height, width, 4) uint8) and an empty folder, and returns the arguments with which
`find_samples(folder, **kwargs)` reads it. `EXPECTED` and `LOSS` say what comes back, at the scale of the fields."""
import struct
from pathlib import Path
import cv2, numpy as np, tifffile
from PIL import Image
from hpa_fastai.labels import CHANNELS

UM = .32   # µm per pixel of the fields, as of the competition's images
DYES = dict(red='Cy5', green='FITC', blue='DAPI', yellow='TRITC')
IS_CY5 = 'red=Cy5, yellow=TRITC'
SAME = dict(enumerate(CHANNELS))
MIXED = {0: 'blue', 1: 'yellow', 2: 'green', 3: 'red'}   # an order of planes that is nobody's
NAMES = dict(red='Alpha-tubulin', green='Alexa Fluor 488', blue='Hoechst 33342', yellow='Calreticulin')

KINDS, EXPECTED, LOSS = {}, {}, {}

def kind(expected=lambda img: img, loss=1):
    "Register a maker; `expected` gives what a field becomes, `loss` the mean difference, None if it may be alike only"
    def register(f):
        KINDS[f.__name__], EXPECTED[f.__name__], LOSS[f.__name__] = f, expected, loss
        return f
    return register

def without(*stains): return lambda img: img*np.uint8([c not in stains for c in CHANNELS])

def field_of(sid, fields):
    "The Id of the field that a sample was made from"
    return next(i for i in fields if i in sid)

def planes(img, order=SAME): return np.stack([img[..., CHANNELS.index(c)] for c in order.values()])

def deep(img, bits=12): return (img.astype(np.uint32)*(2**bits - 1)//255).astype(np.uint16)

def save(path, a, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in ('.tif', '.tiff'): tifffile.imwrite(path, a, **kwargs)
    elif path.suffix == '.npy': np.save(path, a)
    else: Image.fromarray(a).save(path, **kwargs)

def singles(fields, folder, pattern, names=None, change=lambda a: a, stains=CHANNELS, **kwargs):
    "One file for each stain"
    for i, img in fields.items():
        for c in stains:
            save(folder/pattern.format(i=i, c=(names or {}).get(c, c)), change(img[..., CHANNELS.index(c)]), **kwargs)

def zoomed(img, um):
    "A field as another microscope sees it"
    h, w = (round(o*UM/um) for o in img.shape[:2])
    return cv2.resize(img, (w, h), interpolation=cv2.INTER_LINEAR if um < UM else cv2.INTER_AREA)

def stack(a, n=5, z=2):
    "Slices of planes (..., height, width), of which number `z` is in focus"
    return np.stack([a if k == z else a//2 for k in range(n)])

# Grey files, one for each stain

@kind()
def png(fields, folder):
    singles(fields, folder, '{i}_{c}.png')
    return {}

@kind()
def png_16_bits(fields, folder):
    singles(fields, folder, '{i}_{c}.png', change=lambda a: a.astype(np.uint16)*257)
    return {}

@kind()
def png_12_in_16(fields, folder):
    singles(fields, folder, '{i}_{c}.png', change=deep)
    return dict(bits=12)

@kind(loss=2)
def jpeg_grey(fields, folder):
    singles(fields, folder, '{i}_{c}.jpg', quality=95)
    return {}

@kind(loss=3)
def jpeg_in_colour(fields, folder):
    "As the Human Protein Atlas publishes its images"
    for i, img in fields.items():
        for k, (c, signal) in enumerate(dict(red=[0], green=[1], blue=[2], yellow=[0, 1]).items()):
            rgb = np.zeros((*img.shape[:2], 3), np.uint8)
            rgb[..., signal] = img[..., [k]]
            save(folder/f'{i}_{c}.jpg', rgb, quality=95, subsampling=0)
    return {}

@kind()
def grey_in_colour(fields, folder):
    singles(fields, folder, '{i}_{c}.png', change=lambda a: np.stack([a]*3, -1))
    return {}

@kind()
def with_palette(fields, folder):
    for i, img in fields.items():
        for k, c in enumerate(CHANNELS):
            picture = Image.fromarray(255 - img[..., k]).convert('P')
            picture.putpalette(np.repeat(np.arange(255, -1, -1), 3).astype(np.uint8).tobytes())
            picture.save(folder/f'{i}_{c}.png')
    return {}

@kind()
def tif_of_dyes(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', DYES)
    return dict(channels=IS_CY5)

@kind()
def tif_of_structures(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', dict(red='tubulin', green='AF488', blue='Hoechst', yellow='ER'))
    return {}

@kind()
def stain_first(fields, folder):
    singles(fields, folder, '{c}-{i}.tif', dict(red='tubulin', green='GFP', blue='DAPI', yellow='calnexin'))
    return {}

@kind()
def metaxpress(fields, folder):
    singles(fields, folder, '{i}_s1_{c}.TIF', dict(red='w3', green='w2', blue='w1', yellow='w4'), deep)
    return dict(channels='red=w3, green=w2, blue=w1, yellow=w4', bits=12)

@kind()
def harmony(fields, folder):
    singles(fields, folder, 'r01c01{i}f01p01-{c}sk1fk1fl1.tiff', dict(red='ch3', green='ch2', blue='ch1', yellow='ch4'))
    return dict(channels='red=ch3, green=ch2, blue=ch1, yellow=ch4')

@kind()
def leica_export(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', dict(red='ch02', green='ch01', blue='ch00', yellow='ch03'))
    return dict(channels='red=ch02, green=ch01, blue=ch00, yellow=ch03')

@kind()
def folder_per_stain(fields, folder):
    singles(fields, folder, '{c}/{i}.png', dict(red='tubulin', green='GFP', blue='DAPI', yellow='ER'))
    return {}

@kind()
def folder_per_stain_numbered(fields, folder):
    singles(fields, folder, '{c}/{i}.png', dict(red='c1', green='c2', blue='c3', yellow='c4'))
    return dict(channels='red=c1, green=c2, blue=c3, yellow=c4')

@kind()
def folder_per_sample(fields, folder):
    singles(fields, folder, '{i}/{c}.png', dict(red='tubulin', green='GFP', blue='DAPI', yellow='ER'))
    return {}

@kind(without('yellow'))
def missing_yellow(fields, folder):
    singles(fields, folder, '{i}_{c}.png', stains=CHANNELS[:3])
    return {}

@kind(without('red'))
def missing_red(fields, folder):
    singles(fields, folder, '{i}_{c}.png', stains=CHANNELS[1:])
    return dict(channels='red=none')

@kind(without('red', 'yellow'))
def nucleus_and_protein(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', DYES, stains=['green', 'blue'])
    return dict(channels='red=none, yellow=none')

@kind()
def slices_in_files(fields, folder):
    for i, img in fields.items():
        for z, a in enumerate(stack(planes(img))):
            for k, c in SAME.items(): save(folder/f'{i}_z{z:02}_{c}.tif', a[k])
    return {}

@kind()
def slices_of_each_stain(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', change=stack, imagej=True, metadata=dict(axes='ZYX'))
    return {}

# One file for a sample

@kind(without('yellow'))
def rgb(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.png', img[..., :3].copy())
    return {}

@kind()
def rgb_and_yellow(fields, folder):
    for i, img in fields.items():
        save(folder/f'{i}_blue_red_green.png', img[..., :3].copy())
        save(folder/f'{i}_yellow.png', img[..., 3])
    return {}

@kind()
def npy(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.npy', img)
    return {}

@kind()
def npy_16_bits_first(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.npy', planes(img).astype(np.uint16)*257)
    return {}

@kind()
def floats_to_1(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.npy', (img/255).astype(np.float32))
    return {}

@kind()
def floats_to_4095(fields, folder):
    "ImageJ makes 32-bit floats of a 12-bit image"
    for i, img in fields.items():
        save(folder/f'{i}.tif', deep(planes(img)).astype(np.float32), photometric='minisblack')
    return dict(bits=12)

@kind(loss=None)
def floats_of_any_scale(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.npy', (img*37.2 - 100).astype(np.float32))
    return dict(intensity='folder')

@kind(loss=None)
def plates_exposed_differently(fields, folder):
    for k, (i, img) in enumerate(fields.items()): save(folder/f'P{k}_{i}.npy', img.astype(np.uint16)*(k + 1)*20)
    return dict(intensity='plate')

def ome(fields, folder, axes, order=MIXED, change=planes, **kwargs):
    for i, img in fields.items():
        metadata = dict(axes=axes, Channel=dict(Name=[NAMES[c] for c in order.values()]), **kwargs)
        save(folder/f'{i}.ome.tif', change(img, order), photometric='minisblack', metadata=metadata)

@kind()
def ome_cyx(fields, folder):
    ome(fields, folder, 'CYX')
    return {}

@kind()
def ome_12_bits(fields, folder):
    ome(fields, folder, 'CYX', change=lambda img, order: deep(planes(img, order)), SignificantBits=12)
    return {}

@kind()
def ome_zcyx(fields, folder):
    ome(fields, folder, 'ZCYX', change=lambda img, order: stack(planes(img, order)))
    return {}

@kind()
def ome_czyx(fields, folder):
    ome(fields, folder, 'CZYX', change=lambda img, order: np.moveaxis(stack(planes(img, order)), 0, 1))
    return {}

@kind()
def ome_tczyx(fields, folder):
    ome(fields, folder, 'TCZYX', change=lambda img, order: np.moveaxis(stack(planes(img, order)), 0, 1)[None])
    return {}

@kind()
def ome_of_dyes(fields, folder):
    for i, img in fields.items():
        metadata = dict(axes='CYX', Channel=dict(Name=[f'{DYES[c]}-T{k}' for k, c in MIXED.items()]))
        save(folder/f'{i}.ome.tif', planes(img, MIXED), photometric='minisblack', metadata=metadata)
    return dict(channels=IS_CY5)

@kind()
def ome_in_folders(fields, folder):
    for i, img in fields.items():
        metadata = dict(axes='CYX', Channel=dict(Name=list(NAMES.values())))
        save(folder/i/'image.ome.tif', planes(img), photometric='minisblack', metadata=metadata)
    return {}

@kind()
def imagej(fields, folder):
    for i, img in fields.items():
        metadata = dict(axes='CYX', Labels=[NAMES[c] for c in MIXED.values()])
        save(folder/f'{i}.tif', planes(img, MIXED), imagej=True, metadata=metadata)
    return {}

@kind()
def imagej_stack(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.tif', stack(planes(img)), imagej=True, metadata=dict(axes='ZCYX'))
    return dict(channels='red=0, green=1, blue=2, yellow=3')

@kind()
def pages(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.tif', planes(img), photometric='minisblack')
    return {}

@kind()
def pages_compressed(fields, folder):
    for i, img in fields.items():
        first, *others = [Image.fromarray(o) for o in planes(img)]
        first.save(folder/f'{i}.tif', save_all=True, append_images=others, compression='tiff_lzw')
    return {}

@kind()
def interleaved(fields, folder):
    for i, img in fields.items(): save(folder/f'{i}.tif', img, photometric='rgb', extrasamples=['unspecified'])
    return {}

@kind()
def big_endian(fields, folder):
    for i, img in fields.items():
        save(folder/f'{i}.tif', planes(img).astype('>u2')*257, photometric='minisblack', byteorder='>', bigtiff=True)
    return {}

# Other scales and shapes

@kind(loss=None)
def finer_by_ome(fields, folder):
    ome(fields, folder, 'CYX', change=lambda img, order: planes(zoomed(img, .21), order), PhysicalSizeX=210,
        PhysicalSizeXUnit='nm', PhysicalSizeY=210, PhysicalSizeYUnit='nm')
    return {}

@kind()
def finer_by_imagej(fields, folder):
    for i, img in fields.items():
        metadata = dict(axes='CYX', Labels=list(NAMES.values()), unit='micron')
        save(folder/f'{i}.tif', np.repeat(np.repeat(planes(img), 2, 1), 2, 2), imagej=True, resolution=(1/.16, 1/.16),
             metadata=metadata)
    return {}

@kind(loss=None)
def finer_by_resolution(fields, folder):
    singles(fields, folder, '{i}_{c}.tif', change=lambda a: zoomed(a, .16), resolution=(1e4/.16, 1e4/.16),
            resolutionunit='CENTIMETER')
    return {}

@kind(loss=None)
def finer_as_said(fields, folder):
    singles(fields, folder, '{i}_{c}.png', change=lambda a: zoomed(a, .24))
    return dict(um=.24)

@kind(lambda img: img[:img.shape[0]*3//4])
def not_square(fields, folder):
    singles(fields, folder, '{i}_{c}.png', change=lambda a: a[:a.shape[0]*3//4])
    return {}

@kind()
def field_of_3072(fields, folder):
    i, img = next(iter(fields.items()))
    n = 3072//img.shape[0]
    um = UM/n
    big = [np.repeat(np.repeat(o, n, 0), n, 1) for o in planes(img)]
    save(folder/f'{i}.ome.tif', np.stack(big), photometric='minisblack', metadata=dict(
        axes='CYX', PhysicalSizeX=um, PhysicalSizeY=um, Channel=dict(Name=list(NAMES.values()))))
    return {}

# Formats that need an extra

def zarr_image(path, a, axes, order, version):
    import zarr
    group = zarr.open_group(path, mode='w', zarr_format=3 if version == '0.5' else 2)
    group.create_array('0', data=a, chunks=(1,)*(a.ndim - 2) + (128, 128))
    names = [dict(name=o, type='space', unit='micrometer') if o in 'zyx' else dict(name=o, type='channel')
             for o in axes]
    scale = dict(type='scale', scale=[UM if o in 'yx' else 1 for o in axes])
    sets = [dict(path='0', coordinateTransformations=[scale])]
    told = dict(multiscales=[dict(version=version, axes=names, datasets=sets)],
                omero=dict(channels=[dict(label=NAMES[c]) for c in order.values()]))
    group.attrs.update(dict(ome=told | dict(version=version)) if version == '0.5' else told)

@kind()
def ome_zarr(fields, folder):
    for i, img in fields.items(): zarr_image(folder/f'{i}.ome.zarr', planes(img, MIXED), 'cyx', MIXED, '0.5')
    return {}

@kind()
def ome_zarr_stack(fields, folder):
    for i, img in fields.items():
        a = np.moveaxis(stack(planes(img)), 0, 1)[None]
        zarr_image(folder/f'{i}.zarr', a, 'tczyx', SAME, '0.4')
    return {}

@kind()
def czi(fields, folder):
    from pylibCZIrw import czi as pyczi
    for i, img in fields.items():
        with pyczi.create_czi(str(folder/f'{i}.czi')) as f:
            for c, slices in enumerate(np.moveaxis(stack(planes(img, MIXED), 3, 1), 0, 1)):
                for z, a in enumerate(slices): f.write(data=a[..., None].copy(), plane=dict(C=c, Z=z, T=0), scene=0)
            f.write_metadata(channel_names={k: NAMES[c] for k, c in MIXED.items()}, scale_x=UM*1e-6, scale_y=UM*1e-6)
    return {}

def lif_element(k, name, shape, channels):
    "The XML of one image of a LIF file"
    n, h, w = shape
    dyes = ''.join('<ChannelDescription DataType="0" ChannelTag="0" Resolution="8" NameOfMeasuredQuantity="" Min="0" '
                   f'Max="255" Unit="" LUTName="Gray" IsLUTInverted="0" BytesInc="{j*h*w}" BitInc="0">'
                   f'<ChannelProperty><Key>DyeName</Key><Value>{o}</Value></ChannelProperty></ChannelDescription>'
                   for j, o in enumerate(channels))
    sizes = ''.join(f'<DimensionDescription DimID="{d}" NumberOfElements="{m}" Origin="0" '
                    f'Length="{(m - 1)*UM*1e-6}" Unit="m" BitInc="0" BytesInc="{step}"/>'
                    for d, m, step in ((1, w, 1), (2, h, w)))
    return (f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{dyes}</Channels>'
            f'<Dimensions>{sizes}</Dimensions></ImageDescription></Image></Data>'
            f'<Memory Size="{n*h*w}" MemoryBlockID="MemBlock_{k}"/></Element>')

@kind()
def lif(fields, folder):
    "All fields in one file, by the published layout: no package writes LIF files"
    names, blocks = [NAMES[c] for c in MIXED.values()], b''
    parts = [lif_element(k, i, planes(img).shape, names) for k, (i, img) in enumerate(fields.items())]
    xml = ('<LMSDataContainerHeader Version="2"><Element Name="all"><Children>' + ''.join(parts)
           + '</Children></Element></LMSDataContainerHeader>').encode('utf-16-le')
    for k, img in enumerate(fields.values()):
        data, name = planes(img, MIXED).tobytes(), f'MemBlock_{k}'
        blocks += struct.pack('<IIBQBI', 0x70, 14 + 2*len(name), 0x2A, len(data), 0x2A, len(name))
        blocks += name.encode('utf-16-le')
        blocks += data
    Path(folder/'all.lif').write_bytes(struct.pack('<IIBI', 0x70, len(xml) + 5, 0x2A, len(xml)//2) + xml + blocks)
    return {}
