"CVRL: two clips of a video against all others of the batch. Qian et al., CVPR 2021, as its code trains it (tensorflow/models, official/projects/video_ssl)."
from collections.abc import Callable
from math import sqrt
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from .augment import Blur, ColourJitter, Solarise
from .base import Pretext

__all__ = ['draw_gap', 'nt_xent_logits', 'CVRL']



def draw_gap(
    u:float, # Drawn in [0, 1)
    m:int, # Starts that the video has room for
)->int: # From 0 to m - 1
    "Frames between the starts of two clips, small ones more likely: P(gap <= d) = 2d/m - d²/m², rounded down to whole frames"
    return int(m*(1 - sqrt(1 - u)))


def nt_xent_logits(
    a:torch.Tensor, # Unit vectors of clips `(B, D)`
    b:torch.Tensor, # Of the other clips of all videos, this batch's from place `first` on `(N, D)`
    others:torch.Tensor, # Of the same clips of all videos `(N, D)`
    first:int, # Place of `a[0]` among them
    temperature:float=.1, # What similarities are divided by
)->torch.Tensor: # `(B, 2N)`; the right answer of `a[i]` is `first + i`
    "Similarities to all clips, -inf to itself, of which NT-Xent is the cross-entropy"
    own = torch.arange(len(a), device=a.device)
    same = (a @ others.T/temperature).index_put((own, own + first), a.new_tensor(float('-inf')))
    return torch.cat([a @ b.T/temperature, same], 1)


class CVRL(Pretext):
    """Tell the other clip of the same video from all other clips of the batch, over all processes: NT-Xent, both directions added.

    Near clips are likelier than far ones (`draw_gap`), as what is far need not show the same. Crop, mirror and colours are drawn for each clip, the
    first is always blurred, the second seldom, and at times solarised: else colours would tell the video. Each clip is the first of the two in time as often as the second; a clip goes
    on with the video's first frame behind its last. Score: `pair_acc`, a clip is closer to the other of its video than to that of the next in the batch, chance 1/2."""
    area, aspect, flip, score_names = (.3, 1.), (1/2, 2.), True, ('pair_acc',)

    def __init__(self,
        temperature:float=.1, # What similarities are divided by
        layers:int=3, # Hidden ones of the head
        hidden:int=2048, # Their width
        dim:int=128, # Of what is compared
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each clip, with probability .8
        grey:float=.2, # Probability that a clip is grey
        blur:tuple=(1., .1), # Probability for the first and the second clip
        solarise:tuple=(0., .2), # The same of inverting bright pixels
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('temperature,layers,hidden,dim,jitter,grey,blur,solarise')
        self.protected, self.batch_tfms = encoder, (ColourJitter(*jitter, p=.8, grey=grey), Blur(blur), Solarise(solarise))

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        room = n - (frames - 1)*stride
        if room > 0:
            gap = draw_gap(rnd.random(), room)
            first = rnd.randrange(room - gap)
            starts = [first, first + gap]
            rnd.shuffle(starts)
        else: starts = [rnd.randrange(n), rnd.randrange(n)]
        return [[(s + i*stride) % n for i in range(frames)] for s in starts], 0

    def heads(self, n:int)->nn.Module:
        widths = [n] + [self.hidden]*self.layers
        hidden = [m for i, o in zip(widths, widths[1:]) for m in (nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], self.dim))

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->tuple:
        a, b = F.normalize(heads(encoder(x.transpose(0, 1).flatten(0, 1))).float(), dim=1).chunk(2)
        all_a, all_b, first = a, b, 0
        if encoder.training and dist.is_available() and dist.is_initialized():
            from torch.distributed.nn.functional import all_gather
            first, (all_a, all_b) = dist.get_rank()*len(a), (torch.cat(all_gather(z)) for z in (a, b))
        return nt_xent_logits(a, all_b, all_a, first, self.temperature), nt_xent_logits(b, all_a, all_b, first, self.temperature), first + torch.arange(len(a), device=a.device)

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        of_a, of_b, own = pred
        return F.cross_entropy(of_a, own) + F.cross_entropy(of_b, own)

    @property
    def chances(self)->dict: return dict(pair_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        of_a, _, own = pred
        def to(place): return of_a.gather(1, place[:, None])[:, 0]
        return dict(pair_acc=to(own) > to(own.roll(-1)))
