"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import hashlib, json, math, os, re, shutil, uuid, warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from inspect import signature
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import IndexSplitter, ItemGetter, ToTensor
from fastai.vision.core import imagenet_stats
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from .decoded import Decoded
from .digits import CLIPS, write_moving_digits
from .errors import InputError
from .store import home
from .video import PIXELS, SampleClips, VideoBlock, VideoFile, normalize_video

__all__ = ['Task', 'unlabelled', 'ucf101', 'hmdb51', 'folder', 'csv', 'moving_digits', 'create_task', 'prepared_copies']

VIDEO_SUFFIXES = {'.3gp', '.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv'}
CACHE_BYTES = 2**31  # decoded videos of a task are kept in memory if all of them fit into this
CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')  # and what of a file's name is not text
UNSEEN = re.compile('[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]')  # among them what turns the direction of writing
# spreadsheets run a cell that begins so, with full width signs too, and some begin a cell at a semicolon; hmdb51 has a smiley there, ;-)
FORMULA = re.compile(r'(?:^|;)\s*[=+\-@\uff1d\uff0b\uff0d\uff20](?!\))')


class KeptDL(TfmdDL):
    """For sets that fit into memory: keeps its batches, before batch transforms, if they are the same each time.

    Items whose only transform is `SampleClips` are made without asking for the type of each again, which takes longer than
    cutting a clip from a video in memory."""
    _kept, _rows = None, None

    def create_batches(self, samps:Iterable)->Iterator:
        for f in self.after_item.fs:  # not for the one item that fastai looks at when a loader is made
            if isinstance(getattr(f, 'cache', None), Decoded): f.cache.open()
        if self.shuffle or self.fake_l.num_workers: return super().create_batches(samps)
        if self._kept is None:
            batches = super().create_batches(samps)
            first = list(islice(batches, 1))
            if first and first[0][0].nbytes*len(self) > CACHE_BYTES: return chain(first, batches)  # many clips of each video
            self._kept = [*first, *batches]
        return iter(self._kept)

    def do_item(self, s:int)->object:
        clips, *more = [f for f in self.after_item.fs if not isinstance(f, ToTensor)] or [None]
        if more or type(clips) is not SampleClips or s is None: return super().do_item(s)
        if self._rows is None: self._rows = {}
        if s not in self._rows: self._rows[s] = self.create_item(s)
        video, *label = self._rows[s]
        clips.before_call(video, self.after_item.split_idx)
        try: return clips.encodes(video), *label
        except SkipItemException: return None


