"`VideoDataLoaders`: fastai's factory methods, on tasks with honest splits."
import re
import shutil
import warnings

import pandas as pd
import pytest
import torch
from fastai.vision.augment import Resize, aug_transforms

from sdfast.data.clips import TensorVideo
from sdfast.data.dataloaders import VideoDataLoaders, get_video_files
from sdfast.errors import InputError

SMALL = dict(frames=4, size=24, bs=4)
GROUP = r'(p\d)_'
AT_RANDOM = 'split off at random.*group=REGEX'


def parts(dls): return [sorted(path for path, _ in dl.dataset.items) for dl in dls.loaders]
def groups(dls): return [{re.search(GROUP, path)[1] for path in part} for part in parts(dls)]


@pytest.fixture
def split_folders(clips, tmp_path):
    "Folders train, valid and test with class folders; each person is in one of them"
    for part, persons in dict(train='01', valid='2', test='3').items():
        for file in clips.rglob('*.mp4'):
            if file.name[1] not in persons: continue
            (tmp_path/part/file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path/part/file.parent.name/file.name)
    return tmp_path


# ---- files

def test_video_files(split_folders):
    (split_folders/'train'/'notes.txt').write_text('no video')
    files = get_video_files(split_folders)
    assert len(files) == 16
    assert list(files) == sorted(files)
    assert len(get_video_files(split_folders, folders=['train', 'valid'])) == 12
    assert len(get_video_files(split_folders, folders='train')) == 8
    assert not get_video_files(split_folders, recurse=False)
    assert len(get_video_files(split_folders/'train'/'down', recurse=False)) == 4
    with pytest.raises(InputError, match='folder .*nowhere does not exist'): get_video_files(split_folders/'nowhere')
    with pytest.raises(InputError, match='folder .*nowhere does not'): get_video_files(split_folders, folders='nowhere')


# ---- folders

def test_from_class_folders(clips):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        dls = VideoDataLoaders.from_folder(clips, group=GROUP, **SMALL)
    assert type(dls) is VideoDataLoaders
    assert dls.c == 2
    assert list(dls.vocab) == ['down', 'right']
    assert dls.path == clips
    x, y = dls.one_batch()
    assert type(x) is TensorVideo
    assert x.shape == (4, 4, 3, 24, 24)
    assert 0 <= x.min()
    assert .5 < x.max() <= 1
    assert not groups(dls)[0] & groups(dls)[1]
    assert sum(map(len, parts(dls))) == 16
    assert dls.task.count('test') == 0


def test_files_are_split_at_random_with_a_warning_only(clips):
    with pytest.warns(UserWarning, match=AT_RANDOM) as caught:
        dls = VideoDataLoaders.from_folder(clips, valid_pct=.25, **SMALL)
    assert all('\n' not in str(w.message) for w in caught)
    assert len(parts(dls)[1]) == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        each = VideoDataLoaders.from_folder(clips, valid_pct=.25, group='(.*)', **SMALL)
    assert parts(each) == parts(dls)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        others = [parts(VideoDataLoaders.from_folder(clips, valid_pct=.25, seed=seed, **SMALL))[1]
                  for seed in (0, 1, 2, None, None)]
    assert others[0] == parts(dls)[1]
    assert len(set(map(tuple, others))) >= 3


def test_folders_of_parts_are_used_as_they_are(split_folders):
    dls = VideoDataLoaders.from_folder(split_folders, **SMALL)
    assert groups(dls) == [{'p0', 'p1'}, {'p2'}]
    mixed = VideoDataLoaders.from_folder(split_folders, valid_pct=.3, group=GROUP, **SMALL)
    assert groups(mixed)[0] | groups(mixed)[1] == {'p0', 'p1', 'p2'}  # never the test folder
    (split_folders/'valid').rename(split_folders/'other')
    named = VideoDataLoaders.from_folder(split_folders, valid='other', **SMALL)
    assert groups(named) == [{'p0', 'p1'}, {'p2'}]
    shutil.rmtree(split_folders/'other')
    held_out = VideoDataLoaders.from_folder(split_folders, group=GROUP, **SMALL)  # a part of train, not test
    assert groups(held_out)[0] | groups(held_out)[1] == {'p0', 'p1'}


def test_valid_alone_is_the_valid_part(split_folders):
    shutil.rmtree(split_folders/'test')
    assert groups(VideoDataLoaders.from_folder(split_folders, **SMALL)) == [{'p0', 'p1'}, {'p2'}]


def test_a_group_on_both_sides_is_refused(split_folders):
    for file in list((split_folders/'valid').rglob('p2_4*')): file.rename(file.with_name('p1_9.mp4'))
    with pytest.raises(InputError, match="group 'p1' is in both train and valid"):
        VideoDataLoaders.from_folder(split_folders, group=GROUP, **SMALL)


def test_broken_files_and_the_same_file_twice(clips, tmp_path):
    shutil.copytree(clips, tmp_path/'a')
    (tmp_path/'a'/'down'/'broken.mp4').write_bytes(b'no video')
    same = tmp_path/'a'/'down'/'again.mp4'
    same.symlink_to(tmp_path/'a'/'down'/'p0_0.mp4')
    with pytest.warns(UserWarning, match=AT_RANDOM): dls = VideoDataLoaders.from_folder(tmp_path/'a', **SMALL)
    assert [p for p in dls.task.skipped if p.endswith('broken.mp4')]
    together = [part for part in parts(dls) if str(same) in part]
    assert all(str(same.with_name('p0_0.mp4')) in part for part in together)
    with pytest.raises(InputError, match='does not exist'): VideoDataLoaders.from_folder(tmp_path/'none')


