"""What every penalty shares: finding the encoder, watching it in the main forward, adding a term to the loss that is
back-propagated, and reporting that term in a column of its own.

A new penalty is a subclass of `Penalty` with a `term` method."""
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from fastai.torch_core import get_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from .features import eval_mode

__all__ = ['find_encoder', 'frozen_copy', 'keep_buffers', 'block_names', 'reestimate_bn']



def find_encoder(
    model:nn.Module, # Wrapped by DDP or not
    encoder:str|Callable|None=None, # Name of a submodule, or a function of the model; `None`: fastai's convention
)->nn.Module: # The module itself, no copy
    "The encoder of a model: `model[0]` of a `Sequential(encoder, head)`, or `model.encoder`, or what `encoder` says"
    model = get_model(model)
    children = ', '.join(f'{n} ({type(m).__name__})' for n, m in model.named_children()) or 'none'
    if callable(encoder): return encoder(model)
    if isinstance(encoder, str):
        try: return model.get_submodule(encoder)
        except AttributeError: raise ValueError(f'{type(model).__name__} has no submodule {encoder!r}; its children are {children}') from None
    if isinstance(model, nn.Sequential) and len(model) == 2: return model[0]
    if isinstance(getattr(model, 'encoder', None), nn.Module): return model.encoder
    raise ValueError(f'cannot tell which part of {type(model).__name__} is the encoder: it is neither Sequential(encoder, head) nor has it '
                     f'`encoder`. Pass encoder=NAME or a function of the model; its children are {children}')


def frozen_copy(
    module:nn.Module, # Stays as it is
)->nn.Module: # On the same device
    "A copy in eval mode that needs no gradient and carries no forward or backward hooks; compiled if the module is (`module.compile()`)"
    # handed to deepcopy as already copied: a hook may hold a tensor with a graph, which cannot be copied
    hooks = {id(h):type(h)() for m in module.modules() for h in (m._forward_hooks, m._forward_hooks_with_kwargs, m._backward_hooks)}
    copy = deepcopy(module, hooks).requires_grad_(False).eval()
    if getattr(module, '_compiled_call_impl', None) is not None: copy.compile()  # deepcopy leaves that out; what was compiled for a copy before is used again
    return copy


@contextmanager
def keep_buffers(
    module:nn.Module, # Changed while inside
)->Iterator[nn.Module]: # A context manager that gives the module
    "A forward pass inside uses the batch's statistics where the module does, and leaves batch norm's buffers alone"
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for m in tracking: m.track_running_stats = False
    try: yield module
    finally:
        for m in tracking: m.track_running_stats = True


def block_names(
    encoder:nn.Module, # Or any other net
)->list[str]: # As for `get_submodule`
    "Names of an encoder's blocks from input to output: its children that have weights, or those of its only child; of a `ModuleList` its members"
    prefix, m = '', encoder
    while len(kids := list(m.named_children())) == 1: prefix, m = f'{prefix}{kids[0][0]}.', kids[0][1]
    def members(name, k): return [x for n, c in k.named_children() for x in members(f'{name}.{n}', c)] if isinstance(k, nn.ModuleList) else [(name, k)]
    return [f'{prefix}{n}' for name, kid in kids for n, k in members(name, kid) if any(True for _ in k.parameters())]


@torch.no_grad()
def reestimate_bn(
    model:nn.Module, # Called on the inputs of each batch
    dl:Iterable, # Yields `(x, y)`; `y` is not looked at
    part:nn.Module|None=None, # Batch norm of this part of the model only; `None`: of all of it
)->nn.Module: # `model`
    """Set batch norm's running statistics to the mean over the batches of `dl`, as `momentum=None` does.

    All else is in eval mode, so dropout draws nothing. Modes and momentum come back, after an error the statistics as well.
    Without batch norm `dl` is not read. Raises `InputError` for a loader without batches."""
    norms = [m for m in batch_norms(model if part is None else part) if m.track_running_stats and m.running_mean is not None]
    if not norms: return model
    device, seen = norms[0].running_mean.device, 0
    momentum, before = [m.momentum for m in norms], [[b.clone() for b in m.buffers()] for m in norms]
    with eval_mode(model):
        try:
            for m in norms:
                m.train()
                m.reset_running_stats()
                m.momentum = None
            for seen, (*xs, _) in enumerate(dl, 1): model(*(x.as_subclass(torch.Tensor).to(device) for x in xs))
            if not seen: raise InputError('there are no batches to take the statistics of batch norm from; pass a loader that yields (x, y)')
        except BaseException:
            for m, buffers in zip(norms, before):
                for b, old in zip(m.buffers(), buffers): b.copy_(old)
            raise
        finally:
            for m, mom in zip(norms, momentum): m.momentum = mom
    return model


def batch_norms(module:nn.Module)->list: return [m for m in module.modules() if isinstance(m, _BatchNorm)]
