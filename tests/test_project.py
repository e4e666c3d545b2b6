"What holds for the project as a whole: notebooks and modules agree, names hide nothing, imports go one way."
import ast, builtins, json, os, re, runpy, shutil, subprocess, sys, sysconfig
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(p for p in (root/'nbs').glob('**/*.ipynb') if '.ipynb_checkpoints' not in p.parts)
def dotted(path): return '.'.join(path.relative_to(root/'hpa_fastai').with_suffix('').parts)
sources = sorted((root/'hpa_fastai').glob('**/*.py'))
modules = {dotted(p): p for p in sources if p.stem not in ('__init__', 'all', '_modidx', '_site')}
commands = re.findall(r'^\s*(?:console_scripts = )?(hpa-[\w-]+)=', (root/'settings.ini').read_text(), re.M)

def read_cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def cells(nb): return [(c['cell_type'], ''.join(c['source'])) for c in read_cells(nb)]
def body(path): return ast.parse(path.read_text(encoding='utf-8')).body
def module_of(nb):
    found = re.search(r'^#\|\s*default_exp\s+([\w.]+)', '\n'.join(s for _, s in cells(nb)), re.M)
    return found and found[1]

def run(*args): return subprocess.run([str(a) for a in args], capture_output=True, text=True, cwd=root)

def copy_of_project(to):
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_quarto.yml')
    for o in ('nbs', 'hpa_fastai'): shutil.copytree(root/o, to/o, ignore=ignore)
    for o in ('pyproject.toml', 'settings.ini'): shutil.copy(root/o, to/o)
    return to

def run_in(folder, code):
    pytest.importorskip('nbdev')   # needs a later fastcore than Kaggle's and Colab's
    subprocess.run([sys.executable, '-c', code], cwd=folder, check=True, capture_output=True)

def test_modules_are_what_the_notebooks_export(tmp_path):
    copy = copy_of_project(tmp_path)
    for path in modules.values(): (copy/path.relative_to(root)).unlink()
    run_in(copy, 'from nbdev.export import nb_export\nfrom nbdev.doclinks import nbdev_export\nnbdev_export()')
    def files(at):
        paths = (at/'hpa_fastai').glob('**/*.py')
        return {str(p.relative_to(at)): p.read_text(encoding='utf-8') for p in paths}
    exported, committed = files(copy), files(root)
    assert set(exported) == set(committed), 'a module without a notebook, or a notebook whose module is not committed'
    differ = [n for n in sorted(exported) if exported[n] != committed[n]]
    assert not differ, f'edit the notebook, then run nbdev-export: {differ}'

def test_notebooks_are_clean(tmp_path):
    copy = copy_of_project(tmp_path)
    run_in(copy, 'from nbdev.clean import nbdev_clean\nnbdev_clean()')
    names = [nb.relative_to(root) for nb in notebooks]
    differ = [str(o) for o in names if (copy/o).read_bytes() != (root/o).read_bytes()]
    assert not differ, f'run nbdev-clean: {differ}'

def test_readme_is_written_from_index():
    pytest.importorskip('nbdev')
    done = run(sys.executable, 'tools/readme.py', '--check')
    assert not done.returncode, done.stderr

def test_tutorials_have_badges_and_an_install_cell():
    done = run(sys.executable, 'tools/tutorials.py', '--check')
    assert not done.returncode, done.stderr

def test_tutorials_run_in_jupyter():
    "A kernel flushes `sys.stdout` whenever something is displayed, so it must be there"
    for nb in [root/'nbs/000_tour.ipynb', *(root/'nbs/tutorials').glob('*.ipynb')]:
        assert not any('redirect_stdout(None)' in s for _, s in cells(nb)), nb.name

def is_install(source):
    "Is it the cell that installs the library on Kaggle and Colab? The only one that isn't run here"
    return source.startswith('#| eval: false\n') and "find_spec('hpa_fastai')" in source

