"""Write nbs/api.qmd, a list of every public name with a link to its chapter: `python tools/api.py [--check]`."""
import ast, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
page, package = root/'nbs/api.qmd', root/'hpa_fastai'
titles = dict(ground='The ground', images='Images', data='Batches', models='Models', train='Training',
              decide='Decisions', explain='Explanations', runs='Runs', simulate='Simulated cells', app='The page',
              cli='Commands')
head = """---
title: Every public name
description: All functions, classes and constants, by part, with a link to the chapter that explains them
---

Names in bold come with `from hpa_fastai import *`; all others are imported from the module above them. A link leads to
the chapter where the name is explained, with its parameters, an example and its tests. (Written by `tools/api.py`.)
"""

def modules():
    "Module's dotted name → its file, in the order of the book"
    exports = {}
    for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        if found := re.search(r'#\| default_exp ([\w.]+)', nb.read_text(encoding='utf-8')):
            exports[found[1]] = nb
    return exports

def part(module):
    if module.startswith('cli'): return 'cli'
    return module.rpartition('.')[0] or 'ground'

def functions(body): return [o for o in body if isinstance(o, ast.FunctionDef) and not o.name.startswith('_')]

def patched(node):
    "Name of the class that a function is a method of, by `@patch`; None if it is none"
    names = [o.func.id if isinstance(o, ast.Call) else getattr(o, 'id', '') for o in node.decorator_list
             if isinstance(o, (ast.Name, ast.Call)) and isinstance(getattr(o, 'func', o), ast.Name)]
    first = node.args.args[0].annotation if node.args.args else None
    return ast.unparse(first) if 'patch' in names and first else None

def own_methods(cls):
    "Public methods that a class is written with, and that say something"
    return [o for o in functions(cls.body) if ast.get_docstring(o)]

def comment(node, lines):
    "The comment behind a constant, or the one line above it"
    line, above = lines[node.end_lineno - 1][node.end_col_offset:], lines[node.lineno - 2].strip()
    if '#' in line: return line.partition('#')[2].strip()
    return above.lstrip('# ') if above.startswith('# ') and not above.startswith('# %%') else ''

def symbols(module):
    "(name, anchor, what it says) of all public names of a module, methods below their classes"
    text = (package/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8')
    body, lines = ast.parse(text).body, text.splitlines()
    constants = {getattr(o.targets[0], 'id', ''): comment(o, lines) for o in body if isinstance(o, ast.Assign)}
    public = next(ast.literal_eval(o.value) for o in body if isinstance(o, ast.Assign)
                  and getattr(o.targets[0], 'id', '') == '__all__')
    defs = {o.name: o for o in body if isinstance(o, (ast.FunctionDef, ast.ClassDef))}
    patches = [(patched(o), o) for o in functions(body) if patched(o)]
    for name in public:
        node = defs.get(name)
        if isinstance(node, ast.FunctionDef) and patched(node): continue
        if not node: yield name, '', constants.get(name, '')
        else: yield name, '#' + name.lower(), ast.get_docstring(node) or ''
        if isinstance(node, ast.ClassDef):
            yield from ((f'{name}.{o.name}', '#' + name.lower(), ast.get_docstring(o)) for o in own_methods(node))
    for cls, o in patches: yield f'{cls}.{o.name}', f'#{cls}.{o.name}'.lower(), ast.get_docstring(o) or ''

def star():
    "Names that the star import gives"
    tree = ast.parse((package/'all.py').read_text(encoding='utf-8'))
    return {a.name for o in tree.body if isinstance(o, ast.ImportFrom) for a in o.names}

def api():
    "The page"
    lines, seen, short = [head], None, star()
    for module, nb in modules().items():
        if part(module) != seen:
            seen = part(module)
            lines.append(f'\n## {titles.get(seen, seen)}')
        lines.append(f'\n### [`{module}`]({nb.name})\n')
        for name, anchor, doc in symbols(module):
            first = re.sub(r'\s+', ' ', doc.split('\n\n')[0]).replace('|', r'\|')
            link = f'[`{name}`]({nb.name}{anchor})'
            lines.append(f'- {f"**{link}**" if name in short else link}{": " + first if first else ""}')
    return '\n'.join(lines) + '\n'

def main():
    text = api()
    if '--check' not in sys.argv: return page.write_text(text, encoding='utf-8')
    same = page.exists() and page.read_text(encoding='utf-8') == text
    sys.exit(0 if same else 'nbs/api.qmd does not list the public names as they are; run python tools/api.py')

if __name__ == '__main__': main()
