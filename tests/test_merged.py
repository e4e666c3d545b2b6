"The competition's images with HPAv18's: what is learnt from, what is held out, and what is scored."
import time

import numpy as np
import pandas as pd
import pytest

from hpa_fastai.images.kaggle import keep_folds, KaggleFolder
from hpa_fastai.images.merging import merge_folders
from hpa_fastai.images.splits import hpa_groups, stratified_folds
from hpa_fastai.labels import DataError, encode_targets, label_counts, read_labels

# ---- the whole lists, without images ----

@pytest.fixture(scope='module')
def lists(shared):
    "The competition's list, and HPAv18's"
    return (read_labels(shared/'data/labels/train.csv'),
            read_labels(shared/'data/labels/hpav18_cell_lines.csv').drop_duplicates('Id', ignore_index=True))

def as_data(train, scored):
    "A `KaggleFolder` without its files"
    data = KaggleFolder.__new__(KaggleFolder)
    data.train, data.targs, data.scored = train, encode_targets(train.Target), np.asarray(scored)
    return data

def with_siblings(groups, held_out, learnt):
    "How many of the held-out rows have an image of their group among the rows that are learnt from"
    known = set(groups[learnt]) - {''}
    return int(groups[held_out].isin(known).sum())

def both(lists):
    "Both lists as one, and which of its rows are the competition's"
    merged = pd.concat([o[['Id', 'Target']] for o in lists], ignore_index=True)
    return merged, np.arange(len(merged)) < len(lists[0])

def test_nothing_of_hpav18_is_held_out(lists, tmp_path):
    (merged, scored), (kaggle, hpa) = both(lists), lists
    groups = hpa_groups(merged.Id)
    assert (groups[scored] == '').all() and (groups[~scored] == lists[1].Id.str.split('_').str[0].to_numpy()).all()
    plain = stratified_folds(merged).fold
    before = sum(with_siblings(groups, (plain == k) & ~scored, plain != k) for k in range(5))
    start = time.perf_counter()
    data = as_data(merged, scored)
    folds = keep_folds(tmp_path/'folds.csv', data, None)
    seconds = time.perf_counter() - start
    after = sum((folds[~scored] == k).sum() for k in range(5))
    print(f'\n{len(kaggle)} images of the competition and {len(hpa)} of HPAv18. Dealt out together, {len(hpa)} of '
          f'HPAv18 are held out, {100*len(hpa)/len(merged):.1f} % of what is scored, and {before} of them '
          f'({100*before/len(hpa):.1f} %) have an image of their antibody in training. Only learnt from, {after} are '
          f'held out. The folds take {seconds:.1f} s.')
    assert before > .99*len(hpa) and not after
    assert (folds[~scored] == -1).all() and set(folds[scored]) == set(range(5))
    alone = stratified_folds(kaggle)   # as if HPAv18 were not there
    assert (folds[scored] == alone.fold).all()
    for k in range(5): assert (data.learnt_rows(tmp_path/'folds.csv', k) == (folds != k)).all()

def test_no_antibody_on_two_sides(lists, tmp_path):
    "Two fields of each well are scored, the others are only learnt from: nearly all of them have siblings"
    hpa = lists[1]
    scored = hpa.Id.str.split('_').str[3].isin(['1', '2'])
    groups, data = hpa.Id.str.split('_').str[0], as_data(hpa, scored)
    start = time.perf_counter()
    plain = keep_folds(tmp_path/'plain.csv', data, None)
    before = sum(with_siblings(groups, plain == k, data.learnt_rows(tmp_path/'plain.csv', k)) for k in range(5))
    middle = time.perf_counter()
    folds = keep_folds(tmp_path/'groups.csv', data, None, 'groups')
    end = time.perf_counter()
    learnt = [data.learnt_rows(tmp_path/'groups.csv', k) for k in range(5)]
    after = sum(with_siblings(groups, folds == k, learnt[k]) for k in range(5))
    print(f'\n{scored.sum()} scored images of HPAv18 and {(~scored).sum()} only learnt from. With plain folds {before} '
          f'scored images have an image of their antibody in training, with groups {after}. The folds take '
          f'{middle - start:.1f} s and {end - middle:.1f} s.')
    assert before > .9*scored.sum() and after == 0
    for k, o in enumerate(learnt):   # and no more is left out than must be
        left_out = ~o & (folds < 0)
        assert set(groups[left_out]) <= set(groups[folds == k]) and not o[folds == k].any()
        assert o[(folds >= 0) & (folds != k)].all()

