"""What fastai's `Learner` adds to a training step.

The same network, batches and optimizer go through `rgby_learner` and through a bare PyTorch loop.

    python benchmarks/step.py [--body resnet34] [--size 224] [--bs 16] [--steps 12] [--rounds 5] [--json FILE]

Prints one row for each precision: milliseconds per step of both, and their ratio (median over rounds; the two take
turns, so that other work on the machine hits both).
"""
import statistics, time

import torch
from fastai.vision.all import DataLoaders, to_device
from fastcore.script import call_parse

from hpa_fastai.files import write_json
from hpa_fastai.train.learner import best_precision, rgby_learner
from hpa_fastai.train.losses import MultiLabelFocalLoss
from hpa_fastai.models.factory import rgby_model


class Batches(list):
    "The same batches in every epoch, on the device already: what is timed is the step, not the loading"
    device, drop_last = None, False


def sync(device):
    if device.type == 'cuda': torch.cuda.synchronize()


def bare_epoch(model, batches, loss_func, opt, device, dtype):
    for x, y in batches:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = loss_func(model(x).float(), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    return loss.item()


@call_parse
def main(
    body: str = 'resnet34', # timm body
    size: int = 224, # Side of the images in pixels
    bs: int = 16, # Images in a batch
    steps: int = 12, # Steps in a round
    rounds: int = 5, # Rounds of each
    json: str = None # Write the table there too
):
    "Time a training step through the Learner and through a bare loop"
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    g = torch.Generator().manual_seed(0)
    images = torch.randn(bs, 4, size, size, generator=g).contiguous(memory_format=torch.channels_last)
    targs = (torch.rand(bs, 28, generator=g) < .06).float()
    batch = to_device((images, targs), device)
    rows = []
    for precision in dict.fromkeys(['fp32', best_precision(device)]):
        if precision == 'fp16': continue   # the bare loop has no gradient scaler
        dtype = torch.bfloat16 if precision == 'bf16' else None
        model = rgby_model(body, weights=None).to(device, memory_format=torch.channels_last)
        opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        loss_func = MultiLabelFocalLoss()
        dls = DataLoaders(Batches([batch]*steps), Batches(), device=device)
        dls.c = 28
        learn = rgby_learner(dls, body, weights=None, precision=precision, log=None, metrics=[])
        times = dict(learner=[], bare=[])
        def timed(name, f):
            sync(device)
            start = time.perf_counter()
            f()
            sync(device)
            times[name].append((time.perf_counter() - start)/steps*1000)
        def through_learner():
            learn.fit(1, 1e-4)
        def through_loop():
            model.train()
            bare_epoch(model, [batch]*steps, loss_func, opt, device, dtype)
        with learn.no_bar(), learn.no_logging():
            through_learner()   # both warm up
            through_loop()
            for _ in range(rounds):
                timed('learner', through_learner)
                timed('bare', through_loop)
        ratio = statistics.median(x/y for x, y in zip(times['learner'], times['bare']))
        row = dict(device=str(device), body=body, size=size, bs=bs, precision=precision)
        row['learner_ms'] = round(statistics.median(times['learner']), 1)
        row['bare_ms'] = round(statistics.median(times['bare']), 1)
        row['ratio'] = round(ratio, 3)
        rows.append(row)
        print('  '.join(f'{k} {v}' for k, v in rows[-1].items()), flush=True)
    if json: write_json(json, rows)
