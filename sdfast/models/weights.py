"Weights of encoders: loading checkpoints strictly, saving, hashing and averaging weights."
import hashlib
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ..errors import InputError
from ..runtime.store import write
from .averages import between, is_averaged
from .checkpoints import plain_name, read_nodes
from .matching import explain, find_state, is_head, left_out
from .surgery import frozen_copy

__all__ = ['save_weights', 'load_encoder', 'anchor_state', 'state_hash', 'wise_ft']


def save_weights(
    module:nn.Module, # An encoder, a head or both
    path:str|Path, # File, which is replaced atomically
)->None:
    "Write a module's weights and buffers as safetensors; warns of extra state, which such files cannot hold"
    state = module.state_dict()
    extra = [k for k, v in state.items() if not torch.is_tensor(v)]
    if extra: warnings.warn(f'{path}: the extra state of {", ".join(extra)} is not saved, only tensors are')
    # cloned, as safetensors refuses tensors that share memory, such as tied weights
    tensors = {plain_name(k):v.detach().cpu().contiguous().clone() for k, v in state.items() if torch.is_tensor(v)}
    write(path, save(tensors))


def load_encoder(
    encoder:nn.Module, # Receives the weights
    path:str|Path, # safetensors or torch file, or a folder with one, see below
    key:str='', # Of several nets in a file, the one below these keys, such as `student`
)->nn.Module: # `encoder`
    """Load an encoder strictly: the file must have every weight in its shape, and no others except a head's.

    The state dict may be below any keys of a checkpoint, such as `state_dict`, `model` or `module`, and its names
    may have any prefix, such as `module.`, `backbone.` or `encoder_q.encoder.`: entries below the prefix after which
    most names are the encoder's are loaded. That includes files of fastai's `learn.save`, Lightning, DeepSpeed,
    pytorchvideo, RSPNet, VCOP, torchvision and timm, and folders of transformers. Of several nets that fit, it is the
    query net of RSPNet and MoCo, else the model rather than its average, DINO's teacher or V-JEPA's target encoder.

    Only tensors are read, so a file cannot run code. Raises `InputError`, which lists what is missing."""
    source = f'weights {path}'
    nodes = read_nodes(path)
    want = {plain_name(k):v for k, v in encoder.state_dict().items() if torch.is_tensor(v)}
    found = find_state(nodes, want, source, key)
    found.pop('n_averaged', None)  # a counter of torch's `AveragedModel`
    rest = {k for k in found if k not in want}
    _say_left_out(source, {left_out(k) for k in rest} - {''})
    dropped = {k for k in rest if is_head(k, getattr(encoder, 'head_name', '')) or left_out(k)}
    _load(encoder, {k:v for k, v in found.items() if k not in dropped}, source)
    return encoder


def _say_left_out(source, parts):
    if parts: warnings.warn(f'{source}: {", ".join(sorted(parts))} are not of the encoder and are left out')


def _load(module, state, source):
    "Load a state dict strictly; `source` names it in the message of an `InputError`"
    everything = module.state_dict()
    want = {k:v for k, v in everything.items() if torch.is_tensor(v)}  # without extra state
    name_of = {plain_name(k):k for k in everything}
    state = {name_of.get(plain_name(str(k)), k):v for k, v in state.items()}
    # counters of batches do not affect a net's outputs, and old files lack them
    missing = [k for k in want if k not in state and not _is_counter(k)]
    wrong = [k for k in want if k in state and _shape(state[k]) != _shape(want[k])]
    extra = [k for k in state if k not in everything]
    for what, keys in (('lack', missing), ('have other shapes for', wrong), ('also have', extra)):
        if not keys: continue
        listed = keys
        if len(keys) >= 25 and not (what == 'lack' and len(keys) < len(want)/2): listed = [*keys[:3], '...']
        raise InputError(f'{source} are not of this encoder: they {what} {len(keys)} of {len(want)} entries: '
                         + ', '.join(map(str, listed)) + explain(state, want, wrong))
    check_values(state, want, source)
    module.load_state_dict({k:state.get(k, v) for k, v in everything.items()})


def _is_counter(name): return name.endswith('num_batches_tracked')
def _shape(value): return value.shape if torch.is_tensor(value) and not value.is_nested else None


# ---- values

