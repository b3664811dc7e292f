"Tasks read what is there, split by group, name what is wrong, and `moving_digits` is what it says."
import collections
import multiprocessing
import random
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.vision.augment import Flip
from hypothesis import given, settings
from hypothesis import strategies as st

from sdfast.data import cache as cache_module
from sdfast.data import digits
from sdfast.data import task as task_module
from sdfast.data.cache import CachedDL
from sdfast.data.clips import ClipTransform
from sdfast.data.datasets import create_task, csv, folder, moving_digits
from sdfast.data.task import Task, split_groups
from sdfast.data.video import VideoFile
from sdfast.errors import InputError


def groups_of(task, split): return set(task.df.group[task.df.split == split])


@pytest.mark.parametrize('seed', range(40))
def test_the_last_resort_takes_the_smallest_groups_that_can_be_spared(seed, monkeypatch):
    "As a loop over groups that looks at all rows each time"
    rng, n = np.random.default_rng(seed), 60
    df = pd.DataFrame(dict(label=rng.integers(0, 4, n).astype(str), group=rng.integers(0, 15, n).astype(str)))
    class None_(task_module.StratifiedGroupKFold):
        def split(self, *args): return []
    monkeypatch.setattr(task_module, 'StratifiedGroupKFold', None_)
    y, taken = df.label.values, np.zeros(n, bool)
    for group in df.group.sample(frac=1, random_state=seed).value_counts(sort=False).sort_values(kind='stable').index:
        more = taken | (df.group.values == group)
        if (not taken.any() or more.sum() <= .9*n) and set(y[~more]) == set(y): taken = more
    assert taken.any() and split_groups(df, .9, seed, 'x').tolist() == np.flatnonzero(taken).tolist()


def test_rows_that_are_all_groups_of_their_own_are_stratified_exactly():
    df = pd.DataFrame(dict(label=[f'c{i%3 if i < 900 else 0}' for i in range(1000)], group=[f'g{i}' for i in range(1000)]))
    chosen = df.iloc[split_groups(df, .2, 0, 'x')]
    assert chosen.label.value_counts().to_dict() == dict(c0=80, c1=60, c2=60)


def test_folder_splits_by_group(clips):
    task = folder(clips, group=r'(p\d)_')
    assert task.vocab == ['down', 'right'] and len(task.df) == 16
    assert not groups_of(task, 'train') & groups_of(task, 'test') and groups_of(task, 'test')
    held = task.hold_out(.3)
    splits = [groups_of(held, s) for s in ('train', 'valid', 'test')]
    assert all(splits) and not splits[0] & splits[1] and not splits[1] & splits[2]
    assert set(held.df.label[held.df.split == 'valid']) == {'down', 'right'}
    assert held.count('test') == task.count('test') and held.hold_out() is held
    assert folder(clips, group=r'(p\d)_').df.equals(task.df)  # the same split each time
    assert 'both sides' in folder(clips).notes[0]


def test_folder_with_train_and_test(clips, tmp_path):
    for split, n in (('train', 0), ('TEST', 4)):
        for kind in ('right', 'down'):
            (tmp_path/split/kind).mkdir(parents=True)
            for f in sorted((clips/kind).iterdir())[n:n + 4]: shutil.copy(f, tmp_path/split/kind)
    task = folder(tmp_path)
    assert (task.count('train'), task.count('test')) == (8, 8)
    folder(tmp_path, group=r'(p\d)_')
    shutil.copy(next((tmp_path/'train/down').iterdir()), tmp_path/'TEST/down')
    with pytest.raises(InputError, match="'p0' is in both"): folder(tmp_path, group=r'(p\d)_')


ROWS = st.lists(st.tuples(st.sampled_from('abcd'), st.integers(0, 7), st.sampled_from([1, 1, 1, 2, 9])), min_size=2, max_size=20)


def frame(rows):
    "Label and group of clips, in an order that is neither's, and whether each class has two groups"
    df = pd.DataFrame([(label, f'g{group}') for label, group, n in rows for _ in range(n)], columns=['label', 'group'])
    df.insert(0, 'path', [f'/{i}.mp4' for i in range(len(df))])
    return df, min(len({g for l, g in zip(df.label, df.group) if l == label}) for label in set(df.label)) > 1


