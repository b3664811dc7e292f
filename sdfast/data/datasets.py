"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import os
import re
import shutil
import uuid
from dataclasses import replace
from functools import cache
from inspect import signature
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..runtime.store import home
from .digits import CLIPS, write_moving_digits
from .task import Task, check_split, make_task, split_groups
from .text import as_markdown

__all__ = ['folder', 'csv', 'ucf101', 'hmdb51', 'moving_digits', 'create_task']

VIDEO_SUFFIXES = {'.3gp', '.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv'}


def _groups(paths, rule):
    "Group of each path: what the first parenthesis of the regular expression `rule` matches, else the path itself"
    if rule is None: return list(paths)
    try: rule = re.compile(rule)
    except re.error as e: raise InputError(f'group rule {rule!r} is not a regular expression: {e}') from None
    if rule.groups < 1: raise InputError(f'group rule {rule.pattern!r} needs a parenthesis around the part that names the group')
    hits = [rule.search(p) for p in paths]
    if (miss := [p for p, h in zip(paths, hits) if h is None]):
        raise InputError(f'group rule {rule.pattern!r} does not match {len(miss)} of {len(paths)} paths, such as {miss[0]!r}')
    return ['/'.join(g for g in h.groups() if g is not None) for h in hits]


def folder(
    path:str|Path, # Has one folder for each class, or folders train, test and perhaps valid that do
    group:str|None=None, # Regular expression on the path below `path`; its parentheses name the group, e.g. `_g(\\d+)_`
    test_frac:float=.25, # Part of the clips to test on where there is no test folder
    seed:int=0, # Which part
)->Task: # Split into train, test and, with such a folder, valid
    "Videos in class folders. Without a group rule each file is a group of its own"
    path = Path(path)
    if not path.is_dir(): raise InputError(f'folder {path} does not exist')
    if not 0 < float(test_frac) < 1: raise InputError(f'test_frac must be between 0 and 1, not {test_frac}')
    below = {d.name.lower():d for d in path.iterdir() if d.is_dir()}
    split_dirs = {s:below[n] for n, s in dict(train='train', valid='valid', val='valid', test='test').items() if n in below}
    official = {'train', 'test'} <= set(split_dirs)
    roots = split_dirs if official else {'train': path}
    rows = [(str(f), c.name, split) for split, root in roots.items() for c in sorted(root.iterdir()) if c.is_dir()
            for f in sorted(c.rglob('*')) if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file()]
    if not rows: raise InputError(f'folder {path} has no videos in class folders (looked for {path}/CLASS/*.mp4 and the like)')
    df = pd.DataFrame(rows, columns=['path', 'label', 'split'])
    df['group'] = _groups([os.path.relpath(p, path) for p in df.path], group)
    df['path'] = df.path.map(os.path.abspath)
    task = make_task(f'folder:{path}', df)
    if official:
        both = set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split == 'test'])
        if both: raise InputError(f'{task.name}: group {sorted(both)[0]!r} is in both train and test')
    else:
        test = split_groups(task.df, float(test_frac), int(seed), f'{task.name}: cannot split into train and test')
        df = task.df.copy()
        df.loc[test, 'split'] = 'test'
        task = replace(task, df=df, notes=(*task.notes,
            f'test is {len(test)} clips split off by group, seed {seed}' if group else
            f'test is {len(test)} files split off at random, seed {seed}: recordings of one person or scene can be on both sides; name them with group=REGEX',))
    return check_split(task)


