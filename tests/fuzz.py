"""Spoilt files for every reader of the library: each is read, or refused in one line that names it

    python tests/fuzz.py --n 20000 --seed 0              many inputs, and a table by reader
    python tests/fuzz.py --seed 0 --only pack --case 77  one of them again, with the whole traceback

A case is chosen by the seed, the reader and its number alone. It may end in a result, in a `DataError` of one line
that names a file, or in exit status 2; anything else is a finding: another error, more than 5 seconds of computing,
500 MB of memory, another process, a connection, or a file that lies outside the folder of the case."""
import argparse, contextlib, importlib, io, json, os, pkgutil, random, re, shutil, sys, tempfile, time, traceback
import unicodedata, warnings
from collections import Counter, defaultdict
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path

import cv2, numpy as np, pandas as pd, tifffile, torch
from PIL import Image

import damage
from watch import forget_peak, limit_memory, limited, memory, TooLong, watched
import hpa_fastai
from hpa_fastai.labels import CHANNELS, DataError, read_labels, read_submission

sys.dont_write_bytecode = True
warnings.simplefilter('ignore')
seconds, wall, megabytes, longest = 5, 40, 500, 1500

# ---- what is spoilt: made once ----

tiny = dict(size=32, bs=8, folds=2, weights='none', phases=[dict(epochs=1)], tta=1, augment={})
neighbours = dict(body='test_resnet', weights='none', epochs=1, size=32, bs=8, n_embed=8)

def _write_images(folder, rng):
    "Images of every kind that the library reads, 24 × 24"
    grey = rng.integers(0, 255, (24, 24), np.uint8)
    rgb, four = rng.integers(0, 255, (24, 24, 3), np.uint8), rng.integers(0, 255, (24, 24, 4), np.uint8)
    wide = grey.astype(np.uint16)*257
    for mode in ('L', '1', 'P', 'RGB', 'RGBA', 'LA', 'I;16'):
        im = Image.fromarray(wide) if mode == 'I;16' else Image.fromarray(rgb).convert(mode)
        im.save(folder/f'{mode.replace(";", "")}.png')
    for mode in ('L', 'RGB', 'CMYK'): Image.fromarray(rgb).convert(mode).save(folder/f'{mode}.jpg')
    Image.fromarray(grey).save(folder/'progressive.jpg', progressive=True)
    tifs = dict(grey=(grey, {}), wide=(wide, {}), four=(four, {}), deflate=(four, dict(compression='zlib')),
                lzw=(four, dict(compression='lzw')),
                planes=(np.moveaxis(four, -1, 0), dict(planarconfig='separate')),
                pages=(np.moveaxis(four, -1, 0), dict(photometric='minisblack')), big=(grey, dict(bigtiff=True)),
                tiled=(four, dict(tile=(16, 16))), jpeg=(rgb, dict(compression='jpeg')),
                ome=(grey, dict(ome=True)), imagej=(grey, dict(imagej=True)),
                predictor=(wide, dict(predictor=True, compression='zlib')))
    for name, (a, args) in tifs.items():
        with contextlib.suppress(Exception): tifffile.imwrite(folder/f'{name}.tif', a, **args)
    Image.fromarray(grey).save(folder/'pillow.tif', compression='packbits')
    for name, a in dict(four=four, grey=grey, wide=wide, first=np.moveaxis(four, -1, 0), rgb=rgb).items():
        np.save(folder/f'{name}.npy', a)
    (folder/'bomb.png').write_bytes(damage.png_of(24_000, 24_000))
    with contextlib.suppress(Exception):
        tifffile.imwrite(folder/'bomb.tif', shape=(24_000, 24_000), dtype=np.uint8,
                         data=iter([bytes(24_000*100)]*240),
                         rowsperstrip=100, compression='zlib')

def _write_state(path):
    "The state of a finished fit of two epochs"
    learn = tiny_learner(path.parent)
    from hpa_fastai.train.checkpoint import Checkpoint
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=Checkpoint(path))

_learner = {}

def tiny_learner(base):
    "A learner of a small network on a small pack"
    from hpa_fastai.images.pack import open_pack
    from hpa_fastai.runs.recipes import Recipe
    from hpa_fastai.runs.setup import recipe_dls, recipe_learner
    if base not in _learner:
        pack, df = open_pack(base/'runs/a/packs/train-32'), read_labels(base/'data/train.csv')
        recipe = Recipe.from_dict({**tiny, 'body': 'test_resnet'})
        _learner[base] = recipe, recipe_dls(recipe, pack, df, df.Id[::2], 'cpu')
    recipe, dls = _learner[base]
    return recipe_learner(recipe, dls, base)

