"Tasks read what there is, split it by group, and name what is wrong."
import collections
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ODD_CLASSES, ROWS, frame, groups_of
from videos import BROKEN

from sdfast.data.datasets import create_task
from sdfast.data.task import Task
from sdfast.data.video import VideoFile
from sdfast.errors import InputError


def test_folder_splits_by_group(clips):
    task = Task.from_folder(clips, group=r'(p\d)_')
    assert task.vocab == ['down', 'right']
    assert len(task.df) == 16
    assert not groups_of(task, 'train') & groups_of(task, 'test')
    assert groups_of(task, 'test')
    held = task.hold_out(.3)
    splits = [groups_of(held, s) for s in ('train', 'valid', 'test')]
    assert all(splits)
    assert not splits[0] & splits[1]
    assert not splits[1] & splits[2]
    assert set(held.df.label[held.df.split == 'valid']) == {'down', 'right'}
    assert held.count('test') == task.count('test')
    assert held.hold_out() is held
    assert Task.from_folder(clips, group=r'(p\d)_').df.equals(task.df)  # the same split each time
    assert 'both sides' in Task.from_folder(clips).notes[0]


def test_folder_with_train_and_test(clips, tmp_path):
    for split, n in (('train', 0), ('TEST', 4)):
        for kind in ('right', 'down'):
            (tmp_path/split/kind).mkdir(parents=True)
            for f in sorted((clips/kind).iterdir())[n:n + 4]: shutil.copy(f, tmp_path/split/kind)
    task = Task.from_folder(tmp_path)
    assert (task.count('train'), task.count('test')) == (8, 8)
    Task.from_folder(tmp_path, group=r'(p\d)_')
    shutil.copy(next((tmp_path/'train/down').iterdir()), tmp_path/'TEST/down')
    with pytest.raises(InputError, match="'p0' is in both"): Task.from_folder(tmp_path, group=r'(p\d)_')


GROUPS = st.dictionaries(st.integers(0, 7), st.sampled_from([1, 1, 2, 9]), min_size=2, max_size=5)  # group -> clips
CLASSES = st.dictionaries(st.sampled_from('abcd'), GROUPS, min_size=1)
TEST_ROWS = st.lists(st.tuples(st.sampled_from('abcd'), st.integers(8, 11), st.integers(1, 3)), max_size=6)


