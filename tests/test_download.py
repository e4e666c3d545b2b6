"Downloads from a server that is slow, drops connections, truncates, denies and lies; killed and run again."
import hashlib, os, subprocess, sys, threading, time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpa_fastai.images.download import ImageFetcher, download_samples, download_list, kaggle_files
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
    def __init__(self, status=200, headers=None, sent=None, body=None, pause=0, drop=False):
        self.status, self.headers, self.sent = status, headers or {}, sent
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
            self.wfile.write(body[:a.sent])
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
    with server(behave) as (base, visits): got = download_samples(ids, tmp_path/'atlas', base, **quick)
    assert got.ids == ids and not len(got.missing) and got.new == len(atlas)
    assert digest(tmp_path/'atlas') == expected
    assert len(visits) == len(atlas) + len(atlas)//3

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

if __name__ == '__main__':   # started by the test below
    print('ready', flush=True)
    download_samples(ids, sys.argv[2], sys.argv[1], size=int(sys.argv[3]) or None, **quick)
    sys.exit()

@pytest.mark.skipif(os.name == 'nt', reason='no kill -9')
@pytest.mark.parametrize('size', [0, 32])
def test_killed_then_run_again_gives_the_same_bytes(tmp_path, size):
    def run(base, folder):
        command = [sys.executable, '-W', 'ignore', __file__, base, str(folder), str(size)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)
    def there(folder): return len(list(folder.glob('[!.]*.*g'))) if folder.exists() else 0
    with server(lambda path, visit: Answer(pause=.05)) as (base, visits):
        p = run(base, tmp_path/'cut')
        p.stdout.readline()
        while there(tmp_path/'cut') < 16 and p.poll() is None: time.sleep(.002)
        p.kill()
        p.wait()
        kept = there(tmp_path/'cut')
        assert 16 <= kept < len(atlas)
        (tmp_path/'cut/.100_7_A1_1_red.1234.tmp.jpg').write_bytes(b'half')     # what a kill in mid-file leaves
        asked = len(visits)
        download_samples(ids, tmp_path/'cut', base, size=size or None, **quick)
        assert len(visits) - asked == len(atlas) - kept
        download_samples(ids, tmp_path/'whole', base, size=size or None, **quick)
    assert digest(tmp_path/'cut') == digest(tmp_path/'whole')

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
    assert all(o.startswith('http://v18.proteinatlas.org/images/') and o.count('/') == 5 for o in urls)

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
    import zipfile
    for part in ('train', 'test'):
        with zipfile.ZipFile(tmp_path/f'{part}.zip', 'w') as z:
            z.writestr(f'{part[:2]}_red.png', picture(0, form='PNG'))
    folder = tmp_path/'kaggle'
    folder.mkdir()
    with zipfile.ZipFile(folder/'comp.zip', 'w') as z:
        z.writestr('train.csv', 'Id,Target\ntr,0\n')
        for part in ('train', 'test'): z.write(tmp_path/f'{part}.zip', f'{part}.zip')
    from hpa_fastai.images.download import _unpack
    _unpack(folder/'comp.zip', folder)
    files = {str(o.relative_to(folder)) for o in folder.rglob('*.*')}
    assert files == {'train.csv', os.path.join('train', 'tr_red.png'), os.path.join('test', 'te_red.png')}

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