def make_material(base):
    "Write everything that cases are made from into the folder `base`"
    from hpa_fastai.images.pack import build_pack
    from hpa_fastai.models.factory import rgby_model
    from hpa_fastai.models.weights import save_weights
    from hpa_fastai.runs.combine import ensemble_runs
    from hpa_fastai.runs.crossval import cross_validate
    from hpa_fastai.runs.recipes import Recipe
    from hpa_fastai.simulate.dataset import simulate_dataset
    simulate_dataset(base/'data', n=24, n_test=4, size=32, seed=0, balanced=True, workers=0, progress=False)
    df = pd.read_csv(base/'data/train.csv', dtype=str)
    df.assign(group=[f'g{i//2}' for i in range(len(df))], train_only=['no']*20 + ['yes']*4).to_csv(
        base/'data/train.csv', index=False)
    (base/'runs').mkdir()
    plain = df.assign(group=[f'g{i//2}' for i in range(len(df))])
    shutil.copytree(base/'data', base/'plain', ignore=lambda *_: ['train.csv'], copy_function=os.link)
    plain.to_csv(base/'plain/train.csv', index=False)
    for name, own in dict(a=dict(body='test_resnet', ensemble='rank', neighbours=neighbours),
                          b=dict(body='basic_cnn', thresholds='MeanRule')).items():
        cross_validate(base/'plain', base/'runs'/name, Recipe.from_dict(tiny | own), device='cpu', workers=0)
    for how in ('stacking', 'mean'): ensemble_runs([base/'runs/a', base/'runs/b'], base/f'runs/{how}', how=how)
    for compress in (False, True):
        build_pack(base/'data/train', base/f'pack{int(compress)}', 32, compress, workers=0, progress=False)
    (base/'images').mkdir()
    _write_images(base/'images', np.random.default_rng(0))
    (base/'weights').mkdir()
    model = rgby_model('test_resnet', weights=None)
    save_weights(model, base/'weights/whole.safetensors')
    torch.save(model.state_dict(), base/'weights/whole.pth')
    torch.save(model.state_dict(), base/'weights/legacy.pth', _use_new_zipfile_serialization=False)
    import timm
    torch.save(timm.create_model('test_resnet').state_dict(), base/'weights/timm.pth')
    torch.save(rgby_model('basic_cnn', weights=None).state_dict(), base/'weights/cnn.pth')
    _write_state(base/'phase0.pt')

# ---- a case ----

class Box:
    "The folder of a case: what is copied there, and what was done to it"
    def __init__(self, base, folder, rng):
        self.base, self.folder, self.rng, self.done, self.names, self.known = base, folder, rng, [], set(), set()

    def copy(self, name, to=None):
        "A copy of a file or folder of the material; weights and pixels, which are large, by hard link"
        source, to = self.base/name, self.folder/(to or Path(name).name)
        def put(a, b):
            if os.path.getsize(a) > 300_000: os.link(a, b)
            else: shutil.copyfile(a, b)
        if source.is_dir(): shutil.copytree(source, to, copy_function=put)
        else: put(source, to)
        return to

    def write(self, path, data, done):
        "Put other bytes in the place of a file"
        if path.is_file() or path.is_symlink(): path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.note(path, done)

    def note(self, path, done):
        self.done.append(f'{path.relative_to(self.folder)}: {done}')
        self.names.add(path.name)

    def spoil(self, path, way=None):
        "Spoil a file in a way that suits it"
        way = way or ways.get(path.suffix, damage.spoil_bytes)
        data = path.read_bytes()
        try: new, done = way(data, self.rng)
        except Exception: new, done = damage.spoil_bytes(data, self.rng)   # spoilt before, so that no way fits it
        self.write(path, new, done)

    def misplace(self, path):
        "Remove a file, or put something else in its place"
        what = self.rng.choice(['gone', 'gone', 'folder', 'dangling link', 'loop', 'empty'])
        if path.is_dir(): shutil.rmtree(path)
        else: path.unlink()
        if what == 'folder': path.mkdir()
        if what == 'dangling link': path.symlink_to(self.folder/'nowhere')
        if what == 'loop': path.symlink_to(path)
        if what == 'empty': path.write_bytes(b'')
        self.note(path, what)

    def harm(self, *paths):
        "Spoil one of the files, rarely two, or misplace one"
        for _ in range(self.rng.choice([1, 1, 1, 2])):
            path = self.rng.choice(paths)
            if not path.is_file(): continue
            if self.rng.random() < .08: self.misplace(path)
            else: self.spoil(path)

ways = {'.json': damage.spoil_json, '.csv': damage.spoil_csv, '.parquet': damage.spoil_parquet,
        '.npy': damage.spoil_npy,
        '.yaml': damage.spoil_yaml}
quiet = dict(progress=False)

# ---- readers: each spoils something in the box and returns the call that reads it ----

def _image(box, *patterns):
    "An image of the material, spoilt"
    rng = box.rng
    source = rng.choice(sorted(o for p in patterns for o in (box.base/'images').glob(p) if o.stem != 'bomb'))
    data, done = source.read_bytes(), 'whole'
    what = rng.random()
    if what < .35: data, done = damage.spoil_bytes(data, rng)
    elif what < .75:
        way = {'.png': damage.odd_png, '.tif': damage.odd_tiff, '.npy': damage.spoil_npy}.get(source.suffix,
                                                                                           damage.spoil_bytes)
        data, done = way(data, rng)
    elif what < .754 and (box.base/f'images/bomb{source.suffix}').exists():
        data, done = (box.base/f'images/bomb{source.suffix}').read_bytes(), '24,000 × 24,000'
    suffix = source.suffix if rng.random() < .85 else rng.choice(['.png', '.jpg', '.tif', '.npy', '.TIFF'])
    return data, f'{source.name}, {done}', suffix

def image(box, *patterns):
    "One file as a sample, or as one channel"
    from hpa_fastai.images.samples import find_samples, open_channel, open_rgby
    data, done, suffix = _image(box, *patterns)
    box.write(box.folder/f'images/sample{suffix}', data, done)
    if box.rng.random() < .5: return lambda: open_channel(box.folder/f'images/sample{suffix}',
                                                          box.rng.choice(CHANNELS))
    return lambda: [open_rgby(o) for o in find_samples(box.folder/'images').values()]

