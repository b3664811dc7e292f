"The classification head in a checkpoint of an encoder."
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoints import read_nodes
from .matching import HEADS
from .weights import check_values

__all__ = ['read_head']

# names of a last linear layer: the usual ones, the second part of a `Sequential(encoder, head)`, the last of a list
NAMES = re.compile(rf'(?:.*\.)?(?:{"|".join(HEADS)}|1)(?:\.(?:\d+|head|fc))?\.weight')
PAIR = 'encoder.safetensors', 'head.safetensors'  # how a study stores its source model


def read_head(
    path:str|Path, # A file or folder of weights, see `load_encoder`
    encoder:Any, # With `num_features`, whose weights are no head
    n_classes:int|None=None, # Number of outputs; `None`: any
)->nn.Linear|None: # `None` if there is none that fits, or several that differ
    "Read the linear layer on an encoder's features in a checkpoint; a study stores it next to the encoder's file"
    path = Path(path)
    head_file = path.with_name(PAIR[1])
    nodes = read_nodes(path)
    if path.name == PAIR[0] and head_file.is_file():
        nodes = {'': {f'fc.{k}':v for k, v in read_nodes(head_file)[''].items()}}
    found = [head for entries in nodes.values() for head in _heads(entries, encoder, n_classes)]
    if not found: return None
    (weight, bias), *others = found
    if any(w.shape != weight.shape or not torch.equal(w, weight) for w, _ in others): return None
    return _layer(weight, bias, f'the head in {path}')


def _heads(entries, encoder, n_classes):
    "Weight and bias of the layers that can be the head, whose names are not the encoder's"
    own, named = set(encoder.state_dict()), getattr(encoder, 'head_name', '').removeprefix('body.')
    for name, weight in entries.items():
        is_head = NAMES.fullmatch(name) or named and f'.{name}'.endswith(f'.{named}.weight')
        if not is_head or weight.ndim != 2 or weight.shape[1] != encoder.num_features: continue
        if len(weight) < 2 or n_classes is not None and len(weight) != n_classes: continue
        if any(name == k or name.endswith(f'.{k}') for k in own): continue
        bias = entries.get(f'{name.removesuffix("weight")}bias')
        yield weight, bias if bias is not None and bias.shape == weight.shape[:1] else torch.zeros(len(weight))


def _layer(weight, bias, source):
    head = nn.Linear(weight.shape[1], len(weight))
    state = dict(weight=weight, bias=bias)
    check_values(state, head.state_dict(), source)
    head.load_state_dict(state)
    return head
