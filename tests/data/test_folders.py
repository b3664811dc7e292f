"Folders of classes and of splits are told apart, whatever their names; every video is taken or named."
import os
import shutil

import av
import numpy as np
import pytest
from videos import encode

from sdfast.data.folders import VIDEO_SUFFIXES, find_videos, split_of_name
from sdfast.data.task import Task
from sdfast.errors import InputError

CLASSES = {'down', 'right'}


@pytest.fixture
def layout(clips, tmp_path):
    "A function that makes folders of classes, such as 'train', and returns the folder that they are in"
    def make(*names, n=2):
        root = tmp_path/'layout'
        for i, name in enumerate(names):
            for kind in CLASSES:
                (root/name/kind).mkdir(parents=True)
                for f in sorted((clips/kind).iterdir())[n*i:n*i + n]: shutil.copy(f, root/name/kind)
        return root
    return make


def sizes(task): return task.count('train'), task.count('valid'), task.count('test')


# ---- splits

@pytest.mark.parametrize('names,want', [
    (('train', 'test'), (4, 0, 4)), (('train', 'val', 'test'), (4, 4, 4)), (('Train', 'Validation', 'TEST'), (4, 4, 4)),
    (('training', 'valid', 'testing'), (4, 4, 4)), (('train', 'val'), (4, 0, 4)), (('train', 'valid'), (4, 0, 4)),
    (('Training', 'Validation'), (4, 0, 4)), (('trainset', 'testset'), (4, 0, 4)), (('train', 'dev'), (4, 0, 4)),
    (('train_set', 'test-set'), (4, 0, 4)), (('train_256', 'val_256'), (4, 0, 4)),
    (('split1_train', 'split1_test'), (4, 0, 4)), (('videos_train', 'videos_val', 'videos_test'), (4, 4, 4))])
def test_folders_of_splits(layout, names, want):
    task = Task.from_folder(layout(*names))
    assert set(task.vocab) == CLASSES
    assert sizes(task) == want
    has_test = any('test' in name.lower() for name in names)
    assert any('no other to test on' in note for note in task.notes) != has_test  # then valid is the test part


@pytest.mark.parametrize('names,words', [
    (('train',), "has 'train', but no test folder"), (('val', 'test'), "has 'val', 'test', but no train folder"),
    (('test',), 'no train folder'), (('train', 'Train', 'test'), "'Train', 'train' all mean train"),
    (('train', 'val', 'valid'), 'all mean valid'), (('train1', 'train2', 'test1'), 'all mean train'),
    (('train', 'holdout'), "has 'train', but no test folder"),
    (('train_1', 'test_1', 'other'), "has 'test_1', 'train_1' beside 'other'"),
    (('videos',), "in one folder only, 'videos'; are the classes in it")])
def test_layouts_that_could_mean_anything_are_refused(layout, names, words):
    with pytest.raises(InputError, match=words) as e: Task.from_folder(layout(*names))
    assert '\n' not in str(e.value)


def test_splits_within_classes_are_refused(layout, tmp_path):
    for kind in CLASSES:
        for split in ('train', 'val'): shutil.copytree(layout('a' + kind + split)/('a' + kind + split)/kind,
                                                       tmp_path/'other'/kind/split)
    with pytest.raises(InputError, match='put them above the classes: .*/train/'): Task.from_folder(tmp_path/'other')


def test_a_test_folder_without_labels(layout, clips):
    "As competitions have it: it can only be left out, and named"
    root = layout('train', 'val')
    (root/'test').mkdir()
    for i, f in enumerate(sorted((clips/'down').iterdir())[6:]): shutil.copy(f, root/f'test/{i}.mp4')
    task = Task.from_folder(root)
    assert sizes(task) == (4, 0, 4)
    assert any(note.startswith('folders test are not used') for note in task.notes)
    shutil.rmtree(root/'val')
    with pytest.raises(InputError, match="has 'train', but no test folder with class folders"): Task.from_folder(root)
    shutil.rmtree(root/'train')
    with pytest.raises(InputError, match="videos directly in 'test'; put them into class folders"):
        Task.from_folder(root)