def samples(box):
    "Samples of four files, of unlike kinds, sizes and names"
    from hpa_fastai.images.samples import find_samples, open_rgby, resize_rgby
    rng, folder = box.rng, box.folder/'images'
    for c in CHANNELS:
        if rng.random() < .08: box.note(folder/f's_{c}.png', 'left out')
        elif rng.random() < .3:
            data, done, suffix = _image(box, '*.*')
            box.write(folder/f's_{c}{suffix}', data, done)
        else: box.write(folder/f's_{c}.png', (box.base/'images/L.png').read_bytes(), 'whole')
    odd = rng.choice(['', '', '_red.png', 's_green.tif', 's.png', '.s_red.png', 'x_RED.PNG', 's_red_green.png',
                      'ü\u2028_blue.png',
                      'a\nb_red.png', 'x' * 200 + '_red.png', 'folder.png', 's_red.png.npy'])
    if odd == 'folder.png': (folder/odd).mkdir(parents=True)
    elif odd: box.write(folder/odd, (box.base/'images/L.png').read_bytes(), 'added')
    if rng.random() < .05: box.misplace(folder)
    ids = rng.choice([None, None, ['s'], ['s', 'none'], ['../s'], ['']])
    def read():
        for o in find_samples(folder, ids).values(): resize_rgby(open_rgby(o), 16)
    return read

def labels(box):
    "train.csv"
    path = box.copy('data/train.csv')
    box.harm(path)
    from hpa_fastai.runs.folder import override_labels
    if box.rng.random() < .2: return lambda: override_labels(['a', 'b'], np.zeros((2, 28), bool), path)
    return lambda: read_labels(path)

def submission(box):
    "A submission, its sample, and train.csv beside it"
    from hpa_fastai.decide.submission import check_submission
    paths = [box.copy('runs/a/submission.csv'), box.copy('data/sample_submission.csv'), box.copy('data/train.csv')]
    box.harm(*paths)
    if box.rng.random() < .3: return lambda: read_submission(paths[box.rng.randrange(2)])
    return lambda: check_submission(*paths)