@given(ROWS, st.floats(.05, .5), st.integers(0, 5))
@settings(max_examples=120, deadline=None)
def test_groups_never_straddle(rows, frac, seed):
    df, possible = frame(rows)
    if not possible:
        with pytest.raises(InputError, match='at least two groups'): split_groups(df, frac, seed, 'x')
        return
    chosen = split_groups(df, frac, seed, 'x')
    rest = df.drop(index=df.index[chosen])
    assert 0 < len(chosen) == len(set(chosen)) < len(df) and len(rest) + len(chosen) == len(df)
    assert set(rest.label) == set(df.label) and not set(rest.group) & set(df.group.iloc[chosen])
    assert list(chosen) == list(split_groups(df, frac, seed, 'x'))


def test_where_every_balanced_fold_has_all_groups_of_a_class():
    counts = {('a', 0): 1, ('a', 3): 10, ('a', 4): 1, ('b', 0): 2, ('b', 2): 1, ('b', 3): 1, ('c', 2): 1, ('c', 3): 10, ('d', 0): 1, ('d', 1): 2}
    df, _ = frame([(*at, n) for at, n in counts.items()])
    for seed in range(8):
        chosen = split_groups(df, .5, seed, 'x')
        rest = df.drop(index=chosen)
        assert 0 < len(chosen) <= 15 and set(rest.label) == set('abcd') and not set(rest.group) & set(df.group[chosen])


