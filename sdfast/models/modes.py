"Contexts in which a module is called without an effect on training."
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['eval_mode']


@contextmanager
def eval_mode(
    model:nn.Module, # Changed in place
)->Iterator[nn.Module]: # A context manager that gives the model
    "Put every module into eval mode in this context, and restore the modes afterwards"
    modes = {m:m.training for m in model.modules()}
    model.eval()
    try: yield model
    finally:
        for m, training in modes.items(): m.training = training


@contextmanager
def without_hooks(
    model:nn.Module, # Changed in place
)->Iterator[nn.Module]: # A context manager that gives the model
    "Call no forward hook of any module in this context: what records outputs does not see these calls"
    hooks = {m:m._forward_hooks for m in model.modules()}
    for m in hooks: m._forward_hooks = OrderedDict()
    try: yield model
    finally:
        for m, found in hooks.items(): m._forward_hooks = found
