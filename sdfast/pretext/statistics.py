"""Motion and appearance statistics (MAS): where in a clip is most motion, and in which direction; where do colours stay, and which are they? Wang et al.,
CVPR 2019 (laura-wang/video_repres_mas), and the authors' later code with both halves (video_repres_sts)."""
import hashlib
import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from scipy.ndimage import convolve
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from ..runtime import store
from .base import Pretext, PretextClips

__all__ = ['motion_labels', 'appearance_labels', 'optical_flow', 'MotionStatistics']

RANGE = 20  # pixels a frame of the 8-bit flow, in each direction


@cache
def regions(
    side:int, # Of the square in pixels, a multiple of 8
)->list[list]: # Three patterns, for each region of which the numbers of its pixels, row by row
    "A 4x4 grid; four square rings from inside out; eight triangles, quadrants cut along the diagonals of the square, which belong to both"
    if side % 8: raise InputError(f'the statistics are of grids and rings of eighths: size must be a multiple of 8, not {side}')
    y, x = np.mgrid[:side, :side]
    def pixels(masks): return [np.flatnonzero(m) for m in masks]
    block = y*4//side*4 + x*4//side
    ring = np.maximum(np.abs(2*y + 1 - side), np.abs(2*x + 1 - side))*4//side
    half = side//2
    def triangles(down, right):
        here, i, j = (y//half == down) & (x//half == right), y % half, x % half
        if down != right: j = half - 1 - j  # mirrored, as the reference does
        low, high = here & (i >= j), here & (i <= j)
        return (low, high) if down == right else (high, low)
    return [pixels(block == k for k in range(16)), pixels(ring == k for k in range(4)), pixels(m for d in range(2) for r in range(2) for m in triangles(d, r))]


def _direction(mag, angle):
    "1 to 8: which 45 degrees; each pixel's magnitude is shared between the two nearest"
    low, part = (angle//45).astype(int) % 8, angle % 45/45
    return 1 + int(np.argmax(np.bincount(low, mag*(1 - part), 8) + np.bincount((low + 1) % 8, mag*part, 8)))


def motion_labels(
    flow:np.ndarray, # In pixels a frame, horizontal and vertical, between the frames of a square clip `(T - 1, 2, S, S)`
)->np.ndarray: # 14 numbers from 1 on; the first two of each part are 0 if nothing moves
    """For the grid, the rings and the triangles: which region has the strongest motion boundaries (largest sum; mean for rings), and in which
    direction, for u and v; last the frame with the strongest, for u and v."""
    at, frame = [], []
    for f in np.moveaxis(flow, 1, 0).astype(float):
        dx, dy = (convolve(f, k[None]) for k in (np.array([[-1, 0, 1]]*3), np.array([[-1]*3, [0]*3, [1]*3])))
        frame.append(1 + int(np.argmax(np.hypot(dx, dy).sum((1, 2)))))
        dx, dy = dx.sum(0).ravel(), dy.sum(0).ravel()
        mag, angle, found = np.hypot(dx, dy), np.degrees(np.arctan2(dy, dx)) % 360, []
        for i, pattern in enumerate(regions(flow.shape[-1])):
            sums = [mag[p].mean() if i == 1 else mag[p].sum() for p in pattern]
            k = int(np.argmax(sums))
            found.append((0, 0) if i == 0 and not sums[k] else (k + 1, _direction(mag[pattern[k]], angle[pattern[k]])))
        at.append(found)
    return np.array([n for pair in zip(*at) for both in pair for n in both] + frame, np.float32)


def _colour(pixels):
    "1 to 8: which of red, green and blue are at least 128 in the colour that occurs most often; of equals the lowest in blue, then green, then red"
    r, g, b = pixels.reshape(-1, 3).astype(np.int64).T
    values, n = np.unique(b*65536 + g*256 + r, return_counts=True)
    v = values[np.argmax(n)]
    return 1 + 2*int(v & 128 > 0) + int(v >> 8 & 128 > 0) + 4*int(v >> 16 & 128 == 0)


def appearance_labels(
    clip:np.ndarray, # uint8 `(T, S, S, 3)`, RGB
)->np.ndarray: # 13 numbers from 1 on
    """For the grid, the rings and the triangles: which region's colours change most from frame to frame and its most frequent colour, which
    change least and its colour; last the most frequent of all. Change: overlap of the frames' histograms over their union, a mean over channels."""
    t, s = clip.shape[:2]
    flat, out = clip.reshape(t, s*s, 3), []
    place = 256*np.arange(t*3).reshape(t, 1, 3)
    for pattern in regions(s):
        kept = []
        for p in pattern:
            hist = np.bincount((flat[:, p] + place).ravel(), minlength=t*3*256).reshape(t, 3, 256)
            kept.append((hist.min(0).sum(1)/hist.max(0).sum(1)).mean())
        for k in (int(np.argmin(kept)), int(np.argmax(kept))): out += [k + 1, _colour(flat[:, pattern[k]])]
    return np.array([*out, _colour(flat)], np.float32)


def _cv2():
    try: import cv2
    except ImportError: raise InputError("MotionStatistics computes optical flow with OpenCV: pip install 'sdfast[pretext]'") from None
    cv2.setNumThreads(0)  # its threads do not live through the fork of a loading process
    return cv2


def optical_flow(
    video:VideoFile, # A file
    side:int, # Short side in pixels that the video is scaled to
    stride:int=1, # Frames between the two of each flow
    folder:str|Path|None=None, # Where flows are kept, by default `flow` in `$SDFAST_HOME` or ~/.cache/sdfast
)->np.ndarray: # uint8 `(n - stride, 2, H, W)`: -20 to 20 pixels is 0 to 255, as in the reference
    "Flow from each frame to the one `stride` behind it, by OpenCV's DIS, computed once for a file. Raises `InputError` without OpenCV, `VideoError` for a broken file"
    path = Path(video).resolve()
    if not path.is_file(): raise VideoError(f'{video}: cannot be opened (no such file)')
    what = path.stat()
    key = hashlib.sha256(repr((str(path), what.st_size, what.st_mtime_ns, side, stride, 'dis medium')).encode()).hexdigest()[:24]
    file = Path(folder or store.home()/'flow')/key[:2]/f'{key}.npz'
    try: return np.load(file)['flow']
    except FileNotFoundError: pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile): pass  # cut off: made again
    cv2 = _cv2()
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in VideoFile(video).read(np.arange(video.index.n), side).permute(0, 2, 3, 1).numpy()]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = [((dis.calc(a, b, None).transpose(2, 0, 1) + RANGE)*255/(2*RANGE)).round().clip(0, 255).astype(np.uint8) for a, b in zip(grey, grey[stride:])]
    flow, data = np.stack(flow) if flow else np.zeros((0, 2, *grey[0].shape), np.uint8), io.BytesIO()
    np.savez_compressed(data, flow=flow)
    file.parent.mkdir(parents=True, exist_ok=True)
    store.write(file, data.getvalue())
    return flow