# ---- tables and names

def table_of(clips):
    files = get_video_files(clips)
    return pd.DataFrame(dict(name=[f'{f.parent.name}/{f.stem}' for f in files], kind=[f.parent.name for f in files],
                             person=[f.name[:2] for f in files], held=[f.name[:2] == 'p3' for f in files]))


def test_from_df(clips):
    df = table_of(clips)
    dls = VideoDataLoaders.from_df(df, clips, suff='.mp4', group_col='person', **SMALL)
    assert not groups(dls)[0] & groups(dls)[1]
    said = VideoDataLoaders.from_df(df, clips.parent, folder=clips.name, suff='.mp4', valid_col='held', **SMALL)
    assert groups(said) == [{'p0', 'p1', 'p2'}, {'p3'}]
    by_number = VideoDataLoaders.from_df(df, clips, suff='.mp4', fn_col=0, label_col='kind', group=GROUP, **SMALL)
    assert by_number.c == 2
    assert not groups(by_number)[0] & groups(by_number)[1]
    with pytest.warns(UserWarning, match=AT_RANDOM): VideoDataLoaders.from_df(df, clips, suff='.mp4', **SMALL)
    with pytest.raises(InputError, match="label_col='class': the table has the columns name, kind, person, held"):
        VideoDataLoaders.from_df(df, clips, label_col='class')


def test_from_csv(clips, tmp_path):
    df = table_of(clips).assign(held=lambda d: d.held.map({True:'valid', False:'Training'}))
    df['kind'] = df.kind.map(dict(down='01', right='1'))  # text as it is written
    shutil.copytree(clips, tmp_path/'v')
    df.to_csv(tmp_path/'v'/'labels.csv', index=False)
    dls = VideoDataLoaders.from_csv(tmp_path/'v', suff='.mp4', valid_col='held', **SMALL)
    assert list(dls.vocab) == ['01', '1']
    assert groups(dls) == [{'p0', 'p1', 'p2'}, {'p3'}]
    df.to_csv(tmp_path/'v'/'t.tsv', index=False, header=False, sep='\t')
    other = VideoDataLoaders.from_csv(tmp_path/'v'/'t.tsv', header=None, delimiter='\t', suff='.mp4', valid_col=3,
                                      **SMALL)
    assert parts(other) == parts(dls)
    with pytest.raises(InputError, match='csv file .*labels.csv does not exist'): VideoDataLoaders.from_csv(tmp_path)


def test_from_name_func(clips, tmp_path):
    files = []
    for file in get_video_files(clips):
        files.append(shutil.copy(file, tmp_path/f'{file.parent.name}_{file.name}'))
    dls = VideoDataLoaders.from_name_func(tmp_path, files, lambda name: name.split('_')[0], group=GROUP, **SMALL)
    assert list(dls.vocab) == ['down', 'right']
    assert not groups(dls)[0] & groups(dls)[1]
    again = VideoDataLoaders.from_path_func(tmp_path, files, lambda path: path.split('/')[-1][0], group=GROUP, **SMALL)
    assert list(again.vocab) == ['d', 'r']
    with pytest.raises(InputError, match='there are no videos'): VideoDataLoaders.from_name_func(tmp_path, [], str)


# ---- arguments

def test_transforms_size_and_order_of_classes(clips):
    kwargs = dict(group=GROUP, frames=4, bs=4)
    dls = VideoDataLoaders.from_folder(clips, item_tfms=Resize(40), batch_tfms=aug_transforms(size=32), **kwargs)
    assert dls.one_batch()[0].shape == (4, 4, 3, 32, 32)
    assert dls.valid.after_item.fs[0].size is None
    assert VideoDataLoaders.from_folder(clips, **kwargs).one_batch()[0].shape == (4, 4, 3, 112, 112)
    dls = VideoDataLoaders.from_folder(clips, vocab=['right', 'down'], val_bs=2, k=2, device='cpu', **kwargs, size=24)
    assert list(dls.vocab) == ['right', 'down']
    assert next(iter(dls.valid))[0].shape == (2, 2, 4, 3, 24, 24)
    with pytest.raises(InputError, match='a class that vocab lacks: right'):
        VideoDataLoaders.from_folder(clips, vocab=['down'], **kwargs)
    with pytest.raises(InputError, match='no video of a class in vocab: up'):
        VideoDataLoaders.from_folder(clips, vocab=['down', 'right', 'up'], **kwargs)
    with pytest.raises(InputError, match="VideoDataLoaders has no argument 'frame'; did you mean 'frames'"):
        VideoDataLoaders.from_folder(clips, frame=4, group=GROUP)


def test_items_of_any_kind(clips):
    "Paths, text, and frames in memory"
    dls = VideoDataLoaders.from_folder(clips, group=GROUP, **SMALL)
    file = get_video_files(clips)[0]
    frames = torch.rand(4, 3, 24, 24)
    x, = next(iter(dls.test_dl([frames])))
    torch.testing.assert_close(x[0].as_subclass(torch.Tensor), frames, atol=.5/255 + 1e-6, rtol=0)
    a, b = (next(iter(dls.test_dl([f])))[0] for f in (file, str(file)))
    assert torch.equal(a, b)
    with pytest.raises(InputError, match=r'a tensor \(T, 3, H, W\), not \(4, 24, 24, 3\); permute\(0, 3, 1, 2\)'):
        next(iter(dls.test_dl([frames.permute(0, 2, 3, 1)])))
    with pytest.raises(InputError, match='in \\[0, 1\\] before normalisation, not torch.float32 from -'):
        next(iter(dls.test_dl([frames - .5])))
