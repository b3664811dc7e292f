"""Which axis of a module's output has the channels.

Sizes do not tell: a map of 16 channels may have 16 rows, and layers with channels last (Swin, ViT) and first (CNNs,
ConvNeXt, whose blocks have linear layers inside) look alike. So one channel of the last layer inside the module is
changed, in a trial forward pass, and the axis along which the output's change is most concentrated has the channels."""
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .modes import eval_mode, without_hooks

__all__ = ['channel_axis']

TRIALS = 24  # layers to try, from the last one called
# attributes of layers that give the number of output channels
CHANNEL_ATTRS = ('out_channels', 'num_features', 'out_features', 'normalized_shape')
_axes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # module -> {number of axes of its output: axis}


def channel_axis(
    module:nn.Module, # The module that was called
    out:torch.Tensor, # A tensor that it returned, batch first
    args:tuple=(), # What it was called with, for a trial
    kwargs:dict|None=None, # Its keyword arguments
    tensors:Callable=lambda out: [out], # The tensors of what the module returns
)->int: # At least 1
    """The axis of the channels in what a module returns, decided by the layers inside it; it is remembered.

    Without a layer that tells, an axis whose size is the width of a layer has the channels, else those of tokens
    `(B, N, C)` are last and those of maps first."""
    if out.ndim < 3: return 1
    known = _axis_of_layer(module)
    if known is not None: return known % out.ndim
    axes = _axes.setdefault(module, {})
    if out.ndim not in axes:
        axis = _axis_by_trial(module, args, kwargs or {}, tensors, out.ndim) if args or kwargs else None
        if axis is None: return _axis_by_widths(module, out)
        axes[out.ndim] = axis
    return axes[out.ndim]


def share_axes(
    module:nn.Module, # Any module
    copy:nn.Module, # A copy of it
)->None:
    "Let a module and its copy use the same axes, so that trials for one need not be repeated for the other"
    for m, c in zip(module.modules(), copy.modules()): _axes[c] = _axes.setdefault(m, {})


def _axis_of_layer(m):
    "The axis of the channels in the output of one of PyTorch's layers; `None` for any other module"
    if isinstance(m, (_ConvNd, _NormBase, nn.GroupNorm)): return 1
    # subclasses of `LayerNorm` may have the channels first (`LayerNorm2d` of timm and torchvision)
    return -1 if isinstance(m, nn.Linear) or type(m) in (nn.LayerNorm, nn.RMSNorm) else None


def _axis_by_widths(module, out):
    counts = set()
    for m in module.modules():
        for attr in CHANNEL_ATTRS:
            n = getattr(m, attr, ())
            counts |= {n} if isinstance(n, int) else set(n)
    first, last = out.shape[1] in counts, out.shape[-1] in counts
    return out.ndim - 1 if last and not first or out.ndim == 3 and first == last else 1


def _axis_by_trial(module, args, kwargs, tensors, ndim):
    "The axis by changing one channel of a layer; `None` if no change arrives or the module cannot be called again"
    args, kwargs = _cloned(args), _cloned(kwargs)
    devices = {t.device.index for t in module.parameters() if t.is_cuda}
    try:
        with (eval_mode(module), without_hooks(module), torch.no_grad(), torch.random.fork_rng(devices),
              torch.compiler.set_stance('force_eager'), warnings.catch_warnings()):
            warnings.simplefilter('ignore')
            return _try_layers(module, args, kwargs, tensors, ndim)
    except Exception: return None  # for example, a module that keeps what an earlier call left


def _cloned(x:Any)->Any:
    "A copy in which the trial may work in place"
    if torch.is_tensor(x): return x.detach().clone()
    if type(x) in (tuple, list): return type(x)(_cloned(v) for v in x)
    return {k:_cloned(v) for k, v in x.items()} if type(x) is dict else x


def _try_layers(module, args, kwargs, tensors, ndim):
    def run(): return [t for t in tensors(module.forward(*_cloned(args), **_cloned(kwargs))) if t.ndim == ndim]

    called = []
    layers = [m for m in module.modules() if _axis_of_layer(m) is not None]
    handles = [m.register_forward_hook(lambda m, a, out: called.append(m)) for m in layers]
    try: before = run()
    finally:
        for h in handles: h.remove()
    last_first = list(dict.fromkeys(reversed(called)))
    for layer in last_first[:TRIALS]:
        handle = layer.register_forward_hook(_Nudge(called.count(layer)))
        try: after = run()
        finally: handle.remove()
        for a, b in zip(after, before):
            change = (a - b).double().square().nan_to_num(0., 0., 0.)
            if a.shape == b.shape and change.sum() > 0: return _most_concentrated(change)
    return None


class _Nudge:
    "A forward hook that adds a large number to one channel of a layer's last call"
    def __init__(self, last): self.left = last

    def __call__(self, layer, args, out):
        self.left -= 1
        if self.left: return None
        out = out.clone()
        out.select(_axis_of_layer(layer), 0).add_(10*(1 + out.abs().max()))
        return out


def _most_concentrated(change):
    "The axis of whose largest entry has the most of the sum, in comparison with an even spread"
    def score(axis):
        along = change.sum([a for a in range(change.ndim) if a != axis])
        return (along.max()/along.sum()*len(along)).item()
    return max(range(1, change.ndim), key=score)