def csv(
    path:str|Path, # Columns path (absolute, or from the csv's own folder), label, split and, if there is one, group
    train:str='train', # Which split names to train on, joined by `+`
    test:str|None=None, # Which to test on, joined by `+`; by default 'test', else all that begin with it
    valid:str|None=None, # Which to choose strengths on; by default 'valid' or 'val', else part of train is held out later
    name:str|None=None, # Name of the task
    outside:bool=False, # Allow relative paths that lead out of the csv's folder, such as `../videos/a.mp4`
)->Task: # With the splits that were asked for
    "Videos listed in a csv file. Rows of other splits are left out"
    path = Path(path)
    if not path.is_file(): raise InputError(f'csv file {path} does not exist')
    try: table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as e: raise InputError(f'{path} cannot be read as csv: {e}') from None
    if missing := [c for c in ('path', 'label', 'split') if c not in table]:
        raise InputError(f'{path} has no column {missing[0]!r}; it has {", ".join(map(as_markdown, table.columns))}')
    splits = list(dict.fromkeys(table.split))
    if test is None: test = 'test' if 'test' in splits else '+'.join(s for s in splits if s.startswith('test'))
    if valid is None: valid = '+'.join(s for s in splits if s in ('valid', 'val'))
    part = {}
    for ours, theirs in dict(train=train, valid=valid, test=test).items():
        for s in filter(None, theirs.split('+')):
            if s not in splits: raise InputError(f'{path} has no split {s!r} to use as {ours}; it has {", ".join(map(as_markdown, splits))}')
            if s in part: raise InputError(f'split {s!r} is named both as {part[s]} and as {ours}')
            part[s] = ours
    if 'test' not in part.values(): raise InputError(f'{path} has no split whose name begins with test; say which to test on with test=NAME. It has {", ".join(map(as_markdown, splits))}')
    df = table[table.split.isin(part)].reset_index(drop=True)
    notes = [f'{ours} is {" + ".join(as_markdown(s) for s in splits if part.get(s) == ours)}' for ours in ('train', 'valid', 'test') if (ours, ours) not in part.items() and ours in part.values()]
    if left := [s for s in splits if s not in part]: notes.append(f'splits {", ".join(map(as_markdown, left))} are not used')
    climbs = [p for p in df.path if not os.path.isabs(p) and os.path.normpath(p).split(os.sep)[0] == os.pardir]
    if climbs and not _flag(outside):
        raise InputError(f'{path} names {len(climbs)} files outside its own folder, such as {climbs[0]!r}: write absolute paths, or allow it with outside=1')
    df = pd.DataFrame(dict(path=[os.path.abspath(path.parent/p) for p in df.path], label=df.label, split=df.split.map(part),
                           group=df.group if 'group' in df else df.path))
    task = make_task(name or f'csv:{path}', df, notes)
    both = set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split == 'test'])
    if both: task = replace(task, notes=(*task.notes, f'{len(both)} groups are in both train and test, as the file says'))
    return check_split(task)


# train and test videos of folds 1 to 3
OFFICIAL = dict(ucf101=((9537, 3783), (9586, 3734), (9624, 3696)), hmdb51=((3570, 1530),)*3)
GO_ON = 'To go on without them: --allow-missing (allow_missing=True)'
HMDB_NAME = r'(?P<source>.*?)_?{label}_[fhul]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:goo|med|bad)_\d+\.avi'


def ucf101(
    path:str|Path, # Has the class folders, or a folder UCF-101 that has them
    fold:int=1, # Official split: 1, 2 or 3
    splits:str|Path|None=None, # Folder of the official lists; by default looked for in and beside `path`
    allow_missing:bool=False, # Use the videos that are there, and say so in `notes`, instead of raising `InputError`
)->Task: # Split into train and test
    """UCF101 (Soomro et al. 2012) by its official lists: 9,537 train and 3,783 test videos of 101 classes in fold 1.

    Classes are in the order of classInd.txt. A group, 25 a class, is what was filmed at one occasion."""
    path, lists, fold = _official('ucf101', path, fold, splits, lambda n: n == 'classInd.txt', ('ucfTrainTestlist', 'ucf101'))
    pairs = [line.split() for line in _lines(lists/'classInd.txt')]
    if not all(len(p) == 2 and p[0].isdigit() for p in pairs) or any(len(set(column)) < len(pairs) for column in zip(*pairs)):
        raise InputError(f'{lists}/classInd.txt is not a list of numbers and class names')
    classes = {label:int(k) for k, label in pairs}
    rows = []
    for split in ('train', 'test'):
        for line in _lines(lists/f'{split}list{fold:02}.txt'):
            file, *number = line.split()
            label, _, name = file.partition('/')  # not from the file's name: v_HandStandPushups lies in HandstandPushups
            if label not in classes or number not in ([], [str(classes[label])]): raise InputError(f'{lists}/{split}list{fold:02}.txt: {line!r} does not fit classInd.txt')
            rows.append((label, name, split, re.sub(r'.*(_g\d+)_c\d+\.\w+$', rf'{label}\1', name)))
    return _listed('ucf101', path, fold, sorted(classes, key=classes.get), rows, ('UCF-101', 'UCF101', 'ucf101'), allow_missing)


