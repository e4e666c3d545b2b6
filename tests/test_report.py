"The page of a run, read as a file: all numbers are in it, nothing that is foreign is run, and its size is bounded."
import base64, hashlib, json, re
import numpy as np, pandas as pd, pytest, torch

from hpa_fastai.data.likeness import TrainedOn
from hpa_fastai.decide.rules import RatioRule
from hpa_fastai.decide.submission import write_probs, write_submission
from hpa_fastai.files import write_json
from hpa_fastai.images.pack import build_pack
from hpa_fastai.labels import LABELS
from hpa_fastai.models.factory import rgby_model
from hpa_fastai.models.trained import record_networks, save_config
from hpa_fastai.models.weights import save_weights
from hpa_fastai.runs.folder import RunFolder, write_decisions
from hpa_fastai.runs.report import write_report
from hpa_fastai.simulate.dataset import simulate_field

hostile = ['<script>alert(1)<br><!--', '"><img src=x onerror=alert(1)>', "it's & \"that\", twice", ' spaces ']

def make_run(path, n=60, simulated=True, networks=True):
    "A run with random networks; image 10 lacks a label, and the last image is a copy of image 11 with another one"
    rng, ids = np.random.default_rng(0), hostile + [f'i{k:03}' for k in range(len(hostile), n)]
    one_hot, k = np.eye(28, dtype=int), np.arange(n)
    true = one_hot[k % 28] | one_hot[np.where(k % 3, 25, k % 28)]
    true[-1] = true[11]
    probs = 1/(1 + np.exp(-rng.normal(np.where(true, 2, -4), 1)))
    probs[10, 7], probs[12, 12] = .999, 1e-6
    targs = true.copy()
    targs[-1] = np.eye(28, dtype=int)[9]
    rule = RatioRule().fit(probs, targs)
    path.mkdir()
    write_decisions(path/'oof.csv', ids, np.arange(n) % 2, targs, rule.predict(probs))
    write_probs(path/'oof.parquet', ids, probs)
    write_probs(path/'test.parquet', ['t0', 't1', '<t2>'], probs[:3])
    write_submission(path/'submission.csv', ['t0', 't1', '<t2>'], rule.predict(probs[:3]))
    rule.save(path/'thresholds.json')
    write_json(path/'scores.json', dict(macro_f1=.5, macro_f1_in_sample=.6, macro_f1_floor=.1, mean_ap=.7))
    (path/'recipe.yaml').write_text('name: </pre><script>alert(2)</script>\n', encoding='utf-8')
    fields = [simulate_field(list(np.flatnonzero(t)), size=64, um_per_px=1.28, seed=k).image
              for k, t in enumerate(true)]
    fields[-1] = fields[11]
    build_pack(dict(zip(ids, fields)), path/'packs/train-64', 64, workers=0, reader=lambda o: o, progress=False).close()
    args = dict(body='resnet10t', n_out=28, head='linear', channels=[8, 16, 32, 64], stem_width=8, output_stride=8)
    noted = TrainedOn(simulated=simulated, images=n, sizes={'64 × 64': n})
    save_config(path, args, 64, np.full(4, .1), np.full(4, .2), trained_on=noted)
    if not networks: return path
    torch.manual_seed(0)
    for k in range(2): save_weights(rgby_model(**args, weights=None), path/f'fold{k}/model.safetensors')
    record_networks(path)
    return path

def read_data(html):
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])

def read_logits(images):
    logits = np.frombuffer(base64.b64decode(images['logits']), '<i2').reshape(-1, 28)/2048
    return 1/(1 + np.exp(-logits))

@pytest.fixture(scope='module')
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp('report')/'a <b> & "c"')

@pytest.fixture(scope='module')
def html(run): return write_report(run, examples=20, device='cpu').read_text(encoding='utf-8')

def test_all_numbers_are_there(run, html):
    data, folder = read_data(html), RunFolder(run)
    assert data['images']['ids'] == folder.ids and data['labels'] == list(LABELS)
    assert data['images']['true'] == pd.read_csv(run/'oof.csv', dtype=str).Target.tolist()
    assert data['images']['named'] == pd.read_csv(run/'oof.csv', dtype=str).Predicted.tolist()
    found = read_logits(data['images'])
    assert np.abs(found/folder.probs - 1).max() < 1e-3 and round(found[12, 12], 8) == 1e-6     # not 0.00
    assert data['test']['named'] == pd.read_csv(run/'submission.csv', dtype=str).Predicted.tolist()
    assert np.allclose(read_logits(data['test']), folder.test[1], atol=1e-3)

def test_no_image_comes_twice_and_pictures_are_bounded(html):
    rows = [o[0] for o in read_data(html)['pictures']]
    assert len(rows) == len(set(rows)) == 20 and 'Pictures: 20 of 60 images; numbers: all' in html

def test_what_was_planted_is_to_be_checked(html):
    doubts = read_data(html)['doubts']
    assert [10, 7, 1] in [o[:3] for o in doubts]
    assert {(o[0], o[7]) for o in doubts if o[7] >= 0} <= {(59, 11), (11, 59)} and [59, 9, 0] in [o[:3] for o in doubts]
    assert doubts[0][7] >= 0

def test_only_our_script_may_run(html):
    scripts = re.findall('<script>(.*?)</script>', html, re.S)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', html)[1].replace('&#x27;', "'")
    assert len(scripts) == 1 and html.count('<script') == 2
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert 'innerHTML' not in scripts[0] and not re.search(r'\bfetch\(|XMLHttp|import\(|eval\(', scripts[0])

def test_whatever_is_foreign_is_escaped(html):
    assert '&lt;script&gt;alert(2)&lt;/script&gt;' in html
    assert '<title>a &lt;b&gt; &amp; &quot;c&quot; (simulated cells):' in html
    assert '<img src=x' not in html and '<t2>' not in html
    for link in re.findall(r'(?:src|href)="(.*?)"', html):
        assert link.startswith(('data:image/', '#', 'https://www.proteinatlas.org/humanproteome/subcellular/',
                                'https://doi.org/', 'https://arxiv.org/')), link

def test_heat_by_the_network_that_had_not_learnt_from_the_image(html):
    for row, uri, heat in read_data(html)['pictures']:
        assert heat and all(len(base64.b64decode(o)) == 256 for o in heat.values()), row

def test_the_title_says_simulated_only_where_it_is_so(tmp_path):
    run = make_run(tmp_path/'real', 30, simulated=False, networks=False)
    html = write_report(run, examples=2).read_text(encoding='utf-8')
    assert '<title>real:' in html and 'imulated cells' not in html and 'There are no heat maps' in html
    assert all(not o[2] for o in read_data(html)['pictures'])

def test_without_images(run, tmp_path):
    html = write_report(run, out=tmp_path/'page.html', packs=tmp_path/'nowhere').read_text(encoding='utf-8')
    assert read_data(html)['pictures'] == [] and 'were not found' in html

def test_every_number_of_a_label_has_its_name(html):
    "So that a telephone can show all of them, one below the other"
    body = re.search('<table id="labels">.*?<tbody>(.*?)</tbody>', html, re.S)[1]
    for row in body.split('</tr>')[:28]:
        assert {'F1', 'verdict', 'precision', 'recall', 'images'} <= set(re.findall('data-name="(.*?)"', row)), row
    assert 'wide' not in re.findall('class="(.*?)"', html)
