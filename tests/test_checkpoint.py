"What may change between a fit that was stopped and the one that goes on: GPUs, precision, accumulation, files."
from contextlib import nullcontext
import numpy as np
import pytest
import torch
from fastai.callback.fp16 import GradScaler, MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.vision.all import Adam, Callback, DataLoader, DataLoaders, L, Learner, MSELossFlat, SGD, nn, set_seed
from hpa_fastai.labels import DataError
from hpa_fastai.train.checkpoint import Checkpoint, random_state, SaveBest, set_random_state
from hpa_fastai.train.learner import OPTIMIZERS

class Stopped(Exception): pass

class Stop(Callback):
    "Stop in the first batch of an epoch"
    order = 90
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.epoch == self.at: raise Stopped('stopped')

def toy(cbs=(), opt_func=SGD, bs=8):
    "A learner of 24 points"
    set_seed(0)
    g = torch.Generator().manual_seed(0)
    items = list(zip(torch.randn(24, 4, generator=g), torch.randn(24, 1, generator=g)))
    dls = DataLoaders(*(DataLoader(items, bs=bs, num_workers=0) for _ in range(2)), device='cpu')
    return Learner(dls, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), MSELossFlat(), opt_func, cbs=list(cbs))

def fit(learn, *cbs, epochs=2):
    "The learner after a fit, or after it was stopped"
    with learn.no_bar(), learn.no_logging():
        try: learn.fit(epochs, 1e-2, cbs=list(cbs))
        except Stopped: pass
    return learn

class GPUs:
    "Stand in for the GPUs of a machine; the state of GPU i is i + 10"
    def __init__(self, monkeypatch, n, current=0):
        self.states = {i: torch.tensor([i + 10]) for i in range(n)}
        def set_state(state, i): self.states[i] = state
        for k, v in dict(is_available=lambda: True, device_count=lambda: n, current_device=lambda: current,
                         get_rng_state=lambda i: self.states[i], set_rng_state=set_state).items():
            monkeypatch.setattr(torch.cuda, k, v)

@pytest.mark.parametrize('current', [0, 1])
def test_two_gpus_then_one(monkeypatch, current):
    "The only GPU goes on with the random state of the GPU that was in use"
    dls = toy().dls
    GPUs(monkeypatch, 2, current)
    state = random_state(dls)
    one = GPUs(monkeypatch, 1)
    set_random_state(dls, state)
    assert one.states == {0: torch.tensor([current + 10])}

@pytest.mark.parametrize('current', [0, 1])
def test_one_gpu_then_two(monkeypatch, current):
    dls = toy().dls
    GPUs(monkeypatch, 1)
    state = random_state(dls)
    two = GPUs(monkeypatch, 2, current)
    set_random_state(dls, state)
    assert two.states[current] == 10 and two.states[1 - current] == 11 - current

class Scaled(MixedPrecision):
    "Scale losses as fp16 does, without fp16"
    def __init__(self, scale): self.scale = scale
    def before_fit(self):
        self.autocast, self.scales = nullcontext(), L()
        self.learn.scaler = GradScaler('cpu', init_scale=self.scale, enabled=self.scale != 1)

@pytest.mark.parametrize('then, now', [(1024., 1), (1, 1024.), (1024., None), (1024., 1024.)])
def test_gradients_wait_for_another_precision(tmp_path, then, now):
    "Gradients that wait under fp16 are scaled; a GPU without fp16 takes them for what they are, and the reverse"
    def learner(scale, n=100): return toy([GradientAccumulation(n)] + ([Scaled(scale)] if scale else []))
    expected = [p.grad for p in fit(learner(None)).model.parameters()]
    fit(learner(then), Stop(1), Checkpoint(tmp_path/'fit.pt'))
    learn = fit(learner(now), Checkpoint(tmp_path/'fit.pt'))
    for a, b in zip(expected, learn.model.parameters()): torch.testing.assert_close(b.grad/(now or 1), a)

