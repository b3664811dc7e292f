"What tells callbacks of one class apart, and one fit from another."
import hashlib
import inspect
import math
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from fastcore.foundation import L
from torch import nn
from torch.distributions import Distribution

from .arguments import ShowArguments

__all__ = ['numbered']

SAMPLE = 64  # samples whose values stand for a data set
NEAR = 1e-3  # relative difference of tensors that were computed twice
# attributes that describe an object
KINDS = bool, int, float, str, type(None), torch.Tensor, nn.Module, partial, dict
# modules of fastai's callbacks that change the training; others show or save it
TRAINING = 'fastai.callback.mixup', 'fastai.callback.training', 'fastai.callback.rnn', 'fastai.callback.fp16'


def number(
    callback:Any, # Has a `name`
    callbacks:Iterable, # All that act together
)->str: # '' for the first callback of its name, or '_2', '_3'
    "What tells a callback from others of the same name"
    alike = [c for c in callbacks if getattr(c, 'name', None) == callback.name]
    i = next((i for i, c in enumerate(alike) if c is callback), 0)
    return f'_{i + 1}' if i else ''


def numbered(
    callbacks:Iterable, # Such as `learn.cbs`
)->dict[str, Any]: # In the same order
    "Callbacks by name; the second of one name is `NAME_2`, and so on"
    callbacks = list(callbacks)
    return {f'{cb.name}{number(cb, callbacks)}':cb for cb in callbacks}


# ---- settings of a fit

def fit_settings(
    learn:Learner, # In `before_fit`
)->dict[str, Any]: # Name of a setting -> numbers, strings, dicts and lists
    """All that decides what a fit computes, except the model, the seed and where it runs: arguments of callbacks,
    optimizer, loss, data"""
    settings: dict[str, Any] = dict(loss=describe(learn.loss_func))
    for name, cb in numbered(learn.cbs).items():
        for argument, value in _arguments(cb).items(): settings[f'{name}.{argument}'] = value
    return settings | _optimizer(learn.opt) | _data(learn.dls)


def differences(
    old:dict, # What `fit_settings` returned for the saved fit
    new:dict, # The same for this fit
)->list[str]: # A text for each setting that differs
    "Compare the settings of two fits"
    texts = []
    for name in [*new, *(n for n in old if n not in new)]:
        if name not in old or name not in new:
            texts.append(f'{name}, which only {"this" if name in new else "the saved"} fit has')
        elif not _equal(old[name], new[name]): texts.append(_changed(name, old[name], new[name]))
    return texts


def _changed(name, old, new):
    short = all(isinstance(v, (bool, int, float, str)) and len(str(v)) < 40 for v in (old, new))
    return f'{name}={old}, not {new}' if short else f'other {name}'


def _equal(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): return False
        # a tensor, which may have been computed anew
        if 'norm' in a: return a['shape'] == b['shape'] and all(_near(a, b, k) for k in ('norm', 'along'))
        return all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b or a != a and b != b


def _near(a, b, k):
    return a[k] == b[k] or math.isnan(a[k]) and math.isnan(b[k]) or abs(a[k] - b[k]) <= NEAR*max(a['norm'], b['norm'])


def _arguments(cb):
    "Arguments of a callback that trains, by name"
    module = type(cb).__module__
    if isinstance(cb, ParamScheduler): return {f'{n} schedule':_schedule(f) for n, f in cb.scheds.items()}
    ours = isinstance(cb, ShowArguments) and not module.startswith('sdfast.runtime.')
    if not ours and module not in TRAINING: return {}
    aliases, state = getattr(type(cb), '_argument_attrs', {}), getattr(cb, '_state', ())
    found = {}
    for name in [*inspect.signature(type(cb).__init__).parameters, 'distrib']:  # `MixUp` keeps no `alpha`
        attr = aliases.get(name, name)
        # not `hasattr(cb, attr)`: a fastai callback looks up missing attributes in its learner
        if name in ('self', 'args', 'kwargs', *state) or not (attr in vars(cb) or hasattr(type(cb), attr)): continue
        value = getattr(cb, attr)
        found[name] = _content(value) if isinstance(value, (str, Path)) else describe(value)
    return found or {'class':type(cb).__name__}


def _content(x):
    "What is in a file, if `x` is one: it may have moved"
    if len(str(x)) > 1000 or not Path(x).is_file(): return describe(x)
    return hashlib.sha256(Path(x).read_bytes()).hexdigest()[:16]


def _schedule(f):
    def values(at): return [float(v) for v in np.atleast_1d(np.asarray(f(at), float))]
    return [values(i/8) for i in range(9)]


