"What is doubtful in a table is noted and warned of; what contradicts itself is refused."
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest

from sdfast.data.datasets import create_task
from sdfast.data.tables import clean_table, distinct_files, file_identity, parse_flag
from sdfast.data.task import Task, make_task
from sdfast.errors import InputError


@pytest.fixture
def files(clips, tmp_path):
    "Twelve different clips '0.mp4' to '11.mp4' in `tmp_path`"
    for i, f in enumerate([*sorted((clips/'down').iterdir())[:6], *sorted((clips/'right').iterdir())[:6]]):
        shutil.copy(f, tmp_path/f'{i}.mp4')
    return tmp_path


@pytest.fixture
def read(files):
    "A function that reads rows of a csv file next to the clips: the task, and what it warns of"
    def read(*rows, head='path,label,split'):
        (files/'t.csv').write_text('\n'.join([head, *rows]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            task = Task.from_csv(files/'t.csv')
        return task, [str(w.message).removeprefix(f'{task.name}: ') for w in caught]
    return read


TRAIN = [f'{i}.mp4,{"ab"[i % 2]},train' for i in range(6)]
TEST = ['6.mp4,a,test', '7.mp4,b,test']


def spellings(files):
    "Other names of '1.mp4'"
    os.symlink(files/'1.mp4', files/'link.mp4')
    os.link(files/'1.mp4', files/'hard.mp4')
    (files/'sub').mkdir()
    os.symlink(files, files/'sub/all')
    return ['./1.mp4', 'sub/../1.mp4', str(files/'1.mp4'), f'{files}//1.mp4', 'link.mp4', 'hard.mp4', 'sub/all/1.mp4']


@pytest.mark.parametrize('i', range(7))
def test_one_file_under_two_names_in_train_and_test(files, read, i):
    name = spellings(files)[i]
    task, warned = read(*TRAIN, *TEST, f'{name},b,test')
    assert f'videos in both train and test: 1, such as {os.path.basename(name)}' in task.notes
    assert warned == [note for note in task.notes if note.startswith('videos in both')]
    assert task.df.group.iloc[-1] == '1.mp4'  # hold_out keeps it with the other
    with pytest.raises(InputError, match="are one file with two labels, 'b' and 'a'"):
        read(*TRAIN, *TEST, f'{name},a,test')
    with pytest.raises(InputError, match="are one file with two labels, 'b' and 'a'"):
        read(*TRAIN, *TEST, f'{name},a,train')


def test_a_repeated_file_stays_with_itself_in_a_held_out_part(files, read):
    "Whatever its groups are called: the other videos of both groups stay with it, too"
    spellings(files)
    rows = [f'{name},{label},{split},{group}' for name, label, split, group in [
        ('0.mp4', 'a', 'train', 'p0'), ('1.mp4', 'b', 'train', 'p1'), ('link.mp4', 'b', 'train', 'p2'),
        ('3.mp4', 'b', 'train', 'p2'), ('2.mp4', 'a', 'train', 'p4'), ('5.mp4', 'b', 'train', 'p3'),
        ('4.mp4', 'a', 'train', 'p5'), ('6.mp4', 'a', 'test', 'p6'), ('7.mp4', 'b', 'test', 'p7')]]
    task, warned = read(*rows, head='path,label,split,group')
    assert task.df.group.tolist() == ['p0', 'p1', 'p1', 'p1', 'p4', 'p3', 'p5', 'p6', 'p7']
    assert warned == ['rows of train that repeat a video: 1, such as link.mp4']
    for seed in range(10):
        held = task.hold_out(.4, seed).df
        splits = held.split[[1, 2, 3]]
        assert splits.nunique() == 1


def test_repeated_rows_are_noted(read):
    task, warned = read(*TRAIN, *TRAIN[:2], *TEST, TEST[0])
    assert warned == ['rows of train that repeat a video: 2, such as 0.mp4',
                      'rows of test that repeat a video: 1, such as 6.mp4']
    assert set(warned) <= set(task.notes)
    assert len(task.df) == 11  # as the file says
    assert not read(*TRAIN, *TEST)[1]


def test_copies_are_noted(files, read):
    "Files with the same content, but not those of the same size"
    shutil.copy(files/'1.mp4', files/'copy.mp4')
    long = bytearray((files/'3.mp4').read_bytes())
    (files/'3.mp4').write_bytes(long + bytes(2*2**16))
    shutil.copy(files/'3.mp4', files/'almost.mp4')
    with open(files/'almost.mp4', 'r+b') as f:
        f.seek(len(long) + 2**16)  # in the middle
        f.write(b'x')
    task, warned = read(*TRAIN, *TEST, 'copy.mp4,b,test', 'almost.mp4,b,test')
    assert warned == ['exact copies in both train and test: 1, such as copy.mp4']
    _, warned = read(*TRAIN, *TEST, 'copy.mp4,a,train')
    assert warned == ['exact copies with different labels: 1, such as 1.mp4, copy.mp4']
    assert set(warned) <= set(_.notes)


def test_links_between_folders(files, tmp_path):
    root = tmp_path/'set'
    for split in ('train', 'test'):
        for label in 'ab': (root/split/label).mkdir(parents=True)
    for i in range(6): os.symlink(files/f'{i}.mp4', root/f'train/{"ab"[i % 2]}/{i}.mp4')
    for i in (6, 7): os.symlink(files/f'{i}.mp4', root/f'test/{"ab"[i % 2]}/{i}.mp4')
    assert Task.from_folder(root).notes == ()
    os.link(files/'0.mp4', root/'test/a/again.mp4')
    with pytest.raises(InputError, match="group 'train/a/0.mp4' is in both train and test"): Task.from_folder(root)
    os.remove(root/'test/a/again.mp4')
    os.symlink(files/'0.mp4', root/'train/b/again.mp4')
    with pytest.raises(InputError, match="one file with two labels, 'a' and 'b'"): Task.from_folder(root)


# ---- labels and groups

@pytest.mark.parametrize('other', ['A ', 'Ab', 'a B', 'a_b', 'ａb'])
def test_labels_that_look_alike(read, other):
    rows = [row.replace(',a,', ',ab,') for row in TRAIN + TEST]
    rows += [f'{i}.mp4,"{other}",train' for i in (8, 9)]
    if other == 'A ': rows = [row.replace(',ab,', ',a,') for row in rows]
    task, warned = read(*rows)
    assert len(warned) == 1
    assert 'differ only by case, spaces or the like' in warned[0]
    assert warned[0] in task.notes


def test_labels_that_do_not(read):
    for a, b in (('walk', 'walks'), ('1', '-1'), ('1 0', '10'), ('c', 'c++'), ('x1', 'x_1'), ('1_2', '12')):
        rows = [row.replace(',a,', f',{a},').replace(',b,', f',{b},') for row in TRAIN + TEST]
        assert not read(*rows)[1], (a, b)
    rows = [row.replace(',a,', ',1,').replace(',b,', ',01,') for row in TRAIN + TEST]
    assert len(read(*rows)[1]) == 1


def test_numbers_that_are_sorted_as_text(read):
    def rows(*labels): return [f'{i}.mp4,{labels[i % len(labels)]},{"train" if i < 6 else "test"}' for i in range(12)]
    task, warned = read(*rows(2, 10, 1))
    assert task.vocab == ['1', '10', '2']
    assert warned == ['class names are numbers, which are sorted as text: 10 is before 2']
    for labels in ((1, 2, 3), (0, 4, 7), ('a2', 'a10'), ('02', '10')): assert not read(*rows(*labels))[1], labels


def test_a_blank_group_is_no_group(read):
    rows = [f'{row},{group}' for row, group in zip(TRAIN + TEST, ['p0', 'p1', '', ' ', 'nan', 'None', '', ''])]
    task, warned = read(*rows, head='path,label,split,group')
    assert task.df.group.nunique() == 8
    assert warned == ['videos with a blank group: 6; each is a group of its own']
    assert task.hold_out(.3).count('valid') < 5


def test_a_rule_that_finds_no_group_in_some_paths(clips):
    with pytest.warns(UserWarning, match='videos with a blank group: 12;'):
        task = Task.from_folder(clips, group=r'/(p0)?')
    assert task.df.group.nunique() == 13


# ---- tables of one's own

def table(files, **changed):
    columns = dict(path=[str(files/f'{i}.mp4') for i in range(12)], label=list('ab')*6, split=['train']*8 + ['test']*4,
                   group=[f'p{i}' for i in range(12)])
    return pd.DataFrame(columns | changed)


def test_labels_that_are_numbers_become_text(files):
    for labels in ([0, 3]*6, np.array([1, 2]*6), pd.Series([1, 2]*6, dtype='int8')):
        assert make_task('t', table(files, label=labels)).vocab == sorted({str(v) for v in labels})


@pytest.mark.parametrize('changed,words', [
    (dict(label=[[0], [1]]*6), r'label \[0\] is not text'), (dict(label=[0., 1.]*6), r'label 0\.0 is not text'),
    (dict(label=[True, False]*6), 'label True is not text'), (dict(label=['a', None]*6), 'label .* is not text'),
    (dict(split=['train']*8 + ['val']*4), "unknown split 'val'; use train, valid, test"),
    (dict(path=[3]*12), 'path 3 is not text')])
def test_cells_that_are_refused(files, changed, words):
    with pytest.raises(InputError, match=f't: {words}') as e: make_task('t', table(files, **changed))
    assert '\n' not in str(e.value)


def test_a_table_without_a_column_or_a_row(files):
    with pytest.raises(InputError, match="no column 'group'; it needs path, label, split, group"):
        make_task('t', table(files).drop(columns='group'))
    with pytest.raises(InputError, match='t: there are no videos'): make_task('t', table(files)[:0])


def test_a_table_is_not_changed(files):
    df = table(files, label=[1, 2]*6, group=[np.nan, None, *range(10)])
    before = df.copy()
    cleaned, notes = clean_table('t', df)
    pd.testing.assert_frame_equal(df, before)
    assert cleaned.group.tolist() == [*cleaned.path[:2], *map(str, range(10))]
    assert notes == ['videos with a blank group: 2; each is a group of its own']


# ---- options and names of splits

def test_names_of_splits_that_do_not_exist(clips):
    task = Task.from_folder(clips)
    for call in (lambda: task.count('vaild'), lambda: task.items('train', 'tset'), lambda: task.subset(trian=3)):
        with pytest.raises(InputError, match='unknown split .*; use train, valid, test'): call()


@pytest.mark.parametrize('option,words', [
    ('seed=x', "seed must be a whole number, not 'x'"),
    ('test_frac=much', 'test_frac must be between 0 and 1, not much'), ('test_frac=1', 'between 0 and 1'),
    ('seed=1,seed=2', 'an option twice')])
def test_options_that_are_refused(clips, option, words):
    with pytest.raises(InputError, match=words): create_task(f'folder:{clips},{option}')


def test_parts_that_are_none(clips):
    task = Task.from_folder(clips)
    for frac in (0, 1, -.5, 'x', float('nan')):
        with pytest.raises(InputError, match='frac must be between 0 and 1'): task.hold_out(frac)


def test_flags():
    assert all(parse_flag(v) for v in ('1', 'True', 'yes', 'on', True))
    assert not any(parse_flag(v) for v in ('0', 'no', 'off', '', False))
    with pytest.raises(InputError, match="'maybe' is neither 1"): parse_flag('maybe')


def test_identity_of_files(files):
    names = [files/'1.mp4', *map(files.joinpath, spellings(files))]
    assert len({file_identity(n) for n in names}) == 1
    assert distinct_files([files/'0.mp4', *names]) == [files/'0.mp4', files/'1.mp4']
    assert file_identity(files/'none') == file_identity(f'{files}/./none') != file_identity(files/'nil')
