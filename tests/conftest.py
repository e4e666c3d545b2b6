"Where the real files are, if they are."
import os
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def shared():
    "The folder of real competition files; tests that want it skip elsewhere"
    folder = Path(os.environ.get('HPA_SHARED', root.parent/'shared'))
    if not (folder/'data/labels/train.csv').exists(): pytest.skip(f'the competition files are not in {folder} (set HPA_SHARED)')
    return folder
