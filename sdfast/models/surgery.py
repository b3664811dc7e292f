"Parts of a model: finding the encoder and its blocks, making frozen copies, handling batch norm."
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
    encoder:str|Callable|None=None, # Name of a submodule, or function of the model; `None`: by convention, see below
)->nn.Module: # The module itself, not a copy
    """Find the encoder of a model: `encoder` or, by default, `model[0]` of a `Sequential(encoder, head)`, or
    `model.encoder`.

    Raises `ValueError`, with the names of the model's children, if there is none."""
    model = get_model(model)
    if callable(encoder): return encoder(model)
    if isinstance(encoder, str):
        try: return model.get_submodule(encoder)
        except AttributeError:
            raise ValueError(f'{type(model).__name__} has no submodule {encoder!r}; '
                             f'its children are {_children(model)}') from None
    if isinstance(model, nn.Sequential) and len(model) == 2: return model[0]
    child = getattr(model, 'encoder', None)
    if isinstance(child, nn.Module): return child
    raise ValueError(f'cannot tell which part of {type(model).__name__} is the encoder: it is neither '
                     'Sequential(encoder, head) nor has it `encoder`. Pass encoder=NAME or a function of the model; '
                     f'its children are {_children(model)}')


def _children(model): return ', '.join(f'{n} ({type(m).__name__})' for n, m in model.named_children()) or 'none'


def frozen_copy(
    module:nn.Module, # Is not changed
)->nn.Module: # On the same device
    "Copy a module, in eval mode, without gradients and without forward or backward hooks; compiled if the module is"
    # A hook may hold a tensor with a graph, which cannot be copied, so the memo gives `deepcopy` empty dicts of hooks
    hook_dicts = []
    for m in module.modules(): hook_dicts += [m._forward_hooks, m._forward_hooks_with_kwargs, m._backward_hooks]
    copy = deepcopy(module, {id(h):type(h)() for h in hook_dicts}).requires_grad_(False).eval()
    # `deepcopy` drops the effect of `module.compile()`; code that was compiled for an earlier copy is reused
    if getattr(module, '_compiled_call_impl', None) is not None: copy.compile()
    return copy


@contextmanager
def keep_buffers(
    module:nn.Module, # Changed in this context
)->Iterator[nn.Module]: # A context manager that gives the module
    "Use the batch's statistics where the module does, without changing batch-norm buffers"
    tracking = [m for m in batch_norms(module) if m.training and m.track_running_stats]
    for m in tracking: m.track_running_stats = False
    try: yield module
    finally:
        for m in tracking: m.track_running_stats = True


def block_names(
    encoder:nn.Module, # An encoder or any other net
)->list[str]: # Names for `get_submodule`
    """Names of an encoder's blocks from input to output: its children that have weights.

    An only child is replaced by its children, a `ModuleList` by its members."""
    prefix, module = '', encoder
    while True:
        children = list(module.named_children())
        if len(children) != 1: break
        (name, module), = children
        prefix += f'{name}.'
    blocks = [member for name, child in children for member in _members(name, child)]
    return [f'{prefix}{name}' for name, block in blocks if next(block.parameters(), None) is not None]


def _members(name, module):
    if not isinstance(module, nn.ModuleList): return [(name, module)]
    return [member for n, child in module.named_children() for member in _members(f'{name}.{n}', child)]


@torch.no_grad()
def reestimate_bn(
    model:nn.Module, # Called on the inputs of each batch
    dl:Iterable, # Yields `(x, y)`; `y` is not used
    part:nn.Module|None=None, # Part of the model whose batch norm changes; `None`: the whole model
)->nn.Module: # `model`
    """Set batch norm's running statistics to the mean over the batches of `dl`, as `momentum=None` does.

    All other modules are in eval mode, so dropout draws no random numbers. Modes and momentum are restored and, after
    an error, the statistics as well. Without batch norm, `dl` is not read. Raises `InputError` for a loader without
    batches."""
    norms = batch_norms(model if part is None else part)
    norms = [m for m in norms if m.track_running_stats and m.running_mean is not None]
    if not norms: return model
    momentum = [m.momentum for m in norms]
    before = [[b.clone() for b in m.buffers()] for m in norms]
    with eval_mode(model):
        try:
            for m in norms:
                m.train()
                m.reset_running_stats()
                m.momentum = None
            _forward_all(model, dl, norms[0].running_mean.device)
        except BaseException:
            for m, buffers in zip(norms, before):
                for b, old in zip(m.buffers(), buffers): b.copy_(old)
            raise
        finally:
            for m, mom in zip(norms, momentum): m.momentum = mom
    return model


def _forward_all(model, dl, device):
    empty = True
    for *xs, _ in dl:
        empty = False
        model(*(x.as_subclass(torch.Tensor).to(device) for x in xs))
    if empty:
        raise InputError('there are no batches to take the statistics of batch norm from; '
                         'pass a loader that yields (x, y)')


def batch_norms(module:nn.Module)->list[_BatchNorm]:
    "All batch norm layers of a module"
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]
