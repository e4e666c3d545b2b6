"""hpa-predict over folders of any size: memory, kills, two processes, and speed against the bare network.

    python benchmarks/predict_scale.py [--images 20000] [--few 2000] [--side 64] [--speed-images 48] [--threads 1]

It draws small fields, links them into two folders of many and of few samples, and makes a small untrained network. Then
it prints, line by line:
- the peak memory of hpa-predict (all its processes together) for few and for many images, and their ratio;
- the seconds that each took;
- whether a run over the many images that was killed twice (kill -9, at a third and at two thirds) and started again
  wrote the same bytes;
- of two commands that share the few images, how many shards each made, whether each shard was made once, and whether
  they wrote the same bytes;
- for `--speed-images` fields of 512 pixels, as four PNGs each, and the network that ships with the package: images per
  second of the bare network (forward passes of prepared images, eight views each) and of the whole of hpa-predict, in
  turns, by the clock and by processor time, and their ratios. `--threads` are those of PyTorch; one leaves the second
  of two cores to decoding. On a machine with other work to do, believe the ratio by processor time.
"""
import os, signal, subprocess, sys, tempfile, time
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from fastcore.script import call_parse
from fastprogress import fastprogress

from hpa_fastai.decide.rules import FixedRule
from hpa_fastai.labels import CHANNELS
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks, save_config
from hpa_fastai.models.weights import save_weights
from hpa_fastai.runs.label_folder import FolderToLabel
from hpa_fastai.runs.predictor import Predictor
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_field

fastprogress.NO_BAR, fastprogress.print = True, lambda *args, **kwargs: None


def linked(folder, n, side, drawn=32, split=False):
    "A folder of `n` samples, each a link to one of a few drawn fields; as one picture in colour each, or as four"
    source = folder.with_name(f'{folder.name}-drawn')
    for o in (folder, source): o.mkdir(parents=True)
    for k, labels in enumerate(draw_label_sets(drawn, seed=0)):
        img = simulate_field(labels, size=side, seed=k).image
        if not split: cv2.imwrite(str(source/f'{k}.png'), img[..., [2, 1, 0]])   # OpenCV writes blue first
        else:
            for c, plane in zip(CHANNELS, cv2.split(img)): cv2.imwrite(str(source/f'{k}_{c}.png'), plane)
    ends = [f'_{c}.png' for c in CHANNELS] if split else ['.png']
    for i in range(n):
        for end in ends: os.link(source/f'{i % drawn}{end}', folder/f'{i:08x}-bbb1-11e8-b2ba-ac1f6b6435d0{end}')
    return folder


def small_run(folder, size=64):
    "A run with a small network that nobody has trained"
    torch.manual_seed(0)
    net = rgby_model('test_resnet', head='linear', weights=None).eval()
    save_weights(net, folder/'fold0/model.safetensors')
    save_config(folder, net.config, size, np.full(4, .1), np.full(4, .2), views=dict(n=1), bs=32)
    record_networks(folder)
    FixedRule(.5).fit(np.zeros((1, 28)), np.zeros((1, 28))).save(folder/'thresholds.json')
    return folder


program = """
from hpa_fastai.cli_predict import hpa_predict
from hpa_fastai.images.tables import TableParts
write, made = TableParts.write, []
TableParts.write = lambda self, k, rows: made.append(k) or write(self, k, rows)
hpa_predict.main()
print(*made)
"""


def start(run, images, out):
    "Start hpa-predict; in the end it prints the numbers of the shards that it made"
    args = ['--run', run, '--images', images, '--out', out, '--device', 'cpu']
    args = [sys.executable, '-W', 'ignore', '-c', program, *map(str, args)]
    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True)


def memory(process):
    "Bytes that a process and its children use now"
    try: return sum(o.memory_info().rss for o in [process, *process.children(recursive=True)])
    except psutil.Error: return 0


