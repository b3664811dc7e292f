"""RSPNet: relative speed perception, and instance discrimination by appearance. Chen et al., AAAI 2021, as its code trains it
(PeihaoChen/RSPNet): two clips of a video, a momentum encoder for keys, and a queue of keys from other videos."""
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastai.data.load import DataLoader
from fastcore.basics import store_attr
from torch import nn

from ..data.clips import clip_indices
from ..errors import InputError
from ..models.surgery import frozen_copy
from ..models.weights import read_tensors
from .augment import ColourJitter
from .base import Pretext

__all__ = ['rsp_loss', 'avid_loss', 'trim_queue', 'RSPNet', 'save_rspnet', 'read_rspnet']



def rsp_loss(
    same:torch.Tensor, # Similarity of query and key at the same speed, divided by the temperature `(B,)`
    other:torch.Tensor, # Of query and the same key clip at the other speed `(B,)`
    margin:float=2., # By which the first shall exceed the second
)->torch.Tensor: # Scalar
    "Relative speed: mean of `max(0, margin - (same - other))`"
    return F.relu(margin - (same - other)).mean()


def avid_loss(
    same:torch.Tensor, # Similarities of query and its video's key at the same speed, divided by the temperature `(B,)`
    other:torch.Tensor, # Of query and the key at the other speed `(B,)`
    queue:torch.Tensor, # Of query and keys of other videos `(B, K)`
)->torch.Tensor: # Scalar
    "Appearance: two InfoNCE terms, as keys at both speeds are positives"
    target = torch.zeros(len(same), dtype=torch.long, device=same.device)
    return sum(F.cross_entropy(torch.cat([p[:, None], queue], 1), target) for p in (same, other))


def trim_queue(
    k:int, # Keys asked for
    global_batch:int, # Videos in a batch, over all processes
)->int: # Keys to keep
    "The largest multiple of the global batch that is at most `k`, as the reference has it"
    if k < global_batch: raise InputError(f'a queue of {k} keys is shorter than the global batch of {global_batch}; take a longer queue or smaller batches')
    return k//global_batch*global_batch


def _world(): return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(x):
    "Of all processes, in their order; without gradient"
    parts = [torch.empty_like(x) for _ in range(_world())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Keys(nn.Module):
    "Momentum copy of encoder and heads: what queries are compared with"
    def __init__(self, encoder, appearance, motion):
        super().__init__()
        self.encoder, self.appearance, self.motion = frozen_copy(encoder).train(encoder.training), deepcopy(appearance).requires_grad_(False), deepcopy(motion).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x):
        "Appearance and motion `(B, dim)`. In training under DDP clips change processes meanwhile: batch norm must not tell a key by its batch (shuffle-BN, MoCo)"
        shuffle = self.training and _world() > 1
        if shuffle:
            n, rank = len(x), dist.get_rank()
            x = _gather(x)
            order = torch.randperm(len(x), device=x.device)
            dist.broadcast(order, 0)
            x = x[order[rank*n:(rank + 1)*n]]
        f = self.encoder(x)
        out = torch.stack([F.normalize(h(f).float(), dim=1) for h in (self.appearance, self.motion)])
        if shuffle: out = _gather(out.transpose(0, 1))[order.argsort()[rank*n:(rank + 1)*n]].transpose(0, 1)
        return out


class _Heads(nn.Module):
    def __init__(self, encoder, n, dim, queue):
        super().__init__()
        self.appearance, self.motion = nn.Linear(n, dim), nn.Linear(n, dim)
        self.keys = _Keys(encoder, self.appearance, self.motion)
        self.register_buffer('queue', F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def follow(self, encoder, m):
        "Parameters of the keys' net move to those of the queries' net; batch norm's buffers come from its own passes"
        for mine, theirs in ((self.keys.encoder, encoder), (self.keys.appearance, self.appearance), (self.keys.motion, self.motion)):
            for k, q in zip(mine.parameters(), theirs.parameters()): k.mul_(m).add_(q.detach(), alpha=1 - m)

    @torch.no_grad()
    def enqueue(self, keys):
        if _world() > 1: keys = _gather(keys)
        at = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.queue.shape[1]
        self.queue[:, at] = keys.T.to(self.queue.dtype)
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.queue.shape[1])