def test_a_class_may_have_the_name_of_a_split(layout, tmp_path):
    root = layout('all', n=4)/'all'
    (root/'down').rename(root/'train')  # a vehicle
    assert set(Task.from_folder(root).vocab) == {'right', 'train'}
    (root/'right').rename(root/'Test')
    with pytest.raises(InputError, match='put them into class folders'): Task.from_folder(root)


def test_group_folders_within_classes_are_no_splits(layout):
    root = layout('train_dog', 'walk', 'run')
    assert set(Task.from_folder(root).vocab) == {'train_dog', 'walk', 'run'}


def test_names_of_splits():
    for name in ('train', 'Train', 'TRAINING', 'train_set', ' train'): assert split_of_name(name) == 'train'
    for name in ('val', 'Valid', 'validation', 'dev'): assert split_of_name(name) == 'valid'
    for name in ('test', 'Testing', 'test-set'): assert split_of_name(name) == 'test'
    for name in ('trains', 'test_x', 'tests', 'run', '', 'valley'): assert split_of_name(name) is None


# ---- files

def test_linked_folders_and_files(layout, clips, tmp_path):
    data = layout('all', n=4)/'all'
    linked = tmp_path/'linked'
    linked.mkdir()
    for kind in CLASSES: os.symlink(data/kind, linked/kind)
    assert len(Task.from_folder(linked).df) == 8
    (tmp_path/'deep/down').mkdir(parents=True)
    os.symlink(data/'right', tmp_path/'deep/right')
    os.symlink(data/'down', tmp_path/'deep/down/disk2')  # below a class folder
    os.symlink(tmp_path/'deep', tmp_path/'deep/down/loop')
    os.symlink('itself', tmp_path/'deep/down/itself')
    os.symlink('nowhere.mp4', tmp_path/'deep/down/gone.mp4')
    task = Task.from_folder(tmp_path/'deep')
    assert task.df.label.value_counts().to_dict() == dict(down=4, right=4)
    assert [os.path.basename(p) for p in task.skipped] == ['gone.mp4']
    os.symlink(data, tmp_path/'splits')
    os.symlink(layout('again')/'again', tmp_path/'deep2')
    assert len(Task.from_folder(tmp_path/'deep2').df) == 4


KINDS = {
    '.MTS':'mpeg2video', '.m2ts':'mpeg2video', '.vob':'mpeg2video', '.mxf':'mpeg2video', '.m2v':'mpeg2video',
    '.asf':'msmpeg4', '.3g2':'mpeg4', '.nut':'mpeg4', '.h264':'libx264', '.hevc':'libx264', '.mjpg':'mjpeg',
    '.f4v':'libx264', '.ogv':'libx264', '.qt':'libx264', '.dat':'libx264'}


def test_files_of_cameras_are_videos(layout, tmp_path):
    root = layout('all', n=4)/'all'
    frames = np.zeros((6, 144, 176, 3), np.uint8)
    for i, (suffix, codec) in enumerate(KINDS.items()):
        fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        container = '.mp4' if suffix in ('.ogv', '.qt', '.dat', '.hevc', '.f4v') else suffix.lower()
        encode(tmp_path/f'made{container}', frames + np.uint8(10*i), codec, fmt)
        shutil.copy(tmp_path/f'made{container}', root/f'down/x{suffix}')
    task = Task.from_folder(root)
    assert not task.skipped
    assert len(task.df) == 8 + len(KINDS) - 1
    assert 'files of other kinds are not used: .dat (1)' in task.notes


