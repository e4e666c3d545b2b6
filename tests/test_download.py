"Downloads from a server that is slow, drops connections, denies, lies and attacks; killed and run again."
import gzip, hashlib, json, os, signal, struct, subprocess, sys, threading, time, tracemalloc, zipfile, zlib
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.images.competition import _unpack, kaggle_files
from hpa_fastai.images.download import ImageFetcher, download_samples, download_list
from hpa_fastai.images.samples import find_samples, open_rgby
from hpa_fastai.labels import CHANNELS, DataError, read_labels
from hpa_fastai.images.merging import merge_folders

ids = [f'{100 + i}_7_A1_1' for i in range(12)]
quick = dict(per_second=1000, backoff=.01, timeout=.5, progress=False)

def picture(seed, side=64, form='JPEG'):
    a = np.random.default_rng(seed).integers(0, 255, (side//8, side//8), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(a).save(f := BytesIO(), form)
    return f.getvalue()

def address(sample, channel): return f'/{sample.replace("_", "/", 1)}_{channel}.jpg'

atlas = {address(i, c): picture(4*n + k) for n, i in enumerate(ids) for k, c in enumerate(CHANNELS)}

class Answer:
    "What the server does with a visit"
    def __init__(self, status=200, headers=None, sent=None, body=None, pause=0, drop=False, drip=0):
        self.status, self.headers, self.sent, self.drip = status, headers or {}, sent, drip
        self.body, self.pause, self.drop = body, pause, drop

@contextmanager
def server(behave=lambda path, visit: Answer()):
    "Serves `atlas` on loopback; `behave(path, visit)` says how"
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            s.visits.append((self.path, time.monotonic(), self.headers['User-Agent']))
            a = behave(self.path, sum(o[0] == self.path for o in s.visits))
            body = a.body or atlas.get(self.path)
            if a.drop:
                self.close_connection = True
                return
            time.sleep(a.pause)
            if body is None: a.status, body = 404, b'none'
            self.send_response(a.status)
            for k, v in ({'Content-Length': len(body)} | a.headers).items():
                if v is not None: self.send_header(k, str(v))
            self.end_headers()
            for o in body if a.drip else ():
                self.wfile.write(bytes([o]))
                time.sleep(a.drip)
            if not a.drip: self.wfile.write(body[:a.sent])
            if (a.headers.get('Content-Length') or 0) > len(body): time.sleep(1)      # the rest never comes
        def log_message(self, *args): pass
        def handle(self):
            try: super().handle()
            except (ConnectionError, ValueError): pass
    class Server(ThreadingHTTPServer): request_queue_size, visits = 100, []
    s = Server(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, args=(.01,), daemon=True).start()
    try: yield f'http://127.0.0.1:{s.server_port}', s.visits
    finally:
        s.shutdown()
        s.server_close()

def digest(folder): return {o.name: hashlib.sha256(o.read_bytes()).hexdigest() for o in folder.iterdir()}

@pytest.fixture(scope='module')
def expected(tmp_path_factory):
    "What a download without a disturbance leaves"
    folder = tmp_path_factory.mktemp('whole')/'atlas'
    with server() as (base, _): download_samples(ids, folder, base, **quick)
    return digest(folder)

passing = dict(
    drops=Answer(drop=True),
    truncates=Answer(sent=200),
    slow=Answer(pause=1),
    busy=Answer(429, {'Retry-After': 0}),
    failing=Answer(500),
    restarting=Answer(503, {'Retry-After': 'soon'}),
    timeout=Answer(408),
    announces_more=Answer(headers={'Content-Length': 10**6}),
    announces_less=Answer(headers={'Content-Length': 300}),
    announces_nothing=Answer(headers={'Content-Length': None}, sent=300),
    sends_a_page=Answer(body=b'<html>maintenance</html>'),
    sends_nothing=Answer(body=b' ', sent=0, headers={'Content-Length': 0}))

@pytest.mark.parametrize('trouble', passing.values(), ids=passing)
def test_what_passes_is_waited_for(tmp_path, expected, trouble):
    "Every third file is in trouble at the first visit; in the end all bytes are there"
    def behave(path, visit): return trouble if visit == 1 and sorted(atlas).index(path) % 3 == 0 else Answer()
    patient = quick | dict(timeout=.5 if trouble.pause else 30)
    with server(behave) as (base, visits): got = download_samples(ids, tmp_path/'atlas', base, **patient)
    assert got.ids == ids and not len(got.missing) and got.new == len(atlas)
    assert digest(tmp_path/'atlas') == expected
    least = len(atlas) + len(atlas)//3   # on a busy machine half a second may be too short for the others, too
    assert len(visits) >= least if trouble.pause else len(visits) == least

lasting = dict(
    gone=(Answer(404, body=b'gone'), 'HTTP 404', 1),
    forbidden=(Answer(403), 'HTTP 403', 1),
    failing=(Answer(500), 'HTTP 500', 3),
    drops=(Answer(drop=True), 'connection lost', 3),
    truncates=(Answer(sent=200), 'connection lost|cut short', 3),
    page=(Answer(body=b'<html>'), 'not a whole image', 3),
    cut=(Answer(headers={'Content-Length': 300}), 'not a whole image', 3),
    slow=(Answer(pause=1.5), 'no answer within 0.5 s', 3),
    tomorrow=(Answer(429, {'Retry-After': 7200}), 'HTTP 429.*try again in 7200 s', 1))

@pytest.mark.parametrize('trouble,reason,visited', lasting.values(), ids=lasting)
def test_what_lasts_is_reported_and_the_rest_is_had(tmp_path, trouble, reason, visited):
    bad = address(ids[3], 'green')
    with server(lambda path, visit: trouble if path == bad else Answer()) as (base, visits):
        got = download_samples(ids, tmp_path/'atlas', base, **quick, retries=2)
        assert got.ids == [i for i in ids if i != ids[3]]
        row = pd.read_csv(tmp_path/'atlas/missing.csv')
        assert row[['Id', 'channel', 'url']].values.tolist() == [[ids[3], 'green', base + bad]]
        assert row.reason.str.contains(reason).all()
        assert '11 of 12 samples are there' in repr(got) and row.reason[0] in repr(got)
        assert sum(o[0] == bad for o in visits) == visited
    assert not [o for o in (tmp_path/'atlas').iterdir() if o.name.startswith('.')]
    with server() as (base, visits):       # mended: only what is missing is asked for
        got = download_samples(ids, tmp_path/'atlas', base, **quick)
        assert got.ids == ids and len(visits) == 3 and not len(pd.read_csv(tmp_path/'atlas/missing.csv'))

def test_a_composite_is_not_taken_for_a_stain(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(f := BytesIO(), 'JPEG')
    composite = Answer(body=f.getvalue())
    with server(lambda path, visit: composite if path == address(ids[3], 'green') else Answer()) as (base, _):
        got = download_samples(ids, tmp_path/'atlas', base, size=32, **quick)
    assert got.missing.Id.tolist() == [ids[3]]
    assert got.missing.reason[0].startswith('a colour picture with more than the green stain')

def test_a_server_that_is_down_is_left_alone(tmp_path):
    with server(lambda path, visit: Answer(503)) as (base, visits):
        got = download_samples(ids, tmp_path/'atlas', base, **quick, retries=1, give_up=3, workers=1)
    assert len(visits) == 6 and not got.ids
    not_asked = 'not asked for: the server is down, or you stopped'
    assert got.missing.reason.tolist() == ['HTTP 503 Service Unavailable']*3 + [not_asked]*9

def test_the_server_says_when(tmp_path):
    busy_once = lambda path, visit: Answer(429, {'Retry-After': 1}) if visit == 1 else Answer()
    with server(busy_once) as (base, visits):
        fetcher = ImageFetcher(per_second=1000, backoff=.01, timeout=.5)
        assert fetcher.get(base + next(iter(atlas)))[1] is None
    assert visits[1][1] - visits[0][1] >= 1

def test_no_more_requests_than_allowed(tmp_path):
    with server() as (base, visits): download_samples(ids, tmp_path/'atlas', base, **{**quick, 'per_second': 100})
    times = sorted(o[1] for o in visits)
    assert times[-1] - times[0] >= .8*(len(atlas) - 1)/100
    assert {o[2].split('/')[0] for o in visits} == {'hpa_fastai'}

def png_of(side):
    "A PNG of a few hundred bytes that says it has `side` × `side` pixels"
    def chunk(kind, o): return struct.pack('>I', len(o)) + kind + o + struct.pack('>I', zlib.crc32(kind + o))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(side))) + chunk(b'IEND', b'')

@contextmanager
def raw_server(attack):
    "Answers the first request of each connection by `attack(send)`, below HTTP"
    class Attacker(ThreadingHTTPServer): daemon_threads = True
    class Handler(BaseHTTPRequestHandler):
        def handle(self):
            with suppress(OSError):
                self.rfile.readline()
                attack(self.wfile.write)
    s = Attacker(('127.0.0.1', 0), Handler)
    threading.Thread(target=s.serve_forever, args=(.01,), daemon=True).start()
    try: yield f'http://127.0.0.1:{s.server_port}'
    finally:
        s.shutdown()
        s.server_close()

ok = b'HTTP/1.1 200 OK\r\n'
def drip(send, first):
    send(first)
    for _ in range(100):
        send(b'x')
        time.sleep(.05)

def flood(send, first, piece=bytes(2**20)):
    send(first)
    for _ in range(1000): send(piece)

packed = gzip.compress(bytes(100_000_000))
def bomb(send): send(ok + b'Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n' % len(packed) + packed)

late = 'not whole in the time allowed'
chunked = ok + b'Transfer-Encoding: chunked\r\n\r\n'
attacks = dict(
    gzip_bomb=(bomb, 'sent compressed (gzip), which nobody asked for'),
    endless_body=(lambda send: flood(send, ok + b'\r\n'), 'larger than 2 MB'),
    endless_chunks=(lambda send: flood(send, chunked, b'8000\r\n' + bytes(2**15) + b'\r\n'), 'larger than 2 MB'),
    endless_chunk_size=(lambda send: flood(send, chunked, b'0'*2**20), 'connection lost'),
    endless_trailer=(lambda send: flood(send, chunked + b'0\r\n', b'X: y\r\n'*100_000), late),
    endless_headers=(lambda send: flood(send, ok, b'X: y\r\n'*1000), 'connection lost'),
    endless_patience=(lambda send: flood(send, b'', b'HTTP/1.1 100 Continue\r\n\r\n'*100_000), late),
    dripping_body=(lambda send: drip(send, ok + b'Content-Length: 1000\r\n\r\n'), late),
    dripping_chunk_size=(lambda send: drip(send, chunked), late),
    dripping_headers=(lambda send: drip(send, b'HTTP/1.1 200 OK\r\nX: '), late),
    no_length=(lambda send: send(ok + b'Content-Length: abc\r\n\r\nx'), 'not a whole image'),
    odd_reason=(lambda send: send(b'HTTP/1.1 404 \x1b[2J' + b'a'*10_000 + b'\r\n\r\n'), 'HTTP 404 [2Jaaa'),
    retry_digits=(lambda send: send(b'HTTP/1.1 503 x\r\nRetry-After: ' + b'9'*5000 + b'\r\n\r\n'), 'HTTP 503 x'),
    retry_never=(lambda send: send(b'HTTP/1.1 503 x\r\nRetry-After: ' + b'9'*500 + b'\r\n\r\n'), 'try again in'),
    redirect_loop=(lambda send: send(b'HTTP/1.1 302 x\r\nLocation: /again\r\n\r\n'), 'more than three times'),
    page=(lambda send: send(ok + b'\r\n<html>maintenance</html>'), 'not a whole image'),
    half=(lambda send: send(ok + b'Content-Length: 5000\r\n\r\n' + picture(0)[:300]), 'connection lost'),
    picture_bomb=(lambda send: send(ok + b'\r\n' + png_of(8000)), 'a picture of 8000 × 8000 pixels, too large'),
    huge_picture=(lambda send: send(ok + b'\r\n' + png_of(60_000)), 'too large'))

@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('attack, reason', attacks.values(), ids=attacks)
def test_an_attack_ends_in_one_line(attack, reason):
    "Soon, with a reason that can be printed, and in a bounded memory"
    start = time.monotonic()
    tracemalloc.start()
    with raw_server(attack) as evil:
        fetcher = ImageFetcher(per_second=1000, retries=0, timeout=.5, seconds=1, most_bytes=2_000_000)
        data, why = fetcher.get(f'{evil}/1/2_red.jpg')
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data is None and '\n' not in why and len(why) <= 250 and why.isprintable()
    assert reason in why
    assert time.monotonic() - start < 2.5 and most < 20_000_000

hostile = dict(
    bomb=(Answer(body=gzip.compress(bytes(10**7)), headers={'Content-Encoding': 'gzip'}), 'sent compressed'),
    too_large=(Answer(body=bytes(300_000)), 'larger than 0.2 MB'),
    drip=(Answer(headers={'Content-Length': 10**5}, drip=.05), late),
    loop=(Answer(302, {'Location': '/elsewhere'}), 'redirected more than three times|HTTP 404'),
    picture_bomb=(Answer(body=png_of(8000)), 'a picture of 8000 × 8000 pixels'))

@pytest.mark.parametrize('trouble, reason', hostile.values(), ids=hostile)
def test_an_attack_on_one_image_leaves_the_others(tmp_path, trouble, reason):
    bad = address(ids[3], 'green')
    with server(lambda path, visit: trouble if path == bad else Answer()) as (base, _):
        got = download_samples(ids, tmp_path/'atlas', base, **quick, retries=0, seconds=1, most_bytes=200_000)
    assert got.ids == [i for i in ids if i != ids[3]]
    row = pd.read_csv(tmp_path/'atlas/missing.csv')
    assert row[['Id', 'channel']].values.tolist() == [[ids[3], 'green']] and row.reason.str.contains(reason).all()
    assert not (tmp_path/f'atlas/{ids[3]}_green.jpg').exists()
    assert not [o for o in (tmp_path/'atlas').iterdir() if o.name.startswith('.')]

@pytest.mark.parametrize('to', ['http://{}/secret', '//{}/secret'])
def test_nobody_is_sent_to_another_server(tmp_path, to):
    with server() as (other, visits):
        to = to.format(other.removeprefix('http://'))
        with server(lambda path, visit: Answer(302, {'Location': to})) as (base, _):
            got = download_samples(ids[:2], tmp_path/'atlas', base, **quick, retries=2)
    assert not visits and not got.ids
    assert got.missing.reason.str.contains(f'redirected to another server .{other}').all()

def test_a_file_that_is_not_the_one_in_the_list(tmp_path):
    "The digest is that of what the server sends, also where a smaller grey picture is kept"
    digests = {i: [hashlib.sha256(atlas[address(i, c)]).hexdigest() for c in CHANNELS] for i in ids}
    digests[ids[3]][1] = '0'*64
    table = pd.DataFrame(dict(Id=ids, Target='0', sha256=[' '.join(o).upper() for o in digests.values()]))
    table.to_csv(tmp_path/'list.csv', index=False)
    for size in (None, 32):
        with server() as (base, _):
            got = download_list(tmp_path/'list.csv', tmp_path/f'out{size}', base=base, size=size, **quick)
        assert got.missing[['Id', 'channel']].values.tolist() == [[ids[3], 'green']]
        assert '1 × another file than the list says: its sha256 differs' in repr(got)
        assert not list((tmp_path/f'out{size}/train').glob(f'{ids[3]}_green*'))
        assert read_labels(tmp_path/f'out{size}/train.csv').Id.tolist() == got.ids

def run_commands():
    "Started by the fixture below: runs `hpa-download` with the arguments in each line, each in a process of its own"
    from hpa_fastai.cli import hpa_download
    import hpa_fastai.images.download
    print('ready', flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, int): answer = os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])
        else: answer = os.fork()
        if answer or isinstance(asked, int): print(answer, flush=True)
        else:
            log = os.open(asked.pop('log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for fd in (1, 2): os.dup2(log, fd)
            signal.signal(signal.SIGINT, signal.default_int_handler) # tests begun in the background ignore Ctrl-C
            try: hpa_download(**asked)
            except SystemExit as e: answer = e.code
            sys.stdout.flush()
            os._exit(answer)    # what the interpreter does at its end takes seconds in a process made by fork

if __name__ == '__main__': sys.exit(run_commands())

class Commands:
    "Starts `hpa-download` without waiting for imports each time"
    def __init__(self):
        command = [sys.executable, '-W', 'ignore', __file__]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.server.stdout.readline()

    def _ask(self, what):
        self.server.stdin.write(json.dumps(what, default=str) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, log, **kwargs): return self._ask(dict(log=log, **kwargs))
    def wait(self, pid): return self._ask(pid)
    def run(self, log, **kwargs): return self.wait(self.start(log, **kwargs))

@pytest.fixture(scope='module')
def commands():
    if os.name == 'nt': pytest.skip('no kill -9')
    commands = Commands()
    yield commands
    commands.server.stdin.close()
    commands.server.wait()

def command_for(tmp_path, base, out, size=None):
    "Arguments of a download of all that the server has"
    if not (tmp_path/'list.csv').exists():
        pd.DataFrame(dict(Id=ids, Target='0')).to_csv(tmp_path/'list.csv', index=False)
    return dict(samples=tmp_path/'list.csv', out=out, base=base, per_second=1000, size=size)

def wait_for(condition, seconds=10):
    "Wait until a condition is true"
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(.002)

def all_files(folder): return {o.relative_to(folder): o.read_bytes() for o in folder.rglob('*') if o.is_file()}

@pytest.mark.parametrize('size', [None, 32])
def test_killed_then_run_again_asks_only_for_what_is_missing(tmp_path, commands, size):
    cut, pattern = tmp_path/'cut/train', '[!.]*.*g'
    with server(lambda path, visit: Answer(pause=.05)) as (base, _):
        pid = commands.start(tmp_path/'log', **command_for(tmp_path, base, cut.parent, size))
        wait_for(lambda: len(list(cut.glob(pattern))) >= 16)
        os.kill(pid, signal.SIGKILL)
        commands.wait(pid)
    kept = len(list(cut.glob(pattern)))
    assert 16 <= kept < len(atlas)
    (cut/'.100_7_A1_1_red.host.1234.tmp.jpg').write_bytes(b'half')     # what a kill in mid-file leaves
    for o, missing in (('cut', len(atlas) - kept), ('whole', len(atlas))):
        with server() as (base, visits):    # a new one, since the killed process' last questions may still be under way
            assert not commands.run(tmp_path/'log', **command_for(tmp_path, base, tmp_path/o, size))
        assert len(visits) == missing
    assert all_files(tmp_path/'cut') == all_files(tmp_path/'whole')

def kill_and_run_again(folder, commands, seed, kills=5):
    "Kill a download at random moments, run it again, and compare with one that was not killed"
    rng = np.random.default_rng(seed)
    with server(lambda path, visit: Answer(pause=.03)) as (base, _):
        command = command_for(folder, base, folder/'cut')
        for _ in range(kills):
            pid = commands.start(folder/'log', **command)
            time.sleep(rng.uniform(0, .15))
            with suppress(ProcessLookupError): os.kill(pid, signal.SIGKILL)
            commands.wait(pid)
        assert not commands.run(folder/'log', **command)
        assert not commands.run(folder/'log', **command_for(folder, base, folder/'whole'))
    assert all_files(folder/'cut') == all_files(folder/'whole')

def test_killed_at_random_moments(tmp_path, commands): kill_and_run_again(tmp_path, commands, 0)

def test_the_same_command_twice_at_once(tmp_path, commands):
    "The second one waits, and finds everything there"
    with server(lambda path, visit: Answer(pause=.02)) as (base, visits):
        command = command_for(tmp_path, base, tmp_path/'out')
        pids = [commands.start(tmp_path/f'log{k}', **command) for k in range(3)]
        assert [commands.wait(o) for o in pids] == [0, 0, 0]
        assert len(visits) == len(atlas)
        assert not commands.run(tmp_path/'log', **command_for(tmp_path, base, tmp_path/'whole'))
    assert all_files(tmp_path/'out') == all_files(tmp_path/'whole')
    logs = [(tmp_path/f'log{k}').read_text() for k in range(3)]
    assert all('12 of 12 samples are there' in o for o in logs)
    assert sum('another process is at work there' in o for o in logs) == 2

def test_ctrl_c_is_one_line_at_once(tmp_path, commands):
    "Even while the server keeps all requests waiting"
    with server(lambda path, visit: Answer(pause=0 if ids[0] in path.replace('/', '_') else 3)) as (base, visits):
        pid = commands.start(tmp_path/'log', **command_for(tmp_path, base, tmp_path/'out'))
        wait_for(lambda: len(visits) >= 8)
        time.sleep(.1)
        start = time.monotonic()
        os.kill(pid, signal.SIGINT)
        assert commands.wait(pid) == 130 and time.monotonic() - start < 2.5     # not the server's 3 s
    assert (tmp_path/'log').read_text() == 'hpa-download: stopped; the same command goes on from here\n'
    assert not [o for o in (tmp_path/'out').rglob('.*')]

def test_a_stop_leaves_whole_files_only(tmp_path, monkeypatch):
    "An error in one thread, such as a full disk, ends the others soon"
    import hpa_fastai.images.download as module
    real, calls = module._keep_image, []
    def keep(*args):
        calls.append(args)
        if len(calls) == 5: raise DataError('disk full')
        real(*args)
    monkeypatch.setattr(module, '_keep_image', keep)
    start = time.monotonic()
    with server(lambda path, visit: Answer(503) if '105' in path else Answer()) as (base, _):
        with pytest.raises(DataError, match='disk full'):
            download_samples(ids, tmp_path/'atlas', base, **{**quick, 'backoff': 60})
    assert time.monotonic() - start < 30
    for o in (tmp_path/'atlas').glob('*.jpg'): assert o.read_bytes() in atlas.values()

def test_lists_that_are_no_lists(tmp_path):
    pd.DataFrame(dict(Id=['abc'], Target=['0'])).to_csv(tmp_path/'list.csv', index=False)
    with pytest.raises(DataError, match='abc: not an Id of the Human Protein Atlas'):
        download_list(tmp_path/'list.csv', tmp_path/'out', base='http://127.0.0.1:9')
    with pytest.raises(DataError, match='no such file'): download_list(tmp_path/'none.csv', tmp_path/'out')
    assert not (tmp_path/'out/train.csv').exists()

def test_the_real_list_has_an_address_for_each_image(shared):
    from hpa_fastai.images.download import image_url
    df = read_labels(shared/'data/labels/hpav18.csv')
    urls = {image_url(i, 'green') for i in df.Id}
    assert len(urls) == len(df)
    assert all(o.startswith('https://v18.proteinatlas.org/images/') and o.count('/') == 5 for o in urls)

@pytest.mark.skipif(os.name == 'nt', reason='the stand-in for the client is a shell script')
def test_an_archive_cut_short(tmp_path, monkeypatch):
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin/kaggle').write_text('#!/bin/sh\necho "PK half of it" > "$6/$4.zip"\n')
    (tmp_path/'bin/kaggle').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path/'bin'))
    with pytest.raises(DataError, match='damaged .*delete it and run again'):
        kaggle_files(tmp_path/'kaggle')