@pytest.mark.parametrize('n_acc, left', [(32, 16), (64, 8)])
def test_another_accumulation(tmp_path, capsys, n_acc, left):
    "What waits is a part of a step, whatever number of images a step has now"
    fit(toy([GradientAccumulation(32)]), Stop(1), Checkpoint(tmp_path/'fit.pt'))   # 24 of 32 wait
    accumulation = GradientAccumulation(n_acc)
    counts = []
    class Note(Callback):
        def after_epoch(self): counts.append(accumulation.count)
    fit(toy([accumulation, Note()]), Checkpoint(tmp_path/'fit.pt'))
    assert counts[-1] == left
    assert ('number of accumulated images was 32, is 64' in capsys.readouterr().out) == (n_acc == 64)

def test_no_accumulation_any_more(tmp_path, capsys):
    "Without accumulation nothing waits: a step is made of its own batch"
    fit(toy([GradientAccumulation(100)]), Stop(1), Checkpoint(tmp_path/'fit.pt'))   # no step yet
    learn = fit(toy(), Checkpoint(tmp_path/'fit.pt'))
    expected = fit(toy(), epochs=1)
    for a, b in zip(expected.model.parameters(), learn.model.parameters()): assert torch.equal(a, b)
    assert 'number of accumulated images was 100, is 0' in capsys.readouterr().out

def test_optimizer_state_is_where_the_weights_are(tmp_path):
    "fastai's own optimizers continue on a GPU too (`meta` stands in for it)"
    fit(toy(opt_func=Adam), Stop(1), Checkpoint(tmp_path/'fit.pt'))
    learn, cb = toy(opt_func=Adam), Checkpoint(tmp_path/'fit.pt')
    learn.model.to('meta')
    learn.create_opt()
    learn.add_cb(cb)
    learn.n_epoch = 2
    cb.state = cb._read()
    cb._restore()
    devices = {v.device.type for s in learn.opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)}
    assert devices == {'meta'}

@pytest.mark.parametrize('name', OPTIMIZERS)
def test_each_optimizer_goes_on_as_if_never_stopped(tmp_path, name):
    whole = fit(toy(opt_func=OPTIMIZERS[name]))
    fit(toy(opt_func=OPTIMIZERS[name]), Stop(1), Checkpoint(tmp_path/'fit.pt'))
    resumed = fit(toy(opt_func=OPTIMIZERS[name]), Checkpoint(tmp_path/'fit.pt'))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()): assert torch.equal(a, b)
    assert not torch.equal(*(o.model[0].weight for o in (whole, fit(toy(opt_func=OPTIMIZERS[name]), epochs=1))))

def test_schedule_with_another_batch_size(tmp_path, capsys):
    "Rates go by epochs: with half the batch size each one is met by two batches"
    def one_cycle(learn, *cbs):
        with learn.no_bar(), learn.no_logging():
            try: learn.fit_one_cycle(4, .1, cbs=list(cbs))
            except Stopped: pass
        return learn
    whole = one_cycle(toy())
    one_cycle(toy(), Stop(2), Checkpoint(tmp_path/'fit.pt'))
    learn = one_cycle(toy(bs=4), Checkpoint(tmp_path/'fit.pt'))
    lrs = whole.recorder.lrs
    assert learn.recorder.lrs[:6] == lrs[:6]
    np.testing.assert_allclose(learn.recorder.lrs[6::2], lrs[6:])
    assert learn.train_iter == 2*3 + 2*6 and learn.recorder.iters == [3, 6, 12, 18]
    assert 'the batch size was 8, is 4; the weights will differ a little' in capsys.readouterr().out

def test_best_epoch_is_lost(tmp_path):
    "A fit that goes on says at once that its best epoch's weights are gone, not after hours"
    class Best(Callback):
        "Each epoch is worse than the one before"
        order = 55
        def after_epoch(self): self.recorder.values[-1][1] = float(self.epoch)
    def cbs(): return [Best(), SaveBest(tmp_path/'best.safetensors'), Checkpoint(tmp_path/'fit.pt')]
    fit(toy(), Stop(2), *cbs(), epochs=3)
    (tmp_path/'best.safetensors').unlink()
    steps = []
    class Note(Callback):
        def after_step(self): steps.append(self.epoch)
    with pytest.raises(DataError, match='best.safetensors.*fit.pt'): fit(toy(), Note(), *cbs(), epochs=3)
    assert not steps
