"Hierarchically decoupled contrast (HDC): views in space and views in time, apart, at several depths of the encoder."
from collections.abc import Callable
from random import Random

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from .augment import Blur, ColourJitter
from .base import Pretext
from .clips import PretextClips
from .maps import layer_maps, map_stages

__all__ = ['info_nce_logits', 'HDC']

VIEWS = 'spatial', 'temporal'


def info_nce_logits(
    anchor:torch.Tensor, # Unit vectors `(B, D)`
    views:torch.Tensor, # Unit vectors of the views of all videos `(N, D)`
    temperature:float=.07, # Divides similarities
)->torch.Tensor: # `(B, N)`
    "Similarities of each anchor to the views of all videos; InfoNCE is their cross-entropy"
    return anchor @ views.T/temperature


class _Projections(nn.ModuleDict):
    "A head of two layers for each depth and kind of view"

    def __init__(self, channels, dim):
        super().__init__({f'{kind}{i}': nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, dim))
                          for i, n in enumerate(channels) for kind in VIEWS})


class HDC(Pretext):
    """Find a clip's views in space, and its views in time, among those of all other videos, at several depths of the
    encoder.

    The loss is the sum over depths of `weight*(InfoNCE_spatial + InfoNCE_temporal)`. A spatial view has the frames of
    the clip, in another crop; a temporal view has its crop, at another time. Each depth and kind of view has a head of
    its own, on the mean of the maps there. Source: Zhang & Crandall, WACV 2022; there is no official code.

    The paper weights the depths by how invariant each is, and its weights are not published with code: `weights` are
    equal by default. These are assumptions too: that only the time or only the crop of a view differs, the negatives
    (the same kind of view of the other videos of the batch, over all processes), the temperature, heads of two layers,
    and that depths are the last stages of the encoder. Colours are drawn for each clip and views may be blurred:
    otherwise colours would reveal the video. Videos without another time are skipped.

    Scores, at the deepest layer, with chance 1/2 each: a clip is closer to its own view than to that of the next video
    in the batch. On held-out videos the spatial view is a corner of the frame, and the clip its centre."""
    area, flip, score_names = (.3, 1.), True, ('spatial_acc', 'temporal_acc')
    layers: tuple|None  # of the encoder, from input to output; known after `measure`
    channels: tuple|None  # of their maps; known after `measure`

    def __init__(self,
        depths:int=3, # Stages of the encoder to contrast at, counted from the last
        weights:tuple|None=None, # Of the depths, from input to output; `None`: 1 each
        temperature:float=.07, # Divides similarities
        dim:int=128, # Dimensions of the vectors that are compared
        jitter:tuple=(.8, .8, .8, .2), # Brightness, contrast, saturation and hue of each clip, with probability .8
        grey:float=.2, # Probability that a clip is grey
        blur:float=.5, # Probability that a clip is blurred
        layers:tuple|None=None, # Of the encoder, instead of the ends of its last stages
        channels:tuple|None=None, # Of the maps of `layers`; by default found before the first fit
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if depths < 1 or temperature <= 0 or dim < 1:
            raise InputError(f'depths and dim must be at least 1 and temperature above 0, not {depths}, {dim} and '
                             f'{temperature}')
        if layers is not None: depths = len(layers)
        if weights is not None and (len(weights) != depths or min(weights) < 0):
            raise InputError(f'weights must be {depths} numbers of at least 0, one for each depth, not {weights}')
        store_attr('depths,weights,temperature,dim,jitter,grey,blur,layers,channels')
        # `jitter` has four values, so `p` is not given twice
        colours = ColourJitter(*jitter, p=.8, grey=grey)  # type: ignore[misc]
        self.protected, self.batch_tfms = encoder, (colours, Blur((blur,)*3))

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        starts = n - (frames - 1)*stride
        if starts < 2: raise VideoError(f'a video of {n} frames: two clips of {frames} frames take {n - starts + 2}')
        first, other = rnd.sample(range(starts), 2)
        return [range(s, s + (frames - 1)*stride + 1, stride) for s in (first, other)], 0

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        try: (here, then), label = self.sample(video.index.n, clips.frames, clips.stride, rnd)
        except VideoError as e: raise VideoError(f'{video}: {e}') from None
        # read as one clip, so that they share a crop
        clip, later = clips.read(video, [[*here, *then]])[0].unflatten(0, (2, -1))
        if clips.crop.train or clips.crop.size is None: view = clips.read(video, [here])[0]
        else: view = corner(clips.whole(video, here), clips.crop.size, rnd)
        return TensorVideo(torch.stack([clip, view, later])), label

    def measure(self, encoder:nn.Module, clip:torch.Tensor)->None:
        found = map_stages(encoder, clip)
        if self.layers is not None: found = {name:map_stages(encoder, clip, name)[name] for name in self.layers}
        if len(found) < self.depths:
            raise InputError(f'the encoder has {len(found)} stages ({", ".join(found)}), not {self.depths}: take fewer '
                             'depths, larger clips, or name the layers')
        self.layers = tuple(found)[-self.depths:]
        self.channels = tuple(found[name][0] for name in self.layers)

    def heads(self, n:int)->nn.Module:
        if self.layers is None or self.channels is None:
            raise InputError('HDC contrasts maps of layers: fit, or pass their names and channels, such as '
                             f'layers=[body.1,body.3], channels=[{n//6},{n}]')
        return _Projections(self.channels, self.dim)

    def forward(self, encoder:nn.Module, heads:_Projections, x:torch.Tensor)->tuple:
        assert self.layers is not None  # as there are heads
        gather = encoder.training and dist.is_available() and dist.is_initialized()
        first = dist.get_rank()*len(x) if gather else 0
        maps, found = layer_maps(encoder, x.transpose(0, 1).flatten(0, 1), self.layers), []
        for i, layer in enumerate(self.layers):
            f = maps[layer].mean((2, 3, 4)).unflatten(0, (3, -1))
            for kind, view in zip(VIEWS, f[1:]):
                anchor, views = (F.normalize(heads[f'{kind}{i}'](part).float(), dim=1) for part in (f[0], view))
                found.append(info_nce_logits(anchor, _of_all(views) if gather else views, self.temperature))
        return (*found, first + torch.arange(len(x), device=x.device))

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        *logits, own = pred
        weights = torch.tensor(self.weights or (1.,)*self.depths).repeat_interleave(len(VIEWS)).tolist()
        return torch.stack([w*F.cross_entropy(l, own) for w, l in zip(weights, logits)]).sum()

    @property
    def chances(self)->dict: return dict.fromkeys(self.score_names, .5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        *logits, own = pred
        def hits(found):
            def to(place): return found.gather(1, place[:, None])[:, 0]
            return to(own) > to(own.roll(-1))
        return {name:hits(found) for name, found in zip(self.score_names, logits[-len(VIEWS):])}


def _of_all(views):
    "The views of all processes in their order, with gradient"
    from torch.distributed.nn.functional import all_gather  # not in builds without torch.distributed
    return torch.cat(all_gather(views))


def corner(
    v:torch.Tensor, # Frames `(T, C, H, W)`
    size:int, # Side of the square to return
    rnd:Random, # Draws
)->torch.Tensor: # uint8 `(T, C, size, size)`
    "A square of three quarters of the short side, in a random corner"
    side = max(1, 3*min(v.shape[-2:])//4)
    top, left = (rnd.choice((0, s - side)) for s in v.shape[-2:])
    part = v[..., top:top + side, left:left + side].float()
    return F.interpolate(part, (size, size), mode='bilinear').round_().to(torch.uint8)