def test_archives_in_the_archive(tmp_path, monkeypatch):
    "As the competition was given out at first: train.zip and test.zip inside"
    for part in ('train', 'test'):
        with zipfile.ZipFile(tmp_path/f'{part}.zip', 'w') as z:
            z.writestr(f'{part[:2]}_red.png', picture(0, form='PNG'))
    folder = tmp_path/'kaggle'
    folder.mkdir()
    with zipfile.ZipFile(folder/'comp.zip', 'w') as z:
        z.writestr('train.csv', 'Id,Target\ntr,0\n')
        for part in ('train', 'test'): z.write(tmp_path/f'{part}.zip', f'{part}.zip')
    _unpack(folder/'comp.zip', folder)
    files = {str(o.relative_to(folder)) for o in folder.rglob('*.*')}
    assert files == {'train.csv', os.path.join('train', 'tr_red.png'), os.path.join('test', 'te_red.png')}

def zip_of(path, **entries):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, content in entries.items(): z.writestr(name, content)
    return path

outside = ['../mine.zip', '{}/mine.zip', '../mine.csv', '{}/mine.csv', '...zip', 'a/../../mine.csv']

@pytest.mark.parametrize('name', outside)
def test_an_archive_reaches_nothing_outside(tmp_path, name):
    "Neither to write it, nor to read it, nor to delete it"
    zip_of(tmp_path/'mine.zip', **{'mine.txt': 'mine'})
    (tmp_path/'mine.csv').write_text('mine')
    inner = zip_of(tmp_path/'inner', **{'b.txt': 'b'}).read_bytes()
    before = all_files(tmp_path)
    (tmp_path/'kaggle/.kaggle').mkdir(parents=True)
    archive = zip_of(tmp_path/'kaggle/.kaggle/comp.zip', **{'train.csv': 'Id', name.format(tmp_path): inner})
    with pytest.raises(DataError, match='comp.zip: holds .* leads out of the folder'):
        _unpack(archive, tmp_path/'kaggle')
    archive.unlink()
    assert all_files(tmp_path) == before

