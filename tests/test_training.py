"A training learns, averages, logs and computes as it says: interrupted, on another device, without the internet."
import copy, pickle, time
from contextlib import redirect_stdout
from functools import partial
from types import SimpleNamespace
import pytest, timm
from fastai.callback import fp16
from fastai.callback.training import GradientAccumulation
from fastai.interpret import Interpretation
from fastai.vision.all import Callback, CancelStepException, Datasets, OptimWrapper, load_learner, nn, set_seed, torch
from huggingface_hub import constants
from torch.optim import swa_utils
from hpa_fastai.labels import DataError
from hpa_fastai.models import factory
from hpa_fastai.models.factory import NETWORKS, rgby_model
from hpa_fastai.models.heads import HEADS
from hpa_fastai.runs.setup import make_deterministic
from hpa_fastai.train import learner as learner_chapter
from hpa_fastai.train.averaging import WeightEMA, WeightSWA
from hpa_fastai.train.checkpoint import Checkpoint
from hpa_fastai.train.learner import OPTIMIZERS, rgby_learner
from hpa_fastai.train.losses import HardNegativeLoss
from hpa_fastai.train.f1_losses import LOSSES

# ---- small learners ----
def noise_dls(path, n=16, bs=4):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 4, 16, 16, generator=g), (torch.rand(n, 5, generator=g) < .3).float()
    data = Datasets(range(n), [[lambda i: x[i]], [lambda i: y[i]]], splits=[range(n), range(n)])
    dls = data.dataloaders(bs=bs, path=path, device='cpu', num_workers=0)
    dls.c = 5
    return dls

def tiny_net():
    body = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))

def tiny_learner(path, net=None, **kwargs):
    set_seed(0, reproducible=True)
    kwargs = dict(log=None, precision='fp32', metrics=[]) | kwargs
    return rgby_learner(noise_dls(path), net or tiny_net(), **kwargs)

def fit(learn, epochs=1, **kwargs):
    with learn.no_bar(), redirect_stdout(None): learn.fit(epochs, 1e-2, **kwargs)
    return learn

def same(a, b):
    for k, v in a.state_dict().items(): assert torch.equal(v, b.state_dict()[k]), k

class StopButton(Callback):
    "Interrupt a fit in its second epoch"
    def __init__(self, event='before_train', epoch=1): self.epoch_, self.event = epoch, event
    def __call__(self, event_name):
        if event_name == self.event and self.learn.epoch == self.epoch_ and self.learn.training: raise KeyboardInterrupt

def interrupted(learn, **kwargs):
    stop = StopButton(**kwargs)
    with pytest.raises(KeyboardInterrupt): fit(learn, 3, cbs=stop)
    return learn

# ---- averages ----
class Spy(Callback):
    "Keep the weights after each epoch's training, and after each batch"
    order = 66
    def before_fit(self): self.epochs, self.batches = [], []
    def after_batch(self):
        if self.training: self.batches.append(copy.deepcopy(self.model.state_dict()))
    def after_train(self): self.epochs.append(copy.deepcopy(self.model.state_dict()))

def test_mean_where_pytorch_averages_many_tensors_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(swa_utils, '_get_foreach_kernels_supported_devices', lambda: ['cpu'])   # as it is on a GPU
    learn, spy = tiny_learner(tmp_path), Spy()
    fit(learn, 4, cbs=[WeightSWA(.25), spy])
    for k, v in learn.model.state_dict().items():
        states = torch.stack([o[k] for o in spy.epochs[1:]])
        torch.testing.assert_close(v, states.mean(0) if v.is_floating_point() else states[-1])

def test_moving_average_counts_steps(tmp_path):
    ema = WeightEMA()
    fit(tiny_learner(tmp_path), 2, cbs=[ema, GradientAccumulation(8)])
    assert int(ema.average.n_averaged) == 4   # of 8 batches

def test_moving_average_passes_over_skipped_steps(tmp_path):
    class Overflow(Callback):
        "Skip every other step, as 16-bit training does where a gradient is infinite"
        order = 10
        def before_step(self):
            if self.train_iter % 2: raise CancelStepException
    ema = WeightEMA()
    fit(tiny_learner(tmp_path), 2, cbs=[ema, Overflow()])
    assert int(ema.average.n_averaged) == 4   # of 8 batches

