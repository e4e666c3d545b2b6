#!/usr/bin/env python
"""Train on simulated cells alone, then label real ones.

No real image and no pretrained weight is used: a small residual network sees simulated fields, drawn at the scale of
the real images, for a given number of minutes (simulation included), and is then asked about the images in `--real`:
files named `CLASS-….jpg` (composites: red microtubules, green protein, blue nucleus, a scale bar at the lower right),
or a folder of `ID_{red,green,blue,yellow}.png` with a CSV of `Id,Target`.
"""
import argparse, json, os, re, time
from pathlib import Path

import cv2
import numpy as np

from hpa_fastai.labels import CHANNELS, LABELS, DataError, encode_targets, read_labels
from hpa_fastai.simulate.optics import Microscope
from hpa_fastai.simulate.dataset import simulate_field
from hpa_fastai.workers import ordered_map

# Published pictures: long exposures, strong contrast
GALLERY = Microscope(photons=(40, 2000), marker_photons=(100, 3000), black=(.01, .08), gamma=(.8, 1.5),
                     bright=(.6, 1.6), marker_bright=(.35, 1.6))

FINE = .36 # µm per pixel that the network sees

# -- the real images

def without_bar(image):
    "A copy in which a white scale bar at the lower right is painted over with what surrounds it"
    h, w = image.shape[:2]
    white = np.zeros((h, w), np.uint8)
    corner = np.s_[int(.88*h):, int(.6*w):]
    white[corner] = (image[corner][..., :3].min(2) > 120)
    row = white.sum(1) > .05*w # a bar is wide; a bright cell is rarely white
    white[~row] = 0
    if not white.any(): return image
    white = cv2.dilate(white, np.ones((9, 9), np.uint8))
    channels = [np.ascontiguousarray(image[..., c]) for c in range(image.shape[2])]
    return np.dstack([cv2.inpaint(c, white, 3, cv2.INPAINT_TELEA) for c in channels])

def read_composite(path):
    "A published picture without its scale bar, (h, w, 3) uint8"
    return without_bar(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))

def read_stains(folder, image_id):
    "The four stains of an image, (h, w, 4) uint8"
    return np.dstack([cv2.imread(str(folder/f'{image_id}_{c}.png'), 0) for c in CHANNELS])

def read_real(folder, table=None):
    "Images (h, w, 3 or 4) uint8, their label sets and their names"
    folder = Path(folder)
    named = sorted(o for o in folder.iterdir() if re.match(r'\d{1,2}-.*\.(jpe?g|png)$', o.name))
    if named: return [read_composite(o) for o in named], [o.name.split('-')[0] for o in named], [o.name for o in named]
    table = Path(table) if table else next(folder.glob('*.csv'), None)
    if not table: raise DataError(f'{folder}: no CLASS-….jpg and no CSV; name the label list with --csv')
    df = read_labels(table)
    df = df[[all((folder/f'{o}_{c}.png').exists() for c in CHANNELS) for o in df.Id]]
    if not len(df): raise DataError(f'{folder}: no image of {table} here; expected ID_red.png and so on')
    return [read_stains(folder, o) for o in df.Id], list(df.Target), list(df.Id)

# -- the simulated ones

def draw(job):
    "One simulated field and its label; a few show nucleoplasm or cytosol too"
    seed, size, um, n_channels = job
    rng = np.random.default_rng([seed, 99])
    label = seed%28
    labels = [label] if rng.random() < .93 else [label, rng.choice([0, 25])]
    site = GALLERY if n_channels == 3 else rng.choice(['train', 'test'])
    field = simulate_field([int(i) for i in labels], size, seed, um*rng.uniform(.75, 1.3), site=site)
    return field.image[..., :n_channels], label

def simulate(n, seconds, size, um, n_channels, seed=0, workers=2):
    "At most `n` fields, fewer where the time is up first"
    images = np.empty((n, size, size, n_channels), np.uint8)
    labels = np.empty(n, np.int64)
    end = time.time() + seconds
    jobs = ((seed + i, size, um, n_channels) for i in range(n) if i < 224 or time.time() < end)
    at = 0
    for image, label in ordered_map(draw, jobs, workers, chunk=14):
        images[at], labels[at] = image, label
        at += 1
    return images[:at], labels[:at]

# -- the network

def normalise(x):
    "Each channel of each image by itself; a black channel stays 0"
    x = x.sqrt()
    return (x - x.mean((2, 3), keepdim=True))/(x.std((2, 3), keepdim=True) + .02)

def logits(model, x, device):
    "What the network says about a batch (b, c, h, w) in 0..1, as floats"
    import torch
    return model(normalise(x.to(device)).contiguous(memory_format=torch.channels_last)).float()

