"UCF101 and HMDB51 by their official lists of train and test videos."
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from ..errors import InputError
from .checked import DROPPED
from .tables import parse_flag
from .task import Task, check_split, make_task

__all__ = ['ucf101', 'hmdb51']

# Numbers of train and test videos of folds 1 to 3
OFFICIAL = dict(ucf101=((9537, 3783), (9586, 3734), (9624, 3696)), hmdb51=((3570, 1530),)*3)
# Names of folders that may have the lists and the class folders, below the user's folder; it may also have them itself
LIST_FOLDERS = dict(ucf101=('ucfTrainTestlist', 'ucf101'), hmdb51=('testTrainMulti_7030_splits', 'hmdb51'))
VIDEO_FOLDERS = dict(ucf101=('UCF-101', 'UCF101', 'ucf101'), hmdb51=('hmdb51', 'hmdb51_org', 'HMDB51'))
# File names in UCF101: v_CLASS_gGROUP_cCLIP.avi
UCF_NAME = re.compile(r'.*(?P<group>_g\d+)_c\d+\.\w+$')
# File names in HMDB51: recording, class, visible body part, camera motion, number of people, view, quality, clip
HMDB_NAME = r'(?P<source>.*?)_?{label}_[fhul]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:goo|med|bad)_\d+\.avi'
ALLOW_MISSING = 'To go on without them: --allow-missing (allow_missing=True)'


@dataclass
class Lists:
    "The content of a data set's official lists"
    name: str  # 'ucf101' or 'hmdb51'
    fold: int
    classes: Sequence[str]  # class names in official order
    rows: list  # (label, file name, split, group) of each video


def ucf101(
    path:str|Path, # Has the class folders, or a folder UCF-101 that has them
    fold:int=1, # Official split: 1, 2 or 3
    splits:str|Path|None=None, # Folder of the official lists; by default looked for in and next to `path`
    allow_missing:bool=False, # Use the videos that exist, and say so in `notes`, instead of raising `InputError`
    damaged:str='keep', # See `make_task`
)->Task: # Split into train and test
    """UCF101 (Soomro et al. 2012) by its official lists: 9,537 train and 3,783 test videos of 101 classes in fold 1.

    Classes are in the order of classInd.txt. A group, 25 a class, was filmed on one occasion."""
    path = _data_folder('ucf101', path)
    fold = _fold('ucf101', fold)
    folder = _list_folder('ucf101', path, splits, lambda name: name == 'classInd.txt')
    number_of = _class_numbers(folder/'classInd.txt')
    rows = []
    for split in ('train', 'test'):
        file = folder/f'{split}list{fold:02}.txt'
        for line in _lines(file):
            name, *number = line.split()
            label, _, name = name.partition('/')  # not from the file's name: v_HandStandPushups is in HandstandPushups
            if label not in number_of or number not in ([], [str(number_of[label])]):
                raise InputError(f'{file}: {line!r} does not fit classInd.txt')
            match = UCF_NAME.match(name)
            rows.append((label, name, split, f'{label}{match["group"]}' if match else name))
    lists = Lists('ucf101', fold, sorted(number_of, key=number_of.get), rows)
    return _listed_task(lists, path, parse_flag(allow_missing), damaged)


def hmdb51(
    path:str|Path, # Has the class folders, or a folder hmdb51 that has them
    fold:int=1, # Official split: 1, 2 or 3
    splits:str|Path|None=None, # Folder of the official lists; by default looked for in and next to `path`
    allow_missing:bool=False, # Use the videos that exist, and say so in `notes`, instead of raising `InputError`
    damaged:str='keep', # See `make_task`
)->Task: # Split into train and test
    """HMDB51 (Kuehne et al. 2011) by its official lists: 70 train and 30 test videos of each of 51 classes.

    The other videos are unused. Classes are in alphabetical order, as there is no official one. The clips of a class
    from one film or recording are a group."""
    path = _data_folder('hmdb51', path)
    fold = _fold('hmdb51', fold)
    folder = _list_folder('hmdb51', path, splits, re.compile(r'.+_test_split\d\.txt').fullmatch)
    files = {}
    for file in folder.iterdir():
        match = re.fullmatch(rf'(.+)_test_split{fold}\.txt', file.name)
        if match: files[match[1]] = file
    if not files: raise InputError(f'hmdb51: {folder} has no lists of fold {fold}')
    rows = [row for label, file in sorted(files.items()) for row in _hmdb_rows(label, file)]
    return _listed_task(Lists('hmdb51', fold, sorted(files), rows), path, parse_flag(allow_missing), damaged)


