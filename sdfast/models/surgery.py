"Parts of a model: finding the encoder and its blocks, making frozen copies."
import warnings
import weakref
from collections.abc import Callable

from fastai.torch_core import get_model
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InputError
from .blocks import block_names
from .channels import share_axes
from .copies import copy_all, reachable

__all__ = ['find_encoder', 'frozen_copy', 'block_names']

FEW = .01  # share of a model's weights below which its first part is hardly the encoder
_found: weakref.WeakSet = weakref.WeakSet()  # parts of models that have been checked


def find_encoder(
    model:nn.Module, # Wrapped by DDP or not
    encoder:str|Callable|None=None, # Name of a submodule, or function of the model; `None`: by convention, see below
)->nn.Module: # The module itself, not a copy
    """Find the encoder of a model: `encoder` or, by default, `model[0]` of a `Sequential(encoder, head)`, or
    `model.encoder`.

    Raises `InputError`, with the names of the model's children, if there is none or it has no weights. Warns once if
    most of the trainable weights before it, or almost all weights of the model, do not belong to it."""
    model = get_model(model)
    part = _named_part(model, encoder)
    if part in _found: return part
    _check_part(model, part, encoder)
    _found.add(part)
    return part


def _named_part(model, encoder):
    if callable(encoder):
        part = encoder(model)
        if isinstance(part, nn.Module): return part
        raise InputError(f'encoder=FUNCTION must return a part of {type(model).__name__}, not {type(part).__name__}; '
                         f'its children are {_children(model)}')
    if isinstance(encoder, str):
        try: return model.get_submodule(encoder)
        except AttributeError:
            raise InputError(f'{type(model).__name__} has no submodule {encoder!r}; '
                             f'its children are {_children(model)}') from None
    if isinstance(model, nn.Sequential) and len(model) == 2: return model[0]
    child = getattr(model, 'encoder', None)
    if isinstance(child, nn.Module): return child
    raise InputError(f'cannot tell which part of {type(model).__name__} is the encoder: it is neither '
                     'Sequential(encoder, head) nor has it `encoder`. Pass encoder=NAME or a function of the model; '
                     f'its children are {_children(model)}')


def _children(model): return ', '.join(f'{n} ({type(m).__name__})' for n, m in model.named_children()) or 'none'


def _check_part(model, part, encoder):
    "Refuse a part that has no weights or is of another model, warn of one that leaves most weights unprotected"
    who = f'{type(part).__name__}' + (f' ({encoder!r})' if isinstance(encoder, str) else '')
    mine = {id(p) for p in part.parameters()}
    if not mine:
        raise InputError(f'the encoder found, {who}, has no weights: pass encoder=NAME of the part that has; '
                         f'the children of {type(model).__name__} are {_children(model)}')
    if not mine <= {id(p) for p in model.parameters()}:
        raise InputError(f'the encoder given, {who}, is not a part of {type(model).__name__}: pass encoder=NAME; '
                         f'its children are {_children(model)}')
    named = [(n, p) for n, p in model.named_parameters() if not is_lazy(p)]
    sizes = {n:p.numel() for n, p in named}
    inside = [n for n, p in named if id(p) in mine]
    if not inside: return  # its weights are made in the first forward pass
    names = list(sizes)
    trained = {n for n, p in named if p.requires_grad}
    before = [n for n in names[:names.index(inside[0])] if n in trained]
    size = sum(sizes[n] for n in inside)
    if sum(sizes[n] for n in before) > size:
        warnings.warn(f'only {who} is protected, and most of the trainable weights before it are not: '
                      f'{_parts(before)}; pass encoder=NAME of a part that includes them, or freeze them')
    elif encoder is None and size < FEW*sum(sizes.values()):
        warnings.warn(f'the encoder found, {who}, has {size:,} of {sum(sizes.values()):,} weights of the model: if it '
                      f'is not the encoder, pass encoder=NAME; the children are {_children(model)}')


def _parts(names, most=5):
    "The modules of these parameters, at most `most`"
    parts = list(dict.fromkeys(n.rpartition('.')[0] or n for n in names))
    return ', '.join([*parts[:most], '...'] if len(parts) > most else parts)


class Met:
    "Which model it was: weak references to an encoder, to its layers and to those of the model around it"
    def __init__(self, encoder:nn.Module, model:nn.Module):
        self.encoder = weakref.ref(encoder)
        self.layers = weakref.WeakSet(m for m in encoder.modules() if m._parameters)
        self.rest = weakref.WeakSet(m for m in get_model(model).modules() if m._parameters and m not in self.layers)

    def is_encoder_of(self, other:'Met')->bool:
        "Whether `other` has the same encoder"
        # `encoder=FUNCTION` may make a new container of the same layers at each call
        return self.encoder() is other.encoder() is not None or _same(self.layers, other.layers)

    def is_head_of(self, other:'Met')->bool:
        "Whether `other` has the same layers outside the encoder"
        return _same(self.rest, other.rest)


def _same(some, others): return len(some) == len(others) and all(m in others for m in some)


def _check_forward(module):
    "Raise `InputError` if a function has replaced `forward` that would run the original's layers in a copy, too"
    own = set(module.modules())
    for name, m in module.named_modules():
        cells = getattr(vars(m).get('forward'), '__closure__', None) or ()
        held = [x for c in cells for x in reachable(c.cell_contents) if isinstance(x, nn.Module) and x in own]
        if not held: continue
        raise InputError(f'{name or type(module).__name__} cannot be copied: its forward is a function that holds the '
                         'module itself; set it by types.MethodType(FUNCTION, MODULE), or write a subclass')


def frozen_copy(
    module:nn.Module, # Is not changed
)->nn.Module: # On the same device
    """Copy a module, in eval mode, without gradients and without forward or backward hooks; compiled if the module is.

    Weights, buffers and attributes are copied. Stored tensors with a graph lose it, locks are new."""
    _check_forward(module)
    # A hook may hold a tensor with a graph, which cannot be copied, so the memo gives `deepcopy` empty dicts of hooks
    hook_dicts = []
    for m in module.modules(): hook_dicts += [m._forward_hooks, m._forward_hooks_with_kwargs, m._backward_hooks]
    copy = copy_all(module, {id(h):type(h)() for h in hook_dicts}).requires_grad_(False).eval()
    share_axes(module, copy)
    # `deepcopy` drops the effect of `module.compile()`; code that was compiled for an earlier copy is reused
    if getattr(module, '_compiled_call_impl', None) is not None: copy.compile()
    return copy
