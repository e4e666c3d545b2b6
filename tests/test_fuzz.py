"Spoilt files for every reader: about 1,500, chosen by a seed (see fuzz.py for many more)."
import sys, pytest
if sys.platform != 'linux': pytest.skip('measures by /proc', allow_module_level=True)
import fuzz

def test_spoilt_files_are_read_or_refused_in_one_line():
    records = fuzz.fuzz(1500, seed=0)
    print(fuzz.table(records).to_string(index=False))
    assert len(records) > 1400
    assert not (found := fuzz.causes(records, 0)), f'\n{found}'
