"Where the real files are, if they are; the same examples in every run; and one browser for all pages."
import os, shutil
from pathlib import Path
import pytest
from hypothesis import settings

settings.register_profile('same', derandomize=True, database=None)
settings.load_profile('same')

root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def shared():
    "The folder of real competition files; tests that want it skip elsewhere"
    folder = Path(os.environ.get('HPA_SHARED', root.parent/'shared'))
    if not (folder/'data/labels/train.csv').exists():
        pytest.skip(f'the competition files are not in {folder} (set HPA_SHARED)')
    return folder

@pytest.fixture(scope='session')
def chromium():
    "A Chromium without a window; tests that want it skip where it or Playwright is missing"
    playwright = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
    program = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as p:
        if not program and not Path(p.chromium.executable_path).exists():
            pytest.skip('no Chromium: install one, or name it in CHROMIUM')
        browser = p.chromium.launch(executable_path=program, args=['--no-sandbox'])
        yield browser
        browser.close()
