"Ways to spoil a file: bytes, JSON, YAML, tables, images and weights; each takes a `random.Random`."
import io, json, struct, zlib
from copy import deepcopy
import numpy as np, pandas as pd

class Raw(str): "Text that stands in a JSON file as it is"

numbers = [-1, 0, 1, 1.5, -0.0, 255, 2**31, 2**63, 10**30, 1e-320, 1e308, Raw('1e400'), Raw('-1e400'), Raw('NaN'),
           Raw('-Infinity'), Raw('9'*5000)]
words = ['', ' ', 'nan', 'true', '0', '²', '１', 'ß'*40, 'x'*3000, 'a\nb', '\x00', '\u2028', '\x1b[31m', '%s{0}',
         '../../x', '/etc/passwd', '/dev/zero', '~/x', 'C:\\x', '\\\\host\\x', 'http://127.0.0.1:9/x', 'hf-hub:a/b',
         'local-dir:/etc', 'resnet18', 'mean', 'cpu', 'Id', '\ud800']
nested = [[], {}, [[]], [None], [1, 'a'], [1e9]*40, [[1, 2], [3]], {'a': 1}, {'a': {'b': [1, None]}}, {'': []},
          {'kind': 'MeanRule', 'params': {}, 'state': {}}, [0]*5000]
values = [None, True, False, *numbers, *words, *nested]

# ---- bytes ----

def flip(data, rng):
    "Other values in some bytes"
    out = bytearray(data)
    near = rng.random() < .5   # half of the time in the first bytes, where headers are
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        if out: out[rng.randrange(min(len(out), 200) if near else len(out))] = rng.randrange(256)
    return bytes(out)

def cut(data, rng): return data[:rng.randrange(len(data) + 1)]
def cut_end(data, rng): return data[:-rng.choice([1, 2, 4, 8, 100])]
def cut_start(data, rng): return data[rng.choice([1, 2, 8, 100]):]
def empty(data, rng): return b''
def double(data, rng): return data + data
def noise(data, rng): return rng.randbytes(rng.choice([1, 10, 1000]))
def blank(data, rng): return bytes(len(data))
def zeros(data, rng):
    "Zeros in a stretch"
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:a] + bytes(b - a) + data[b:]
def repeat(data, rng):
    "A stretch twice"
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b][:4096] + data[b:]
def drop(data, rng):
    "Without a stretch"
    a = rng.randrange(len(data) + 1)
    return data[:a] + data[a + rng.choice([1, 4, 64]):]
def page(data, rng): return b'<!DOCTYPE html><html><body>404 Not Found</body></html>\n'
def pointer(data, rng): return b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0'*64 + b'\nsize 12\n'
def big_numbers(data, rng):
    "The largest numbers in four or eight bytes"
    a = rng.randrange(min(len(data), 300) + 1)
    n = rng.choice([4, 8])
    return data[:a] + rng.choice([b'\xff', b'\x7f', b'\x00'])*n + data[a + n:]

byte_ways = [flip, flip, flip, flip, cut, cut_end, cut_start, empty, double, noise, blank, zeros, repeat, drop,
             page,
             pointer, big_numbers, big_numbers]

def spoil_bytes(data, rng):
    "Any of the above; the new bytes and what was done"
    way = rng.choice(byte_ways)
    return way(data, rng), way.__name__

def spoil_text(text, rng):
    "Bytes of a text in another encoding, with other line ends, or cut"
    ways = dict(bom=lambda: text.encode('utf-8-sig'), utf16=lambda: text.encode('utf-16'),
                latin=lambda: text.encode() + 'é'.encode('latin-1'), cr=lambda: text.replace('\n', '\r').encode(),
                nul=lambda: text.encode() + b'\0', surrogate=lambda: text.encode() + b'\xed\xa0\x80',
                crlf=lambda: text.replace('\n', '\r\n').encode(), tabs=lambda: text.replace(' ', '\t').encode())
    name = rng.choice([*ways, 'bytes', 'bytes'])
    return (ways[name](), name) if name in ways else spoil_bytes(text.encode(), rng)

# ---- JSON and YAML ----

