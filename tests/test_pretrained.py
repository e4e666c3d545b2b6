"""Weights from elsewhere: each kind against its authors' forward pass, written out here in plain operations.

The files are random and small, laid out as the authors' are; images are uint8, and preprocessing is part of the
comparison.
"""
import math
from argparse import Namespace
from functools import partial
import numpy as np, pandas as pd, pytest, torch
from torch.nn import functional as F
from torch.testing import assert_close
from hpa_fastai.cli_predict import hpa_predict
from hpa_fastai.labels import DataError, LABELS
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.pretrained import read_pretrained
from hpa_fastai.models.subcell import SUBCELL_LABELS
from hpa_fastai.runs.converted import convert_weights, pretrained_model
from hpa_fastai.runs.features import FeaturePredictor, open_weights
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.simulate.dataset import simulate_dataset

close = partial(assert_close, atol=1e-5, rtol=1e-5)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def uint8_images(n, size):
    "Images (n, 4, size, size) uint8 in the order red, green, blue, yellow; the last of them lacks yellow"
    x = (torch.rand(n, 4, size, size)**3*255).round()
    x[-1, 3] = 0
    return x

def ours(model, x):
    with torch.no_grad(): return model.eval()(x/255)

# Layouts ------------------------------------------------------------------------------------------------------------

def random_tensors(shapes):
    "Random numbers of the size that they have in a network: matrices by their inputs, norms around 1"
    def one(k, v):
        if 'weight' in k and len(v) > 1: return torch.randn(v)/math.prod(v[1:])**.5
        return torch.randn(v)*.2 + ('norm' in k and 'weight' in k)
    return {k: one(k, v) for k, v in shapes.items()}

def dino_shapes(width=128, depth=3, grid=4, patch=8, channels=4, gamma=False):
    "Names and shapes of DINO's and DINOv2's transformers"
    shapes = dict(cls_token=(1, 1, width), pos_embed=(1, grid**2 + 1, width))
    shapes |= {'patch_embed.proj.weight': (width, channels, patch, patch), 'patch_embed.proj.bias': (width,)}
    for i in range(depth):
        for name, (n, m) in {'attn.qkv': (3*width, width), 'attn.proj': (width, width), 'mlp.fc1': (4*width, width),
                             'mlp.fc2': (width, 4*width)}.items():
            shapes |= {f'blocks.{i}.{name}.weight': (n, m), f'blocks.{i}.{name}.bias': (n,)}
        for name in ('norm1', 'norm2'):
            shapes |= {f'blocks.{i}.{name}.weight': (width,), f'blocks.{i}.{name}.bias': (width,)}
        if gamma: shapes |= {f'blocks.{i}.ls1.gamma': (width,), f'blocks.{i}.ls2.gamma': (width,)}
    return shapes | {'norm.weight': (width,), 'norm.bias': (width,)}

def dino4cells_file(path, **kwargs):
    tensors = random_tensors(dino_shapes(**kwargs))
    head = {'module.head.mlp.0.weight': torch.randn(8, tensors['cls_token'].shape[-1]),
            'module.head.last_layer.weight_v': torch.randn(9, 8)}
    teacher = {f'module.backbone.{k}': v for k, v in tensors.items()} | head
    student = {k: torch.randn_like(v) for k, v in teacher.items()}
    torch.save(dict(student=student, teacher=teacher, optimizer=dict(state={}, param_groups=[dict(lr=.1)]), epoch=100,
                    args=Namespace(arch='vit_base', patch_size=16, local_crops_scale=(.05, .4))), path)
    return tensors

