"""Video models as `nn.Sequential(encoder, head)`: the paper's C3D and R(2+1)D, a small R(2+1)D for CPUs, torchvision's video
nets, timm nets over frames.

Every encoder takes a normalised batch of clips `(B, T, 3, H, W)` and returns features `(B, num_features)`.
"""
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import InputError

__all__ = ['eval_mode', 'encode', 'extract']



@contextmanager
def eval_mode(
    model:nn.Module, # Changed in place
)->Iterator[nn.Module]: # A context manager that gives the model
    "Every module in eval mode inside, in the mode it was in after"
    modes = {m:m.training for m in model.modules()}
    model.eval()
    try: yield model
    finally:
        for m, training in modes.items(): m.training = training


def _pooled(
    module, # What put it out: its own channels tell which dimension they are
    m, # `(B, C, ...)`, or with channels last
)->torch.Tensor: # `(B, C)`
    "Mean over time and space"
    if m.ndim < 3: return m
    channels = {c for sub in module.modules() for n in ('out_channels', 'num_features', 'out_features', 'normalized_shape')
                for c in ([getattr(sub, n)] if isinstance(getattr(sub, n, None), int) else getattr(sub, n, ()))}
    first, last = m.shape[1] in channels, m.shape[-1] in channels
    tokens = last and not first or m.ndim == 3 and first == last  # (B, N, C), and what video and image transformers make of (B, ..., C)
    return m.flatten(1, -2).mean(1) if tokens else m.flatten(2).mean(2)


def encode(
    encoder:nn.Module, # From clips `(B, T, C, H, W)` to features `(B, F)`
    x:torch.Tensor, # One batch; several clips of a video `(B, K, T, C, H, W)` are encoded apart and averaged
    layers:Sequence[str]=(), # Names of submodules whose outputs to keep as well
)->tuple[torch.Tensor, dict]: # The encoder's output, and of each layer `(B, C)` float32: the mean over time and space
    """One batch through the encoder, in the mode that it is in.

    A layer's output `(B, C, ...)`, tokens `(B, N, C)` or a map with channels last is averaged over all but B and C; frames that a layer
    sees one by one, `(B*T, ...)`, over T as well; of a tuple the first is taken. Raises `InputError` for a layer that is not called
    or returns no tensor."""
    x = x.as_subclass(torch.Tensor).to(next(encoder.parameters()).device)
    n, maps = len(x), {}
    def keep(name):
        def hook(module, args, out):
            out = out[0] if isinstance(out, (tuple, list)) and out else out
            if not torch.is_tensor(out): raise InputError(f'layer {name!r} returns {type(out).__name__}, not a tensor; name other layers')
            maps[name] = _pooled(module, out.detach().float()).unflatten(0, (n, -1)).mean(1)
        return hook
    handles = [encoder.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try: f = encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1) if x.ndim == 6 else encoder(x)
    finally:
        for h in handles: h.remove()
    if missing := [name for name in layers if name not in maps]: raise InputError(f'layer {missing[0]!r} was not called; name other layers')
    return f, maps


@torch.no_grad()
def extract(
    encoder:nn.Module, # From clips `(B, T, C, H, W)` to features `(B, F)`
    dl:Iterable, # Yields `(x, y)`; see `encode` for several clips of a video
)->tuple[torch.Tensor, torch.Tensor]: # Features `(N, F)` float32 and labels `(N,)`, on the CPU
    "Features in eval mode"
    feats, labels = [], []
    with eval_mode(encoder):
        for x, y in dl:
            feats.append(encode(encoder, x)[0].float().flatten(1).cpu())
            labels.append(y.as_subclass(torch.Tensor).cpu())
    return torch.cat(feats), torch.cat(labels)