# suffixes of FFmpeg's demuxers: of pictures, sound, subtitles and text, and of formats whose suffix many other files
# have. Those of `VIDEO_SUFFIXES` and these are all there are
NO_VIDEO = set(
    '302 722 aa aa3 aac aax ac3 ac4 acm adf adp ads adx aea afc aif aifc aiff aix al alp amr ans apc ape apl apm '
    'apng aptx aptxhd aqt art asc ass ast au aud avif avr avs bcstm bfstm binka bit bitpacked bmp bmv bonk brstm '
    'c2 caf cdata cdg cdxl cgi cif cvg dat daud dfpwm diz dpx drc dss dtk dts dtshd eac3 ec3 exr fap ffmeta fits '
    'flac flm fsb fwse g722 g723_1 g728 g729 genh gsm hca hdr heic heif iamf ice ico idf idx im1 im24 im8 ipu '
    'ircam ism isma ivr j2c j2k jls jp2 jpeg jpg js jss jxl jxs kvag laf lbc lc3 ljpg lrc m2a m3u8 m4a m4b mac '
    'mca mcc mka mks mlp mmf mods mp2 mp3 mpa mpc mpl2 mpo msbc msf mtaf musx mvi nfo nist nsp ogg oma omg osq '
    'paf pam pbm pcm pcx pdv pfm pgm pgmyuv phm pix pjs png ppm pvf qcif qoa qoi ra ras rco rcv rgb rka rs rsd '
    'rso rt sami sb sbc sbg scc sdns sdr2 sds sdx ser sf sga sgi shn sln smi son sox spdif sph srt ss2 ssa stl '
    'str sub sun sunras sup svag svs sw tak tco tga thd tif tiff tta tun txt ty+ ub ul uw v v210 vag vb vbn voc '
    'vpk vqe vqf vql vt vtt w64 wa wav wavarc way wbmp webvtt wma wsd wv xbm xface xl xmd xml xvag xwd y yuv '
    'yuv10'.split())


def test_the_suffixes_are_those_of_ffmpeg():
    "A new version of FFmpeg that reads more kinds of files shows up here"
    declared = set()
    for name in av.formats_available:
        kind = av.ContainerFormat(name)
        if kind.is_input: declared |= kind.extensions
    assert not {f'.{suffix}' for suffix in declared - NO_VIDEO} - VIDEO_SUFFIXES
    assert not VIDEO_SUFFIXES & {f'.{suffix}' for suffix in NO_VIDEO}


def test_what_is_not_taken_is_named(layout, tmp_path):
    root = layout('all', n=4)/'all'
    shutil.copy(next((root/'down').iterdir()), root/'outside.mp4')
    for name in ('a.txt', 'b.txt', 'c.lrv', 'd', '.hidden', 'Thumbs.db'): (root/'right'/name).write_text('x')
    (root/'empty').mkdir()
    notes = Task.from_folder(root).notes
    assert 'videos outside class folders are not used: 1, such as outside.mp4' in notes
    assert 'folders empty have no videos' in notes
    assert 'files of other kinds are not used: .txt (2), .lrv (1), no suffix (1)' in notes
    (tmp_path/'frames/run/1').mkdir(parents=True)
    (tmp_path/'frames/run/1/0.jpg').write_text('x')
    with pytest.raises(InputError, match=r'no videos in class folders.*files of other kinds: \.jpg \(1\)'):
        Task.from_folder(tmp_path/'frames')


def test_a_class_whose_videos_are_all_broken_is_named(layout):
    root = layout('all', n=4)/'all'
    shutil.copytree(root/'down', root/'left')
    for f in (root/'left').iterdir(): f.write_bytes(b'x')
    task = Task.from_folder(root)
    assert 'no video of left can be decoded' in task.notes
    assert len(task.skipped) == 4


def test_find_videos(tmp_path):
    for name in ('b/2.MP4', 'b/1.webm', 'a.mts', 'x.mp3', 'c/d/e.txt', '.cache'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    videos, others = find_videos(tmp_path)
    assert [str(f.relative_to(tmp_path)) for f in videos] == ['a.mts', 'b/1.webm', 'b/2.MP4']
    assert [f.name for f in others] == ['e.txt', 'x.mp3']
    with pytest.raises(InputError, match='cannot be read'): find_videos(tmp_path/'none')