def cell_dino_file(path, depth=4, chunk=2, **kwargs):
    tensors = random_tensors(dino_shapes(depth=depth, gamma=True, **kwargs))
    def chunked(k):
        parts = k.split('.')
        return '.'.join(['blocks', str(int(parts[1])//chunk), *parts[1:]]) if parts[0] == 'blocks' else k
    mask = dict(mask_token=torch.randn(1, tensors['cls_token'].shape[-1]))
    torch.save({chunked(k): v for k, v in tensors.items()} | mask, path)
    return tensors

def subcell_shapes(width=128, depth=2, grid=4, patch=8, channels=4, hidden=24, heads=2):
    "Names and shapes of SubCell's encoder and pool, by Hugging Face's names"
    shapes = {'embeddings.cls_token': (1, 1, width), 'embeddings.position_embeddings': (1, grid**2 + 1, width),
              'embeddings.patch_embeddings.projection.weight': (width, channels, patch, patch),
              'embeddings.patch_embeddings.projection.bias': (width,)}
    for i in range(depth):
        for name, (n, m) in {'attention.attention.query': (width, width), 'attention.attention.key': (width, width),
                             'attention.attention.value': (width, width), 'attention.output.dense': (width, width),
                             'intermediate.dense': (4*width, width), 'output.dense': (width, 4*width)}.items():
            shapes |= {f'encoder.layer.{i}.{name}.weight': (n, m), f'encoder.layer.{i}.{name}.bias': (n,)}
        for name in ('layernorm_before', 'layernorm_after'):
            shapes |= {f'encoder.layer.{i}.{name}.weight': (width,), f'encoder.layer.{i}.{name}.bias': (width,)}
    shapes |= {'layernorm.weight': (width,), 'layernorm.bias': (width,)}
    shapes = {f'encoder.{k}': v for k, v in shapes.items()}
    for o in 'vu':
        shapes |= {f'pool_model.attention_{o}.1.weight': (hidden, width), f'pool_model.attention_{o}.1.bias': (hidden,)}
    return shapes | {'pool_model.attention.weight': (heads, hidden), 'pool_model.attention.bias': (heads,)}

def subcell_file(path, **kwargs):
    tensors = random_tensors(subcell_shapes(**kwargs))
    torch.save(tensors, path)
    return tensors

def classifier_file(path, width=256, hidden=(32, 16)):
    sizes = [width, *hidden, 31]
    tensors = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        tensors |= {f'{3*i}.weight': torch.randn(b, a)/a**.5, f'{3*i}.bias': torch.randn(b)*.1}
    torch.save(tensors, path)
    return tensors

def bestfitting_file(path):
    "The winner's checkpoint, with every module under two names"
    import torchvision
    net = torchvision.models.densenet121(weights=None)
    net.features.conv0 = torch.nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    for k, v in net.named_buffers():
        if k.endswith('running_mean'): v.normal_(0, .1)
        if k.endswith('running_var'): v.uniform_(.8, 1.2)
    features = net.features.state_dict()
    homes = dict(conv1=['conv0', 'norm0'], encoder2=['denseblock1'], encoder3=['transition1', 'denseblock2'],
                 encoder4=['transition2', 'denseblock3'], encoder5=['transition3', 'denseblock4', 'norm5'])
    state = {f'backbone.features.{k}': v for k, v in features.items()}
    state |= {f'backbone.classifier.{k}': v for k, v in net.classifier.state_dict().items()}
    for home, parts in homes.items():
        for i, part in enumerate(parts):
            state |= {f'{home}.{i}.{k.partition(".")[2]}': v for k, v in features.items() if k.split('.')[0] == part}
    for name, n in dict(bn1=2048, bn2=1024).items():
        state |= {f'{name}.weight': torch.rand(n) + .5, f'{name}.bias': torch.randn(n)*.1,
                  f'{name}.running_mean': torch.randn(n)*.1, f'{name}.running_var': torch.rand(n) + .5,
                  f'{name}.num_batches_tracked': torch.tensor(7)}
    for name, (n, m) in dict(fc1=(1024, 2048), logit=(28, 1024)).items():
        state |= {f'{name}.weight': torch.randn(n, m)/m**.5, f'{name}.bias': torch.randn(n)*.1}
    torch.save(dict(state_dict=state, optimizer=dict(state={}, param_groups=[]), epoch=9, best_epoch=8), path)
    return state, net.eval()

# The authors' forward passes -----------------------------------------------------------------------------------------

def attention(x, qkv, proj, heads):
    b, n, width = x.shape
    q, k, v = (o.reshape(b, n, heads, -1).transpose(1, 2) for o in qkv(x).chunk(3, -1))
    weights = (q @ k.transpose(-2, -1)*(width//heads)**-.5).softmax(-1)
    return proj((weights @ v).transpose(1, 2).reshape(b, n, width))

def dino_positions(positions, grid):
    "DINO's `interpolate_pos_encoding`"
    n = math.isqrt(positions.shape[1] - 1)
    if n == grid: return positions
    places = positions[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    places = F.interpolate(places, scale_factor=((grid + .1)/n, (grid + .1)/n), mode='bicubic')
    assert places.shape[-1] == grid
    return torch.cat([positions[:, :1], places.permute(0, 2, 3, 1).reshape(1, grid**2, -1)], 1)

def dino(t, x, gamma=False):
    "DINO's transformer for uint8 images: the class token; each channel of each image is centred and scaled by itself"
    x = x/255
    x = (x - x.mean((-2, -1), keepdim=True))/(x.std((-2, -1), unbiased=False, keepdim=True) + 1e-7)
    width, patch = t['cls_token'].shape[-1], t['patch_embed.proj.weight'].shape[-1]
    def norm(x, name): return F.layer_norm(x, (width,), t[f'{name}.weight'], t[f'{name}.bias'], 1e-6)
    def linear(name): return lambda x: F.linear(x, t[f'{name}.weight'], t[f'{name}.bias'])
    grid = x.shape[-1]//patch
    x = F.conv2d(x, t['patch_embed.proj.weight'], t['patch_embed.proj.bias'], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([t['cls_token'].expand(len(x), -1, -1), x], 1) + dino_positions(t['pos_embed'], grid)
    for i in range(sum(k.endswith('norm1.weight') for k in t)):
        at = f'blocks.{i}'
        y = attention(norm(x, f'{at}.norm1'), linear(f'{at}.attn.qkv'), linear(f'{at}.attn.proj'), width//64)
        x = x + y*(t[f'{at}.ls1.gamma'] if gamma else 1)
        y = linear(f'{at}.mlp.fc2')(F.gelu(linear(f'{at}.mlp.fc1')(norm(x, f'{at}.norm2'))))
        x = x + y*(t[f'{at}.ls2.gamma'] if gamma else 1)
    return norm(x, 'norm')[:, 0]

def subcell_pooled(t, x):
    "SubCell's features of uint8 images, whose channels are in its order"
    low, high = (f(x, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    x = (x - low)/(high - low + 1e-6)
    width = t['encoder.embeddings.cls_token'].shape[-1]
    patch = t['encoder.embeddings.patch_embeddings.projection.weight'].shape[-1]
    def norm(x, name): return F.layer_norm(x, (width,), t[f'encoder.{name}.weight'], t[f'encoder.{name}.bias'], 1e-12)
    def linear(name, x): return F.linear(x, t[f'{name}.weight'], t[f'{name}.bias'])
    at = 'encoder.embeddings'
    grid, positions = x.shape[-1]//patch, t[f'{at}.position_embeddings']
    n = math.isqrt(positions.shape[1] - 1)
    places = positions[:, 1:].reshape(1, n, n, width).permute(0, 3, 1, 2)
    if n != grid: places = F.interpolate(places, size=(grid, grid), mode='bicubic', align_corners=False)
    places = places.permute(0, 2, 3, 1).reshape(1, -1, width)
    projection = f'{at}.patch_embeddings.projection'
    x = F.conv2d(x, t[f'{projection}.weight'], t[f'{projection}.bias'], stride=patch)
    x = torch.cat([t[f'{at}.cls_token'].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + torch.cat([positions[:, :1], places], 1)
    for i in range(sum('layernorm_before.weight' in k for k in t)):
        at = f'encoder.encoder.layer.{i}'
        def qkv(y):
            return torch.cat([linear(f'{at}.attention.attention.{o}', y) for o in ('query', 'key', 'value')], -1)
        y, output = norm(x, f'encoder.layer.{i}.layernorm_before'), partial(linear, f'{at}.attention.output.dense')
        x = x + attention(y, qkv, output, width//64)
        y = norm(x, f'encoder.layer.{i}.layernorm_after')
        x = x + linear(f'{at}.output.dense', F.gelu(linear(f'{at}.intermediate.dense', y)))
    x = norm(x, 'layernorm')
    v, u = linear('pool_model.attention_v.1', x).tanh(), F.gelu(linear('pool_model.attention_u.1', x))
    weights = linear('pool_model.attention', v*u).permute(0, 2, 1).softmax(-1)
    return torch.bmm(weights, x).reshape(len(x), -1)

def subcell_probs(classifiers, pooled):
    "The mean of the classifiers' probabilities"
    def one(t):
        x = F.relu(F.linear(pooled, t['0.weight'], t['0.bias']))
        x = F.relu(F.linear(x, t['3.weight'], t['3.bias']))
        return F.linear(x, t['6.weight'], t['6.bias']).sigmoid()
    return torch.stack([one(o) for o in classifiers], 1).mean(1)

def bestfitting_logits(t, net, x):
    "The winner's forward pass for uint8 images; `large`, with a second pooling"
    mean, std = [.074598, .050630, .050891, .076287], [.122813, .085745, .129882, .119411]
    x = torch.stack([(x[:, i]/255 - mean[i])/std[i] for i in range(4)], 1)
    f = net.features
    x = F.max_pool2d(f.pool0(f.relu0(f.norm0(f.conv0(x)))), 2, stride=2)
    for name in ('denseblock1', 'transition1', 'denseblock2', 'transition2', 'denseblock3', 'transition3',
                 'denseblock4', 'norm5'):
        x = f.get_submodule(name)(x)
    x = F.relu(x)
    x = torch.cat([F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)], 1).flatten(1)
    def norm(x, n):
        return F.batch_norm(x, t[f'{n}.running_mean'], t[f'{n}.running_var'], t[f'{n}.weight'], t[f'{n}.bias'])
    x = F.relu(F.linear(norm(x, 'bn1'), t['fc1.weight'], t['fc1.bias']))
    return F.linear(norm(x, 'bn2'), t['logit.weight'], t['logit.bias'])

# Parity --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('size', [None, 56])
def test_dino4cells(tmp_path, size):
    t = dino4cells_file(tmp_path/'checkpoint.pth')
    model, found = pretrained_model(tmp_path/'checkpoint.pth', size)
    x = uint8_images(3, size or 32)
    close(ours(model, x), dino(t, x))
    assert (found.source, found.labels, found.size) == ('DINO4Cells', None, size or 32)

@pytest.mark.parametrize('patch,size', [(16, None), (14, None), (14, 84)])
def test_cell_dino(tmp_path, patch, size):
    t = cell_dino_file(tmp_path/'cell_dino.pth', patch=patch)
    model, found = pretrained_model(tmp_path/'cell_dino.pth', size)
    x = uint8_images(3, size or 4*patch)
    close(ours(model, x), dino(t, x, gamma=True))
    assert found.source == 'Cell-DINO' and 'Noncommercial' in found.licence

at = dict(red=0, green=1, blue=2, yellow=3)
orders = dict(all=('all_channels', ['red', 'yellow', 'blue', 'green']),
              rbg=('MT-DNA-Protein', ['red', 'blue', 'green']),
              ybg=('ER-DNA-Protein', ['yellow', 'blue', 'green']), bg=('DNA-Protein', ['blue', 'green']))

@pytest.mark.parametrize('name', orders)
def test_subcell_of_all_stains(tmp_path, name):
    name, order = orders[name]
    files = [tmp_path/f'{name}_MAE-CellS-ProtS-Pool.pth', tmp_path/'seed_0.pth', tmp_path/'seed_1.pth']
    t = subcell_file(files[0], channels=len(order))
    classifiers = [classifier_file(o) for o in files[1:]]
    x = uint8_images(3, 32)
    pooled = subcell_pooled(t, x[:, [at[o] for o in order]])
    model, found = pretrained_model(files)
    close(ours(model, x).sigmoid(), subcell_probs(classifiers, pooled))
    assert (found.labels, found.um_per_px, found.single_cells) == (SUBCELL_LABELS, .08, True)
    assert sorted(found.stains) == sorted(order)
    close(ours(pretrained_model(files[:2])[0], x).sigmoid(), subcell_probs(classifiers[:1], pooled))
    close(ours(pretrained_model(files[0])[0], x), pooled)

def test_subcell_at_another_size(tmp_path):
    t = subcell_file(tmp_path/'all_channels.pth')
    x = uint8_images(2, 56)
    close(ours(pretrained_model(tmp_path/'all_channels.pth', 56)[0], x), subcell_pooled(t, x[:, [0, 3, 2, 1]]))

def test_bestfitting(tmp_path):
    t, net = bestfitting_file(tmp_path/'densenet.pth')
    model, found = pretrained_model(tmp_path/'densenet.pth')
    x = uint8_images(2, 128)
    with torch.no_grad(): close(ours(model, x), bestfitting_logits(t, net, x))
    assert (found.labels, found.size, found.um_per_px) == (list(LABELS), 1024, .16)
    again = rgby_model(weights=tmp_path/'densenet.pth')
    close(ours(again, x), ours(model, x))
    fewer = rgby_model(weights=tmp_path/'densenet.pth', n_out=5)
    assert fewer(x/255).shape == (2, 5) and torch.equal(fewer[1][4].weight, again[1][4].weight)

# End to end ----------------------------------------------------------------------------------------------------------

def files_of(kind, folder):
    if kind == 'bestfitting': bestfitting_file(folder/'a.pth')
    if kind == 'dino4cells': dino4cells_file(folder/'a.pth')
    if kind == 'cell_dino': cell_dino_file(folder/'a.pth')
    if kind != 'subcell': return folder/'a.pth', None
    subcell_file(folder/'a.pth')
    classifier_file(folder/'b.pth')
    return [folder/'a.pth', folder/'b.pth'], SUBCELL_LABELS

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    simulate_dataset(folder, n=3, n_test=0, size=96, workers=1)
    return folder/'train'

@pytest.mark.parametrize('kind', ['bestfitting', 'subcell', 'dino4cells', 'cell_dino'])
def test_from_file_to_table(tmp_path, images, kind):
    "A file, a run and `open_weights` give the same table; nothing is left behind"
    (tmp_path/'in').mkdir()
    files, labels = files_of(kind, tmp_path/'in')
    size = 64 if kind == 'bestfitting' else None
    found = convert_weights(files, tmp_path/'run', size)
    before = sorted(tmp_path.rglob('*'))
    opened = open_weights(files, 'cpu', size)
    assert sorted(tmp_path.rglob('*')) == before
    loader = Predictor if found.labels else FeaturePredictor
    run = loader.load(tmp_path/'run', device='cpu')
    tables = [o.predict_folder(images) for o in (opened, run)]
    numbers = found.labels or [f'f{i:04}' for i in range(128)]
    assert all(len(o) == 3 and np.isfinite(o[numbers].to_numpy()).all() for o in tables)
    pd.testing.assert_frame_equal(*[o[['Id', *numbers]] for o in tables])
    if labels: assert list(run.labels) == labels

@pytest.mark.parametrize('kind', ['subcell', 'dino4cells', 'cell_dino'])
def test_hpa_predict_takes_them(tmp_path, images, kind, capsys):
    (tmp_path/'in').mkdir()
    files, labels = files_of(kind, tmp_path/'in')
    out, weights = tmp_path/'out.csv', ','.join(map(str, files)) if labels else str(tmp_path/'in')
    hpa_predict(images=str(images), out=str(out), weights=weights, device='cpu')
    said = capsys.readouterr().out
    assert 'licence: ' in said and '3 images' in said
    df = pd.read_csv(out)
    assert set(labels or ['f0000', 'f0127']) <= set(df) and len(df) == 3
    assert not list(tmp_path.glob('.*'))

# What is refused -----------------------------------------------------------------------------------------------------

def refused(tmp_path, tensors, text, **kwargs):
    torch.save(tensors, tmp_path/'file.pth')
    with pytest.raises(DataError) as e: pretrained_model(tmp_path/'file.pth', **kwargs)
    assert text in str(e.value) and '\n' not in str(e.value) and str(tmp_path/'file.pth') in str(e.value)

def test_hostile_and_unknown_files(tmp_path):
    t = random_tensors(dino_shapes(depth=1))
    named = {f'backbone.{k}': v for k, v in t.items()}
    refused(tmp_path, {'conv1.weight': torch.zeros(3)}, 'not the weights of a known network')
    refused(tmp_path, dict(teacher=named, args=partial(print, 'taken over')), 'not weights that can be read safely')
    refused(tmp_path, named | {'backbone.blocks.99999999.norm1.weight': torch.ones(3)},
            'no vision transformer of a known kind')
    refused(tmp_path, {k: v for k, v in named.items() if 'fc2' not in k}, 'first 0.model.blocks.0.mlp.fc2')
    refused(tmp_path, named | {'backbone.norm.bias': torch.zeros(7)}, 'first 0.model.norm.bias')
    refused(tmp_path, named | {'backbone.pos_embed': torch.zeros(5)}, 'pos_embed has the shape (5,)')
    refused(tmp_path, named | {'backbone.extra': torch.zeros(5)}, 'left over')
    refused(tmp_path, named, 'give a multiple of 8', size=33)
    five = random_tensors(dino_shapes(depth=1, channels=5))
    refused(tmp_path, {f'backbone.{k}': v for k, v in five.items()}, 'for 5 channels')
    refused(tmp_path, named | {'backbone.norm.bias': torch.full((128,), float('nan'))}, 'holds nan')

def test_hostile_subcell(tmp_path):
    t = random_tensors(subcell_shapes(depth=1))
    refused(tmp_path, {k: v for k, v in t.items() if 'attention.key' not in k},
            'lacks its tensor blocks.0.attention.attention.key')
    refused(tmp_path, {k: v for k, v in t.items() if 'attention_u' not in k},
            'lacks its tensor pool_model.attention_u.1.weight')
    refused(tmp_path, random_tensors(subcell_shapes(depth=1, channels=3)),
            'give stains: red,blue,green or yellow,blue,green')
    refused(tmp_path, classifier_file(tmp_path/'c.pth'), 'give the file of the network, too')
    torch.save(t, tmp_path/'a.pth')
    classifier_file(tmp_path/'b.pth', width=99)
    with pytest.raises(DataError, match='of another shape'): pretrained_model([tmp_path/'a.pth', tmp_path/'b.pth'])
    with pytest.raises(DataError, match='as another file does'): read_pretrained([tmp_path/'a.pth', tmp_path/'a.pth'])

def test_as_a_start_for_training(tmp_path):
    "Another number of labels: the rest is theirs"
    dino4cells_file(tmp_path/'a.pth')
    model = rgby_model(weights=tmp_path/'a.pth', n_out=28, head='linear')
    assert model.pretrained and model(torch.rand(2, 4, 32, 32)).shape == (2, 28)
    model(torch.rand(2, 4, 32, 32)).sum().backward()
    subcell_file(tmp_path/'all.pth')
    classifier_file(tmp_path/'c.pth')
    model = rgby_model(weights=[tmp_path/'all.pth', tmp_path/'c.pth'], n_out=28)
    assert model(torch.rand(2, 4, 32, 32)).shape == (2, 28)
    again = rgby_model(**model.config)
    again.load_state_dict(model.state_dict())
    with pytest.raises(DataError, match='leave out body'): rgby_model('densenet121', weights=tmp_path/'a.pth')
