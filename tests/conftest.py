"Where the real files are, if they are; and the same examples in every run."
import os
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
