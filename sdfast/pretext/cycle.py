"Cycle consistency of time: track a patch back through the maps of a video and forth again."
from collections.abc import Callable
from contextlib import nullcontext
from math import cos, pi, sin
from random import Random

import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from .base import Pretext
from .clips import PretextClips
from .maps import layer_maps, map_stages
from .net import batch_statistics

__all__ = ['patch_places', 'cut_patch', 'affinity', 'inliers', 'place_distance', 'TimeCycle']

GRID = 9  # thirds of thirds of the frame, from which patches start
EPS = 1e-5  # of the reference's count of inliers


def patch_places(
    xya:torch.Tensor, # Centre of a patch, from -1 to 1 in the frame, and its angle `(..., 3)`
)->torch.Tensor: # `(..., 2, 3)`
    "The affine maps from a patch, a third of the frame in each direction, to the frame"
    x, y, angle = xya.unbind(-1)
    c, s = angle.cos()/3, angle.sin()/3
    return torch.stack([torch.stack([c, -s, x], -1), torch.stack([s, c, y], -1)], -2)


def cut_patch(
    maps:torch.Tensor, # Maps or frames `(N, C, H, W)`
    places:torch.Tensor, # From `patch_places`, `(N, 2, 3)`
    side:int, # Of the patch
)->torch.Tensor: # `(N, C, side, side)`
    "Cut a patch out of each map, with bilinear interpolation, and 0 outside the map"
    return F.grid_sample(maps, _points(places, side), align_corners=True)


def _points(places, side):
    "Where the points of a patch are in the frame `(N, side, side, 2)`; its only point is its centre"
    at = torch.linspace(-1, 1, side, device=places.device) if side > 1 else torch.zeros(1, device=places.device)
    y, x = torch.meshgrid(at.to(places.dtype), at.to(places.dtype), indexing='ij')
    return torch.einsum('nij,jyx->nyxi', places, torch.stack([x, y, torch.ones_like(x)]))


def affinity(
    patch:torch.Tensor, # Maps of a patch, of length 1 at each place `(N, C, P, P)`
    frame:torch.Tensor, # Maps of a frame, of length 1 at each place `(N, C, S, S)`
    temperature:float=512**-.5, # Divides similarities
)->torch.Tensor: # `(N, S*S, P, P)`
    "Where in the frame each place of the patch is: softmax over the frame's places, row by row"
    similarities = torch.einsum('ncs,ncp->nsp', frame.flatten(2), patch.flatten(2))
    return (similarities/temperature).softmax(1).unflatten(2, patch.shape[2:])


def inliers(
    found:torch.Tensor, # From `affinity`, `(N, S*S, P, P)`
    places:torch.Tensor, # Where the patch as a whole was found `(N, 2, 3)`
)->torch.Tensor: # `(N,)`
    """The affinity of each place of the patch to where `places` puts it, averaged over the patch.

    As in the reference, the sum is divided by the number of places inside the frame plus 1e-5 for each entry of
    `found`."""
    n, frame, p, _ = found.shape
    s = round(frame**.5)
    grid = _points(places, p).reshape(n*p*p, 1, 1, 2)
    by_place = found.flatten(2).transpose(1, 2).reshape(n*p*p, 1, s, s)
    at = F.grid_sample(by_place, grid, align_corners=True).view(n, -1).sum(1)
    inside = F.grid_sample(torch.ones_like(by_place), grid, align_corners=True).view(n, -1).sum(1)
    return at/(inside + EPS*found[0].numel())


def place_distance(
    a:torch.Tensor, # From `patch_places`, `(..., 2, 3)`
    b:torch.Tensor, # Others `(..., 2, 3)`
    n:int=20, # Side of the grid
)->torch.Tensor: # `(...)`
    "Mean squared distance of where two affine maps put the points of an n x n grid from -1 to 1"
    d = (a - b).square()
    # the axes of the grid are uncorrelated and have mean 0
    return d[..., 2].sum(-1) + (n + 1)/(3*(n - 1))*d[..., :2].sum((-2, -1))


