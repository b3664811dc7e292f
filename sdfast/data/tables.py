"""Tables of videos, read from class folders or from a csv file, and checked.

A table has the columns path, label, split and group; a `Task` is made from a table."""
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from ..errors import InputError
from .prepared import prepared_copies
from .splits import group_names
from .text import CONTROL, FORMULA, as_markdown, check_class_name, list_names
from .video import VideoFile

__all__ = ['VIDEO_SUFFIXES']

# Suffixes of files that are taken for videos in class folders
VIDEO_SUFFIXES = {
    '.3gp', '.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv'}
SPLIT_FOLDERS = dict(train='train', valid='valid', val='valid', test='test')  # name of a folder -> split


def parse_flag(value:bool|int|str)->bool:
    "Read a boolean option, which is text in a task's spec"
    return value.lower() in ('1', 'true', 'yes') if isinstance(value, str) else bool(value)


# ---- class folders

def read_folder(path:Path, group:str|None)->tuple[pd.DataFrame, bool]:
    "Table of the videos in class folders, and whether there are folders train and test; if not, all are 'train'"
    below = {d.name.lower():d for d in path.iterdir() if d.is_dir()}
    split_folders = {split:below[name] for name, split in SPLIT_FOLDERS.items() if name in below}
    is_split = {'train', 'test'} <= set(split_folders)
    if not is_split: split_folders = {'train': path}
    rows = []
    for split, root in split_folders.items():
        for class_folder in sorted(d for d in root.iterdir() if d.is_dir()):
            rows += [(str(f), class_folder.name, split) for f in _videos(class_folder)]
    if not rows:
        raise InputError(f'folder {path} has no videos in class folders (looked for {path}/CLASS/*.mp4 and the like)')
    df = pd.DataFrame(rows, columns=['path', 'label', 'split'])
    df['group'] = group_names([os.path.relpath(p, path) for p in df.path], group)
    df['path'] = df.path.map(os.path.abspath)
    return df, is_split


def _videos(folder):
    return [f for f in sorted(folder.rglob('*')) if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file()]


# ---- csv files

def read_csv(path:Path, train:str, test:str|None, valid:str|None, outside:bool)->tuple[pd.DataFrame, list[str]]:
    "Table of the videos listed in a csv file, and notes on its splits; see `Task.from_csv`"
    try: table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as e: raise InputError(f'{path} cannot be read as csv: {e}') from None
    for column in ('path', 'label', 'split'):
        if column not in table: raise InputError(f'{path} has no column {column!r}; it has {list_names(table.columns)}')
    names = list(dict.fromkeys(table.split))
    split_of = _split_of(path, names, train, test, valid)
    notes = _split_notes(names, split_of)
    table = table[table.split.isin(split_of)].reset_index(drop=True)
    if not outside: _check_inside(path, table.path)
    df = pd.DataFrame(dict(path=[os.path.abspath(path.parent/p) for p in table.path], label=table.label,
                           split=table.split.map(split_of), group=table.group if 'group' in table else table.path))
    return df, notes


def _split_of(path, names, train, test, valid):
    "Split name in the file -> 'train', 'valid' or 'test', for the names that are used"
    if test is None: test = 'test' if 'test' in names else '+'.join(s for s in names if s.startswith('test'))
    if valid is None: valid = '+'.join(s for s in names if s in ('valid', 'val'))
    split_of = {}
    for split, asked in dict(train=train, valid=valid, test=test).items():
        for name in asked.split('+'):
            if not name: continue
            if name not in names:
                raise InputError(f'{path} has no split {name!r} to use as {split}; it has {list_names(names)}')
            if name in split_of: raise InputError(f'split {name!r} is named both as {split_of[name]} and as {split}')
            split_of[name] = split
    if 'test' not in split_of.values():
        raise InputError(f'{path} has no split whose name begins with test; say which to test on with test=NAME. '
                         f'It has {list_names(names)}')
    return split_of


def _split_notes(names, split_of):
    "Notes on splits that have other names in the file, and on unused splits"
    notes = []
    for split in ('train', 'valid', 'test'):
        own = [as_markdown(name) for name in names if split_of.get(name) == split]
        if own and split_of.get(split) != split: notes.append(f'{split} is {" + ".join(own)}')
    unused = [name for name in names if name not in split_of]
    if unused: notes.append(f'splits {list_names(unused)} are not used')
    return notes


def _check_inside(path, files):
    outside = [f for f in files if not os.path.isabs(f) and os.path.normpath(f).split(os.sep)[0] == os.pardir]
    if not outside: return
    raise InputError(f'{path} names {len(outside)} files outside its own folder, such as {outside[0]!r}: '
                     'write absolute paths, or allow it with outside=1')


# ---- checks

def check_classes(task:str, labels:pd.Series)->None:
    "Raise `InputError` unless there are two classes or more with at least two videos each"
    counts = labels.value_counts()
    single = counts[counts < 2]
    if len(single):
        raise InputError(f'{task}: class {single.index[0]!r} has one clip that can be decoded; '
                         'each class needs at least two, one to learn and one to test')
    if len(counts) < 2:
        raise InputError(f'{task}: there is only one class, {counts.index[0]!r}; at least two are needed')


def check_names(task:str, labels:pd.Series)->None:
    "Raise `InputError` for a class name that is not safe in csv files, notes and titles"
    for label in labels.unique(): check_class_name(task, label)


def use_prepared_copies(df:pd.DataFrame)->tuple[pd.DataFrame, int|None, list[str]]:
    "Replace paths by those of prepared copies; returns the table, the copies' short side in pixels, and a note"
    if not len(df): return df, None, []
    copies, size, folder = prepared_copies(df.path)
    if not copies: return df, None, []
    note = (f'{len(copies)} of {len(df)} videos are replaced by their prepared copies in {as_markdown(str(folder))}, '
            f'short side {size} pixels')
    return df.assign(path=df.path.map(lambda p: copies.get(p, p))), size, [note]


def drop_undecodable(df:pd.DataFrame)->tuple[pd.DataFrame, dict[str, str]]:
    "The table without unusable files, and the reason for each of those"
    with ThreadPoolExecutor() as pool: problems = list(pool.map(_problem, df.path))
    skipped = {_printable(path):why for path, why in zip(df.path, problems) if why}
    return df[[why is None for why in problems]], skipped


def _problem(path):
    "Why a video cannot be used, or `None`"
    if CONTROL.search(path): return 'its path contains a control character; rename it'
    if FORMULA.search(path):
        return 'its path has a formula after a semicolon, which spreadsheets would run in scores.csv; rename it'
    return VideoFile(path).problem()


def _printable(path): return repr(path)[1:-1] if CONTROL.search(path) else path


def shared_groups(df:pd.DataFrame)->Sequence[str]:
    "Groups that are in both train and test, sorted"
    return sorted(set(df.group[df.split == 'train']) & set(df.group[df.split == 'test']))


def missing_classes(df:pd.DataFrame, classes:Sequence[str], split:str)->list[str]:
    "Classes without a clip in a split"
    present = set(df.label[df.split == split])
    return [c for c in classes if c not in present]