@pytest.mark.parametrize('nb', notebooks, ids=lambda o: o.stem)
def test_notebook(nb):
    "Small enough to read in a browser, every cell is run, and at least one cell asserts for each that exports"
    code = [s for kind, s in cells(nb) if kind == 'code' and "find_spec('hpa_fastai')" not in s]   # it installs us
    exported = [s for s in code if re.search(r'^#\|\s*exports?\b', s, re.M)]
    assertion = r'\b(test_\w+\(|assert |expect_fail|assert_\w+\()'
    asserting = [s for s in code if s not in exported and re.search(assertion, s)]
    assert len(asserting) >= len(exported)
    assert nb.stat().st_size < 1_000_000
    code = [s for s in code if not is_install(s)]
    assert not any(re.search(r'^#\|\s*eval:\s*false|skip_exec', s, re.M) for s in code)
    for s in code:
        if s in exported: continue
        imports = [isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(s).body]
        assert all(imports) or not any(imports) or nb.stem == 'index', f'imports belong in cells of their own: {s}'
    run_cells = [c for c in read_cells(nb) if c['cell_type'] == 'code']
    outputs = [o for c in run_cells for o in c['outputs']]
    assert not any(o['output_type'] == 'error' for o in outputs)
    assert not any('Warning' in ''.join(o['text']) for o in outputs if o.get('name') == 'stderr')

def code_lines():
    "Where each line of code stands, and the line: in notebooks, tests, tools and benchmarks"
    for nb in notebooks:
        for i, (kind, source) in enumerate(cells(nb)):
            if kind == 'code': yield from ((f'{nb.name}, cell {i}', l) for l in source.splitlines())
    for path in [o for folder in ('tests', 'tools', 'benchmarks') for o in sorted((root/folder).glob('**/*.py'))]:
        lines = path.read_text(encoding='utf-8').splitlines()
        yield from ((f'{path.relative_to(root)}, line {i}', l) for i, l in enumerate(lines, 1))

def test_lines_are_short():
    "At most 120 characters; a rendered page cuts off the rest"
    too_long = [f'{where}: {len(l)} characters' for where, l in code_lines() if len(l) > 120]
    assert not too_long, '\n'.join(too_long)

# Each part may import from the parts named before it. The simulator comes last in the book, but needs only the ground.
floors = ['ground', 'images', 'simulate', 'data', 'models', 'train', 'decide', 'explain', 'runs', 'app', 'cli']

def part(module):
    if module.startswith('cli'): return 'cli'   # the commands, by chapter
    return module.rpartition('.')[0] or 'ground'

