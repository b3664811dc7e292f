"What labels are: class numbers that a head's outputs stand for, or an error that says why not."
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fastcore.foundation import CollBase

from ..errors import InputError

__all__ = ['clip_labels']


def clip_labels(
    y:torch.Tensor, # Labels of N clips, `(N,)`, or `(N, 1)` as columns of a table give them
    who:str='labels', # What they are, for the error
    n:int|None=None, # Number of clips that they belong to
)->torch.Tensor: # int64 `(N,)`
    """Make labels class numbers, as `CrossEntropyLossFlat` flattens them.

    Raises `InputError` for other targets: several labels of a clip, shares of classes, real numbers, negative ones."""
    if not torch.is_tensor(y):
        raise InputError(f'{who} must be a tensor of class numbers (N,), not {type(y).__name__}: number the classes '
                         'from 0')
    y = y.detach().as_subclass(torch.Tensor)
    if y.ndim == 2 and y.shape[1] == 1: y = y[:, 0]
    what = f'{str(y.dtype).removeprefix("torch.")} of shape {tuple(y.shape)}'
    if y.ndim != 1 or y.is_complex():
        raise InputError(f'{who} must be class numbers (N,), not {what}; turn one-hot labels into numbers with '
                         'argmax(1)')
    numbers = y.long()
    if y.is_floating_point() and not torch.equal(numbers.to(y.dtype), y):
        raise InputError(f'{who} must be class numbers (N,), not {what} with fractions')
    if len(y) and numbers.min() < 0:
        raise InputError(f'{who} must be class numbers from 0, not {int(numbers.min())}: leave out clips without a '
                         'class')
    if n is not None and len(y) != n: raise InputError(f'{who}: {len(y)} labels belong to {n} clips')
    return numbers


def loader_vocab(
    dl:Iterable, # Any iterable of batches
)->Sequence|None: # `None` if it does not say
    "The names of the classes that a loader numbers, of fastai's loaders and torchvision's data sets"
    data: Any = dl
    while data is not None:
        for name in ('vocab', 'classes'):
            names: Any = getattr(data, name, None)
            is_list = isinstance(names, Sequence|CollBase) and not isinstance(names, str)  # fastai's is no `Sequence`
            if is_list and len(names) and isinstance(names[0], str): return names
        data = getattr(data, 'dataset', None)
    return None


def check_head(
    width:int, # Number of the head's outputs
    y:torch.Tensor, # Class numbers of all clips that it is asked about
    vocab:Sequence|None=None, # Names of the classes, see `loader_vocab`
    who:str='the loader', # Which loader, for the error
)->None:
    "Raise `InputError` unless class number i of a loader can be output i of a head"
    remedy = ('pass a head with one output for each class in the order of the loader, such as '
              'probe_head(*extract(encoder, train_dl), n_classes)')
    if width < 2: raise InputError(f'the head has {width} output, not one for each class: {remedy}')
    if vocab is not None and len(vocab) != width:
        raise InputError(f'the head has {width} outputs, {who} numbers {len(vocab)} classes: {remedy}')
    if len(y) and int(y.max()) >= width:
        raise InputError(f'the head has {width} outputs, {who} has class number {int(y.max())} (they start at 0): '
                         f'{remedy}')
