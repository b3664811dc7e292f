"Video clip order prediction (VCOP): in which order do these clips come?"
from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import comb, factorial
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.video import VideoError
from ..errors import InputError
from .base import Pretext

__all__ = ['order_label', 'ClipOrder']


def order_label(
    order:Sequence[int], # Which clip is at each place
)->int: # Its number among the permutations in lexicographic order
    "`(0, 1, 2)` is 0, `(0, 2, 1)` is 1, ... `(2, 1, 0)` is 5"
    return list(permutations(range(len(order)))).index(tuple(order))


class _PairHeads(nn.Module):
    "A layer for the features of each pair of clips, and another for all pairs"

    def __init__(self, n, clips, hidden, dropout):
        super().__init__()
        self.pair, self.drop = nn.Linear(2*n, hidden), nn.Dropout(dropout)
        self.out = nn.Linear(comb(clips, 2)*hidden, factorial(clips))

    def forward(self, f):  # (B, K, F)
        pairs = [self.pair(torch.cat([f[:, i], f[:, j]], 1)).relu() for i, j in combinations(range(f.shape[1]), 2)]
        return self.out(self.drop(torch.cat(pairs, 1)))


class ClipOrder(Pretext):
    """Classify the order of `clips` shuffled clips of a video among all permutations: cross-entropy over clips!
    classes.

    Source: Xu et al., CVPR 2019, as trained by their code (xudejing/video-clip-order-prediction).

    There are gaps between clips, and each is cropped separately: otherwise the frames where two clips meet, or the
    positions of objects, would reveal the order without any understanding of motion. Videos too short for clips and
    gaps are skipped, as in the reference. Score: `order_acc`, chance 1/clips!."""
    score_names = ('order_acc',)

    def __init__(self,
        clips:int=3, # From 2 to 5; their orders are the classes
        gap:int=8, # Frames between two clips, times the stride of the loader
        hidden:int=512, # Width of the layer on pairs
        dropout:float=.5, # Before the last layer
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if not 2 <= clips <= 5 or gap < 0:
            raise InputError(f'clips must be between 2 and 5, as each of their orders is a class, and gap at least 0, '
                             f'not {clips} and {gap}')
        store_attr('clips,gap,hidden,dropout')
        self.protected = encoder

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        need = (self.clips*frames + (self.clips - 1)*self.gap - 1)*stride + 1
        if n < need:
            raise VideoError(f'a video of {n} frames: {self.clips} clips of {frames} frames with gaps of {self.gap} '
                             f'take {need}')
        first = rnd.randrange(n - need + 1)
        order = list(range(self.clips))
        rnd.shuffle(order)
        starts = first + np.array(order)*(frames + self.gap)*stride
        return starts[:, None] + np.arange(frames)*stride, order_label(order)

    def heads(self, n:int)->nn.Module: return _PairHeads(n, self.clips, self.hidden, self.dropout)

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->torch.Tensor:
        return heads(encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    def loss(self, pred:torch.Tensor, y:torch.Tensor)->torch.Tensor: return F.cross_entropy(pred, y)
    @property
    def chances(self)->dict: return dict(order_acc=1/factorial(self.clips))
    def scores(self, pred:torch.Tensor, y:torch.Tensor)->dict: return dict(order_acc=pred.argmax(1) == y)
