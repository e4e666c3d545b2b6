"""Peak memory of a training step: measured on a GPU where there is one, else computed from what autograd keeps.

    python benchmarks/memory.py [--body resnet34] [--size 512] [--bs 32] [--json FILE]

Computed is the sum of
- weights, gradients and AdamW's two moments: 16 bytes a parameter;
- what autograd saves for the backward pass of one image (each storage once, in the precision that autocast gives it),
  times the batch;
- the largest single activation once more, for the gradient in flight.
Workspaces of cuDNN, fragmentation and the CUDA context (about 0.5 GiB) are not in it; a measured figure has all but the
context.
"""
import torch
from fastcore.script import call_parse

from hpa_fastai.files import write_json
from hpa_fastai.train.learner import best_precision
from hpa_fastai.train.losses import MultiLabelFocalLoss
from hpa_fastai.models.factory import rgby_model

GiB = 2**30


def step(model, bs, size, device, dtype):
    "One forward pass and its loss"
    x = torch.randn(bs, 4, size, size, device=device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return MultiLabelFocalLoss()(model(x).float(), torch.zeros(bs, 28, device=device))


def measured(model, bs, size, device, dtype):
    "Bytes at the peak of the second step on a GPU"
    opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        step(model, bs, size, device, dtype).backward()
        opt.step()
        opt.zero_grad()
    return torch.cuda.max_memory_allocated()


def computed(model, bs, size, dtype):
    "Bytes by count; what one more image keeps is three images' less two's"
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    def kept(n):
        storages = {}
        def pack(t):
            s = t.untyped_storage()
            if s.data_ptr() not in own: storages[s.data_ptr()] = s.nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = step(model, n, size, torch.device('cpu'), dtype)
        del loss   # alive until here, and with it every storage
        return sum(storages.values()), max(storages.values())
    two, largest = kept(2)      # two at least: batch norm of one pooled row fails
    three, _ = kept(3)
    parameters = 16*sum(p.numel() for p in model.parameters())
    return parameters + two + (bs - 2)*(three - two) + bs*largest//2


@call_parse
def main(
    body: str = 'resnet34', # timm body
    size: int = 512, # Side of the images in pixels
    bs: int = 32, # Images in a batch
    json: str = None # Write the table there too
):
    "Peak memory of a training step"
    cuda = torch.cuda.is_available()
    half = best_precision('cuda') if cuda else 'bf16'
    rows = []
    for precision in dict.fromkeys(['fp32', half]):
        dtype = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)[precision]
        model = rgby_model(body, weights=None).train()
        model = model.to(memory_format=torch.channels_last)
        if cuda: peak = measured(model.cuda(), bs, size, torch.device('cuda'), dtype)
        else: peak = computed(model, bs, size, dtype)
        row = dict(body=body, size=size, bs=bs, precision=precision, gib=round(peak/GiB, 2))
        row['how'] = 'measured' if cuda else 'computed'
        row['fits_16_gb'] = peak + GiB < 16e9
        rows.append(row)
        print('  '.join(f'{k} {v}' for k, v in rows[-1].items()), flush=True)
    if json: write_json(json, rows)
