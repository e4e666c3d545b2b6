#!/usr/bin/env python
"""The simulator in figures.

Fields a second for each label, where the time goes, intensities beside real files, and whether a blurred image would
do.

    python benchmarks/simulate.py speed                      # 512 px fields of 12 cells
    python benchmarks/simulate.py intensity --real DIR       # DIR holds real ID_{red,green,blue,yellow}.png
    python benchmarks/simulate.py blurred --minutes 10       # a network on images, beside 4x4 blurred intensities
"""
import argparse, cProfile, os, pstats, re, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from hpa_fastai.labels import CHANNELS, LABELS
from hpa_fastai.simulate.dataset import draw_label_sets, simulate_field

def field_time(job):
    "Processor seconds for one field: what a busy neighbour takes is not counted"
    label, seed = job
    start = time.process_time()
    simulate_field(label, 512, [label, seed], n_cells=12)
    return time.process_time() - start

def speed(n, workers):
    "Fields a second for each label, from processor time, so that it holds on a busy machine; and where the time goes"
    cv2.setNumThreads(0) # the processes are the parallelism
    jobs = [(label, i) for label in range(28) for i in range(n)]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(field_time, [(0, i) for i in range(2*workers)]))     # warm up
        start = time.time()
        took = np.array(list(pool.map(field_time, jobs, chunksize=4))).reshape(28, n).mean(1)
        total = 28*n/(time.time() - start)
    print(pd.DataFrame({'label': LABELS, 'fields/s': (workers/took).round(1)}).to_string())
    print(f'\n{workers} workers, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores: '
          f'in processor time, the median label {workers/np.median(took):.1f} fields/s, '
          f'the slowest {workers/took.max():.1f}; by the clock, all together {total:.1f}')
    print('\n', steps().to_string(index=False))

def steps():
    "The share of each step of the simulator in the time for one field of each label"
    profile = cProfile.Profile()
    profile.enable()
    for label in range(28): field_time((label, 0))
    profile.disable()
    rows = []
    for (file, _, function), (calls, _, own, all_below, _) in pstats.Stats(profile).stats.items():
        rows.append((f'{Path(file).stem}.{function}', calls, own, all_below))
    rows = pd.DataFrame(rows, columns=['step', 'calls', 'own', 'all'])
    whole = rows.own.sum()
    for name in ('own', 'all'): rows[f'{name} %'] = (100*rows[name]/whole).round(1)
    modules = 'strokes|cells|layout|stains|patterns|cytoplasm|vesicles|optics|dataset'
    ours = rows[rows.step.str.match(rf'(?:{modules})\.[a-z_]+$')]
    return ours.sort_values('all', ascending=False)[['step', 'calls', 'own %', 'all %']].head(16)

def statistics(a):
    "Mean, standard deviation, share of dark pixels, and slope of the power spectrum of one channel"
    a = a.astype(np.float32)/255
    n = len(a)
    window = np.outer(np.hanning(n), np.hanning(n))
    power = np.abs(np.fft.fftshift(np.fft.fft2((a - a.mean())*window)))**2
    y, x = np.indices(a.shape) - n//2
    ring = np.hypot(y, x).astype(int).ravel()
    mean = np.bincount(ring, power.ravel())/np.bincount(ring)
    k = np.arange(n//64, n*25//64)
    slope = np.polyfit(np.log(k), np.log(mean[k] + 1e-9), 1)[0]
    return dict(mean=a.mean(), std=a.std(), dark=(a < .02).mean(), slope=slope)

def compared(df):
    """One row per channel and statistic: mean and range for each source

    `within` says whether the medians of all simulated sources lie in the range of the real files."""
    by = ['channel', 'statistic', 'source']
    values = df.melt(['source', 'channel'], var_name='statistic').groupby(by).value
    table = values.describe(percentiles=[.1, .5, .9])[['mean', '10%', '50%', '90%']].unstack('source')
    def shown(row, source):
        mean, low, high = (table.loc[row, (k, source)] for k in ('mean', '10%', '90%'))
        return f'{mean:.3f} ({low:.3f} to {high:.3f})'
    def inside(row, source):
        low, high = table.loc[row, ('10%', 'real')], table.loc[row, ('90%', 'real')]
        return low <= table.loc[row, ('50%', source)] <= high
    sources = df.source.unique()
    simulated = [o for o in sources if o != 'real']
    out = pd.DataFrame({o: [shown(row, o) for row in table.index] for o in sources}, index=table.index)
    out['within'] = [all(inside(row, o) for o in simulated) for row in table.index]
    return out

def intensity(real, n, workers):
    "Statistics of simulated fields beside real files of the same size"
    rows = []
    for path in sorted(Path(real).rglob('*.png')):
        found = re.search(r'_(red|green|blue|yellow)\.png$', path.name)
        if found: rows.append(dict(source='real', channel=found[1], **statistics(cv2.imread(str(path), 0))))
    cv2.setNumThreads(0)
    sets = draw_label_sets(n, 5)
    with ProcessPoolExecutor(workers) as pool:
        for site in ('train', 'test'):
            jobs = [(labels, i, site) for i, labels in enumerate(sets)]
            for got in pool.map(_field_statistics, jobs, chunksize=4):
                rows += [dict(source=f'simulated, {site}', **o) for o in got]
    df = pd.DataFrame(rows)
    out = compared(df)
    n_real = (df.source == 'real').sum()
    print(f'mean (10 % to 90 % of the images); real: {n_real} files, simulated: {n} fields a site\n')
    print(out.to_string())
    print(f'\n{out.within.sum()} of {len(out)}: the median of simulated fields lies between '
          'the 10 % and 90 % of real files')

def _field_statistics(job):
    labels, seed, site = job
    image = simulate_field(labels, 512, [seed, 5], site=site).image
    return [dict(channel=c, **statistics(image[..., i])) for i, c in enumerate(CHANNELS)]

def blurred(minutes, n_test):
    "Accuracy of a network that sees the pattern, and of the best that 4x4 intensities allow"
    from sim_to_real import FINE, blurred_accuracy, predict, simulate, train
    start = time.time()
    x, y = simulate(20_000, .2*60*minutes, 176, FINE, 4)
    tx, ty = simulate(n_test, 1e9, 176, FINE, 4, seed=50_000_000)
    model, _ = train(x, y, minutes - (time.time() - start)/60)
    by_network = (predict(model, tx, scales=(1.,)).argmax(1) == ty).mean()
    by_blur = blurred_accuracy(x, y, tx, ty)
    rows = [('the image, by a network', by_network), ('4x4 blurred intensities', by_blur), ('nothing', 1/28)]
    print(f'\n{len(x)} fields to train on, {len(tx)} unseen, {(time.time() - start)/60:.1f} min, '
          f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores')
    print(pd.DataFrame(rows, columns=['what is seen', 'accuracy']).round(3).to_string(index=False))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['speed', 'intensity', 'blurred'])
    p.add_argument('--real', help='folder of real PNGs, for intensity')
    p.add_argument('--n', type=int, default=8, help='fields per label (speed), or tenfold per site (intensity)')
    p.add_argument('--workers', type=int, default=os.cpu_count())
    p.add_argument('--minutes', type=float, default=10)
    a = p.parse_args()
    if a.what == 'speed': speed(a.n, a.workers)
    elif a.what == 'intensity':
        if not a.real: p.error('intensity needs --real DIR with real PNGs')
        intensity(a.real, 10*a.n, a.workers)
    else: blurred(a.minutes, 560)

if __name__ == '__main__': main()