@pytest.mark.parametrize('images', [8, 12])   # 12: gradients are waiting when an epoch ends
def test_moving_average_of_a_continued_fit(tmp_path, images):
    def averaged(file, *cbs):
        learn = tiny_learner(tmp_path)
        cbs = [WeightEMA(.9), GradientAccumulation(images), Checkpoint(tmp_path/file), *cbs]
        return learn, dict(epochs=3, cbs=cbs)
    learn, kwargs = averaged('whole.pt')
    whole = fit(learn, **kwargs)
    learn, kwargs = averaged('cut.pt', StopButton('after_pred', 2))
    with pytest.raises(KeyboardInterrupt): fit(learn, **kwargs)
    learn, kwargs = averaged('cut.pt')
    same(whole.model, fit(learn, **kwargs).model)

# ---- precision ----
def count_precision(monkeypatch):
    "Let fastai's callback and ours compute on the CPU, and count what they do in `autocast` and `scale`"
    counts = dict(autocast=0, scale=0)
    class Cast(torch.autocast):
        def __init__(self, device, dtype=None, **kwargs): super().__init__('cpu', torch.bfloat16, **kwargs)
        def __enter__(self):
            counts['autocast'] += 1
            return super().__enter__()
    class Scaler(torch.amp.GradScaler):
        def __init__(self, device, **kwargs): super().__init__('cpu', **kwargs)
        def scale(self, o):
            counts['scale'] += self.is_enabled()
            return super().scale(o)
    monkeypatch.setattr(fp16, 'autocast', Cast)
    monkeypatch.setattr(torch, 'autocast', Cast)
    for module in fp16, learner_chapter: monkeypatch.setattr(module, 'GradScaler', Scaler)
    return counts

@pytest.mark.parametrize('switch,scaled', [('to_fp16', 4), ('to_bf16', 0)])
@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_fastais_switches_replace_ours(tmp_path, monkeypatch, switch, scaled, precision):
    learn = tiny_learner(tmp_path, precision=precision)
    getattr(learn, switch)()
    counts = count_precision(monkeypatch)
    fit(learn)
    left_on = torch.is_autocast_enabled('cpu')
    torch.set_autocast_enabled('cpu', False)
    assert not left_on
    assert counts == dict(autocast=8, scale=scaled)   # four batches of training, four of validation

