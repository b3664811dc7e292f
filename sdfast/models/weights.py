"""Video models as `nn.Sequential(encoder, head)`: the paper's C3D and R(2+1)D, a small R(2+1)D for CPUs, torchvision's video
nets, timm nets over frames.

Every encoder takes a normalised batch of clips `(B, T, 3, H, W)` and returns features `(B, num_features)`.
"""
import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from ..errors import InputError
from ..runtime.store import write
from .surgery import frozen_copy

__all__ = ['save_weights', 'load_encoder', 'anchor_state', 'state_hash', 'wise_ft']

# the last layer of each of torchvision's families, and of common image nets in checkpoints; RSPNet's has one output, never used
HEADS = ('fc', 'head', 'classifier', 'head.fc', 'last_linear', 'linear')


def save_weights(
    module:nn.Module, # An encoder, a head or both
    path:str|Path, # File, replaced whole
)->None:
    "A module's weights and buffers as safetensors"
    write(path, save({k:v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))


# what numpy's numbers in a checkpoint (an accuracy, a loss) are made of, beside what torch takes for tensors
_scalar = np.float64(0).__reduce__()[0]
_NUMPY = [(_scalar, 'numpy.core.multiarray.scalar'), (_scalar, 'numpy._core.multiarray.scalar'), np.dtype, *(type(np.dtype(t)) for t in 'fdilq')]


def read_tensors(path):
    path = Path(path)
    if not path.is_file(): raise InputError(f'weights {path} do not exist')
    try:
        if path.suffix == '.safetensors': state = load_file(path)
        else:
            with torch.serialization.safe_globals(_NUMPY): state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # torch and safetensors raise many kinds for a broken file, one for pickled code
        raise InputError(f'weights {path} cannot be read as tensors: {str(e).splitlines()[0] if str(e) else type(e).__name__}') from None
    for wrapper in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict): state = state[wrapper]
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()): raise InputError(f'weights {path} hold no state dict')
    return {k.removeprefix('module.'):v for k, v in state.items() if torch.is_tensor(v)}


# our own `Sequential(encoder, head)`; RSPNet before fine-tuning (its query net) and after; VCOP
PREFIXES = ('', '0.', 'encoder_q.encoder.', 'encoder.', 'base_network.')


def load_encoder(
    encoder:nn.Module, # Receives the weights
    path:str|Path, # safetensors or a torch file; of the encoder, of the same net with its head, of RSPNet or VCOP, see `PREFIXES`
)->nn.Module: # `encoder`
    """Load an encoder strictly: every weight must be there with its shape, and nothing else but a head may be.

    Only tensors are read, so a file cannot run code. Raises `InputError`, which names what is missing."""
    state, want = read_tensors(path), encoder.state_dict()
    inside = [{k[len(p):]:v for k, v in state.items() if k.startswith(p)} for p in PREFIXES]
    s = max([*inside, *({f'body.{k}':v for k, v in t.items()} for t in inside)], key=lambda t: len(want.keys() & t.keys()))
    # counters of batches seen do not change what a net computes, and old files lack them
    missing = [k for k in want if k not in s and not k.endswith('num_batches_tracked')]
    wrong = [k for k in want if k in s and s[k].shape != want[k].shape]
    extra = [k for k in s if k not in want and not k.removeprefix('body.').startswith(tuple(f'{h}.' for h in HEADS))]
    for what, keys in (('lack', missing), ('have other shapes for', wrong), ('also have', extra)):
        if keys:
            listed = keys if len(keys) < 25 or what == 'lack' and len(keys) < len(want)/2 else [*keys[:3], '...']
            raise InputError(f'weights {path} are not of this encoder: they {what} {len(keys)} of {len(want)} entries: {", ".join(listed)}')
    encoder.load_state_dict({k:s.get(k, v) for k, v in want.items()})
    return encoder


def anchor_state(
    encoder:nn.Module, # The encoder that is going to be trained
    anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file of weights to hold on to; `None`: `encoder` as it stands
)->dict[str, torch.Tensor]: # On the device of `encoder`
    "A copy of the weights to hold on to, under the names that they have in `encoder`"
    if anchor is None: return {k:v.detach().clone() for k, v in encoder.state_dict().items()}
    copy = frozen_copy(encoder)
    if isinstance(anchor, (str, Path)): load_encoder(copy, anchor)
    else: copy.load_state_dict(anchor.state_dict() if isinstance(anchor, nn.Module) else anchor)
    return copy.state_dict()


def state_hash(
    state:dict, # Name -> tensor
)->str: # The same on every device
    "Sixteen hex digits that change when a name or a value of a state dict does"
    h = hashlib.sha256()
    for k, v in sorted(state.items()): h.update(k.encode() + str(v.dtype).encode() + v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def check_alpha(alpha):
    if not 0 <= alpha <= 1: raise ValueError(f'alpha must be between 0 (the weights before training) and 1 (those after), not {alpha}')


def weights_before(encoder, anchor):
    if anchor is None: raise ValueError('averaging needs the weights from before training: pass a state dict, an encoder or a file as anchor')
    return anchor_state(encoder, anchor)


def wise_ft(
    encoder:nn.Module, # As fine-tuning left it; it does not change
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: as it was before
    alpha:float, # 0: `anchor`, 1: `encoder`, both to the bit
)->dict[str, torch.Tensor]: # A new state dict, under the names of `encoder`
    "`(1 - alpha)*theta_0 + alpha*theta` of weights and floating point buffers, others as in `encoder` (Wortsman et al., CVPR 2022)"
    check_alpha(alpha)
    start, end = weights_before(encoder, anchor), anchor_state(encoder)
    if alpha == 0: return start
    if alpha == 1: return end
    return {k:torch.lerp(start[k], v, alpha) if v.is_floating_point() else v for k, v in end.items()}
