"Feature maps inside an encoder, with gradient, for methods that predict or compare places."
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import InputError
from ..models.features import LayerNotCalled, eval_mode, to_maps
from ..models.surgery import block_names

__all__ = ['layer_maps', 'map_stages']


def layer_maps(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features
    x:torch.Tensor, # Clips
    layers:Sequence[str], # Names of submodules
)->dict[str, torch.Tensor]: # Layer -> its maps `(B, C, T, H, W)`, float32
    """Maps of some layers in one pass of the encoder, in its current mode.

    Those of single frames, `(B*T, C, H, W)`, are put together to clips. An operation in place that follows a layer,
    such as the ReLU after a batch norm, is included. Raises `InputError` for layers that return tokens or features."""
    calls = {}

    def record(name):
        def hook(module, args, kwargs, out): calls[name] = module, out, args, kwargs
        return hook

    handles = [encoder.get_submodule(name).register_forward_hook(record(name), with_kwargs=True) for name in layers]
    try: encoder(x)
    finally:
        for h in handles: h.remove()
    for name in layers:
        if name not in calls: raise LayerNotCalled(name)
    return {name:_space_time(name, len(x), *calls[name]) for name in layers}


def _space_time(name, n, module, out, args, kwargs):
    maps = to_maps(module, out, args, kwargs, f'layer {name!r} of the encoder')
    found = maps[0]
    if len(maps) == 1 and found.ndim == 5 and len(found) == n: return found.float()
    if len(maps) == 1 and found.ndim == 4 and len(found) % n == 0:
        return found.float().unflatten(0, (n, -1)).transpose(1, 2)
    shapes = ' and '.join(str(tuple(m.shape)) for m in maps)
    raise InputError(f'layer {name!r} returns {shapes} for {n} clips; expected maps (B, C, T, H, W) or those of frames '
                     '(B*T, C, H, W): name a layer that returns maps, or take a convolutional encoder')


@torch.no_grad()
def map_stages(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features
    clip:torch.Tensor, # A clip `(1, T, C, H, W)`
    layer:str|None=None, # Only this layer; `None`: the last block of each size of maps
)->dict[str, tuple]: # Name of a layer -> channels, frames, height and width of its maps, from input to output
    "The layers of an encoder that end its stages, after which maps become smaller, and the sizes of their maps"
    names = block_names(encoder) if layer is None else [layer]
    if not set(names) <= dict(encoder.named_modules()).keys():
        raise InputError(f'the encoder has no layer {layer!r}; some are {", ".join(block_names(encoder))}')
    with eval_mode(encoder):
        try: maps = layer_maps(encoder, clip, names)
        except RuntimeError as e:
            raise InputError(f'the encoder cannot read clips of {clip.shape[1]} frames of {clip.shape[3]}x'
                             f'{clip.shape[4]}, take more or larger ones: {str(e).splitlines()[0]}') from None
    last = {m.shape[3:]:name for name, m in maps.items()}
    return {name:tuple(maps[name].shape[1:]) for name in last.values()}