@pytest.mark.parametrize('precision', ['auto', 'fp16', 'bf16'])
def test_single_precision_by_fastais_switch(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(learner_chapter, 'best_precision', lambda device: 'bf16')
    learn = tiny_learner(tmp_path, precision=precision).to_fp32()
    counts = count_precision(monkeypatch)
    fit(learn)
    assert counts == dict(autocast=0, scale=0)

def dtypes(learn):
    "What the last layer computes in"
    seen = set()
    hook = learn.model[1].register_forward_hook(lambda module, inp, out: seen.add(out.dtype))
    with learn.no_bar(): learn.get_preds()
    hook.remove()
    return seen

def test_automatic_precision_is_that_of_the_present_device(tmp_path, monkeypatch):
    best = dict(precision='fp32')
    monkeypatch.setattr(learner_chapter, 'best_precision', lambda device: best['precision'])
    learn = tiny_learner(tmp_path, precision='auto')
    assert dtypes(learn) == {torch.float32}
    best['precision'] = 'bf16'   # as if moved to another device
    assert dtypes(learn) == {torch.bfloat16}

@pytest.mark.parametrize('precision', ['fp16', 'auto'])
def test_no_half_precision_on_a_processor(tmp_path, monkeypatch, precision):
    with monkeypatch.context() as older_gpu:
        older_gpu.setattr(learner_chapter, 'best_precision', lambda device: 'fp16')
        tiny_learner(tmp_path, precision=precision).export('learner.pkl')
    monkeypatch.setattr(learner_chapter, 'best_precision', lambda device: 'fp32')
    learn = load_learner(tmp_path/'learner.pkl')
    learn.dls = noise_dls(tmp_path)
    assert dtypes(learn) == {torch.float32}

@pytest.mark.parametrize('precision', ['bf16', 'fp32'])
def test_fit_after_an_interrupted_batch(tmp_path, precision):
    def losses(): return [o.item() for o in fit(tiny_learner(tmp_path, precision=precision), 2).recorder.losses]
    uninterrupted = losses()
    interrupted(tiny_learner(tmp_path, precision='bf16'), event='after_pred', epoch=0)
    after, left_on = losses(), torch.is_autocast_enabled('cpu')
    torch.set_autocast_enabled('cpu', False)   # for the tests below
    assert after == uninterrupted   # not computed with the copies of weights that the interrupted batch has left
    assert not left_on

# ---- log ----
def test_fit_after_an_interrupted_fit(tmp_path):
    learn = fit(interrupted(tiny_learner(tmp_path, log='log.csv')), 2)
    assert learn.epoch_log.read_log().epoch.tolist() == [0, 0, 1]
    assert learn.logger is print

def test_validation_between_an_interrupted_fit_and_the_next(tmp_path):
    learn = interrupted(tiny_learner(tmp_path, log='log.csv'))
    with learn.no_bar(): learn.validate()
    fit(learn, 2)
    assert learn.epoch_log.read_log().epoch.tolist() == [0, 0, 1]

def test_interrupted_fit_with_a_bar(tmp_path, capsys):
    learn = tiny_learner(tmp_path, log='log.csv')
    with pytest.raises(KeyboardInterrupt): learn.fit(3, cbs=StopButton())
    learn.remove_cb(StopButton)
    learn.fit(2)
    fit(learn)
    assert learn.epoch_log.read_log().epoch.tolist() == [0, 0, 1, 0]

def test_export_of_an_interrupted_fit(tmp_path):
    interrupted(tiny_learner(tmp_path, log='log.csv')).export('learner.pkl')
    learn = load_learner(tmp_path/'learner.pkl')
    learn.dls = noise_dls(tmp_path)
    fit(learn, 2)
    assert learn.epoch_log.read_log().epoch.tolist() == [0, 0, 1]

# ---- losses ----
@pytest.mark.parametrize('name', LOSSES)
def test_images_of_the_largest_losses(tmp_path, name):
    loss_func = LOSSES[name]()
    learn = fit(tiny_learner(tmp_path, loss_func=loss_func))
    with learn.no_bar():
        found = Interpretation.from_learner(learn).top_losses(16)
        probs, targs, losses = learn.get_preds(with_loss=True)
    assert losses.shape == (16,) and losses.isfinite().all()
    torch.testing.assert_close(found[0], losses.sort(descending=True)[0])
    assert loss_func.reduction != 'none'
    alone = torch.stack([loss_func(x, t) for x, t in zip(probs.logit().split(1), targs.split(1))])
    ratio = 5 if loss_func.reduction == 'batchmean' else 1   # fastai takes the mean of an image's answers
    torch.testing.assert_close(losses*ratio, alone, rtol=1e-4, atol=1e-5)

def test_hard_negatives_of_an_easy_batch():
    x, absent = torch.randn(4, 5, requires_grad=True), torch.zeros(4, 5)
    loss = HardNegativeLoss(least=0., more=0)(x[:1], absent[:1])   # nothing is kept
    loss.backward()
    assert loss == 0 and x.grad.isfinite().all()

# ---- parts of a network, weight decay ----
def test_all_parts_learn(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(8, 8),
                        nn.Linear(8, 5))
    before = copy.deepcopy(net.state_dict())
    fit(tiny_learner(tmp_path, net))
    assert not [k for k, v in net.state_dict().items() if torch.equal(v, before[k])]

def test_network_without_parts(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)
        def forward(self, x): return self.layer(x.mean((2, 3)))
    with pytest.raises(TypeError, match=r'the network is a Whole; make it nn.Sequential\(body, head\)'):
        fit(tiny_learner(tmp_path, Whole()))

def test_decay_that_an_optimizer_cannot_leave_out(tmp_path):
    net = tiny_net()
    built = OptimWrapper(opt=torch.optim.AdamW([dict(params=list(net.parameters()))], lr=1e-3))
    for opt_func in *OPTIMIZERS.values(), built:
        assert tiny_learner(tmp_path, net, opt_func=opt_func).wd_bn_bias
        with pytest.raises(ValueError, match='opt_func=Adam'):
            tiny_learner(tmp_path, net, opt_func=opt_func, wd_bn_bias=False)

# ---- pretrained weights without the internet ----
@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    "An empty cache, and a hub that nobody answers at"
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', 'http://127.0.0.1:9/{repo_id}/{revision}/{filename}')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'torch'))
    return tmp_path

def test_missing_hub_is_reported_soon(no_hub):
    begun = time.time()
    with pytest.raises(DataError, match='could not be fetched.*give weights=PATH'): rgby_model('test_resnet')
    assert time.time() - begun < 7

@pytest.mark.parametrize('body', ['test_resnet.r160_in1k', 'legacy_seresnext50_32x4d.in1k'])   # on the hub, on GitHub
def test_hub_that_never_answers_is_reported_soon(no_hub, monkeypatch, body):
    def head(url, timeout): time.sleep(30)   # `timeout` for each of many addresses
    monkeypatch.setattr(factory, 'get_session', lambda: SimpleNamespace(head=head), raising=False)
    monkeypatch.setattr(factory, '_check_answer', partial(factory._check_answer, seconds=.2))
    with pytest.raises(DataError, match=r'could not be fetched \(TimeoutError: no answer from http'): rgby_model(body)

@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_weights_in_the_cache_need_no_hub(no_hub, name):
    from safetensors.torch import save_file
    snapshot = no_hub/'hub/models--timm--test_resnet.r160_in1k/snapshots/abc'
    snapshot.mkdir(parents=True)
    (snapshot.parents[1]/'refs').mkdir()
    (snapshot.parents[1]/'refs/main').write_text('abc')
    weights = timm.create_model('test_resnet').state_dict()
    (save_file if name.endswith('safetensors') else torch.save)(weights, snapshot/name)
    begun = time.time()
    model = rgby_model('test_resnet')
    assert time.time() - begun < 7
    assert torch.equal(model[0].model.conv1[0].weight[:, :3], weights['conv1.0.weight'])

def test_weights_from_github_in_the_cache_need_no_connection(no_hub):
    name = 'legacy_seresnet18.in1k'
    file = no_hub/'torch/checkpoints'/timm.get_pretrained_cfg(name).url.rpartition('/')[2]
    file.parent.mkdir(parents=True)
    weights = timm.create_model('legacy_seresnet18').state_dict()
    torch.save(weights, file)
    assert torch.equal(rgby_model(name)[0].model.layer1[0].conv1.weight, weights['layer1.0.conv1.weight'])

# ---- the same numbers on a GPU ----
@pytest.fixture
def deterministic():
    yield
    torch.use_deterministic_algorithms(False)

networks = [('test_resnet', head) for head in HEADS] + [(body, 'linear') for body in NETWORKS]

@pytest.mark.parametrize('body,head', networks)
def test_deterministic_networks(deterministic, body, head):
    side = 256 if head == 'gapnet_pretrained' else 64
    model, x = rgby_model(body, 5, head=head, weights=None, dropout=0.), torch.randn(2, 4, side, side)
    other = copy.deepcopy(model)
    make_deterministic(model)
    assert not any(isinstance(m, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) for m in model.modules())
    for m in model, other: m(x).square().sum().backward()
    for p, q in zip(model.parameters(), other.parameters()): torch.testing.assert_close(p.grad, q.grad)
    with torch.no_grad():
        logits = model.eval()(x)
        for copied in copy.deepcopy(model), pickle.loads(pickle.dumps(model)): assert torch.equal(copied(x), logits)

@pytest.mark.parametrize('name', LOSSES)
def test_deterministic_losses(deterministic, tmp_path, name):
    def trained():
        learn = tiny_learner(tmp_path, loss_func=LOSSES[name]())
        make_deterministic(learn.model)
        return fit(learn, cbs=[WeightEMA(), GradientAccumulation(8)]).model
    same(trained(), trained())
