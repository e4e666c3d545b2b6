#!/usr/bin/env python
"""How many images should a processor label at once?

    python benchmarks/batches.py [--size 512] [--threads 2] [bodies ...]

For each body the same images go through `Networks` in batches of one size after another, in turns; the fastest turn
counts. Beside the seconds stands the ratio to a batch of 32, and how much of the time went to the system, which has to
clear memory for features that don't fit into what is at hand. (On a GPU, batches are as large as the recipe says.)
"""
import argparse, os, time

import numpy as np
import pandas as pd
import torch

from hpa_fastai.models.factory import rgby_model
from hpa_fastai.runs import networks
from hpa_fastai.runs.predictor import Predictor

def bare(body, size):
    "An untrained network that predicts one view"
    return networks.Networks([rgby_model(body, weights=None)], size, [.1]*4, [.2]*4, device='cpu', views=dict(n=1))

def turn(net, images, batch):
    "Seconds in all, and seconds of the system"
    networks._at_once = batch*net.size**2
    before, began = os.times().system, time.perf_counter()
    net._ask(images, None)
    return time.perf_counter() - began, os.times().system - before

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('bodies', nargs='*', default=['resnet34', 'resnet50', 'densenet121', 'tf_efficientnet_lite0'])
    p.add_argument('--size', type=int, default=512, help='pixels on each side, for all but the shipped networks')
    p.add_argument('--images', type=int, default=32)
    p.add_argument('--turns', type=int, default=3)
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    nets = dict(simulated=Predictor.load('simulated', 'cpu')) | {o: bare(o, a.size) for o in a.bodies}
    rng, rows = np.random.default_rng(0), []
    for name, net in nets.items():
        images = list(rng.integers(0, 256, (a.images, 1, net.size, net.size, 4), np.uint8))
        net._ask(images[:2], None)
        sizes = [1, 2, 4, 8, 16, 32]
        times = {k: min(turn(net, images, k) for _ in range(a.turns)) for k in sizes}
        for k, (seconds, system) in times.items():
            rows.append(dict(network=name, pixels=net.size, batch=k, seconds=seconds, system=system,
                             ratio=seconds/times[32][0]))
        print(pd.DataFrame(rows[-len(sizes):]).round(2).to_string(index=False), flush=True)

if __name__ == '__main__': main()