def kaggle(box):
    "A data set: lists, folds and groups"
    from hpa_fastai.images.kaggle import KaggleFolder, keep_folds, validation_rule
    from hpa_fastai.images.pack import open_pack
    data, pack = box.copy('data'), box.copy('pack0')
    folds = box.folder/'folds.csv'
    df, rng = pd.read_csv(data/'train.csv', dtype=str), box.rng
    numbers = [str(i % 2) for i in range(20)] + ['-1']*4
    pd.DataFrame(dict(Id=df.Id, fold=numbers, group=[i//2 for i in range(24)])).to_csv(folds, index=False)
    what = rng.random()
    if what < .6: box.harm(folds, folds, data/'train.csv', data/'sample_submission.csv')
    elif what < .8:
        folds.unlink()
        box.harm(data/'train.csv')
    else:
        image = rng.choice(sorted((data/rng.choice(['train', 'test'])).iterdir()))
        box.misplace(rng.choice([image, image, image.parent, data/'sample_submission.csv', data/'train.csv', data]))
    kind = rng.choice(['stratified', 'groups', 'groups', 'no_duplicates'])
    def read():
        d = KaggleFolder(data)
        d.train_only(), repr(d), validation_rule(kind)(d.train, open_pack(pack))
        keep_folds(folds, d, open_pack(pack), kind, 2)
        for k in (0, 1): d.learnt_rows(folds, k)
    return read

def _mend_manifest(path, size=True):
    "Let the checksums in a manifest fit its files again"
    import zlib
    try: m = json.loads((path/'manifest.json').read_text())
    except (ValueError, OSError, RecursionError): return
    if not isinstance(m, dict): return
    if size and isinstance(m.get('files'), dict):
        for o in m['files']:
            with contextlib.suppress(OSError, ValueError): m['files'][o] = (path/o).stat().st_size
        with contextlib.suppress(OSError): m['rows_crc32'] = zlib.crc32((path/'rows.npy').read_bytes())
    m.pop('crc32', None)
    m['crc32'] = zlib.crc32(json.dumps(m, sort_keys=True).encode())
    (path/'manifest.json').write_text(json.dumps(m))

def pack(box):
    "A finished pack, with checksums that fit again in most of the cases"
    from hpa_fastai.images.pack import open_pack
    compress = box.rng.random() < .5
    path = box.copy(f'pack{int(compress)}', 'pack')
    pixels, rng = path/('pixels.zst' if compress else 'pixels.npy'), box.rng
    box.harm(rng.choice([path/'manifest.json', path/'manifest.json', path/'rows.npy', pixels]))
    if rng.random() < .8: _mend_manifest(path, rng.random() < .7)
    def read():
        p = open_pack(path)
        repr(p), len(p), p.stats()
        p.gather(slice(0, 3)), p[0], p.gather([0, 1], crop=(0, 0, min(p.size, 16)))
        p.index(p.ids[:2])
        p.verify(progress=False)
    return read

def part(box):
    "An unfinished pack that is gone on with"
    from hpa_fastai.images.pack import build_pack, open_pack
    compress, rng = box.rng.random() < .5, box.rng
    path = box.copy(f'pack{int(compress)}', 'pack.part')
    m = json.loads((path/'manifest.json').read_text())
    (path/'manifest.json').unlink()
    (path/'plan.json').write_text(json.dumps(m['plan']))
    rows = np.load(path/'rows.npy')
    rows['nbytes'][::3] = 0
    np.save(path/'rows.npy', rows)
    pixels = path/('pixels.zst' if compress else 'pixels.npy')
    if pixels.stat().st_nlink > 1: pixels.write_bytes(pixels.read_bytes())
    box.harm(path/'plan.json', path/'rows.npy', pixels)
    box.known.add(f'{box.folder}/pack: ')
    def read():
        build_pack(box.base/'data/train', box.folder/'pack', 32, compress, workers=0, progress=False)
        open_pack(box.folder/'pack').verify(progress=False)
    return read

def _run_file(box, name, patterns):
    "A copy of a run in which something is spoilt"
    run, rng = box.copy(f'runs/{name}'), box.rng
    found = [o for p in patterns for o in sorted(run.glob(p))[:1]]
    what = rng.random()
    if what < .88: box.harm(*found)
    elif what < .92: box.misplace(rng.choice([o for o in run.rglob('*') if o.is_dir()] or [run/'scores.json']))
    else:
        extra = rng.choice(['foldx/model.safetensors', 'fold/model.safetensors', 'fold-1/model.safetensors',
                            'fold²/oof.parquet',
                            'fold02/model.safetensors', 'fold2/model.safetensors', 'fold9999999999/near_oof.csv',
                            'foldx/near_oof.csv', 'packs/train-9', 'packs/train-²',
                            'packs/train-99999999999999999999',
                            'test.parquet', 'submission.csv', 'weights.json', 'ensemble.json', 'model.json',
                            'folds.csv'])
        (run/extra).parent.mkdir(exist_ok=True, parents=True)
        box.write(run/extra, rng.choice([b'', b'{}', b'Id,fold\n1,2\n', rng.choice(found).read_bytes()]), 'added')
    return run

picture = np.random.default_rng(1).integers(0, 255, (2, 24, 40, 4), np.uint8)

def predictor(box):
    "What a run needs to predict"
    from hpa_fastai.runs.predictor import Predictor
    a = box.rng.random() < .8
    own = ['fold0/arcface/*.json', 'fold0/arcface/*.json', 'fold0/arcface/*.csv', 'fold0/arcface/*.npy',
           'fold1/arcface/*.safetensors'] if a else []
    run = _run_file(box, 'a' if a else 'b', ['model.json']*5 + ['thresholds.json']*3 + ['weights.json']*2
                    + ['fold0/model.safetensors'] + own)
    return lambda: Predictor.load(run, 'cpu').predict(list(picture))

def run_folder(box):
    "What a finished run says about itself"
    from hpa_fastai.runs.folder import RunFolder
    run = _run_file(box, box.rng.choice('ab'),
                    ['oof.csv']*2 + ['oof.parquet']*2 + ['scores.json', 'test.parquet', 'submission.csv',
                                                         'thresholds.json',
                     'weights.json', 'fold0/near_oof.csv', 'fold1/near_test.csv', 'fold0/arcface/known.json',
                     'folds.csv',
                     'packs/train-32/manifest.json'])
    def read():
        o = RunFolder(run)
        repr(o), o.rule, o.test, o.submitted, o.members, o.near('oof', o.ids), o.images()
        if o.test: o.near('test', o.test[0])
    return read

def interpretation(box):
    "Scores, tables and images of a finished run"
    from hpa_fastai.runs.folder import RunFolder
    from hpa_fastai.decide.outcome import held_out_note, scores_line
    run = _run_file(box, box.rng.choice(['a', 'b', 'b']),
                    ['oof.csv', 'oof.parquet', 'scores.json', 'scores.json', 'weights.json',
                    'thresholds.json', 'thresholds.json', 'packs/train-32/manifest.json',
                    'packs/train-32/rows.npy'])
    def read():
        o = RunFolder(run)
        i = o.interpret()
        scores_line(o.scores), held_out_note(o.scores), i.table(), i.confusion(), i.pairs(), i.common_confusions()
        i.worst_images(), i.confident_errors()
        if i.images: i.image(0)
    return read

def comparison(box):
    "Runs beside each other, and combined"
    from hpa_fastai.runs.combine import ensemble_runs
    from hpa_fastai.runs.compare import compare_runs
    other = box.copy('runs/b', 'other')
    run = _run_file(box, box.rng.choice(['a', 'mean']),
                    ['oof.csv', 'oof.parquet', 'scores.json', 'scores.json', 'scores.json',
                    'test.parquet', 'recipe.yaml', 'recipe.yaml', 'ensemble.json', 'fold0/near_oof.csv',
                    'fold0/arcface/known.json'])
    if box.rng.random() < .6: return lambda: compare_runs([run, other], n_boot=20)
    return lambda: ensemble_runs([run, other], box.folder/'out')

def ensemble(box):
    "An ensemble of two runs"
    from hpa_fastai.runs.folder import RunFolder
    from hpa_fastai.runs.predictor import Predictor
    for o in 'ab': box.copy(f'runs/{o}')
    run = _run_file(box, box.rng.choice(['stacking', 'mean']),
                    ['ensemble.json']*3 + ['weights.json']*3 + ['thresholds.json',
                    'oof.csv', 'scores.json', 'submission.csv'])
    if box.rng.random() < .05: box.misplace(box.folder/box.rng.choice('ab'))
    def read():
        o = RunFolder(run)
        repr(o), o.rule, o.members, o.near('oof', o.ids), o.images()
        Predictor.load(run, 'cpu').predict(list(picture[:1]))
    return read

def _recipe_file(box):
    "One of the library's recipes, or a small one, spoilt"
    from hpa_fastai.runs.recipes import RECIPES
    name = box.rng.choice(list(RECIPES))
    path = box.folder/'recipe.yaml'
    path.write_text((RECIPES.folder/f'{name}.yaml').read_text(encoding='utf-8'), encoding='utf-8')
    if box.rng.random() < .3: shutil.copy(box.base/f'runs/{box.rng.choice("ab")}/recipe.yaml', path)
    box.harm(path)
    return path

def recipe(box):
    "A recipe, and the checks before it is trained"
    from hpa_fastai.decide.outcome import check_decisions
    from hpa_fastai.images.kaggle import validation_rule
    from hpa_fastai.runs.fold import check_recipe, dependent_choices, recipe_views
    from hpa_fastai.runs.recipes import keep_recipe, load_recipe
    path = _recipe_file(box)
    def read():
        r = load_recipe(path)
        box.known.add(f'recipe {r.name}: ')   # from here on it is a recipe, no longer a file
        r.save(box.folder/'again.yaml')
        assert load_recipe(box.folder/'again.yaml') is not None
        validation_rule(r.validation), check_decisions(r), check_recipe(r), dependent_choices(r), recipe_views(r)
        keep_recipe(r, path, True)
    return read

@lru_cache
def _named(name):
    "A recipe of the library's"
    from hpa_fastai.runs.recipes import load_recipe
    return load_recipe(name)

def override(box):
    "Changes of a recipe from a command line"
    from hpa_fastai.runs.recipes import RECIPES
    rng, name = box.rng, box.rng.choice(list(RECIPES))
    r = _named(name)
    keys = [k for k in vars(r)] + ['epochs', 'lr', 'phases.0', 'phases.0.lr', 'phases.-1.lr', 'phases.x',
                                   'phases.9.lr', 'phases.0.mix',
            'phases.0.mix.mixup', 'loss_args.gamma', 'loss_args.', '', '.', '..', 'phases', 'neighbours',
            'neighbours.bs',
            'model_args.channels', 'model_args.channels.0', 'augment.gain.x', 'stains.0', 'name.x', 'phases.²',
            '__class__', 'a\nb']
    choices = [o for o in damage.values if not isinstance(o, damage.Raw)] + damage.yaml_texts
    changes = {rng.choice(keys): deepcopy(rng.choice(choices)) for _ in range(rng.choice([1, 1, 2]))}
    box.done.append(f'{name}: {damage.brief(changes)}')
    box.known.add(f'recipe {name}')
    return lambda: r.override(**changes).to_yaml()

def network(box):
    "The network that a recipe describes"
    from hpa_fastai.runs.recipes import load_recipe
    from hpa_fastai.runs.setup import check_network
    rng, path = box.rng, box.folder/'recipe.yaml'
    body = rng.choice(['test_resnet', 'test_vit', 'basic_cnn', 'gapnet', 'test_efficientnet', 'resnet10t'])
    d = dict(name='odd', body=body, weights='none', head='concat', stem='mean', stains=[], dropout=.1,
             model_args=rng.choice([{}, {}, dict(img_size=64), dict(channels=[8, 8, 8, 8], stem_width=8),
                                    dict(act='relu')]))
    if rng.random() < .3: d['neighbours'] = dict(body='test_resnet', weights='none')
    choices = [o for o in damage.values if o != 'resnet18'] + [8, 64, 4096, 8192, [64, 128], ['red'],
                                                               ['red', 'red']]
    from hpa_fastai.models.factory import SHAPE_ARGS
    args = d['model_args'] if isinstance(d['model_args'], dict) else {}
    for _ in range(rng.choice([0, 1, 1, 2])): args[rng.choice(sorted(SHAPE_ARGS))] = deepcopy(rng.choice(choices))
    done = damage.change(d, rng, choices) if rng.random() < .5 else 'model_args alone'
    if d.get('weights') != 'none': d['weights'] = rng.choice(['none', str(box.folder/'none.pth')])
    if isinstance(d.get('neighbours'), dict): d['neighbours']['weights'] = 'none'
    box.write(path, damage.to_yaml(d).encode('utf-8', 'replace'), f'{damage.brief(d)}; {done}')
    box.known |= {'recipe ', 'none.pth', body, f'no body {d.get("body")!r}', 'test_resnet', 'no stem', 'no head'}
    return lambda: check_network(load_recipe(path))

def _odd_state(state, rng):
    "Tensors of other types, shapes and names"
    key, what = rng.choice(list(state)), rng.random()
    t = state[key]
    odd = dict(half=lambda: t.half(), int=lambda: t.long(), complex=lambda: t.to(torch.complex64),
               bool=lambda: t > 0,
               nan=lambda: torch.full_like(t, float('nan')) if t.is_floating_point() else t,
               turned=lambda: t.T if t.ndim == 2 else t[None],
               none=lambda: None, number=lambda: 3, text=lambda: 'x', list=lambda: [1., 2.],
               scalar=lambda: torch.tensor(1.),
               nothing=lambda: t[:0] if t.ndim else torch.zeros(0), view=lambda: torch.zeros(()).expand(t.shape),
               sparse=lambda: t.to_sparse(),
               inner=lambda: {'a': t}, meta=lambda: t.to('meta'),
               huge=lambda: torch.zeros(1).expand(100_000, 100_000))
    name = rng.choice(list(odd))
    if what < .6: state[key] = odd[name]()
    elif what < .7: state.pop(key)
    elif what < .8: state[rng.choice(['extra', '', 'a\nb', '0.', 'fc.weight', 5])] = t
    elif what < .9: state = {rng.choice(['state_dict', 'model', 'module', 'x']): state}
    else: state = rng.choice([[], {}, None, 3, 'x', [state], {'a': {}}, {'state_dict': None}])
    return state, f'{key}: {name}' if what < .6 else f'{what:.1f}'

class Hostile:
    def __reduce__(self): return eval, ('__import__("pathlib").Path("pwned").touch()',)

def weights(box):
    "A file of weights"
    from hpa_fastai.models.factory import rgby_model
    rng = box.rng
    source = rng.choice(['whole.safetensors']*3 + ['whole.pth', 'legacy.pth', 'timm.pth', 'timm.pth', 'cnn.pth'])
    path = box.copy(f'weights/{source}', rng.choice([source]*6 + ['wei.bin', 'wei.pkl', 'wei.npz', 'wei']))
    data, what = path.read_bytes(), rng.random()
    if source.endswith('safetensors') and what < .5:
        n = int.from_bytes(data[:8], 'little')
        head, done = damage.spoil_json(data[8:8+n], rng)
        n = len(head) if rng.random() < .8 else rng.choice([0, 1, 10**6, 2**63, 2**64 - 1])
        data = n.to_bytes(8, 'little') + head + data[8+n:]
    elif what < .4: data, done = damage.spoil_bytes(data, rng)
    elif what < .46:
        import pickle
        state = rng.choice([Hostile(), {'a': Hostile()}, np.zeros(3), {'a': np.zeros(3)}, argparse.Namespace(a=1)])
        if rng.random() < .5: data = pickle.dumps(state)
        else:
            torch.save(state, f := io.BytesIO())
            data = f.getvalue()
        done = f'pickle of {type(state).__name__}'
    else:
        from hpa_fastai.models.weights import read_weights
        state, done = _odd_state(dict(read_weights(box.base/'weights'/source)), rng)
        torch.save(state, f := io.BytesIO())
        data = f.getvalue()
    box.write(path, data, f'{source}, {done}')
    body = 'basic_cnn' if source == 'cnn.pth' else 'test_resnet'
    return lambda: rgby_model(body, weights=rng.choice([path, str(path)]))

def checkpoint(box):
    "The state of a fit"
    from hpa_fastai.train.checkpoint import Checkpoint
    path, rng = box.copy('phase0.pt'), box.rng
    if rng.random() < .3: box.spoil(path)
    else:
        state = torch.load(path, weights_only=True)
        choices = [*(o for o in damage.values if not isinstance(o, damage.Raw)), torch.zeros(3), torch.zeros(0), (),
                   (1, 2)]
        done = damage.change(state, rng, choices)
        if rng.random() < .3:
            part = rng.choice(['model', 'grads', 'random', 'opt', 'kind', 'recorder', 'cbs', 'setting'])
            if isinstance(state.get(part), (dict, list)): done += '; ' + damage.change(state[part], rng, choices)
        torch.save(state, f := io.BytesIO())
        box.write(path, f.getvalue(), done)
    learn = tiny_learner(box.base)
    def read():
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=Checkpoint(path))
    return read

def stages(box):
    "The small files beside a run: seconds.json, the settings of downloads and simulations, and any JSON"
    from hpa_fastai.files import read_json
    from hpa_fastai.images.download import download_samples
    from hpa_fastai.runs.stages import StageTimer
    from hpa_fastai.simulate.dataset import simulate_dataset
    rng = box.rng
    what = rng.choice(['seconds', 'download', 'simulate', 'json'])
    name = dict(seconds='seconds.json', download='train/download.json', simulate='sim/simulated.json',
                json='any.json')[what]
    path = box.folder/name
    content = dict(size=32) if what == 'download' else json.loads((box.base/'data/simulated.json').read_text())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(train=1.5, pack=2.) if what == 'seconds' else content))
    box.harm(path)
    def time_it():
        with StageTimer(path)('train'): pass
    return dict(seconds=time_it, json=lambda: read_json(path),
                download=lambda: download_samples([], path.parent, size=32, progress=False),
                simulate=lambda: simulate_dataset(path.parent, n=0, n_test=0, size=32, workers=0,
                                                  progress=False))[what]

