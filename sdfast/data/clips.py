"""Videos as a fastai `DataBlock`: decoding with PyAV, clip sampling, clip-consistent augmentation, film strips.

A clip is `(T, C, H, W)`, several clips of one video `(K, T, C, H, W)`, a batch has one more axis in front.
Frames are counted in the order in which they are shown, whatever the frame rate does.
"""
import random
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.block import TransformBlock
from fastai.data.core import get_show_batch_func
from fastai.data.load import SkipItemException
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory, TensorImage, show_image
from fastai.vision.augment import RandTransform
from fastai.vision.core import imagenet_stats
from fastai.vision.data import get_grid
from fasttransform import Pipeline, Transform
from plum import dispatch
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from ..errors import InputError
from .video import WHOLE_BYTES, VideoError, VideoFile, index_video

__all__ = ['TensorVideo', 'clip_indices', 'SampleClips', 'ClipTransform', 'MultiClip', 'NormalizeClips', 'normalize_video', 'VideoBlock', 'show_batch', 'show_results']



class TensorVideo(TensorImage):
    "Frames laid out `(..., T, C, H, W)`, uint8 or float in [0, 1]; `show` draws a film strip"

    def show(self,
        ctx:object=None, # Axes to draw on
        n:int=8, # Frames of each clip to draw, evenly spaced
        **kwargs,
    )->object:
        "Draw each clip as a row of `n` frames"
        x = self.as_subclass(torch.Tensor)
        if x.is_floating_point(): x = x.clamp(0, 1)  # decoding a normalised clip leaves 1.0000001
        clips = x.flatten(0, -5) if x.ndim > 4 else x[None]
        pick = torch.linspace(0, clips.shape[1] - 1, min(n, clips.shape[1])).round().long()
        rows = [torch.cat(list(clip[pick]), -1) for clip in clips]
        return show_image(torch.cat(rows, -2), ctx=ctx, **kwargs)


