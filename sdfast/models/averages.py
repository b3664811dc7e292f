"Which tensors of a state dict an average is taken of: a state dict is no list of weights."
from collections.abc import Sequence

import torch

__all__ = ['averaged_tensors']


def as_real(t:torch.Tensor)->torch.Tensor:
    "Complex numbers as pairs `(..., 2)` of real ones, which share memory; other tensors as they are"
    return torch.view_as_real(t) if t.is_complex() else t


def is_averaged(v:object)->bool:
    "Whether an entry of a state dict takes part in averages, unlike counters and the extra state of modules"
    return isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex())


def averaged_tensors(
    state:dict, # A module's state dict
)->dict[str, torch.Tensor]: # By name; they share memory with `state`
    """The tensors of a state dict that an average is taken of. One that has several names (tied weights) is given once,
    a complex one as real numbers."""
    found, seen = {}, set()
    for k, v in state.items():
        if not is_averaged(v): continue
        place = v.device, v.data_ptr(), v.dtype, v.shape, v.stride()
        if v.numel() and place in seen: continue
        seen.add(place)
        found[k] = as_real(v)
    return found


def between(start:torch.Tensor, end:torch.Tensor, share:float)->torch.Tensor:
    """`start + share*(end - start)`, a new tensor; with 0 and 1 exactly one of the two.

    Elements that are equal stay as they are, infinite ones too, such as those in the mask of an attention layer."""
    if share == 0: return start.clone()
    if share == 1: return end.clone()
    return torch.where(start == end, end, torch.lerp(start, end, share))


def mean_of(tensors:Sequence[torch.Tensor], weights:Sequence[float])->torch.Tensor:
    "The weighted mean; elements that are equal in all tensors with a weight above 0 stay as they are"
    counted = [(t, w) for t, w in zip(tensors, weights) if w]
    first = counted[0][0]
    total = sum(w*wide(t) for t, w in counted)/sum(weights)
    same = torch.stack([t == first for t, _ in counted]).all(0)
    return torch.where(same, first, total.to(first.dtype))


def wide(t:torch.Tensor)->torch.Tensor:
    "A tensor in double precision, where the device has it"
    if t.device.type == 'mps': return t.to(torch.complex64 if t.is_complex() else torch.float32)
    return t.to(torch.complex128 if t.is_complex() else torch.float64)
