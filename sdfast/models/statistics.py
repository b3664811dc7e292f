"""Layers that keep statistics of what they see in training, such as batch norm: which they are, and passes of a net
that do not change them."""
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from ..data.batches import split_batch
from ..errors import InputError
from .calls import call_on
from .copies import Hook
from .modes import eval_mode

__all__ = ['keep_buffers', 'reestimate_bn']

# Packages whose layers with statistics are known by the names of their buffers
LIBRARIES = 'torch', 'torchvision', 'timm', 'transformers', 'peft', 'fastai', 'sdfast'
_changing: weakref.WeakSet = weakref.WeakSet()  # other classes whose buffers have changed in a forward pass
_constant: weakref.WeakSet = weakref.WeakSet()  # layers whose buffers have not


def keeps_statistics(layer:nn.Module)->bool:
    """Whether a layer normalises by its batch in training, and by statistics that it has kept in eval mode.

    That is batch norm and instance norm, each layer with a buffer `running_...`, and each class whose buffers
    `watch_buffers` has seen change."""
    if all(b is None for b in layer._buffers.values()): return False
    if isinstance(layer, _NormBase) or type(layer) in _changing: return True
    return any('running_' in name for name in layer._buffers)


def iterates(layer:nn.Module)->bool:
    "Whether each pass in training is a step of a power iteration, in spectral norm"
    if isinstance(layer, _SpectralNorm): return True
    if not layer._forward_pre_hooks: return False
    return any(isinstance(h, SpectralNorm) for h in layer._forward_pre_hooks.values())


def statistics_layers(
    module:nn.Module, # An encoder or any other net
)->list[Any]: # Its modules
    "All layers of a module that keep statistics, see `keeps_statistics`"
    return [m for m in module.modules() if keeps_statistics(m)]


def warn_without_statistics(
    module:nn.Module, # That has been called in training
    who:str, # What acts on layers with statistics
)->None:
    "Warn that `who` has no effect on a module without such layers"
    if statistics_layers(module): return
    warnings.warn(f'{who} has no effect: {type(module).__name__} has no batch norm, nor other layers with statistics')


@contextmanager
def keep_buffers(
    module:nn.Module, # Changed in this context
    but:Iterable[nn.Module]=(), # Layers whose buffers may change
)->Iterator[nn.Module]: # A context manager that gives the module
    "Use the batch's statistics where the module does, without changing its statistics"
    free = set(map(id, but))
    layers: list[Any] = [m for m in module.modules() if m.training and (keeps_statistics(m) or iterates(m))]
    layers = [m for m in layers if id(m) not in free]
    tracking = [m for m in layers if isinstance(m, _BatchNorm) and m.track_running_stats]
    # `track_running_stats` has this effect in torch's batch norm; other layers work on copies of their buffers
    others = [m for m in layers if type(m).forward is not _BatchNorm.forward]
    lent = [(m, dict(m._buffers)) for m in others]
    for m in tracking: m.track_running_stats = False
    for m, buffers in lent: m._buffers.update({n:b if b is None else b.clone() for n, b in buffers.items()})
    try: yield module
    finally:
        for m in tracking: m.track_running_stats = True
        for m, buffers in lent: m._buffers.update(buffers)


@contextmanager
def as_student(
    teacher:nn.Module, # A copy of `student`, perhaps older
    student:nn.Module, # As it has just been called
    statistics:str='batch', # 'batch': normalise as the student does; 'running': by the statistics of the copy
)->Iterator[nn.Module]: # A context manager that gives the teacher
    """Call a teacher in this context: its layers with statistics have the student's modes, and its statistics do not
    change. Spectral norm makes the same steps as the student's."""
    steps = []
    for t, s in zip(teacher.modules(), student.modules()):
        if iterates(s):
            t.training = s.training
            steps.append(t)
        elif keeps_statistics(s): t.training = s.training and statistics == 'batch'
    with keep_buffers(teacher, but=steps): yield teacher


