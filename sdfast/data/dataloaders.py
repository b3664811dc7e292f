"""`VideoDataLoaders`: loaders of videos by the factory methods of fastai's `ImageDataLoaders`.

They are made from a `Task`: files that cannot be decoded are left out and named, damaged ones are noted, the same file
under two names is one, and parts are split by group."""
import csv
import os
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.data.core import DataLoaders
from fastcore.foundation import L

from ..errors import InputError
from .folders import VIDEO_SUFFIXES, find_videos, read_folder, split_of_name
from .loader import check_loader_arguments
from .pipelines import RESIZING
from .splits import group_names, split_groups
from .tables import parse_flag, parse_integer, parse_share, shared_groups
from .task import Task, check_split, make_task
from .text import list_names, python_strings

__all__ = ['get_video_files', 'VideoDataLoaders']

DEFAULT_SIZE = 112  # of clips, in pixels
DEFAULT_PART = .2  # of the videos, for validation


def get_video_files(
    path:str|Path, # Folder
    recurse:bool=True, # Search the folders below it, too
    folders:str|Sequence[str]|None=None, # Of these only, such as 'train'
)->L: # Paths, sorted
    "List the videos in a folder, by their suffix"
    path = Path(path)
    if not path.is_dir(): raise InputError(f'folder {path} does not exist')
    names = [folders] if isinstance(folders, str) else folders
    if names is None and recurse: return L(find_videos(path)[0])
    roots = [path] if names is None else [path/name for name in names]
    missing = [str(root) for root in roots if not root.is_dir()]
    if missing: raise InputError(f'folder {missing[0]} does not exist')
    if recurse: return L(file for root in roots for file in find_videos(root)[0])
    files = [file for root in roots for file in sorted(root.iterdir())]
    return L(file for file in files if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())