# ---- a few hundred images, from a merged folder to a run and its report ----

def write_folder(path, df, rng, n_test=0):
    "A folder in Kaggle's layout with images of noise"
    for i in df.Id: save_noise(path/'train', i, rng)
    df.to_csv(path/'train.csv', index=False)
    test = [f'test{i}' for i in range(n_test)]
    for i in test: save_noise(path/'test', i, rng)
    if test: pd.DataFrame(dict(Id=test, Predicted='0')).to_csv(path/'sample_submission.csv', index=False)
    return path

def save_noise(folder, i, rng):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder/f'{i}.npy', rng.integers(0, 256, (32, 32, 4), np.uint8))

@pytest.fixture(scope='module')
def merged_folder(lists, tmp_path_factory):
    "A stratified sample of both lists, merged"
    path, rng = tmp_path_factory.mktemp('merged'), np.random.default_rng(0)
    kaggle = lists[0][(stratified_folds(lists[0], 200).fold == 0).to_numpy()]
    hpa = lists[1].iloc[:4000]
    hpa = hpa[(stratified_folds(hpa, 14).fold == 0).to_numpy()]
    a, b = write_folder(path/'kaggle', kaggle, rng, n_test=4), write_folder(path/'hpav18', hpa, rng)
    merge_folders([a, b], path/'both', progress=False)
    return path/'both', kaggle, hpa

def toy(**kwargs):
    from hpa_fastai.runs.recipes import load_recipe
    return load_recipe('demo').override(**{**dict(size=32, body='test_resnet', model_args={}, bs=32, folds=2,
                                                  epochs=1, thresholds='RatioRule'), **kwargs})

@pytest.fixture(scope='module')
def finished(merged_folder, tmp_path_factory):
    from hpa_fastai.runs.crossval import cross_validate
    out = tmp_path_factory.mktemp('runs')/'run'
    return out, cross_validate(merged_folder[0], out, toy(), device='cpu', workers=0)

def test_merging_keeps_all_columns(merged_folder):
    path, kaggle, hpa = merged_folder
    df = read_labels(path/'train.csv').set_index('Id')
    assert {'source', 'train_only', 'group', 'CellLine'} <= set(df)
    assert df.CellLine[hpa.Id].tolist() == hpa.CellLine.tolist() and (df.CellLine[kaggle.Id] == '').all()
    assert df.group[hpa.Id].tolist() == hpa.Id.str.split('_').str[0].tolist() and (df.group[kaggle.Id] == '').all()
    data = KaggleFolder(path)
    assert set(data.train.Id[data.scored]) == set(kaggle.Id)

def test_only_the_first_folder_is_scored(merged_folder, finished):
    from hpa_fastai.decide.thresholds import fit_rule
    from hpa_fastai.runs.folder import RunFolder
    _, kaggle, hpa = merged_folder
    out, scores = finished
    run, folds = RunFolder(out), pd.read_csv(out/'folds.csv', dtype=dict(Id=str)).set_index('Id').fold
    assert set(run.ids) == set(kaggle.Id) == set(pd.read_parquet(out/'oof.parquet').Id)
    assert (folds[hpa.Id] == -1).all() and set(folds[kaggle.Id]) == {0, 1}
    assert [o['support'] for o in scores['classes']] == label_counts(kaggle.Target).images.tolist()
    rule = fit_rule('RatioRule', run.probs, run.targs, run.folds, seed=toy().seed)
    assert np.allclose(run.rule.thresholds, rule.thresholds)
    assert len(pd.read_csv(out/'submission.csv')) == 4