def test_an_archive_with_a_link(tmp_path):
    link = zipfile.ZipInfo('train')
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path/'comp.zip', 'w') as z:
        z.writestr(link, '/etc')
        z.writestr('train/a.csv', 'x')
    with pytest.raises(DataError, match="holds 'train', which is a link"): _unpack(tmp_path/'comp.zip', tmp_path)
    assert [o.name for o in tmp_path.iterdir()] == ['comp.zip']

def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    zip_of(tmp_path/'comp.zip', **{'train.csv': bytes(30_000_000)})
    with pytest.raises(DataError, match='more than 200 times'): _unpack(tmp_path/'comp.zip', tmp_path)
    zip_of(tmp_path/'comp.zip', **{'train.csv': 'x'*900_000})
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('Usage', (), dict(free=800_000)))
    with pytest.raises(DataError, match='unpacks to .* GB left'): _unpack(tmp_path/'comp.zip', tmp_path)
    assert [o.name for o in tmp_path.iterdir()] == ['comp.zip']

def test_an_archive_in_an_archive_of_the_same_name(tmp_path):
    "And one in that stays as it is, so there is no bottom that is never reached"
    innermost = zip_of(tmp_path/'b.zip', **{'c.csv': 'c'}).read_bytes()
    inner = zip_of(tmp_path/'a.zip', **{'a.csv': 'a', 'b.zip': innermost}).read_bytes()
    (tmp_path/'kaggle/.kaggle').mkdir(parents=True)
    _unpack(zip_of(tmp_path/'kaggle/.kaggle/comp.zip', **{'comp.zip': inner, 'x/y.zip': inner}), tmp_path/'kaggle')
    files = sorted(o.as_posix() for o in all_files(tmp_path/'kaggle'))
    assert files == ['comp/a.csv', 'comp/b.zip', 'y/a.csv', 'y/b.zip']
    assert not list((tmp_path/'kaggle/.kaggle').iterdir())

