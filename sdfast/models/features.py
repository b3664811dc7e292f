"Features of clips: the outputs of an encoder and of its layers, for a batch or a loader."
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..runtime.progress import track
from .calls import call_on
from .channels import channel_axis
from .modes import eval_mode
from .returned import find_tensors

__all__ = ['eval_mode', 'to_feature', 'to_maps', 'encode', 'extract']


class LayerNotCalled(InputError):
    "A layer whose output is asked for is not called in the encoder's forward pass"
    def __init__(self, layer:str): # Its name
        super().__init__(f'layer {layer!r} was not called; name other layers')
        self.layer = layer


def to_feature(
    module:nn.Module, # The module that was called; its layers show which axis has the channels
    out:Any, # What it returned: a tensor, tuple, list, dict or dataclass
    args:tuple=(), # What it was called with
    kwargs:dict|None=None, # Its keyword arguments
    what:str='the encoder', # Which module it is, for the error
)->torch.Tensor: # `(B, F)`
    """The feature in what a module returns, the one definition for strategies, models and measures.

    `(B, F)` is used as it is; maps `(B, C, ...)` or `(B, ..., C)` are averaged over places, tokens `(B, N, C)` over all
    tokens, a class token included. See `find_tensors` for tuples, dicts and dataclasses; the features of parallel
    branches are concatenated. Raises `InputError` for anything else."""
    tensors = find_tensors(out, what, module)
    pooled = [_mean_over_places(t, channel_axis(module, t, args, kwargs, find_tensors)) for t in tensors]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)


def to_maps(
    module:nn.Module, # As for `to_feature`
    out:Any, # What it returned
    args:tuple=(), # What it was called with
    kwargs:dict|None=None, # Its keyword arguments
    what:str='the encoder', # Which module it is, for the error
)->list[torch.Tensor]: # Maps or tokens `(B, C, ...)`, one of each branch
    "What a module returns, with the channels as second axis"
    tensors = find_tensors(out, what, module)
    return [_channels_second(t, channel_axis(module, t, args, kwargs, find_tensors)) for t in tensors]


def _channels_second(t, axis): return t[:, None] if t.ndim == 1 else t.movedim(axis, 1)


def _mean_over_places(t, axis):
    if t.ndim < 3: return t if t.ndim == 2 else t[:, None]
    if axis == t.ndim - 1: return t.flatten(1, -2).mean(1)
    return t.movedim(axis, 1).flatten(2).mean(2)


def per_sample(
    f:torch.Tensor, # Features `(B*T, F)` of frames or windows, `(B, F)`, or `(1, F)` for all samples alike
    n:int, # Number of samples, B
    what:str, # Whose features they are, for the error
)->torch.Tensor: # `(B, F)`
    "Average the features of each sample's frames"
    if len(f) == 1: return f.expand(n, -1)
    if len(f) % n:
        raise InputError(f'{what} returns {len(f)} rows for {n} samples; expected the batch as first axis: name other '
                         'layers')
    return f.unflatten(0, (n, -1)).mean(1)


def encode(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features, see `to_feature`
    x:torch.Tensor, # One batch; several clips of a video `(B, K, T, C, H, W)` are encoded separately and averaged
    layers:Sequence[str]=(), # Names of submodules whose outputs to return as well
)->tuple[torch.Tensor, dict]: # The encoder's feature `(B, F)`, and layer -> feature of its output, `(B, C)`
    """Pass one batch through the encoder, in its current mode.

    Outputs become features by `to_feature`, those of layers in float32. The output of a layer that gets single frames,
    `(B*T, ...)`, is averaged over T as well. Raises `InputError` for a layer that is not called or returns no
    tensor."""
    _, f, maps = outputs_of(encoder, x, layers)
    return f, maps


def outputs_of(
    encoder:nn.Module, # As for `encode`
    x:torch.Tensor, # One batch
    layers:Sequence[str]=(), # Names of submodules
)->tuple[torch.Tensor, torch.Tensor, dict]: # What it returns as a head takes it, and the two results of `encode`
    "The output of an encoder before it becomes a feature, for heads that average by themselves; and `encode`'s results"
    x = x.as_subclass(torch.Tensor).to(next(encoder.parameters()).device)
    n, maps = len(x), {}

    def recorder(name):
        def hook(module, args, kwargs, out):
            what = f'layer {name!r} of the encoder'
            f = to_feature(module, _float(module, out, what), args, kwargs, what)
            maps[name] = per_sample(f, n, what)
        return hook

    handles = [encoder.get_submodule(name).register_forward_hook(recorder(name), with_kwargs=True) for name in layers]
    try:
        inputs = x.flatten(0, 1) if x.ndim == 6 else x
        out = call_on(encoder, inputs)
    finally:
        for h in handles: h.remove()
    for name in layers:
        if name not in maps: raise LayerNotCalled(name)
    f = to_feature(encoder, out, (inputs,))
    if not torch.is_tensor(out): out = f
    if x.ndim == 6:
        same = out is f
        out = out.unflatten(0, x.shape[:2]).mean(1)
        f = out if same else f.unflatten(0, x.shape[:2]).mean(1)
    return out, f, maps


def _float(module, out, what):
    "The tensors of an output, in float32 and without graph"
    tensors = [t.detach().float() for t in find_tensors(out, what, module)]
    return tensors[0] if len(tensors) == 1 else tensors


def takes_features(
    head:nn.Module, # Of an encoder that returns tokens or maps
)->bool: # False for one that averages them by itself, as all modules but plain layers may
    "Whether a head starts with a layer for features `(B, F)`"
    if isinstance(head, nn.Sequential):
        layers = [m for m in head if not isinstance(m, (nn.Dropout, nn.Identity))]
        return bool(layers) and takes_features(layers[0])
    return isinstance(head, (nn.Linear, nn.LayerNorm, nn.BatchNorm1d))


def head_input(
    head:nn.Module, # Maps features, or the encoder's output, to logits
    out:Any, # What the encoder returned
    feature:torch.Tensor, # Its feature `(B, F)`
)->Any: # What to call the head with
    "The feature for a head of plain layers, and what the encoder returned for a head that averages it by itself"
    return feature if takes_features(head) else out


def check_logits(
    logits:Any, # What a head returned
    who:str, # Whose head it is, for the error
)->None:
    "Raise `InputError` unless a head returned one row of logits for each sample"
    if torch.is_tensor(logits) and logits.ndim == 2: return
    given = f'shape {tuple(logits.shape)}' if torch.is_tensor(logits) else type(logits).__name__
    raise InputError(f"{who}: the head returns {given} for the encoder's output, expected logits (B, classes): pass a "
                     'head that starts with a linear layer for features (B, F)')


@torch.no_grad()
def extract(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features, see `to_feature`
    dl:Iterable, # Yields `(x, y)` or dicts, see `split_batch`; see `encode` for several clips of a video
    split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
)->tuple[torch.Tensor, torch.Tensor]: # Features `(N, F)` float32 and labels `(N,)`, on the CPU
    "Compute the features of all clips of a loader, in eval mode"
    feats, labels = [], []
    with eval_mode(encoder):
        for batch in track(dl, 'reading clips'):
            x, y = split_batch(batch, split)
            if y is None: raise InputError('the loader must yield labels with its clips: (x, y)')
            feats.append(encode(encoder, x)[0].float().cpu())
            labels.append(y.as_subclass(torch.Tensor).cpu())
    return torch.cat(feats), torch.cat(labels)
