"UCF101 and HMDB51: the official lists as they are, awkward names, and what happens when videos are missing."
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
from official import HMDB, UCF, write_hmdb, write_ucf

from sdfast.data.datasets import create_task
from sdfast.data.official import OFFICIAL, hmdb51, ucf101
from sdfast.data.video import VideoFile
from sdfast.errors import InputError


@pytest.fixture(scope='module')
def real(shared, tmp_path_factory):
    """Empty files under every name of the official lists.

    One class's files are spelled in another case, as in copies of the data."""
    root = tmp_path_factory.mktemp('real')
    for name in ('trainlist01', 'testlist01'):
        for line in (shared/'splits/ucf101'/f'{name}.txt').read_text().split():
            if '/' not in line: continue
            path = root/'UCF-101'/line.replace('v_HandStandPushups', 'v_HandstandPushups')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for f in (shared/'splits/hmdb51').glob('*_test_split1.txt'):
        d = root/'hmdb51'/f.name.removesuffix('_test_split1.txt')
        d.mkdir(parents=True)
        for line in f.read_text().splitlines(): (d/line.split()[0]).touch()
    return root


@pytest.fixture
def undecoded(monkeypatch):
    monkeypatch.setattr(VideoFile, 'problem', lambda self: None)
    monkeypatch.setattr(VideoFile, 'damaged', ())
    monkeypatch.setattr(VideoFile, 'index', SimpleNamespace(n=1, lost=0))


@pytest.mark.parametrize('fold', [1, 2, 3])
def test_real_ucf101_lists(real, shared, undecoded, fold):
    task = ucf101(real, fold, shared/'splits/ucf101')
    train, test = [(9537, 3783), (9586, 3734), (9624, 3696)][fold - 1]
    assert (task.count('train'), task.count('test')) == (train, test)
    assert not task.notes
    assert not task.skipped
    assert len(task.vocab) == 101
    numbers = dict(ApplyEyeMakeup=0, Hammering=34, HammerThrow=35, HandstandPushups=36, JumpingJack=46, JumpRope=47,
                   YoYo=100)
    assert {c:task.vocab.index(c) for c in numbers} == numbers
    df = task.df
    assert df.group.nunique() == 2525
    assert (df.groupby('group').split.nunique() == 1).all()  # 25 groups a class; none on both sides
    assert (df.groupby('label').group.nunique() == 25).all()
    assert (df.path.str.split('/').str[-2] == df.label).all()
    if fold == 1:
        assert set(df[df.split == 'test'].group.str[-2:]) == {f'{i:02}' for i in range(1, 8)}
        assert (df.label == 'HandstandPushups').sum() == 128
    # an independent reading of the lists
    lines = (shared/'splits/ucf101'/f'testlist{fold:02}.txt').read_bytes().split(b'\r\n')
    files = df[df.split == 'test'].path.str.split('/').str[-2:].str.join('/')
    assert sorted(files.str.lower()) == sorted(l.decode().lower() for l in lines if l)


@pytest.mark.parametrize('fold', [1, 2, 3])
def test_real_hmdb51_lists(real, shared, undecoded, fold):
    task = hmdb51(real, fold, shared/'splits/hmdb51')
    assert (task.count('train'), task.count('test')) == (3570, 1530)
    assert not task.notes
    assert task.vocab == sorted(task.vocab)
    assert len(task.vocab) == 51
    for a, b in (('climb', 'climb_stairs'), ('kick', 'kick_ball'), ('sword', 'sword_exercise')):
        assert task.vocab.index(b) == task.vocab.index(a) + 1
    assert set(task.df.groupby(['label', 'split']).size().unstack().itertuples(index=False, name=None)) == {(30, 70)}
    # the recordings of a class are on one side: the groups are the official ones
    assert (task.df.groupby('group').split.nunique() == 1).all()
    assert task.df.path.str.contains(r'[\[\]]').sum() == {1: 15, 2: 13, 3: 15}[fold]
    assert (task.df.path.str.split('/').str[-1].str[0] == '#').any()
    assert not task.df.group.str.contains(r'_np\d+_').any()  # every name was understood


