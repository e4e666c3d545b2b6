"""Commands that are killed, stopped by Ctrl-C, or started twice at once, and then run to their end

    python tests/kills.py --n 20 --seed 0                   many moments of every command, and a table
    python tests/kills.py --seed 0 --only hpa-pack          one command

A command runs in a fork of this process, which has imported the library already, so that the moments are spread
over its work. In the end there must be no byte that differs from an undisturbed run, and no file that such a run
does not leave. Some files hold the time that was taken, and are compared without it: `seconds.json`, `verified.json`,
the entry `seconds` of
`scores.json`, the column `time` of `log.csv`, and the seconds and minutes in `report.html`."""
import argparse, contextlib, csv, gc, hashlib, io, json, os, random, re, shutil, signal, sys, tempfile, time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np, pandas as pd
from PIL import Image

from fuzz import neighbours, run_command, set_up, tiny
from hpa_fastai.labels import CHANNELS

limit = 120   # seconds in which every command ends

# ---- the commands, on small data ----

n_images, n_downloads = 40, 12

def _write_atlas(folder):
    "JPEGs as a server of the Human Protein Atlas gives them, and a list of them"
    rng = np.random.default_rng(0)
    ids = [f'{100 + i}_7_A1_1' for i in range(n_downloads)]
    for i in ids:
        antibody, _, name = i.partition('_')
        (folder/antibody).mkdir(parents=True)
        for c in CHANNELS: Image.fromarray(rng.integers(0, 255, (48, 48),
                                                        np.uint8)).save(folder/antibody/f'{name}_{c}.jpg')
    pd.DataFrame(dict(Id=ids, Target='0')).to_csv(folder/'list.csv', index=False)

def serve(folder):
    "Serve a folder on loopback, slowly, in a process of its own; returns its id and address"
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self):
            time.sleep(.02)
            super().do_GET()
        def log_message(self, *args): pass
    class Server(ThreadingHTTPServer): request_queue_size = 100
    server = Server(('127.0.0.1', 0), partial(Slow, directory=str(folder)))
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException), open(os.devnull, 'w') as sys.stderr: server.serve_forever()
        os._exit(0)
    server.server_close()
    return pid, f'http://127.0.0.1:{server.server_port}'

def make_material(base):
    "Write what the commands read into the folder `base`"
    from hpa_fastai.runs.crossval import cross_validate
    from hpa_fastai.runs.recipes import Recipe
    from hpa_fastai.simulate.dataset import simulate_dataset
    for name, seed in dict(data=0, more=1).items():
        simulate_dataset(base/name, n=n_images, n_test=6, size=48, seed=seed, balanced=True, workers=0,
                         progress=False)
    for name, own in dict(a=dict(body='test_resnet'), b=dict(body='basic_cnn')).items():
        cross_validate(base/'data', base/f'runs/{name}', Recipe.from_dict(tiny | own), device='cpu', workers=0)
    Recipe.from_dict(tiny | dict(body='test_resnet', neighbours=neighbours, phases=[dict(epochs=1), dict(
        epochs=2, monitor='macro_f1', average='ema')])).save(base/'tiny.yaml')
    _write_atlas(base/'atlas')

def commands(base, address):
    "Words of the command line by name; OUT stands for what is written"
    data = str(base/'data')
    pack = ['--images', f'{data}/train', '--out', 'OUT/pack', '--size', '48']
    return {
        'hpa-pack': [*pack, '--workers', '0'],
        'hpa-pack 2': [*pack, '--workers', '2'],
        'hpa-pack zstd': [*pack, '--workers', '2', '--compress'],
        'hpa-train': ['--data', data, '--out', 'OUT/run', '--recipe', str(base/'tiny.yaml'), '--device', 'cpu',
                      '--workers', '0'],
        'hpa-predict': ['--run', str(base/'runs/a'), '--images', f'{data}/train', '--out', 'OUT/labels.csv',
                        '--device', 'cpu',
                        '--bs', '4'],
        'hpa-merge': [data, str(base/'more'), '--out', 'OUT/merged'],
        'hpa-ensemble': [str(base/'runs/a'), str(base/'runs/b'), '--out', 'OUT/ensemble', '--how', 'stacking'],
        'hpa-download': ['--out', 'OUT/atlas', '--samples', str(base/'atlas/list.csv'), '--base', address,
                         '--workers', '4'],
        'hpa-download size': ['--out', 'OUT/atlas', '--samples', str(base/'atlas/list.csv'), '--base', address,
                              '--size', '24'],
        'hpa-simulate': ['--out', 'OUT/sim', '--n', '12', '--test', '2', '--size', '32', '--workers', '2'],
        'hpa-report': ['--run', str(base/'runs/a'), '--out', 'OUT/report.html']}

