"Interpretation and report: what must hold for any decisions, and hostile contents."
import re
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from hpa_fastai.files import write_json
from hpa_fastai.decide.submission import write_probs
from hpa_fastai.train.intervals import class_report
from hpa_fastai.explain.interpret import RGBYInterpretation, multilabel_confusion, pair_counts
from hpa_fastai.labels import DataError, LABELS
from hpa_fastai.train.metrics import macro_f1, mean_average_precision
from hpa_fastai.runs.report import write_report
from hpa_fastai.decide.rules import RatioRule
from hpa_fastai.runs.folder import RunFolder, override_labels, write_decisions

decisions = arrays(bool, st.tuples(st.integers(1, 12), st.just(5)))

def by_definition(true, said):
    "One image's contribution to the matrix, written from the paper's three cases"
    m, n = np.zeros((6, 6), int), 5
    right, missed, extra = true & said, true - said, said - true
    for t in right: m[t, t] += 1
    if missed and extra: pairs = [(t, p) for t in missed for p in extra]
    elif missed: pairs = [(t, n) for t in missed]
    elif extra: pairs = [(t, p) for t in true or {n} for p in extra]
    else: pairs = [] if true else [(n, n)]
    for t, p in pairs: m[t, p] += 1
    return m

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_confusion_by_definition(seed, n):
    rng = np.random.default_rng(seed)
    targs, said = rng.random((2, n, 5)) < .4
    expected = sum(by_definition({*np.flatnonzero(t)}, {*np.flatnonzero(s)}) for t, s in zip(targs, said))
    assert (multilabel_confusion(targs, said, labels='ABCDE').to_numpy() == expected).all()

@settings(max_examples=50, deadline=None)
@given(decisions)
def test_perfect_decisions_are_diagonal(targs):
    m = multilabel_confusion(targs, targs, labels='ABCDE').to_numpy()
    assert (m == np.diag(np.diag(m))).all() and m.sum() == targs.sum() + (~targs.any(1)).sum()
    assert not len(pair_counts(targs, targs, 'ABCDE')) or (pair_counts(targs, targs, 'ABCDE').gap == 0).all()

def test_intervals_cover():
    "90 % intervals of F1 and average precision hold the value of the whole population about as often as they say"
    rng = np.random.default_rng(0)
    def draw(n):
        targs = rng.random((n, 2)) < (.3, .1)
        return 1/(1 + np.exp(-rng.normal(np.where(targs, .5, -1.)))), targs
    probs, targs = draw(200_000)
    whole = class_report(probs, targs, preds=probs > .4, intervals=True, n_boot=2, labels='AB')
    inside = []
    for seed in range(100):
        p, t = draw(400)
        o = class_report(p, t, preds=p > .4, intervals=True, n_boot=100, labels='AB', seed=seed)
        for k in ('f1', 'ap', 'precision', 'recall'):
            inside.append((o[f'{k}_low'] <= whole[k]) & (whole[k] <= o[f'{k}_high']))
    assert .82 < np.mean(inside) < .97

def make_run(path, ids, seed=0):
    rng, n = np.random.default_rng(seed), len(ids)
    targs = np.eye(28, dtype=int)[np.arange(n) % 28]
    probs = (.5*targs + .5*rng.random((n, 28))).astype(np.float32)
    rule = RatioRule().fit(probs, targs)
    decided = rule.predict(probs)
    path.mkdir(exist_ok=True)
    write_decisions(path/'oof.csv', ids, np.arange(n) % 2, targs, decided)
    write_probs(path/'oof.parquet', ids, probs)
    rule.save(path/'thresholds.json')
    write_json(path/'scores.json', dict(macro_f1_floor=.1, 
        macro_f1=macro_f1(decided, targs),
        macro_f1_in_sample=.9,
        mean_ap=mean_average_precision(probs, targs)))
    return path

def test_report_escapes_whatever_it_is_given(tmp_path):
    nasty = ['<script>alert(1)<br>', '"><img src=x onerror=alert(1)>', "it's & \"that\"", 'ü — 細胞', ' spaces ']
    run = make_run(tmp_path/'a <b> & "c"', nasty + [f'i{k}' for k in range(60)])
    (run/'recipe.yaml').write_text('name: </pre><script>alert(2)</script>\n', encoding='utf-8')
    html = write_report(run).read_text(encoding='utf-8')
    assert html.count('<script') == 2 and '</pre><script>' not in html   # the page's own script, and its data
    assert '<script>alert' not in html and '<img src=x' not in html
    assert '&lt;script&gt;alert(2)&lt;/script&gt;' in html and 'a &lt;b&gt; &amp; &quot;c&quot;' in html
    assert not re.search(r'(src|href)="(?!data:|#|https://(www\.proteinatlas|doi|arxiv)\.org/)', html)

def test_report_is_written_whole_or_not_at_all(tmp_path):
    run = make_run(tmp_path/'run', [f'i{k}' for k in range(56)])
    (run/'report.html').write_text('the old one')
    (run/'scores.json').write_text('{"macro_f1": ')
    with pytest.raises(DataError, match='not JSON'): write_report(run)
    assert (run/'report.html').read_text() == 'the old one'
    assert not [o for o in run.iterdir() if o.suffix == '.tmp' or o.name.startswith('.')]

@pytest.mark.parametrize('text, message', [
    ('', 'not a readable CSV'),
    ('Id,fold,Target\na,0,1\n', 'lacks the column Predicted'),
    ('Id,fold,Target,Predicted\na,0,1,1\na,1,2,2\n', 'repeats the Id')])
def test_broken_decisions(tmp_path, text, message):
    run = make_run(tmp_path/'run', [f'i{k}' for k in range(56)])
    (run/'oof.csv').write_text(text)
    with pytest.raises(DataError, match=message): RunFolder(run)

def test_override_twice(tmp_path):
    "Overriding again changes nothing more"
    (tmp_path/'known.csv').write_text('Id,Target\ni1,3 4\n')
    once, first = override_labels(['i0', 'i1'], np.eye(28, dtype=bool)[:2], tmp_path/'known.csv')
    again, second = override_labels(['i0', 'i1'], once, tmp_path/'known.csv')
    assert (once == again).all() and (first['changed'], second['changed']) == (1, 0)

def test_labels_of_ones_own():
    "Anything but the 28 labels works too"
    targs = np.eye(3, dtype=bool)[np.arange(60) % 3]
    interp = RGBYInterpretation(range(60), .2 + .6*targs, targs, labels=['x', 'y', 'z'])
    assert list(interp.table(n_boot=10).label) == ['x', 'y', 'z'] and (interp.table(n_boot=10).f1 == 1).all()
    assert list(interp.confusion().columns) == ['x', 'y', 'z', 'no label'] and not len(interp.common_confusions())
    assert len(LABELS) == 28
