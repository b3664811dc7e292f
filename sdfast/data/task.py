"""A `Task`: labelled videos with a split, and the `DataLoaders` made of them.

Each video has a split ('train', 'valid' or 'test') and a group (one person, scene or recording). Splits that sdfast
makes are by group, so that no group is on both sides."""
import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.vision.core import imagenet_stats
from torch.utils.data import DataLoader

from ..errors import InputError
from .block import VideoBlock, normalize_video
from .checked import check_files
from .clips import SampleClips
from .decoded import keep_decoded
from .folders import SPLITS, read_folder
from .index import PIXELS
from .loader import CachedDL, check_loader_arguments, unlabelled
from .manifest import read_video_csv
from .prepared import check_prepared_size
from .splits import split_groups
from .tables import (
    check_classes,
    check_names,
    clean_table,
    missing_classes,
    overlap_notes,
    parse_flag,
    parse_integer,
    parse_share,
    shared_groups,
    use_prepared_copies,
)
from .text import list_names, python_strings
from .torch_loader import torch_loader

__all__ = ['Task', 'make_task', 'check_split', 'unlabelled']


@dataclass(frozen=True, eq=False)
class Task:
    "Labelled videos: `df` has columns path (absolute), label, split ('train', 'valid' or 'test') and group"
    name: str  # for tables and the key of a run
    df: pd.DataFrame  # one row per video
    skipped: dict = field(default_factory=dict)  # files that are not used: path -> reason
    notes: tuple = ()  # notes for readers of the results, as Markdown
    classes: tuple = ()  # the official order of class names, if there is one
    prepared: int|None = None  # short side of the prepared copies, if they are used, see `prepared_copies`
    damaged: dict = field(default_factory=dict)  # videos with damaged frames: path -> number of those
    label_space: tuple = ()  # class names by which loaders number labels, if they are more than `vocab`

    @classmethod
    @python_strings
    def from_folder(cls,
        # Folder with a folder for each class, or with folders train, test and perhaps valid of such; other usual names
        # of splits are known, too, in any case. Without test, valid is the test part
        path:str|Path,
        # Regular expression on the path below `path`; its parentheses name the group, e.g. `_g(\\d+)_`
        group:str|None=None,
        test_frac:float=.25, # Part of the clips to test on if there is no test folder
        seed:int=0, # Random seed of the test part
        damaged:str='keep', # See `make_task`
    )->'Task': # Split into train, test and, with such a folder, valid
        "Make a task of videos in class folders. Without `group`, each file is its own group"
        path = Path(path)
        if not path.is_dir(): raise InputError(f'folder {path} does not exist')
        test_frac, seed = parse_share(test_frac, 'test_frac'), parse_integer(seed, 'seed')
        df, is_split, notes = read_folder(path, group)
        task = make_task(f'folder:{path}', df, notes, damaged=damaged)
        if is_split:
            shared = shared_groups(task.df)
            if shared: raise InputError(f'{task.name}: group {shared[0]!r} is in both train and test')
            return check_split(task)
        test = split_groups(task.df, test_frac, seed, f'{task.name}: cannot split into train and test')
        by_group = f'test is {len(test)} clips split off by group, seed {seed}'
        by_file = (f'test is {len(test)} files split off at random, seed {seed}: recordings of one person or scene '
                   'can be on both sides; name them with group=REGEX')
        return check_split(task.moved(test, 'test', by_group if group else by_file))

    @classmethod
    @python_strings
    def from_csv(cls,
        path:str|Path, # File with columns path (absolute or relative to the file), label, split and perhaps group
        train:str='train', # Split names to train on, joined by `+`; if there is no 'train', a name such as 'Training'
        test:str|None=None, # Split names to test on, joined by `+`; by default 'test', else all that begin with it
        # Split names to choose strengths on; by default 'valid', 'val' and the like, else part of train is held out
        valid:str|None=None,
        name:str|None=None, # Name of the task
        outside:bool=False, # Allow relative paths that lead out of the csv's folder, such as `../videos/a.mp4`
        damaged:str='keep', # See `make_task`
    )->'Task': # With the splits that were asked for
        "Make a task of videos listed in a csv file. Rows with other split names are left out"
        path = Path(path)
        if not path.is_file(): raise InputError(f'csv file {path} does not exist')
        df, notes = read_video_csv(path, train, test, valid, parse_flag(outside))
        task = make_task(name or f'csv:{path}', df, notes, damaged=damaged)
        for a, b in (('train', 'test'), ('train', 'valid'), ('valid', 'test')):
            shared = shared_groups(task.df, a, b)
            if shared: task = task._noted(f'{len(shared)} groups are in both {a} and {b}, as the file says')
        return check_split(task)

    @cached_property
    def vocab(self)->list[str]:
        "The class names in the table, in official or else alphabetical order"
        present = set(self.df.label)
        return [c for c in self.classes if c in present] or sorted(present)

    @property
    def inventory(self)->list[tuple]:
        "Name, size in bytes, label, split, group and damage of each video, sorted; the folder does not matter"
        table = self.df[['path', 'label', 'split', 'group']].values
        def damage(path): return [self.damaged[path]] if path in self.damaged else []  # undamaged tasks keep their keys
        return sorted((Path(path).name, os.path.getsize(path), *rest, *damage(path)) for path, *rest in table)

    @cached_property
    def fingerprint(self)->str:
        "A hash of the inventory and of the version of sdfast's decoding"
        return hashlib.sha256(repr((PIXELS, self.inventory)).encode()).hexdigest()[:16]

    def items(self, *splits)->list[tuple[str, str]]:
        "`(path, label)` of the given splits, in the order of the table"
        for split in splits: _check_split_name(split)
        return list(self.df.loc[self.df.split.isin(splits), ['path', 'label']].itertuples(index=False, name=None))

    def count(self, split:str)->int:
        _check_split_name(split)
        return int((self.df.split == split).sum())

    def describe(self)->str:
        "One line with the numbers of classes, clips and skipped files"
        parts = ', '.join(f'{self.count(split)} {split}' for split in SPLITS if self.count(split))
        skipped = f', {len(self.skipped)} skipped' if self.skipped else ''
        return f'{self.name}: {len(self.vocab)} classes, {parts}{skipped}'

    def hold_out(self,
        frac:float=.2, # Part of the train clips to hold out
        seed:int=0, # Random seed of the choice
    )->'Task':
        "Move some groups from train to 'valid', with balanced classes. A task with a valid part is returned unchanged"
        frac, seed = parse_share(frac, 'frac'), parse_integer(seed, 'seed')
        if self.count('valid'): return self
        train = self.df.index[self.df.split == 'train']
        chosen = split_groups(self.df.loc[train], frac, seed, f'{self.name}: cannot hold out a valid part of train')
        return self.moved(train[chosen], 'valid')

    def moved(self, rows:Any, split:str, *notes:str)->'Task':
        "A copy with some rows moved to another split, and more notes"
        df = self.df.copy()
        df.loc[rows, 'split'] = split
        return replace(self, df=df)._noted(*notes)

    def _noted(self, *notes): return replace(self, notes=(*self.notes, *notes))

    def subset(self,
        seed:int=0, # Random seed of the choice
        **n:int, # Clips of each class to keep in each split, e.g. `train=20, test=10`; other splits are kept whole
    )->'Task':
        "Keep at most the given number of clips of each class"
        for split in n: _check_split_name(split)
        mixed = self.df.sample(frac=1, random_state=seed)
        rank = mixed.groupby(['split', 'label']).cumcount()
        kept = rank.index[rank < mixed.split.map(n).fillna(np.inf)]
        return replace(self, df=self.df.loc[kept.sort_values()])

    def dls(self,
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames of the video from one frame of the clip to the next
        size:int|None=112, # Side of the square crop in pixels; `None`: whole frames, for an item transform to resize
        bs:int=32, # Batch size
        k:int=1, # Clips of each video outside training; more than 1 needs the `MultiClip` callback
        workers:int=0, # Loading processes; 0 also keeps decoded videos in memory, up to 2 GiB, if about all of them fit
        tfms:Sequence=(), # More batch transforms, such as `aug_transforms()`
        item_tfms:Sequence=(), # More item transforms, such as `[Resize(112)]`
        # Mean and standard deviation of each channel, ImageNet's by default; `()`: batches are floats in [0, 1]
        stats:tuple|None=None,
        area:tuple|None=None, # Share of the frame that a training crop covers, see `SampleClips`
        flip:bool=False, # Mirror half of the training clips
        wrap:bool=False, # Repeat a short video from its start instead of repeating its last frame
        # Folder in which videos that are kept in memory are shared with other processes, see `Decoded`
        decoded:str|Path|None=None,
        train_only:bool=False, # Do not warn where there is no valid part
        **kwargs, # Passed to `DataBlock.dataloaders`
    )->DataLoaders:
        "`DataLoaders` of the train and valid parts; for test see `dl`"
        check_loader_arguments('Task.dls', Task.dls, kwargs)
        train, valid = self.items('train'), self.items('valid')
        if not train: raise InputError(f'{self.name}: there are no train clips')
        if not valid and not train_only:
            warnings.warn(f'{self.name} has no valid part, so a fit reports None for valid_loss and metrics: call '
                          'hold_out() before dls(), or pass train_only=True')
        if self.prepared: check_prepared_size(self.name, self.prepared, size, area)
        cache = keep_decoded(list(self.df.path), None if area else size, workers, decoded)
        stats = imagenet_stats if stats is None else stats
        # other batch transforms need floats in [0, 1], so clips are then normalised in a separate step after them
        at_once = None if tfms or not stats else stats
        video = VideoBlock(frames, stride, size, k, cache, at_once, area=area, flip=flip, wrap=wrap)
        block = DataBlock(
            blocks=(video, CategoryBlock(vocab=list(self.label_space) or self.vocab, sort=False)),
            getters=[ItemGetter(0), ItemGetter(1)],
            splitter=IndexSplitter(range(len(train), len(train) + len(valid))),
            item_tfms=list(item_tfms),
            batch_tfms=[*tfms, *([normalize_video(*stats)] if stats else [])] if tfms else None,
            dl_type=CachedDL if cache else None)
        return block.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)

    def torch_dl(self,
        *splits:str, # 'train', 'valid' and 'test'
        bs:int=32, # Batch size
        shuffle:bool|None=None, # By default only the train part
        seed:int=0, # Of the order and of random clips, which also depend on the epoch, and not on `workers`
        workers:int=0, # Loading processes
        floats:bool=True, # Normalised floats; otherwise bytes
        stats:tuple|None=None, # Mean and standard deviation of each channel, ImageNet's by default
        drop_last:bool=False, # Leave out the last batch if it is smaller
        **kwargs, # Arguments of `SampleClips`: frames, stride, size (112), k, area, flip, wrap, cache
    )->DataLoader: # Yields clips `(B, T, 3, H, W)`, with `k` outside training `(B, K, T, 3, H, W)`, and class numbers
        "A `DataLoader` of PyTorch for a loop of your own, with plain tensors. Clips are random if `splits` is 'train'"
        clips = SampleClips(**dict(size=112) | kwargs)
        stats = (imagenet_stats if stats is None else stats) if floats else None
        numbers = list(self.label_space) or self.vocab
        items = [(path, numbers.index(label)) for path, label in self.items(*splits)]
        train = splits == ('train',)
        if not items: raise InputError(f'{self.name} has no clips of {" and ".join(splits) or "no part"}')
        shuffled = train if shuffle is None else shuffle
        return torch_loader(items, clips, train, bs, shuffled, seed, workers, stats, drop_last)

    def dl(self, dls:DataLoaders, *splits)->TfmdDL:
        "A labelled, unshuffled loader of `splits` with the transforms that `dls` uses for validation"
        return dls.test_dl(self.items(*splits), with_labels=True)