def places(obj, at=()):
    "Paths to everything inside `obj`; of a long list the first and the last two items"
    keys = obj if isinstance(obj, dict) else range(len(obj)) if isinstance(obj, list) else ()
    if isinstance(obj, list) and len(obj) > 4: keys = [0, 1, len(obj) - 2, len(obj) - 1]
    for k in keys:
        yield (*at, k)
        yield from places(obj[k], (*at, k))

def brief(o): return repr(o) if len(repr(o)) <= 60 else f'{repr(o)[:50]}… ({len(repr(o))} characters)'

def inside(obj, path):
    "What lies at a path"
    for k in path: obj = obj[k]
    return obj

def change(obj, rng, choices=values):
    "Another value, a key too few or too many somewhere in `obj`, which is changed; what was done"
    at = rng.choice(list(places(obj)) or [()])
    if not at: return 'nothing to change'
    parent, key = inside(obj, at[:-1]), at[-1]
    name, what = '.'.join(map(str, at)), rng.random()
    if what < .06:
        del parent[key]
        return f'without {name}'
    if what < .1 and isinstance(parent, dict):
        new = rng.choice(['unknown', 'weights', 'pretrained', '__class__', '', 'device', 'x'*200, 'a\nb'])
        parent[new] = deepcopy(rng.choice(choices))
        return f'{".".join(map(str, at[:-1]))} with {new!r}: {brief(parent[new])}'
    if what < .14 and isinstance(parent, list):
        parent.extend(deepcopy(parent[:1]*rng.choice([1, 3])))
        return f'{name} again at the end'
    if what < .2 and isinstance(parent, dict) and len(parent) > 1:
        other = rng.choice([k for k in parent if k != key])
        parent[key], parent[other] = parent[other], parent[key]
        return f'{name} and {other} exchanged'
    parent[key] = deepcopy(rng.choice(choices))   # which may be changed later
    return f'{name} = {brief(parent[key])}'

def to_json(obj):
    "JSON text in which `Raw` stands as it is"
    raw = []
    def plain(o):
        if isinstance(o, Raw):
            raw.append(o)
            return f'@raw{len(raw) - 1}@'
        if isinstance(o, dict): return {k: plain(v) for k, v in o.items()}
        return [plain(v) for v in o] if isinstance(o, list) else o
    text = json.dumps(plain(obj))
    for i, o in enumerate(raw): text = text.replace(f'"@raw{i}@"', o)
    return text

tops = ['null', 'true', '0', '""', '[]', '{}', '[[[]]]', 'NaN', '[' * 100_000, '{"a":' * 50_000, '"\\ud800"',
        '1e400',
        '9' * 5000, '{"a": 1, "a": 2}', "{'a': 1}", '// no', '{}{}', '[1, 2, 3]', '"text"']

def spoil_json(data, rng):
    "JSON (bytes) with other values, or no longer JSON; the new bytes and what was done"
    way = rng.random()
    if way < .1: return spoil_text(data.decode(), rng)
    if way < .16:
        top = rng.choice(tops)
        return top.encode(), f'all = {brief(top)}'
    obj = json.loads(data)
    done = [change(obj, rng) for _ in range(rng.choice([1, 1, 1, 1, 2, 4]))]
    return to_json(obj).encode('utf-8', 'replace'), '; '.join(done)

yaml_texts = ['null', '[]', '3', 'text', '{}', '- a\n- b', 'name: &a [*a]', '&a {name: *a}', 'name: *b',
              '!!python/none x',
              '!!python/object/apply:os.system ["touch pwned"]', '!!python/name:os.system', '? [a, b]\n: 1',
              '{[1]: 2}',
              '1: 2', 'null: 3', '~', '---\na: 1\n---\nb: 2', '%YAML 9.9\n---\na: 1', '[' * 3000, '{a: ' * 3000,
              'name: !!binary x', 'name: !!binary aGVsbG8=', 'name: !!set {a, b}', 'size: 2001-01-01',
              'size: 1:30:00',
              'name: !!timestamp x', 'size: 0x_', 'size: 0b', 'size: 1_000', 'size: ' + '9'*5000, 'name: "\\x00"',
              'name: "\\ud800"', 'name: |\n  a\n  b', 'name: >\n' + '  a\n'*5000, '\t- a', 'name: @', 'name: `',
              '<<: 3',
              '<<: [1, 2]', '<<: &x {<<: *x}', 'phases: [*x]', '\x00', '\ufeffname: a', 'name: a\nname: b',
              '- ' * 2000,
              '!!map [1]', '!!seq {a: 1}', '!!int x', 'size: !!int ""', 'wd: !!float x', 'wd: .nan', 'wd: .inf',
              'name: !!omap [a: 1]', 'name: !!pairs [a: 1]', 'x' * 100_000, 'a: ' * 1000, '? ' * 2000, 'wd: 1e',
              '!' * 500,
              'phases: {}', 'phases: [[]]', 'phases: [null]', 'phases: []', 'neighbours: []', 'neighbours: {}']

