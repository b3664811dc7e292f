"Tables of videos in csv files: which columns, which splits, which files."
import csv
import os
import re
from pathlib import Path

import pandas as pd

from ..errors import InputError
from .folders import SPLITS, split_of_name
from .text import as_markdown, list_names

__all__ = ['read_video_csv']

SEGMENT = re.compile(r'(^|[^a-z])(start|end|begin|stop|onset|offset)([^a-z]|$)')  # columns that give parts of videos


def read_video_csv(
    path:Path, # An existing file
    train:str, # Split names to train on, joined by `+`, see `Task.from_csv`
    test:str|None, # Split names to test on
    valid:str|None, # Split names to choose strengths on
    outside:bool, # Allow relative paths that lead out of the csv's folder
)->tuple[pd.DataFrame, list[str]]: # Table with columns path, label, split and group, and notes
    "Read the videos that a csv file lists. Raises `InputError` for tables that are not read as they were meant"
    header, rows = _read_rows(path)
    table = pd.DataFrame({name:[row[i] for row in rows] for name, i in _find_columns(path, header).items()}, dtype=str)
    for column in table.columns.difference(['path']): table[column] = table[column].map(_without_spaces)
    names = list(dict.fromkeys(table.split))
    split_of = _split_of(path, names, train, test, valid)
    notes = _split_notes(table.split, names, split_of) + _segment_notes(header)
    table = table[table.split.isin(split_of)].reset_index(drop=True)
    files = [_locate(path.parent, p) for p in table.path]
    if not outside: _check_inside(path, files)
    df = pd.DataFrame(dict(path=[_absolute(path.parent, p) for p in files], label=table.label,
                           split=table.split.map(split_of), group=table.group if 'group' in table else table.path))
    return df, notes


# ---- cells

def _read_rows(path):
    "Header and rows of a file, all with as many cells as the header"
    try:
        with open(path, newline='', encoding='utf-8-sig') as f:
            spaced = re.search(r',[ \t]', f.readline())
            f.seek(0)
            reader = csv.reader(f, strict=True, skipinitialspace=bool(spaced))
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError: raise InputError(f'{path} is not text in UTF-8; save it as "CSV UTF-8"') from None
    except csv.Error as e: raise InputError(f'{path} cannot be read as csv: line {reader.line_num}: {e}') from None
    if not rows: raise InputError(f'{path} is empty; its first line should be path,label,split')
    header = [name.strip() for name in rows[0][1]]
    return header, [_fit_row(path, header, line, row) for line, row in rows[1:]]


def _fit_row(path, header, line, row):
    extra = [cell for cell in row[len(header):] if cell.strip()]
    if extra or len(row) < len(header):
        raise InputError(f'{path}: line {line} has {len(row)} cells, the header {len(header)}; a name with a comma '
                         f'must be in quotes: {",".join(row)[:80]!r}')
    return row[:len(header)]


def _without_spaces(cell): return cell.strip(' ') or cell  # a blank name is refused as it was written


def _find_columns(path, header):
    "Column -> its position, for the columns that are used; capital letters do not matter"
    lower = [name.lower() for name in header]
    found = {}
    for column in ('path', 'label', 'split', 'group'):
        names = header if column in header else lower
        if names.count(column) > 1: raise InputError(f'{path} has {names.count(column)} columns {column!r}')
        if column in names: found[column] = names.index(column)
        elif column != 'group':
            hint = '; cells must be separated by commas' if re.search('[;\t|]', ''.join(header)) else ''
            raise InputError(f'{path} has no column {column!r}; it has {list_names(header)}{hint}')
    return found


def _segment_notes(header):
    parts = [name for name in header if SEGMENT.search(name.lower())]
    if not parts: return []
    return [f'columns {list_names(parts)} are not used: clips are taken from whole files']


# ---- splits

def _split_of(path, names, train, test, valid):
    "Split name in the file -> 'train', 'valid' or 'test', for the names that are used"
    asked = dict(train=train, valid=valid, test=test)
    if train == 'train': asked['train'] = _usual_names(names, 'train') or train
    if valid is None: asked['valid'] = _usual_names(names, 'valid')
    if test is None:
        asked['test'] = _usual_names(names, 'test') or '+'.join(s for s in names if s.lower().startswith('test'))
    split_of = {}
    for split, text in asked.items():
        for name in text.split('+'):
            if not name: continue
            if name not in names:
                raise InputError(f'{path} has no split {name!r} to use as {split}; it has {list_names(names)}')
            if name in split_of: raise InputError(f'split {name!r} is named both as {split_of[name]} and as {split}')
            split_of[name] = split
    for split in ('train', 'test'):
        if split not in split_of.values():
            raise InputError(f'{path} has no split whose name begins with {split}; say which to use with '
                             f'{split}=NAME. It has {list_names(names)}')
    return split_of


def _usual_names(names, split):
    "The names that mean a split, joined by `+`"
    return '+'.join(s for s in names if split_of_name(s) == split)


def _split_notes(column, names, split_of):
    "Notes on splits that have other names in the file, and on unused splits"
    notes = []
    for split in SPLITS:
        own = [name for name in names if split_of.get(name) == split]
        if own not in ([], [split]): notes.append(f'{split} is {" + ".join(map(as_markdown, own))}')
    unused = [name for name in names if name.strip() and name not in split_of]
    if unused: notes.append(f'splits {list_names(unused)} are not used')
    blank = int((column.str.strip() == '').sum())
    if blank: notes.append(f'rows without a split are not used: {blank}')
    return notes


# ---- files

def _locate(folder, name):
    "A path as it is written, or without spaces around it if only that exists"
    bare = name.strip()
    return bare if bare != name and not os.path.lexists(folder/name) and os.path.lexists(folder/bare) else name


def _absolute(folder, name):
    "The absolute path, normalised unless `..` follows a link to a folder, which leads elsewhere than it reads"
    joined = os.path.join(os.path.abspath(folder), name)
    plain = os.path.normpath(joined)
    if os.pardir not in Path(name).parts or os.path.realpath(joined) == os.path.realpath(plain): return plain
    return os.path.realpath(joined)


def _check_inside(path, files):
    outside = [f for f in files if not os.path.isabs(f) and os.path.normpath(f).split(os.sep)[0] == os.pardir]
    if not outside: return
    raise InputError(f'{path} names {len(outside)} files outside its own folder, such as {outside[0]!r}: '
                     'write absolute paths, or allow it with outside=1')