# ---- one run ----

class Running:
    "A command in a fork of this process, in a process group of its own"
    def __init__(self, name, words, out):
        self.said = Path(tempfile.mkstemp(dir=out.parent)[1])
        ready, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid: self._run(name, [o.replace('OUT', str(out)) for o in words], tell)
        os.close(tell)
        os.read(ready, 1)
        os.close(ready)
        self.began = time.time()

    def _run(self, name, words, tell):
        "What the fork does"
        status = 1
        try:
            os.setsid()
            err = os.open(self.said, os.O_WRONLY)
            for fd, to in ((1, os.open(os.devnull, os.O_WRONLY)), (2, err)): os.dup2(to, fd)
            sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(tell, b'.')
            run_command(name.split()[0], words)
            status = 0
        except SystemExit as e: status = e.code or 0
        except BaseException: traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException): sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)

    def end(self):
        "Wait for it; returns its exit status, minus a signal's number, or None if it had to be killed"
        until = time.time() + limit
        while time.time() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid: return os.waitstatus_to_exitcode(status)
            time.sleep(.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def stop(self, seconds, number):
        "Send a signal some seconds after the beginning; returns what `end` does"
        time.sleep(max(0, self.began + seconds - time.time()))
        with contextlib.suppress(ProcessLookupError): os.kill(self.pid, number)
        return self.end()

    def lines(self):
        "What it said on standard error"
        return [o for o in self.said.read_text(errors='replace').splitlines() if o.strip()]

    def group_ends(self):
        "Do all processes that it started end soon?"
        for _ in range(200):
            try: os.killpg(self.pid, 0)
            except ProcessLookupError: return True
            time.sleep(.05)
        os.killpg(self.pid, signal.SIGKILL)
        return False

# ---- what is left ----

def _without_times(path):
    "The bytes of a file, without the times that were taken"
    if path.name in ('seconds.json', 'verified.json'): return b''
    if path.name == 'scores.json':
        scores = json.loads(path.read_text())
        return json.dumps({k: v for k, v in scores.items() if k != 'seconds'}).encode()
    if path.name == 'log.csv':
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        return json.dumps([{k: v for k, v in o.items() if k != 'time'} for o in rows]).encode()
    if path.suffix == '.html': 
        times = rb'[0-9.]+ (minutes?|seconds?|hours?)\b|"(pack|folds|train|neighbours|predict|decide)": [0-9.]+'
        return re.sub(times, b'', path.read_bytes())
    return path.read_bytes()

def contents(folder):
    "Digest by path of all files in a folder"
    found = sorted(o for o in folder.rglob('*') if not o.is_dir()) if folder.exists() else []
    return {str(o.relative_to(folder)): hashlib.sha256(_without_times(o)).hexdigest() for o in found}

def compare(out, expected):
    "Files that differ or are missing, and files that are too many"
    got = contents(out)
    return [k for k in expected if got.get(k) != expected[k]], [k for k in got if k not in expected]

def _good_line(running, name):
    "Was exactly one line said on standard error, and is it the command's?"
    return len(running.lines()) == 1 and running.lines()[0].startswith(f'{name.split()[0]}: ')

class Trial:
    "A command, what an undisturbed run of it leaves, and what came of disturbed ones"
    def __init__(self, base, name, words, runs=2):
        self.name, self.words, self.folder = name, words, Path(tempfile.mkdtemp(dir=base.parent))
        self.count, self.notes = Counter(), []
        seconds = []
        for _ in range(runs):
            run = self.start('whole')
            status = run.end()
            seconds.append(time.time() - run.began)
            if status: raise RuntimeError(f'{name}: ends with status {status}, undisturbed: {run.lines()[-3:]}')
            expected = contents(self.folder/'whole')
            if seconds[1:] and expected != self.expected:
                self.note('undisturbed', 'differs', [k for k in expected if expected[k] != self.expected.get(k)])
            self.expected = expected
        self.seconds = min(seconds)
        odd = [o for o in self.expected if re.search(r'(^|/)\.|\.(part|tmp|lock)', o)]
        if odd: self.note('undisturbed', 'leftovers', odd)

    def start(self, where, fresh=True):
        "Start the command, with its output in a folder of this trial"
        out = self.folder/where
        if fresh: shutil.rmtree(out, ignore_errors=True)
        out.mkdir(exist_ok=True)
        return Running(self.name, self.words, out)

    def note(self, how, what, details=''):
        "Count a finding and keep a line about it"
        self.count[what] += 1
        self.notes.append(f'{self.name}, {how}: {what}: {details}')

    def _check(self, how, out='out'):
        "Compare what is there with the undisturbed run"
        differ, more = compare(self.folder/out, self.expected)
        if differ: self.note(how, 'differs', differ[:6])
        if more: self.note(how, 'leftovers', more[:6])

    def finish(self, how):
        "The same command again, to its end"
        again = self.start('out', fresh=False)
        status = again.end()
        if status: self.note(how, 'bad endings', f'again: status {status}: {again.lines()[-2:]}')
        self._check(how)

    def stopped(self, moment, number):
        "Send a signal at a moment, look at the end, and run to the end"
        how = f'{signal.Signals(number).name} after {moment:.3f} of {self.seconds:.2f} s'
        run = self.start('out')
        status = run.stop(moment, number)
        if status != 0: self.count[signal.Signals(number).name] += 1
        if not run.group_ends(): self.note(how, 'bad endings', 'a process goes on')
        if number == signal.SIGINT and status != 0 and (status != 130 or not _good_line(run, self.name)):
            self.note(how, 'bad endings', f'status {status}: {run.lines()[-3:]}')
        self.finish(how)

    def twice(self, pause):
        "Start the command twice, and wait for both"
        self.count['twice'] += 1
        how = f'twice, {pause:.3f} s apart'
        first = self.start('out')
        time.sleep(pause)
        second = self.start('out', fresh=False)
        ends = [first.end(), second.end()]
        for run, status in zip((first, second), ends):
            if status and not (status == 2 and _good_line(run, self.name)):
                self.note(how, 'bad endings', f'status {status}: {run.lines()[-3:]}')
        if all(ends): self.note(how, 'bad endings', 'neither did the work')
        self._check(how)

def trials(n, seed, only=None, n_twice=None, say=False):
    "Disturb every command `n` times by each signal; returns the trials"
    set_up()
    gc.freeze()   # so that a fork copies less
    shm, rng, done = Path('/dev/shm'), random.Random(seed), []
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix='kills') as folder:
        base = Path(folder)/'base'
        base.mkdir()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                with open(os.devnull, 'w') as quiet, contextlib.redirect_stdout(quiet): make_material(base)
                status = 0
            except BaseException: traceback.print_exc()
            finally: os._exit(status)
        if os.waitpid(pid, 0)[1]: raise RuntimeError('the material could not be made')
        server, address = serve(base/'atlas')
        try:
            for name, words in commands(base, address).items():
                if only and name not in only: continue
                trial = Trial(base, name, words, 1 + (n > 1))
                done.append(trial)
                for number in (signal.SIGKILL, signal.SIGINT):
                    for k in range(n): trial.stopped(.003 + trial.seconds*(k + rng.random())/n, number)
                for k in range(min(n, 5) if n_twice is None else n_twice):
                    trial.twice(trial.seconds*rng.random()*k/5)
                shutil.rmtree(trial.folder)
                if say: print('\n'.join([*trial.notes[:40], table([trial])]), flush=True)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    return done

def table(done):
    "What came of it, by command"
    rows = [dict(command=o.name, seconds=round(o.seconds, 2), files=len(o.expected), kills=o.count['SIGKILL'],
                 ctrl_c=o.count['SIGINT'], twice=o.count['twice'], differing=o.count['differs'],
                 leftovers=o.count['leftovers'], bad_endings=o.count['bad endings']) for o in done]
    return pd.DataFrame(rows).to_string(index=False)

def main():
    p = argparse.ArgumentParser()
    p.add_argument('--n', type=int, default=20, help='kills, and as many Ctrl-C, of each command')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='*', help='commands; by default all')
    args = p.parse_args()
    start = time.time()
    done = trials(args.n, args.seed, args.only, say=True)
    print(table(done))
    print(f'seed {args.seed}, {time.time() - start:.0f} s')

if __name__ == '__main__': main()