def command(box):
    "Commands: exit status 0, or 2 with one line"
    rng = box.rng
    what = rng.choice(['check', 'check', 'recipes', 'compare', 'predict', 'merge', 'pack', 'train'])
    def flag(name, value): return [f'--{name}', str(value)]
    if what == 'check':
        data, path = box.copy('data'), box.copy('runs/a/submission.csv')
        box.harm(path, data/'train.csv', data/'sample_submission.csv')
        args = [str(path), *flag('data', data)]
    elif what == 'recipes': args = [str(_recipe_file(box))]
    elif what == 'compare':
        args = [str(_run_file(box, 'b', ['oof.csv', 'oof.parquet', 'scores.json', 'recipe.yaml'])),
                str(box.copy('runs/a', 'other'))]
    elif what == 'predict':
        run = _run_file(box, 'a', ['model.json', 'thresholds.json', 'fold0/arcface/known.json'])
        args = [*flag('run', run), *flag('images', box.base/'data/test'), *flag('out', box.folder/'out.csv'),
                *flag('device', 'cpu')]
    elif what == 'train':   # refused before anything is trained
        box.harm((data := box.copy('plain'))/'train.csv', data/'sample_submission.csv', path := _recipe_file(box))
        args = [*flag('data', data), *flag('out', box.folder/'out'), *flag('recipe', path), *flag('set', rng.choice(
            ['validation=none', 'thresholds=x', 'folds=1', 'opt=x', 'a', 'a=', '=', "'", 'size=x', 'phases.9.lr=1',
             'size="', 'name=[']))]
    else:
        data = box.copy('data')
        box.harm(data/'train.csv', *sorted((data/'train').iterdir())[:3])
        args = [str(data), str(box.base/'data'), *flag('out', box.folder/'out')] if what == 'merge' else [
            *flag('images', data/'train'), *flag('out', box.folder/'out'), *flag('size', 32), *flag('workers', 0)]
    box.done.append(f'hpa-{what}')
    def read():
        return run_command(f'hpa-{what}', args)
    return read

