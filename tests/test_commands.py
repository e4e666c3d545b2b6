"Whatever is typed after a command's name is answered in one line, before anything heavy is loaded."
import re, shlex, subprocess, sys
import pytest

from hpa_fastai import cli, cli_predict
from hpa_fastai.arguments import EXAMPLES, set_changes
from hpa_fastai.runs.fold import check_recipe
from hpa_fastai.runs.recipes import load_recipe

commands = {name: f for module in (cli, cli_predict) for name, f in vars(module).items()
            if name.startswith('hpa_') and hasattr(f, 'main')}
names = sorted(commands)

def answer(capsys, line):
    "The one line on standard error that a wrong command line is answered with"
    name, *words = line.split()
    with pytest.raises(SystemExit) as e: commands[name.replace('-', '_')].main(words)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == '' and err.startswith(f'{name}: ') and err.count('\n') == 1, err
    return err

@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'cells').mkdir()
    (tmp_path/'file').touch()
    return tmp_path

def test_there_are_eleven(): assert len(names) == 11

@pytest.mark.parametrize('name', names)
def test_unknown_option(capsys, name):
    said = answer(capsys, f'{name.replace("_", "-")} --nonsense 1')
    assert 'did you mean --' in said or 'is missing' in said   # what must be there is looked for first

@pytest.mark.parametrize('line, part', [
    ('hpa-simulate', '--out is missing'), ('hpa-simulate --out new --n -5', '--n -5: give 1 or more'),
    ('hpa-simulate --out new --n many', 'invalid int value'), ('hpa-simulate --out new --size 0', '--size 0'),
    ('hpa-simulate --out new --workers -1', '--workers -1'),
    ('hpa-simulate --out file', 'is a file; give another folder'),
    ('hpa-simulate --out file/new', 'is a file; give another folder'),
    ('hpa-simulate --out new --missing 2', 'a fraction from 0 to 1'),
    ('hpa-download --out new --samples none.csv', 'none.csv: no such file'),
    ('hpa-download --out new --workers 0', '--workers 0'), ('hpa-download --out file', 'is a file'),
    ('hpa-merge cells none --out new', 'none: no such folder'), ('hpa-merge cells --out file', 'is a file'),
    ('hpa-pack --images none --out new', '--images none: no such folder'),
    ('hpa-pack --images file --out new', '--images file: is a file; give a folder'),
    ('hpa-pack --images cells --out new --size 0', '--size 0'), ('hpa-pack --images cells --out file', 'is a file'),
    ('hpa-train --data none --out new', '--data none: no such folder'),
    ('hpa-train --data cells --out file', 'is a file'), ('hpa-train --data cells --out new --epochs 0', '--epochs 0'),
    ('hpa-train --data cells --out new --folds 1', '--folds 1: give 2 or more'),
    ('hpa-train --data cells --out new --set bs', 'write KEY=VALUE'),
    ('hpa-train --data cells --out new --recipe defualt', "did you mean 'default'"),
    ('hpa-train --data cells --out new --distribute fold', 'did you mean folds?'),
    ('hpa-train --data cells --out new --device gpu', 'choose cpu, cuda'),
    ('hpa-train --data cells --out new --device cuda:99', '--device cuda:99: '),
    ('hpa-recipes defualt', "did you mean 'default'"), ('hpa-report --run none', '--run none: no such folder'),
    ('hpa-report --run cells --examples -1', '--examples -1'), ('hpa-report --run cells --out cells', 'is a folder'),
    ('hpa-compare none', 'none: no such folder'), ('hpa-compare cells --plot cells', 'is a folder'),
    ('hpa-ensemble cells cells --out new --how medien', '--how medien: did you mean mean?'),
    ('hpa-ensemble cells cells --out new --thresholds Ratio', 'did you mean RatioRule?'),
    ('hpa-ensemble cells --out file', 'is a file'), ('hpa-predict --run cells --images file --out new', 'is a file'),
    ('hpa-predict --run cells --images cells --out cells', 'give the name of a file'),
    ('hpa-predict --run cells --images cells --out new --tta 3', 'choose 1, 4 or 8 views'),
    ('hpa-predict --run cells --images cells --out new --bs 0', '--bs 0'),
    ('hpa-predict --run simulatde --images cells --out new', '--run simulatde: no such folder'),
    ('hpa-predict --images cells --out new --weights none.pth', 'none.pth: no such file or folder'),
    ('hpa-predict --images cells --out new --um-per-px 0', '--um-per-px 0'),
    ('hpa-predict --images cells --out new --keep 90', '--keep 90'),
    ('hpa-predict --images cells --out new --adapt 2', '--adapt 2'),
    ('hpa-predict --images cells --out new --intensity plates', 'did you mean plate?'),
    ('hpa-predict --run cells --weights file --images cells --out new', 'give one of them'),
    ('hpa-check none.csv --data cells', 'none.csv: no such file'),
    ('hpa-check file --data file', '--data file: is a file')])
def test_wrong_words(capsys, here, line, part): assert part in answer(capsys, line)

@pytest.mark.parametrize('name', names)
def test_help(capsys, name):
    with pytest.raises(SystemExit) as e: commands[name].main(['--help'])
    text = capsys.readouterr().out
    assert not e.value.code and f'examples:\n  {name.replace("_", "-")}' in text
    usage = text.partition('\n\n')[0]
    for o in re.findall(r'--([\w-]+) \(\w+\)\s+Required\.', text): assert f'[--{o}' not in usage and f'--{o} ' in usage

@pytest.mark.parametrize('line', EXAMPLES['hpa_train'].splitlines())
def test_examples_train(line):
    words = shlex.split(line)
    given = dict(zip(words[1::2], words[2::2]))
    check_recipe(load_recipe(given.get('--recipe', 'default')).override(**set_changes(given.get('--set'))))

@pytest.mark.parametrize('error, status', [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_interrupted_and_closed(error, status):
    code = f'from hpa_fastai.cli import _end, _ending; _end("x", *_ending({type(error).__name__}()))'
    ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert ended.returncode == status and ended.stderr.count('\n') == (status == 130)
