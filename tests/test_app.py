"""The page in a real browser, from upload to labels: `make test-app` installs what it needs.

Skips, and says so, where Gradio, Playwright or a Chromium is missing."""
import os, time
from pathlib import Path
import cv2, pandas as pd, pytest

from hpa_fastai.labels import CHANNELS
from hpa_fastai.simulate.dataset import simulate_field

WAIT = 120_000   # ms; the first answer loads the network's code

@pytest.fixture(scope='session')
def page_server():
    "A running page: its address, and the folder of its files"
    gradio = pytest.importorskip('gradio', reason='the page needs Gradio: pip install "hpa_fastai[app]"')
    from hpa_fastai.app.page import launch, private_gradio
    from hpa_fastai.runs.predictor import Predictor
    with private_gradio() as cache:
        page = launch(gradio, Predictor.load('simulated', device='cpu'))
        page.cache = Path(cache)
        yield page
        page.blocks.close()
        page.visitors.close()

@pytest.fixture
def tab(chromium, page_server):
    "The page in a tab of its own; at the end: nothing was asked of other servers, and nothing was wrong in the console"
    context = chromium.new_context(viewport=dict(width=1280, height=900), accept_downloads=True)
    tab = context.new_page()
    tab.elsewhere, tab.wrong = [], []
    own = page_server.url, page_server.url.replace('http', 'ws'), 'data:', 'blob:'
    tab.on('request', lambda o: None if o.url.startswith(own) else tab.elsewhere.append(o.url))
    tab.on('pageerror', lambda o: tab.wrong.append(str(o)))
    tab.set_default_timeout(WAIT)
    tab.goto(page_server.url)
    tab.wait_for_selector('#files input[type=file]', state='attached')
    yield tab
    context.close()
    assert not tab.elsewhere and not tab.wrong

def drop(tab, files): tab.set_input_files('#files input[type=file]', [str(o) for o in files])

def shoot(tab, name):
    "A picture of the page at two widths, into the folder SCREENSHOTS if that is set"
    folder = os.environ.get('SCREENSHOTS')
    for width, height in (1280, 900), (390, 844):
        tab.set_viewport_size(dict(width=width, height=height))
        tab.wait_for_timeout(600)
        assert tab.evaluate('document.documentElement.scrollWidth') <= width, f'{name}: runs off the edge at {width} px'
        if folder: tab.screenshot(path=f'{folder}/{name}_{width}.png', full_page=True)
    tab.set_viewport_size(dict(width=1280, height=900))

def source(tab): return tab.locator('#picture img').evaluate('o => o.src')

def changed(tab, before):
    "Wait until the picture is another one"
    tab.wait_for_function(
        'o => { const img = document.querySelector("#picture img"); return img && img.src !== o }', arg=before)
    return source(tab)

def write_field(folder, name, seed, channels=CHANNELS):
    img, files = simulate_field([seed % 28], size=256, seed=seed).image, []
    for c in channels:
        files.append(folder/f'{name}_{c}.png')
        cv2.imwrite(str(files[-1]), img[..., CHANNELS.index(c)])
    return files

@pytest.fixture
def field(tmp_path):
    "Four files of a real field; of a simulated one where there are none"
    shared = Path(os.environ.get('HPA_SHARED', '/nonexistent'))/'data/images/rgby_fields'
    red = next(iter(sorted(shared.glob('*_red.png'))), None)
    if red is None: return write_field(tmp_path, 'simulated', 5)
    return [red.with_name(red.name.replace('_red', f'_{c}')) for c in CHANNELS]

def test_four_files_give_labels(tab, page_server, field):
    shoot(tab, 'empty')
    drop(tab, field)
    tab.wait_for_selector('#labels .label.given')
    from hpa_fastai.images.samples import find_samples, open_rgby
    found = find_samples(field[0].parent)
    expected = page_server.predictor.predict([open_rgby(found[field[0].name.replace('_red.png', '')])])[0]
    assert set(tab.locator('#labels .label.given strong').all_text_contents()) == set(expected)
    assert tab.locator('#labels .label').count() == 28
    shoot(tab, 'one')
    before = source(tab)
    tab.get_by_label('red: microtubules').uncheck()
    before = changed(tab, before)
    tab.locator('#heat input').click()
    tab.get_by_role('option').nth(1).click()
    changed(tab, before)
    shoot(tab, 'heat')
    with tab.expect_download() as got: tab.locator('#download').click()
    df = pd.read_csv(got.value.path())
    assert set(df.Labels[0].split(';')) == set(expected) and {'Id', 'Trust', 'Flags', 'Nucleoplasm'} <= set(df)

