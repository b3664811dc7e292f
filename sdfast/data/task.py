"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.vision.core import imagenet_stats
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ..errors import InputError
from .cache import CACHE_BYTES, CachedDL
from .clips import VideoBlock, normalize_video
from .decoded import Decoded
from .prepared import prepared_copies
from .text import CONTROL, FORMULA, as_markdown, check_class_name
from .video import PIXELS, VideoFile

__all__ = ['Task', 'unlabelled']



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
        chosen = split_groups(self.df.loc[train], frac, seed, f'{self.name}: cannot hold out a valid part of train')
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
                          batch_tfms=[*tfms, normalize_video(*stats)] if tfms else None, dl_type=CachedDL if cache else None)
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


def split_groups(df, frac, seed, what):
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


def _problem(path):
    "Why a video cannot be used, or `None`"
    if CONTROL.search(path): return 'its path holds a character that is no text; rename it'
    if FORMULA.search(path): return 'its path goes on as a formula does after a semicolon, and a spreadsheet that opens scores.csv would run it; rename it'
    return VideoFile(path).problem()


def make_task(name, df, notes=(), check=True, classes=()):
    "A `Task` without the files that cannot be decoded; errors for what no study can use"
    for label in df.label.unique(): check_class_name(name, label)
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


def check_split(task):
    "Checks that need the split"
    df, notes = task.df, list(task.notes)
    have = set(df.label[df.split == 'train'])
    if missing := [c for c in task.vocab if c not in have]: raise InputError(f'{task.name}: no train clip of class {missing[0]!r}')
    for split in ('valid', 'test'):
        have = set(df.label[df.split == split])
        if have and (missing := [c for c in task.vocab if c not in have]): notes.append(f'{split} has no clip of {", ".join(map(as_markdown, missing))}')
    if not task.count('test'): raise InputError(f'{task.name}: there are no test clips')
    return replace(task, notes=tuple(notes))
