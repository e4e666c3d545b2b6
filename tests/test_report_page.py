"""The page of a run in a real browser: sort, filter, browse, see stains and heat, correct a label and save the list.

Needs Chromium (`apt-get install chromium`) and the Python package playwright; skipped where one of them is missing."""
import pandas as pd, pytest

from hpa_fastai.labels import LABELS, read_labels
from hpa_fastai.runs.folder import RunFolder
from hpa_fastai.runs.report import write_report
from test_report import hostile, make_run

playwright = pytest.importorskip('playwright.sync_api',
                                 reason='the page is opened by playwright (pip install playwright)')

expect = playwright.expect

@pytest.fixture(scope='module')
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp('page')/'run')

@pytest.fixture(scope='module')
def file(run): return write_report(run, examples=30, device='cpu')

def open_page(browser, file, width):
    "The page in a new window; what it says on the console and what it asks for are kept"
    page = browser.new_context(viewport=dict(width=width, height=900), accept_downloads=True).new_page()
    page.said, page.asked = [], []
    page.on('console', lambda o: page.said.append(o.text))
    page.on('pageerror', lambda o: page.said.append(str(o)))
    page.on('dialog', lambda o: (page.said.append(o.message), o.accept()))
    page.on('request', lambda o: page.asked.append(o.url))
    page.goto(file.as_uri())
    page.wait_for_selector('html.ready', state='attached')
    return page

@pytest.fixture(params=[1280, 390])
def page(chromium, file, request):
    page = open_page(chromium, file, request.param)
    yield page
    assert not page.said
    assert all(o.startswith(('file:', 'data:', 'blob:')) for o in page.asked), page.asked
    page.context.close()

def names(page): return page.eval_on_selector_all('#labels tbody tr:not([hidden])', 'o => o.map(r => r.dataset.name)')
def captions(page): return page.eval_on_selector_all('#gallery figcaption', 'o => o.map(f => f.textContent)')

def saved(page, button, to):
    "What a button gives to save"
    with page.expect_download() as download: page.click(button)
    download.value.save_as(to)
    return to

def pixels(page): return page.evaluate("document.getElementById('details-canvas').toDataURL()")

def is_redrawn(page, before, patience=200):
    "Wait until the canvas shows something else"
    for _ in range(patience):
        if pixels(page) != before: return True
        page.wait_for_timeout(50)

def test_nothing_is_cut(page):
    "Nothing reaches beyond the right edge, also where everything is unfolded"
    page.evaluate("document.querySelectorAll('details').forEach(o => o.open = true)")
    wide = page.evaluate("""() => [...document.querySelectorAll('body *')].filter(o => {
      const box = o.getBoundingClientRect()
      return box.width > 1 && !o.closest('thead, .offscreen, option') && (box.right > innerWidth + 1 || box.left < -1)
    }).map(o => o.outerHTML.slice(0, 200))""")
    assert not wide and page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    row = page.locator('#labels tbody tr').first
    for name in ('precision', 'recall', 'images'):
        assert row.locator(f'[data-name={name}]').bounding_box()['width'] > 20

def test_every_control_has_a_name(page):
    assert page.evaluate("""() => [...document.querySelectorAll('input, select, button')].filter(o =>
      !(o.labels && o.labels.length) && !o.getAttribute('aria-label') && !o.textContent.trim()).length""") == 0

def test_sort_and_filter_labels(page, run, tmp_path):
    table = RunFolder(run).interpret().table().sort_values('f1', ascending=False)
    assert names(page)[0] == table.label.iloc[0] and len(names(page)) == 28
    page.select_option('#label-sort', 'name')
    assert names(page) == sorted(LABELS)
    page.select_option('#label-sort', 'images down')
    assert names(page)[0] == 'Cytosol'
    page.fill('#label-find', 'nucleol')
    found = {'Nucleoli', 'Nucleoli fibrillar center'}
    assert set(names(page)) == found and page.inner_text('#label-count') == 'shown: 2 of 28'
    df = pd.read_csv(saved(page, '#label-save', tmp_path/'labels.csv'))
    assert set(df.label) == found and df.images.sum() == table.set_index('label').support[df.label].sum()

def test_browse_images(page, run):
    folder = RunFolder(run)
    page.select_option('#image-label', label='Cytosol')
    page.select_option('#image-kind', 'right')
    page.uncheck('#image-pictures')
    c = LABELS.index('Cytosol')
    n = int((folder.targs[:, c] & folder.decided[:, c]).sum())
    assert f'of {n} images' in page.inner_text('#gallery-count')
    while page.is_visible('#gallery-more'): page.click('#gallery-more')
    assert len(captions(page)) == n and all('Cytosol right' in o for o in captions(page))
    page.select_option('#image-label', '')
    page.select_option('#image-kind', 'missed')
    missed = (folder.targs.astype(bool) & ~folder.decided).any(1).sum()
    assert f'of {missed} image' in page.inner_text('#gallery-count')
    assert not any('0.00,' in o or o.endswith('0.00') for o in captions(page))
    page.fill('#image-find', 'script')
    page.select_option('#image-kind', 'all')
    assert len(captions(page)) == 1 and hostile[0] in captions(page)[0]

