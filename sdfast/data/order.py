"Loaders that can be read again: the same clips, in the same order."
import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from fastai.vision.augment import RandTransform
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from ..errors import InputError
from ..runtime.distributed import is_distributed

__all__ = ['check_order']

RANDOM = RandomSampler, SubsetRandomSampler, WeightedRandomSampler
PIPELINES = 'after_item', 'before_batch', 'after_batch'  # of a fastai loader
REMEDY = 'pass task.dl(dls, "train"), dls.test_dl(items, with_labels=True) or a DataLoader with shuffle=False'
TRACED = 4096  # about so many values of a clip are compared between two readings


def check_order(
    name:str, # Name of the loader, for the error
    dl:Iterable|None, # Any iterable of batches
)->None:
    """Raise `InputError` for a loader that shuffles, draws, augments, or reads a part of the clips.

    Two readings of it could not be compared clip by clip. Warns if the last batch is dropped."""
    if dl is None: return
    if isinstance(dl, Iterator): raise InputError(f'{name} can be read only once: pass a loader or a list of batches')
    if getattr(dl, 'shuffle', False): _refuse(name, 'shuffles')
    for sampler in _samplers(dl):
        if isinstance(sampler, RANDOM): _refuse(name, 'shuffles')
        if isinstance(sampler, DistributedSampler) and (sampler.shuffle or sampler.num_replicas > 1):
            _refuse(name, 'reads other clips in each process')
    if is_distributed(dl): _refuse(name, 'reads other clips in each process')
    if _augments(dl): _refuse(name, 'augments')
    _warn_of_dropped(name, dl)


def _refuse(name, does):
    raise InputError(f'{name} {does}, so two readings of it cannot be compared clip by clip: {REMEDY}')


def _samplers(dl):
    batch_sampler = getattr(dl, 'batch_sampler', None)
    return getattr(dl, 'sampler', None), batch_sampler, getattr(batch_sampler, 'sampler', None)


def _augments(dl):
    "Whether a fastai loader of the train part has transforms that draw random numbers"
    if getattr(getattr(dl, 'dataset', None), 'split_idx', None) != 0: return False
    return any(isinstance(f, RandTransform) for p in PIPELINES for f in getattr(getattr(dl, p, None), 'fs', ()))


def _warn_of_dropped(name, dl):
    batches: Any = getattr(dl, 'batch_sampler', None)
    if batches is None: batches = dl
    bs = getattr(batches, 'batch_size', None) or getattr(batches, 'bs', None)
    items = getattr(dl, 'dataset', None)
    if not getattr(batches, 'drop_last', False) or not bs or not isinstance(items, Sized): return
    if len(items) % bs:
        warnings.warn(f'{name} drops its last batch: {len(items) % bs} of {len(items)} clips are not measured; make it '
                      'with drop_last=False')


def trace(
    x:torch.Tensor, # A batch of clips
)->torch.Tensor: # Three numbers for each clip, float64 `(N, 3)`
    "Numbers by which a clip is recognised when it is read again: two sums over its values, and their size"
    values = x.detach().as_subclass(torch.Tensor).reshape(len(x), -1)
    step = values.shape[1]//TRACED | 1  # odd, so that it is in step with no side of a picture
    values = values[:, ::step].cpu().double()
    # the same at each reading, and random: with smooth ones a shift changes the sum by little
    weights = 1 + torch.rand(values.shape[1], dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return torch.stack([values.sum(1), values @ weights, values.abs().sum(1)], 1)


def check_trace(
    name:str, # Name of the loader, for the error
    first:torch.Tensor, # `trace` of the clips when they were read first
    again:torch.Tensor, # `trace` of the clips as they were read now
)->None:
    "Raise `InputError` if a loader did not give the same clips again, whatever the reason"
    if len(first) != len(again):
        raise InputError(f'{name} gave {len(first)} clips when it was first read and {len(again)} now, so they cannot '
                         f'be compared clip by clip: {REMEDY}')
    size = first[:, 2:].abs() + 1e-12
    changed = ((first - again).abs() > 1e-4*size).any(1)
    if changed.any():
        raise InputError(f'{name} gives other clips each time it is read ({int(changed.sum())} of {len(first)} '
                         f'differ), so they cannot be compared: it shuffles or augments; {REMEDY}')
