"Which tensors of a state dict an average is taken of: a state dict is no list of weights."
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
