"""Videos in folders: which files are videos, and which folders are splits and which are classes.

The layouts are those of ImageFolder, fastai and torchvision: folders of classes, or folders train, valid and test (or
other usual names, in any case) with folders of classes in them. Linked folders count like others."""
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..errors import InputError
from .splits import group_names
from .text import as_markdown, list_names

__all__ = ['VIDEO_SUFFIXES', 'find_videos']

# Suffixes of files that are taken for videos in folders: those of FFmpeg's demuxers that hold video, and other usual
# ones. Not .lrv: cameras write it beside an mp4 of the same recording.
VIDEO_SUFFIXES = set(
    '.264 .265 .266 .3g2 .3gp .amv .apv .asf .av1 .avc .avi .avs2 .avs3 .bik .cavs .cpk .dav .dif .divx .dnxhd '
    '.dnxhr .dv .dvr-ms .evc .evo .f4v .flv .gif .gxf .h261 .h263 .h264 .h265 .h266 .h26l .hevc .ifv .imx .ismv '
    '.ivf .k3g .kux .lvf .m1v .m2p .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mod .moflex .mov .mp2v .mp4 '
    '.mp4v .mpe .mpeg .mpeg1 .mpeg2 .mpeg4 .mpg .mpg2 .mpg4 .mpv .mts .mve .mxf .mxg .nsv .nut .obu .ogm .ogv '
    '.ogx .psp .qt .rec .rm .rmvb .roq .skm .smk .swf .tod .trp .ts .ty .usm .vc1 .vc2 .viv .vob .vro .vvc .webm '
    '.wmv .wtv .xmv .xvid .y4m .yop'.split())
SPLITS = 'train', 'valid', 'test'
# Names of splits, without spaces and other signs, in lower case
SPLIT_NAMES = dict(
    train=('train', 'training', 'trainset', 'trainingset'),
    valid=('valid', 'val', 'validation', 'valset', 'validset', 'validationset', 'dev', 'eval', 'evaluation'),
    test=('test', 'testing', 'testset', 'testingset'))
OF_THE_SYSTEM = {'thumbs.db', 'desktop.ini'}  # files that Windows adds to folders; others begin with a dot


# ---- files

def find_videos(
    folder:str|Path, # Folder to search, with the folders and linked folders below it
)->tuple[list[Path], list[Path]]: # Files with a suffix of `VIDEO_SUFFIXES` and other files, both sorted
    "Find the videos in a folder. Links that lead nowhere are among the files; a link to a folder above is not followed"
    videos, others = [], []
    for file in map(Path, _files(folder)):
        if _is_video(file): videos.append(file)
        elif not file.name.startswith('.') and file.name.lower() not in OF_THE_SYSTEM: others.append(file)
    return sorted(videos), sorted(others)


def _is_video(file): return file.suffix.lower() in VIDEO_SUFFIXES


def _files(folder, above=None):
    "Paths of all files below a folder; `above` are the real paths of the folders that it is in"
    real = os.path.realpath(folder)
    if above is None:
        above = {*map(str, Path(real).parents), *(os.path.realpath(p) for p in Path(os.path.abspath(folder)).parents)}
    if real in above: return
    try: entries = list(os.scandir(folder))
    except OSError as e: raise InputError(f'folder {folder} cannot be read ({e.strerror})') from None
    for entry in entries:
        # `entry.is_dir` raises an error for a link that leads to itself
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        if is_folder: yield from _files(entry.path, {*above, real})
        else: yield entry.path


def _subfolders(folder): return sorted(d for d in folder.iterdir() if d.is_dir())
def _has_videos(folder): return any(_is_video(Path(f)) for f in _files(folder))
def _names(folders): return ', '.join(repr(d.name) for d in folders)


def _loose_videos(folder):
    "Videos directly in a folder"
    return [f for f in sorted(folder.iterdir()) if _is_video(f) and not f.is_dir()]


# ---- layout

def split_of_name(
    name:str, # Of a folder, or in the column split of a csv file
)->str|None: # 'train', 'valid' or 'test'; `None` for other names
    "The split that a usual name such as 'Training' or 'val' means"
    plain = re.sub(r'[\s_.-]', '', name.casefold())
    return next((split for split, names in SPLIT_NAMES.items() if plain in names), None)


def split_in_name(
    name:str, # Of a folder or file
)->str|None: # 'train', 'valid' or 'test'
    "The split that is named in a longer name, such as 'train_256' or 'split1_test'; `None` without one, or with two"
    found = {split_of_name(word) for word in re.split(r'[^a-z]+', name.casefold())} - {None}
    return found.pop() if len(found) == 1 else None