def yaml_bomb(rng):
    "Names that stand for ever longer lists, or for merged ones"
    n, k = rng.choice([3, 9, 30]), rng.choice([2, 9])
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i-1}"]*k)}]' for i in range(1, n)]
    return '\n'.join([*lines, rng.choice(['name: *a1', f'phases: *a{n-1}', f'model_args: {{x: *a{n-1}}}',
                                          f'summary: *a{n-1}', f'augment: {{gain: *a{n-1}}}'])])

def merge_bomb(rng):
    "The same with merged keys"
    lines = ['m0: &m0 {a: 1, b: 2}']
    n = rng.choice([3, 12, 24])
    lines += [f'm{i}: &m{i} {{<<: [*m{i-1}, *m{i-1}]}}' for i in range(1, n)]
    return '\n'.join([*lines, f'model_args: {{<<: *m{n-1}}}'])

def to_yaml(obj):
    "YAML text in which `Raw` stands as it is"
    import yaml
    class Dumper(yaml.SafeDumper): ignore_aliases = lambda self, data: True
    Dumper.add_representer(Raw, lambda d, o: d.represent_scalar('tag:yaml.org,2002:float', str(o)))
    return yaml.dump(obj, Dumper=Dumper, sort_keys=False, allow_unicode=True)

def spoil_yaml(data, rng):
    "YAML (bytes) with other values, or no longer YAML; the new bytes and what was done"
    import yaml
    way = rng.random()
    if way < .1 or b': &' in data: return spoil_text(data.decode('utf-8', 'replace'), rng)   # not a bomb unfolded
    if way < .2:
        text = rng.choice(yaml_texts)
        if rng.random() < .3: text = data.decode() + '\n' + text
        return text.encode('utf-8', 'replace'), f'all = {brief(text)}'
    if way < .24:
        text = rng.choice([yaml_bomb, merge_bomb])(rng)
        return text.encode(), f'bomb ending {brief(text[-60:])}'
    obj = yaml.safe_load(data)
    done = [change(obj, rng) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
    return to_yaml(obj).encode('utf-8', 'replace'), '; '.join(done)

# ---- tables ----

cells = ['', ' ', 'nan', 'None', '-1', '0', '1', '27', '28', '99', '1.0', '1.5', '1e400', '9'*400, '-', '--1', '²',
         '１', '٣',
         '0 0', '0  1', '0,1', '0 ²', 'Nucleoplasm', 'x'*3000, '../../x', '/etc/passwd', '.', '..', 'a/b', 'a\\b',
         'nul\x00',
         'a\nb', 'a\u2028b', '\x1b[31m', '"', '\'', '=1+1', 'http://127.0.0.1:9', 'inf', 'True', 'yes', 'maybe',
         '1_0', '0x1',
         '+1', '1e3', '1e18', '9223372036854775808', '\ufeff', '\ud800', ' 3 ', '3;4']

def spoil_frame(df, rng, choices=cells):
    "A table of texts with other cells, rows or columns; the new table and what was done"
    df, way, n = df.copy(), rng.random(), len(df)
    i, c = rng.randrange(n), rng.randrange(len(df.columns))
    name = df.columns[c]
    if way < .6:
        df = df.astype(object)
        df.iloc[i, c] = rng.choice(choices)
        return df, f'{name} of row {i} = {brief(df.iloc[i, c])}'
    if way < .68: return pd.concat([df, df.iloc[[i]]]), f'row {i} again'
    if way < .74: return df.drop(index=df.index[i]), f'without row {i}'
    if way < .78: return df.sample(frac=1, random_state=rng.randrange(99)), 'rows in another order'
    if way < .84: return df.drop(columns=name), f'without column {name}'
    if way < .88:
        new = rng.choice(['Id', 'Target', 'fold', 'group', '', 'x'*500, 'a\nb', name.lower()])
        return df.rename(columns={name: new}), f'column {name} named {brief(new)}'
    if way < .91: return pd.concat([df, df[[name]]], axis=1), f'column {name} twice'
    if way < .94: return df.iloc[:0], 'no rows'
    if way < .97: return df.iloc[:, ::-1], 'columns in another order'
    return df.assign(**{name: rng.choice(choices)}), f'all of column {name} the same'

def spoil_csv(data, rng):
    "CSV (bytes) with other cells, rows or columns, or no longer CSV; the new bytes and what was done"
    way = rng.random()
    if way < .12: return spoil_text(data.decode(), rng)
    if way < .2:
        text = rng.choice(['Id', 'Id,Target', 'Id,Target\n', '\n\n\n', ',', ',,,\n,,,', '"', 'Id,Target\n"a',
                           'a;b\n1;2',
                           'Id,Id\n1,2', 'Id,Target\n1,2,3,4\n',
                           'Id,Target,' + ','.join(map(str, range(5000))) + '\n',
                           data.decode().replace(',', ';'), data.decode().replace(',', '\t'),
                           data.decode().replace('\n', ''),
                           data.decode() + '\n\n,,,,,,,\n', data.decode().replace(',', ',"', 1), 'x'*200_000,
                           '\n'.join(['Id,Target', *[f'{k},0' for k in range(20_000)]])])
        return text.encode(), f'all = {brief(text)}'
    df = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    df, done = spoil_frame(df, rng)
    return df.to_csv(index=False).encode('utf-8', 'replace'), done

odd_cells = [None, float('nan'), float('inf'), -1., 2., 1e-300, 'x', b'x', [1, 2], 10**15, True]

def spoil_parquet(data, rng):
    "Parquet (bytes) with other cells, types, rows or columns, or none; the new bytes and what was done"
    if rng.random() < .4: return spoil_bytes(data, rng)
    df = pd.read_parquet(io.BytesIO(data))
    c, way = rng.randrange(len(df.columns)), rng.random()
    name = df.columns[c]
    if way < .2:
        kind = rng.choice(['str', 'int64', 'float16', 'bool', 'category', 'timedelta64[ns]', 'float64'])
        done = f'column {name} of type {kind}'
        try: df[name] = df[name].astype(kind)
        except (TypeError, ValueError): df[name] = range(len(df))
    elif way < .25: df, done = df.set_index(name), f'column {name} as the index'
    elif way < .3: df, done = pd.concat([df]*200), '200 times the rows'
    else: df, done = spoil_frame(df, rng, odd_cells)
    try: df.to_parquet(f := io.BytesIO())
    except Exception:
        df.astype(str).loc[:, ~df.columns.duplicated()].to_parquet(f := io.BytesIO())
        done += ', as text'
    return f.getvalue(), done

# ---- arrays and images ----

def npy(a, pickled=False):
    "The bytes of a .npy file"
    np.save(f := io.BytesIO(), a, allow_pickle=pickled)
    return f.getvalue()

def npy_with_header(text, body=b''):
    "A .npy file with any text as its header"
    text = text.encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + body

npy_headers = ["{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 4)}",
               "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4)}",
               "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 4, 4)}",
               "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4)}",
               "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
               "{'descr': '|V9', 'fortran_order': True, 'shape': ()}",
               "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (4,)}", '{}', '[]', '', '(' * 2000,
               '1 +' * 3000 + '1',
               "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 0, 4)}", "__import__('os').system('true')",
               "{'descr': '|S1000000000', 'fortran_order': False, 'shape': (10,)}",
               "{'descr': '<M8[ns]', 'shape': (1,)}",
               "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 4)}",
               "{'descr': 3, 'fortran_order': 1, 'shape': 5}"]

def spoil_npy(data, rng):
    "A .npy file (bytes) of another type or shape, or none; the new bytes and what was done"
    way, a = rng.random(), np.load(io.BytesIO(data))
    if way < .45: return spoil_bytes(data, rng)
    if way < .6:
        text = rng.choice(npy_headers)
        return npy_with_header(text, rng.choice([b'', data[128:]])), f'header {brief(text)}'
    kinds = dict(int64=lambda: a.astype(np.int64),
                 f4=lambda: a.astype('f4') if a.dtype.names is None else a['sums'],
                 bool=lambda: a != a[::-1], none=lambda: a[:0], flat=lambda: a.ravel()[:7],
                 more=lambda: np.repeat(a, 3, 0),
                 text=lambda: np.array(['a', 'b']), scalar=lambda: np.array(3),
                 f_order=lambda: np.asfortranarray(a),
                 turned=lambda: a.T, big_endian=lambda: a.astype(a.dtype.newbyteorder('>')),
                 deep=lambda: a[..., None, None],
                 nan=lambda: np.full(a.shape, np.nan), complex=lambda: np.zeros(a.shape, complex),
                 void=lambda: np.zeros(a.shape, 'V8'), date=lambda: np.zeros(a.shape, 'M8[s]'), short=lambda: a[1:])
    name = rng.choice(list(kinds))
    try: return npy(kinds[name]()), name
    except (TypeError, ValueError): return npy(np.array([{}], object), pickled=True), 'a pickled object'

def png_chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I',
                                                                                           zlib.crc32(kind + body))

