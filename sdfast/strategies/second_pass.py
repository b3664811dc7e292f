"A second forward pass in a training batch, of which nothing but gradients remains."
import sys
from collections.abc import Callable
from typing import Any

import torch
from fastai.torch_core import get_model
from torch import nn

from ..models.copies import copy_all
from ..models.statistics import keep_buffers
from .hooks import unrecorded

__all__ = ['SecondPass']


def in_checkpoint()->bool:
    "Whether the caller is inside of `torch.utils.checkpoint`"
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get('__name__') == 'torch.utils.checkpoint': return True
        frame = frame.f_back
    return False


def twin(module:nn.Module)->nn.Module:
    "A copy with the same parameters and hooks but buffers of its own"
    same = list(module.parameters())
    for m in module.modules(): same += [v for k, v in vars(m).items() if k.endswith('_hooks')]
    return copy_all(module, {id(o):o for o in same})


class SecondPass:
    """Run a module again in a training batch: batch norm uses the statistics of this pass and keeps its own, and no
    `Recorder` records it.

    Gradient checkpointing runs parts of the module once more in the backward pass, when this object cannot act any
    more. So a module with batch norm that is checkpointed is replaced by a `twin`, with parameters in common."""
    def __init__(self,
        module:nn.Module, # In training
        model:nn.Module|None=None, # The model that it is a part of, whose recorders do not record; `None`: itself
    ):
        self.module, self.model, self.twin, self.checked = module, get_model(model or module), None, False

    def __call__(self,
        f:Callable, # Function of the module that runs it; it may be called twice in the first batch
    )->Any: # What `f` returns
        "Run `f(module)`"
        with unrecorded(self.model):
            if self.twin is not None: return self._of_twin(f)
            if self.checked:
                with keep_buffers(self.module): return f(self.module)
            return self._first(f)

    def _first(self, f):
        "Run `f`, and find out whether a layer with statistics is checkpointed"
        found = []
        def look(module, args): found.append(in_checkpoint())
        compiled = getattr(self.module, '_compiled_call_impl', None) is not None
        parts = [] if compiled else [m for m in self.module.modules() if m.training and len(m._buffers)]
        hooks = [m.register_forward_pre_hook(look) for m in parts]
        state = torch.get_rng_state()
        try:
            with keep_buffers(self.module): out = f(self.module)
        finally:
            for h in hooks: h.remove()
        self.checked = True
        if not any(found): return out
        self.twin = twin(self.module)
        torch.set_rng_state(state)
        return self._of_twin(f)

    @torch.no_grad()
    def _follow(self):
        for t, m in zip(self.twin.modules(), self.module.modules()): t.training = m.training
        for t, b in zip(self.twin.buffers(), self.module.buffers()): t.copy_(b)

    def _of_twin(self, f):
        self._follow()
        return f(self.twin)
