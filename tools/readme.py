"Write README.md from nbs/index.ipynb, with its pictures beside it in index_files/: `python tools/readme.py [--check]`."
import base64, json, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def cell_markdown(cell, pictures):
    "One cell as Markdown: prose as it is, code and its outputs fenced, pictures as files; hidden cells leave nothing"
    source = ''.join(cell['source'])
    if re.search(r'^#\|\s*(hide|default_exp)\b', source, re.M): return
    if cell['cell_type'] != 'code':
        yield source
        return
    code = '\n'.join(l for l in source.splitlines() if not l.startswith('#|')).strip()
    yield f'```python\n{code}\n```'
    for out in cell['outputs']:
        data = out.get('data', {})
        if 'image/png' in data:
            name = f'index_files/picture-{len(pictures)}.png'
            pictures[name] = base64.b64decode(''.join(data['image/png']))
            yield f'![]({name})'
        elif 'text/markdown' in data: yield ''.join(data['text/markdown'])
        elif text := ''.join(data.get('text/plain', out.get('text', ''))).rstrip(): yield '\n'.join('    ' + l for l in text.splitlines())

def readme():
    "The text of README.md and the bytes of its pictures, by name"
    nb, pictures = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')), {}
    parts = [p for c in nb['cells'] for p in cell_markdown(c, pictures)]
    return '<!-- Written from nbs/index.ipynb by tools/readme.py: edit the notebook. -->\n\n' + '\n\n'.join(parts) + '\n', pictures

if __name__ == '__main__':
    text, pictures = readme()
    files = {'README.md': text.encode(), **pictures}
    old = {p.relative_to(root).as_posix() for p in root.glob('index_files/*.png')}
    if '--check' in sys.argv:
        differ = [n for n, b in files.items() if not (root/n).exists() or (root/n).read_bytes() != b] + sorted(old - set(files))
        sys.exit(f'not written from nbs/index.ipynb as it is: {", ".join(differ)}; run `make readme`' if differ else 0)
    for name in old - set(files): (root/name).unlink()
    for name, content in files.items():
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(content)
