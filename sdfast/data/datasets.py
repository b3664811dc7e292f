"Tasks by name, and `moving_digits` and `moving_photos`, whose videos sdfast makes itself."
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from inspect import signature
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..runtime.store import home
from .annotated import kinetics, ssv2
from .digits import CLIPS, write_moving_digits
from .embedded import embedded_videos
from .official import hmdb51, ucf101
from .photos import PHOTO_PARTS, find_photos, photos_id, write_moving_photos
from .task import Task, check_split, make_task
from .text import python_strings
from .unpacked import hf_dataset, shards

__all__ = ['moving_digits', 'moving_photos', 'create_task']


def moving_digits(
    # Folder of the videos, which are written if missing (110 MB); by default `$SDFAST_HOME` or ~/.cache/sdfast
    path:str|Path|None=None,
    part:str='target', # 'source', 'target', 'motion' or 'digit'
)->Task: # Split into train, valid and test
    """Handwritten digits (UCI, from scikit-learn) that move over 8 frames of 40x40.

    The part 'source' has 60 classes, 10 digits x 6 motions, with 6,000 train, 600 valid and 1,200 test clips. The other
    parts are few-shot, with about 160 train, 160 valid and 800 test clips: 'target' has 8 classes (groups of digits x
    motions), 'motion' 6 (any digit), and 'digit' 10 (any motion). The three splits show different handwritten images.
    The videos are written once and checked by digest at each use, see `embedded_videos`."""
    if part not in CLIPS: raise InputError(f'moving_digits has the parts {", ".join(CLIPS)}, not {part!r}')
    root = Path(path or home()).expanduser()/'moving_digits-2'/part
    embedded_videos(root, partial(write_moving_digits, part=part))
    return _read_embedded(root, f'moving_digits:{part}')


def moving_photos(
    path:str|Path, # Folder of photographs, `train/CLASS` and `test/CLASS`, such as CIFAR-10 from `sdfast get-data`
    part:str='target', # 'source' or 'target'
    to:str|Path|None=None, # Folder of the videos, written if missing (50 MB); by default `$SDFAST_HOME`
)->Task: # Split into train, valid and test
    """Photographs that move over others, blurred ones, for 8 frames of 48x48, in colour.

    A class is a class of photographs and one of six motions. The first 60 % of the classes of photographs, by name, are
    the source's, the others the target's. Of CIFAR-10's ten, the part 'source' has 6 x 6 classes with 9,000 train, 720
    valid and 1,440 test clips; 'target' is few-shot, 4 x 6 classes with 192 train, 192 valid and 960 test clips. The
    three splits show different photographs. The videos are written once and checked at each use."""
    if part not in PHOTO_PARTS: raise InputError(f'moving_photos has the parts {", ".join(PHOTO_PARTS)}, not {part!r}')
    photos = find_photos(path)
    root = Path(to or home()).expanduser()/'moving_photos-1'/photos_id(photos)/part
    root.parent.mkdir(parents=True, exist_ok=True)
    embedded_videos(root, partial(write_moving_photos, photos=photos, part=part))
    return _read_embedded(root, f'moving_photos:{part}')


def _read_embedded(root, name):
    table = pd.read_csv(root/'manifest.csv')
    table['path'] = [str(root/p) for p in table.path]
    return check_split(make_task(name, table, check=False), files=False)


# First word of a spec -> function of a path and the spec's options. To add your own task, add a row
TASKS: dict[str, Callable[..., Task]] = dict(
    moving_digits=moving_digits, moving_photos=moving_photos, ucf101=ucf101, hmdb51=hmdb51, kinetics=kinetics,
    ssv2=ssv2, folder=Task.from_folder, csv=Task.from_csv, hf_dataset=hf_dataset, shards=shards)


def task_options(
    kind:str, # First word of a spec
)->list[str]: # Empty for an unknown one
    "Names of the options that a spec of a task may have"
    return [name for name in list(signature(TASKS[kind]).parameters)[1:] if name != 'name'] if kind in TASKS else []


@cache
@python_strings
def create_task(
    # `moving_digits`, or one of `TASKS` and a path, such as `ucf101:PATH` or `folder:PATH`, then options as
    # `,name=value`; with `classes=FIRST-LAST` any task has a part of its classes
    spec:str,
    part:str='target', # Which part of `moving_digits` or `moving_photos`
)->Task: # Cached: the same object for the same arguments
    "Create a task by name, e.g. `ucf101:/data/UCF-101,fold=2` or `folder:mine,group=_g(\\d+)_`"
    head, *words = re.split(r',(?=[a-z_]+=)', spec)
    kind, _, path = head.partition(':')
    if kind not in TASKS:
        known = ', '.join(k if k == 'moving_digits' else f'{k}:PATH' for k in TASKS)
        raise InputError(f'unknown task {spec!r}; known are {known}')
    options = dict(word.split('=', 1) for word in words)
    classes = options.pop('classes', '')
    if len(options) + bool(classes) < len(words): raise InputError(f'task {spec!r} has an option twice; give each once')
    accepted = [*task_options(kind), 'classes']
    unknown = sorted(set(options) - set(accepted))
    if unknown: raise InputError(f'task {spec!r}: unknown option {unknown[0]!r}; {kind} has {", ".join(accepted)}')
    if not path and kind != 'moving_digits': raise InputError(f'task {spec!r} needs a path: {kind}:PATH')
    if kind in ('moving_digits', 'moving_photos'): options = dict(part=part) | options
    task = TASKS[kind](path or None, **options)
    return _some_classes(task, classes) if classes else task


def _some_classes(task, text):
    "The clips of some classes, given as FIRST-LAST, numbers in the order of the vocabulary from 0"
    match = re.fullmatch(r'(\d+)-(\d+)', text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not first < last < len(task.vocab):
        raise InputError(f'{task.name}: classes must be FIRST-LAST, two or more of 0-{len(task.vocab) - 1}, such as '
                         f'classes=0-{max(1, len(task.vocab)//2 - 1)}, not {text!r}')
    kept = task.df.label.isin(task.vocab[first:last + 1])
    return replace(task, name=f'{task.name} {first}-{last}', df=task.df[kept].reset_index(drop=True))