def png_of(width, height, depth=8, colour=0, body=None, interlace=0):
    "A PNG with any header; black, unless `body` is given"
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    if body is None:
        squeeze, line = zlib.compressobj(1), bytes(1 + (width*channels*depth + 7)//8)
        many = line*max(1, 2**20//len(line))
        whole, rest = divmod(height*len(line), len(many))
        parts = [*(squeeze.compress(many) for _ in range(whole)), squeeze.compress(many[:rest]), squeeze.flush()]
        body = b''.join(parts)
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, interlace)
    return (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', head) + png_chunk(b'IDAT', body) + png_chunk(b'IEND', b''))

def odd_png(data, rng):
    "A PNG with a strange header or strange chunks; its bytes and what it is"
    sides = [0, 1, 7, 64, 5000, 70_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
    w, h, depth, colour = rng.choice(sides), rng.choice(sides), rng.choice([1, 2, 4, 8, 16, 3]), rng.choice([0, 2,
                                                                                                             3, 4,
                                                                                                             6, 5])
    if rng.random() < .3:
        kind = rng.choice([b'tEXt', b'zTXt', b'iTXt', b'iCCP', b'PLTE', b'tRNS', b'acTL', b'gAMA', b'sBIT',
                           b'eXIf'])
        body = rng.choice([b'', rng.randbytes(20), b'a\0\0' + zlib.compress(bytes(5_000_000)), b'\0'*768])
        return data[:33] + png_chunk(kind, body) + data[33:], f'with a chunk {kind}'
    body = rng.choice([b'', zlib.compress(b''), zlib.compress(bytes(10_000)), rng.randbytes(50)])
    return png_of(w, h, depth, colour, body,
                  rng.choice([0, 1, 9])), f'PNG {w} × {h}, depth {depth}, colour {colour}'

def odd_tiff(data, rng):
    "A TIFF with another value in one of its tags; its bytes and what was done"
    order = '<' if data[:2] == b'II' else '>'
    try:
        start = struct.unpack(order + 'I', data[4:8])[0]
        n = struct.unpack(order + 'H', data[start:start+2])[0]
        at = start + 2 + 12*rng.randrange(n)
        tag = struct.unpack(order + 'H', data[at:at+2])[0]
    except struct.error: return spoil_bytes(data, rng)
    new = rng.choice([0, 1, 2, 7, 8, 16, 32, 64, 1000, 65535, 10**6, 2**31 - 1, 2**32 - 1, start])
    where = rng.choice([4, 8, 8, 8, 2])   # number of values, value, type
    packed = struct.pack(order + 'I', new) if where != 2 else struct.pack(order + 'H', new % 20)
    return data[:at + where] + packed + data[at + where + len(packed):], f'tag {tag}: {new} at byte {where}'