@dataclass(frozen=True, eq=False)
class Task:
    "Labelled videos: `df` has columns path (absolute), label, split ('train', 'valid' or 'test') and group"
    name: str  # for tables and the key of a run
    df: pd.DataFrame  # a row a video
    skipped: dict = field(default_factory=dict)  # files that cannot be decoded: path -> reason
    notes: tuple = ()  # what a reader of the results should know, as Markdown
    classes: tuple = ()  # the official order of class names, where there is one
    prepared: int|None = None  # short side of the prepared copies that stand for the videos, see `prepared_copies`

    @cached_property
    def vocab(self)->list[str]:
        "Class names that occur, in the official order or else alphabetically"
        have = set(self.df.label)
        return [c for c in self.classes if c in have] or sorted(have)

    @cached_property
    def fingerprint(self)->str:
        "Changes when a file's name, size, label, split or group does, or how sdfast decodes it"
        rows = sorted((Path(p).name, os.path.getsize(p), l, s, g) for p, l, s, g in self.df[['path', 'label', 'split', 'group']].values)
        return hashlib.sha256(repr((PIXELS, rows)).encode()).hexdigest()[:16]

    def items(self, *splits)->list[tuple[str, str]]:
        "`(path, label)` of the given splits, in the order of the table"
        return list(self.df.loc[self.df.split.isin(splits), ['path', 'label']].itertuples(index=False, name=None))

    def count(self, split:str)->int: return int((self.df.split == split).sum())

    def describe(self)->str:
        "One line: how many clips and classes, and what was left out"
        parts = ', '.join(f'{n} {s}' for s in ('train', 'valid', 'test') if (n := self.count(s)))
        return f'{self.name}: {len(self.vocab)} classes, {parts}' + (f', {len(self.skipped)} skipped' if self.skipped else '')

    def hold_out(self,
        frac:float=.2, # Part of the train clips to hold out
        seed:int=0, # Which part
    )->'Task':
        "Make some groups of train the 'valid' part, classes balanced; a task that has a valid part is returned as it is"
        if self.count('valid'): return self
        train = self.df.index[self.df.split == 'train']
        chosen = _split_groups(self.df.loc[train], frac, seed, f'{self.name}: cannot hold out a valid part of train')
        df = self.df.copy()
        df.loc[train[chosen], 'split'] = 'valid'
        return replace(self, df=df)

    def subset(self,
        seed:int=0, # Which clips
        **n:int, # Clips of each class to keep in each split, e.g. `train=20, test=10`; splits not named are kept whole
    )->'Task':
        "At most so many clips of each class"
        mixed = self.df.sample(frac=1, random_state=seed)
        rank = mixed.groupby(['split', 'label']).cumcount()
        return replace(self, df=self.df.loc[rank.index[rank < mixed.split.map(n).fillna(np.inf)].sort_values()])

    def dls(self,
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames between two of the clip
        size:int=112, # Side of the square crop in pixels
        bs:int=32, # Batch size
        k:int=1, # Clips of each video outside training; more than 1 needs the `MultiClip` callback
        workers:int=0, # Loading processes; 0 also keeps decoded videos in memory where all of them fit into 2 GiB
        tfms:Sequence=(), # More batch transforms, such as `ClipTransform([Flip()])`
        stats:tuple|None=None, # Mean and standard deviation of each channel, ImageNet's by default
        area:tuple|None=None, # Part of the frame that a training crop covers, see `SampleClips`
        flip:bool=False, # Mirror half of the training clips
        wrap:bool=False, # A short video begins again instead of repeating its last frame
        decoded:str|Path|None=None, # Folder in which videos that are kept in memory are shared with other processes, see `Decoded`
        **kwargs, # Passed to `DataBlock.dataloaders`
    )->DataLoaders:
        "`DataLoaders` of the train and valid parts; for test see `dl`"
        train, valid = self.items('train'), self.items('valid')
        if not train: raise InputError(f'{self.name}: there are no train clips')
        need = math.ceil(size/math.sqrt(area[0] if area else 1))
        if self.prepared and self.prepared < need:
            raise InputError(f'{self.name}: its prepared copies have a short side of {self.prepared} pixels, too few for size {size}' + (f' and crops of {area[0]:g} of the frame' if area else '') +
                             f'; prepare with --size {need} or more, or set the environment variable SDFAST_PREPARED to nothing to use the originals')
        side = None if area else size
        cache = workers == 0 and self._decoded_bytes(side) < CACHE_BYTES
        if cache and decoded is not None: cache = Decoded(self.df.path, side, decoded)
        stats = stats or imagenet_stats
        block = DataBlock(blocks=(VideoBlock(frames, stride, size, k, cache, None if tfms else stats, area=area, flip=flip, wrap=wrap), CategoryBlock(vocab=self.vocab, sort=False)),
                          getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter(range(len(train), len(train) + len(valid))),
                          batch_tfms=[*tfms, normalize_video(*stats)] if tfms else None, dl_type=KeptDL if cache else None)
        return block.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)

    def dl(self, dls:DataLoaders, *splits)->TfmdDL:
        "A labelled, unshuffled loader of `splits` with the transforms that `dls` uses for validation"
        return dls.test_dl(self.items(*splits), with_labels=True)

    def _decoded_bytes(self, size):
        some = [VideoFile(p) for p in self.df.path.sample(min(16, len(self.df)), random_state=0)]
        return len(self.df)*np.mean([3*v.index.n*np.prod(v.scaled(size)) for v in some])


def unlabelled(
    dls:DataLoaders, # From `Task.dls`
    paths:Iterable, # Video files
)->TfmdDL: # Yields `(x,)`
    "An unshuffled loader of videos without labels, with the transforms that `dls` uses for validation: for what `Retention` measures on `clips`"
    return dls.test_dl([(str(p), None) for p in paths])