@pytest.mark.skipif(os.name == 'nt', reason='the stand-in for the client is a shell script')
def test_kaggle_files_twice_at_once(tmp_path):
    zip_of(tmp_path/'comp.zip', **{'train.csv': 'Id,Target', 'train/a_red.png': picture(0, form='PNG')})
    (tmp_path/'bin').mkdir()
    client = f'#!/bin/sh\necho x >> {tmp_path}/calls\nsleep .3\ncp {tmp_path}/comp.zip "$6/$4.zip"\n'
    (tmp_path/'bin/kaggle').write_text(client)
    (tmp_path/'bin/kaggle').chmod(0o755)
    code = ('import sys; from hpa_fastai.images.competition import kaggle_files\n'
            'for o in sys.stdin: kaggle_files(o.strip())')
    env = {**os.environ, 'PATH': f'{tmp_path}/bin{os.pathsep}{os.environ["PATH"]}'}
    command = [sys.executable, '-c', code]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    for o in both: o.stdin.write(f'{tmp_path}/kaggle\n')
    for o in both: o.stdin.close()
    assert [o.wait() for o in both] == [0, 0]
    assert (tmp_path/'calls').read_text() == 'x\n'
    assert sorted(o.name for o in (tmp_path/'kaggle').iterdir()) == ['train', 'train.csv']

