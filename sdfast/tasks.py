"""Labelled videos with an official split: class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import hashlib, os, re, shutil, uuid, warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import IndexSplitter, ItemGetter
from sklearn.model_selection import StratifiedGroupKFold

from .digits import CLIPS, write_moving_digits
from .errors import InputError
from .video import VideoBlock, VideoFile, normalize_video

__all__ = ['Task', 'folder', 'csv', 'moving_digits', 'create_task']

VIDEO_SUFFIXES = {'.3gp', '.avi', '.flv', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ts', '.webm', '.wmv'}
CACHE_BYTES = 2**31  # decoded videos of a task are kept in memory if all of them fit into this


class KeptDL(TfmdDL):
    "Keeps its batches, before batch transforms, if they are the same each time: for sets that fit into memory"
    _kept = None

    def create_batches(self, samps):
        if self.shuffle or self.fake_l.num_workers: return super().create_batches(samps)
        if self._kept is None: self._kept = list(super().create_batches(samps))
        return iter(self._kept)


@dataclass(frozen=True, eq=False)
class Task:
    "Labelled videos: `df` has columns path (absolute), label, split ('train', 'valid' or 'test') and group"
    name: str
    df: pd.DataFrame
    skipped: dict = field(default_factory=dict)  # files that cannot be decoded: path -> reason
    notes: tuple = ()  # what a reader of the results should know

    @cached_property
    def vocab(self)->list[str]:
        "Class names in alphabetical order"
        return sorted(self.df.label.unique())

    @cached_property
    def fingerprint(self)->str:
        "Changes when a file's name, size, label, split or group does"
        rows = sorted((Path(p).name, os.path.getsize(p), l, s, g) for p, l, s, g in self.df[['path', 'label', 'split', 'group']].values)
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]

    def items(self, *splits)->list[tuple[str, str]]:
        "`(path, label)` of the given splits, in the order of the table"
        return list(self.df.loc[self.df.split.isin(splits), ['path', 'label']].itertuples(index=False, name=None))

    def count(self, split)->int: return int((self.df.split == split).sum())

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
        tfms=(), # More batch transforms, such as `ClipTransform([Flip()])`
        stats=None, # Mean and standard deviation of each channel, ImageNet's by default
        **kwargs, # Passed to `DataBlock.dataloaders`
    ):
        "`DataLoaders` of the train and valid parts; for test see `dl`"
        train, valid = self.items('train'), self.items('valid')
        if not train: raise InputError(f'{self.name}: there are no train clips')
        cache = workers == 0 and self._decoded_bytes(size) < CACHE_BYTES
        block = DataBlock(blocks=(VideoBlock(frames, stride, size, k, cache), CategoryBlock(vocab=self.vocab)),
                          getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter(range(len(train), len(train) + len(valid))),
                          batch_tfms=[*tfms, normalize_video(*(stats or ()))], dl_type=KeptDL if cache else None)
        return block.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)

    def dl(self, dls, *splits):
        "A labelled, unshuffled loader of `splits` with the transforms that `dls` uses for validation"
        return dls.test_dl(self.items(*splits), with_labels=True)

    def _decoded_bytes(self, size):
        some = [VideoFile(p) for p in self.df.path.sample(min(16, len(self.df)), random_state=0)]
        return len(self.df)*np.mean([3*v.index.n*np.prod(v.scaled(size)) for v in some])


def _split_groups(df, frac, seed, what):
    "Positions of about `frac` of the rows: whole groups, classes balanced, every class left in the rest"
    k, y, best = max(2, round(1/frac)), df.label.values, None
    per_class = df.groupby('label').group.nunique()
    if (few := per_class[per_class < 2]).size:
        raise InputError(f'{what}: all {(df.label == few.index[0]).sum()} clips of class {few.index[0]!r} are of one group '
                         f'({df.group[df.label == few.index[0]].iloc[0]!r}); each class needs at least two groups')
    k = min(k, df.group.nunique(), df.label.value_counts().max())
    folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # small classes cannot be in every fold
        for rest, chosen in folds.split(np.zeros(len(df)), y, df.group.values):
            if len(chosen) and set(y[rest]) == set(y):
                score = len(set(y[chosen])), -abs(len(chosen) - frac*len(df))
                if best is None or score > best[0]: best = score, chosen
    if best is None: raise InputError(f'{what}: no choice of groups leaves a clip of each class on both sides')
    return best[1]


def _make(name, df, notes=(), check=True):
    "A `Task` without the files that cannot be decoded; errors for what no study can use"
    skipped = {}
    if check:
        with ThreadPoolExecutor() as pool: problems = list(pool.map(lambda p: VideoFile(p).problem(), df.path))
        skipped = {p:w for p, w in zip(df.path, problems) if w}
        df = df[[w is None for w in problems]]
    df = df.reset_index(drop=True)
    if not len(df): raise InputError(f'{name}: none of its {len(skipped)} videos can be decoded, the first: {next(iter(skipped))} ({next(iter(skipped.values()))})')
    counts = df.label.value_counts()
    if (single := counts[counts < 2]).size:
        raise InputError(f'{name}: class {single.index[0]!r} has one clip that can be decoded; each class needs at least two, one to learn and one to test')
    if len(counts) < 2: raise InputError(f'{name}: there is only one class, {counts.index[0]!r}; at least two are needed')
    return Task(name, df, skipped, tuple(notes))


def _finish(task):
    "Checks that need the split"
    df, notes = task.df, list(task.notes)
    have = set(df.label[df.split == 'train'])
    if missing := [c for c in task.vocab if c not in have]: raise InputError(f'{task.name}: no train clip of class {missing[0]!r}')
    for split in ('valid', 'test'):
        have = set(df.label[df.split == split])
        if have and (missing := [c for c in task.vocab if c not in have]): notes.append(f'{split} has no clip of {", ".join(missing)}')
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
    path, # Has one folder for each class, or folders train, test and perhaps valid that do
    group:str|None=None, # Regular expression on the path below `path`; its parentheses name the group, e.g. `_g(\\d+)_`
    test_frac:float=.25, # Part of the clips to test on where there is no test folder
    seed:int=0, # Which part
)->Task:
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
        task = replace(task, df=df, notes=(
            f'test is {len(test)} clips split off by group, seed {seed}' if group else
            f'test is {len(test)} files split off at random, seed {seed}: recordings of one person or scene can be on both sides; name them with group=REGEX',))
    return _finish(task)


def csv(
    path, # Columns path (below the csv's own folder, or absolute), label, split and, if there is one, group
    train:str='train', # Which split names to train on, joined by `+`
    test:str|None=None, # Which to test on, joined by `+`; by default 'test', else all that begin with it
    valid:str|None=None, # Which to choose strengths on; by default 'valid' or 'val', else part of train is held out later
    name:str|None=None, # Name of the task
)->Task:
    "Videos listed in a csv file. Rows of other splits are left out"
    path = Path(path)
    if not path.is_file(): raise InputError(f'csv file {path} does not exist')
    try: table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as e: raise InputError(f'{path} cannot be read as csv: {e}') from None
    if missing := [c for c in ('path', 'label', 'split') if c not in table]:
        raise InputError(f'{path} has no column {missing[0]!r}; it has {", ".join(table.columns)}')
    splits = list(dict.fromkeys(table.split))
    if test is None: test = 'test' if 'test' in splits else '+'.join(s for s in splits if s.startswith('test'))
    if valid is None: valid = '+'.join(s for s in splits if s in ('valid', 'val'))
    part = {}
    for ours, theirs in dict(train=train, valid=valid, test=test).items():
        for s in filter(None, theirs.split('+')):
            if s not in splits: raise InputError(f'{path} has no split {s!r} to use as {ours}; it has {", ".join(splits)}')
            if s in part: raise InputError(f'split {s!r} is named both as {part[s]} and as {ours}')
            part[s] = ours
    if 'test' not in part.values(): raise InputError(f'{path} has no split whose name begins with test; say which to test on with test=NAME. It has {", ".join(splits)}')
    df = table[table.split.isin(part)].reset_index(drop=True)
    notes = [f'{ours} is {" + ".join(s for s in splits if part.get(s) == ours)}' for ours in ('train', 'valid', 'test') if (ours, ours) not in part.items() and ours in part.values()]
    if left := [s for s in splits if s not in part]: notes.append(f'splits {", ".join(left)} are not used')
    df = pd.DataFrame(dict(path=[os.path.abspath(path.parent/p) for p in df.path], label=df.label, split=df.split.map(part),
                           group=df.group if 'group' in df else df.path))
    task = _make(name or f'csv:{path}', df, notes)
    both = set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split == 'test'])
    if both: task = replace(task, notes=(*task.notes, f'{len(both)} groups are in both train and test, as the file says'))
    return _finish(task)


def moving_digits(
    path=None, # Where the videos are, or are to be written (80 MB): `$SDFAST_HOME`, by default ~/.cache/sdfast
    part:str='target', # 'target' or 'source'
)->Task:
    """Handwritten digits (UCI, from scikit-learn) that move over 8 frames of 40x40.

    The source has 60 classes, 10 digits x 6 motions, with 6,000 train and 1,200 test clips; the target 8 classes, groups of
    digits x motions, with 160 train, 160 valid and 800 test clips. The three splits show different handwritten images.
    Written once: a second process that comes meanwhile writes its own copy and keeps whichever was first."""
    if part not in CLIPS: raise InputError(f'moving_digits has the parts source and target, not {part!r}')
    root = Path(path or os.environ.get('SDFAST_HOME') or '~/.cache/sdfast').expanduser()/'moving_digits-1'
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        mine = root.with_name(f'{root.name}.{uuid.uuid4().hex[:8]}.tmp')
        try:
            write_moving_digits(mine)
            try: mine.rename(root)  # atomic; fails if another process was first, whose copy is as good
            except OSError:
                if not root.exists(): raise
        finally: shutil.rmtree(mine, ignore_errors=True)
    table = pd.read_csv(root/part/'manifest.csv')
    table['path'] = [str(root/part/p) for p in table.path]
    return _finish(_make(f'moving_digits:{part}', table, check=False))


@lru_cache(maxsize=None)
def create_task(
    spec:str, # `moving_digits`, `folder:PATH` or `csv:PATH`, then options as `,name=value`
    part:str='target', # Which part of `moving_digits`
)->Task:
    "A task by name, e.g. `csv:clips.csv,test=test_seen` or `folder:UCF,group=_g(\\d+)_`; kept, as reading one takes time"
    head, *options = re.split(r',(?=[a-z_]+=)', spec)
    kind, _, path = head.partition(':')
    makers = dict(moving_digits=moving_digits, folder=folder, csv=csv)
    if kind not in makers: raise InputError(f'unknown task {spec!r}; known are moving_digits, folder:PATH and csv:PATH')
    options = dict(o.split('=', 1) for o in options)
    known = dict(moving_digits=['part'], folder=['group', 'test_frac', 'seed'], csv=['train', 'test', 'valid'])[kind]
    if unknown := sorted(set(options) - set(known)): raise InputError(f'task {spec!r}: unknown option {unknown[0]!r}; {kind} has {", ".join(known)}')
    if kind == 'moving_digits': return moving_digits(path or None, **dict(part=part) | options)
    if not path: raise InputError(f'task {spec!r} needs a path: {kind}:PATH')
    return makers[kind](path, **options)
