"""Badges and the install cell of the tour and the tutorials.

    python tools/tutorials.py [--check] [--repository OWNER/NAME]

Badges point at the repository that settings.ini names; `--repository` names another there, and in all badges."""
import argparse, json, re, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
notebooks = [root/'nbs/000_tour.ipynb', *sorted((root/'nbs/tutorials').glob('*.ipynb'))]
settings = root/'settings.ini'

badges = """[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{repository}/blob/main/{path})
[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]\
(https://kaggle.com/kernels/welcome?src=https://github.com/{repository}/blob/main/{path})"""

install = """#| eval: false
# On Colab and Kaggle: install the library, once. On Kaggle without internet, from a data set that holds its wheels.
import importlib.util, pathlib, subprocess, sys
if not importlib.util.find_spec('hpa_fastai'):
    wheels = sorted(pathlib.Path('/kaggle/input').rglob('hpa_fastai-*.whl'))
    offline = ['--no-index', '--find-links', str(wheels[-1].parent)] if wheels else []
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', *offline, 'hpa_fastai'], check=True)"""

def repository():
    "Owner and name of the repository on GitHub, from settings.ini"
    parser = ConfigParser(delimiters=['='])
    parser.read(settings, encoding='utf-8')
    return parser['DEFAULT']['repository']

def cell(kind, source, key):
    "A cell with an id that stays the same"
    code = dict(execution_count=None, outputs=[]) if kind == 'code' else {}
    return dict(cell_type=kind, id=key, metadata={}, source=source.splitlines(True), **code)

def with_first_cells(text, path, repository):
    "A notebook's JSON with badges below its title, and the install cell below them"
    nb = json.loads(text)
    cells = [o for o in nb['cells'] if o['id'] not in ('badges', 'install')]
    first = [cell('markdown', badges.format(repository=repository, path=path), 'badges')]
    own = any(''.join(o['source']).startswith('#| eval: false') for o in cells)   # it installs in another way
    if not own: first.append(cell('code', install, 'install'))
    nb['cells'] = cells[:1] + first + cells[1:]
    ordered = [{k: o[k] for k in sorted(o)} for o in nb['cells']]
    return json.dumps({**nb, 'cells': ordered}, indent=1, ensure_ascii=False) + '\n'

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='change nothing; fail if anything would change')
    p.add_argument('--repository', metavar='OWNER/NAME', help='the repository on GitHub; kept in settings.ini')
    args = p.parse_args()
    if args.repository:
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', args.repository): sys.exit('--repository: OWNER/NAME, as on GitHub')
        text = settings.read_text(encoding='utf-8')
        text = re.sub(r'^repository = .*$', f'repository = {args.repository}', text, flags=re.M)
        settings.write_text(text, encoding='utf-8')
    differ = []
    for nb in notebooks:
        text = nb.read_text(encoding='utf-8')
        new = with_first_cells(text, nb.relative_to(root).as_posix(), repository())
        if new == text: continue
        if args.check: differ.append(nb.name)
        else: nb.write_text(new, encoding='utf-8')
    if differ: sys.exit(f'badges or install cell differ in {", ".join(differ)}; run python tools/tutorials.py')

if __name__ == '__main__': main()
