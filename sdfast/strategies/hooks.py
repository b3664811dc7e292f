"Forward hooks that record the inputs and outputs of a module."
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..models.copies import Hook

__all__ = ['unrecorded']  # `Recorder` is a name of fastai, too: import it from this module


def tensors_in(x:Any)->Iterator[torch.Tensor]:
    "The tensors in lists, tuples, dicts and dataclasses"
    if torch.is_tensor(x): yield x
    elif isinstance(x, dict): yield from tensors_in(tuple(x.values()))
    elif isinstance(x, (list, tuple)):
        for v in x: yield from tensors_in(v)
    elif is_dataclass(x): yield from tensors_in(tuple(vars(x).values()))


class Versions:
    "The state of some tensors, to see later whether an in-place operation has changed one"
    def __init__(self, x:Any=()):
        # compiled code cannot read versions
        tensors = () if torch.compiler.is_compiling() else tensors_in(x)
        self.before = [(t, t._version) for t in tensors if not t.is_inference()]

    def changed(self)->bool: return any(t._version != v for t, v in self.before)

    def check_inputs(self, who:str, what:str)->None:
        "Raise `InputError` if an input of the module `what` was changed, which `who` must pass to another net"
        if not self.changed(): return
        raise InputError(f'{who}: {what} changes its input in place, so that a second pass would see another input: '
                         'use operations that are not in place there, such as ReLU(inplace=False) or x = x - mean')


class Call(tuple):
    "`(args, kwargs, out)` of one call of a module"
    inputs: Versions
    output: Versions
    graded: bool  # whether gradients were enabled


class Recorder:
    """Hooks that record a `Call` for each call of a module while `wanted()` is true, or always; copies and pickles of
    it are empty"""
    def __init__(self, wanted:Callable|None=None):
        self.calls: list[Call] = []
        self.wanted = wanted
        self._started: list = []

    def hook(self, module:nn.Module)->list[RemovableHandle]:
        "Record calls of `module` until the handles are removed"
        return [module.register_forward_pre_hook(Hook(self._start), with_kwargs=True),
                module.register_forward_hook(self, with_kwargs=True)]

    def _start(self, module, args, kwargs): self._started.append(Versions((args, kwargs)))

    def __call__(self, module:nn.Module, args:tuple, kwargs:dict, out:object)->None:
        inputs = self._started.pop() if self._started else Versions()
        if self.wanted is not None and not self.wanted(): return
        call = Call((args, kwargs, out))
        call.inputs, call.output, call.graded = inputs, Versions(out), torch.is_grad_enabled()
        self.calls.append(call)

    def clear(self)->None:
        "Forget all calls"
        self.calls.clear()
        self._started.clear()

    def __reduce__(self): return Recorder, ()


def check_graph(
    call:Call, # Of `layer`, in training
    encoder:nn.Module, # Its parent
    layer:str, # Name of a submodule, '' for the encoder itself
    who:str, # Name of the strategy
)->None:
    "Raise `InputError` if no gradient can flow from a layer's output into the encoder, although its weights train"
    args, kwargs, out = call
    tensors = list(tensors_in(out))
    if not tensors or any(t.requires_grad for t in tensors): return
    module = encoder.get_submodule(layer)
    trains = any(p.requires_grad for p in module.parameters())
    fed = any(t.requires_grad for t in tensors_in((args, kwargs)))
    if not (trains or fed or not call.graded and _trains_before(encoder, module)): return
    what = f'layer {layer!r}' if layer else 'the encoder'
    raise InputError(f'{who}: {what} returns its output without a graph, so its weights cannot be pulled. It runs in '
                     'reentrant checkpointing, torch.no_grad() or detach(): for checkpointing take use_reentrant=False '
                     '(gradient_checkpointing_kwargs={"use_reentrant": False} in transformers)')


def _trains_before(encoder, module):
    "Whether a weight of the encoder trains that is registered before `module`"
    for m in encoder.modules():
        if m is module: return False
        if any(p.requires_grad for p in m._parameters.values() if p is not None): return True
    return False


_paused: weakref.WeakSet = weakref.WeakSet()  # models whose calls are not part of a training batch


def is_paused(model:nn.Module)->bool:
    "Whether calls of `model` are in the context of `unrecorded`"
    return model in _paused


@contextmanager
def unrecorded(
    model:nn.Module, # With or without hooks
)->Iterator[nn.Module]: # A context manager that gives the model
    "Discard what the `Recorder`s of a model record in this context, and what an attached strategy's loop would"
    recorders = [h for m in model.modules() for h in m._forward_hooks.values() if isinstance(h, Recorder)]
    counts = [len(r.calls) for r in recorders]
    inside = is_paused(model)
    _paused.add(model)
    try: yield model
    finally:
        if not inside: _paused.discard(model)
        for r, n in zip(recorders, counts): del r.calls[n:]
