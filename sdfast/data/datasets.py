"Tasks by name, and `moving_digits`, whose videos sdfast makes itself."
import re
from collections.abc import Callable
from functools import cache
from inspect import signature
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..runtime.store import home
from .annotated import kinetics, ssv2
from .digits import CLIPS
from .embedded import embedded_videos
from .official import hmdb51, ucf101
from .task import Task, check_split, make_task
from .text import python_strings
from .unpacked import hf_dataset, shards

__all__ = ['moving_digits', 'create_task']


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
    embedded_videos(root, part)
    table = pd.read_csv(root/'manifest.csv')
    table['path'] = [str(root/p) for p in table.path]
    return check_split(make_task(f'moving_digits:{part}', table, check=False), files=False)


# First word of a spec -> function of a path and the spec's options. To add your own task, add a row
TASKS: dict[str, Callable[..., Task]] = dict(
    moving_digits=moving_digits, ucf101=ucf101, hmdb51=hmdb51, kinetics=kinetics, ssv2=ssv2, folder=Task.from_folder,
    csv=Task.from_csv, hf_dataset=hf_dataset, shards=shards)


def task_options(
    kind:str, # First word of a spec
)->list[str]: # Empty for an unknown one
    "Names of the options that a spec of a task may have"
    return [name for name in list(signature(TASKS[kind]).parameters)[1:] if name != 'name'] if kind in TASKS else []


@cache
@python_strings
def create_task(
    # `moving_digits`, or one of `TASKS` and a path, such as `ucf101:PATH` or `folder:PATH`, then options as
    # `,name=value`
    spec:str,
    part:str='target', # Which part of `moving_digits`
)->Task: # Cached: the same object for the same arguments
    "Create a task by name, e.g. `ucf101:/data/UCF-101,fold=2` or `folder:mine,group=_g(\\d+)_`"
    head, *words = re.split(r',(?=[a-z_]+=)', spec)
    kind, _, path = head.partition(':')
    if kind not in TASKS:
        known = ', '.join(k if k == 'moving_digits' else f'{k}:PATH' for k in TASKS)
        raise InputError(f'unknown task {spec!r}; known are {known}')
    options = dict(word.split('=', 1) for word in words)
    if len(options) < len(words): raise InputError(f'task {spec!r} has an option twice; give each once')
    accepted = task_options(kind)
    unknown = sorted(set(options) - set(accepted))
    if unknown: raise InputError(f'task {spec!r}: unknown option {unknown[0]!r}; {kind} has {", ".join(accepted)}')
    if kind == 'moving_digits': return moving_digits(path or None, **dict(part=part) | options)
    if not path: raise InputError(f'task {spec!r} needs a path: {kind}:PATH')
    return TASKS[kind](path, **options)