def run_command(name, args):
    "Run a command with the words of a command line"
    sys.argv, function = [name, *args], name.replace('-', '_')
    module = 'cli_predict' if name == 'hpa-predict' else 'cli'
    code = compile(f'from hpa_fastai.{module} import {function}\n{function}()', __file__, 'exec')
    exec(code, dict(__name__='__main__', __file__=__file__))   # as if it were a script of its own

def _kind(*patterns):
    def read(box): return image(box, *patterns)
    return read

readers = dict(   # and how often each has its turn
    png=(_kind('*.png'), 14), jpeg=(_kind('*.jpg'), 6), tiff=(_kind('*.tif'), 12), npy=(_kind('*.npy'), 7),
    samples=(samples, 6), labels=(labels, 9), submission=(submission, 7), kaggle=(kaggle, 4), pack=(pack, 10),
    part=(part, 5), predictor=(predictor, 7), run=(run_folder, 6), interpretation=(interpretation, 3),
    comparison=(comparison, 1), ensemble=(ensemble, 3), recipe=(recipe, 8), override=(override, 5),
    network=(network, 5), weights=(weights, 6), checkpoint=(checkpoint, 2), stages=(stages, 3),
    command=(command, 2))

# ---- one case, and what came of it ----

def prepare(base, folder, reader, seed, case):
    "Make the folder of a case; returns the box and the call that reads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = random.Random(f'{seed}/{reader}/{case}')
    np.random.seed(rng.randrange(2**32))
    box = Box(base, folder, rng)
    return box, readers[reader][0](box)

