"""RSPNet: relative speed perception, and instance discrimination by appearance.

Two clips of a video, a momentum encoder for keys, and a queue of keys of other videos. Source: Chen et al., AAAI 2021,
as trained by their code (PeihaoChen/RSPNet)."""
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

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
from .augment import ColourJitter
from .base import Pretext

__all__ = ['rsp_loss', 'avid_loss', 'trim_queue', 'RSPNet']


def rsp_loss(
    same:torch.Tensor, # Similarity of query and key at the same speed, divided by the temperature `(B,)`
    other:torch.Tensor, # Of query and the same key clip at the other speed `(B,)`
    margin:float=2., # By which `same` should exceed `other`
)->torch.Tensor: # Scalar
    "Relative speed perception: mean of `max(0, margin - (same - other))`"
    return F.relu(margin - (same - other)).mean()


def avid_loss(
    same:torch.Tensor, # Similarity of query and its video's key at the same speed, divided by the temperature `(B,)`
    other:torch.Tensor, # Of query and the key at the other speed `(B,)`
    queue:torch.Tensor, # Of query and keys of other videos `(B, K)`
)->torch.Tensor: # Scalar
    "Instance discrimination by appearance: the sum of two InfoNCE terms, as keys at both speeds are positives"
    target = torch.zeros(len(same), dtype=torch.long, device=same.device)
    total: Any = sum(F.cross_entropy(torch.cat([positive[:, None], queue], 1), target) for positive in (same, other))
    return total


def trim_queue(
    k:int, # Keys asked for
    global_batch:int, # Videos in a batch, over all processes
)->int: # Keys to keep
    "The largest multiple of the global batch size that is at most `k`, as in the reference"
    if k < global_batch:
        raise InputError(f'a queue of {k} keys is shorter than the global batch of {global_batch}; take a longer queue '
                         'or smaller batches')
    return k//global_batch*global_batch