def check_values(
    state:Mapping, # Name -> value
    want:Mapping, # Name -> the value that is to be replaced
    source:str, # Where `state` is from, for the message
)->None:
    "Raise `InputError` for values that are not finite, not dense, or of another kind than those that they replace"
    checked = [k for k, v in want.items() if k in state and torch.is_tensor(v) and not _is_counter(k)]
    why_not = {k:_unfit(state[k], want[k]) for k in checked}
    unfit = [k for k, why in why_not.items() if why]
    if not unfit: return
    listed = ', '.join(unfit[:3]) + (', ...' if len(unfit) > 3 else '')
    raise InputError(f'{source} {why_not[unfit[0]]} in {len(unfit)} of {len(want)} entries: {listed}; they must be '
                     'finite, dense and of the same kind')


def _unfit(value, want):
    "What is wrong with a value, or `None`"
    if not torch.is_tensor(value): return f'are of type {type(value).__name__}, not tensors,'
    if value.is_meta: return 'have no values (meta tensors)'
    if value.is_quantized: return 'are quantised'
    if value.layout is not torch.strided: return 'are sparse'
    kind, wanted = _kind(value), _kind(want)
    if kind != wanted: return f'have {kind} ({_dtype(value)}) instead of {wanted} ({_dtype(want)})'
    if kind not in ('floats', 'complex numbers'): return None
    loaded = value.detach().to(want.dtype)
    odd = ~torch.isfinite(loaded if loaded.dtype.itemsize > 1 else loaded.float())
    # a buffer may hold infinities, such as the mask of an attention layer
    if not odd.any() or torch.equal(loaded[odd].cpu(), want.detach()[odd.to(want.device)].cpu()): return None
    return 'have NaN or infinite values'


def _kind(value):
    if value.is_complex(): return 'complex numbers'
    if value.is_floating_point(): return 'floats'
    return 'booleans' if value.dtype is torch.bool else 'integers'


def _dtype(value): return str(value.dtype).removeprefix('torch.')


def anchor_state(
    encoder:nn.Module, # The encoder that is going to be trained
    anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file of weights; `None`: those of `encoder`
    what:str='the weights of the anchor', # What to call them in the message of an error
)->dict[str, torch.Tensor]: # On the device of `encoder`
    "Copy the anchor, the weights to stay close to, with the names in `encoder`"
    if anchor is None:
        return {k:v.detach().clone() if torch.is_tensor(v) else deepcopy(v) for k, v in encoder.state_dict().items()}
    copy = frozen_copy(encoder)
    if isinstance(anchor, (str, Path)): load_encoder(copy, anchor)
    else: _load(copy, anchor.state_dict() if isinstance(anchor, nn.Module) else anchor, what)
    return copy.state_dict()


def state_hash(
    state:dict, # Name -> tensor
)->str: # The same on every device
    "Hash of the names and values of a state dict, sixteen hex digits"
    h = hashlib.sha256()
    for k, v in sorted(state.items()): h.update(_bytes(k, v))
    return h.hexdigest()[:16]


def _bytes(k, v):
    "A name and value as bytes; the extra state of a module may be any object"
    if isinstance(v, dict): return b''.join(_bytes(f'{k}.{n}', v[n]) for n in sorted(v, key=str))
    if isinstance(v, (list, tuple)): return b''.join(_bytes(f'{k}.{i}', x) for i, x in enumerate(v))
    if not torch.is_tensor(v): return f'{k}={v!r}'.encode()
    values = v.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return k.encode() + str(v.dtype).encode() + values.numpy().tobytes()


def check_alpha(alpha:float)->None:
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be between 0 (the weights before training) and 1 (those after), not {alpha}')


def weights_before(encoder:nn.Module, anchor:dict|nn.Module|str|Path)->dict[str, torch.Tensor]:
    "`anchor_state` with a required `anchor`"
    if anchor is None:
        raise ValueError('averaging needs the weights from before training: '
                         'pass a state dict, an encoder or a file as anchor')
    return anchor_state(encoder, anchor)


def wise_ft(
    encoder:nn.Module, # After fine-tuning; it does not change
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    alpha:float, # 0 is exactly `anchor`, 1 exactly `encoder`
)->dict[str, torch.Tensor]: # A new state dict, with the names in `encoder`
    """`(1 - alpha)*theta_0 + alpha*theta` for weights and floating-point buffers; other buffers are those of `encoder`
    (Wortsman et al., CVPR 2022)."""
    check_alpha(alpha)
    start, end = weights_before(encoder, anchor), anchor_state(encoder)
    if alpha == 0: return start
    if alpha == 1: return end
    return {k:between(start[k], v, alpha) if is_averaged(v) else v for k, v in end.items()}
