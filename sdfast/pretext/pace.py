"Pace prediction: at which speed is this clip played?"
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
    n:int, # Frames in the video
    frames:int, # Frames in the clip
    pace:int, # Frames from one of the clip to the next
    start:int, # First frame
)->list[int]: # `frames` of them
    "Every `pace`-th frame from `start`; after the end of the video, continue with its first frame at any pace"
    idx, i = [], start
    for _ in range(frames):
        if i >= n: i = 0
        idx.append(i)
        i += pace
    return idx


class Pace(Pretext):
    """Classify the pace of a clip by one linear layer: cross-entropy over `paces`, which are equally likely.

    Source: Wang, Jiao & Liu, ECCV 2020, as trained by their code (laura-wang/video-pace). Its contrastive term is in
    the paper, but not in the code, and is left out.

    Two shortcuts could reveal the pace. One is the change of brightness between frames: colours are therefore jittered
    separately for each frame, as in the reference. The other is a cut in the clip: in the reference, a clip may start
    anywhere and continues with the first frame at the end of the video (`restart`), which in short videos happens
    mostly to fast clips. Without `restart`, a clip lies entirely within the video, and videos too short for the fastest
    pace are skipped. Score: `pace_acc`, chance `1/len(paces)`."""
    flip, score_names = True, ('pace_acc',)

    def __init__(self,
        paces:tuple=(1, 2, 3, 4), # In frames, times the stride of the loader
        restart:bool=True, # Start anywhere and start the video again after its last frame, or stay within it
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each frame, with probability .8
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('paces,restart,jitter')
        self.protected = encoder
        # `jitter` has four values, so `p` is not given twice
        colours = ColourJitter(*jitter, p=.8, each_frame=True)  # type: ignore[misc]
        self.batch_tfms = (colours,) if any(jitter) else ()

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        label = rnd.randrange(len(self.paces))
        pace = self.paces[label]*stride
        if self.restart: return [pace_indices(n, frames, pace, rnd.randrange(n))], label
        fastest = max(self.paces)
        need = (frames - 1)*fastest*stride + 1
        if n < need: raise VideoError(f'a video of {n} frames: {frames} frames at pace {fastest} take {need}')
        start = rnd.randrange(n - (frames - 1)*pace)
        return [np.arange(start, start + (frames - 1)*pace + 1, pace)], label

    def heads(self, n:int)->nn.Module: return nn.Linear(n, len(self.paces))
    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->torch.Tensor: return heads(encoder(x[:, 0]))
    def loss(self, pred:torch.Tensor, y:torch.Tensor)->torch.Tensor: return F.cross_entropy(pred, y)
    @property
    def chances(self)->dict: return dict(pace_acc=1/len(self.paces))
    def scores(self, pred:torch.Tensor, y:torch.Tensor)->dict: return dict(pace_acc=pred.argmax(1) == y)
