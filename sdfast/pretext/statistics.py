"""Motion and appearance statistics: where and in which direction does a clip move most; which colours stay, and where?

Source: Wang et al., CVPR 2019 (laura-wang/video_repres_mas), and the authors' later code with both halves
(video_repres_sts)."""
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from scipy.ndimage import convolve
from torch import nn

from ..data.clips import TensorVideo
from ..data.motion import as_pixels
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from .base import Pretext
from .clips import PretextClips
from .flow import optical_flow

__all__ = ['motion_labels', 'appearance_labels', 'MotionStatistics']

RINGS = 1  # which of the patterns of `regions` has regions of unequal size
ACROSS = np.array([[-1, 0, 1]]*3)  # derivative along rows
DOWN = np.array([[-1]*3, [0]*3, [1]*3])  # derivative along columns


@cache
def regions(
    side:int, # Of the square in pixels, a multiple of 8
)->list[list]: # For each of three patterns the pixels of its regions, numbered row by row
    """A 4x4 grid; four square rings from inside out; eight triangles.

    The triangles are quadrants cut along the diagonals of the square; pixels on a diagonal belong to both."""
    if side % 8:
        raise InputError(f'the statistics use grids and rings of eighths: size must be a multiple of 8, not {side}')
    y, x = np.mgrid[:side, :side]
    block = y*4//side*4 + x*4//side
    ring = np.maximum(np.abs(2*y + 1 - side), np.abs(2*x + 1 - side))*4//side
    half = side//2

    def triangles(down, right):
        quadrant = (y//half == down) & (x//half == right)
        i, j = y % half, x % half
        if down != right: j = half - 1 - j  # mirrored, as in the reference
        low, high = quadrant & (i >= j), quadrant & (i <= j)
        return (low, high) if down == right else (high, low)

    def pixels(masks): return [np.flatnonzero(m) for m in masks]
    cut = [m for down in range(2) for right in range(2) for m in triangles(down, right)]
    return [pixels(block == k for k in range(16)), pixels(ring == k for k in range(4)), pixels(cut)]


def _direction(mag, angle):
    "Which 45 degrees, 1 to 8; each pixel's magnitude is shared between the two nearest directions"
    low, part = (angle//45).astype(int) % 8, angle % 45/45
    strength = np.bincount(low, mag*(1 - part), 8) + np.bincount((low + 1) % 8, mag*part, 8)
    return 1 + int(np.argmax(strength))


def motion_labels(
    flow:np.ndarray, # In pixels a frame, horizontal and vertical, of the frames of a square clip `(T - 1, 2, S, S)`
)->np.ndarray: # 14 numbers from 1 on; the grid's are 0 if nothing moves
    """Number the regions with the strongest motion boundaries, their directions, and the frames with the strongest.

    For the grid, the rings and the triangles, first of horizontal and then of vertical flow: the region with the
    largest sum (for rings the largest mean) of boundaries, and their direction. Last come the two frames."""
    by_flow, frames = [], []
    for f in np.moveaxis(flow, 1, 0).astype(float):
        dx, dy = (convolve(f, kernel[None]) for kernel in (ACROSS, DOWN))
        frames.append(1 + int(np.argmax(np.hypot(dx, dy).sum((1, 2)))))
        by_flow.append(_strongest_regions(dx.sum(0).ravel(), dy.sum(0).ravel(), flow.shape[-1]))
    places = [n for pattern in zip(*by_flow) for region in pattern for n in region]
    return np.array(places + frames, np.float32)


def _strongest_regions(dx, dy, side):
    "For each pattern the region with the strongest boundaries, and their direction"
    mag, angle = np.hypot(dx, dy), np.degrees(np.arctan2(dy, dx)) % 360
    found = []
    for i, pattern in enumerate(regions(side)):
        strength = [mag[p].mean() if i == RINGS else mag[p].sum() for p in pattern]
        k = int(np.argmax(strength))
        still = i == 0 and not strength[k]
        found.append((0, 0) if still else (k + 1, _direction(mag[pattern[k]], angle[pattern[k]])))
    return found


def _colour(pixels):
    """Which of red, green and blue are at least 128 in the most frequent colour, as a number from 1 to 8.

    Of equally frequent colours it is the lowest in blue, then green, then red."""
    r, g, b = pixels.reshape(-1, 3).astype(np.int64).T
    values, n = np.unique(b*65536 + g*256 + r, return_counts=True)
    v = values[np.argmax(n)]
    red, green, blue = v & 128 > 0, v >> 8 & 128 > 0, v >> 16 & 128 > 0
    return 1 + 2*int(red) + int(green) + 4*int(not blue)


def appearance_labels(
    clip:np.ndarray, # uint8 `(T, S, S, 3)`, RGB
)->np.ndarray: # 13 numbers from 1 on
    """Number the regions whose colours change most and least, with their most frequent colours.

    For the grid, the rings and the triangles: the region that changes most and its colour, then the region that changes
    least and its colour. Last comes the most frequent colour of the clip. The less the histograms of the frames
    overlap, as intersection over union and a mean over channels, the more a region changes."""
    t, s = clip.shape[:2]
    flat, out = clip.reshape(t, s*s, 3), []
    bins = 256*np.arange(t*3).reshape(t, 1, 3)  # a histogram for each frame and channel
    for pattern in regions(s):
        overlap = []
        for p in pattern:
            hist = np.bincount((flat[:, p] + bins).ravel(), minlength=t*3*256).reshape(t, 3, 256)
            overlap.append((hist.min(0).sum(1)/hist.max(0).sum(1)).mean())
        for k in (int(np.argmin(overlap)), int(np.argmax(overlap))): out += [k + 1, _colour(flat[:, pattern[k]])]
    return np.array([*out, _colour(flat)], np.float32)


class MotionStatistics(Pretext):
    """Regress 14 numbers that say where and how a clip moves and 13 that say where and which colours stay, by two
    linear layers.

    The numbers are those of `motion_labels` and `appearance_labels`; the loss is `motion*MSE + appearance*MSE`, mean
    squared errors of the raw numbers. For the source see `sdfast.pretext.statistics`.

    Flow is computed once for the whole video (`optical_flow`) and cropped with the frames. Differences from the
    reference: it feeds raw pixel values, and in the second of its two codes mirrors clips without changing the sign of
    their flow; no clip is mirrored here. The reference also takes the colour of one ring from frames where it means
    rows; rows are taken here. Needs OpenCV: `pip install 'sdfast[pretext]'`.

    Scores: `motion_acc` and `appearance_acc`, the prediction is closer to the clip's own numbers than to those of the
    next video in the batch (equally close: half); chance 1/2."""
    score_names = ('motion_acc', 'appearance_acc')

    def __init__(self,
        motion:float=1., # Weight of the error of the 14
        appearance:float=.1, # Weight of the error of the 13
        folder:str|None=None, # Where flows are kept, see `optical_flow`
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if min(motion, appearance) < 0 or not max(motion, appearance):
            raise InputError('motion and appearance must be at least 0, and one of them above 0, not '
                             f'{motion} and {appearance}')
        store_attr('motion,appearance,folder')
        self.protected = encoder

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames, stride, size = video.index.n, clips.frames, clips.stride, clips.crop.size
        if size is None or frames < 2:
            raise InputError('MotionStatistics needs a size and clips of at least 2 frames, not '
                             f'size {size} and {frames} frames')
        room = n - (frames - 1)*stride - 1
        if room < 0:
            raise VideoError(f'{video}: a video of {n} frames: {frames} of them take {(frames - 1)*stride + 1}')
        idx = rnd.randrange(room + 1) + np.arange(frames)*stride
        assert clips.side is not None  # as there is a size and no `area`
        w, h = video.scaled(clips.side)
        top, left = (rnd.randint(0, s - size) if clips.crop.train else (s - size)//2 for s in (h, w))
        def crop(v): return v[..., top:top + size, left:left + size]
        v = crop(clips.whole(video, idx))
        flow = crop(optical_flow(video, clips.side, stride, self.folder)[idx[:-1]])
        motion = motion_labels(as_pixels(flow))
        appearance = appearance_labels(v.permute(0, 2, 3, 1).numpy())
        return TensorVideo(v[None]), torch.from_numpy(motion), torch.from_numpy(appearance)

    def heads(self, n:int)->nn.ModuleList: return nn.ModuleList([nn.Linear(n, 14), nn.Linear(n, 13)])

    def forward(self, encoder:nn.Module, heads:nn.ModuleList, x:torch.Tensor)->tuple:
        f = encoder(x[:, 0])
        return tuple(head(f).float() for head in heads)

    def loss(self, pred:tuple, motion:torch.Tensor, appearance:torch.Tensor)->torch.Tensor:
        return self.motion*F.mse_loss(pred[0], motion) + self.appearance*F.mse_loss(pred[1], appearance)

    @property
    def chances(self)->dict: return dict(motion_acc=.5, appearance_acc=.5)

    def scores(self, pred:tuple, *y)->dict:
        def closer(p, y):
            own, other = (p - y).square().sum(1), (p - y.roll(-1, 0)).square().sum(1)
            return (own < other).float() + (own == other).float()/2
        return {name:closer(p, numbers) for name, p, numbers in zip(self.score_names, pred, y)}