def hmdb51(
    path:str|Path, # Has the class folders, or a folder hmdb51 that has them
    fold:int=1, # Official split: 1, 2 or 3
    splits:str|Path|None=None, # Folder of the official lists; by default looked for in and beside `path`
    allow_missing:bool=False, # Use the videos that are there, and say so in `notes`, instead of raising `InputError`
)->Task: # Split into train and test
    """HMDB51 (Kuehne et al. 2011) by its official lists: 70 train and 30 test videos of each of 51 classes; the rest is unused.

    There is no official order of classes; theirs is alphabetical. A group is what a class has of one film or recording."""
    path, lists, fold = _official('hmdb51', path, fold, splits, re.compile(r'.+_test_split\d\.txt').fullmatch, ('testTrainMulti_7030_splits', 'hmdb51'))
    files = {m[1]:f for f in lists.iterdir() if (m := re.fullmatch(rf'(.+)_test_split{fold}\.txt', f.name))}
    if not files: raise InputError(f'hmdb51: {lists} has no lists of fold {fold}')
    rows = []
    for label, file in sorted(files.items()):
        rule = re.compile(HMDB_NAME.format(label=re.escape(label)))
        for line in _lines(file):
            name, tag = ['', *line.rsplit(maxsplit=1)][-2:]
            if tag not in ('0', '1', '2') or not name: raise InputError(f'{file}: {line!r} is not a file name and 0, 1 or 2')
            m = rule.fullmatch(name)
            if tag != '0': rows.append((label, name, dict(zip('12', ('train', 'test')))[tag], f'{label}/{m["source"] if m else name}'))
    return _listed('hmdb51', path, fold, sorted(files), rows, ('hmdb51', 'hmdb51_org', 'HMDB51'), allow_missing)


def _flag(v):
    "An option that may come as text"
    return v.lower() in ('1', 'true', 'yes') if isinstance(v, str) else bool(v)


def _lines(path):
    if not path.is_file(): raise InputError(f'the list {path} does not exist')
    return [s for line in path.read_text(encoding='utf-8').splitlines() if (s := line.strip())]


def _official(name, path, fold, splits, is_list, below):
    "Checked `(path, folder of the lists, fold)`"
    path = Path(path)
    if not path.is_dir(): raise InputError(f'{name}: folder {path} does not exist')
    if str(fold) not in ('1', '2', '3'): raise InputError(f'{name} has folds 1, 2 and 3, not {fold}')
    roots = [Path(splits)] if splits is not None else [path, path/'splits', path.parent]
    tried = [r/b for r in roots for b in ('', *below)]
    lists = next((d for d in tried if d.is_dir() and any(is_list(f.name) for f in d.iterdir())), None)
    if lists is None: raise InputError(f'{name}: no official split lists in {roots[0]}; say where they are with --splits (splits=FOLDER)')
    return path, lists, int(fold)


