"Forward hooks that record the inputs and outputs of a module."
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['unrecorded']  # `Recorder` is a name of fastai, too: import it from this module


class Recorder:
    """A forward hook that records `(args, kwargs, out)` of each call of a module while `wanted()` is true, or always;
    copies and pickles of it are empty"""
    def __init__(self, wanted:Callable|None=None):
        self.calls: list[tuple] = []
        self.wanted = wanted

    def __call__(self, module:nn.Module, args:tuple, kwargs:dict, out:object)->None:
        if self.wanted is None or self.wanted(): self.calls.append((args, kwargs, out))

    def __reduce__(self): return Recorder, ()


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