@given(CLASSES, TEST_ROWS, st.floats(.05, .5), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_hold_out_moves_whole_groups_of_train_and_nothing_else(classes, test_rows, frac, seed):
    df, _ = frame([(label, g, n) for label, groups in classes.items() for g, n in groups.items()] + test_rows)
    test = {f'g{i}' for i in range(8, 12)}
    df['split'] = ['test' if g in test else 'train' for g in df.group]
    df = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    task, train = Task('x', df), df[df.split == 'train']
    held = task.hold_out(frac, seed)
    a, b, c = (set(held.df.group[held.df.split == s]) for s in ('train', 'valid', 'test'))
    assert a
    assert b
    assert not a & b
    assert not b & c
    assert c == test & set(df.group)
    assert held.df.drop(columns='split').equals(df.drop(columns='split'))
    assert set(held.df.label[held.df.split == 'train']) == set(train.label)
    assert (held.df.split[df.split == 'test'] == 'test').all()
    assert set(held.df.split[df.split == 'train']) == {'train', 'valid'}
    assert task.hold_out(frac, seed).df.equals(held.df)
    assert held.hold_out(frac, seed + 1) is held
    assert task.df is df
    assert not task.count('valid')


NUMBERS = st.dictionaries(st.sampled_from(['train', 'valid', 'test']), st.integers(0, 6))  # of clips to keep


@given(ROWS, st.integers(0, 5), NUMBERS, st.randoms())
@settings(max_examples=80, deadline=None)
def test_subset_keeps_so_many_of_each_class(rows, seed, n, rng):
    df, _ = frame(rows)
    df['split'] = [rng.choice(['train', 'valid', 'test']) for _ in df.index]
    small = Task('x', df).subset(seed, **n).df
    assert small.equals(df.loc[small.index])
    assert list(small.index) == sorted(small.index)  # rows as they were, in their order
    want = {at:min(k, n.get(at[0], k)) for at, k in collections.Counter(zip(df.split, df.label)).items()}
    want = {at:k for at, k in want.items() if k}
    assert collections.Counter(zip(small.split, small.label)) == want
    assert small.equals(Task('x', df).subset(seed, **n).df)
    more = Task('x', df).subset(seed, **{s:k + 1 for s, k in n.items()}).df
    assert set(small.index) <= set(more.index)  # growing it changes none of it


def test_another_seed_is_another_subset():
    df, _ = frame([('a', 0, 9), ('a', 1, 9), ('b', 0, 9)])
    df['split'] = 'train'
    assert len({tuple(Task('x', df).subset(seed, train=3).df.index) for seed in range(6)}) > 3


FILE = st.tuples(st.sampled_from('abc'), st.integers(0, 6), st.integers(0, 9))  # class, group and number


@given(st.lists(FILE, min_size=1, max_size=40, unique=True), st.booleans(), st.floats(.1, .5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_folders_split_by_the_group_in_the_name(files, by_group, frac, seed):
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as m:
        m.setattr(VideoFile, 'problem', lambda self: None)  # the files are empty
        for label, group, i in files:
            Path(root, label).mkdir(exist_ok=True)
            Path(root, label, f'p{group}_{i}.mp4').touch()
        labels = {label for label, *_ in files}
        groups = {label:{g if by_group else (g, i) for l, g, i in files if l == label} for label in labels}
        make = lambda: Task.from_folder(root, group=r'/(p\d)_' if by_group else None, test_frac=frac, seed=seed)
        if len(labels) < 2 or min(map(len, groups.values())) < 2:
            with pytest.raises(InputError): make()
            return
        df = make().df
        assert sorted(df.path) == sorted(str(Path(root, label, f'p{g}_{i}.mp4')) for label, g, i in files)  # each once
        assert all(Path(p).parent.name == label for p, label in zip(df.path, df.label))
        if by_group: assert all(Path(p).name.split('_')[0] == g for p, g in zip(df.path, df.group))
        else: assert df.group.is_unique
        train, test = df[df.split == 'train'], df[df.split == 'test']
        assert len(train) + len(test) == len(df)
        assert len(test)
        assert not set(train.group) & set(test.group)
        assert set(train.label) == labels
        assert make().df.equals(df)


@pytest.fixture
def table(clips, tmp_path):
    "A function that writes a csv of the clips with splits train, extra and test_x, with some columns changed"
    rows = []
    for p in sorted(clips.rglob('*.mp4')):
        split = ('train', 'extra', 'test_x')[int(p.stem[1]) % 3]
        rows.append((str(p), p.parent.name, split, p.stem[:2]))
    def write(**changes):
        df = pd.DataFrame(rows, columns=['path', 'label', 'split', 'group'])
        for k, v in changes.items():
            if v is None: df = df.drop(columns=k)
            else: df[k] = v(df)
        df.to_csv(tmp_path/'t.csv', index=False)
        return tmp_path/'t.csv'
    return write


def test_csv_splits(table):
    task = Task.from_csv(table())
    assert (task.count('train'), task.count('test')) == (8, 4)
    assert 'test is test_x' in task.notes
    assert 'splits extra are not used' in task.notes
    task = Task.from_csv(table(), train='train+extra')
    assert (task.count('train'), task.count('test')) == (12, 4)
    assert create_task(f'csv:{table()},train=train+extra,test=test_x').df.equals(task.df)
    assert Task.from_csv(table(), valid='extra').count('valid') == 4
    # without the column each file is a group
    assert groups_of(Task.from_csv(table(group=None)), 'test') != groups_of(task, 'test')


@pytest.mark.parametrize('changes,kwargs,word', [
    ({}, dict(test='nope'), "no split 'nope'"),
    ({}, dict(train='test_x'), 'named both'),
    (dict(label=None), {}, "no column 'label'"),
    (dict(split=lambda d: 'train'), {}, 'begins with test'),
    (dict(label=lambda d: 'one'), {}, 'only one class'),
    (dict(label=lambda d: ['lonely', *d.label[1:]]), {}, "'lonely' has one clip"),
    (dict(path=lambda d: d.path + 'x'), {}, 'none of its 12 videos'),
    (dict(label=lambda d: [f'{l}{s}' for l, s in zip(d.label, d.split)]), {}, 'no train clip')])
def test_csv_errors_are_one_clear_line(table, changes, kwargs, word):
    with pytest.raises(InputError, match=word) as e: Task.from_csv(table(**changes), **kwargs)
    assert '\n' not in str(e.value)


def test_folder_errors_are_one_clear_line(clips, tmp_path):
    (tmp_path/'empty/a').mkdir(parents=True)
    (tmp_path/'empty/a/readme.txt').write_text('x')
    errors = {
        'does not exist': lambda: Task.from_folder(tmp_path/'nope'),
        'no videos': lambda: Task.from_folder(tmp_path/'empty'),
        'not a regular expression': lambda: Task.from_folder(clips, group='p('),
        'needs a parenthesis': lambda: Task.from_folder(clips, group='p'),
        'does not match 16 of 16': lambda: Task.from_folder(clips, group='(zzz)'),
        'between 0 and 1': lambda: Task.from_folder(clips, test_frac=2),
        'at least two groups': lambda: Task.from_folder(clips, group='(down|right)'),
        'csv file .* does not exist': lambda: Task.from_csv(tmp_path/'no.csv')}
    for word, call in errors.items():
        with pytest.raises(InputError, match=word) as e: call()
        assert '\n' not in str(e.value)


def test_undecodable_files_are_skipped_named_and_counted(clips, tmp_path):
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    (root/'down/p0_1.mp4').write_bytes(b'')
    (root/'right/p1_2.mp4').write_text('no video')
    task = Task.from_folder(root, group=r'(p\d)_')
    assert len(task.df) == 14
    assert '2 skipped' in task.describe()
    assert {p.rsplit('/', 1)[1] for p in task.skipped} == {'p0_1.mp4', 'p1_2.mp4'}
    assert all('cannot be opened' in w for w in task.skipped.values())


def test_torture_folder_is_usable(shared):
    task = Task.from_folder(shared/'torture')
    assert len(task.skipped) == 3
    assert len(task.df) == 38  # the fourth broken one has no video's suffix
    dls = task.dls(frames=4, size=32, bs=4)
    assert sum(len(x) for x, _ in task.dl(dls, 'train', 'test')) == 38


def test_real_manifests(shared):
    arid = Task.from_csv(shared/'real/arid6/manifest.csv', test='test_seen')
    assert (arid.count('train'), arid.count('test'), len(arid.vocab)) == (66, 18, 6)
    assert Task.from_csv(shared/'real/arid6/manifest.csv').count('test') == 54
    fights = Task.from_csv(shared/'real/fights2/manifest.csv').hold_out()
    assert (fights.count('train') + fights.count('valid'), fights.count('test')) == (91, 48)
    assert not groups_of(fights, 'train') & groups_of(fights, 'valid')


def test_fingerprint_follows_contents(table):
    a = Task.from_csv(table()).fingerprint
    assert a == Task.from_csv(table()).fingerprint
    assert a != Task.from_csv(table(group=lambda d: 'g' + d.group)).fingerprint


def test_subset(clips):
    task = Task.from_folder(clips).subset(train=2, test=1)
    counts = task.df.groupby(['split', 'label']).size().to_dict()
    assert counts == {('test', 'down'): 1, ('test', 'right'): 1, ('train', 'down'): 2, ('train', 'right'): 2}


def test_all_files_in_one_data_set(shared, torture_folder):
    files = [f for folder in ('real', 'made') for f in (shared/'torture'/folder).iterdir()]
    assert len(list(torture_folder.rglob('*.*'))) == len(files) == 42
    task = Task.from_folder(torture_folder)
    skipped = sorted(Path(p).name.removesuffix('.mp3.mp4') for p in task.skipped)
    assert skipped == sorted(Path(n).name.removesuffix('.mp3') for n in BROKEN)
    assert all(task.skipped.values())
    assert '4 skipped' in task.describe()
    assert len(task.df) == 38
    dls = task.dls(frames=4, size=32, bs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        seen = torch.cat([y for _, y in task.dl(dls, 'train', 'test')])
        assert sum(len(x) for x, _ in dls.train) == task.count('train')//4*4
    assert [dls.vocab[i] for i in seen] == [label for _, label in task.items('train', 'test')]
    messages = [str(w.message) for w in caught]
    named = {m.split(': ')[0] for m in messages if 'cannot be decoded' in m or 'skipped' in m}
    assert {Path(p).name for p in named} <= {'corrupted.mp4', 'truncated_half_original.avi'}


def test_paths_that_leave_the_folder_of_the_csv(class_csv, clips):
    for out in ('../set/{}', 'down/../../set/{}', './/..//set/{}', '..'):
        file = class_csv(['a', 'b'], out.format)
        with pytest.raises(InputError, match='4 files outside its own folder.*outside=1') as e: Task.from_csv(file)
        assert '\n' not in str(e.value)
    file = class_csv(['a', 'b'], '../set/{}'.format)
    task = Task.from_csv(file, outside=True)
    assert len(task.df) == 4
    assert create_task(f'csv:{file},outside=1').df.equals(task.df)
    assert not any('..' in p for p in task.df.path)
    with pytest.raises(InputError, match='outside its own folder'): create_task(f'csv:{file},outside=0')
    for inside in ('{}', './{}', 'down/../{}', str(clips)+'/{}', f'{clips}/../{clips.name}/{{}}'):
        assert len(Task.from_csv(class_csv(['a', 'b'], inside.format)).df) == 4


@pytest.mark.skipif(sys.platform != 'linux', reason='names files by bytes')
def test_folders_and_files_whose_names_are_no_text_or_formulas(clips, tmp_path):
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    files = sorted((root/'down').iterdir())
    names = b'a\xff.mp4', b'b\n.mp4', b'c;=1+1.mp4', b'd;-)_.mp4', b'e;@x.mp4', b'=f.mp4'  # hmdb51 has such smileys
    for f, name in zip(files, names): os.rename(f, os.path.join(os.fsencode(f.parent), name))
    task = Task.from_folder(root)
    skipped = sorted(p.rsplit('/', 1)[1] for p in task.skipped)
    assert skipped == ['a\\udcff.mp4', 'b\\n.mp4', 'c;=1+1.mp4', 'e;@x.mp4']
    assert all('rename it' in w for w in task.skipped.values())
    assert ''.join(task.skipped).isprintable()
    os.rename(root/'down', os.fsencode(root) + b'/d\xff')
    with pytest.raises(InputError, match='rename it'): Task.from_folder(root)


def test_notes_escape_names(class_csv):
    file = class_csv(ODD_CLASSES, split='<b>test</b>')
    df = pd.read_csv(file, dtype=str)
    df.loc[df.label.eq(ODD_CLASSES[0]), 'split'] = 'train'
    df.to_csv(file, index=False)
    task = Task.from_csv(file, test='<b>test</b>')
    assert task.notes == (r'test is \<b\>test\</b\>', r'test has no clip of \<script\>alert(1)\</script\>')



def test_order_of_classes_without_an_official_one():
    df = pd.DataFrame(dict(path=['a', 'b'], label=['b', 'a'], split='train', group=['x', 'y']))
    assert Task('t', df).vocab == ['a', 'b']
    assert Task('t', df, classes=('c', 'b', 'a')).vocab == ['b', 'a']
