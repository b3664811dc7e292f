"""Checks of tables of videos. A table has the columns path, label, split and group; a `Task` is made from it.

What is impossible raises an `InputError`; what is doubtful becomes a note."""
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError
from ..runtime import store
from .folders import SPLITS
from .parallel import map_in_threads
from .prepared import prepared_copies
from .text import as_markdown, check_class_name, list_names

__all__ = ['clean_table']

COLUMNS = 'path', 'label', 'split', 'group'
BLANK = {'', 'nan', 'none', 'null', 'n/a', '<na>', 'nat'}  # what programs write into empty cells of a group
ENDS = 2**16  # bytes at the start and end of files that are compared first
INTEGER = re.compile(r'[+-]?\d+')


def parse_flag(value:bool|int|str)->bool:
    "Read a boolean option, which is text in a task's spec"
    if not isinstance(value, str): return bool(value)
    if value.lower() in ('1', 'true', 'yes', 'on'): return True
    if value.lower() in ('0', 'false', 'no', 'off', ''): return False
    raise InputError(f'{value!r} is neither 1 (yes) nor 0 (no)')


def parse_share(value:float|str, what:str)->float:
    "Read a number between 0 and 1, which may be text in a task's spec"
    try: number = float(value)
    except (TypeError, ValueError): number = np.nan
    if not 0 < number < 1: raise InputError(f'{what} must be between 0 and 1, not {value}')
    return number


def parse_integer(value:int|str, what:str)->int:
    "Read a whole number, which may be text in a task's spec"
    try: return int(value)
    except (TypeError, ValueError): raise InputError(f'{what} must be a whole number, not {value!r}') from None


# ---- cells

def clean_table(
    name:str, # Name of the task, for messages
    df:pd.DataFrame, # Columns path, label, split and group, one row per video
    files:bool=True, # Find out which paths mean the same file
)->tuple[pd.DataFrame, list[str]]: # A new table, and notes on what is doubtful in it, as Markdown
    """Check the cells of a table: text, a known split, one label for each file, a group for each row.

    Labels may be whole numbers. A row with a blank group gets one of its own, and rows of the same file are in the same
    group, however their paths are spelled or linked. Raises `InputError`."""
    missing = [column for column in COLUMNS if column not in df]
    if missing: raise InputError(f'{name}: the table has no column {missing[0]!r}; it needs {", ".join(COLUMNS)}')
    if not len(df): raise InputError(f'{name}: there are no videos')
    df = df.reset_index(drop=True)
    df = df.assign(**{column:[_as_text(name, column, value) for value in df[column]] for column in COLUMNS})
    unknown = [split for split in dict.fromkeys(df.split) if split not in SPLITS]
    if unknown: raise InputError(f'{name}: unknown split {unknown[0]!r}; use {", ".join(SPLITS)}')
    notes = _label_notes(df.label.unique())
    blank = df.group.str.strip().str.lower().isin(BLANK)
    if blank.any():
        df['group'] = df.group.where(~blank, df.path)
        notes.append(f'videos with a blank group: {blank.sum()}; each is a group of its own')
    if not files: return df, notes
    df['group'], more_notes = _join_files(name, df)
    return df, notes + more_notes


def _as_text(name, column, value):
    "A cell as text. Raises `InputError` if it is none"
    if isinstance(value, str): return str(value)
    if column == 'path' and isinstance(value, Path): return str(value)
    if column == 'group' and pd.api.types.is_scalar(value) and pd.isna(value): return ''
    # blank cells turn a column of whole numbers into floats
    is_whole = isinstance(value, (int, np.integer)) or column == 'group' and isinstance(value, float) and value % 1 == 0
    if column in ('label', 'group') and is_whole and not isinstance(value, bool): return str(int(value))
    raise InputError(f'{name}: {column} {value!r} is not text; convert the column, for instance with astype(str)')


# ---- labels

def _label_notes(labels:Iterable[str])->list[str]:
    "Notes on class names that look like the same one, and on numbers"
    notes = []
    first_like: dict[str, str] = {}
    for label in labels:
        like = first_like.setdefault(_plain_label(label), label)
        if like != label:
            notes.append(f'classes {_quoted(like)} and {_quoted(label)} differ only by case, spaces or the like')
    if all(INTEGER.fullmatch(label) for label in labels):
        as_text = sorted(labels)
        swapped = [(a, b) for a, b in zip(as_text, as_text[1:]) if int(a) > int(b)]
        if swapped: notes.append(f'class names are numbers, which are sorted as text: {swapped[0][0]} is before '
                                 f'{swapped[0][1]}')
    return notes


def _quoted(label): return f"'{as_markdown(label)}'"


def _plain_label(label):
    "A class name without what people write differently: case, kinds of letters, spaces, zeros before a number"
    plain = unicodedata.normalize('NFKC', label).casefold().strip()
    if INTEGER.fullmatch(plain): return str(int(plain))
    return re.sub(r'(?<=[^\W\d_])[\s_]+(?=[^\W\d_])', '', re.sub(r'\s+', ' ', plain))


