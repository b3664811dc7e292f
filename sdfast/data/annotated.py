"""Kinetics and Something-Something v2 by their official annotation files.

Both are read from a folder that has the annotations and, at any depth, the videos. The clips of one source are never on
both sides of a split: those in train whose source is also in valid or test are left out."""
import csv
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..errors import InputError
from .folders import find_videos, split_in_name, split_of_name
from .splits import without_leaks
from .task import Task, check_split, make_task
from .text import as_markdown

__all__ = ['kinetics', 'ssv2']

ANNOTATIONS = 'annotations', 'labels'  # names of folders that may have them
OF_SEGMENTS = {'youtube_id', 'time_start', 'time_end'}  # columns of Kinetics' lists
SPLITS_OF_KINETICS = dict(validate='valid')  # in addition to the usual names


def kinetics(
    path:str|Path, # Has the videos, and the official csv files or a folder `annotations` of those
    # Official part to test on: 'val' or 'test'; by default test, if its list has classes and its videos are there
    test:str|None=None,
    annotations:str|Path|None=None, # Folder of the csv files, if it is another one
    damaged:str='keep', # See `make_task`
)->Task: # Split as the lists say; without a valid part if the official one is the test part
    """Kinetics-400, -600 or -700 (Kay et al. 2017) by its official csv files: label, youtube_id, time_start, time_end,
    split.

    Files are named `ID_000010_000020.mp4` or `ID.mp4`, and may be in folders. Videos that are gone from YouTube are
    missing in every copy: they are counted, in `notes` and a warning. Groups are YouTube's videos."""
    if test not in (None, 'val', 'test'): raise InputError(f"kinetics: test must be val or test, not {test!r}")
    folder = _existing('kinetics', path)
    df = _segments(_annotation_folders('kinetics', folder, annotations))
    found = _find_files(folder)
    df['path'] = [_first_of(found, f'{row.group}_{row.start:06d}_{row.end:06d}', row.group) for row in df.itertuples()]
    labelled = (df.split == 'test') & (df.label != '')
    if test is None: test = 'test' if df.path[labelled].notna().any() else 'val'
    if test == 'test' and not labelled.any():
        raise InputError('kinetics: the list of the test part has no classes; leave test out, or take test=val')
    return _listed_task(f'kinetics:{path}', df, test, folder, damaged=damaged)


def ssv2(
    path:str|Path, # Has the videos, and the official json files or a folder `labels` or `annotations` of those
    # Official part to test on: 'val', as in publications, or 'test', with test-answers.csv; then val is the valid part
    test:str='val',
    annotations:str|Path|None=None, # Folder of the json files, if it is another one
    damaged:str='keep', # See `make_task`
)->Task: # Split as the lists say; without a valid part if the official one is the test part
    """Something-Something v2 (Goyal et al. 2017) by its official files: labels.json, train.json, validation.json, and
    test-answers.csv.

    Classes are templates without brackets, in official order. Files are named `ID.webm`, or have another suffix, and
    may be in folders. The lists do not say which videos are of one person: each is a group."""
    if test not in ('val', 'test'): raise InputError(f'ssv2: test must be val or test, not {test!r}')
    folder = _existing('ssv2', path)
    roots = _annotation_folders('ssv2', folder, annotations)
    classes = _templates(_named(roots, 'labels.json'))
    rows = []
    for split, name in dict(train='train.json', valid='validation.json').items():
        file = _named(roots, name)
        rows += [(str(_field(file, r, 'id')), _plain(_field(file, r, 'template')), split) for r in _read_json(file)]
    if test == 'test': rows += _answers(_named(roots, 'test-answers.csv'))
    df = pd.DataFrame(rows, columns=['group', 'label', 'split'])
    unknown = sorted(set(df.label) - set(classes))
    if unknown: raise InputError(f'ssv2: {unknown[0]!r} is not in labels.json')
    found = _find_files(folder)
    df['path'] = [_first_of(found, number) for number in df.group]
    note = 'the lists name no persons: a valid part that is held out of train can show the same people'
    return _listed_task(f'ssv2:{path}', df, test, folder, [note], classes, damaged)


# ---- lists

def _existing(name, path):
    folder = Path(path).expanduser()
    if not folder.is_dir(): raise InputError(f'{name}: folder {folder} does not exist')
    return folder


def _annotation_folders(name, folder, annotations):
    if annotations is not None: return [_existing(name, annotations)]
    return [root for root in (folder, *(folder/below for below in ANNOTATIONS)) if root.is_dir()]