def test_the_report_says_what_was_only_learnt_from(merged_folder, finished):
    from hpa_fastai.runs.report import write_report
    hpa, page = merged_folder[2], write_report(finished[0]).read_text(encoding='utf-8')
    assert f'have also learnt from {len(hpa)} images of hpav18.' in page
    assert finished[1]['train_only'] == dict(hpav18=len(hpa))

def test_a_run_of_one_source_says_nothing_of_further_images(merged_folder, tmp_path):
    from hpa_fastai.runs.crossval import cross_validate
    from hpa_fastai.runs.report import write_report
    scores = cross_validate(merged_folder[0].parent/'kaggle', tmp_path/'run', toy(), device='cpu', workers=0)
    page = write_report(tmp_path/'run').read_text(encoding='utf-8')
    assert not scores['train_only'] and 'have also learnt from' not in page

def job(data, out, **kwargs):
    from hpa_fastai.runs.crossval import begin_run
    return begin_run(data, out, toy(**kwargs), device='cpu', workers=0)

@pytest.fixture(scope='module')
def atlas(tmp_path_factory):
    "Eighteen antibodies with four images each; the last two of each are only learnt from, and of two it is unknown"
    ids = [f'{100 + i//4}_7_B{i//4 + 1}_{i % 4 + 1}' for i in range(72)]
    df = pd.DataFrame(dict(Id=ids, Target=[str(i//4 % 6) for i in range(72)],
                           train_only=['no', 'no', 'yes', 'YES']*18, antibody=[o[:3] for o in ids]))
    df.loc[df.antibody.isin(['100', '101']), 'antibody'] = ''
    return write_folder(tmp_path_factory.mktemp('atlas')/'data', df, np.random.default_rng(1), n_test=4)

def sides(o, k):
    "Antibodies of the batches that fold `k` trains on, and of those that it holds out"
    dls = o.batches(k)
    return [{i.split('_')[0] for i in dl.items} for dl in (dls.train, dls.valid)]

def test_batches_leave_siblings_out(atlas, tmp_path):
    plain, groups = job(atlas, tmp_path/'plain'), job(atlas, tmp_path/'groups', validation='groups')
    for k in (0, 1):
        learnt, held_out = sides(groups, k)
        assert not learnt & held_out and len(learnt | held_out) == 18
        assert len(plain.batches(k).train.items) == 72 - len(plain.held_out(k))
        assert not {*groups.batches(k).valid.items} & set(groups.data.train.Id[~groups.data.scored])
        assert set(groups.batches(k).train.items) == set(groups.data.train.Id[groups.learns_from(k)])

def test_neighbours_leave_siblings_out(atlas, tmp_path):
    second = dict(body='test_resnet', weights='none', epochs=1, lr=1e-3, n_embed=8, bs=8, column='antibody')
    o = job(atlas, tmp_path/'run', validation='groups', neighbours=second)
    for k in (0, 1): o.run_fold(k)
    near = pd.concat([pd.read_csv(o.files(k)['near_oof'], dtype=str) for k in (0, 1)])
    assert set(near.Id) == set(o.data.train.Id[o.data.scored])
    assert (near.Id.str.split('_').str[0] != near.nearest.str.split('_').str[0]).all()

# ---- merged by hpa-train itself ----

def test_extra_is_merged_for_the_run(merged_folder, tmp_path):
    "`hpa-train --data A --extra B`: B is only learnt from, and of a test image's near-duplicate both are named"
    from hpa_fastai.cli import _with_extra
    folder, kaggle, hpa = merged_folder
    extra = tmp_path/'hpav18'
    write_folder(extra, hpa[['Id', 'Target']], np.random.default_rng(5))
    np.save(extra/f'train/{hpa.Id.iloc[0]}.npy', np.load(folder.parent/'kaggle/test/test1.npy'))
    data, recipe = _with_extra(folder.parent/'kaggle', extra, tmp_path/'run', toy())
    assert recipe == toy()   # the competition's images have no known antibody
    both = KaggleFolder(data)
    assert set(both.train.Id[~both.scored]) == set(hpa.Id) and set(both.train.Id[both.scored]) == set(kaggle.Id)
    shown = pd.read_csv(data/'in_test.csv', dtype=str)
    assert shown[['Id', 'near_duplicate', 'source']].values.tolist() == [['test1', hpa.Id.iloc[0], 'hpav18']]
    assert shown.Target[0] == hpa.Target.iloc[0]
    folds = keep_folds(tmp_path/'run/folds.csv', both, None)
    assert (folds[~both.scored] == -1).all() and (folds[both.scored] >= 0).all()

def test_extra_keeps_antibodies_apart(atlas, tmp_path):
    "Where scored images have a known antibody, the run's folds are made by antibody"
    from hpa_fastai.cli import _with_extra
    ids = [f'{100 + i}_8_C1_1' for i in range(20)]   # eighteen siblings of scored images
    extra = write_folder(tmp_path/'more', pd.DataFrame(dict(Id=ids, Target='1')), np.random.default_rng(3))
    data, recipe = _with_extra(atlas, extra, tmp_path/'run', toy())
    assert recipe.validation == 'groups'
    both = KaggleFolder(data)
    groups, path = hpa_groups(both.train.Id), tmp_path/'run/folds.csv'
    folds = keep_folds(path, both, None, 'groups')
    for k in (0, 1): assert with_siblings(groups, folds == k, both.learnt_rows(path, k)) == 0

# ---- at the edges ----

def test_merged_again(atlas, tmp_path):
    "A merged folder stays what it is: its sources, and what it only learns from"
    rng = np.random.default_rng(2)
    more = pd.DataFrame(dict(Id=['a', 'b', '7_1_C3_1'], Target='3', group=['plate', ' ', '']))
    a = merge_folders([atlas, write_folder(tmp_path/'more', more, rng)], tmp_path/'two', progress=False).labels
    one = pd.DataFrame(dict(Id=['c', 'd'], Target='4'))
    b = merge_folders([tmp_path/'two', write_folder(tmp_path/'own', one, rng)], progress=False).labels.set_index('Id')
    assert b.source.value_counts().to_dict() == dict(data=72, more=3, own=2)
    assert (b.train_only == 'no').sum() == 36 and set(b.train_only['a':]) == {'yes'}
    assert b.group[['a', 'b', '7_1_C3_1', 'c']].str.strip().tolist() == ['plate', '', '7', '']
    assert list(a.Id) == list(b.index[:75])

def test_a_run_that_began_before_its_list_said_so(atlas, tmp_path):
    "Folds that hold out what the list now only learns from don't fit"
    df = read_labels(atlas/'train.csv')
    old, new = as_data(df, np.ones(72, bool)), as_data(df, df.train_only == 'no')
    keep_folds(tmp_path/'folds.csv', old, None, n_folds=2)
    with pytest.raises(DataError, match='36 images that are only learnt from'):
        keep_folds(tmp_path/'folds.csv', new, None, n_folds=2)

def test_a_list_needs_something_to_score(atlas, tmp_path):
    df = read_labels(atlas/'train.csv')[:8]
    only = write_folder(tmp_path/'only', df.assign(train_only='yes'), np.random.default_rng(0))
    with pytest.raises(DataError, match='train.csv: all 8 images are train_only'): KaggleFolder(only)
    df.assign(train_only='perhaps').to_csv(only/'train.csv', index=False)
    with pytest.raises(DataError, match="train.csv: row 1: train_only is 'perhaps'"): KaggleFolder(only)

def test_batches_by_hand_hold_out_nothing_that_is_only_learnt_from(atlas):
    from hpa_fastai.data.block import valid_rows
    df = read_labels(atlas/'train.csv')
    rows = valid_rows(df, .25)
    assert len(rows) and (df.train_only[rows] == 'no').all()
    with pytest.raises(DataError, match='fold -1'): valid_rows(df.assign(fold='-1'), -1)