class VideoDataLoaders(DataLoaders):
    """Loaders of videos with classes, by factory methods like those of fastai's `ImageDataLoaders`.

    `task` is the `Task` that they were made from. Batches are floats in [0, 1] unless `stats` are given:
    `video_learner` normalises them as its model expects."""
    task: Task|None = None

    @classmethod
    def from_task(cls,
        task:Task, # With a train part
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames of the video from one frame of the clip to the next
        # Side of the square crop in pixels, `None` for whole frames; 'auto' is 112, or `None` if one of `item_tfms`
        # changes the size, such as `Resize`
        size:int|str|None='auto',
        k:int=1, # Clips of each video outside training; more than 1 needs `MultiClip`, which `video_learner` adds
        item_tfms:Sequence|Callable|None=None, # Transforms of the frames of single clips, such as `Resize(112)`
        batch_tfms:Sequence|Callable|None=None, # Transforms of batches, such as `aug_transforms()`
        bs:int=32, # Batch size
        num_workers:int=0, # Loading processes; 0 also keeps decoded videos in memory if they fit
        stats:tuple|None=None, # Mean and standard deviation of each channel
        **kwargs, # Other arguments of `Task.dls` and fastai's `dataloaders`, such as val_bs, device, path, flip, area
    )->'VideoDataLoaders':
        "Make loaders of the train and valid parts of a task"
        check_loader_arguments(cls.__name__, cls.from_task, kwargs)
        of_items, of_batches = list(L(item_tfms)), list(L(batch_tfms))
        whole = any(isinstance(f, RESIZING) for f in of_items)
        side: Any = size if size != 'auto' else None if whole else DEFAULT_SIZE
        dls = task.dls(frames, stride, side, bs, k, num_workers, tfms=of_batches, item_tfms=of_items,
                       stats=() if stats is None else stats, **kwargs)
        found = cls(*dls.loaders, path=dls.path, device=dls.device)
        found.task = task
        return found

    @classmethod
    @python_strings
    def from_folder(cls,
        path:str|Path, # Folder of class folders, or of folders train and valid with class folders in them
        train:str='train', # Name of the folder to train on; other usual names are known, too
        valid:str='valid', # Name of the folder to validate on
        # Part of the videos to validate on, split off by group; by default that of the valid folder or, without one,
        # 0.2. With it, the train and valid folders are mixed; a test folder is never used
        valid_pct:float|None=None,
        seed:int|None=0, # Random seed of the valid part; `None`: another one each time
        group:str|None=None, # Regular expression on the path below `path`; its parentheses name the group
        vocab:Sequence[str]|None=None, # The classes in the order that predictions should have
        **kwargs, # Other arguments of `from_task`
    )->'VideoDataLoaders':
        """Make loaders of the videos in class folders.

        Without `group`, files are split at random, with a warning: clips of one recording would be on both sides."""
        path = Path(path)
        if not path.is_dir(): raise InputError(f'folder {path} does not exist')
        df, is_split, notes = _named_folders(path, train, valid, group) or read_folder(path, group, need_test=False)
        df = df[df.split != 'test'].reset_index(drop=True)
        given = is_split and valid_pct is None and (df.split == 'valid').any()
        return cls._from_table(f'folder:{path}', df, None if given else valid_pct or DEFAULT_PART, seed,
                               group is not None, notes, vocab, **dict(path=path) | kwargs)

    @classmethod
    @python_strings
    def from_df(cls,
        df:pd.DataFrame, # One row per video
        path:str|Path='.', # Folder of the files
        valid_pct:float=.2, # Part of the videos to validate on, split off by group
        seed:int|None=0, # Random seed of the valid part; `None`: another one each time
        fn_col:int|str=0, # Column with file names
        folder:str|Path|None=None, # Folder of the files below `path`
        suff:str='', # Added to the file names
        label_col:int|str=1, # Column with classes
        valid_col:int|str|None=None, # Column that says which rows to validate on, by true and false or by name of part
        group_col:int|str|None=None, # Column that says which videos must not be on both sides
        group:str|None=None, # Instead of it, a regular expression on the file name; its parentheses name the group
        vocab:Sequence[str]|None=None, # The classes in the order that predictions should have
        **kwargs, # Other arguments of `from_task`
    )->'VideoDataLoaders':
        "Make loaders of the videos in a table. Without groups, files are split at random, with a warning"
        if not len(df): raise InputError('the table has no rows')
        names = [f'{name}{suff}' for name in _column(df, fn_col, 'fn_col')]
        root = Path(path)/(folder or '')
        table = pd.DataFrame(dict(path=[os.path.abspath(root/name) for name in names],
                                  label=list(_column(df, label_col, 'label_col')), split='train'))
        if group_col is not None: table['group'] = list(_column(df, group_col, 'group_col'))
        else: table['group'] = group_names(names, group)
        if valid_col is not None: table['split'] = [_part(value) for value in _column(df, valid_col, 'valid_col')]
        table = table[table.split != 'test'].reset_index(drop=True)
        return cls._from_table(f'table of {path}', table, None if valid_col is not None else valid_pct, seed,
                               group is not None or group_col is not None, (), vocab, **dict(path=path) | kwargs)

    @classmethod
    @python_strings
    def from_csv(cls,
        path:str|Path, # Folder of the csv file and the videos, or the csv file
        csv_fname:str='labels.csv', # Name of the file in `path`
        header:int|str|None='infer', # Row of the header; `None` without one
        delimiter:str|None=None, # By default a comma
        quoting:int=csv.QUOTE_MINIMAL, # One of `csv.QUOTE_...`
        **kwargs, # Other arguments of `from_df`
    )->'VideoDataLoaders':
        "Make loaders of the videos that a csv file lists. Cells are read as text"
        file = Path(path) if Path(path).is_file() else Path(path)/csv_fname
        if not file.is_file(): raise InputError(f'csv file {file} does not exist')
        options: dict[str, Any] = dict(header=header, sep=delimiter or ',', quoting=quoting)
        try: df = pd.read_csv(file, dtype=str, keep_default_na=False, **options)
        except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as e:
            raise InputError(f'{file} cannot be read as csv: {str(e).splitlines()[0]}') from None
        return cls.from_df(df, path=file.parent, **kwargs)

    @classmethod
    @python_strings
    def from_path_func(cls,
        path:str|Path, # Where a `Learner` saves models
        fnames:Iterable, # Paths of videos, such as those of `get_video_files`
        label_func:Callable, # Function of a path that returns the class
        valid_pct:float=.2, # Part of the videos to validate on, split off by group
        seed:int|None=0, # Random seed of the valid part; `None`: another one each time
        group:str|None=None, # Regular expression on the path; its parentheses name the group
        vocab:Sequence[str]|None=None, # The classes in the order that predictions should have
        **kwargs, # Other arguments of `from_task`
    )->'VideoDataLoaders':
        "Make loaders of videos whose path tells the class"
        files = [str(f) for f in fnames]
        if not files: raise InputError('there are no videos; pass the paths of some')
        table = pd.DataFrame(dict(path=list(map(os.path.abspath, files)), label=[label_func(f) for f in files],
                                  split='train', group=group_names(files, group)))
        return cls._from_table(f'files of {path}', table, valid_pct, seed, group is not None, (), vocab,
                               **dict(path=path) | kwargs)

    @classmethod
    def from_name_func(cls,
        path:str|Path, # Where a `Learner` saves models
        fnames:Iterable, # Paths of videos, such as those of `get_video_files`
        label_func:Callable, # Function of a file's name that returns the class
        **kwargs, # Other arguments of `from_path_func`
    )->'VideoDataLoaders':
        "Make loaders of videos whose name tells the class"
        return cls.from_path_func(path, fnames, lambda f: label_func(Path(f).name), **kwargs)

    @classmethod
    def _from_table(cls, name, df, valid_pct, seed, grouped, notes, vocab, damaged='keep', **kwargs):
        "Loaders of a table with the parts train and valid; with `valid_pct` the valid part is split off"
        check_loader_arguments(cls.__name__, cls.from_task, kwargs)
        if valid_pct is not None: df = df.assign(split='train')
        task = make_task(name, df, notes, damaged=damaged, classes=_checked_vocab(name, df, vocab))
        if valid_pct is None:
            shared = shared_groups(task.df, 'train', 'valid') if grouped else []
            if shared: raise InputError(f'{name}: group {shared[0]!r} is in both train and valid')
        else: task = _split_off(task, parse_share(valid_pct, 'valid_pct'), seed, grouped)
        return cls.from_task(check_split(task, held_out='valid'), **kwargs)


