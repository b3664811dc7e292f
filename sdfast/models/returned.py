"The tensors in what a module returns: a tensor, tuple, list, dict or output dataclass."
import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import nn

from ..errors import InputError

__all__ = ['find_tensors']

# entries of a dict or dataclass that hold features, best first
FEATURES = ('last_hidden_state', 'features', 'feature', 'x_norm_patchtokens', 'pooler_output', 'image_embeds',
            'embeddings', 'out')


def find_tensors(
    out:Any, # What a module returned
    what:str='the encoder', # Which module it was, for the error
    module:nn.Module|None=None, # The module itself, for the error
)->list[torch.Tensor]: # One tensor, or those of parallel branches
    """The tensors that hold the features in what a module returns.

    Of a tuple it is the first entry, but all of three or more maps or tokens of one batch; a list has the outputs of
    parallel branches, which all count. Of a dict or dataclass it is `last_hidden_state`, another name for
    features, or its only tensor. Raises `InputError` for anything else."""
    if torch.is_tensor(out) and (out.is_floating_point() or out.is_complex()) and out.ndim: return [out]
    keys = _keys(out)
    if not keys: raise InputError(_refusal(out, what, module))
    return [t for k in keys for t in find_tensors(_get(out, k), what, module)]


def map_tensors(
    out:Any, # What a module returned
    f:Callable, # Maps one of `find_tensors` to another
)->Any: # The same structure
    "What a module returns, with `f` of its `find_tensors`; `out` stays unchanged"
    if torch.is_tensor(out): return f(out)
    new = {k:map_tensors(_get(out, k), f) for k in _keys(out)}
    if isinstance(out, (tuple, list)):
        fields_of = getattr(out, '_fields', range(len(out)))
        items = [new.get(i, new.get(k, v)) for i, (k, v) in enumerate(zip(fields_of, out))]
        return type(out)(*items) if hasattr(out, '_fields') else type(out)(items)
    if not isinstance(out, Mapping): return replace_fields(out, **new)
    changed: Any = copy.copy(out)
    for k, v in new.items(): changed[k] = v
    return changed


def _named(out):
    "The entries of a mapping, dataclass or named tuple by name; empty for anything else"
    if isinstance(out, Mapping): return dict(out)
    if is_dataclass(out): return {f.name:getattr(out, f.name) for f in fields(out)}
    return out._asdict() if hasattr(out, '_asdict') else {}


def _get(out, key):
    if isinstance(out, (Mapping, tuple, list)) and not isinstance(key, str): return out[key]
    return _named(out)[key]


def _keys(out):
    "Names or numbers of the entries that hold the features"
    named = {k:v for k, v in _named(out).items() if v is not None}
    found = [k for k in FEATURES if k in named][:1]
    if found: return found
    if named and not isinstance(out, tuple):
        tensors = [k for k, v in named.items() if torch.is_tensor(v)]
        return tensors if len(tensors) == 1 and tensors[0] not in ('logits', 'loss') else []
    if isinstance(out, list): return list(range(len(out)))
    if not isinstance(out, tuple) or not out: return []
    return list(range(len(out))) if _are_branches(out) else [0]


def _are_branches(out):
    "Whether a tuple has the maps or tokens of parallel branches, and not one output with weights or states"
    if len(out) < 3 or not all(torch.is_tensor(v) and v.ndim > 2 for v in out): return False
    return len({(v.ndim, len(v)) for v in out}) == 1


def _refusal(out, what, module):
    names = [str(k) for k, v in _named(out).items() if v is not None]
    given = f'{type(out).__name__} with {", ".join(names)}' if names else type(out).__name__
    whose = f'{what} ({type(module).__name__})' if module is not None else what
    base = getattr(module, 'base_model_prefix', '')
    advice = f'pass encoder= its base model, {base!r}, or ' if base and hasattr(module, base) else ''
    return (f'{whose} returns {given}; expected a tensor of features, tokens or maps, or a tuple, list, dict or '
            f'dataclass with one ({", ".join(FEATURES[:2])}...): {advice}wrap it in a module whose forward returns '
            'the features, or leave it out of layers=[...]')