def augment(x, rng):
    "Eight symmetries, gains, contrast, a lost marker, blur and noise; x is (b, c, h, w) in 0..1"
    import torch, torch.nn.functional as F
    parts = []
    for part in x.split(max(len(x)//8, 1)):
        if rng.random() < .5: part = part.flip(3)
        part = torch.rot90(part, int(rng.integers(4)), (2, 3))
        if rng.random() < .3:
            a = float(rng.uniform(.1, .5))
            k = torch.tensor([a/2, 1 - a, a/2])
            k = (k[:,None]*k)[None,None].repeat(part.shape[1], 1, 1, 1)
            part = F.conv2d(part, k, padding=1, groups=part.shape[1])
        if rng.random() < .3:
            noise = torch.randn_like(part)*float(rng.uniform(0, .08))*part.sqrt()
            part = (part + noise).clamp_min(0)
        parts.append(part)
    x = torch.cat(parts)
    b, c = x.shape[:2]
    x = (x*(1 + .4*torch.randn(b, c, 1, 1)).clamp(.3, 2.5)).clamp(0, 1)
    x = (x + 1e-5)**torch.exp(.25*torch.randn(b, c, 1, 1))
    kept = torch.ones(b, c, 1, 1)
    for i, p in enumerate((.12, 0, .12, .3)[:c]): kept[:,i] = (torch.rand(b, 1, 1) >= p).float()
    return x*kept

def one_cycle(done):
    "Share of the highest learning rate when this share of the time is over"
    warm_up = min(done/.1 + .02, 1)
    return warm_up*(.5 + .5*np.cos(np.pi*max(done - .1, 0)/.9))

def train(images, labels, minutes, bs=32, lr=2e-3, seed=0, log=print):
    "Train from scratch for so many minutes; one cycle"
    import torch, torch.nn.functional as F
    from timm.models.resnet import BasicBlock, ResNet
    torch.manual_seed(seed)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    # small: what it sees matters more than what it can hold; widths of 32 suit bf16 on processors
    widths = 32, 64, 128, 256
    model = ResNet(BasicBlock, [1, 1, 1, 1], channels=widths, in_chans=images.shape[3], num_classes=28)
    model = model.to(device, memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=.05, fused=True)
    rng = np.random.default_rng(seed)
    start = time.time()
    step, losses = 0, []
    order = iter(())
    while (done := (time.time() - start)/(60*minutes)) < 1:
        idx = next(order, None)
        if idx is None:
            shuffled = rng.permutation(len(images))
            order = iter(np.split(shuffled, range(bs, len(shuffled), bs)))
            continue
        for g in opt.param_groups: g['lr'] = lr*one_cycle(done)
        x = augment(torch.from_numpy(images[idx]).permute(0, 3, 1, 2).float()/255, rng)
        y = torch.from_numpy(labels[idx]).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(logits(model, x, device), y, label_smoothing=.1)
        opt.zero_grad()
        loss.backward()
        opt.step()
        step += 1
        losses.append(loss.item())
        if step%50 == 0:
            speed = step*bs/(time.time() - start)
            log(f'  {100*done:3.0f} %  step {step}  {speed:.0f} images/s  loss {np.mean(losses[-50:]):.3f}', flush=True)
    return model.eval(), step*bs

def resized(image, scale):
    "An image (h, w, c) uint8 scaled to sides that 32 divides, as a batch of one in 0..1"
    import torch
    h, w = (max(int(round(side*scale/32))*32, 32) for side in image.shape[:2])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return torch.from_numpy(cv2.resize(image, (w, h), interpolation=how)).permute(2, 0, 1)[None].float()/255

def views(x):
    "The eight symmetries of a square batch of one; of another, the four that keep its shape"
    import torch
    if x.shape[2] != x.shape[3]: return torch.cat([x, x.flip(2), x.flip(3), x.flip(2, 3)])
    return torch.cat([torch.rot90(o, k, (2, 3)) for o in (x, x.flip(3)) for k in range(4)])

def predict(model, images, scales=(.85, 1., 1.15)):
    "Mean probabilities over the eight symmetries and some scales; images (h, w, c) uint8 of any one size each"
    import torch
    device = next(model.parameters()).device
    out = []
    for image in images:
        p = 0
        for s in scales:
            x = views(resized(image, s))
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                p = p + logits(model, x, device).softmax(1).mean(0).cpu().numpy()
        out.append(p/len(scales))
    return np.stack(out)

# -- the figures

def blurred_accuracy(x, y, tx, ty):
    "What the best of two classifiers makes of 4x4 average-pooled images: brightness and place, but no pattern"
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    def pooled(images):
        small = [cv2.resize(o, (4, 4), interpolation=cv2.INTER_AREA).ravel() for o in images]
        return np.stack(small).astype(np.float32)**.5
    small, test_small = pooled(x), pooled(tx)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    trees = ExtraTreesClassifier(300, random_state=0)
    return max((o.fit(small, y).predict(test_small) == ty).mean() for o in (linear, trees))

def scores(probs, targets):
    """Top-1 and top-3 accuracy, mean average precision, and what chance gives

    A hit: one of an image's labels is among the first."""
    from sklearn.metrics import average_precision_score
    y = encode_targets(targets)
    order = np.argsort(-probs, 1)
    seen = y.any(0)
    hit = np.take_along_axis(y, order, 1)
    per_image = y.sum(1)
    def miss(k):
        "For each image, the chance that k labels drawn at random are all wrong"
        return np.prod([(28 - per_image - i)/(28 - i) for i in range(k)], axis=0)
    precisions = [average_precision_score(y[:,c], probs[:,c]) for c in np.flatnonzero(seen)]
    by_chance = []
    for k in range(50):
        guess = np.random.default_rng(k).random(len(y))
        by_chance += [average_precision_score(y[:,c], guess) for c in np.flatnonzero(seen)]
    return dict(
        top1=hit[:,0].mean(),
        top3=hit[:,:3].any(1).mean(),
        map=np.mean(precisions),
        chance_top1=1 - miss(1).mean(),
        chance_top3=1 - miss(3).mean(),
        chance_map=np.mean(by_chance),
        n=len(y))

def print_scores(out, seen):
    "Scores beside what chance gives"
    print(f"\ntop-1 {out['top1']:.2f} (chance {out['chance_top1']:.3f})   "
          f"top-3 {out['top3']:.2f} ({out['chance_top3']:.3f})   "
          f"mAP {out['map']:.2f} ({out['chance_map']:.3f})   "
          f"{out['minutes']} min, {seen} images seen")

def print_missed(names, targets, probs):
    "The images whose first label is wrong, with the first three"
    print('\nmissed at rank 1: image, true label -> the first three')
    for name, target, p in zip(names, targets, probs):
        true = [int(i) for i in target.split()]
        best = np.argsort(-p)[:3]
        if best[0] in true: continue
        first_three = ', '.join(f'{LABELS[i]} {p[i]:.2f}' for i in best)
        print(f"  {name:14s} {', '.join(LABELS[i] for i in true):32s} -> {first_three}")

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--real', required=True, help='folder of CLASS-….jpg, or of RGBY PNGs with a CSV')
    p.add_argument('--csv', help='label list of an RGBY folder')
    p.add_argument('--minutes', type=float, default=30, help='for simulation and training together')
    p.add_argument('--json', help='file to write the figures to')
    p.add_argument('--um', type=float, help='µm per pixel of the real images (composites .085; RGBY 164 µm wide)')
    p.add_argument('--size', type=int, default=176, help='pixels of a simulated field')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--threads', type=int, help="PyTorch's threads; 1 is faster where other programs run, too")
    a = p.parse_args()
    start = time.time()
    if a.threads:
        import torch
        torch.set_num_threads(a.threads)
    images, targets, names = read_real(a.real, a.csv)
    n_channels = images[0].shape[2]
    um = a.um or (.085 if n_channels == 3 else 164/images[0].shape[1])
    images = [cv2.resize(o, None, fx=um/FINE, fy=um/FINE, interpolation=cv2.INTER_AREA) for o in images]
    shape = images[0].shape[:2]
    print(f'{len(images)} real images, {n_channels} channels, seen at {FINE} µm per pixel as {shape}; '
          f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
    x, y = simulate(20_000, .2*60*a.minutes, a.size, FINE, n_channels, a.seed*10_000_000)
    took = time.time() - start
    print(f'{len(x)} simulated fields in {took:.0f} s ({len(x)/took:.0f} a second)', flush=True)
    held = min(280, len(x)//5)
    x, y, tx, ty = x[:-held], y[:-held], x[-held:], y[-held:]
    model, seen = train(x, y, a.minutes - (time.time() - start)/60, seed=a.seed)
    probs = predict(model, images)
    unseen = (predict(model, tx, scales=(1.,)).argmax(1) == ty).mean()
    pooled = blurred_accuracy(x, y, tx, ty)
    out = {k: float(v) if k != 'n' else v for k, v in scores(probs, targets).items()}
    out |= dict(
        sim_top1=float(unseen),
        sim_top1_blurred=float(pooled),
        minutes=round((time.time() - start)/60, 1),
        fields=len(x),
        images_seen=seen,
        load=os.getloadavg()[0])
    print_scores(out, seen)
    print(f'{len(ty)} unseen simulated fields: top-1 {unseen:.2f}; '
          f'from 4x4 blurred intensities {pooled:.2f}; chance {1/28:.3f}')
    print_missed(names, targets, probs)
    if a.json: Path(a.json).write_text(json.dumps(out, indent=1) + '\n')

if __name__ == '__main__': main()