def test_merging_the_same_folder_twice_adds_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in dict(a=8, b=5).items():
        names = [f'{name}{k}' for k in range(n)]
        (tmp_path/name/'train').mkdir(parents=True)
        for o in names:
            squares = np.kron(rng.integers(0, 200, (8, 8, 4)), np.ones((8, 8, 1)))
            np.save(tmp_path/name/'train'/f'{o}.npy', squares.astype(np.uint8))
        df = pd.DataFrame(dict(Id=names, Target='0', CellLine='HeLa'))
        df.to_csv(tmp_path/name/'train.csv', index=False)
    merged = merge_folders([tmp_path/'a', tmp_path/'b', tmp_path/'a'], tmp_path/'out', progress=False)
    counts = merged.counts[['rows', 'same_id', 'near_duplicates', 'kept']]
    assert counts.values.tolist() == [[8, 0, 0, 8], [5, 0, 0, 5], [8, 8, 0, 0]]
    before = digest(tmp_path/'out/train')
    merge_folders([tmp_path/'a', tmp_path/'b'], tmp_path/'out', progress=False)
    assert digest(tmp_path/'out/train') == before
    written = find_samples(tmp_path/'out/train', read_labels(tmp_path/'out/train.csv').Id)
    for i, o in written.items(): assert (open_rgby(o) == open_rgby(merged.samples[i])).all()