class RSPNet(Pretext):
    """Relative speed (`rsp_loss`) and appearance (`avid_loss`) of a query clip and a key clip of the same video.

    From each video come two windows of `speed*frames` frames; the slow clip is a window's first `frames`, the fast one every
    `speed`-th. A random half of the batch plays query and key at the slow speed, the other half at the fast one; the negative key is the
    same key clip at the other speed, so that neither appearance nor augmentation tells it from the positive. It is what joins the queue.

    Scores, of which chance is 1/2: `rsp_acc`, the key at the same speed is closer than at the other; `avid_acc`, the key of the same
    video is closer than that of the next in the batch. Videos in the queue that are the query's own, or just like it, are taken for others: keep the queue shorter than an epoch.
    On held-out clips (`held_out`) an encoder's queries meet the keys of the momentum encoder and the queue as training left them."""
    area, flip, score_names = (.4, 1.), True, ('rsp_acc', 'avid_acc')

    def __init__(self,
        speed:int=2, # Of the fast clip
        dim:int=128, # Of the two linear heads
        temperature:float=.07, # What similarities are divided by
        margin:float=2., # Of the difference of similarities after division by the temperature
        queue:int=16384, # Keys of other videos; trimmed to a multiple of the global batch
        momentum:float=.999, # Of the keys' net
        appearance:float=1., # Weight of `avid_loss`
        motion:float=1., # Weight of `rsp_loss`
        jitter:tuple=(.4, .4, .4, .4), # Brightness, contrast, saturation and hue of each clip
        grey:float=.2, # Probability that a clip is grey
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('speed,dim,temperature,margin,queue,momentum,appearance,motion,jitter,grey')
        self.protected, self.batch_tfms = encoder, (ColourJitter(*jitter, grey=grey),)

    def prepare(self, train_dl:DataLoader)->None:
        if self.pretext_net is None: self.queue = trim_queue(self.queue, train_dl.bs*_world())

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        size = self.speed*frames
        room = n - (size - 1)*stride - 1
        return [clip_indices(n, size, stride, wrap=True) if room < 0 else rnd.randrange(room + 1) + np.arange(size)*stride for _ in range(2)], 0

    def make_heads(self, encoder:nn.Module, n:int)->nn.Module: return _Heads(encoder, n, self.dim, self.queue)

    def speeds(self, x:torch.Tensor, fast:torch.Tensor)->tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        "Query, positive and negative key clips `(B, T, ...)` of windows `(B, 2, speed*T, ...)`; `fast` `(B,)` says who plays query and positive fast"
        slow, quick, fast = x[:, :, :x.shape[2]//self.speed], x[:, :, ::self.speed], fast.view(-1, *(1,)*(x.ndim - 2))
        return torch.where(fast, quick[:, 0], slow[:, 0]), torch.where(fast, quick[:, 1], slow[:, 1]), torch.where(fast, slow[:, 1], quick[:, 1])

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->tuple:
        fast = torch.arange(len(x), device=x.device) % 2 == 1
        if encoder.training: fast = fast[torch.randperm(len(x), device=x.device)]
        query, same, other = self.speeds(x, fast)
        f = encoder(query)
        a, m = (F.normalize(h(f).float(), dim=1) for h in (heads.appearance, heads.motion))
        if encoder.training: heads.follow(encoder, self.momentum)
        (same_a, same_m), (other_a, other_m) = heads.keys(same), heads.keys(other)
        found = [(q*k).sum(1)/self.temperature for q, k in ((a, same_a), (a, other_a), (m, same_m), (m, other_m), (a, same_a.roll(1, 0)))] + [a @ heads.queue.clone()/self.temperature]
        if encoder.training: heads.enqueue(other_a)
        return tuple(found)

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        same_a, other_a, same_m, other_m, _, queue = pred
        return self.appearance*avid_loss(same_a, other_a, queue) + self.motion*rsp_loss(same_m, other_m, self.margin)

    @property
    def chances(self)->dict: return dict(rsp_acc=.5, avid_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        same_a, _, same_m, other_m, next_a, _ = pred
        return dict(rsp_acc=same_m > other_m, avid_acc=same_a > next_a)


# our names of the heads' parts in RSPNet's checkpoints, whose heads are (pool, flatten, linear)
PARTS = {'encoder.': 'encoder.', 'appearance.': 'fc1.2.', 'motion.': 'fc2.2.'}


def save_rspnet(
    method:RSPNet, # After a fit
    path:str|Path, # A torch file
    arch:str, # `c3d` or `r2plus1d-vcop` for the paper's; RSPNet refuses to go on with another
    epoch:int=0, # How many epochs it was trained for
    best_loss:float=float('nan'), # Lowest training loss
)->None:
    "Write a checkpoint with the keys of RSPNet's own, for its fine-tuning code and for `load_encoder`; it carries no optimizer to go on with"
    if method.pretext_net is None: raise InputError('RSPNet has nothing to save yet: fit first')
    encoder, heads = method.pretext_net.encoder, method.pretext_net.heads
    def named(module, prefix): return {prefix + k.removeprefix('body.'):v.detach().cpu().clone() for k, v in module.state_dict().items()}
    model = {}
    for net, parts in (('encoder_q', (encoder, heads.appearance, heads.motion)), ('encoder_k', (heads.keys.encoder, heads.keys.appearance, heads.keys.motion))):
        for part, prefix in zip(parts, PARTS.values()): model |= named(part, f'{net}.{prefix}')
        model |= {f'{net}.encoder.linear.weight': torch.zeros(1, heads.appearance.in_features), f'{net}.encoder.linear.bias': torch.zeros(1)}  # theirs has one, never used
    model |= dict(queue=heads.queue.cpu().clone(), queue_ptr=heads.queue_ptr.cpu().clone())
    torch.save(dict(epoch=epoch, arch=arch, model=model, best_loss=best_loss), path)


def read_rspnet(
    path:str|Path, # A checkpoint of RSPNet's pre-training, theirs or by `save_rspnet`
    encoder:nn.Module, # Receives the weights
    **kwargs, # For `RSPNet`, such as its temperature
)->RSPNet: # With heads, keys and queue, for `held_out` or more training
    "All of a checkpoint in RSPNet's layout; `load_encoder` reads the encoder alone. Raises `InputError` if something is missing or of another shape"
    state = read_tensors(path)
    if 'queue' not in state: raise InputError(f'{path} has no queue: it is not a checkpoint of RSPNet before fine-tuning; load_encoder reads encoders')
    method = RSPNet(dim=state['queue'].shape[0], queue=state['queue'].shape[1], **kwargs)
    with torch.random.fork_rng(): net = method.build(encoder)
    body = 'body.' if all(k.startswith('body.') for k in encoder.state_dict()) else ''
    names = {'encoder_q.encoder.': f'encoder.{body}', 'encoder_k.encoder.': f'heads.keys.encoder.{body}'}
    names |= {f'encoder_{n}.{theirs}':f'heads.{k}{ours}' for n, k in (('q', ''), ('k', 'keys.')) for ours, theirs in list(PARTS.items())[1:]}
    mine = {f'heads.{k}':state[k] for k in ('queue', 'queue_ptr')}
    for theirs, ours in names.items(): mine |= {ours + k.removeprefix(theirs):v for k, v in state.items() if k.startswith(theirs) and not k.startswith(f'{theirs}linear.')}
    try: net.load_state_dict(mine)
    except RuntimeError as e: raise InputError(f'{path} is not of this encoder: {" ".join(s.strip() for s in str(e).splitlines()[1:3])}') from None
    return method
