"""fastai's transforms of images, applied to clips: all frames of a clip share the draw.

The result is that of the transform on each frame, as an image, with the same random numbers."""
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from fastai.callback.mixup import CutMix
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.augment import AffineCoordTfm, RandomResizedCropGPU, SpaceTfm
from fastai.vision.core import PILImage, image2tensor
from fastcore.basics import patch
from fasttransform import Pipeline, Transform

from ..errors import InputError
from .clips import MissingClips, TensorVideo

__all__ = ['ClipTransform', 'FrameTransform', 'NormalizeClips']


class ClipTransform(Transform):
    """Apply fastai's image batch transforms to clips, with the same random draw for all frames of a clip.

    A `VideoBlock` wraps those that it is given by itself. Transforms of coordinates, such as those of
    `aug_transforms()`, and of colours draw for each clip; others are applied frame by frame with the same random
    state."""
    order: float = 30
    split_idx = None

    def __init__(self,
        tfms:Sequence, # fastai's, for batches of images, such as `aug_transforms()`
        order:float|None=None, # Place in the pipeline, by default that of the transform, or 30 for several
    ):
        self.tfms = Pipeline(tfms)
        if order is not None: self.order = order

    @property
    def name(self)->str: return f'ClipTransform of {", ".join(type(f).__name__ for f in self.tfms.fs)}'

    def __call__(self, b:object, split_idx:int|None=None, **kwargs)->object:
        self.tfms.split_idx = split_idx
        return super().__call__(b, split_idx=split_idx, **kwargs)

    def encodes(self, x:TensorVideo)->TensorVideo:
        y = x.as_subclass(torch.Tensor)
        for f in self.tfms.fs: y = _layout(f)(f, y, self.tfms.split_idx).as_subclass(torch.Tensor)
        return TensorVideo(y)


def _layout(f):
    if isinstance(f, (AffineCoordTfm, RandomResizedCropGPU)): return _as_channels
    return _as_rows if isinstance(f, SpaceTfm) else _each_frame


def _as_channels(f, x, split_idx):
    "Coordinates are the same for all channels of an image: take the frames for channels"
    y = f(TensorImage(x.flatten(1, -3)), split_idx=split_idx)
    return y.view(*x.shape[:-2], *y.shape[-2:])


def _as_rows(f, x, split_idx):
    "Colours are changed pixel by pixel, from three channels: put the frames below each other"
    frames = x.flatten(1, -4)
    y = f(TensorImage(frames.transpose(1, 2).flatten(2, 3)), split_idx=split_idx)
    return y.unflatten(2, (frames.shape[1], -1)).transpose(1, 2).reshape(x.shape)


def _each_frame(f, x, split_idx):
    frames = x.flatten(1, -4).unbind(1)
    out = [f(TensorImage(frame.clone()), split_idx=split_idx) for frame in with_same_draws(frames)]
    y = torch.stack([o.as_subclass(torch.Tensor) for o in out], 1)
    return y.reshape(*x.shape[:-3], *y.shape[-3:])


def with_same_draws(items:Sequence)->Iterator: # The items
    "Before each item, set Python's, NumPy's and PyTorch's random numbers back to where they were at the first"
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    for i, item in enumerate(items):
        if i:
            random.setstate(python)
            np.random.set_state(arrays)
            torch.set_rng_state(cpu)
            if gpu is not None: torch.cuda.set_rng_state(gpu)
        yield item


@contextmanager
def drawing_from(seed:int)->Iterator[None]:
    "Seed Python's and PyTorch's random numbers in this context, and set them back to where they were after it"
    states = random.getstate(), torch.get_rng_state()
    random.seed(seed)
    torch.manual_seed(seed)
    try: yield
    finally:
        random.setstate(states[0])
        torch.set_rng_state(states[1])


class FrameTransform(Transform):
    """Apply a transform of single images, such as `Resize`, to all frames of clips, with the same random draw.

    The frames are `PILImage`s, as in fastai, or `TensorImage`s if the transform takes no others. A `VideoBlock` wraps
    the item transforms that it is given by itself, and applies them to the clips that `SampleClips` has cut out."""

    def __init__(self,
        tfm:Transform, # For single images
        as_pil:bool=True, # Pass `PILImage`s, otherwise `TensorImage`s
        cropped:int|None=None, # Side in pixels to which clips have been cropped before; results must not be larger
    ):
        self.tfm, self.as_pil, self.cropped = tfm, as_pil, cropped
        self.order = 6 + tfm.order  # after `SampleClips` (4) and `ToTensor` (5)

    @property
    def name(self)->str: return f'FrameTransform of {type(self.tfm).__name__}'

    def __call__(self, b:object, split_idx:int|None=None, **kwargs)->object:
        self.idx = split_idx
        return super().__call__(b, split_idx=split_idx, **kwargs)

    def encodes(self, x:TensorVideo)->TensorVideo:
        frames = x.as_subclass(torch.Tensor).flatten(0, -4)
        y = torch.stack([self._apply(frame) for frame in with_same_draws(frames)])
        if self.cropped is not None and max(y.shape[-2:]) > self.cropped:
            raise InputError(f'{type(self.tfm).__name__} makes frames of {y.shape[-2]}x{y.shape[-1]} pixels of clips '
                             f'that VideoBlock has cropped to {self.cropped}: pass size=None to start from whole '
                             f'frames, or size={min(y.shape[-2:])} instead of the transform')
        return TensorVideo(y.reshape(*x.shape[:-3], *y.shape[-3:]))

    def _apply(self, frame):
        image = PILImage.create(frame.permute(1, 2, 0).numpy()) if self.as_pil else TensorImage(frame.clone())
        image = self.tfm(image, split_idx=self.idx)
        return image2tensor(image) if self.as_pil else image.as_subclass(torch.Tensor)


class NormalizeClips(Normalize):
    """fastai's `IntToFloatTensor` and `Normalize` in one pass over a batch on its device.

    It maps uint8 `(..., T, C, H, W)` to float32, `(x/255 - mean)/std`, and decodes as the two do."""

    @property
    def parts(self)->list[Transform]:
        "The two transforms, for code that needs floats in [0, 1] between them"
        return [IntToFloatTensor(), Normalize(self.mean, self.std)]

    def encodes(self, x:TensorVideo)->TensorVideo:
        if x.is_floating_point() and not isinstance(x, MissingClips):
            raise InputError(f'NormalizeClips takes bytes, not {x.dtype}: floats in [0, 1] are for normalize_video()')
        return TensorVideo(torch.addcmul(-self.mean/self.std, x.as_subclass(torch.Tensor), 1/(255*self.std)))

    def decodes(self, x:TensorVideo)->TensorVideo: return Pipeline(self.parts).decode(x)


_cut_images:Callable = CutMix.before_batch


@patch
def before_batch(self:CutMix):
    "Cut the same rectangle out of all frames of a clip; fastai's unpacks a batch of images, `(B, C, H, W)`"
    if self.x.ndim == 4: return _cut_images(self)
    clips = self.x
    self.learn.xb = (clips.as_subclass(torch.Tensor).flatten(1, -3), *self.xb[1:])
    try: _cut_images(self)
    finally: self.learn.xb = (self.x.view(clips.shape).as_subclass(type(clips)), *self.xb[1:])