def _place(e):
    "Where in the library an error came from"
    frames = [o for o in traceback.extract_tb(e.__traceback__) if f'{os.sep}hpa_fastai{os.sep}' in o.filename]
    if not frames: return '?'
    return f'{Path(frames[-1].filename).stem}.{frames[-1].name}: {frames[-1].line}'

def _pattern(text):
    "A message without the names and numbers of its case"
    text = re.sub(r'/[^\s:,;\']*', '/…', ' '.join(str(text).split()))
    return re.sub(r'\d+', 'N', re.sub(r"'[^']*'|\"[^\"]*\"", '…', text))[:110]

def _refusal(message, box, known):
    "What is wrong with the message of a refusal; None if nothing is"
    lines = message.splitlines()
    if len(lines) != 1: return f'{len(lines)} lines'
    if any(unicodedata.category(o) == 'Cc' for o in message): return 'control characters'
    if len(message) > longest: return f'more than {longest} characters'
    if not any(o in message for o in known): return 'names no file'

def _known_names(box):
    "Names by which a message may refer to the case"
    known = set(box.names)
    for at, _, files in os.walk(box.folder): known |= {at, *files}
    return {o for o in known if len(o) > 1} - {str(box.folder)} | {f'{box.folder}: '}

def _outcome(read, box, reader):
    "Run the call: `success`, `refused`, or what is wrong, with the place and the error"
    known, err = box.known, io.StringIO()
    known |= _known_names(box)
    known |= {str(DataError(o)) for o in known}   # as they stand in a message
    if reader in ('recipe', 'override', 'network'): known.add('recipe ')   # its name, as for a named one
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), limited(seconds,
                                                                                                 wall): read()
        return 'success', '', None
    except TooLong as e: return f'takes longer than {seconds} s', _place(e), e
    except SystemExit as e:
        said = [o for o in err.getvalue().splitlines() if o.startswith('hpa-')]
        box.said = err.getvalue().strip()
        if e.code != 2: return f'exit status {e.code}', _place(e), e
        if len(said) != 1: return f'{len(said)} lines on stderr', _place(e), e
        wrong = _refusal(said[0], box, known | {"'", 'has no', 'KEY=VALUE', 'recipe '})
        return (f'exit status 2, {wrong}: {_pattern(said[0])}', _place(e), e) if wrong else ('refused', '', e)
    except DataError as e:
        message = str(e)
        if reader == 'checkpoint': message = message.splitlines()[-1].strip()   # fastai adds lines before it
        wrong = _refusal(message, box, known)
        more = f': {_pattern(message)}' if wrong == 'names no file' else ''
        return (f'DataError, {wrong}{more}', _place(e), e) if wrong else ('refused', '', e)
    except BaseException as e: return f'{type(e).__name__}: {_pattern(e)}', _place(e), e

def try_case(base, folder, reader, seed, case, show=False):
    "Make a case and read it; returns a record"
    try: box, read = prepare(base, folder, reader, seed, case)
    except Exception as e:
        traceback.print_exc(file=sys.__stderr__)
        return dict(reader=reader, case=case, outcome=f'the fuzzer itself: {type(e).__name__} {e}', place=_place(e),
                    done='')
    os.chdir(folder)
    beside = set(os.listdir(folder.parent))
    forget_peak()
    before, start = memory('VmRSS'), time.process_time()
    with watched(folder, base/'data') as seen: outcome, place, error = _outcome(read, box, reader)
    took, grown = time.process_time() - start, memory() - before
    faults = [re.sub(r'/tmp/\w+', '/tmp/…', o.replace(str(folder), '…')) for o in seen]
    faults += [f'left {o}' for o in set(os.listdir(folder.parent)) - beside]
    if (folder/'pwned').exists(): faults.append('runs code from a file')
    if grown > megabytes: faults.append(f'takes {round(grown, -2):.0f} MB')
    if took > seconds and 'longer' not in outcome: faults.append(f'takes longer than {seconds} s')
    if faults: outcome = '; '.join(faults) + ('' if outcome in ('success', 'refused') else f'; {outcome}')
    said = f'{type(error).__name__}: {error}' if error is not None else ''
    if isinstance(error, SystemExit): said = box.said
    if error is not None and show: traceback.print_exception(error, limit=-8)
    return dict(reader=reader, case=case, outcome=outcome, place=place, done='; '.join(box.done), said=said[:600],
                took=round(took, 2), grown=round(grown))

