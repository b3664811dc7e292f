"Features of clips: the outputs of an encoder and of its layers, for a batch or a loader."
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import InputError

__all__ = ['eval_mode', 'encode', 'extract']

# attributes of layers that give the number of output channels
CHANNEL_ATTRS = ('out_channels', 'num_features', 'out_features', 'normalized_shape')


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


def _channel_counts(module):
    "The numbers of output channels of all layers in a module"
    counts = set()
    for m in module.modules():
        for attr in CHANNEL_ATTRS:
            n = getattr(m, attr, ())
            counts |= {n} if isinstance(n, int) else set(n)
    return counts


def _pooled(
    module, # The layer, whose numbers of channels show which dimension has the channels
    m, # Its output: `(B, C, ...)`, or with channels last
)->torch.Tensor: # `(B, C)`
    "Mean over time and space"
    if m.ndim < 3: return m
    counts = _channel_counts(module)
    first, last = m.shape[1] in counts, m.shape[-1] in counts
    # `(B, N, C)` of tokens; transformers of videos and images have `(B, ..., C)`
    channels_last = last and not first or m.ndim == 3 and first == last
    return m.flatten(1, -2).mean(1) if channels_last else m.flatten(2).mean(2)


def encode(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features `(B, F)`
    x:torch.Tensor, # One batch; several clips of a video `(B, K, T, C, H, W)` are encoded separately and averaged
    layers:Sequence[str]=(), # Names of submodules whose outputs to return as well
)->tuple[torch.Tensor, dict]: # The encoder's output, and layer -> mean of its output over time and space, `(B, C)`
    """Pass one batch through the encoder, in its current mode.

    A layer's output may be `(B, C, ...)`, tokens `(B, N, C)` or a map with channels last; it is averaged over all but B
    and C, in float32. The output of a layer that gets single frames, `(B*T, ...)`, is averaged over T as well. Of a
    tuple, the first entry is used. Raises `InputError` for a layer that is not called or does not return a tensor."""
    x = x.as_subclass(torch.Tensor).to(next(encoder.parameters()).device)
    n, maps = len(x), {}

    def recorder(name):
        def hook(module, args, out):
            if isinstance(out, (tuple, list)) and out: out = out[0]
            if not torch.is_tensor(out):
                raise InputError(f'layer {name!r} returns {type(out).__name__}, not a tensor; name other layers')
            maps[name] = _pooled(module, out.detach().float()).unflatten(0, (n, -1)).mean(1)
        return hook

    handles = [encoder.get_submodule(name).register_forward_hook(recorder(name)) for name in layers]
    try:
        if x.ndim == 6: f = encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)
        else: f = encoder(x)
    finally:
        for h in handles: h.remove()
    for name in layers:
        if name not in maps: raise InputError(f'layer {name!r} was not called; name other layers')
    return f, maps


@torch.no_grad()
def extract(
    encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features `(B, F)`
    dl:Iterable, # Yields `(x, y)`; see `encode` for several clips of a video
)->tuple[torch.Tensor, torch.Tensor]: # Features `(N, F)` float32 and labels `(N,)`, on the CPU
    "Compute the features of all clips of a loader, in eval mode"
    feats, labels = [], []
    with eval_mode(encoder):
        for x, y in dl:
            feats.append(encode(encoder, x)[0].float().flatten(1).cpu())
            labels.append(y.as_subclass(torch.Tensor).cpu())
    return torch.cat(feats), torch.cat(labels)