def imports(name, path):
    "The modules of this package that a module imports, wherever in it"
    package = ['hpa_fastai', *name.split('.')[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found = [o.name for o in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = package[:len(package) - node.level + 1]
            if node.module: parts.append(node.module)
            found = ['.'.join(parts)]
        elif isinstance(node, ast.ImportFrom): found = [node.module]
        else: continue
        yield from (o.removeprefix('hpa_fastai.') for o in found if o.startswith('hpa_fastai.'))

def test_numbers_are_the_order_of_the_book():
    "Notebooks carry the dotted name of their module; no two share a number"
    chapters = [nb for nb in notebooks if nb.parent == root/'nbs' and module_of(nb)]
    assert all(nb.stem == f'{nb.stem[:3]}_{module_of(nb)}' for nb in chapters)
    assert len({nb.stem[:3] for nb in chapters}) == len(chapters)
    assert {module_of(nb) for nb in chapters} == set(modules)

def test_imports_go_downstairs():
    "A module imports only from parts below its own and, within its part, from chapters before it"
    order = {module_of(nb): i for i, nb in enumerate(notebooks) if nb.parent == root/'nbs' and module_of(nb)}
    for name, path in modules.items():
        for o in imports(name, path):
            assert o != 'all', f'{name} imports all'
            down, up = floors.index(part(o)), floors.index(part(name))
            assert down < up or (down == up and order[o] < order[name]), f'{name} imports {o}'

@pytest.mark.parametrize('name', modules)
def test_module_is_small_and_knows_few_others(name):
    "At most 250 exported lines, and at most 8 other modules above the ground; commands may know more"
    source = modules[name].read_text(encoding='utf-8')
    exported = source.partition('# %% ')[2]
    assert sum(bool(l.strip()) and not l.startswith('# %%') for l in exported.splitlines()) <= 250
    others = {o for o in imports(name, modules[name]) if part(o) != floors[0]}
    assert part(name) == 'cli' or len(others) <= 8

@pytest.mark.parametrize('name', modules)
def test_module_says_what_it_is_for(name):
    "The chapter's subtitle and its summary are the module's docstring"
    subtitle, _, summary = ast.get_docstring(ast.parse(modules[name].read_text(encoding='utf-8'))).partition('\n\n')
    assert subtitle and len(summary) > 100

def test_sidebar_holds_every_page():
    listed = re.findall(r'^\s+- (\S+\.ipynb)$', (root/'_quarto.yml').read_text(encoding='utf-8'), re.M)
    assert sorted(listed) == sorted(nb.relative_to(root/'nbs').as_posix() for nb in notebooks)

def public_names(path):
    "What a module lists in `__all__`"
    for node in body(path):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return set(ast.literal_eval(node.value))
    raise AssertionError(f'{path}: no __all__')

def test_star_import():
    "A hundred names or so, by part; none hides a builtin, a module of ours or a name of fastai's"
    namespace = {}
    exec('from hpa_fastai import *', namespace)
    names = {n for n in namespace if n != '__builtins__'}
    public = set().union(*(public_names(path) for path in modules.values()))
    assert names <= public, f'not public in their modules: {sorted(names - public)}'
    assert 80 <= len(names) <= 125
    assert not names & {o.rpartition('.')[2] for o in modules}, 'a name that is also a module'
    assert not names & set(dir(builtins)), 'a name that hides a builtin'
    import fastai.vision.all as fastai
    hidden = {o for o in names if hasattr(fastai, o) and getattr(fastai, o) is not namespace[o]}
    assert not hidden, f'names that hide fastai\'s: {hidden}'

def test_api_page_lists_every_public_name():
    done = run(sys.executable, 'tools/api.py', '--check')
    assert not done.returncode, done.stderr

@pytest.mark.parametrize('name', modules)
def test_public_names_are_documented(name):
    "Each function and class has a docstring, and a place on its chapter's page that nbdev can link to"
    documented = runpy.run_path(str(root/'hpa_fastai/_modidx.py'))['d']['syms'][f'hpa_fastai.{name}']
    public = public_names(modules[name])
    for node in body(modules[name]):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        assert ast.get_docstring(node), node.name
        assert any(o.endswith(f'.{node.name}') for o in documented), node.name

def test_version_is_the_same_everywhere():
    "In the package, the citation, and the newest section of the list of changes"
    version = re.search(r"__version__ = \"(.+?)\"", (root/'hpa_fastai/__init__.py').read_text(encoding='utf-8'))[1]
    assert f'\nversion: {version}\n' in (root/'CITATION.cff').read_text(encoding='utf-8')
    sections = re.findall(r'^## \[?([\d.]+)', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    assert sections[0] == version

def test_every_benchmark_is_on_the_page():
    page = '\n'.join(s for _, s in cells(root/'nbs/benchmarks.ipynb'))
    assert not [o.name for o in (root/'benchmarks').glob('*.py') if f'benchmarks/{o.name}' not in page]

def test_no_function_is_named_like_its_module():
    for name, path in modules.items():
        defined = {n.name for n in body(path) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        assert name.rpartition('.')[2] not in defined, name

def test_works_without_optional_packages():
    "Accelerate and the packages of other extras are needed for what they are asked for, not by the star import"
    code = "import sys\nfor o in ('accelerate', 'lightgbm', 'zarr', 'anndata', 'nd2'): sys.modules[o] = None\n"
    done = run(sys.executable, '-c', code + 'from hpa_fastai import *\nprint(len(cross_validate.__doc__))')
    assert not done.returncode, done.stderr

heavy = {'torch', 'fastai', 'timm', 'pandas', 'numpy', 'matplotlib', 'cv2', 'sklearn', 'skimage'}

def test_import_is_light():
    loaded = run(sys.executable, '-c', 'import hpa_fastai, sys; print(*sys.modules)').stdout.split()
    assert 'hpa_fastai' in loaded and not heavy & set(loaded)

@pytest.mark.parametrize('command', commands)
def test_help_is_light(command):
    "`--help` answers without the heavy imports"
    program = Path(sysconfig.get_path('scripts'))/command
    env = {**os.environ, 'PYTHONPROFILEIMPORTTIME': '1'}
    done = subprocess.run([program, '--help'], capture_output=True, text=True, env=env)
    loaded = {l.rpartition('|')[2].strip() for l in done.stderr.splitlines()}
    assert done.returncode == 0 and done.stdout.startswith('usage:'), done.stderr
    assert 'hpa_fastai.cli' in loaded and not heavy & loaded