class _Tracker(nn.Module):
    "A layer on maps before they are compared, and the layers that read a place from an affinity"

    def __init__(self, channels, frame, patch, dim):
        super().__init__()
        k = (patch + 2)//3
        self.project = nn.Conv2d(channels, dim, 1, bias=False)
        self.read = nn.Sequential(
            nn.Conv2d(frame*frame, 128, k, bias=False), nn.LeakyReLU(.1),
            nn.Conv2d(128, 64, k, bias=False), nn.LeakyReLU(.1), nn.Flatten())
        self.place = nn.Linear(64*(patch - 2*k + 2)**2, 3)
        for m in (self.project, self.read[0], self.read[2]):
            nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
        nn.init.normal_(self.place.weight, std=.01)
        nn.init.zeros_(self.place.bias)


class TimeCycle(Pretext):
    """Find a patch of a later frame in earlier ones, go back and forth through time, and end where the patch was cut.

    A tracker finds a patch in a frame: softmax affinities of their maps, of which two convolutions and a linear layer
    make a place and an angle; the maps that are there are the next patch. The loss is `inlier + skip*D_skip +
    cycle*D_cycle`: the negative `inliers` of the patch in each frame, and mean `place_distance` of the end to the true
    place, after a step to each frame and directly back, and after cycles of 1, 2, ... frames back and forth. Source:
    Wang, Jabri & Efros, CVPR 2019, as trained by their code (xiaolonw/TimeCycle).

    A time step is a clip of the loader's frames, best of one; its maps are averaged over time. The patch comes `ahead`
    steps after `steps` others, from one of the ten parts of the frame in which most moves, turned by up to 45 degrees.
    All frames have the same crop and flip. Videos that are too short are skipped. Batch norm uses the statistics of the
    batch on held-out videos too: with running ones, which mix frames and patches, no place is found there.

    Scores, with chance 1/2 each: the end is closer to the true place than to that of the next video in the batch, after
    the longest cycle (`cycle_acc`) and after most of the direct ways (`skip_acc`; equally close: half)."""
    flip, zoom, inputs, score_names = True, 256/240, 2, ('cycle_acc', 'skip_acc')
    layer: str|None  # of the encoder; known after `measure`
    sizes: tuple|None  # channels, side of a frame's maps and of a patch's; known after `measure`

    def __init__(self,
        steps:int=4, # Frames to track through
        ahead:int=4, # Steps from the last of them to the frame of the patch
        skip:float=.1, # Weight of the direct ways
        cycle:float=.02, # Weight of the cycles
        temperature:float=512**-.5, # Divides similarities
        dim:int=512, # Channels of the maps that are compared
        layer:str|None=None, # Of the encoder; by default its last block
        sizes:tuple|None=None, # Channels, side of a frame's maps and of a patch's; by default found before a fit
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if min(steps, ahead, dim) < 1 or min(skip, cycle) < 0 or temperature <= 0:
            raise InputError('steps, ahead and dim must be at least 1, skip and cycle at least 0 and temperature above '
                             f'0, not {steps}, {ahead}, {dim}, {skip}, {cycle} and {temperature}')
        store_attr('steps,ahead,skip,cycle,temperature,dim,layer,sizes')
        self.protected = encoder

    # ---- clips

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames, stride = video.index.n, clips.frames, clips.stride
        step = frames*stride
        target = max((self.steps + self.ahead)*step - 1, self.steps*step)
        need = target + (frames - 1)*stride + 1
        if n < need:
            raise VideoError(f'{video}: a video of {n} frames: {self.steps} steps and a patch {self.ahead} later take '
                             f'{need}')
        first = rnd.randrange(n - need + 1)
        starts = [first + i*step for i in range(self.steps)] + [first + target, first + target + step]
        idx = [min(s + i*stride, n - 1) for s in starts for i in range(frames)]
        v = clips.read(video, [idx])[0].unflatten(0, (-1, frames))  # read as one clip, so that they share a crop
        return TensorVideo(v[:-1]), moving_place(v[-2], v[-1], rnd), 0

    # ---- tracking

    def measure(self, encoder:nn.Module, clip:torch.Tensor)->None:
        side = clip.shape[-1]
        self.layer, (channels, _, *frame) = list(map_stages(encoder, clip, self.layer).items())[-1]
        patch = map_stages(encoder, clip[..., :round(side/3), :round(side/3)], self.layer)[self.layer]
        self.sizes = channels, frame[0], patch[2]

    def heads(self, n:int)->nn.Module:
        if self.sizes is None or self.layer is None:
            raise InputError('TimeCycle reads maps of a layer: fit, or pass its name and sizes, such as layer=body.3, '
                             f'sizes=[{n},9,3]')
        channels, frame, patch = self.sizes
        return _Tracker(channels, frame, patch, self.dim)

    def forward(self, encoder:nn.Module, heads:_Tracker, x:torch.Tensor, place:torch.Tensor)->tuple:
        b, t = len(x), self.steps
        place = place.to(x.dtype)
        target = x[:, -1]
        cut_out = cut_patch(target.flatten(1, 2), place, round(x.shape[-1]/3)).unflatten(1, target.shape[1:3])
        # frames, patch and target pass batch norm separately, as in the reference
        with nullcontext() if encoder.training else batch_statistics(encoder):
            frames, patch, end = (self._maps(encoder, heads, v) for v in (x[:, :t].flatten(0, 1), cut_out, target))

        first = F.normalize(patch, dim=1).repeat_interleave(t, 0)
        there, found = self._track(heads, first, frames)
        skips, _ = self._track(heads, self._follow(frames, there), end.repeat_interleave(t, 0))
        return (self._cycles(heads, patch, frames.unflatten(0, (b, t)), end), skips.unflatten(0, (b, t)),
                inliers(found, there).unflatten(0, (b, t)), place)

    def _maps(self, encoder, heads, x):
        return heads.project(layer_maps(encoder, x, [self.layer])[self.layer].mean(2)).relu()

    def _track(self, heads, patch, frame):
        "Place of a patch, with maps of length 1, in a frame, and the affinities"
        found = affinity(patch, F.normalize(frame, dim=1), self.temperature)
        return patch_places(heads.place(heads.read(found))), found

    def _follow(self, frame, place): return F.normalize(cut_patch(frame, place, self.sizes[2]), dim=1)

    def _cycles(self, heads, patch, frames, end):
        "Where cycles of 1, 2, ... steps back and forth end `(B, steps, 2, 3)`"
        ends, back = [], F.normalize(patch, dim=1)
        for length in range(1, self.steps + 1):
            # a longer cycle goes back by one more frame than the one before it
            frame = frames[:, -length]
            back = self._follow(frame, self._track(heads, back, frame)[0])
            now = back
            for t in range(self.steps - length + 1, self.steps):
                now = self._follow(frames[:, t], self._track(heads, now, frames[:, t])[0])
            ends.append(self._track(heads, now, end)[0])
        return torch.stack(ends, 1)

    # ---- loss

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        cycles, skips, inside, place = pred
        def distance(ends): return place_distance(ends, place[:, None]).mean()
        return self.skip*distance(skips) + self.cycle*distance(cycles) - inside.mean()

    @property
    def chances(self)->dict: return dict.fromkeys(self.score_names, .5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        cycles, skips, _, place = pred
        def closer(ends):
            own, other = (place_distance(ends, p[:, None]) for p in (place, place.roll(-1, 0)))
            return (own < other).float() + (own == other).float()/2
        most = closer(skips).mean(1)
        return dict(cycle_acc=closer(cycles)[:, -1], skip_acc=(most > .5).float() + (most == .5).float()/2)


def moving_place(
    v:torch.Tensor, # A clip `(T, C, H, W)`
    later:torch.Tensor, # The next one, in the same crop
    rnd:Random, # Draws
)->torch.Tensor: # From `patch_places`, `(2, 3)`
    "A random place in one of the ten parts of a clip, of 7x7 that overlap, in which most changes; turned at random"
    change = (v.float() - later.float()).abs().sum((0, 1))
    cell = max(1, change.shape[-1]//GRID)
    last = GRID - 2
    amounts = F.avg_pool2d(change[None], 3*cell, cell)[0, :last, :last]
    chosen = int(amounts.flatten().argsort(descending=True, stable=True)[rnd.randrange(10)])
    row, col = divmod(chosen, amounts.shape[1])

    def centre(i): return 2/3*(2*min(max(i/(last - 1) + (rnd.random() - .5)/6, 0), 1) - 1)
    x, y, angle = centre(col), centre(row), (rnd.random() - .5)*pi/2
    c, s = cos(angle)/3, sin(angle)/3
    return torch.tensor([[c, -s, x], [s, c, y]])