# ---- files

def file_identity(path:str|Path)->tuple:
    "The same for all spellings of and links to a file"
    try: stat = os.stat(path)
    except (OSError, ValueError): return (os.path.abspath(path),)
    return (stat.st_dev, stat.st_ino, stat.st_size) if stat.st_ino else (os.path.realpath(path),)


def distinct_files(paths:Iterable[Path])->list[Path]:
    "The paths of a file's first name each"
    first: dict[tuple, Path] = {}
    for path in paths: first.setdefault(file_identity(path), path)
    return list(first.values())


def _join_files(name, df):
    "Groups in which rows of the same file are together, and a note. Raises `InputError` for a file with two labels"
    files = pd.Series([file_identity(p) for p in df.path], df.index)
    repeated = df[files.duplicated(keep=False)]
    if not len(repeated): return df.group, []
    for _, rows in repeated.groupby(files[repeated.index], sort=False):
        first, second = rows.iloc[0], rows[rows.label != rows.label.iloc[0]]
        if len(second):
            raise InputError(f'{name}: {first.path} and {second.path.iloc[0]} are one file with two labels, '
                             f'{first.label!r} and {second.label.iloc[0]!r}; each video needs one')
    return join_groups(df.group, files), _repetition_notes(df, files)


def join_groups(
    groups:pd.Series, # Group of each row
    things:pd.Series, # What each row is of, such as a file
)->pd.Series: # Group of each row
    "Groups in which rows of the same thing are together"
    group_of: dict[str, str] = {}  # group -> the group that it is part of
    for _, own in groups[things.duplicated(keep=False)].groupby(things, sort=False):
        first, *others = dict.fromkeys(_root(group_of, g) for g in own)
        group_of |= dict.fromkeys(others, first)
    return groups.map(lambda g: _root(group_of, g))


def _repetition_notes(df, files):
    notes = []
    for split in SPLITS:
        own = files[df.split == split]
        again = df.path[own.index[own.duplicated()]]
        if len(again):
            notes.append(f'rows of {split} that repeat a video: {len(again)}, such as {_file_names(again[:1])}')
    return notes


def _root(group_of, group):
    while group in group_of: group = group_of[group]
    return group


def overlap_notes(df:pd.DataFrame)->list[str]:
    "Notes on videos, or exact copies of videos, that are in two splits, and on copies with two labels"
    files = pd.Series([file_identity(p) for p in df.path], df.index)
    notes = _overlaps(df, files, 'videos in both {a} and {b}')
    df = df[~files.duplicated()]
    contents = _equal_contents(df.path)
    copies = df.loc[contents.index]
    notes += _overlaps(copies, contents, 'exact copies in both {a} and {b}')
    n_labels = copies.label.groupby(contents).nunique()
    if not (n_labels > 1).any(): return notes
    paths = copies.path[contents == n_labels.idxmax()]
    return [*notes, f'exact copies with different labels: {(n_labels > 1).sum()}, such as {_file_names(paths)}']


def _overlaps(df, keys, text):
    "A note for each pair of splits that have keys in common"
    notes = []
    for a, b in (('train', 'test'), ('train', 'valid'), ('valid', 'test')):
        both = df.path[(df.split == b) & keys.isin(set(keys[df.split == a]))]
        if len(both): notes.append(f'{text.format(a=a, b=b)}: {len(both)}, such as {_file_names(both[:1])}')
    return notes


def _file_names(paths): return list_names(os.path.basename(p) for p in paths[:2])


def _equal_contents(paths):
    "Digests of the files whose content equals that of another one. Only files of the same size are read"
    sizes = pd.Series([_size(p) for p in paths], paths.index)
    alike = paths[sizes.duplicated(keep=False) & (sizes > 0)]
    for read in (_ends, store.digest):  # few files of the same size have the same first and last bytes
        keys = pd.Series(list(map_in_threads(read, alike)), alike.index, dtype=object)
        alike = alike[keys.duplicated(keep=False)]
    return keys[alike.index]


def _size(path):
    try: return os.path.getsize(path)
    except OSError: return -1


def _ends(path):
    "Size of a file, and a hash of its first and last bytes"
    with open(path, 'rb') as f:
        first = f.read(ENDS)
        f.seek(max(0, os.path.getsize(path) - ENDS))
        return os.path.getsize(path), hashlib.sha256(first + f.read(ENDS)).digest()


# ---- tasks

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


def shared_groups(df:pd.DataFrame, a:str='train', b:str='test')->list[str]:
    "Groups that are in two splits, sorted"
    return sorted(set(df.group[df.split == a]) & set(df.group[df.split == b]))


def missing_classes(df:pd.DataFrame, classes:Sequence[str], split:str)->list[str]:
    "Classes without a clip in a split"
    present = set(df.label[df.split == split])
    return [c for c in classes if c not in present]
