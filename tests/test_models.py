"""Every body with every stem, every head, every network of our own: built, run and trained a step at toy size;
weights that don't fit; resuming after a kill in another process."""
import os, random, signal, subprocess, sys, textwrap

import pytest, torch
from safetensors.torch import save_file
import timm

from hpa_fastai.labels import DataError
from hpa_fastai.train.losses import LOSSES
from hpa_fastai.models.heads import HEADS
from hpa_fastai.models.factory import NETWORKS, rgby_model
from hpa_fastai.models.stems import STEMS
from hpa_fastai.models.weights import load_weights, save_weights

torch.set_num_threads(1)

# the bodies that the systems of 2018 used, and modern ones: name, side, arguments
BODIES = [('resnet18', 64, {}), ('resnet34', 64, {}), ('resnet50', 64, {}), ('vgg16', 64, {}),
          ('inception_v3', 96, {}), ('legacy_xception', 64, {}), ('densenet121', 64, {}),
          ('legacy_seresnext50_32x4d', 64, {}), ('efficientnet_b0', 64, {}), ('convnext_atto', 64, {}),
          ('vit_tiny_patch16_224', 64, dict(img_size=64))]


@pytest.fixture(scope='module', params=BODIES, ids=[o[0] for o in BODIES])
def body(request, tmp_path_factory):
    "A body and a weights file of it, saved by timm's own model"
    name, size, kw = request.param
    net = timm.create_model(name, **kw)
    file = tmp_path_factory.mktemp(name)/'weights.safetensors'
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    first = net.get_submodule(net.pretrained_cfg['first_conv']).weight.detach()
    yield name, size, kw, file, first
    file.unlink()


def test_body_with_every_stem(body):
    name, size, kw, file, first = body
    x = torch.randn(2, 4, size, size)
    for stem in STEMS:
        model = rgby_model(name, stem=stem, head='linear', weights=file, **kw)
        torch.testing.assert_close(model[0].stem[1].weight, STEMS[stem](first), rtol=0, atol=0)
        with torch.no_grad(): assert model.eval()(x).shape == (2, 28)
    loss = LOSSES['focal']()(model.train()(x), torch.zeros(2, 28))
    loss.backward()
    idle = [k for k, p in model.named_parameters() if p.grad is None]
    assert not idle and loss.isfinite(), idle


@pytest.mark.parametrize('head', HEADS)
def test_head_on_channels_last(head):
    model = rgby_model('test_resnet', head=head, weights=None).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 96, 96).contiguous(memory_format=torch.channels_last)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('name', NETWORKS)
def test_network_saves_and_loads(name, tmp_path):
    model = rgby_model(name)
    save_weights(model, tmp_path/'model.safetensors')
    again = rgby_model(**{**model.config, 'weights': tmp_path/'model.safetensors'})
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 not a zip', random.Random(0).randbytes(200),
                                     b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"X"}}'])
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_damaged_weights(content, suffix, tmp_path):
    (tmp_path/f'w{suffix}').write_bytes(content)
    with pytest.raises(DataError, match='not weights that can be read safely') as e:
        rgby_model('test_resnet', weights=tmp_path/f'w{suffix}')
    assert '\n' not in str(e.value)


def test_weights_of_another_body(tmp_path):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path/'r18.safetensors')
    with pytest.raises(DataError, match='not the weights of resnet34'):
        rgby_model('resnet34', weights=tmp_path/'r18.safetensors')
    with pytest.raises(DataError, match='weights of another model'):
        load_weights(rgby_model('test_resnet', weights=None), tmp_path/'r18.safetensors')


@pytest.mark.parametrize('name', ['test_vit', 'test_vit2', 'test_vit3'])
def test_weights_of_a_transformer_for_another_image_size(name, tmp_path):
    "timm resizes position embeddings; the rest of the file must still be whole"
    state = timm.create_model(name).state_dict()
    save_file(state, tmp_path/'vit.safetensors')
    model = rgby_model(name, weights=tmp_path/'vit.safetensors', img_size=320)
    assert torch.equal(model[0].model.blocks[0].attn.qkv.weight, state['blocks.0.attn.qkv.weight'])
    del state['blocks.0.attn.qkv.weight']
    save_file(state, tmp_path/'half.safetensors')
    with pytest.raises(DataError, match='first blocks.0.attn.qkv.weight'):
        rgby_model(name, weights=tmp_path/'half.safetensors', img_size=320)


FIT = '''
    import os, signal, sys, torch
    from fastai.vision.all import Callback, DataLoader, DataLoaders, set_seed
    from hpa_fastai.train.checkpoint import Checkpoint
    from hpa_fastai.train.learner import rgby_learner
    from hpa_fastai.models.weights import save_weights
    torch.set_num_threads(1)
    folder, kill = sys.argv[1], sys.argv[2] == 'kill'
    class Kill(Callback):
        order = 95
        def after_batch(self):
            if self.training and self.epoch == 2 and self.iter == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    g = torch.Generator().manual_seed(0)
    items = list(zip(torch.randn(24, 4, 32, 32, generator=g), (torch.rand(24, 28, generator=g) < .2).float()))
    set_seed(0, reproducible=True)
    dls = DataLoaders(*[DataLoader(items, bs=8, shuffle=o, num_workers=0) for o in (True, False)],
                      path=folder, device='cpu')
    dls.c = 28
    learn = rgby_learner(dls, 'test_resnet', weights=None, cbs=[Kill()] if kill else [])
    with learn.no_bar(): learn.fit_one_cycle(4, 3e-3, cbs=Checkpoint(folder + '/fit.pt'))
    save_weights(learn.model, folder + '/model.safetensors')
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL here')
def test_killed_fit_goes_on_exactly(tmp_path):
    def fit(name, mode='whole'):
        (tmp_path/name).mkdir(exist_ok=True)
        command = [sys.executable, '-c', textwrap.dedent(FIT), str(tmp_path/name), mode]
        return subprocess.run(command, capture_output=True, text=True)
    assert (o := fit('whole')).returncode == 0, o.stderr
    assert fit('cut', 'kill').returncode == -signal.SIGKILL
    assert not (tmp_path/'cut/model.safetensors').exists()
    assert (o := fit('cut')).returncode == 0, o.stderr
    assert (tmp_path/'cut/model.safetensors').read_bytes() == (tmp_path/'whole/model.safetensors').read_bytes()
    def log(name): return [line.rsplit(',', 1)[0] for line in (tmp_path/name/'log.csv').read_text().splitlines()]
    assert log('cut') == log('whole') and len(log('whole')) == 5