class watch_buffers:
    """Find layers of the user's own classes that keep statistics: whose buffers change at their first call in training.

    With `freeze`, such a call has no effect on the buffers and returns what the layer returns in eval mode."""
    def __init__(self,
        module:nn.Module, # Its layers get hooks until they are called in training
        freeze:bool=False, # Whether the layers shall keep their buffers
    ):
        self.freeze = freeze
        self.handles: list = []
        if any(getattr(m, '_compiled_call_impl', None) is not None for m in module.modules()): return
        for m in module.modules():
            if _is_unknown(m): self._watch(m)

    def _watch(self, layer):
        before: dict[str, torch.Tensor] = {}

        def look(m, args): before.update({n:b.clone() for n, b in m._buffers.items() if b is not None and m.training})

        def compare(m, args, kwargs, out):
            if not before: return None  # in eval mode
            for h in handles: h.remove()
            if all(m._buffers[n] is not None and torch.equal(m._buffers[n], b) for n, b in before.items()):
                _constant.add(m)
                return None
            _changing.add(type(m))
            if not self.freeze: return None
            for n, b in before.items(): m._buffers[n].data.copy_(b)
            m.training = False
            return m.forward(*args, **kwargs)

        handles = [layer.register_forward_pre_hook(Hook(look)),
                   layer.register_forward_hook(Hook(compare), with_kwargs=True)]
        self.handles += handles

    def remove(self)->None:
        "Remove the hooks that are left"
        for h in self.handles: h.remove()


def _is_unknown(layer):
    if not layer._buffers or layer in _constant or keeps_statistics(layer): return False
    return type(layer).__module__.partition('.')[0] not in LIBRARIES


def statistics_moved(state:dict, start:dict)->bool:
    "Whether running statistics in a state dict differ from those before training"
    return any(k.endswith(('running_mean', 'running_var')) and not torch.equal(v, start[k]) for k, v in state.items())


@torch.no_grad()
def reestimate_bn(
    model:nn.Module, # Called on the inputs of each batch
    dl:Iterable, # Yields `(x, y)`, of which `y` is not used, or dicts, see `split_batch`
    part:nn.Module|None=None, # Part of the model whose statistics change; `None`: the whole model
)->nn.Module: # `model`
    """Set the running statistics of batch norm, instance norm and EvoNorm to the mean over the batches of `dl`, as
    `momentum=None` does for batch norm.

    All other modules are in eval mode, so dropout draws no random numbers. Modes and momentum are restored and, after
    an error, the statistics as well. Without such layers, `dl` is not read. Raises `InputError` for a loader without
    batches. A warning names layers whose statistics cannot be recomputed."""
    norms = recomputable(model if part is None else part)
    if not norms: return model
    momentum = [m.momentum for m in norms]
    before = [[b.clone() for b in m.buffers()] for m in norms]
    device = next(norms[0].buffers()).device
    with eval_mode(model):
        try:
            for m in norms:
                m.train()
                if isinstance(m, _NormBase): m.reset_running_stats()
            empty = True
            for i, batch in enumerate(dl):
                empty = False
                for m in norms: m.momentum = None if isinstance(m, _BatchNorm) else 1/(i + 1)
                xs = [x.as_subclass(torch.Tensor).to(device) for x in _inputs(batch)]
                if len(xs) == 1: call_on(model, xs[0])
                else: model(*xs)
            if empty:
                raise InputError('there are no batches to take the statistics of batch norm from; '
                                 'pass a loader that yields (x, y)')
        except BaseException:
            for m, buffers in zip(norms, before):
                for b, old in zip(m.buffers(), buffers): b.copy_(old)
            raise
        finally:
            for m, mom in zip(norms, momentum): m.momentum = mom
    return model


def _inputs(batch):
    "What of a batch a model is called with: all but the last, if there are several inputs"
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and all(map(torch.is_tensor, batch)): return batch[:-1]
    return [split_batch(batch)[0]]


def recomputable(module:nn.Module)->list[Any]:
    "The layers of a module whose statistics `reestimate_bn` recomputes; warns of others"
    norms, others = [], []
    for m in statistics_layers(module):
        if isinstance(m, _NormBase):
            if m.track_running_stats and m.running_mean is not None: norms.append(m)
        elif type(m).__module__.startswith('timm.') and hasattr(m, 'momentum'): norms.append(m)
        elif 'Frozen' not in type(m).__name__: others.append(type(m).__name__)
    if others:
        warnings.warn(f'the statistics of {", ".join(sorted(set(others)))} cannot be recomputed and stay as they are: '
                      'only those of batch norm, instance norm and EvoNorm can')
    return norms
