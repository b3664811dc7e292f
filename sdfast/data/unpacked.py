"""Data sets of Hugging Face and webdataset shards, through their libraries, unpacked once into files.

Videos are read by frame from files, as are those of all other tasks. Those that are stored inside tables or archives
are written to `$SDFAST_HOME/unpacked`, under the digest of their content, which is compared at each use."""
import glob
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pandas as pd

from ..errors import InputError
from ..runtime import store
from .folders import VIDEO_SUFFIXES, split_in_name, split_of_name
from .splits import split_groups, without_leaks
from .tables import join_groups, parse_integer, parse_share
from .task import Task, check_split, make_task
from .text import list_names

__all__ = ['hf_dataset', 'shards']

UNLABELLED = '', '-1'  # what data sets have for the class of videos whose class is secret
AT_RANDOM = ('recordings of one person or scene can be on both sides; say which videos belong together with '
             'group=NAME of a column')


def hf_dataset(
    path:str|Path, # Name on the Hugging Face Hub, or a folder: saved by `save_to_disk`, of parquet, or of class folders
    video:str|None=None, # Column of videos, by default the only one
    label:str='label', # Column of classes
    group:str|None=None, # Column of groups: persons, scenes or recordings that must not be on both sides
    config:str|None=None, # Configuration of the data set
    revision:str|None=None, # Version of the data set on the Hub
    test_frac:float=.25, # Part of the videos to test on, if the data set has one part only
    seed:int=0, # Random seed of the test part
    damaged:str='keep', # See `make_task`
)->Task: # Split as the data set is
    """A video data set of Hugging Face's `datasets`. Needs `pip install 'sdfast[shards]'`.

    Videos with the same content are one group; those of train that are also in valid or test are left out."""
    parts = _load_parts(path, config, revision)
    rows: list[tuple] = []
    notes: list[str] = []
    classes: list[str] = []
    for name, data in parts.items():
        part = 'train' if len(parts) == 1 else split_of_name(name)
        if part is None:
            notes.append(f'part {name} is not used')
            continue
        column = _video_column(path, data, video)
        for wanted in filter(None, (label, group)):
            if wanted not in data.features: raise _no_column(path, wanted, data)
        classes = getattr(data.features[label], 'names', None) or classes
        rows += [(*row, part) for row in _rows_of_part(path, data, column, label, group)]
    df = pd.DataFrame(rows, columns=['path', 'label', 'group', 'split'])
    return _split_task(f'hf_dataset:{path}', df, group, notes, classes, test_frac, seed, damaged)


def shards(
    path:str|Path, # Pattern of local tar files, such as `data/{train,val}-*.tar`, or a folder of those
    label:str='label', # Field of the class in .json; without .json the class is in .cls or .txt
    group:str='group', # Field of the group in .json: persons, scenes or recordings that must not be on both sides
    test_frac:float=.25, # Part of the videos to test on, if the names of the files tell no parts
    seed:int=0, # Random seed of the test part
    damaged:str='keep', # See `make_task`
)->Task: # Split by the names of the files, or of their folders
    """Shards of webdataset: tar files with a video, and .cls or .json, for each sample. Needs
    `pip install 'sdfast[shards]'`.

    Videos with the same content are one group; those of train that are also in valid or test are left out."""
    files = _local_shards(path)
    rows, grouped = [], False
    parts = {file:split_in_name(file.stem) or split_of_name(file.parent.name) for file in files}
    unknown = [file.name for file, part in parts.items() if part is None]
    if unknown and len(unknown) < len(files):
        raise InputError(f'shards:{path}: the name of {unknown[0]} tells no part, as those of others do; put train, '
                         'val or test into all names, or into none')
    if unknown: parts = dict.fromkeys(files, 'train')
    for file, part in parts.items():
        for key, sample in _samples(file):
            data, suffix = _video_in(file, key, sample)
            facts = _facts(file, key, sample)
            grouped = grouped or group in facts
            rows.append((_unpack(data, suffix), _class_of(file, key, sample, facts, label), facts.get(group), part))
    df = pd.DataFrame(rows, columns=['path', 'label', 'group', 'split'])
    return _split_task(f'shards:{path}', df, group if grouped else None, [], [], test_frac, seed, damaged)


# ---- files

def _unpack(data, suffix):
    "The file that has these bytes; written if there is none, or its content has changed"
    digest = hashlib.sha256(data).hexdigest()
    file = store.home()/'unpacked'/digest[:2]/f'{digest[:32]}{suffix}'
    if file.is_file():
        if hashlib.sha256(file.read_bytes()).hexdigest() == digest: return str(file.absolute())
        warnings.warn(f'{file} has changed since it was unpacked, and is written again')
    try: file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise InputError(f'{file.parent} cannot be made ({e.strerror}); set SDFAST_HOME to a folder '
                                          'that can be written') from None
    store.write(file, data)
    return str(file.absolute())


def _needs(package):
    if find_spec(package) is None:
        raise InputError(f"this task needs the package {package}: pip install 'sdfast[shards]'")


# ---- Hugging Face

def _load_parts(path, config, revision):
    "Name of each part -> `datasets.Dataset`"
    _needs('datasets')
    import datasets
    folder = Path(path).expanduser()
    saved = any((folder/name).is_file() for name in ('dataset_dict.json', 'state.json'))
    try:
        if saved: found = datasets.load_from_disk(str(folder))
        else: found = datasets.load_dataset(str(folder if folder.is_dir() else path), config, revision=revision)
    except Exception as e:
        why = str(e).strip().splitlines() or [type(e).__name__]
        raise InputError(f'hf_dataset:{path} cannot be loaded: {why[0]}') from None
    return dict(found) if isinstance(found, dict) else dict(train=found)