def clip_indices(
    n:int, # Frames the video has
    frames:int, # Frames in a clip
    stride:int=1, # Frames between two of the clip
    at:float=.5, # Where the clip lies: 0 at the start of the video, 1 at its end
    wrap:bool=False, # What a video shorter than the clip does: begin again, as RSPNet's, or repeat its last frame
)->np.ndarray: # `frames` frame numbers
    """The frames of one clip. Its start is rounded to the nearest frame, for the middle one down.

    With `wrap` a video that has the frames, but not for this stride, is spread over the clip (RSPNet, transforms_temporal.py)."""
    room = n - (frames - 1)*stride - 1
    if wrap and room < 0: return np.arange(frames) % n if n <= frames else np.linspace(0, n - 1, frames).round().astype(int)
    room = max(0, room)
    return np.minimum((room//2 if at == .5 else round(at*room)) + np.arange(frames)*stride, n - 1)


@cache
def decode_whole(path, size): return VideoFile(path).read(np.arange(index_video(path).n), size)


class SampleClips(RandTransform):
    """One clip at a random place, cropped at random, for training; `k` evenly spaced centre crops otherwise.

    Any start that the video has room for is as likely as any other. The random crop is a square of the scaled frame or,
    with `area`, a part of the frame as it is, of aspect 3/4 to 4/3, resized to the square (He et al.'s, one for all frames
    of a clip); its centre crop is then the largest square. Resizing rounds to uint8."""
    split_idx, order, aspect = None, 4, (3/4, 4/3)

    def __init__(self,
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames between two of the clip
        size:int|None=64, # Side of the square in pixels: the short side is scaled to it, then the long side cropped
        k:int=1, # Clips of each video outside training: 1 is the middle one, more are evenly spaced
        cache:bool|Callable=False, # Keep whole decoded videos in this process's memory, for sets that fit; those that a `Decoded` has it shares with others
        area:tuple|None=None, # Smallest and largest part of the frame that a training crop covers, such as `(.25, 1)`
        flip:bool=False, # Mirror half of the training clips
        wrap:bool=False, # See `clip_indices`
        **kwargs, # More for fastai's `RandTransform`
    ):
        if min(frames, stride, k, 1 if size is None else size) < 1:
            raise InputError(f'frames, stride, size and k must be at least 1, not {frames}, {stride}, {size} and {k}')
        if area is not None and (size is None or len(area) != 2 or not 0 < area[0] <= area[1] <= 1):
            raise InputError(f'area must be two parts of the frame such as (.25, 1), and needs a size; not {area} with size {size}')
        super().__init__(**kwargs)
        self.frames, self.stride, self.size, self.k, self.cache, self.area, self.flip, self.wrap = frames, stride, size, k, cache, area, flip, wrap

    def before_call(self, b:object, split_idx:int|None)->None: self.train = not split_idx

    def encodes(self, x:VideoFile)->TensorVideo:
        try: clips = self._clips(x)
        except VideoError as e:
            warnings.warn(f'skipped {e}')
            raise SkipItemException(str(e)) from None
        return TensorVideo(clips[0] if len(clips) == 1 else clips)

    def _clips(self, x):
        side = None if self.area else self.size
        v = self._kept(x, side)
        n = x.index.n if v is None else len(v)
        idx = np.stack([clip_indices(n, self.frames, self.stride, a, self.wrap) for a in self._places(n)])
        v = x.read(idx.ravel(), side) if v is None else v[idx.ravel()]
        if self.size is not None: v = self._crop(v)
        if self.train and self.flip and random.random() < .5: v = v.flip(-1)
        return v.unflatten(0, idx.shape)

    def _kept(self, x, side):
        "All frames, where they are kept"
        if not self.cache: return
        if callable(self.cache) and (v := self.cache(str(x), side)) is not None: return v
        return decode_whole(str(x), side) if 3*x.index.n*np.prod(x.scaled(side)) <= WHOLE_BYTES else None

    def _places(self, n):
        if not self.train: return np.linspace(0, 1, self.k) if self.k > 1 else [.5]
        room = max(0, n - (self.frames - 1)*self.stride - 1)
        return [int(random.random()*(room + 1))/max(1, room)]

    def _crop(self, v):
        h, w = v.shape[-2:]
        if self.area and self.train: top, left, ch, cw = RandomResizedCrop.get_params(v, self.area, self.aspect)
        else:
            ch = cw = min(h, w) if self.area else self.size
            top, left = (random.randint(0, s - ch) if self.train else (s - ch)//2 for s in (h, w))
        v = v[..., top:top + ch, left:left + cw]
        if (ch, cw) == (self.size, self.size): return v
        return interpolate(v.float(), (self.size, self.size), mode='bilinear').round_().to(torch.uint8)


class ClipTransform(Transform):
    """fastai's image batch transforms on clips: one draw a clip, shared by all its frames.

    A clip is handed over as one image of `T*C` channels; transforms that need three channels (hue, saturation) do not apply."""
    order, split_idx = 30, None

    def __init__(self,
        tfms:Sequence, # Of fastai for batches of images, such as `aug_transforms()`
    ):
        self.tfms = Pipeline(tfms)

    def __call__(self, b:object, split_idx:int|None=None, **kwargs)->object:
        self.tfms.split_idx = split_idx
        return super().__call__(b, split_idx=split_idx, **kwargs)

    def encodes(self, x:TensorVideo)->TensorVideo:
        y = self.tfms(TensorImage(x.flatten(1, -3)))
        return TensorVideo(y.view(*x.shape[:-2], *y.shape[-2:]))


class MultiClip(Callback):
    "Predict each clip of a batch `(B, K, T, C, H, W)` on its own and average the logits of a video"
    order = 8  # before `CastToTensor` (9) and `MixedPrecision` (10)

    def before_batch(self):
        self.k = self.x.shape[1] if self.x.ndim == 6 else 1
        if self.k > 1: self.learn.xb = (self.x.flatten(0, 1), *self.xb[1:])

    def after_pred(self):
        # the average of half-precision logits is rounded: average in float32
        if self.k > 1: self.learn.pred = self.pred.float().unflatten(0, (-1, self.k)).mean(1)


class NormalizeClips(Normalize):
    """fastai's `IntToFloatTensor` and `Normalize` in one pass over a batch on its device: uint8 `(..., T, C, H, W)` to float32, `(x/255 - mean)/std`.

    Decoded as by both. `parts` are the two, for what needs floats in [0, 1] in between."""

    @property
    def parts(self)->list[Transform]: return [IntToFloatTensor(), Normalize(self.mean, self.std)]

    def encodes(self, x:TensorVideo)->TensorVideo:
        if x.is_floating_point(): raise InputError(f'NormalizeClips takes bytes, not {x.dtype}: floats in [0, 1] are for normalize_video()')
        return TensorVideo(torch.addcmul(-self.mean/self.std, x.as_subclass(torch.Tensor), 1/(255*self.std)))

    def decodes(self, x:TensorVideo)->TensorVideo: return Pipeline(self.parts).decode(x)


def normalize_video(
    mean:Sequence[float]=imagenet_stats[0], # Of each channel, of pixels in [0, 1]
    std:Sequence[float]=imagenet_stats[1], # Of each channel
)->Normalize: # A batch transform
    "`Normalize` for the channel axis of batches of clips, 5-D or 6-D"
    return Normalize.from_stats(mean, std, dim=2, ndim=5)


def VideoBlock(
    frames:int=8, # Frames in a clip
    stride:int=1, # Frames between two of the clip
    size:int|None=64, # Side of the square crop in pixels
    k:int=1, # Clips of each video outside training
    cache:bool|Callable=False, # Keep whole decoded videos in memory, see `SampleClips`
    stats:tuple|None=None, # Mean and standard deviation of each channel: batches are normalised as they become floats, see `NormalizeClips`; `None`: floats in [0, 1]
    **kwargs, # More for `SampleClips`: area, flip, wrap
)->TransformBlock: # For `DataBlock(blocks=...)`
    "A `TransformBlock` for paths of video files"
    return TransformBlock(type_tfms=VideoFile.create, item_tfms=SampleClips(frames, stride, size, k, cache, **kwargs),
                          batch_tfms=IntToFloatTensor if stats is None else NormalizeClips.from_stats(*stats, dim=2, ndim=5))


def _strips(n, figsize): return get_grid(n, ncols=1, nrows=n, figsize=figsize or (10, 1.6*n))


@dispatch
def show_batch(x:TensorVideo, y, samples, ctxs=None, max_n=6, figsize=None, **kwargs):
    if ctxs is None: ctxs = _strips(min(len(samples), max_n), figsize)
    ctxs = get_show_batch_func(object)(x, y, samples, ctxs=ctxs, max_n=max_n, **kwargs)
    for ctx in ctxs: ctx.title.set_parse_math(False)  # a class name may hold dollars
    return ctxs


@dispatch
def show_results(x:TensorVideo, y:TensorCategory, samples, outs, ctxs=None, max_n=6, figsize=None, **kwargs):
    n = min(len(samples), max_n)
    if ctxs is None: ctxs = _strips(n, figsize)
    for (clip, truth, *_), (pred, *_), ctx in zip(samples[:n], outs[:n], ctxs):
        right = str(truth) == str(pred)
        clip.show(ctx=ctx, title=f'{truth}' if right else f'{truth}, predicted {pred}')
        ctx.title.set(color='green' if right else 'firebrick', parse_math=False)
    return ctxs