def _optimizer(opt):
    each = {k:[describe(h.get(k)) for h in opt.hypers] for k in opt.hypers[0]}  # by parameter group
    steps = [f.__name__ for f in getattr(opt, 'cbs', ()) if hasattr(f, '__name__')]
    kind = dict(optimizer=steps or type(getattr(opt, 'opt', opt)).__name__)
    return kind | {k:v[0] if all(x == v[0] for x in v) else v for k, v in each.items()}


def _data(dls):
    found = {}
    for part, dl in zip(('training', 'validation'), dls.loaders): found |= _loader(dl, part)
    found.pop('validation batch size', None)
    vocab = getattr(dls, 'vocab', None)
    return found | {'classes':describe(getattr(dls, 'c', None) if vocab is None else list(vocab))}


def _loader(dl, part):
    "Size of data set and batches, and some items"
    dl = vars(dl).get('dl', dl)  # unwrapped from `DistributedDL`
    data = getattr(dl, 'dataset', None)
    size = getattr(dl, 'bs', getattr(dl, 'batch_size', None))
    return {f'{part} samples':_length(data), f'{part} batch size':size, f'{part} data':_samples(data)}


def _length(data):
    try: return len(data)
    except TypeError: return None


def _samples(data):
    "Some items, without the transforms, which may be random; `None` if they cannot be read without"
    items = data
    for attr in ('tensors', 'items', 'samples', 'indices'):
        kept = getattr(data, attr, None)
        if kept is not None and not callable(kept):
            items = list(zip(*kept)) if attr == 'tensors' else kept
            break
    if hasattr(items, 'iloc'): items = items.to_dict('records')  # a table of pandas
    if not isinstance(items, (list, tuple, L, np.ndarray)): return None
    return [describe(items[i]) for i in range(0, len(items), max(1, len(items)//SAMPLE))]


# ---- values

def describe(
    x:Any, # An argument of a callback, a loss, an item of a data set
    depth:int=4, # How deep to look into containers and objects
)->Any: # Numbers, strings, dicts and lists, equal for equal values in another process, on another device and folder
    "Describe a value, so that it can be stored and compared"
    if x is None or isinstance(x, (bool, int, float)): return x
    # the folder may have moved; the last part of its name may be a label
    if isinstance(x, Path) or isinstance(x, str) and len(x) < 1000 and '/' in x: return '/'.join(Path(x).parts[-2:])
    if isinstance(x, str): return x if len(x) < 200 else hashlib.sha256(x.encode()).hexdigest()[:16]
    if isinstance(x, np.generic): return x.item()
    if isinstance(x, np.ndarray): return describe(torch.from_numpy(x)) if x.dtype.kind in 'biufc' else x.tolist()
    if torch.is_tensor(x): return _tensor(x)
    if isinstance(x, torch.dtype): return str(x)
    if isinstance(x, Distribution): return {n:describe(getattr(x, n)) for n in x.arg_constraints}
    if inspect.isroutine(x) or inspect.isclass(x): return x.__qualname__
    if depth == 0: return type(x).__name__
    def inner(v): return describe(v, depth - 1)
    if isinstance(x, partial): return [inner(x.func), inner(list(x.args)), inner(x.keywords)]
    if isinstance(x, dict): return {str(k):inner(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [inner(v) for v in x]
    if isinstance(x, (set, frozenset)): return sorted(str(inner(v)) for v in x)
    if isinstance(x, nn.Module): return _module(x)
    if hasattr(x, 'dataset') and hasattr(x, '__iter__'): return _loader(x, 'its')
    if isinstance(x, Callback): return type(x).__name__
    return {'class':type(x).__name__} | {n:inner(v) for n, v in _attributes(x).items() if isinstance(v, KINDS)}


def _tensor(x):
    v = torch.view_as_real(x) if x.is_complex() else x
    v = v.detach().as_subclass(torch.Tensor).flatten()
    v = v[::1 + len(v)//10**6].cpu().double()
    wave = torch.arange(len(v), dtype=torch.float64).mul_(.7).cos_()
    return dict(shape=list(x.shape), norm=v.norm().item(), along=(v @ wave).item()/max(1., wave.norm().item()))


def _module(x):
    state = {n:_tensor(v) for n, v in x.state_dict().items() if torch.is_tensor(v)}
    plain = {n:v for n, v in _attributes(x).items() if n != 'training' and isinstance(v, (bool, int, float, str))}
    return {'class':type(x).__name__, 'state':state} | plain


def _attributes(x):
    "Public attributes, without those that are computed at first use, which an earlier fit may have used"
    known = getattr(x, '__dict__', {}).items()
    return {n:v for n, v in known if n[0] != '_' and not isinstance(getattr(type(x), n, None), cached_property)}
