"Clips in fastai: a block for `DataBlock`, batch transforms, several clips of each video, film strips."
from collections.abc import Callable, Sequence
from typing import Any

from fastai.callback.core import Callback
from fastai.data.block import TransformBlock
from fastai.data.core import get_show_batch_func
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory
from fastai.vision.core import imagenet_stats
from fastai.vision.data import get_grid
from plum import dispatch

from .cache import MemoryBudget
from .clips import SampleClips, TensorVideo, as_video
from .images import ClipTransform, NormalizeClips
from .loader import VideoDL

__all__ = [
    'ClipTransform', 'MultiClip', 'NormalizeClips', 'normalize_video', 'VideoBlock', 'show_batch', 'show_results']


class MultiClip(Callback):
    "Predict each clip of a batch `(B, K, T, C, H, W)` separately and average the logits of each video"
    order = 8  # before `CastToTensor` (9) and `MixedPrecision` (10)

    def before_batch(self):
        self.k = self.x.shape[1] if self.x.ndim == 6 else 1
        if self.k > 1: self.learn.xb = (self.x.flatten(0, 1), *self.xb[1:])

    def after_pred(self):
        # the average of half-precision logits is rounded: average in float32
        if self.k > 1: self.learn.pred = self.pred.float().unflatten(0, (-1, self.k)).mean(1)


DEFAULT_SIZE = 64  # of clips, in pixels


def normalize_video(
    mean:Sequence[float]=imagenet_stats[0], # Mean of each channel, with pixels in [0, 1]
    std:Sequence[float]=imagenet_stats[1], # Standard deviation of each channel
)->Normalize: # A batch transform
    "`Normalize` for the channel axis of batches of clips, 5-D or 6-D"
    return Normalize.from_stats(mean, std, dim=2, ndim=5)


def VideoBlock(
    frames:int=8, # Frames in a clip
    stride:int=1, # Frames of the video from one frame of the clip to the next
    # Side of the square crop in pixels, `None` for whole frames; 'auto' is 64, or `None` with an item transform that
    # changes the size, such as `Resize`
    size:int|str|None='auto',
    k:int=1, # Clips of each video outside training
    cache:bool|MemoryBudget|Callable=False, # Keep whole decoded videos in memory, see `SampleClips`
    # Mean and standard deviation of each channel, for `NormalizeClips`; `None`: batches are floats in [0, 1]
    stats:tuple|None=None,
    **kwargs, # Other arguments of `SampleClips`: area, flip, wrap
)->TransformBlock: # For `DataBlock(blocks=...)`
    "A `TransformBlock` for paths of video files"
    side: Any = DEFAULT_SIZE if size == 'auto' else size
    clips = SampleClips(frames, stride, side, k, cache, **kwargs)
    clips.size_is_default = size == 'auto'
    to_float = IntToFloatTensor if stats is None else NormalizeClips.from_stats(*stats, dim=2, ndim=5)
    return TransformBlock(type_tfms=as_video, item_tfms=clips, batch_tfms=to_float, dl_type=VideoDL)


def _strips(n, figsize): return get_grid(n, ncols=1, nrows=n, figsize=figsize or (10, 1.6*n))


@dispatch
def show_batch(x:TensorVideo, y, samples, ctxs=None, max_n=6, figsize=None, **kwargs):
    if ctxs is None: ctxs = _strips(min(len(samples), max_n), figsize)
    ctxs = get_show_batch_func(object)(x, y, samples, ctxs=ctxs, max_n=max_n, **kwargs)
    for ctx in ctxs: ctx.title.set_parse_math(False)  # a class name may contain dollar signs
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
