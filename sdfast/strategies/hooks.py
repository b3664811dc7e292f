"Forward hooks that record the inputs and outputs of a module."
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['unrecorded']  # `Recorder` is a name of fastai, too: import it from this module


class Recorder:
    "A forward hook that records `(args, kwargs, out)` of each call of a module; copies and pickles of it are empty"
    def __init__(self): self.calls = []

    def __call__(self, module:nn.Module, args:tuple, kwargs:dict, out:object)->None:
        self.calls.append((args, kwargs, out))

    def __reduce__(self): return Recorder, ()


@contextmanager
def unrecorded(
    model:nn.Module, # With or without hooks
)->Iterator[nn.Module]: # A context manager that gives the model
    "Discard what the `Recorder`s of a model record in this context"
    recorders = [h for m in model.modules() for h in m._forward_hooks.values() if isinstance(h, Recorder)]
    counts = [len(r.calls) for r in recorders]
    try: yield model
    finally:
        for r, n in zip(recorders, counts): del r.calls[n:]