def _listed(name, path, fold, classes, rows, below, allow_missing):
    "The `Task` of `(label, file name, split, group)` rows; videos may have been transcoded to mp4"
    title, want, notes = f'{name} fold {fold}', OFFICIAL[name][fold - 1], []
    allow_missing = _flag(allow_missing)
    def listing(d): return {e.name.lower():e.path for e in sorted(os.scandir(d), key=lambda e: e.name)} if d.is_dir() else {}
    have = {}  # copies of the data differ in case; a case-insensitive name is still unique
    for root in (path, *(path/b for b in below)):
        folders = listing(root)
        if any(c.lower() in folders for c in classes):
            have = {c:listing(Path(folders[c.lower()])) for c in classes if c.lower() in folders}
            break
    def find(label, file):
        files, stem = have.get(label, {}), os.path.splitext(file.lower())[0]
        return files.get(f'{stem}.avi') or files.get(f'{stem}.mp4')
    df = pd.DataFrame(rows, columns=['label', 'file', 'split', 'group'])
    df.insert(0, 'path', [find(l, f) for l, f in df[['label', 'file']].values])
    counts = tuple(int((df.split == s).sum()) for s in ('train', 'test'))
    if counts != want:
        notes.append(f'its lists name {counts[0]} train and {counts[1]} test videos, not the official {want[0]} and {want[1]}')
        if not allow_missing: raise InputError(f'{title}: {notes[0]}')
    gone = df[df.path.isna()]
    if len(gone):
        what = f'{len(gone)} of {len(df)} videos are missing'
        first = ', '.join(f'{l}/{f}' for l, f in gone[['label', 'file']].values[:5])
        on = '' if len(gone) == len(df) else f'. {GO_ON}'
        if not on or not allow_missing: raise InputError(f'{title}: {what} in {path}, the first: {first}{on}')
        notes.append(f'{what} ({(gone.split == "train").sum()} train, {(gone.split == "test").sum()} test)')
    task = make_task(title, df.dropna(subset='path').drop(columns='file').assign(path=lambda d: d.path.map(os.path.abspath)), notes, classes=classes)
    if task.skipped:
        what = f'{len(task.skipped)} of {len(df)} videos cannot be decoded'
        if not allow_missing: raise InputError(f'{title}: {what}, the first: ' + ', '.join(f'{p} ({w})' for p, w in list(task.skipped.items())[:5]) + f'. {GO_ON}')
        task = replace(task, notes=(*task.notes, what))
    return check_split(task)


def moving_digits(
    path:str|Path|None=None, # Where the videos are, or are to be written (110 MB): `$SDFAST_HOME`, by default ~/.cache/sdfast
    part:str='target', # 'source', 'target', 'motion' or 'digit'
)->Task: # Split into train, valid and test
    """Handwritten digits (UCI, from scikit-learn) that move over 8 frames of 40x40.

    The source has 60 classes, 10 digits x 6 motions, with 6,000 train, 600 valid and 1,200 test clips. The others are few-shot, with
    about 160 train, 160 valid and 800 test clips: target has 8 classes, groups of digits x motions; motion has 6, whatever the digit;
    digit has 10, whatever the motion. The three splits show different handwritten images.
    Written once: a second process that comes meanwhile writes its own copy and keeps whichever was first."""
    if part not in CLIPS: raise InputError(f'moving_digits has the parts {", ".join(CLIPS)}, not {part!r}')
    root = Path(path or home()).expanduser()/'moving_digits-2'/part
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        mine = root.with_name(f'{root.name}.{uuid.uuid4().hex[:8]}.tmp')
        try:
            write_moving_digits(mine, part)
            try: mine.rename(root)  # atomic; fails if another process was first, whose copy is as good
            except OSError:
                if not root.exists(): raise
        finally: shutil.rmtree(mine, ignore_errors=True)
    table = pd.read_csv(root/'manifest.csv')
    table['path'] = [str(root/p) for p in table.path]
    return check_split(make_task(f'moving_digits:{part}', table, check=False))


TASKS = dict(moving_digits=moving_digits, ucf101=ucf101, hmdb51=hmdb51, folder=folder, csv=csv)  # by the first word of a spec


@cache
def create_task(
    spec:str, # `moving_digits`, `ucf101:PATH`, `hmdb51:PATH`, `folder:PATH` or `csv:PATH`, then options as `,name=value`
    part:str='target', # Which part of `moving_digits`
)->Task: # The same object for the same arguments
    "A task by name, e.g. `ucf101:/data/UCF-101,fold=2` or `folder:mine,group=_g(\\d+)_`; kept, as reading one takes time"
    head, *options = re.split(r',(?=[a-z_]+=)', spec)
    kind, _, path = head.partition(':')
    if kind not in TASKS: raise InputError(f'unknown task {spec!r}; known are {", ".join(k if k == "moving_digits" else f"{k}:PATH" for k in TASKS)}')
    options = dict(o.split('=', 1) for o in options)
    known = [n for n in list(signature(TASKS[kind]).parameters)[1:] if n != 'name']
    if unknown := sorted(set(options) - set(known)): raise InputError(f'task {spec!r}: unknown option {unknown[0]!r}; {kind} has {", ".join(known)}')
    if kind == 'moving_digits': return moving_digits(path or None, **dict(part=part) | options)
    if not path: raise InputError(f'task {spec!r} needs a path: {kind}:PATH')
    return TASKS[kind](path, **options)
