"Clips and labels of a pre-training method, made from whole videos."
import random
import warnings
import zlib
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.load import SkipItemException
from fasttransform import Transform
from numpy.typing import ArrayLike

from ..data.cache import cached_frames
from ..data.clips import SampleClips, TensorVideo
from ..data.video import VideoError, VideoFile

__all__ = ['PretextClips']


class PretextClips(Transform):
    """Turn a loader's item `(video, ...)` into the clips and labels of `method.item`, `(clips, label, ...)`.

    It replaces the loader's `SampleClips` and keeps its frames, stride, size and cache; spatial augmentation is the
    method's. In training, clips, crops and labels are random; otherwise they depend only on the video's name, and crops
    are central."""
    order = SampleClips.order

    def __init__(self,
        method:Callback, # A `Pretext`; its `item` makes clips and labels
        base:SampleClips, # The transform to replace
    ):
        self.method, self.frames, self.stride, self.cache = method, base.frames, base.stride, base.cache
        self.crop = copy(base)
        self.crop.area, self.crop.aspect, self.crop.flip = method.area, method.aspect, method.flip
        self.side = None if method.area or base.size is None else round(base.size*method.zoom)

    def __call__(self, item:tuple, split_idx:int|None=None, **kwargs)->tuple:
        video = item[0]
        self.crop.train = not split_idx
        rnd: Any = random  # the module has the methods of a `Random`
        if not self.crop.train:
            name = '/'.join(Path(video).parts[-2:])
            rnd = random.Random(zlib.crc32(name.encode()))
        try: return self.method.item(self, video, rnd)
        except VideoError as e:
            warnings.warn(f'skipped {e}')
            raise SkipItemException(str(e)) from None

    def whole(self, video:VideoFile, idx:ArrayLike)->torch.Tensor:
        "Frames `idx` before cropping, `(len(idx), C, H, W)`, with short side `zoom` times the size"
        cached = cached_frames(video, self.side, self.cache)
        return video.read(idx, self.side) if cached is None else cached[np.asarray(idx)]

    def read(self,
        video:VideoFile,
        idx:ArrayLike, # Frame numbers `(K, T)`
    )->TensorVideo: # uint8 `(K, T, C, size, size)`
        "Decode clips; in training each is cropped separately, and mirrored at random if `flip` is set"
        idx = np.asarray(idx)
        clips = self.whole(video, idx.ravel()).unflatten(0, idx.shape)
        if self.crop.size is not None: clips = torch.stack([self.crop.crop_frames(c) for c in clips])
        if self.crop.train and self.crop.flip:
            clips = torch.stack([c.flip(-1) if random.random() < .5 else c for c in clips])
        return TensorVideo(clips)