def _segments(roots):
    "Rows of all csv files that have the columns of Kinetics' lists: group, start, end, label, split"
    rows: dict[tuple, str] = {}
    for file in [f for root in roots for f in sorted(root.glob('*.csv'))]:
        for row in _read_segments(file):
            times = _second(file, row, 'time_start'), _second(file, row, 'time_end')
            key = row['youtube_id'].strip(), *times, _part(file, row)
            rows[key] = rows.get(key) or (row.get('label') or '').strip()
    if not rows:
        raise InputError(f'kinetics: no csv file with columns youtube_id, time_start and time_end in {roots[0]}; say '
                         'where they are with annotations=FOLDER')
    columns = ['group', 'start', 'end', 'split', 'label']
    df = pd.DataFrame([(*key, label) for key, label in rows.items()], columns=columns)
    return df.sort_values(['split', 'group', 'start'], kind='stable').reset_index(drop=True)


def _read_segments(file):
    try:
        with open(file, newline='', encoding='utf-8-sig') as f:
            reader = csv.DictReader(f, strict=True)
            return list(reader) if OF_SEGMENTS <= set(reader.fieldnames or ()) else []
    except (csv.Error, UnicodeDecodeError) as e: raise InputError(f'{file} cannot be read as csv: {e}') from None


def _second(file, row, column):
    try: return round(float(row[column]))
    except (TypeError, ValueError):
        raise InputError(f'{file}: {column} of {row["youtube_id"]} is no number: {row[column]!r}') from None


def _part(file, row):
    name = (row.get('split') or '').strip() or file.stem
    part = SPLITS_OF_KINETICS.get(name) or split_of_name(name) or split_in_name(name)
    if part is None: raise InputError(f'{file}: {name!r} is not train, validate or test')
    return part


def _named(roots, name):
    "The file of this name, or one that ends in it after a hyphen"
    for root in roots:
        for file in sorted(root.iterdir()):
            if file.name == name or file.name.endswith(f'v2-{name}'): return file
    raise InputError(f'ssv2: no {name} in {roots[0]}; say where it is with annotations=FOLDER')


def _read_json(file):
    try: found = json.loads(file.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as e: raise InputError(f'{file} cannot be read as json: {e}') from None
    return found


def _field(file, row, name):
    if isinstance(row, dict) and name in row: return row[name]
    raise InputError(f'{file} is not a list of videos with id and template: {str(row)[:60]}')


def _templates(file):
    "Class names in the order of their numbers"
    found = _read_json(file)
    if not isinstance(found, dict) or not all(str(v).isdigit() for v in found.values()):
        raise InputError(f'{file} does not give a number to each class')
    return [_plain(name) for name, _ in sorted(found.items(), key=lambda pair: int(pair[1]))]


def _plain(template): return str(template).replace('[', '').replace(']', '')


def _answers(file):
    rows = [line.split(';', 1) for line in file.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    bad = [row for row in rows if len(row) < 2]
    if bad: raise InputError(f'{file}: {bad[0][0]!r} is not a number, a semicolon and a class')
    return [(number.strip(), _plain(label.strip()), 'test') for number, label in rows]


# ---- files

def _find_files(folder):
    "Name without suffix -> the files of that name"
    found = defaultdict(list)
    for file in find_videos(folder)[0]: found[file.stem].append(file)
    return found


def _first_of(found, *names):
    "The first file of the first name that has one"
    return next((str(found[name][0].absolute()) for name in names if name in found), None)


def _listed_task(
    name:str, # Of the task
    df:pd.DataFrame, # Columns path (`None` for a missing file), label, split as in the lists, and group
    test:str, # The official part to test on, 'val' or 'test'
    folder:Path, # Of the videos, for errors
    notes:Sequence[str]=(), # What readers of results should know
    classes:Sequence[str]=(), # In official order
    damaged:str='keep', # See `make_task`
)->Task:
    "Make the task of the listed videos that are there"
    notes = list(notes)
    if test == 'val':
        df = df[df.split != 'test'].assign(split=lambda d: d.split.replace('valid', 'test'))
        notes.append('test is the official validation part')
    elif (df.split == 'test').any(): notes.append('test is the official test part')
    blank = df.label == ''
    if blank.any(): notes.append(f'videos without a class are not used: {blank.sum()}')
    df = df[~blank]
    gone = df[df.path.isna()]
    if len(gone) == len(df):
        first = f', such as {gone.group.iloc[0]}' if len(gone) else ''
        raise InputError(f'{name}: none of the {len(df)} listed videos is in {folder}{first}')
    if len(gone):
        counts = ', '.join(f'{n} of {split}' for split, n in gone.split.value_counts(sort=False).items())
        missing = f'{len(gone)} of {len(df)} listed videos are missing: {counts}'
        warnings.warn(f'{name}: {missing}')
        notes.append(as_markdown(missing))
    found, leaks = without_leaks(df.dropna(subset='path')[['path', 'label', 'split', 'group']])
    for leak in leaks: warnings.warn(f'{name}: {leak}')
    return check_split(make_task(name, found, [*notes, *leaks], classes=classes, damaged=damaged))