def _hmdb_rows(label, file):
    "Rows of one class: its list has a file name and 0 (unused), 1 (train) or 2 (test) on each line"
    pattern = re.compile(HMDB_NAME.format(label=re.escape(label)))
    split_of = {'1': 'train', '2': 'test'}
    rows = []
    for line in _lines(file):
        name, tag = ['', *line.rsplit(maxsplit=1)][-2:]
        if tag not in ('0', '1', '2') or not name:
            raise InputError(f'{file}: {line!r} is not a file name and 0, 1 or 2')
        if tag == '0': continue
        match = pattern.fullmatch(name)
        rows.append((label, name, split_of[tag], f'{label}/{match["source"] if match else name}'))
    return rows


# ---- lists

def _data_folder(name:str, path:str|Path)->Path:
    if not Path(path).is_dir(): raise InputError(f'{name}: folder {path} does not exist')
    return Path(path)


def _fold(name, fold):
    if str(fold) not in ('1', '2', '3'): raise InputError(f'{name} has folds 1, 2 and 3, not {fold}')
    return int(fold)


def _list_folder(name:str, path:Path, splits:str|Path|None, is_list:Callable)->Path:
    "The folder that has the official lists"
    roots = [path, path/'splits', path.parent] if splits is None else [Path(splits)]
    for root in roots:
        for folder in (root, *(root/below for below in LIST_FOLDERS[name])):
            if folder.is_dir() and any(is_list(f.name) for f in folder.iterdir()): return folder
    raise InputError(f'{name}: no official split lists in {roots[0]}; say where they are with --splits (splits=FOLDER)')


def _lines(file):
    if not file.is_file(): raise InputError(f'the list {file} does not exist')
    lines = [line.strip() for line in file.read_text(encoding='utf-8').splitlines()]
    return [line for line in lines if line]


def _class_numbers(file):
    "Class -> its number in classInd.txt"
    pairs = [line.split() for line in _lines(file)]
    well_formed = all(len(p) == 2 and p[0].isdigit() for p in pairs)
    if not well_formed or any(len(set(column)) < len(pairs) for column in zip(*pairs)):
        raise InputError(f'{file} is not a list of numbers and class names')
    return {label:int(number) for number, label in pairs}


# ---- videos

def _listed_task(lists, path, allow_missing, damaged):
    "Make the `Task` of the listed videos, which must be complete unless missing ones are allowed"
    title = f'{lists.name} fold {lists.fold}'
    df = pd.DataFrame(lists.rows, columns=['label', 'file', 'split', 'group'])
    df.insert(0, 'path', _find_videos(lists, path, df))
    notes = []
    official = OFFICIAL[lists.name][lists.fold - 1]
    listed = tuple(int((df.split == split).sum()) for split in ('train', 'test'))
    if listed != official:
        note = (f'its lists name {listed[0]} train and {listed[1]} test videos, '
                f'not the official {official[0]} and {official[1]}')
        if not allow_missing: raise InputError(f'{title}: {note}')
        notes.append(note)

    gone = df[df.path.isna()]
    if len(gone):
        note = f'{len(gone)} of {len(df)} videos are missing'
        first = ', '.join(f'{label}/{file}' for label, file in gone[['label', 'file']].values[:5])
        message = f'{title}: {note} in {path}, the first: {first}'
        if len(gone) == len(df): raise InputError(message)
        if not allow_missing: raise InputError(f'{message}. {ALLOW_MISSING}')
        notes.append(f'{note} ({(gone.split == "train").sum()} train, {(gone.split == "test").sum()} test)')

    found = df.dropna(subset='path').drop(columns='file')
    found['path'] = found.path.map(os.path.abspath)
    task = make_task(title, found, notes, classes=lists.classes, damaged=damaged)
    undecodable = {p:why for p, why in task.skipped.items() if not why.startswith(DROPPED)}
    if undecodable:
        note = f'{len(undecodable)} of {len(df)} videos cannot be decoded'
        first = ', '.join(f'{p} ({why})' for p, why in list(undecodable.items())[:5])
        if not allow_missing: raise InputError(f'{title}: {note}, the first: {first}. {ALLOW_MISSING}')
        task = replace(task, notes=(*task.notes, note))
    return check_split(task)


def _find_videos(lists, path, df):
    "The path of each row's video, or `None`. Copies of the data differ in case, and may have been transcoded to mp4"
    files_of = {}
    for root in (path, *(path/below for below in VIDEO_FOLDERS[lists.name])):
        folders = _listing(root)
        files_of = {c:_listing(Path(folders[c.lower()])) for c in lists.classes if c.lower() in folders}
        if files_of: break
    paths = []
    for label, file in df[['label', 'file']].values:
        files = files_of.get(label, {})
        stem = os.path.splitext(file.lower())[0]
        paths.append(files.get(f'{stem}.avi') or files.get(f'{stem}.mp4'))
    return paths


def _listing(folder):
    "Lower-case name -> path of each entry of a folder; no two official names differ only in case"
    if not folder.is_dir(): return {}
    return {entry.name.lower():entry.path for entry in sorted(os.scandir(folder), key=lambda e: e.name)}