def _world_size(): return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(x):
    "`x` of all processes in their order, without gradient"
    parts = [torch.empty_like(x) for _ in range(_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Keys(nn.Module):
    "Momentum copy of encoder and heads, which computes the keys"

    def __init__(self, encoder, appearance, motion):
        super().__init__()
        self.encoder = frozen_copy(encoder).train(encoder.training)
        self.appearance = deepcopy(appearance).requires_grad_(False)
        self.motion = deepcopy(motion).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x):
        """Keys for appearance and motion, each `(B, dim)`.

        In training under DDP, clips pass through the encoder of another process (shuffle-BN, as in MoCo): otherwise
        batch norm would reveal the batch that a key is from."""
        shuffle = self.training and _world_size() > 1
        if shuffle:
            n, rank = len(x), dist.get_rank()
            mine = slice(rank*n, (rank + 1)*n)
            x = _gather(x)
            order = torch.randperm(len(x), device=x.device)
            dist.broadcast(order, 0)
            x = x[order[mine]]
        f = self.encoder(x)
        keys = torch.stack([F.normalize(head(f).float(), dim=1) for head in (self.appearance, self.motion)])
        if shuffle: keys = _gather(keys.transpose(0, 1))[order.argsort()[mine]].transpose(0, 1)
        return keys


class _Heads(nn.Module):
    "Two linear heads, the net that makes keys, and the queue of keys `(dim, K)`"
    queue: torch.Tensor
    queue_ptr: torch.Tensor

    def __init__(self, encoder, n, dim, queue):
        super().__init__()
        self.appearance, self.motion = nn.Linear(n, dim), nn.Linear(n, dim)
        self.keys = _Keys(encoder, self.appearance, self.motion)
        self.register_buffer('queue', F.normalize(torch.randn(dim, queue), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def follow(self, encoder, momentum):
        "Move the keys' parameters towards the queries'; buffers of batch norm come from the keys' own passes"
        pairs = (self.keys.encoder, encoder), (self.keys.appearance, self.appearance), (self.keys.motion, self.motion)
        for keys, queries in pairs:
            for k, q in zip(keys.parameters(), queries.parameters()):
                k.mul_(momentum).add_(q.detach(), alpha=1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys):
        "Replace the oldest keys in the queue"
        if _world_size() > 1: keys = _gather(keys)
        at = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.queue.shape[1]
        self.queue[:, at] = keys.T.to(self.queue.dtype)
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.queue.shape[1])


class RSPNet(Pretext):
    """Compare the speed and the appearance of a query clip and a key clip of the same video.

    The loss is `appearance*avid_loss + motion*rsp_loss`. Each video gives two windows of `speed*frames` frames; the
    slow clip is the first `frames` of a window, the fast one every `speed`-th frame. For a random half of the batch
    query and key play at the slow speed, for the other half at the fast one; the negative key is the same key clip at
    the other speed, so neither appearance nor augmentation sets it apart from the positive. The negative key joins the
    queue.

    Scores, each with chance 1/2: `rsp_acc`, the key at the same speed is closer than at the other; `avid_acc`, the key
    of the same video is closer than that of the next video in the batch. Keys in the queue that are of the query's own
    video count as negatives: keep the queue shorter than an epoch. On held-out clips (`held_out`) the queries of an
    encoder are compared with keys of the momentum encoder and the queue as training left them."""
    area, flip, score_names = (.4, 1.), True, ('rsp_acc', 'avid_acc')
    queue: int  # keys in the queue, trimmed in `prepare`

    def __init__(self,
        speed:int=2, # Of the fast clip
        dim:int=128, # Outputs of the two linear heads
        temperature:float=.07, # Divides similarities
        margin:float=2., # For the difference of similarities after division by the temperature
        queue:int=16384, # Keys of other videos; trimmed to a multiple of the global batch
        momentum:float=.999, # Of the keys' net
        appearance:float=1., # Weight of `avid_loss`
        motion:float=1., # Weight of `rsp_loss`
        jitter:tuple=(.4, .4, .4, .4), # Brightness, contrast, saturation and hue of each clip
        grey:float=.2, # Probability that a clip is grey
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('speed,dim,temperature,margin,queue,momentum,appearance,motion,jitter,grey')
        # `jitter` has four values, so `grey` is not given twice
        colours = ColourJitter(*jitter, grey=grey)  # type: ignore[misc]
        self.protected, self.batch_tfms = encoder, (colours,)

    def prepare(self, train_dl:DataLoader)->None:
        if self.pretext_net is None: self.queue = trim_queue(self.queue, train_dl.bs*_world_size())

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        size = self.speed*frames
        room = n - (size - 1)*stride - 1
        def window():
            if room < 0: return clip_indices(n, size, stride, wrap=True)
            return rnd.randrange(room + 1) + np.arange(size)*stride
        return [window(), window()], 0

    def make_heads(self, encoder:nn.Module, n:int)->nn.Module: return _Heads(encoder, n, self.dim, self.queue)

    def speeds(self,
        x:torch.Tensor, # Windows `(B, 2, speed*T, C, H, W)`
        fast:torch.Tensor, # Whether query and positive key are fast `(B,)`
    )->tuple[torch.Tensor, torch.Tensor, torch.Tensor]: # Query, positive and negative key clips `(B, T, C, H, W)`
        "Clips at both speeds from two windows of each video"
        slow, quick = x[:, :, :x.shape[2]//self.speed], x[:, :, ::self.speed]
        fast = fast.view(-1, *(1,)*(x.ndim - 2))
        query = torch.where(fast, quick[:, 0], slow[:, 0])
        same, other = torch.where(fast, quick[:, 1], slow[:, 1]), torch.where(fast, slow[:, 1], quick[:, 1])
        return query, same, other

    def forward(self, encoder:nn.Module, heads:_Heads, x:torch.Tensor)->tuple:
        fast = torch.arange(len(x), device=x.device) % 2 == 1
        if encoder.training: fast = fast[torch.randperm(len(x), device=x.device)]
        query, same, other = self.speeds(x, fast)
        f = encoder(query)
        a, m = (F.normalize(head(f).float(), dim=1) for head in (heads.appearance, heads.motion))
        if encoder.training: heads.follow(encoder, self.momentum)
        same_a, same_m = heads.keys(same)
        other_a, other_m = heads.keys(other)
        def similarity(q, k): return (q*k).sum(1)/self.temperature
        found = (similarity(a, same_a), similarity(a, other_a), similarity(m, same_m), similarity(m, other_m),
                 similarity(a, same_a.roll(1, 0)), a @ heads.queue.clone()/self.temperature)
        if encoder.training: heads.enqueue(other_a)
        return found

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        same_a, other_a, same_m, other_m, _, queue = pred
        appearance, motion = avid_loss(same_a, other_a, queue), rsp_loss(same_m, other_m, self.margin)
        return self.appearance*appearance + self.motion*motion

    @property
    def chances(self)->dict: return dict(rsp_acc=.5, avid_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        same_a, _, same_m, other_m, next_a, _ = pred
        return dict(rsp_acc=same_m > other_m, avid_acc=same_a > next_a)