def test_text_file(tab, tmp_path):
    (tmp_path/'notes.txt').write_text('no picture')
    drop(tab, [tmp_path/'notes.txt'])
    tab.wait_for_selector('#message [role=alert]')
    said = tab.locator('#message [role=alert]').text_content()
    assert 'notes.txt: no image; give files that end with .png' in said and str(tmp_path) not in said
    shoot(tab, 'error')

def test_text_file_that_is_called_a_picture(tab, tmp_path):
    (tmp_path/'a.png').write_text('no picture')
    drop(tab, [tmp_path/'a.png'])
    tab.wait_for_selector('#message [role=alert]')
    said = tab.locator('#message [role=alert]').text_content()
    assert 'a.png: not a whole image' in said and '/' not in said.replace('http://', '')

def test_several_samples(tab, tmp_path):
    files = [o for k in range(3) for o in write_field(tmp_path, f'field{k}', k, CHANNELS[:4 - (k == 1)])]
    torn = write_field(tmp_path, 'torn', 4)
    torn[0].write_bytes(b'torn')
    drop(tab, [*files, *torn])
    tab.wait_for_selector('#samples .samples')
    assert '3 samples labelled, 1 could not be read' in tab.locator('#samples h2').text_content()
    assert 'torn_red.png: not a whole image' in tab.locator('#samples .notes').text_content()
    tab.locator('[data-sample="2"]').click()
    tab.wait_for_selector('[data-sample="2"][aria-pressed=true]')
    shoot(tab, 'several')
    with tab.expect_download() as got: tab.locator('#download').click()
    assert pd.read_csv(got.value.path()).Id.tolist() == ['field0', 'field1', 'field2']

def test_example_and_what_is_left(tab, page_server):
    before = set(page_server.visitors)
    tab.locator('#draw').click()
    tab.wait_for_selector('#labels .label.given')
    assert 'no real image' in tab.locator('#held').text_content()
    shoot(tab, 'example')
    new = set(page_server.visitors) - before
    folders = [page_server.visitors[o].images for o in new]
    assert folders and all(o.exists() for o in folders)
    tab.goto('about:blank')   # leaves the page
    for _ in range(100):
        if not any(o.exists() for o in folders): break
        time.sleep(.2)
    assert not any(o.exists() for o in folders)

def test_no_files_of_the_machine(page_server, tmp_path):
    "Neither as a file, nor as the input of an event, nor as part of the interface for programs"
    import requests
    ask = page_server.url + 'gradio_api/'
    (tmp_path/'secret.png').write_bytes(b'secret')
    for o in ('/etc/passwd', 'setup.py', '../../etc/passwd', str(tmp_path/'secret.png'), str(Path(__file__))):
        assert requests.get(f'{ask}file={o}').status_code in (403, 404), o
    file = dict(path=str(tmp_path/'secret.png'), meta=dict(_type='gradio.FileData'))
    data = dict(data=[[file], '', None, None, 'bits'])
    for name in page_server.blocks.fns:
        answer = requests.post(f'{ask}run/predict', json=data | dict(fn_index=name, session_hash='x'))
        assert answer.status_code >= 400 and b'secret' not in answer.content.replace(b'secret.png', b''), answer.content
    assert (tmp_path/'secret.png').read_bytes() == b'secret'
    assert requests.get(f'{ask}info').json()['named_endpoints'] == {}

def test_only_this_machine(page_server):
    assert page_server.url.startswith('http://127.0.0.1:') and not page_server.blocks.share
    assert not page_server.blocks.analytics_enabled and not page_server.blocks.allowed_paths
