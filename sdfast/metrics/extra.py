"Measures of the source that `Retention` takes on request: probes with chosen settings, and one that attends to tokens."
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .attentive import KeepTokens, attentive_right
from .chosen import choose_neighbours, choose_strength
from .features import fit_probe, right_neighbours
from .loaders import FixedLoaders

__all__ = ['EXTRA']

EXTRA = ('source_probe_tuned', 'source_knn_tuned', 'source_attentive')  # columns of `MEASURES`
CHOSEN = EXTRA[:2]  # those with a setting that is chosen on held-out clips


def split_extra(
    text:str, # Names, joined by ','
)->list[str]: # Names of `EXTRA`
    "Read the names of extra measures. Raises `InputError` for one that is not in `EXTRA`"
    names = [name.strip() for name in text.split(',') if name.strip()]
    for name in names:
        if name not in EXTRA: raise InputError(f'extra measures are {", ".join(EXTRA)}, not {name!r}')
    return list(dict.fromkeys(names))


def are_chosen(
    text:str, # As for `split_extra`
)->bool:
    "Whether one of them has a setting that is chosen on a held-out part of the source"
    return any(name in CHOSEN for name in split_extra(text))


def check_extra(
    names:Sequence[str], # As given to `Retention`
    valid_dl:Any=None, # Held-out source clips
    test_dl:Any=None, # Source clips to measure on
)->tuple[str, ...]: # The same names
    "Raise `InputError` for a name that is not in `EXTRA`, or one whose data are not given"
    names = split_extra(names if isinstance(names, str) else ','.join(names))
    for name in names:
        if test_dl is None: raise InputError(f'{name} needs train_dl and test_dl of the source')
        if name in CHOSEN and valid_dl is None:
            raise InputError(f'{name} has a setting that is chosen on held-out source clips: pass valid_dl (in a '
                             'Run, source_valid=True)')
    return tuple(names)


def right_extra(
    names:Sequence[str], # Of `EXTRA`
    encoder:nn.Module, # In eval mode
    loaders:FixedLoaders, # `train_dl` and `test_dl`, which are read again for tokens
    readings:dict, # Name of a loader -> the outputs of `encoder`
)->dict[str, torch.Tensor]: # Name -> whether each test clip is right `(N,)`, whose mean is the measure
    "Measure what was asked for"
    return {name:_right(name, encoder, loaders, readings) for name in names}


def _right(name, encoder, loaders, readings):
    if name == 'source_attentive': return _attentive(encoder, loaders)
    train, test, valid = (readings[n] for n in ('train_dl', 'test_dl', 'valid_dl'))
    _check_apart(name, valid, dict(train_dl=train, test_dl=test))
    pairs = train.x, train.y, valid.x, valid.y
    if name == 'source_knn_tuned': return right_neighbours(train.x, train.y, test.x, test.y, choose_neighbours(*pairs))
    probe = fit_probe(train.x, train.y, choose_strength(*pairs))
    return torch.tensor(probe.predict(test.x.numpy()) == test.y.numpy())


def _check_apart(name, valid, others):
    "Raise `InputError` if a held-out clip is also one of the others"
    def known(reading): return {tuple(f'{v:.9g}' for v in row) for row in reading.trace.tolist()}
    for other, reading in others.items():
        shared = len(known(valid) & known(reading))
        if not shared: continue
        raise InputError(f'{name} has a setting that is chosen on held-out clips, but {shared} of valid_dl are in '
                         f'{other}, too: take other clips')


def _attentive(encoder, loaders):
    parts = []
    for name in ('train_dl', 'test_dl'):
        keep = KeepTokens()
        parts += [loaders.read(encoder, name, outputs_of=keep).y, keep.tokens]
    y, x, yt, xt = parts
    return attentive_right(x, y, xt, yt, next(encoder.parameters()).device)
