"Spoilt files for every reader: about 1,500, chosen by a seed (see fuzz.py for many more)."
import os, pytest
import fuzz

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='reads spoilt files in forked processes')
def test_spoilt_files_are_read_or_refused_in_one_line():
    records = fuzz.fuzz(1500, seed=0)
    print(fuzz.table(records).to_string(index=False))
    assert len(records) > 1400
    assert not (found := fuzz.causes(records, 0)), f'\n{found}'