class MotionStatistics(Pretext):
    """Regress 14 numbers that say where and how a clip moves and 13 that say where and which colours stay (`motion_labels`, `appearance_labels`), by two
    linear layers: mean squared errors, of the numbers as they are.

    Flow is of the whole video, computed once (`optical_flow`) and cropped with the frames. The reference feeds raw values, in the second of its two codes mirrored
    clips without turning the sign of their flow; here clips are not mirrored. One ring whose colour the reference takes of frames where it means rows is taken as meant.
    Needs OpenCV: `pip install 'sdfast[pretext]'`. Scores: `motion_acc` and `appearance_acc`, the prediction is closer to the clip's own numbers than to those of
    the next video in the batch (equally close: half); chance 1/2."""
    score_names = ('motion_acc', 'appearance_acc')

    def __init__(self,
        motion:float=1., # Weight of the error of the 14
        appearance:float=.1, # Weight of that of the 13
        folder:str|None=None, # Where flows are kept, see `optical_flow`
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if min(motion, appearance) < 0 or not max(motion, appearance): raise InputError(f'motion and appearance must be at least 0, one of them more, not {motion} and {appearance}')
        store_attr('motion,appearance,folder')
        self.protected = encoder

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames, stride, size = video.index.n, clips.frames, clips.stride, clips.crop.size
        if size is None or frames < 2: raise InputError(f'MotionStatistics needs a size and clips of at least 2 frames, not size {size} and {frames}')
        room = n - (frames - 1)*stride - 1
        if room < 0: raise VideoError(f'{video}: a video of {n} frames: {frames} of them take {(frames - 1)*stride + 1}')
        first = rnd.randrange(room + 1)
        idx, (w, h) = first + np.arange(frames)*stride, video.scaled(clips.side)
        top, left = (rnd.randint(0, s - size) if clips.crop.train else (s - size)//2 for s in (h, w))
        def crop(v): return v[..., top:top + size, left:left + size]
        v, flow = crop(clips.whole(video, idx)), crop(optical_flow(video, clips.side, stride, self.folder)[idx[:-1]])
        numbers = motion_labels(flow*(2*RANGE/255) - RANGE), appearance_labels(v.permute(0, 2, 3, 1).numpy())
        return TensorVideo(v[None]), *map(torch.from_numpy, numbers)

    def heads(self, n:int)->nn.Module: return nn.ModuleList([nn.Linear(n, 14), nn.Linear(n, 13)])

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->tuple:
        f = encoder(x[:, 0])
        return tuple(h(f).float() for h in heads)

    def loss(self, pred:tuple, motion:torch.Tensor, appearance:torch.Tensor)->torch.Tensor: return self.motion*F.mse_loss(pred[0], motion) + self.appearance*F.mse_loss(pred[1], appearance)
    @property
    def chances(self)->dict: return dict(motion_acc=.5, appearance_acc=.5)

    def scores(self, pred:tuple, *y)->dict:
        def paired(p, y):
            own, other = (p - y).square().sum(1), (p - y.roll(-1, 0)).square().sum(1)
            return (own < other).float() + (own == other).float()/2
        return dict(zip(self.score_names, map(paired, pred, y)))
