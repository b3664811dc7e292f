"""A `Task`: labelled videos with a split, and the `DataLoaders` made of them.

Each video has a split ('train', 'valid' or 'test') and a group (one person, scene or recording). Whatever sdfast splits
itself, it splits by group, so that no group is on both sides."""
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.vision.core import imagenet_stats

from ..errors import InputError
from .block import VideoBlock, normalize_video
from .cache import MAX_TASK_BYTES
from .decoded import Decoded
from .loader import CachedDL
from .splits import split_groups
from .tables import (
    check_classes,
    check_names,
    drop_undecodable,
    missing_classes,
    parse_flag,
    read_csv,
    read_folder,
    shared_groups,
    use_prepared_copies,
)
from .text import list_names
from .video import PIXELS, VideoFile

__all__ = ['Task', 'make_task', 'check_split', 'unlabelled']

SPLITS = 'train', 'valid', 'test'


@dataclass(frozen=True, eq=False)
class Task:
    "Labelled videos: `df` has columns path (absolute), label, split ('train', 'valid' or 'test') and group"
    name: str  # for tables and the key of a run
    df: pd.DataFrame  # a row a video
    skipped: dict = field(default_factory=dict)  # files that cannot be decoded: path -> reason
    notes: tuple = ()  # what a reader of the results should know, as Markdown
    classes: tuple = ()  # the official order of class names, where there is one
    prepared: int|None = None  # short side of the prepared copies used instead of the videos, see `prepared_copies`

    @classmethod
    def from_folder(cls,
        path:str|Path, # Has one folder for each class, or folders train, test and perhaps valid that do
        # Regular expression on the path below `path`; its parentheses name the group, e.g. `_g(\\d+)_`
        group:str|None=None,
        test_frac:float=.25, # Part of the clips to test on where there is no test folder
        seed:int=0, # Which part
    )->'Task': # Split into train, test and, with such a folder, valid
        "Videos in class folders. Without a group rule each file is a group of its own"
        path = Path(path)
        if not path.is_dir(): raise InputError(f'folder {path} does not exist')
        if not 0 < float(test_frac) < 1: raise InputError(f'test_frac must be between 0 and 1, not {test_frac}')
        df, is_split = read_folder(path, group)
        task = make_task(f'folder:{path}', df)
        if is_split:
            shared = shared_groups(task.df)
            if shared: raise InputError(f'{task.name}: group {shared[0]!r} is in both train and test')
            return check_split(task)
        test = split_groups(task.df, float(test_frac), int(seed), f'{task.name}: cannot split into train and test')
        by_group = f'test is {len(test)} clips split off by group, seed {seed}'
        by_file = (f'test is {len(test)} files split off at random, seed {seed}: recordings of one person or scene '
                   'can be on both sides; name them with group=REGEX')
        return check_split(task._move(test, 'test', by_group if group else by_file))

    @classmethod
    def from_csv(cls,
        path:str|Path, # Columns path (absolute, or from the csv's own folder), label, split and, if there is one, group
        train:str='train', # Split names to train on, joined by `+`
        test:str|None=None, # Those to test on, joined by `+`; by default 'test', else all that begin with it
        # Those to choose strengths on; by default 'valid' or 'val', else part of train is held out later
        valid:str|None=None,
        name:str|None=None, # Name of the task
        outside:bool=False, # Allow relative paths that lead out of the csv's folder, such as `../videos/a.mp4`
    )->'Task': # With the splits that were asked for
        "Videos listed in a csv file. Rows of other splits are left out"
        path = Path(path)
        if not path.is_file(): raise InputError(f'csv file {path} does not exist')
        df, notes = read_csv(path, train, test, valid, parse_flag(outside))
        task = make_task(name or f'csv:{path}', df, notes)
        shared = shared_groups(task.df)
        if shared: task = task._noted(f'{len(shared)} groups are in both train and test, as the file says')
        return check_split(task)

    @cached_property
    def vocab(self)->list[str]:
        "Class names that occur, in the official order or else alphabetically"
        present = set(self.df.label)
        return [c for c in self.classes if c in present] or sorted(present)

    @cached_property
    def fingerprint(self)->str:
        "Changes when a file's name, size, label, split or group does, or how sdfast decodes it"
        table = self.df[['path', 'label', 'split', 'group']].values
        rows = sorted((Path(path).name, os.path.getsize(path), *rest) for path, *rest in table)
        return hashlib.sha256(repr((PIXELS, rows)).encode()).hexdigest()[:16]

    def items(self, *splits)->list[tuple[str, str]]:
        "`(path, label)` of the given splits, in the order of the table"
        return list(self.df.loc[self.df.split.isin(splits), ['path', 'label']].itertuples(index=False, name=None))

    def count(self, split:str)->int: return int((self.df.split == split).sum())

    def describe(self)->str:
        "One line: how many clips and classes, and how many files were left out"
        counts = {split:self.count(split) for split in SPLITS}
        parts = ', '.join(f'{n} {split}' for split, n in counts.items() if n)
        skipped = f', {len(self.skipped)} skipped' if self.skipped else ''
        return f'{self.name}: {len(self.vocab)} classes, {parts}{skipped}'

    def hold_out(self,
        frac:float=.2, # Part of the train clips to hold out
        seed:int=0, # Which part
    )->'Task':
        "Make some groups of train the 'valid' part, classes balanced. A task with a valid part is returned unchanged"
        if self.count('valid'): return self
        train = self.df.index[self.df.split == 'train']
        chosen = split_groups(self.df.loc[train], frac, seed, f'{self.name}: cannot hold out a valid part of train')
        return self._move(train[chosen], 'valid')

    def _move(self, rows, split, *notes):
        "With some rows in another split"
        df = self.df.copy()
        df.loc[rows, 'split'] = split
        return replace(self, df=df)._noted(*notes)

    def _noted(self, *notes): return replace(self, notes=(*self.notes, *notes))

    def subset(self,
        seed:int=0, # Which clips
        **n:int, # Clips of each class to keep in each split, e.g. `train=20, test=10`; other splits are kept whole
    )->'Task':
        "Keep at most so many clips of each class"
        mixed = self.df.sample(frac=1, random_state=seed)
        rank = mixed.groupby(['split', 'label']).cumcount()
        kept = rank.index[rank < mixed.split.map(n).fillna(np.inf)]
        return replace(self, df=self.df.loc[kept.sort_values()])

    def dls(self,
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames between two of the clip
        size:int=112, # Side of the square crop in pixels
        bs:int=32, # Batch size
        k:int=1, # Clips of each video outside training; more than 1 needs the `MultiClip` callback
        workers:int=0, # Loading processes; 0 also keeps decoded videos in memory if all of them fit into 2 GiB
        tfms:Sequence=(), # More batch transforms, such as `ClipTransform([Flip()])`
        stats:tuple|None=None, # Mean and standard deviation of each channel, ImageNet's by default
        area:tuple|None=None, # Part of the frame that a training crop covers, see `SampleClips`
        flip:bool=False, # Mirror half of the training clips
        wrap:bool=False, # A short video begins again instead of repeating its last frame
        # Folder in which videos that are kept in memory are shared with other processes, see `Decoded`
        decoded:str|Path|None=None,
        **kwargs, # Passed to `DataBlock.dataloaders`
    )->DataLoaders:
        "`DataLoaders` of the train and valid parts; for test see `dl`"
        train, valid = self.items('train'), self.items('valid')
        if not train: raise InputError(f'{self.name}: there are no train clips')
        self._check_prepared_size(size, area)
        side = None if area else size
        cache = workers == 0 and self._decoded_bytes(side) < MAX_TASK_BYTES
        if cache and decoded is not None: cache = Decoded(self.df.path, side, decoded)
        stats = stats or imagenet_stats
        # other batch transforms need floats in [0, 1]: then normalising is a step of its own, after them
        video = VideoBlock(frames, stride, size, k, cache, None if tfms else stats, area=area, flip=flip, wrap=wrap)
        block = DataBlock(
            blocks=(video, CategoryBlock(vocab=self.vocab, sort=False)),
            getters=[ItemGetter(0), ItemGetter(1)],
            splitter=IndexSplitter(range(len(train), len(train) + len(valid))),
            batch_tfms=[*tfms, normalize_video(*stats)] if tfms else None,
            dl_type=CachedDL if cache else None)
        return block.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)

    def dl(self, dls:DataLoaders, *splits)->TfmdDL:
        "A labelled, unshuffled loader of `splits` with the transforms that `dls` uses for validation"
        return dls.test_dl(self.items(*splits), with_labels=True)

    def _check_prepared_size(self, size, area):
        "Crops must not be larger than prepared copies"
        needed = math.ceil(size/math.sqrt(area[0] if area else 1))
        if not self.prepared or self.prepared >= needed: return
        crops = f' and crops of {area[0]:g} of the frame' if area else ''
        raise InputError(f'{self.name}: its prepared copies have a short side of {self.prepared} pixels, too few for '
                         f'size {size}{crops}; prepare with --size {needed} or more, or set the environment variable '
                         'SDFAST_PREPARED to nothing to use the originals')

    def _decoded_bytes(self, size):
        "Bytes that all decoded videos take, estimated from 16 of them"
        sample = self.df.path.sample(min(16, len(self.df)), random_state=0)
        return len(self.df)*np.mean([VideoFile(p).nbytes(size) for p in sample])