def _split_groups(df, frac, seed, what):
    "Positions of about `frac` of the rows: whole groups, classes balanced, every class left in the rest"
    k, y, best = max(2, round(1/frac)), df.label.values, None
    per_class = df.groupby('label').group.nunique()
    if (few := per_class[per_class < 2]).size:
        raise InputError(f'{what}: all {(df.label == few.index[0]).sum()} clips of class {few.index[0]!r} are of one group '
                         f'({df.group[df.label == few.index[0]].iloc[0]!r}); each class needs at least two groups')
    k = min(k, df.group.nunique(), df.label.value_counts().max())
    # the first weighs each group against each fold: minutes for as many groups as rows, where there is nothing to weigh
    folds = (StratifiedGroupKFold if df.group.nunique() < len(df) else StratifiedKFold)(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # small classes cannot be in every fold
        for rest, chosen in folds.split(np.zeros(len(df)), y, df.group.values):
            if len(chosen) and set(y[rest]) == set(y):
                score = len(set(y[chosen])), -abs(len(chosen) - frac*len(df))
                if best is None or score > best[0]: best = score, chosen
    if best is not None: return best[1]
    # each fold, made for balance, has all groups of some class: take the smallest groups that can be spared. The first always can
    taken, codes, at = [], pd.factorize(y)[0], df.groupby('group').indices
    left = np.bincount(codes)
    for group in df.group.sample(frac=1, random_state=seed).value_counts(sort=False).sort_values(kind='stable').index:
        rows = at[group]
        lost, n = np.unique(codes[rows], return_counts=True)
        if (taken and len(taken) + len(rows) > frac*len(df)) or (left[lost] == n).any(): continue
        left[lost] -= n
        taken += rows.tolist()
    return np.sort(np.array(taken, int))


def as_markdown(text:str)->str:
    "A name from a file as Markdown that shows it and does nothing else"
    text = ''.join(repr(c)[1:-1] if CONTROL.match(c) or UNSEEN.match(c) else c for c in text)
    return re.sub(r'[\\`*<>\[\]|&$~]|(?<![^\W_])_|_(?![^\W_])', r'\\\g<0>', text)


def from_markdown(text:str)->str:
    "What `as_markdown`'s text shows"
    return re.sub(r'\\([\\`*<>\[\]|&$~_])', r'\1', text)


def _check_class(name, label):
    "Class names become cells and columns of csv files, notes and titles: `InputError` for one that would do more there than name a class"
    if not label.strip(): why = 'is empty'
    elif label in ('path', 'label'): why = 'is the name of another column of scores.csv'
    elif CONTROL.search(label): why = 'holds a character that is no text'
    elif UNSEEN.search(label): why = 'holds a mark that cannot be seen, or turns the direction of writing'
    elif FORMULA.search(label) and not re.fullmatch(r'[+-]?\d+(\.\d+)?', label):
        why = 'begins as a formula does, with one of = + - @, or goes on so after a semicolon: a spreadsheet that opens scores.csv would run it'
    else: return
    raise InputError(f'{name}: class {label!r} {why}; rename it')


def _problem(path):
    "Why a video cannot be used, or `None`"
    if CONTROL.search(path): return 'its path holds a character that is no text; rename it'
    if FORMULA.search(path): return 'its path goes on as a formula does after a semicolon, and a spreadsheet that opens scores.csv would run it; rename it'
    return VideoFile(path).problem()


def _manifest(place):
    "What `prepared.json` says, `None` without one"
    try: return json.loads((place/'prepared.json').read_text())
    except FileNotFoundError: return None
    except ValueError as e: raise InputError(f'{place}/prepared.json cannot be read ({e}); delete it and run experiments/prepare.py again, or set SDFAST_PREPARED to nothing') from None


def prepared_copies(
    paths:Iterable, # Video files
)->tuple[dict, int|None, Path]: # Original path to that of its copy, for those that have one; short side in pixels; where copies are looked for
    """Small copies made by `experiments/prepare.py`: in `ROOT.prepared`, beside the deepest folder ROOT that has all videos, or in `$SDFAST_PREPARED`.

    That variable set to nothing turns them off. A copy counts if both files have the sizes that `prepared.json` says."""
    paths = list(map(str, paths))
    root = os.path.commonpath([os.path.dirname(p) for p in paths])
    place = Path(os.environ.get('SDFAST_PREPARED', f'{root}.prepared'))
    if os.environ.get('SDFAST_PREPARED') == '' or not (made := _manifest(place)): return {}, None, place
    def size(p): return os.path.getsize(p) if os.path.exists(p) else -1
    copies = {}
    for p in paths:
        m = made['files'].get(os.path.relpath(p, root))
        if m and size(p) == m['bytes'] and size(copy := place/f'{os.path.relpath(p, root)}.mp4') == m['copy_bytes']: copies[p] = str(copy)
    return copies, made['size'] if copies else None, place


def _make(name, df, notes=(), check=True, classes=()):
    "A `Task` without the files that cannot be decoded; errors for what no study can use"
    for label in df.label.unique(): _check_class(name, label)
    skipped, prepared = {}, None
    if check:
        copies, prepared, place = prepared_copies(df.path) if len(df) else ({}, None, None)
        if copies:
            notes = [*notes, f'{len(copies)} of {len(df)} videos are seen as their prepared copies in {as_markdown(str(place))}, short side {prepared} pixels']
            df = df.assign(path=df.path.map(lambda p: copies.get(p, p)))
        with ThreadPoolExecutor() as pool: problems = list(pool.map(_problem, df.path))
        skipped = {repr(p)[1:-1] if CONTROL.search(p) else p:w for p, w in zip(df.path, problems) if w}
        df = df[[w is None for w in problems]]
    df = df.reset_index(drop=True)
    if not len(df): raise InputError(f'{name}: none of its {len(skipped)} videos can be decoded, the first: {next(iter(skipped))} ({next(iter(skipped.values()))})')
    counts = df.label.value_counts()
    if (single := counts[counts < 2]).size:
        raise InputError(f'{name}: class {single.index[0]!r} has one clip that can be decoded; each class needs at least two, one to learn and one to test')
    if len(counts) < 2: raise InputError(f'{name}: there is only one class, {counts.index[0]!r}; at least two are needed')
    return Task(name, df, skipped, tuple(notes), tuple(classes), prepared)


def _finish(task):
    "Checks that need the split"
    df, notes = task.df, list(task.notes)
    have = set(df.label[df.split == 'train'])
    if missing := [c for c in task.vocab if c not in have]: raise InputError(f'{task.name}: no train clip of class {missing[0]!r}')
    for split in ('valid', 'test'):
        have = set(df.label[df.split == split])
        if have and (missing := [c for c in task.vocab if c not in have]): notes.append(f'{split} has no clip of {", ".join(map(as_markdown, missing))}')
    if not task.count('test'): raise InputError(f'{task.name}: there are no test clips')
    return replace(task, notes=tuple(notes))


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
    task = _make(f'folder:{path}', df)
    if official:
        both = set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split == 'test'])
        if both: raise InputError(f'{task.name}: group {sorted(both)[0]!r} is in both train and test')
    else:
        test = _split_groups(task.df, float(test_frac), int(seed), f'{task.name}: cannot split into train and test')
        df = task.df.copy()
        df.loc[test, 'split'] = 'test'
        task = replace(task, df=df, notes=(*task.notes,
            f'test is {len(test)} clips split off by group, seed {seed}' if group else
            f'test is {len(test)} files split off at random, seed {seed}: recordings of one person or scene can be on both sides; name them with group=REGEX',))
    return _finish(task)


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
    task = _make(name or f'csv:{path}', df, notes)
    both = set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split == 'test'])
    if both: task = replace(task, notes=(*task.notes, f'{len(both)} groups are in both train and test, as the file says'))
    return _finish(task)


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
    task = _make(title, df.dropna(subset='path').drop(columns='file').assign(path=lambda d: d.path.map(os.path.abspath)), notes, classes=classes)
    if task.skipped:
        what = f'{len(task.skipped)} of {len(df)} videos cannot be decoded'
        if not allow_missing: raise InputError(f'{title}: {what}, the first: ' + ', '.join(f'{p} ({w})' for p, w in list(task.skipped.items())[:5]) + f'. {GO_ON}')
        task = replace(task, notes=(*task.notes, what))
    return _finish(task)


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
    return _finish(_make(f'moving_digits:{part}', table, check=False))


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