@python_strings
def make_task(
    name:str, # Name of the task, for tables and the key of a run
    df:pd.DataFrame, # Columns path (absolute), label, split and group, one row per video
    notes:Sequence[str]=(), # Notes for readers of the results, as Markdown
    check:bool=True, # Use prepared copies, decode every file, and leave out those that cannot be decoded
    classes:Sequence[str]=(), # The official order of class names, if there is one
    # Videos with more than 3 damaged frames: 'keep' them, 'drop' them, or 'fail'. Notes list them
    damaged:str='keep',
)->Task: # Its split is not checked, see `check_split`
    """Make a `Task` from a table of videos.

    Its cells are checked, see `clean_table`; what is doubtful becomes a note and a warning. Raises `InputError` for
    class names that are not safe in files, and unless there are two classes or more with two clips or more each.

    All frames of all videos are decoded once per machine, to find damaged ones, see `VideoFile.damaged`."""
    df, doubts = clean_table(name, df, files=check)
    check_names(name, df.label)
    notes = [*notes, *doubts]
    for doubt in doubts: warnings.warn(f'{name}: {doubt}')
    skipped: dict[str, str] = {}
    n_damaged: dict[str, int] = {}
    prepared = None
    if check:
        df, prepared, more_notes = use_prepared_copies(df)
        df, skipped, n_damaged, damage = check_files(name, df, damaged)
        notes += more_notes + damage
    df = df.reset_index(drop=True)
    if not len(df):
        path, why = next(iter(skipped.items()))
        raise InputError(f'{name}: none of its {len(skipped)} videos can be used, the first: {path} ({why})')
    check_classes(name, df.label)
    return Task(name, df, skipped, tuple(notes), tuple(classes), prepared, n_damaged)


