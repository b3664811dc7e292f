"Pace prediction: at which speed is this clip played? Wang, Jiao & Liu, ECCV 2020, as its code trains it (laura-wang/video-pace)."
from collections.abc import Callable
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.video import VideoError
from .augment import ColourJitter
from .base import Pretext

__all__ = ['pace_indices', 'Pace']



def pace_indices(
    n:int, # Frames the video has
    frames:int, # Frames in the clip
    pace:int, # Frames from one of the clip to the next
    start:int, # First frame
)->list[int]: # `frames` of them
    "Every `pace`-th frame from `start`; behind the last frame the video begins again with its first, whatever the pace"
    idx, i = [], start
    for _ in range(frames):
        if i >= n: i = 0
        idx.append(i)
        i += pace
    return idx


class Pace(Pretext):
    """Classify the pace of a clip, `paces` with equal probability, by one linear layer: cross-entropy.

    Frames are jittered in colour one by one, as the reference does on purpose: without it the change of brightness from frame to
    frame tells the pace. The reference starts anywhere and begins again behind the last frame (`restart`). In short videos only fast
    clips would then be cut, which tells the pace, too: without `restart` a clip lies whole in the video, and videos that are too short for
    the fastest pace are left out. Its contrastive term is in the paper, but not in its code, and not here. Scores: `pace_acc`, chance `1/len(paces)`."""
    flip, score_names = True, ('pace_acc',)

    def __init__(self,
        paces:tuple=(1, 2, 3, 4), # In frames, times the stride of the loader
        restart:bool=True, # Start anywhere and begin again behind the last frame, as the reference, or stay inside the video
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each frame, with probability .8
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('paces,restart,jitter')
        self.protected, self.batch_tfms = encoder, (ColourJitter(*jitter, p=.8, each_frame=True),) if any(jitter) else ()

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        label = rnd.randrange(len(self.paces))
        pace = self.paces[label]*stride
        if self.restart: return [pace_indices(n, frames, pace, rnd.randrange(n))], label
        need = (frames - 1)*max(self.paces)*stride + 1
        if n < need: raise VideoError(f'a video of {n} frames: {frames} frames at pace {max(self.paces)} take {need}')
        start = rnd.randrange(n - (frames - 1)*pace)
        return [np.arange(start, start + (frames - 1)*pace + 1, pace)], label

    def heads(self, n:int)->nn.Module: return nn.Linear(n, len(self.paces))
    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->torch.Tensor: return heads(encoder(x[:, 0]))
    def loss(self, pred:torch.Tensor, y:torch.Tensor)->torch.Tensor: return F.cross_entropy(pred, y)
    @property
    def chances(self)->dict: return dict(pace_acc=1/len(self.paces))
    def scores(self, pred:torch.Tensor, y:torch.Tensor)->dict: return dict(pace_acc=pred.argmax(1) == y)