@pytest.mark.parametrize('make', [ucf101, hmdb51])
def test_valid_part_is_of_whole_groups(real, shared, undecoded, make):
    held = make(real, 1, shared/'splits'/make.__name__).hold_out(.2)
    parts = [set(held.df.group[held.df.split == s]) for s in ('train', 'valid', 'test')]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert not parts[0] & parts[2]
    n = OFFICIAL[make.__name__][0][0]
    assert .15*n < held.count('valid') < .25*n
    assert set(held.df.label[held.df.split == 'valid']) == set(held.vocab)


def test_official_sets_must_be_whole(real, shared, undecoded, tmp_path):
    moved = sorted((real/'UCF-101/YoYo').iterdir())[:7]
    for f in moved: shutil.move(f, tmp_path)
    try:
        first = ', '.join(f'YoYo/v_YoYo_g01_c0{i}.avi' for i in range(1, 6))
        with pytest.raises(InputError) as e: ucf101(real, 1, shared/'splits/ucf101')
        assert str(e.value) == (f'ucf101 fold 1: 7 of 13320 videos are missing in {real}, the first: {first}. '
                                'To go on without them: --allow-missing (allow_missing=True)')
        task = ucf101(real, 1, shared/'splits/ucf101', allow_missing=True)
        assert task.count('test') == 3776
        assert task.notes == ('7 of 13320 videos are missing (0 train, 7 test)',)
    finally:
        for f in moved: shutil.move(tmp_path/f.name, f)


def test_lists_may_lie_in_the_data_folder_or_be_given(real, shared, undecoded, tmp_path):
    (tmp_path/'videos').symlink_to(real)
    for make in (ucf101, hmdb51):
        with pytest.raises(InputError, match='no official split lists in .* say where they are with --splits'):
            make(tmp_path/'videos')
    (tmp_path/'splits').symlink_to(shared/'splits')
    assert ucf101(tmp_path/'videos', splits=tmp_path/'splits').count('test') == 3783
    assert hmdb51(tmp_path/'videos', splits=tmp_path/'splits').count('test') == 1530
    (real/'splits').symlink_to(shared/'splits')
    try:
        assert ucf101(real).count('train') == 9537
        assert hmdb51(real).count('train') == 3570
    finally: (real/'splits').unlink()


def test_the_miniatures_are_parts_of_the_official_sets(shared, tmp_path):
    "Each line of their lists is one of the official list of the same name, each video is named there"
    for write, name, folds in ((write_ucf, 'ucf101', '*0[12].txt'), (write_hmdb, 'hmdb51', '*.txt')):
        root = write(tmp_path/name)
        for file in [f for f in root.rglob(folds) if f.parent != root]:
            mine = file.read_bytes().splitlines(keepends=True)
            theirs = (shared/'splits'/name/file.name).read_bytes().splitlines(keepends=True)
            assert mine and set(mine) <= set(theirs), file
    mine, theirs = tmp_path/'ucf101/ucfTrainTestlist/classInd.txt', shared/'splits/ucf101/classInd.txt'
    assert set(mine.read_bytes().split(b'\r\n')) <= set(theirs.read_bytes().split(b'\r\n'))


def test_miniature_ucf(tmp_path):
    root = write_ucf(tmp_path)
    with pytest.raises(InputError, match='its lists name 18 train and 12 test videos, not the official 9537 and 3783'):
        ucf101(root)
    task = ucf101(root, allow_missing=True)
    assert task.vocab == list(UCF.values())
    assert (task.count('train'), task.count('test')) == (18, 12)
    assert 'not the official' in task.notes[0]
    assert task.df.path.str.endswith('.mp4').sum() == 1
    assert 'Hammering_g08' in set(task.df.group)
    # the folder of the class folders; the lists are next to it
    second = create_task(f'ucf101:{root/"UCF-101"},fold=2,allow_missing=1')
    assert (second.count('train'), second.count('test')) == (18, 12)
    assert not set(second.df.path[second.df.split == 'test']) & set(task.df.path[task.df.split == 'test'])
    dls = task.hold_out(.3).dls(frames=4, size=16, bs=4)
    assert list(dls.vocab) == list(UCF.values())
    numbers = [list(UCF.values()).index(label) for _, label in task.items('test')]
    assert [int(y) for _, y in task.dl(dls, 'test').dataset] == numbers