def check_split(
    task:Task, # A task with a complete split
    files:bool=True, # Look for files, and copies of files, that are in two splits
    held_out:str='test', # The part that must have clips: 'test' or 'valid'
)->Task: # With notes on classes that are missing in the valid or test part, and on overlaps of splits
    "Check a task's split. Raises `InputError` if a class has no train clip or the `held_out` part is empty"
    missing = missing_classes(task.df, task.vocab, 'train')
    if missing:
        known = sorted(set(task.df.label[task.df.split == 'train']))
        raise InputError(f'{task.name}: no train clip of class {missing[0]!r}; train has {list_names(known[:5])}'
                         + (' and others' if len(known) > 5 else ''))
    if not task.count(held_out): raise InputError(f'{task.name}: there are no {held_out} clips')
    notes = []
    for split in ('valid', 'test'):
        missing = missing_classes(task.df, task.vocab, split)
        if missing and task.count(split): notes.append(f'{split} has no clip of {list_names(missing)}')
    overlaps = overlap_notes(task.df) if files else []
    for overlap in overlaps: warnings.warn(f'{task.name}: {overlap}')
    return task._noted(*notes, *overlaps)


def _check_split_name(split):
    if split not in SPLITS: raise InputError(f'unknown split {split!r}; use {", ".join(SPLITS)}')