def test_stains_heat_and_keys(page):
    page.click('#gallery .thumb:not(.none) >> nth=0')
    expect(page.locator('#details-canvas')).to_have_attribute('width', '64')
    first, every = page.inner_text('#details-title'), pixels(page)
    for o in (0, 2, 3): page.locator('#details-stains input').nth(o).uncheck()
    assert is_redrawn(page, every)
    for o in (0, 2, 3): page.locator('#details-stains input').nth(o).check()
    while pixels(page) != every: page.wait_for_timeout(50)
    def is_hot(k):   # a network of random weights sees some labels nowhere
        page.select_option('#details-heat', index=k)
        return is_redrawn(page, every, 20)
    assert any(map(is_hot, range(1, page.locator('#details-heat option').count())))
    page.locator('#details-close').focus()
    page.keyboard.press('ArrowRight')
    assert page.inner_text('#details-title') != first
    page.keyboard.press('Escape')
    assert not page.is_visible('#details')

def test_a_label_is_corrected(page, run, tmp_path):
    "Two ticks, and the saved list differs from the one that was learnt from in these two rows only"
    before = pd.read_csv(run/'oof.csv', dtype=str, keep_default_na=False)[['Id', 'Target']]
    assert page.is_disabled('#changes-save')
    page.select_option('#doubt-label', label='Golgi apparatus')
    page.check('#doubts input[data-change="10 7 1"]')
    page.select_option('#doubt-label', '')
    page.select_option('#doubt-kind', 'duplicate')
    page.check('#doubts input[data-change="59 9 0"]')
    assert 'left without a label' in page.inner_text('#changes-problem') and page.is_disabled('#changes-save')
    page.click('#doubts > li:has(input[data-change="59 9 0"]) .thumb >> nth=0')     # give it another one by hand
    if not page.is_visible('#details li:has-text("Nuclear speckles") input'): page.click('#details summary')
    page.check('#details li:has-text("Nuclear speckles") input')
    page.keyboard.press('Escape')
    assert page.inner_text('#changes-count') == '2 images changed' and 'Nuclear speckles' in page.inner_text('#doubts')
    after = read_labels(saved(page, '#changes-save', tmp_path/'train.csv'))
    expected = before.copy()
    expected.loc[10, 'Target'] = ' '.join(map(str, sorted({7, *map(int, before.Target[10].split())})))
    expected.loc[59, 'Target'] = '4'
    assert after.equals(expected) and (after != before).any(axis=1).sum() == 2

def test_other_columns_are_kept(page, run, tmp_path):
    "A list with other columns, another order and further images is changed in one row only"
    df = pd.read_csv(run/'oof.csv', dtype=str, keep_default_na=False)[['Target', 'Id']]
    df = df.assign(antibody='HPA1, "rabbit"')
    df.loc[len(df)] = ['5', 'elsewhere', '']
    df = df[::-1]
    df.to_csv(tmp_path/'mine.csv', index=False, lineterminator='\r\n')
    page.select_option('#doubt-label', label='Golgi apparatus')
    page.check('#doubts input[data-change="10 7 1"]')
    page.click('#changes summary')
    page.set_input_files('#changes-base', tmp_path/'mine.csv')
    expect(page.locator('#base-said')).to_contain_text('61 rows')
    after = pd.read_csv(saved(page, '#changes-save', tmp_path/'train.csv'), dtype=str, keep_default_na=False)
    differ = (after != df.reset_index(drop=True)).any(axis=1)
    assert after.columns.tolist() == ['Target', 'Id', 'antibody']
    assert after.Id[differ].tolist() == [RunFolder(run).ids[10]]
    (tmp_path/'other.csv').write_text('Id,Target\nx,1\n')
    page.set_input_files('#changes-base', tmp_path/'other.csv')
    expect(page.locator('#base-said')).to_contain_text('lacks 60 images')

def test_predictions_are_saved(page, run, tmp_path):
    folder = RunFolder(run)
    page.select_option('#image-kind', 'all')
    page.select_option('#image-order', 'list')
    page.uncheck('#image-pictures')
    df = pd.read_csv(saved(page, '#image-save', tmp_path/'images.csv'), dtype=dict(Id=str, Predicted=str))
    assert df.Id.tolist() == folder.ids and abs(df[list(LABELS)].to_numpy() - folder.probs).max() < 1e-3
    assert page.inner_text('#test-count') == 'shown: 3 of 3 images' and '<t2>' in page.inner_text('#test-list')
    df = pd.read_csv(saved(page, '#test-save', tmp_path/'test.csv'), dtype=dict(Predicted=str))
    assert df.Predicted.tolist() == pd.read_csv(run/'submission.csv', dtype=str).Predicted.tolist()
