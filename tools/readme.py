"Write README.md from nbs/index.ipynb, and its pictures to nbs/images/: `python tools/readme.py [--check]`."
import base64, json, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
notebook, pictures = root/'nbs/index.ipynb', 'nbs/images'
header = '<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook. -->'

def fenced(code):
    "A code cell without nbdev's directives, as Markdown"
    lines = [l for l in code.splitlines() if not l.startswith('#|')]
    return '```python\n' + '\n'.join(lines).strip() + '\n```'

def shown(output, files):
    "An output as Markdown; its picture, if it has one, is added to `files`"
    data = output.get('data', {})
    if 'image/png' in data:
        name = f'{pictures}/readme-{len(files)}.png'
        files[name] = base64.b64decode(''.join(data['image/png']))
        return f'![]({name})'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(data.get('text/plain', output.get('text', ''))).rstrip()
    return '\n'.join('    ' + l for l in text.splitlines())

def from_root(text):
    "Markdown whose links to other notebooks start at the repository's root"
    return re.sub(r'\]\((?!https?:)([^)#]+\.(?:ipynb|qmd))', r'](nbs/\1', text)

def readme():
    "README.md and its pictures, as a dict of file name → bytes"
    files, parts = {}, [header]
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if re.search(r'^#\|\s*(hide|default_exp)\b', source, re.M): continue
        if cell['cell_type'] != 'code': parts.append(from_root(source))
        else: parts += [fenced(source), *filter(None, (shown(o, files) for o in cell['outputs']))]
    return {'README.md': ('\n\n'.join(parts) + '\n').encode(), **files}

def main():
    files = readme()
    old = {p.relative_to(root).as_posix() for p in root.glob(f'{pictures}/readme-*.png')} - set(files)
    if '--check' in sys.argv:
        differ = [n for n, b in files.items() if not (root/n).exists() or (root/n).read_bytes() != b] + sorted(old)
        sys.exit(f'not written from nbs/index.ipynb as it is: {", ".join(differ)}; run `make readme`' if differ else 0)
    for name in old: (root/name).unlink()
    for name, content in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(content)

if __name__ == '__main__': main()