def make_task(
    name:str, # Of the task, for tables and the key of a run
    df:pd.DataFrame, # Columns path (absolute), label, split and group, a row a video
    notes:Sequence[str]=(), # What a reader of the results should know, as Markdown
    check:bool=True, # Use prepared copies, open every file, and leave out those that cannot be decoded
    classes:Sequence[str]=(), # The official order of class names, where there is one
)->Task: # `check_split` is for after the split is made
    """Make a `Task` of a table of videos.

    Raises `InputError` for class names that are not safe in files, and unless there are two classes or more with two
    clips or more each."""
    check_names(name, df.label)
    skipped, prepared = {}, None
    if check:
        df, prepared, more_notes = use_prepared_copies(df)
        notes = [*notes, *more_notes]
        df, skipped = drop_undecodable(df)
    df = df.reset_index(drop=True)
    if not len(df):
        path, why = next(iter(skipped.items()))
        raise InputError(f'{name}: none of its {len(skipped)} videos can be decoded, the first: {path} ({why})')
    check_classes(name, df.label)
    return Task(name, df, skipped, tuple(notes), tuple(classes), prepared)


def check_split(
    task:Task, # Whose split is made
)->Task: # With notes on classes that the valid or test part lacks
    "Check a task's split. Raises `InputError` for a class without a train clip, and without test clips"
    missing = missing_classes(task.df, task.vocab, 'train')
    if missing: raise InputError(f'{task.name}: no train clip of class {missing[0]!r}')
    if not task.count('test'): raise InputError(f'{task.name}: there are no test clips')
    notes = []
    for split in ('valid', 'test'):
        missing = missing_classes(task.df, task.vocab, split)
        if missing and task.count(split): notes.append(f'{split} has no clip of {list_names(missing)}')
    return task._noted(*notes)


def unlabelled(
    dls:DataLoaders, # From `Task.dls`
    paths:Iterable, # Video files
)->TfmdDL: # Yields `(x,)`
    """An unshuffled loader of videos without labels, with the transforms that `dls` uses for validation.

    It serves as the `clips` of `Retention`."""
    return dls.test_dl([(str(p), None) for p in paths])