@given(st.integers(1, 4), st.integers(3, 12), st.integers(1, 3), st.floats(.1, .5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_equal_groups_give_every_class_and_the_part_asked_for(classes, groups, clips, frac, seed):
    "Each class in groups of its own: valid has every class, and as many groups of each as rounding allows"
    df, _ = frame([(label, 10*i + g, clips) for i, label in enumerate('abcd'[:classes]) for g in range(groups)])
    chosen = df.iloc[split_groups(df, frac, seed, 'x')]
    per_class = chosen.groupby('label').group.nunique()
    folds = min(max(2, round(1/frac)), groups*clips)
    assert set(chosen.label) == set(df.label) or folds > groups
    assert len(per_class) == 0 or per_class.max() <= -(-groups//min(folds, groups))


@given(st.dictionaries(st.sampled_from('abcd'), st.dictionaries(st.integers(0, 7), st.sampled_from([1, 1, 2, 9]), min_size=2, max_size=5), min_size=1),
       st.lists(st.tuples(st.sampled_from('abcd'), st.integers(8, 11), st.integers(1, 3)), max_size=6), st.floats(.05, .5), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_hold_out_moves_whole_groups_of_train_and_nothing_else(classes, test_rows, frac, seed):
    df, _ = frame([(label, g, n) for label, groups in classes.items() for g, n in groups.items()] + test_rows)
    test = {f'g{i}' for i in range(8, 12)}
    df['split'] = ['test' if g in test else 'train' for g in df.group]
    df = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    task, train = Task('x', df), df[df.split == 'train']
    held = task.hold_out(frac, seed)
    a, b, c = (set(held.df.group[held.df.split == s]) for s in ('train', 'valid', 'test'))
    assert a and b and not a & b and not b & c and c == test & set(df.group)
    assert held.df.drop(columns='split').equals(df.drop(columns='split')) and set(held.df.label[held.df.split == 'train']) == set(train.label)
    assert (held.df.split[df.split == 'test'] == 'test').all() and set(held.df.split[df.split == 'train']) == {'train', 'valid'}
    assert task.hold_out(frac, seed).df.equals(held.df) and held.hold_out(frac, seed + 1) is held and (task.df is df) and not task.count('valid')


@given(ROWS, st.integers(0, 5), st.dictionaries(st.sampled_from(['train', 'valid', 'test']), st.integers(0, 6)), st.randoms())
@settings(max_examples=80, deadline=None)
def test_subset_keeps_so_many_of_each_class(rows, seed, n, rng):
    df, _ = frame(rows)
    df['split'] = [rng.choice(['train', 'valid', 'test']) for _ in df.index]
    small = Task('x', df).subset(seed, **n).df
    assert small.equals(df.loc[small.index]) and list(small.index) == sorted(small.index)  # rows as they were, in their order
    want = {at:min(k, n.get(at[0], k)) for at, k in collections.Counter(zip(df.split, df.label)).items()}
    assert collections.Counter(zip(small.split, small.label)) == collections.Counter({at:k for at, k in want.items() if k})
    assert small.equals(Task('x', df).subset(seed, **n).df)
    more = Task('x', df).subset(seed, **{s:k + 1 for s, k in n.items()}).df
    assert set(small.index) <= set(more.index)  # growing it changes none of it


def test_another_seed_is_another_subset():
    df, _ = frame([('a', 0, 9), ('a', 1, 9), ('b', 0, 9)])
    df['split'] = 'train'
    assert len({tuple(Task('x', df).subset(seed, train=3).df.index) for seed in range(6)}) > 3


@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40, unique=True), st.booleans(), st.floats(.1, .5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_folders_split_by_the_group_in_the_name(files, by_group, frac, seed):
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as m:
        m.setattr(VideoFile, 'problem', lambda self: None)  # the files are empty
        for label, group, i in files:
            Path(root, label).mkdir(exist_ok=True)
            Path(root, label, f'p{group}_{i}.mp4').touch()
        labels = {label for label, *_ in files}
        groups = {label:{g if by_group else (g, i) for l, g, i in files if l == label} for label in labels}
        make = lambda: folder(root, group=r'/(p\d)_' if by_group else None, test_frac=frac, seed=seed)
        if len(labels) < 2 or min(map(len, groups.values())) < 2:
            with pytest.raises(InputError): make()
            return
        df = make().df
        assert sorted(df.path) == sorted(str(Path(root, label, f'p{g}_{i}.mp4')) for label, g, i in files)  # each once
        assert all(Path(p).parent.name == label for p, label in zip(df.path, df.label))
        if by_group: assert all(Path(p).name.split('_')[0] == g for p, g in zip(df.path, df.group))
        else: assert df.group.is_unique
        train, test = df[df.split == 'train'], df[df.split == 'test']
        assert len(train) + len(test) == len(df) and len(test) and not set(train.group) & set(test.group) and set(train.label) == labels
        assert make().df.equals(df)


@pytest.fixture
def table(clips, tmp_path):
    "A csv of the clips with splits a and b and `test_x`, and a function that writes a changed one"
    rows = [(f'{p.parent.name}/{p.name}', p.parent.name, ('train', 'extra', 'test_x')[int(p.stem[1]) % 3], p.stem[:2]) for p in sorted(clips.rglob('*.mp4'))]
    def write(**changes):
        df = pd.DataFrame(rows, columns=['path', 'label', 'split', 'group'])
        df['path'] = [str(clips/p) for p in df.path]
        for k, v in changes.items():
            if v is None: df = df.drop(columns=k)
            else: df[k] = v(df)
        df.to_csv(tmp_path/'t.csv', index=False)
        return tmp_path/'t.csv'
    return write


def test_csv_splits(table):
    task = csv(table())
    assert (task.count('train'), task.count('test')) == (8, 4) and 'test is test_x' in task.notes and 'splits extra are not used' in task.notes
    task = csv(table(), train='train+extra')
    assert (task.count('train'), task.count('test')) == (12, 4)
    assert create_task(f'csv:{table()},train=train+extra,test=test_x').df.equals(task.df)
    assert csv(table(), valid='extra').count('valid') == 4
    assert groups_of(csv(table(group=None)), 'test') != groups_of(task, 'test')  # without the column each file is a group


@pytest.mark.parametrize('changes,kwargs,word', [
    ({}, dict(test='nope'), "no split 'nope'"), ({}, dict(train='test_x'), 'named both'), (dict(label=None), {}, "no column 'label'"),
    (dict(split=lambda d: 'train'), {}, 'begins with test'), (dict(label=lambda d: 'one'), {}, 'only one class'),
    (dict(label=lambda d: ['lonely', *d.label[1:]]), {}, "'lonely' has one clip"), (dict(path=lambda d: d.path + 'x'), {}, 'none of its 12 videos'),
    (dict(label=lambda d: [f'{l}{s}' for l, s in zip(d.label, d.split)]), {}, 'no train clip')])
def test_csv_errors_are_one_clear_line(table, changes, kwargs, word):
    with pytest.raises(InputError, match=word) as e: csv(table(**changes), **kwargs)
    assert '\n' not in str(e.value)


def test_folder_errors_are_one_clear_line(clips, tmp_path):
    (tmp_path/'empty/a').mkdir(parents=True)
    (tmp_path/'empty/a/readme.txt').write_text('x')
    for call, word in [(lambda: folder(tmp_path/'nope'), 'does not exist'), (lambda: folder(tmp_path/'empty'), 'no videos'),
                       (lambda: folder(clips, group='p('), 'not a regular expression'), (lambda: folder(clips, group='p'), 'needs a parenthesis'),
                       (lambda: folder(clips, group='(zzz)'), 'does not match 16 of 16'), (lambda: folder(clips, test_frac=2), 'between 0 and 1'),
                       (lambda: folder(clips, group='(down|right)'), 'at least two groups'), (lambda: csv(tmp_path/'no.csv'), 'does not exist'),
                       (lambda: create_task('ucf'), 'known are moving_digits'), (lambda: create_task('folder'), 'needs a path'),
                       (lambda: create_task(f'folder:{clips},sed=1'), "unknown option 'sed'"), (lambda: moving_digits(tmp_path, 'x'), "parts source, target, motion, digit, not 'x'")]:
        with pytest.raises(InputError, match=word) as e: call()
        assert '\n' not in str(e.value)


def test_undecodable_files_are_skipped_named_and_counted(clips, tmp_path):
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    (root/'down/p0_1.mp4').write_bytes(b'')
    (root/'right/p1_2.mp4').write_text('no video')
    task = folder(root, group=r'(p\d)_')
    assert len(task.df) == 14 and '2 skipped' in task.describe()
    assert {p.rsplit('/', 1)[1] for p in task.skipped} == {'p0_1.mp4', 'p1_2.mp4'} and all('cannot be opened' in w for w in task.skipped.values())


def test_torture_folder_is_usable(shared):
    task = folder(shared/'torture')
    assert len(task.skipped) == 3 and len(task.df) == 38  # the fourth broken one has no video's suffix
    dls = task.dls(frames=4, size=32, bs=4)
    assert sum(len(x) for x, _ in task.dl(dls, 'train', 'test')) == 38


def test_real_manifests(shared):
    arid = csv(shared/'real/arid6/manifest.csv', test='test_seen')
    assert (arid.count('train'), arid.count('test'), len(arid.vocab)) == (66, 18, 6)
    assert csv(shared/'real/arid6/manifest.csv').count('test') == 54
    fights = csv(shared/'real/fights2/manifest.csv').hold_out()
    assert (fights.count('train') + fights.count('valid'), fights.count('test')) == (91, 48)
    assert not groups_of(fights, 'train') & groups_of(fights, 'valid')


def test_fingerprint_follows_contents(table):
    a = csv(table()).fingerprint
    assert a == csv(table()).fingerprint and a != csv(table(group=lambda d: 'g' + d.group)).fingerprint


def test_subset(clips):
    task = folder(clips).subset(train=2, test=1)
    assert task.df.groupby(['split', 'label']).size().to_dict() == {('test', 'down'): 1, ('test', 'right'): 1, ('train', 'down'): 2, ('train', 'right'): 2}


def test_loaders_keep_only_what_does_not_change(clips):
    task = folder(clips, group=r'(p\d)_').hold_out(.3)
    dls = task.dls(frames=4, size=24, bs=4)
    assert dls.train.after_item[0].cache
    first = lambda dl: next(iter(dl))[0]
    assert not (first(dls.train) == first(dls.train)).all() and (first(dls.valid) == first(dls.valid)).all()
    test = task.dl(dls, 'test')
    assert len(test.dataset) == task.count('test') and dls.valid._kept is not None and test._kept is None  # kept batches are not passed on
    assert not task.dls(frames=4, size=24, bs=4, workers=1).train.after_item[0].cache


@pytest.mark.parametrize('kwargs', [dict(), dict(flip=True, area=(.3, 1.)), dict(k=2), dict(tfms=[ClipTransform([Flip()])])], ids=str)
def test_videos_in_memory_are_the_batches_of_any_loader(clips, kwargs, monkeypatch):
    "`CachedDL` makes items by itself; fastai's own way makes the same, draw by draw"
    task = folder(clips, group=r'(p\d)_').hold_out(.3)
    def batches(dls):
        random.seed(1), torch.manual_seed(1), setattr(dls.train, 'rng', random.Random(2))
        found = [b for _ in range(2) for dl in dls.loaders for b in dl]
        return [(type(x), type(y), x.as_subclass(torch.Tensor).clone(), y.as_subclass(torch.Tensor)) for x, y in found]
    ours = batches(task.dls(frames=4, size=24, bs=4, **kwargs))
    monkeypatch.setattr(CachedDL, 'do_item', TfmdDL.do_item)
    theirs = batches(task.dls(frames=4, size=24, bs=4, **kwargs))
    assert len(ours) == len(theirs) > 4
    for a, b in zip(ours, theirs): assert a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3])


def test_batches_are_kept_up_to_a_bound(clips, monkeypatch):
    "Several clips of each video can take more than the videos; such batches are made anew, and are the same."
    dls = folder(clips, group=r'(p\d)_').hold_out(.3).dls(frames=4, size=24, bs=2, k=3)
    kept = [x.clone() for x, _ in dls.valid]
    assert dls.valid._kept is not None and len(kept) > 1
    monkeypatch.setattr(cache_module, 'CACHE_BYTES', dls.valid._kept[0][0].nbytes*len(kept) - 1)
    again = dls.valid.new()
    found = [[x for x, _ in again] for _ in range(2)]
    assert again._kept is None and all(len(f) == len(kept) and all(torch.equal(a, b) for a, b in zip(f, kept)) for f in found)
    monkeypatch.setattr(cache_module, 'CACHE_BYTES', cache_module.CACHE_BYTES + 1)
    list(again)
    assert len(again._kept) == len(kept)


def test_a_video_that_breaks_later_is_skipped_from_memory_too(clips, tmp_path):
    root = tmp_path/'some'
    shutil.copytree(clips, root)
    task = folder(root, group=r'(p\d)_').hold_out(.3)
    Path(lost := task.items('train')[-1][0]).write_bytes(b'no video any more')
    assert (dls := task.dls(frames=4, size=24, bs=2)).train.after_item[0].cache
    with pytest.warns(UserWarning, match=f'skipped {re.escape(lost)}'): n = sum(len(y) for _, y in dls.train)
    assert n in (task.count('train') - 1, task.count('train') - 2)  # a last batch of one is dropped


# --- moving digits ------------------------------------------------------------------------------------------------------

FEW = dict(source=dict(train=120, test=60, valid=60), target=dict(train=16, valid=8, test=16), motion=dict(train=12, valid=6, test=12),
           digit=dict(train=20, valid=10, test=20))


@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(digits, 'CLIPS', FEW)


def test_moving_digits(tmp_path, few):
    target, source, motion, digit = (moving_digits(tmp_path, part) for part in ('target', 'source', 'motion', 'digit'))
    assert [len(t.vocab) for t in (source, target, motion, digit)] == [60, 8, 6, 10]
    for task in (target, source, motion, digit):
        assert not groups_of(task, 'train') & groups_of(task, 'test') and not groups_of(task, 'valid') & (groups_of(task, 'train') | groups_of(task, 'test'))  # other handwriting
        assert task.df[task.df.split == 'train'].label.value_counts().nunique() == 1 and task.count('valid') == FEW[task.name.split(':')[1]]['valid']
    v = VideoFile(target.df.path[0])
    assert v.index.n == 8 and v.scaled(None) == (40, 40)
    assert not [p for p in tmp_path.iterdir() if p.suffix == '.tmp']
    stamp = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.mp4')}
    moving_digits(tmp_path)
    assert stamp == {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.mp4')}  # not written twice


def test_neither_frame_nor_motion_tells_the_class():
    for part in range(2):  # digits, motion
        for value in {str(v[part]) for v in digits.TARGET.values()}:
            assert sum(str(v[part]) == value for v in digits.TARGET.values()) == 2


def test_specs_name_the_parts(tmp_path, few, monkeypatch):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path))
    create_task.cache_clear()
    for part, classes in digits.PARTS.items():
        task = create_task(f'moving_digits,part={part}')
        assert task.name == f'moving_digits:{part}' and set(task.vocab) == set(classes)
    create_task.cache_clear()


def test_what_a_part_does_not_ask_for_varies(tmp_path, few, monkeypatch):
    "Digits of `motion` and motions of `digit`; all images of a class of `digit` are of that digit"
    from sklearn.datasets import load_digits
    drawn, draw, truth = [], digits._draw, load_digits().target
    monkeypatch.setattr(digits, '_draw', lambda rng, image, motion: drawn.append(str(motion)) or draw(rng, image, motion))
    for part in digits.PARTS: digits.write_moving_digits(tmp_path/part, part)
    table = pd.concat([pd.read_csv(tmp_path/part/'manifest.csv').assign(part=part) for part in digits.PARTS], ignore_index=True)
    table['motion'], table['digit'] = drawn, truth[table.group.str.removeprefix('image').astype(int)]
    motion, digit = table[table.part == 'motion'], table[table.part == 'digit']
    assert (motion.label == 'any_' + motion.motion).all() and motion.digit.nunique() > 6
    assert (digit.label == digit.digit.astype(str) + '_any').all() and set(digit.motion) == set(digits.MOTIONS)


def test_new_parts_and_splits_left_the_old_clips_as_they_were(tmp_path, few, monkeypatch):
    for part in ('source', 'target'): digits.write_moving_digits(tmp_path/'all'/part, part)
    monkeypatch.setattr(digits, 'PARTS', dict(source=digits.SOURCE, target=digits.TARGET))
    monkeypatch.setattr(digits, 'CLIPS', {p:{s:n for s, n in FEW[p].items() if (p, s) != ('source', 'valid')} for p in ('source', 'target')})
    for part in ('source', 'target'): digits.write_moving_digits(tmp_path/'old'/part, part)
    old = [p.relative_to(tmp_path/'old') for p in (tmp_path/'old').rglob('*.mp4')]
    assert len(old) == 220 and all((tmp_path/'all'/p).read_bytes() == (tmp_path/'old'/p).read_bytes() for p in old)


def test_drawn_motion_is_what_the_label_says():
    import numpy as np
    rng, image = np.random.default_rng(0), np.ones((16, 16), np.float32)
    def path(motion):
        x = digits._draw(rng, image, motion).astype(float) > 127
        return np.stack([np.argwhere(f).mean(0) for f in x])  # row, column of the digit's centre
    for motion, axis, sign in [('left', 1, -1), ('right', 1, 1), ('up', 0, -1), ('down', 0, 1)]:
        p = path(motion)
        assert sign*(p[-1] - p[0])[axis] > 5 and abs((p[-1] - p[0])[1 - axis]) < 1.5
    for motion, sign in [('clockwise', 1), ('anticlockwise', -1)]:
        step = np.diff(path(motion), axis=0)
        turn = step[:-1, 1]*step[1:, 0] - step[:-1, 0]*step[1:, 1]  # rows grow downwards: positive is clockwise
        assert sign*turn.sum() > 0


def _make_in_process(path, out):
    digits.CLIPS = FEW
    out.put(moving_digits(path).fingerprint)


def test_two_processes_at_once(tmp_path):
    ctx = multiprocessing.get_context('spawn')
    out = ctx.Queue()
    both = [ctx.Process(target=_make_in_process, args=(tmp_path, out)) for _ in range(2)]
    for p in both: p.start()
    prints = {out.get(timeout=120) for _ in both}
    for p in both: p.join(timeout=60)
    assert len(prints) == 1 and [p.name for p in tmp_path.iterdir()] == ['moving_digits-2']
