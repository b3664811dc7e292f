"""Cutting clips out of a video: which frames, and which part of the picture.

A clip is `(T, C, H, W)`, several clips of one video are `(K, T, C, H, W)`; a batch has one more axis in front."""
import random
import warnings
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from fastai.data.load import SkipItemException
from fastai.torch_core import TensorImage, show_image
from fastai.vision.augment import RandTransform
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from ..errors import InputError
from ..runtime.limits import MAX_FRAMES, MAX_SIZE
from .cache import MemoryBudget, cached_frames
from .video import VideoError, VideoFile

__all__ = ['TensorVideo', 'clip_indices', 'SampleClips', 'as_video']


class TensorVideo(TensorImage):
    "Frames laid out `(..., T, C, H, W)`, uint8 or float in [0, 1]; `show` draws a film strip"

    def show(self,
        ctx:object=None, # Axes to draw on
        n:int=8, # Frames of each clip to draw, evenly spaced
        **kwargs,
    )->object:
        "Draw each clip as a row of `n` frames"
        x = self.as_subclass(torch.Tensor)
        if x.is_floating_point(): x = x.clamp(0, 1)  # decoding a normalised clip can give 1.0000001
        clips = x.flatten(0, -5) if x.ndim > 4 else x[None]
        frames = clips.shape[1]
        drawn = torch.linspace(0, frames - 1, min(n, frames)).round().long()
        rows = [torch.cat(list(clip[drawn]), -1) for clip in clips]
        return show_image(torch.cat(rows, -2), ctx=ctx, **kwargs)


def clip_indices(
    n:int, # Number of frames of the video
    frames:int, # Frames in a clip
    stride:int=1, # Frames of the video from one frame of the clip to the next
    at:float=.5, # Position of the clip: 0 at the start of the video, 1 at its end
    wrap:bool=False, # Repeat a video that is too short from its start, as in RSPNet, instead of its last frame
)->np.ndarray: # `frames` frame numbers
    """Frame numbers of one clip. Its start is rounded to the nearest frame; for the middle clip, it is rounded down.

    With `wrap`, if a video has enough frames, but not for this stride, the clip's frames are spread evenly over the
    video (RSPNet, transforms_temporal.py)."""
    room = n - (frames - 1)*stride - 1
    if wrap and room < 0:
        if n <= frames: return np.arange(frames) % n
        return np.linspace(0, n - 1, frames).round().astype(int)
    room = max(0, room)
    start = room//2 if at == .5 else round(at*room)
    return np.minimum(start + np.arange(frames)*stride, n - 1)


class MissingClips(TensorVideo):
    "Clips of which some could not be decoded: a blank clip or, in a batch, floats from 0 to 255 with NaN for those"


class BrokenVideo(SkipItemException):
    "A video that cannot be decoded is skipped; the message is that of the `VideoError`"


def row_lost(error:Exception)->VideoError:
    "The error for a broken video where the order of the videos matters"
    return VideoError(f'{error}; leave the file out: without its row, all later ones would be beside the wrong files')


def check_clips(frames:int, stride:int, size:int|None, k:int)->None:
    "Raise `InputError` for clips that are empty or absurdly large"
    given = (frames, stride, 1 if size is None else size, k)
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in given)
    if not whole or min(given) < 1:
        raise InputError('frames, stride, size and k must be whole numbers of at least 1, '
                         f'not {frames!r}, {stride!r}, {size!r} and {k!r}')
    if max(frames, stride, k) > MAX_FRAMES or given[2] > MAX_SIZE:
        raise InputError(f'frames, stride and k must be at most {MAX_FRAMES} and size at most {MAX_SIZE}, '
                         f'not {frames}, {stride}, {k} and {size}')


def scale_frames(
    x:torch.Tensor, # uint8 `(T, C, H, W)`
    size:int, # Short side in pixels
)->torch.Tensor: # uint8
    "Scale frames such that their short side has a given length"
    h, w = x.shape[-2:]
    if min(h, w) == size: return x
    to = (size, max(size, round(w*size/h))) if h < w else (max(size, round(h*size/w)), size)
    return interpolate(x.float(), to, mode='bilinear', antialias=True).round_().clamp_(0, 255).to(torch.uint8)


def as_video(
    x:str|Path|torch.Tensor|np.ndarray, # A path, or frames `(T, 3, H, W)`: bytes, or floats in [0, 1]
)->VideoFile|TensorVideo: # The file, or the frames as bytes
    "What a `VideoBlock` takes for a video: a file, or the frames of one. Raises `InputError` for other tensors"
    if isinstance(x, (str, Path)): return VideoFile(x)
    frames = torch.as_tensor(x).as_subclass(torch.Tensor).detach().cpu()
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        likely = '; permute(0, 3, 1, 2) makes it so' if frames.ndim == 4 and frames.shape[-1] == 3 else ''
        raise InputError(f'the frames of a video must be a tensor (T, 3, H, W), not {tuple(frames.shape)}{likely}')
    if frames.dtype == torch.uint8: return TensorVideo(frames)
    if not frames.is_floating_point() or not (frames.min() >= 0 and frames.max() <= 1):
        raise InputError(f'the frames of a video must be bytes, or floats in [0, 1] before normalisation, not '
                         f'{frames.dtype} from {frames.min():.3g} to {frames.max():.3g}')
    return TensorVideo((255*frames).round_().to(torch.uint8))