def test_missing_and_broken_videos(tmp_path):
    root = write_ucf(tmp_path)
    gone = sorted((root/'UCF-101/HammerThrow').iterdir())
    gone[0].unlink()
    gone[1].write_bytes(b'no video')
    task = ucf101(root, allow_missing=True)
    assert task.notes[1:] == ('1 of 30 videos are missing (0 train, 1 test)', '1 of 30 videos cannot be decoded')
    assert list(task.skipped) == [str(gone[1])]


def test_miniature_hmdb(tmp_path):
    root = write_hmdb(tmp_path)
    task = hmdb51(root, allow_missing='1')
    assert task.vocab == list(HMDB)
    assert (task.count('train'), task.count('test')) == (12, 4)  # the unused clip is not there and not missed
    groups = task.df.groupby(['label', 'split']).group.nunique().unstack()
    assert set(groups.itertuples(index=False, name=None)) == {(1, 2)}
    assert set(task.df.group) >= {
        'chew/#2_Gum', 'climb/(HQ)_Rock_Climbing_-_Free_Solo_Speed_Climb_-_Dan_Osman',
        'fencing/Die_Another_Day_-_Fencing_Scene_Part_1_[HD]', 'climb_stairs/Fellowship_6'}
    assert VideoFile(task.df.path[task.df.path.str.contains(r'\[HD\]')].iloc[0]).read([0]).shape == (1, 3, 24, 32)
    with pytest.raises(InputError, match='has no lists of fold 2'): hmdb51(root, fold=2)
    file = root/'testTrainMulti_7030_splits/chew_test_split1.txt'
    # other copies have other white space
    file.write_text(file.read_text().replace('.avi 1 ', '.avi  1').replace('.avi 2', '.avi\t2'))
    pd.testing.assert_frame_equal(hmdb51(root, allow_missing=True).df, task.df)


def test_bad_lists_and_folders(tmp_path):
    with pytest.raises(InputError, match='does not exist'): ucf101(tmp_path/'no')
    with pytest.raises(InputError, match='folds 1, 2 and 3, not 4'): hmdb51(tmp_path, 4)
    with pytest.raises(InputError, match='no official split lists'): ucf101(tmp_path)
    root = write_ucf(tmp_path/'u')
    with pytest.raises(InputError, match='trainlist03.txt does not exist'): ucf101(root, 3, allow_missing=True)
    with pytest.raises(InputError, match='no official split lists in .*h'):
        ucf101(root, splits=write_hmdb(tmp_path/'h'))
    shutil.rmtree(root/'UCF-101')
    with pytest.raises(InputError, match='30 of 30 videos are missing'): ucf101(root, allow_missing=True)
    lists = root/'ucfTrainTestlist'
    (lists/'trainlist01.txt').write_text('Hammering/v_Hammering_g08_c01.avi 36\n')
    with pytest.raises(InputError, match='does not fit classInd.txt'): ucf101(root, allow_missing=True)
    for text in ('1 Hammering twice', '1', 'one Hammering', '1 Hammering\n1 HammerThrow', '1 Hammering\n2 Hammering'):
        (lists/'classInd.txt').write_text(text)
        with pytest.raises(InputError, match='classInd.txt is not a list of numbers and class names'):
            ucf101(root, allow_missing=True)
    lists = tmp_path/'h/testTrainMulti_7030_splits'
    (lists/'climb_test_split1.txt').write_text('a.avi 3 \n')
    with pytest.raises(InputError, match="'a.avi 3' is not a file name and 0, 1 or 2"):
        hmdb51(tmp_path/'h', allow_missing=True)