def peak(run, images, out):
    "Peak memory of a command, in MB, and its seconds"
    begin, p, most = time.time(), start(run, images, out), 0
    process = psutil.Process(p.pid)
    while p.poll() is None:
        most = max(most, memory(process))
        time.sleep(.02)
    assert p.returncode == 0
    return most/1e6, time.time() - begin


def shards(out): return list(out.with_name(f'.{out.name}.part').glob('*.parquet'))


def killed(run, images, out, at):
    "Start a command, kill it as soon as there are `at` shards, and count those that are left"
    p = start(run, images, out)
    while len(shards(out)) < at and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not out.exists()
    return len(shards(out))


def shared(run, images, out):
    "Numbers of the shards that each of two commands made"
    both = [start(run, images, out) for _ in range(2)]
    said = [o.communicate()[0] for o in both]
    assert [o.returncode for o in both] == [0, 0]
    return [[int(k) for k in o.splitlines()[-1].split()] for o in said]


def clocks(): return np.array([time.perf_counter(), time.process_time()])


def speed(images, work, rounds=3):
    "Seconds an image of the bare network and of the whole of labelling: by the clock, and of the processors"
    predictor = Predictor.load('simulated', 'cpu')
    todo = FolderToLabel(predictor, images)
    prepared = [todo.open(o).prepared for o in list(todo.samples.values())[:16]]
    predictor._ask(prepared, None)
    bare, whole = [], []
    for k in range(rounds):
        begin = clocks()
        for _ in range(len(todo.samples)//16): predictor._ask(prepared, None)
        bare.append((clocks() - begin)/(len(todo.samples)//16*16))
        todo = FolderToLabel(predictor, images, bs=16)
        begin = clocks()
        todo.write(work/f'speed{k}.csv')
        whole.append((clocks() - begin)/len(todo.samples))
    return np.array(bare), np.array(whole)


@call_parse
def main(
    images:int=20_000, # Number of many images
    few:int=2_000, # Number of few images
    side:int=64, # Side of these images, in pixels
    speed_images:int=48, # Number of images of 512 pixels for the speed; 0 leaves that out
    threads:int=1, # Threads of PyTorch
    work:str=None # Folder to work in; by default a temporary one
):
    "Measure hpa-predict over many images"
    torch.set_num_threads(threads)
    os.environ['OMP_NUM_THREADS'] = str(threads)
    with tempfile.TemporaryDirectory(dir=work) as d:
        here = Path(d)
        if images:
            run = small_run(here/'run')
            folders = {n: linked(here/f'images{n}', n, side) for n in (few, images)}
            found = {n: peak(run, folders[n], here/f'labels{n}.csv') for n in folders}
            for n, (mb, seconds) in found.items(): print(f'{n} images: peak {mb:.0f} MB, {seconds:.0f} s', flush=True)
            print(f'peak memory, many to few: {found[images][0]/found[few][0]:.3f}', flush=True)
            again, batches = here/'again.csv', images//32
            kept = [killed(run, folders[images], again, at) for at in (batches//3, 2*batches//3)]
            mb, seconds = peak(run, folders[images], again)
            same = again.read_bytes() == (here/f'labels{images}.csv').read_bytes()
            print(f'killed twice, with {kept} of {-(-images//32)} shards, and resumed: identical {same}', flush=True)
            one, two = shared(run, folders[few], here/'two.csv')
            same = (here/'two.csv').read_bytes() == (here/f'labels{few}.csv').read_bytes()
            each = sorted(one + two) == list(range(-(-few//32)))
            print(f'two processes made {len(one)} and {len(two)} shards: each once {each}, identical {same}',
                  flush=True)
        if speed_images:
            bare, whole = speed(linked(here/'fields', speed_images, 512, 8, split=True), here)
            for k, what in enumerate(('clock', 'processor time')):
                a, b = bare[:, k], whole[:, k]
                print(f'{what}: bare network {1/np.median(a):.2f} images/s, hpa-predict {1/np.median(b):.2f}; '
                      f'ratio {np.median(a/b):.3f} ({(a/b).min():.3f} to {(a/b).max():.3f})', flush=True)