def deal(n, only=None):
    "How many cases of each reader: (reader, number) in turn"
    chosen = {k: w for k, (_, w) in readers.items() if not only or k in only}
    total = sum(chosen.values())
    counts = {k: max(1, round(n*w/total)) for k, w in chosen.items()}
    return sorted(((k, i) for k, c in counts.items() for i in range(c)),
                  key=lambda o: ((o[1] + .5)/counts[o[0]], o[0]))

def set_up():
    "What a process needs before it reads cases"
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for o in pkgutil.walk_packages(hpa_fastai.__path__, 'hpa_fastai.'): importlib.import_module(o.name)
    import matplotlib.font_manager, timm   # whatever they read, they read now
    from fastprogress import fastprogress
    fastprogress.NO_BAR, fastprogress.print = True, lambda *args, **kwargs: None

def _in_child(work):
    "Run `work(write)` in a forked process; yields the records it writes, and at last its exit status"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
        try:
            with os.fdopen(w, 'w') as f:
                def write(o):
                    f.write(json.dumps(o) + '\n')
                    f.flush()
                work(write)
            status = 0
        except BaseException: traceback.print_exc(file=sys.__stderr__)
        finally: os._exit(status)
    os.close(w)
    with os.fdopen(r) as f:
        for line in f: yield json.loads(line)
    yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def run_cases(base, todo, seed, end=None):
    "Records of many cases; a process that dies is a finding, and another one goes on"
    folder, records = base.parent/'case'/'box', []
    def work(todo, write):
        limit_memory(6)
        errors = os.open(os.devnull, os.O_WRONLY)
        os.dup2(errors, 2)
        for reader, case in todo:
            if end and time.time() > end: break
            write([reader, case])
            write(try_case(base, folder, reader, seed, case))
    while todo:
        begun, n = None, 0
        for o in _in_child(partial(work, todo)):
            if isinstance(o, list): begun, n = o, n + 1
            elif isinstance(o, dict): records.append(o)
            status = o
        if not status: return records
        records.append(dict(reader=begun[0], case=begun[1], outcome=f'the process ends with status {status}',
                            place='', done='?'))
        todo = todo[n:]
    return records

def table(records):
    "Inputs, successes, refusals and findings of each reader"
    rows = defaultdict(Counter)
    for o in records:
        rows[o['reader']][o['outcome'] if o['outcome'] in ('success', 'refused') else 'findings'] += 1
    df = pd.DataFrame([dict(reader=k, inputs=sum(c.values()), success=c['success'], refused=c['refused'],
                            findings=c['findings']) for k, c in rows.items()])
    return pd.concat([df, pd.DataFrame([dict(reader='all', **df.drop(columns='reader').sum())])], ignore_index=True)

def _kind_of(outcome):
    "What a finding has in common with others of its cause"
    if 'names no file' in outcome: return 'DataError, names no file'
    return outcome if outcome.startswith(('DataError', 'takes', 'the process')) else outcome.partition(':')[0]

def causes(records, seed):
    "Text about the findings, those of one cause together, by place"
    groups = defaultdict(list)
    for o in records:
        if o['outcome'] not in ('success', 'refused'): groups[o['place'], _kind_of(o['outcome'])].append(o)
    lines = []
    for (place, kind), found in sorted(groups.items(), key=lambda o: (o[0][0], -len(o[1]))):
        by, said = Counter(o['reader'] for o in found), Counter(o['outcome'] for o in found)
        lines.append(f'{len(found)} × {kind}   at {place}   ({", ".join(f"{k} {v}" for k, v in by.items())})')
        for text, _ in said.most_common(3):
            first = next(o for o in found if o['outcome'] == text)
            lines += [f'    {text}', f'        {first["done"][-240:]}',
                      f'        python tests/fuzz.py --seed {seed} --only {first["reader"]} --case {first["case"]}']
    return '\n'.join(lines)

def fuzz(n, seed, only=None, case=None, minutes=None):
    "Make the material in memory where there is room, read the cases, and return their records"
    shm = Path('/dev/shm')
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix='fuzz') as folder:
        base = Path(folder)/'base'
        base.mkdir()
        (Path(folder)/'case').mkdir()
        def work(write):
            set_up()
            with contextlib.redirect_stdout(io.StringIO()): make_material(base)
        if list(_in_child(work))[-1]: raise RuntimeError('the material could not be made')
        set_up()
        here = os.getcwd()
        try:
            if case is not None: return [try_case(base, Path(folder)/'case'/'box', only[0], seed, case, True)]
            return run_cases(base, deal(n, only), seed, minutes and time.time() + 60*minutes)
        finally: os.chdir(here)

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--n', type=int, default=1500, help='number of inputs')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='*', choices=list(readers), help='readers; by default all')
    p.add_argument('--case', type=int, help='number of one case of a reader, to see what comes of it')
    args = p.parse_args()
    start = time.time()
    records = fuzz(args.n, args.seed, args.only, args.case)
    if args.case is not None:
        print(json.dumps(records[0], indent=1, ensure_ascii=False))
        return
    print(causes(records, args.seed))
    print(table(records).to_string(index=False))
    reading = sum(o.get('took', 0) for o in records)
    print(f'seed {args.seed}, {time.time() - start:.0f} s, of which {reading:.0f} s were reading')
    slow = sorted(records, key=lambda o: -o.get('took', 0))[:3]
    print('slowest: ' + ', '.join(f'{o["reader"]} {o["case"]} ({o["took"]} s)' for o in slow if 'took' in o))

if __name__ == '__main__': main()