def read_folder(
    path:Path, # An existing folder
    group:str|None, # Regular expression, see `group_names`
    need_test:bool=True, # Take the valid part for the test part if there is no other
)->tuple[pd.DataFrame, bool, list[str]]: # Table of the videos, whether they were split, else all are 'train', and notes
    "List the videos in class folders, or in folders of splits with class folders"
    folders = [d for d in _subfolders(path) if _has_videos(d)]
    split_folders, notes = _split_folders(path, folders, need_test)
    is_split = bool(split_folders)
    roots = split_folders or dict(train=path)
    rows, others = [], []
    for split, root in roots.items():
        for class_folder in _subfolders(root):
            videos, more = find_videos(class_folder)
            rows += [(str(f), class_folder.name, split) for f in videos]
            others += more
    if not rows:
        raise InputError(f'folder {path} has no videos in class folders (looked for {path}/CLASS/*.mp4 and the like)'
                         + _other_suffixes(others))
    notes += _notes_on_unused(roots.values(), others)
    df = pd.DataFrame(rows, columns=['path', 'label', 'split'])
    df['group'] = group_names([os.path.relpath(p, path) for p in df.path], group)
    df['path'] = df.path.map(os.path.abspath)
    return df, is_split, notes


def _split_folders(path, folders, need_test):
    "Split -> its folder, and notes; no splits if the folders are classes. Raises `InputError` for doubtful layouts"
    holding_classes = [d for d in folders if any(map(_has_videos, _subfolders(d)))]
    named = [d for d in folders if split_of_name(d.name)]
    splits = [d for d in named if d in holding_classes]
    if splits: return _named_splits(path, folders, splits, need_test)
    meanings = {split_of_name(d.name) for d in named}
    if named and (named == folders or {'train'} < meanings):
        raise InputError(f'folder {path} has videos directly in {_names(named)}; put them into class folders: '
                         f'{named[0]}/CLASS/*.mp4')
    splits = [d for d in holding_classes if split_in_name(d.name)]
    meanings = {split_in_name(d.name) for d in splits}
    if 'train' in meanings and len(meanings) > 1:
        if splits == folders: return _splits_by(path, split_in_name, splits, need_test)
        raise InputError(f'folder {path} has {_names(splits)} beside {_names(d for d in folders if d not in splits)}; '
                         'name folders of splits train, valid and test, and put classes into them')
    _check_class_folders(path, folders, holding_classes)
    return {}, []


def _named_splits(path, folders, splits, need_test):
    "Split -> its folder, and notes, if some folders have names of splits and hold class folders"
    found, notes = _splits_by(path, split_of_name, splits, need_test)
    unused = [d.name for d in folders if d not in splits]
    if unused: notes.append(f'folders {list_names(unused)} are not used: they are no splits, or have no class folders')
    return found, notes


def _splits_by(path, meaning, folders, need_test):
    "Split -> its folder, and notes on other names than train, valid and test"
    found = {}
    for split in SPLITS:
        of_split = [d for d in folders if meaning(d.name) == split]
        if len(of_split) > 1:
            raise InputError(f'folder {path}: {_names(of_split)} all mean {split}; keep one of them, or list '
                             'the videos in a csv file')
        if of_split: found[split] = of_split[0]
    if 'train' not in found or len(found) < 2:
        missing = 'train' if 'train' not in found else 'test'
        raise InputError(f'folder {path} has {_names(found.values())}, but no {missing} folder with class folders in '
                         f'it; add one, or give {next(iter(found.values()))} to use it whole')
    notes = []
    if need_test and 'test' not in found:
        found['test'] = found.pop('valid')
        notes.append(f'test is the folder {as_markdown(found["test"].name)}, as there is no other to test on')
    notes += [f'{split} is the folder {as_markdown(d.name)}' for split, d in found.items()
              if split_of_name(d.name) is None]
    return found, notes


def _check_class_folders(path, folders, holding_folders):
    "Raise `InputError` for folders that were taken for classes and hold splits, or are a level above the classes"
    for folder in holding_folders:
        inner = {split_of_name(d.name) for d in _subfolders(folder)} - {None}
        if len(folders) == 1:
            raise InputError(f'folder {path} has videos in one folder only, {folder.name!r}; are the classes in it? '
                             f'Then give {folder}')
        if 'train' in inner and len(inner) > 1:
            raise InputError(f'folder {folder} has folders of splits in it; put them above the classes: '
                             f'{path}/train/{folder.name}')


# ---- notes

def _notes_on_unused(roots, others):
    "Notes on files and folders that are not in the table"
    notes = []
    loose = [f.name for root in roots for f in _loose_videos(root)]
    if loose: notes.append(f'videos outside class folders are not used: {len(loose)}, such as {as_markdown(loose[0])}')
    empty = [d.name for root in roots for d in _subfolders(root) if not _has_videos(d)]
    if empty: notes.append(f'folders {list_names(empty)} have no videos')
    if others: notes.append(f'files of other kinds are not used: {_count_suffixes(others)}')
    return notes


def _count_suffixes(files:Iterable[Path])->str:
    "The suffixes of files, the most frequent first, with their numbers"
    counts = Counter(f.suffix.lower() or 'no suffix' for f in files).most_common()
    text = ', '.join(f'{as_markdown(suffix)} ({n})' for suffix, n in counts[:8])
    return text if len(counts) <= 8 else f'{text} and {len(counts) - 8} more'


def _other_suffixes(others): return f'; it has files of other kinds: {_count_suffixes(others)}' if others else ''
