"Weights of encoders: loading checkpoints strictly, saving, hashing and averaging weights."
import hashlib
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from ..errors import InputError
from ..runtime.store import write
from .averages import is_averaged
from .surgery import frozen_copy

__all__ = ['save_weights', 'load_encoder', 'anchor_state', 'state_hash', 'wise_ft']

# Names of the last layer in torchvision's nets, in common checkpoints of image nets, and in RSPNet's checkpoints (where
# it has one output and is never used)
HEADS = ('fc', 'head', 'classifier', 'head.fc', 'last_linear', 'linear')
# Prefixes of the encoder's names: none; in our `Sequential(encoder, head)`; in RSPNet before fine-tuning (query net)
# and after; in VCOP
PREFIXES = ('', '0.', 'encoder_q.encoder.', 'encoder.', 'base_network.')
WRAPPERS = ('state_dict', 'model', 'model_state_dict')  # keys under which a checkpoint may have its state dict


def save_weights(
    module:nn.Module, # An encoder, a head or both
    path:str|Path, # File, which is replaced atomically
)->None:
    "Write a module's weights and buffers as safetensors; warns of extra state, which such files cannot hold"
    state = module.state_dict()
    extra = [k for k, v in state.items() if not torch.is_tensor(v)]
    if extra: warnings.warn(f'{path}: the extra state of {", ".join(extra)} is not saved, only tensors are')
    # cloned, as safetensors refuses tensors that share memory, such as tied weights
    write(path, save({_plain(k):v.detach().cpu().contiguous().clone() for k, v in state.items() if torch.is_tensor(v)}))


def _plain(name):
    "A weight's name without the part that `torch.compile` adds"
    return '.'.join(part for part in name.split('.') if part != '_orig_mod')


# classes in pickles of NumPy's numbers, such as an accuracy, which checkpoints may have in addition to tensors
_scalar = np.float64(0).__reduce__()[0]
NUMPY_CLASSES = [
    (_scalar, 'numpy.core.multiarray.scalar'),
    (_scalar, 'numpy._core.multiarray.scalar'),
    np.dtype,
    *(type(np.dtype(t)) for t in 'fdilq')]


def read_tensors(path:str|Path)->dict[str, torch.Tensor]:
    "Read the state dict in a safetensors or torch file without running its code; raises `InputError` if there is none"
    path = Path(path)
    if path.is_dir(): raise InputError(f'weights {path} are a folder; give the file in it')
    if not path.is_file(): raise InputError(f'weights {path} do not exist')
    try: state = _read(path)
    except Exception as e:  # torch and safetensors raise many kinds of errors for broken files
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f'weights {path} cannot be read as tensors: {why}') from None
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict): state = state[wrapper]
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()):
        raise InputError(f'weights {path} hold no state dict')
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if not torch.is_tensor(value): continue
        if not isinstance(name, str):
            raise InputError(f'weights {path}: the name {name!r} is not text; save the state dict of a module')
        plain = _plain(name).removeprefix('module.')
        if plain in tensors: raise InputError(f'weights {path} have {plain} twice; save the state dict of one module')
        tensors[plain] = value
    return tensors


def _read(path):
    if path.suffix == '.safetensors': return load_file(path)
    with torch.serialization.safe_globals(NUMPY_CLASSES):
        return torch.load(path, map_location='cpu', weights_only=True)


def load_encoder(
    encoder:nn.Module, # Receives the weights
    path:str|Path, # safetensors or torch file: of the encoder, of the same net with a head, of RSPNet or of VCOP
)->nn.Module: # `encoder`
    """Load an encoder strictly: the file must have every weight in its shape, and no others except a head's.

    Only tensors are read, so a file cannot run code. Raises `InputError`, which lists what is missing."""
    found = read_tensors(path)
    names = {_plain(k) for k in encoder.state_dict()}
    state = {k:v for k, v in _best_match(found, names).items() if k in names or not _is_head(k)}
    _load(encoder, state, f'weights {path}', _unknown_prefix(found, names))
    return encoder


def _load(module, state, source, prefix=''):
    "Load a state dict strictly; `source` names it in the message of an `InputError`"
    everything = module.state_dict()
    want = {k:v for k, v in everything.items() if torch.is_tensor(v)}  # without extra state
    name_of = {_plain(k):k for k in everything}
    state = {name_of.get(_plain(str(k)), k):v for k, v in state.items()}
    # counters of batches do not affect a net's outputs, and old files lack them
    missing = [k for k in want if k not in state and not _is_counter(k)]
    wrong = [k for k in want if k in state and _shape(state[k]) != _shape(want[k])]
    extra = [k for k in state if k not in everything]
    for what, keys in (('lack', missing), ('have other shapes for', wrong), ('also have', extra)):
        if not keys: continue
        listed = keys
        if len(keys) >= 25 and not (what == 'lack' and len(keys) < len(want)/2): listed = [*keys[:3], '...']
        hint = f'; all names in it begin with {prefix!r}: save it without' if prefix else ''
        raise InputError(f'{source} are not of this encoder: they {what} {len(keys)} of {len(want)} entries: '
                         + ', '.join(map(str, listed)) + hint)
    check_values(state, want, source)
    module.load_state_dict({k:state.get(k, v) for k, v in everything.items()})


def _is_counter(name): return name.endswith('num_batches_tracked')
def _shape(value): return value.shape if torch.is_tensor(value) and not value.is_nested else None


def _unknown_prefix(found, want):
    "What all names that were found begin with, if without it, and only so, most of those that are wanted are there"
    first = {name.partition('.')[0] for name in found}
    if len(first) != 1 or want & found.keys(): return ''
    prefix = f'{first.pop()}.'
    there = want & {name.removeprefix(prefix) for name in found}
    return prefix if len(there) > len(want)/2 else ''


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


# ---- names


def _best_match(state, want):
    "The entries of `state` after removing a prefix, and perhaps adding our `body.`, that match most names in `want`"
    inside = [{k[len(p):]:v for k, v in state.items() if k.startswith(p)} for p in PREFIXES]
    bodies = [{f'body.{k}':v for k, v in entries.items()} for entries in inside]
    return max([*inside, *bodies], key=lambda entries: len(want & entries.keys()))


def _is_head(name): return name.removeprefix('body.').startswith(tuple(f'{h}.' for h in HEADS))


def anchor_state(
    encoder:nn.Module, # The encoder that is going to be trained
    anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file of weights; `None`: those of `encoder`
)->dict[str, torch.Tensor]: # On the device of `encoder`
    "Copy the anchor, the weights to stay close to, with the names in `encoder`"
    if anchor is None:
        return {k:v.detach().clone() if torch.is_tensor(v) else deepcopy(v) for k, v in encoder.state_dict().items()}
    copy = frozen_copy(encoder)
    if isinstance(anchor, (str, Path)): load_encoder(copy, anchor)
    else: _load(copy, anchor.state_dict() if isinstance(anchor, nn.Module) else anchor, 'the weights of the anchor')
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
    return {k:torch.lerp(start[k], v, alpha) if is_averaged(v) else v for k, v in end.items()}
