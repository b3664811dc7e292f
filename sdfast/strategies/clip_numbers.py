"Which clips of the training data a batch has: one answer for all that remember something about each clip."
from typing import Any

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.data.core import Datasets
from fastai.learner import Learner

from ..errors import InputError
from .loop import Loop
from .targets import class_numbers, logits_of

__all__ = ['ClipNumbers']


class ClipNumbers:
    """The numbers of a batch's clips in the training data, such as those of `learn.dls.train_ds`.

    In a `Learner`, fastai's loader knows them; other loops give them, by `loss(targets, numbers)` or to the adapter.
    Raises `InputError` where they are not known, or where a row is no clip by itself, as with `MixUp`."""
    def __init__(self,
        who:str, # Who asks, for messages
    ):
        self.who = who
        self._labels: dict[int, int] = {}  # number of a clip -> its label, as far as it has been looked up

    def __call__(self,
        loop:Loop, # In a batch
    )->torch.Tensor: # `(B,)`, int64, on the CPU
        "The numbers of this batch's clips"
        if isinstance(getattr(loop.criterion, '__self__', None), Callback):
            owner = type(loop.criterion.__self__).__name__  # type: ignore[union-attr]
            raise InputError(f'{self.who} remembers each clip, and {owner} mixes those of a batch: leave it out')
        if loop.numbers is None:
            raise InputError(f'{self.who} needs to know which clips of the training data a batch has: '
                             f'{loop.ask_numbers}')
        numbers = torch.as_tensor(loop.numbers)
        rows = len(logits_of(loop.outputs, self.who))
        if numbers.shape != (rows,) or numbers.is_floating_point() or (numbers < 0).any():
            raise InputError(f'{self.who} needs the number of each of the {rows} clips of a batch, whole numbers of at '
                             f'least 0, not {numbers.dtype} of shape {tuple(numbers.shape)}')
        numbers = numbers.long().cpu()
        self._check_labels(loop, numbers)
        return numbers

    def _check_labels(self, loop, numbers):
        "A loader that skips a broken video moves all that follow"
        labels, y = loop.labels, loop.targets
        if labels is None or not torch.is_tensor(y) or y.is_floating_point() or y.numel() != len(numbers): return
        wanted = []
        for i in numbers.tolist():
            if i not in self._labels: self._labels[i] = int(labels[i])
            wanted.append(self._labels[i])
        if torch.equal(class_numbers(y).cpu(), torch.tensor(wanted)): return
        raise InputError(f'{self.who} cannot tell which clips a batch has: its labels are not those of the data set, '
                         'as if broken videos had been skipped; leave these out')


def numbers_in(
    learn:Learner, # In a training batch
)->list[int]|None: # `None` if its loader does not say
    "The numbers of the clips of the batch that a `Learner` trains on"
    # fastai's loader keeps the order of the epoch; that of PyTorch, and data without an index, have none
    order, bs = vars(learn.dl).get('_DataLoader__idxs'), getattr(learn.dl, 'bs', None)
    if not isinstance(order, list) or not bs: return None
    numbers = order[learn.iter*bs:(learn.iter + 1)*bs]
    return numbers if all(isinstance(i, int) for i in numbers) else None


def labels_in(
    learn:Learner, # In a training batch
)->Any: # By number; `None` if looking them up would take reading the clips
    "The labels of the training data"
    data = getattr(learn.dl, 'dataset', None)
    return data.tls[1] if isinstance(data, Datasets) and len(data.tls) == 2 else None


def gathered(
    *values:torch.Tensor, # With one row for each clip, the same number in each
)->tuple[torch.Tensor, ...]: # With the rows of all processes, once for each clip
    "Join what the processes that train together have seen in an epoch; `values[0]` are the numbers of the clips"
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1: return values
    parts: list = [None]*dist.get_world_size()
    dist.all_gather_object(parts, values)
    joined = [torch.cat(part) for part in zip(*parts)]
    seen: dict[int, int] = {}  # some loaders repeat clips to make the parts equal
    for row, number in enumerate(joined[0].tolist()): seen.setdefault(number, row)
    rows = torch.tensor(list(seen.values()), dtype=torch.long)
    return tuple(v[rows] for v in joined)
