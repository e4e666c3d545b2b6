"Commands that are killed, stopped by Ctrl-C, or started twice: one moment of each (see kills.py for many more)."
import sys, pytest
if sys.platform != 'linux': pytest.skip('runs commands in forks of one process', allow_module_level=True)
import kills

def test_disturbed_commands_end_as_if_undisturbed():
    only = ['hpa-pack zstd', 'hpa-train', 'hpa-predict', 'hpa-merge', 'hpa-download size']
    done = kills.trials(1, 0, only, n_twice=1)
    print(kills.table(done))
    assert [o.name for o in done] == only
    assert not (notes := [line for o in done for line in o.notes]), '\n'.join(notes)
