"Kaggle without internet: the lists of versions, a wheel from a tree that can't be written to, and what may be absent."
import re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

from hpa_fastai.cli_kaggle import gather_wheels, kaggle_versions, needs
from hpa_fastai.images import formats
from hpa_fastai.train.losses import AsymmetricLoss

root = Path(__file__).resolve().parent.parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
required = [Requirement(o) for o in parser['DEFAULT']['requirements'].split()]

def versions(name):
    "The versions in one of the lists"
    text = (root/f'constraints/{name}.txt').read_text(encoding='utf-8')
    return {canonicalize_name(n): v for n, v in re.findall(r'^([\w.-]+)==(\S+)$', text, re.M)}

@pytest.mark.parametrize('name', ['kaggle', 'colab', 'oldest'])
def test_a_list_satisfies_the_requirements(name):
    "All that a plain install would have to add to Kaggle's or Colab's image is iterative-stratification"
    has = versions(name)
    lacking = {o.name for o in required if canonicalize_name(o.name) not in has}
    assert lacking <= {'iterative-stratification'}
    assert all(o.specifier.contains(has[canonicalize_name(o.name)])
               for o in required if canonicalize_name(o.name) in has)

def test_oldest_are_the_lowest():
    has = versions('oldest')
    for o in required:
        lowest = [Version(s.version) for s in o.specifier if s.operator == '>=']
        if not lowest or o.name in ('fastcore', 'safetensors', 'setuptools'): continue
        assert Version(has[canonicalize_name(o.name)]).release[:2] == (*lowest[0].release, 0, 0)[:2], o

def make_wheel(index, name, version):
    with zipfile.ZipFile(index/f'{name}-{version}-py3-none-any.whl', 'w') as z:
        z.writestr(f'{name}-{version}.dist-info/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        z.writestr(f'{name}-{version}.dist-info/WHEEL',
                   'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{name}-{version}.dist-info/RECORD', '')

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "This package's wheel, from a tree that can't be written to where the system lets us mount one; without an index"
    pytest.importorskip('setuptools')
    place = tmp_path_factory.mktemp('wheel')
    (place/'tree').mkdir()
    for o in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(root/o, place/'tree')
    shutil.copytree(root/'hpa_fastai', place/'tree/hpa_fastai', ignore=shutil.ignore_patterns('__pycache__'))
    build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-index', '--no-deps', '--no-build-isolation',
             '--wheel-dir', str(place), str(place/'tree')]
    locked = ['unshare', '--map-root-user', '--mount', 'sh', '-c',
              'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" 2>/dev/null && exec "$@"']
    tried = [*locked, place/'tree', 'true']
    can_lock = shutil.which('unshare') and not subprocess.run(tried, capture_output=True).returncode
    done = subprocess.run([*locked, place/'tree', *build] if can_lock else build, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    left = {o.name for o in (place/'tree').iterdir()}
    assert 'build' not in left and (not can_lock or not any(o.endswith('.egg-info') for o in left))
    return next(place.glob('hpa_fastai-*.whl'))

def test_wheel_holds_all(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    sources = {o.relative_to(root).as_posix() for o in (root/'hpa_fastai').glob('**/*.py')}
    assert {o for o in names if o.endswith('.py')} == sources
    assert {'hpa_fastai/assets/kaggle.txt', 'hpa_fastai/assets/simulated/fold0/model.safetensors'} <= set(names)

def test_kaggle_lacks_one_wheel(wheel, tmp_path, monkeypatch):
    make_wheel(tmp_path, 'iterative_stratification', '0.1.9')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    (tmp_path/'out').mkdir()
    assert [o.name for o in gather_wheels(wheel, tmp_path/'out')] == ['iterative_stratification-0.1.9-py3-none-any.whl']
    assert 'kornia-rs' not in {o.name for o in needs(wheel)} and 'kornia-rs' in {o.name for o in needs(wheel, ['fast'])}
    assert kaggle_versions() == versions('kaggle')

def test_png_without_kornia(tmp_path, monkeypatch):
    "The same pixels, with and without the optional package"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path/'a.png')
    for reader in (formats.read_image_png_u8, None):
        monkeypatch.setattr(formats, 'read_image_png_u8', reader)
        assert np.array_equal(np.squeeze(formats.read_image(tmp_path/'a.png')[0]), pixels)

@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum', 'batchmean'])
def test_asymmetric_loss_is_timms(reduction):
    "timm's own, from 1.0.31 on, value by value, with weights and soft targets"
    from timm.loss import AsymmetricLossMultiLabel
    torch.manual_seed(0)
    logits, targs = 5*torch.randn(64, 28), torch.rand(64, 28).round(decimals=1)
    weight, pos_weight = torch.rand(28), torch.rand(28)
    try: theirs = AsymmetricLossMultiLabel(3., .5, .1, weight=weight, pos_weight=pos_weight, reduction=reduction)
    except TypeError: pytest.skip('timm is older than 1.0.31')
    ours = AsymmetricLoss(3., .5, .1, weight, pos_weight, reduction)
    torch.testing.assert_close(ours(logits, targs), theirs(logits, targs))