def _split_off(task, part, seed, grouped):
    "Move a part of the videos to valid, and warn if nothing says which belong together"
    seed = random.randrange(2**31) if seed is None else parse_integer(seed, 'seed')
    chosen = split_groups(task.df, part, seed, f'{task.name}: cannot split into train and valid')
    by = 'by group' if grouped else 'at random'
    note = f'valid is {len(chosen)} of {len(task.df)} files, split off {by}, seed {seed}'
    if not grouped:
        warnings.warn(f'{task.name}: {note}: recordings of one person or scene can be on both sides, which makes '
                      "accuracies too high; name them with group=REGEX, or say group='(.*)' if no two files have one")
    return task.moved(chosen, 'valid', note)


def _named_folders(path, train, valid, group):
    "`read_folder` of two folders with names of the user's; `None` for the usual names"
    if (train, valid) == ('train', 'valid'): return None
    tables, notes = [], []
    for split, name in dict(train=train, valid=valid).items():
        if not (path/name).is_dir(): raise InputError(f'folder {path/name} does not exist')
        df, is_split, more = read_folder(path/name, None)
        if is_split: raise InputError(f'folder {path/name} has folders of splits in it, not of classes')
        tables.append(df.assign(split=split))
        notes += [f'{name}: {note}' for note in more]
    df = pd.concat(tables, ignore_index=True)
    df['group'] = group_names([os.path.relpath(p, path) for p in df.path], group)
    return df, True, notes


def _column(df, column, argument):
    if column in df.columns: return df[column]
    if isinstance(column, int) and column < df.shape[1]: return df.iloc[:, column]
    raise InputError(f'{argument}={column!r}: the table has the columns {list_names(map(str, df.columns))}')


def _part(value):
    "The part that a cell of `valid_col` means"
    return split_of_name(value) if isinstance(value, str) and split_of_name(value) else (
        'valid' if parse_flag(value) else 'train')


def _checked_vocab(name, df, vocab):
    if vocab is None: return ()
    vocab, present = list(map(str, vocab)), set(map(str, df.label))
    for what, rest in ((f'{name} has a class that vocab lacks', present - set(vocab)),
                       (f'{name} has no video of a class in vocab', set(vocab) - present)):
        if rest: raise InputError(f'{what}: {list_names(sorted(rest)[:3])}')
    return vocab
