"Contrastive video representation learning (CVRL): two clips of a video against all other clips of the batch."
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
    u:float, # Random number in [0, 1)
    m:int, # Number of possible starts in the video
)->int: # From 0 to m - 1
    "Frames between the starts of two clips; before rounding down, P(gap <= d) = 2d/m - d²/m²: small gaps are likelier"
    return int(m*(1 - sqrt(1 - u)))


def nt_xent_logits(
    a:torch.Tensor, # Unit vectors of clips `(B, D)`
    b:torch.Tensor, # Unit vectors of the second clips of all processes' videos `(N, D)`
    others:torch.Tensor, # Unit vectors of the first clips of the same videos `(N, D)`
    first:int, # Index of `a[0]` in `others`, and of its video's second clip in `b`
    temperature:float=.1, # Divides similarities
)->torch.Tensor: # `(B, 2N)`; the right answer for `a[i]` is `first + i`
    "Similarities of each clip to all others, -inf to itself; their cross-entropy is NT-Xent"
    own = torch.arange(len(a), device=a.device)
    same = (a @ others.T/temperature).index_put((own, own + first), a.new_tensor(float('-inf')))
    return torch.cat([a @ b.T/temperature, same], 1)


class CVRL(Pretext):
    """Find the other clip of the same video among all other clips of the batch, over all processes.

    The loss is NT-Xent, `-log(exp(z·z'/τ)/Σ exp(z·z_k/τ))` over all other clips k, with z and z' the unit vectors of
    the two clips; both directions are added. Source: Qian et al., CVPR 2021, and their code (tensorflow/models,
    official/projects/video_ssl).

    Close clips are likelier than distant ones (`draw_gap`), which may show something else. Crop, mirroring and colours
    are drawn for each clip, because colours would otherwise reveal the video; the first clip is always blurred, the
    second seldom, and it is sometimes solarised. Each of the two is the earlier one equally often. A clip that reaches
    the end of a short video continues with its first frame. The score `pair_acc` is the share of clips that are closer
    to the other clip of their video than to that of the next video in the batch; chance is 1/2."""
    area, aspect, flip = (.3, 1.), (1/2, 2.), True
    score_names: tuple[str, ...] = ('pair_acc',)

    def __init__(self,
        temperature:float=.1, # Divides similarities
        layers:int=3, # Number of hidden layers of the head
        hidden:int=2048, # Width of the hidden layers
        dim:int=128, # Dimensions of the vectors that are compared
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each clip, with probability .8
        grey:float=.2, # Probability that a clip is grey
        blur:tuple=(1., .1), # Probability for the first and the second clip
        solarise:tuple=(0., .2), # The same for inverting bright pixels
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        store_attr('temperature,layers,hidden,dim,jitter,grey,blur,solarise')
        self.protected = encoder
        # `jitter` has four values, so `p` is not given twice
        colours = ColourJitter(*jitter, p=.8, grey=grey)  # type: ignore[misc]
        self.batch_tfms = (colours, Blur(blur), Solarise(solarise))

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
        layers = []
        for _ in range(self.layers):
            layers += [nn.Linear(n, self.hidden, bias=False), nn.BatchNorm1d(self.hidden), nn.ReLU()]
            n = self.hidden
        return nn.Sequential(*layers, nn.Linear(n, self.dim))

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->tuple:
        z = heads(encoder(x.transpose(0, 1).flatten(0, 1))).float()
        a, b = F.normalize(z, dim=1).chunk(2)
        all_a, all_b, first = a, b, 0
        if encoder.training and dist.is_available() and dist.is_initialized():
            from torch.distributed.nn.functional import all_gather  # not in builds without torch.distributed
            first = dist.get_rank()*len(a)
            all_a, all_b = (torch.cat(all_gather(part)) for part in (a, b))
        of_a = nt_xent_logits(a, all_b, all_a, first, self.temperature)
        of_b = nt_xent_logits(b, all_a, all_b, first, self.temperature)
        return of_a, of_b, first + torch.arange(len(a), device=a.device)

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        of_a, of_b, own = pred
        return F.cross_entropy(of_a, own) + F.cross_entropy(of_b, own)

    @property
    def chances(self)->dict: return dict(pair_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        of_a, _, own = pred
        def similarity(place): return of_a.gather(1, place[:, None])[:, 0]
        return dict(pair_acc=similarity(own) > similarity(own.roll(-1)))
