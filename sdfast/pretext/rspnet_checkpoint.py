"Checkpoints in the layout of RSPNet's own code: encoder, heads, momentum copies and queue."
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.checkpoints import read_tensors
from ..models.weights import check_values
from ..runtime.store import write
from .rspnet import RSPNet

__all__ = ['save_rspnet', 'read_rspnet']

# our names of heads -> those in the file, where a head is (pool, flatten, linear)
HEADS = {'appearance.': 'fc1.2.', 'motion.': 'fc2.2.'}


def save_rspnet(
    method:RSPNet, # After a fit
    path:str|Path, # A torch file
    arch:str, # `c3d` or `r2plus1d-vcop` for the paper's encoders; RSPNet refuses to continue with another
    epoch:int=0, # Epochs it was trained for
    best_loss:float=float('nan'), # Lowest training loss
)->None:
    """Write a checkpoint with the keys of RSPNet's own, for its fine-tuning code and for `load_encoder`.

    It has no optimizer state."""
    if method.pretext_net is None: raise InputError('RSPNet has nothing to save yet: fit first')
    encoder = method.pretext_net.encoder
    heads: Any = method.pretext_net.heads
    model: dict[str, torch.Tensor] = {}
    for net, parts in dict(encoder_q=(encoder, heads), encoder_k=(heads.keys.encoder, heads.keys)).items():
        body, projections = parts
        model |= _named(body, f'{net}.encoder.')
        model |= _named(projections.appearance, f'{net}.{HEADS["appearance."]}')
        model |= _named(projections.motion, f'{net}.{HEADS["motion."]}')
        # a linear layer that RSPNet's encoder has but never uses
        model |= {f'{net}.encoder.linear.weight': torch.zeros(1, heads.appearance.in_features),
                  f'{net}.encoder.linear.bias': torch.zeros(1)}
    model |= dict(queue=heads.queue.cpu().clone(), queue_ptr=heads.queue_ptr.cpu().clone())
    data = io.BytesIO()
    torch.save(dict(epoch=epoch, arch=arch, model=model, best_loss=best_loss), data)
    write(path, data.getvalue())


def _named(module, prefix):
    "Weights on the CPU by the names of the file"
    return {prefix + k.removeprefix('body.'):v.detach().cpu().clone() for k, v in module.state_dict().items()}


def read_rspnet(
    path:str|Path, # A checkpoint of RSPNet's pre-training, theirs or by `save_rspnet`
    encoder:nn.Module, # Receives the weights
    **kwargs, # For `RSPNet`, such as its temperature
)->RSPNet: # With heads, keys and queue, for `held_out` or more training
    """Read a whole checkpoint in RSPNet's layout; `load_encoder` reads only the encoder.

    Raises `InputError` if something is missing or has another shape."""
    state = read_tensors(path)
    if 'queue' not in state:
        raise InputError(f'{path} has no queue: it is not a checkpoint of RSPNet before fine-tuning; load_encoder '
                         'reads encoders')
    dim, length = state['queue'].shape
    method = RSPNet(dim=dim, queue=length, **kwargs)
    with torch.random.fork_rng(): net = method.build(encoder)
    body = 'body.' if all(k.startswith('body.') for k in encoder.state_dict()) else ''
    prefixes = {'encoder_q.encoder.': f'encoder.{body}', 'encoder_k.encoder.': f'heads.keys.encoder.{body}'}
    for ours, theirs in HEADS.items():
        prefixes[f'encoder_q.{theirs}'] = f'heads.{ours}'
        prefixes[f'encoder_k.{theirs}'] = f'heads.keys.{ours}'
    mine = {f'heads.{name}':state[name] for name in ('queue', 'queue_ptr')}
    for theirs, ours in prefixes.items():
        for k, v in state.items():
            if k.startswith(theirs) and not k.startswith(f'{theirs}linear.'): mine[ours + k.removeprefix(theirs)] = v
    check_values(mine, net.state_dict(), f'weights {path}')
    try: net.load_state_dict(mine)
    except RuntimeError as e:
        reasons = ' '.join(line.strip() for line in str(e).splitlines()[1:3])
        raise InputError(f'{path} is not of this encoder: {reasons}') from None
    return method