class SampleClips(RandTransform):
    """Cut clips out of a video: a random one for training, otherwise `k` evenly spaced ones, cropped at the centre.

    In training each possible start is equally likely. The random crop is the same for all frames of a clip: a square of
    the scaled frame or, with `area`, a part of the unscaled frame with an aspect ratio of 3/4 to 4/3 that is resized to
    a square (as in He et al.). With `area` the centre crop is the largest square. Resizing rounds to uint8."""
    split_idx, order = None, 4
    size_is_default = False  # whether an item transform that changes the size replaces the crop
    aspect = 3/4, 4/3  # range of the aspect ratio of a random crop with `area`

    def __init__(self,
        frames:int=8, # Frames in a clip
        stride:int=1, # Frames of the video from one frame of the clip to the next
        size:int|None=64, # Side of the square in pixels: the short side is scaled to it, then the long side cropped
        k:int=1, # Clips of each video outside training: 1 is the middle one, more are evenly spaced
        # Keep decoded videos in memory: `True` or a `MemoryBudget` in this process, a `Decoded` shared with others
        cache:bool|MemoryBudget|Callable=False,
        area:tuple|None=None, # Smallest and largest share of the frame that a training crop covers, such as `(.25, 1)`
        flip:bool=False, # Mirror half of the training clips
        wrap:bool=False, # See `clip_indices`
        **kwargs, # Other arguments of fastai's `RandTransform`
    ):
        check_clips(frames, stride, size, k)
        if area is not None and (size is None or len(area) != 2 or not 0 < area[0] <= area[1] <= 1):
            raise InputError('area must be two shares of the frame such as (.25, 1), and needs a size; '
                             f'not {area} with size {size}')
        super().__init__(**kwargs)
        self.frames, self.stride, self.size, self.k = frames, stride, size, k
        self.cache, self.area, self.flip, self.wrap = cache, area, flip, wrap

    def before_call(self, b:object, split_idx:int|None)->None: self.train = not split_idx

    def encodes(self, x:VideoFile|TensorVideo)->TensorVideo:  # a file, or the decoded frames of one
        try: clips = self._clips(x) if isinstance(x, VideoFile) else self._cut(x.as_subclass(torch.Tensor))
        except VideoError as e:
            if not self.train: raise row_lost(e) from None
            warnings.warn(f'skipped {e}')
            raise BrokenVideo(str(e)) from None
        return TensorVideo(clips[0] if len(clips) == 1 else clips)

    def blank(self)->MissingClips:
        "Zeros in place of the clips of a video outside training"
        assert self.size is not None  # without a size it is not known
        several = (self.k,) if self.k > 1 else ()
        return MissingClips(torch.zeros(*several, self.frames, 3, self.size, self.size, dtype=torch.uint8))

    def _clips(self, video):
        side = None if self.area else self.size
        whole = cached_frames(video, side, self.cache)
        n = video.index.n if whole is None else len(whole)
        idx = np.stack([clip_indices(n, self.frames, self.stride, at, self.wrap) for at in self._places(n)])
        clips = video.read(idx.ravel(), side) if whole is None else whole[idx.ravel()]
        if self.size is not None: clips = self.crop_frames(clips)
        if self.train and self.flip and random.random() < .5: clips = clips.flip(-1)
        return clips.unflatten(0, idx.shape)

    def _cut(self, frames):
        "`_clips` of frames `(T, 3, H, W)` that are decoded already"
        idx = np.stack([clip_indices(len(frames), self.frames, self.stride, at, self.wrap)
                        for at in self._places(len(frames))])
        clips = frames[idx.ravel()]
        if self.size is None: return clips.unflatten(0, idx.shape)
        if self.area is None: clips = scale_frames(clips, self.size)
        return self.crop_frames(clips).unflatten(0, idx.shape)

    def _places(self, n):
        "The `at` of `clip_indices` for each clip of a video of `n` frames"
        if not self.train: return np.linspace(0, 1, self.k) if self.k > 1 else [.5]
        room = max(0, n - (self.frames - 1)*self.stride - 1)
        return [int(random.random()*(room + 1))/max(1, room)]

    def crop_frames(self,
        x:torch.Tensor, # uint8 `(T, C, H, W)`
    )->torch.Tensor: # uint8 `(T, C, size, size)`
        "Crop all frames in the same place, at random in training, and resize them to the square"
        assert self.size is not None  # without a size no frame is cropped
        h, w = x.shape[-2:]
        if self.area and self.train:
            top, left, height, width = RandomResizedCrop.get_params(x, self.area, self.aspect)
        else:
            height = width = min(h, w) if self.area else self.size
            top, left = (random.randint(0, s - height) if self.train else (s - height)//2 for s in (h, w))
        x = x[..., top:top + height, left:left + width]
        if (height, width) == (self.size, self.size): return x
        return interpolate(x.float(), (self.size, self.size), mode='bilinear').round_().to(torch.uint8)
