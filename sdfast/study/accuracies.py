"The accuracy of one encoder on the source and on all tasks of a chain."
import re
from collections.abc import Sequence

import torch
from torch import nn

from ..data.text import FORMULA
from ..errors import InputError
from ..metrics.features import linear_probe
from ..models.features import extract
from ..models.surgery import frozen_copy
from .loaders import PROBE_CLIPS, balanced_loader, source_data, target_data

__all__ = ['Accuracies']


class Accuracies:
    """Measures an encoder on the source and all tasks of a chain: `Accuracies(runs)(encoder, heads)`.

    `names` holds 'source' and short names of the tasks, as used in columns of CSV files. Raises `InputError` if a task
    has no valid part, because strengths are chosen on it."""
    def __init__(self,
        runs:list, # A `Run` for each task, with the same source
    ):
        _check_source(runs)
        parts = [source_data(runs[0]), *map(target_data, runs)]
        self.tasks = [task for task, _, _ in parts]
        self.names = _short_names(self.tasks[1:])
        for task in self.tasks:
            if not task.count('valid'):
                raise InputError(f'{task.name} has no valid part to choose strengths on: set source_valid=True for the '
                                 'source, valid_frac above 0 for the others')
        self.train = [balanced_loader(task, dls, PROBE_CLIPS) for task, dls, _ in parts]
        self.valid = [task.dl(dls, 'valid') for task, dls, _ in parts]
        self.test = [test for _, _, test in parts]

    def __call__(self,
        encoder:nn.Module, # Its mode and statistics do not change
        heads:Sequence[nn.Module], # The heads of the tasks learned so far, each from the end of its stage
        final:bool=True, # Also read test, with old heads and new probes
    )->dict: # `valid.NAME`, `head.NAME` of tasks with a head; `probe.NAME`, and `clips.NAME` of test, of all tasks
        "Accuracies on valid and test"
        found = {f'valid.{n}':_accuracy(h, *extract(encoder, dl)) for n, h, dl in zip(self.names, heads, self.valid)}
        if not final: return found
        test = [extract(encoder, dl) for dl in self.test]
        for name, head, xy in zip(self.names, heads, test): found[f'head.{name}'] = _accuracy(head, *xy)
        for name, (_, y) in zip(self.names, test): found[f'clips.{name}'] = len(y)
        for name, dl, xy in zip(self.names, self.train, test):
            found[f'probe.{name}'] = linear_probe(*extract(encoder, dl), *xy)
        return found


def _check_source(runs):
    if not runs: raise InputError('a chain needs at least one task after the source')
    if not runs[0].source or len({r.source_key for r in runs}) > 1:
        raise InputError('the runs of a chain need the same source, with the same `data`, model and clips')


def _short_names(tasks):
    "'source' and the last part of each task's name, with a number if it is already taken"
    # names become cells and columns of CSV files: a spreadsheet must not take them for formulas
    names = ['source', *(FORMULA.sub('_', re.split('[:/]', task.name.rstrip('/'))[-1]) for task in tasks)]
    return [n if names.index(n) == i else f'{n}-{i}' for i, n in enumerate(names)]


@torch.no_grad()
def _accuracy(head, x, y):
    return (frozen_copy(head).cpu()(x).argmax(1) == y).double().mean().item()