def _video_column(path, data, video):
    if video is not None:
        if video not in data.features: raise _no_column(path, video, data)
        return video
    import datasets
    columns = [name for name, kind in data.features.items() if isinstance(kind, datasets.Video)]
    if len(columns) == 1: return columns[0]
    raise InputError(f'hf_dataset:{path} has {len(columns)} columns of videos; say which with video=NAME. It has '
                     f'{list_names(data.features)}')


def _no_column(path, name, data):
    return InputError(f'hf_dataset:{path} has no column {name!r}; it has {list_names(data.features)}')


def _rows_of_part(path, data, video, label, group):
    "File, class and group of each video"
    import datasets
    names = getattr(data.features[label], 'names', None)
    if isinstance(data.features[video], datasets.Video):
        data = data.cast_column(video, datasets.Video(decode=False))
    for row in data.select_columns(list(dict.fromkeys(filter(None, (video, label, group))))):
        value, number = row[video], row[label]
        known = number is not None and (names is None or number >= 0)
        yield (_file_of(path, value), '' if not known else names[number] if names else str(number),
               row[group] if group else None)


def _file_of(path, value):
    "The file of a cell: its path, or `{'path', 'bytes'}`"
    value = dict(path=value, bytes=None) if isinstance(value, str) else value or {}
    name, data = value.get('path'), value.get('bytes')
    if data is not None:
        suffix = os.path.splitext(name or '')[1].lower()
        return _unpack(data, suffix if suffix in VIDEO_SUFFIXES else '.mp4')
    if name and os.path.isfile(name): return os.path.abspath(name)
    raise InputError(f'hf_dataset:{path}: {name!r} is not a local file, and the data set does not contain it')


# ---- shards

def _local_shards(path):
    "The tar files of a pattern or folder. Addresses and commands, which webdataset would take, are refused"
    _needs('webdataset')
    import braceexpand
    folder = Path(path).expanduser()
    patterns = [str(folder/'**'/'*.tar')] if folder.is_dir() else list(braceexpand.braceexpand(str(folder)))
    files = [Path(f).absolute() for pattern in patterns for f in sorted(glob.glob(pattern, recursive=True))]
    files = list(dict.fromkeys(f for f in files if f.is_file()))
    if not files: raise InputError(f'shards:{path}: there are no such files; shards must be local tar files')
    return files


def _samples(file)->Iterator[tuple[str, dict]]:
    "Key and content of each sample of a shard"
    import webdataset
    data = webdataset.WebDataset([str(file)], shardshuffle=False, nodesplitter=lambda urls: urls, empty_check=False)
    try:
        for sample in data:
            key = sample['__key__']
            if PurePosixPath(key).is_absolute() or '..' in PurePosixPath(key).parts:
                raise InputError(f'{file}: the name {key!r} leads out of the archive')
            yield key, {name:value for name, value in sample.items() if not name.startswith('__')}
    except InputError: raise
    except Exception as e:
        why = str(e).strip().splitlines() or [type(e).__name__]
        raise InputError(f'{file} cannot be read as a shard: {why[0]}') from None


def _video_in(file, key, sample):
    found = [(data, f'.{name.lower().split(".")[-1]}') for name, data in sample.items()]
    videos = [(data, suffix) for data, suffix in found if suffix in VIDEO_SUFFIXES]
    if len(videos) == 1: return videos[0]
    raise InputError(f'{file}: sample {key} has {len(videos)} videos, not one; its files are {list_names(sample)}')


def _facts(file, key, sample):
    if 'json' not in sample: return {}
    try: facts = json.loads(sample['json'])
    except (ValueError, RecursionError): facts = None
    if isinstance(facts, dict): return facts
    raise InputError(f'{file}: {key}.json is not an object of JSON')


def _class_of(file, key, sample, facts, label):
    if label in facts: return str(facts[label])
    text = sample.get('cls', sample.get('txt'))
    if text is not None: return text.decode(errors='replace').strip()
    raise InputError(f'{file}: sample {key} has no class: neither .cls nor .txt nor {label!r} in .json')


# ---- parts

def _split_task(name, df, grouped, notes, classes, test_frac, seed, damaged):
    "The task of a table with parts as the data set has them, `None` for videos without a group"
    blank = df.label.isin(UNLABELLED)
    if blank.any(): notes = [*notes, f'videos without a class are not used: {blank.sum()}']
    df = df[~blank].reset_index(drop=True)
    if not len(df): raise InputError(f'{name}: there are no videos with a class')
    df = df.assign(group=[path if group is None else str(group) for path, group in zip(df.path, df.group)])
    df['group'] = join_groups(df.group, df.path)
    parts = set(df.split)
    if len(parts) == 1: df = df.assign(split='train')
    elif 'train' not in parts: raise InputError(f'{name} has {list_names(sorted(parts))}, but no train part')
    elif 'test' not in parts:
        df['split'] = df.split.replace('valid', 'test')
        notes = [*notes, 'test is the validation part, as there is no other to test on']
    df, leaks = without_leaks(df)
    for leak in leaks: warnings.warn(f'{name}: {leak}')
    if len(parts) > 1 and not grouped: notes = [*notes, 'groups are not known: each video is one']
    present = set(df.label)
    task = make_task(name, df, [*notes, *leaks], classes=[c for c in classes if c in present], damaged=damaged)
    if len(parts) > 1: return check_split(task)
    chosen = split_groups(task.df, parse_share(test_frac, 'test_frac'), parse_integer(seed, 'seed'),
                          f'{name}: cannot split into train and test')
    by = 'by group' if grouped else 'at random'
    note = f'test is {len(chosen)} videos split off {by}, seed {seed}' + ('' if grouped else f': {AT_RANDOM}')
    return check_split(task.moved(chosen, 'test', note))
