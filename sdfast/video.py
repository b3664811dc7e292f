"""Videos as a fastai `DataBlock`: decoding with PyAV, clip sampling, clip-consistent augmentation, film strips.

A clip is `(T, C, H, W)`, several clips of one video `(K, T, C, H, W)`, a batch has one more axis in front.
Frames are counted in the order in which they are shown, whatever the frame rate does.
"""
import os, random, threading, warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from fastai.callback.core import Callback
from fastai.data.block import TransformBlock
from fastai.data.core import get_show_batch_func
from fastai.data.load import SkipItemException
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory, TensorImage, show_image
from fastai.vision.augment import RandTransform
from fastai.vision.core import imagenet_stats
from fastai.vision.data import get_grid, show_batch, show_results
from fasttransform import Pipeline, Transform
from numpy.typing import ArrayLike
from plum import dispatch
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from .errors import InputError

__all__ = ['TensorVideo', 'VideoError', 'VideoFile', 'VideoIndex', 'SampleClips', 'ClipTransform', 'MultiClip',
           'VideoBlock', 'clip_indices', 'NormalizeClips', 'normalize_video', 'show_batch', 'show_results']

PIXELS = 2  # counts changes of what `VideoFile.read` returns: part of the key of a run. 2: scaled frames are converted exactly
MAX_PIXELS = 2**26  # of a frame: 8K has half of it
MAX_ASPECT = 64  # of a frame's long side to its short one
WHOLE_BYTES = 2**28  # a longer video is not kept decoded
# Tags in the header need not be UTF-8. PyAV 19 always reads them byte by byte, earlier versions only when asked to.
TAGS = dict(metadata_errors='surrogateescape') if int(av.__version__.split('.')[0]) < 19 else {}


class VideoError(InputError):
    "A file of which no frame can be decoded; the message names it and says why"


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


@dataclass(frozen=True)
class VideoIndex:
    "What the container says of a video without decoding it"
    pts: np.ndarray  # time stamp of each frame, in the order shown, in units of the stream's time base
    keys: np.ndarray  # time stamps of the key frames, ascending
    width: int  # as shown: after rotation, with square pixels
    height: int  # as shown
    counted: bool  # the time stamps cannot be trusted, frames must be counted from the start
    format: str  # of the container, so that it need not be guessed again

    @property
    def n(self)->int: return len(self.pts)


def _reason(e): return e.strerror if isinstance(e, av.FFmpegError) and e.strerror else str(e) or type(e).__name__


@contextmanager
def _refused(path):
    "What FFmpeg refuses of a broken file beside decoding, such as to seek or to scale, is a `VideoError` too"
    try: yield
    except av.FFmpegError as e: raise VideoError(f'{path}: cannot be decoded ({_reason(e)})') from None


def _open(path, format=None, probe=True):
    "The container and its video stream; without `probe` FFmpeg takes the container's word for what is in it, instead of decoding some of it to see"
    if os.path.exists(path) and not os.path.isfile(path): raise VideoError(f'{path}: cannot be opened (not a file)')  # a pipe would block for ever
    limit = dict(max_pixels=str(MAX_PIXELS))  # a few bytes can declare a frame of gigabytes, from the first or later on
    options = limit if probe else limit | dict(probesize='32', analyzeduration='1')  # the least that FFmpeg takes
    # a path with a NUL is a ValueError
    try: f = av.open(str(path), format=format, options=options, **TAGS)
    except (av.FFmpegError, OSError, ValueError) as e: raise VideoError(f'{path}: cannot be opened ({_reason(e)})') from None
    s = next(iter(f.streams.video), None)
    if s is None or s.codec_context is None:
        f.close()
        raise VideoError(f'{path}: ' + ('has no video stream' if s is None else 'its video is of a kind that FFmpeg here cannot decode'))
    s.codec_context.options = limit
    s.thread_type = 'NONE'  # many short reads in parallel workers: frame threads cost more than they give
    return f, s


def _frames(f, stream, times=None):
    "Decoded frames until the end or the first that is broken; with `times` without others that no frame is made from"
    try:
        for packet in f.demux(stream):
            if times is not None: stream.codec_context.skip_frame = 'DEFAULT' if packet.pts is None or packet.pts in times else 'NONREF'
            yield from packet.decode()
    except av.FFmpegError: return


_local = threading.local()  # a context of swscale is set up anew only for another size


def _rgb(frame, out):
    "Write the frame, upright and scaled, to `out` `(3, H, W)`"
    out = np.rot90(out, -frame.rotation//90 % 4, (1, 2)) if frame.rotation else out
    h, w = out.shape[1:]
    if not hasattr(_local, 'scaler'): _local.scaler = VideoReformatter()
    scale = _local.scaler.reformat
    if (w, h) == (frame.width, frame.height): out[:] = scale(frame, w, h, 'rgb24', threads=1).to_ndarray().transpose(2, 0, 1)
    else:  # in planes swscale is three times as fast as in rgb24, and exact; unscaled it leaves the last columns of some widths unwritten
        for i, p in zip((1, 2, 0), scale(frame, w, h, 'gbrp', threads=1).planes): out[i] = np.ndarray((h, w), np.uint8, p, 0, (p.line_size, 1))


@lru_cache(maxsize=2**17)
def _index(path):
    f, s = _open(path)
    with f, _refused(path):
        try: packets = [(p.dts if p.pts is None else p.pts, p.is_keyframe, p.is_discard) for p in f.demux(s) if p.size]
        except av.FFmpegError: packets = []
        # AVI stores no presentation times: with B-frames what it gives is the order of storage
        counted = f.format.name == 'avi' and bool(s.codec_context.has_b_frames) or any(t is None for t, *_ in packets)
        if not counted:
            keys = np.array(sorted(t for t, key, _ in packets if key), dtype=np.int64)
            pts = np.array(sorted(t for t, _, hidden in packets if not hidden), dtype=np.int64)  # an edit list hides frames
            if len(keys): pts = pts[pts >= keys[0]]  # a file that starts inside a group of pictures
            # 4:4:4 of old x264 builds is decoded right only after the file's first packet, which names the build
            if s.codec_context.name == 'h264' and '444' in (s.codec_context.pix_fmt or ''): keys = keys[:1]
            counted = not len(pts) or len(np.unique(pts)) < len(pts)
        f.seek(0)
        first = next(_frames(f, s), None)
        if first is None:
            size = '' if s.codec_context.width else f': the size of its frames is not told, or is above the limit of {MAX_PIXELS:,} pixels'
            raise VideoError(f'{path}: no frame can be decoded{size}')
        w, h = first.width, first.height
        sar = s.sample_aspect_ratio or Fraction(1)
        sar = Fraction(sar.numerator, sar.denominator)  # PyAV 19 returns a rational type of its own
        if Fraction(1, 8) < sar < 8: w = max(1, round(w*sar))
        if max(w, h) > MAX_ASPECT*min(w, h): raise VideoError(f'{path}: frames of {w}x{h} pixels, the long side more than {MAX_ASPECT} times the short one')
        if counted:
            f.seek(0)
            keys, pts = np.zeros(0, np.int64), np.arange(sum(1 for _ in _frames(f, s)))
        if first.rotation % 180: w, h = h, w
        return VideoIndex(pts, keys, w, h, counted, f.format.name.split(',')[0])


class VideoFile(str):
    "A path that transforms dispatch on: labels and splits never decode, a clip is decoded when it is chosen"

    @classmethod
    def create(cls, fn:str|Path)->'VideoFile': return cls(fn)

    @property
    def index(self)->VideoIndex:
        "Frame times and size as shown, read once per process; raises `VideoError` if nothing can be decoded"
        return _index(str(self))

    def problem(self)->str|None:
        "`None` if at least one frame can be decoded, else why not"
        try: self.index
        except VideoError as e: return str(e).removeprefix(f'{self}: ')

    def scaled(self, size:int|None)->tuple[int,int]:
        "Width and height in pixels once the short side is `size` (`None`: as shown)"
        w, h = self.index.width, self.index.height
        if size is None: return w, h
        return (size, max(size, round(h*size/w))) if w < h else (max(size, round(w*size/h)), size)

    def read(self,
        frames:ArrayLike, # Frame numbers, any order, repeats allowed
        size:int|tuple|None=None, # Short side in pixels, aspect kept, or width and height; `None`: as shown
    )->torch.Tensor: # uint8 `(len(frames), 3, H, W)`, upright, RGB
        "Decode `frames`; where a file breaks off before its index says, the last decodable frame stands in"
        ix = self.index
        frames = np.asarray(frames).tolist()
        want = sorted(set(frames))  # lists: numpy's helpers, out of the processor's caches by then, cost some 5 % of a clip
        if not want or want[0] < 0 or want[-1] >= ix.n:
            raise InputError(f'{self}: frames {frames} asked for, but it has frames 0 to {ix.n - 1}')
        with _refused(self): got, x = self._decode(want, size if isinstance(size, tuple) else self.scaled(size))
        if list(got) == frames: return torch.from_numpy(x)
        if not got: raise VideoError(f'{self}: no frame can be decoded')
        if missing := sorted(set(want) - set(got)):
            warnings.warn(f'{self}: frames {missing[0]} to {missing[-1]} cannot be decoded, the nearest one before stands in')
        have = np.array(sorted(got))
        return torch.from_numpy(x[[got[i] for i in have[np.maximum(np.searchsorted(have, frames, side='right') - 1, 0)].tolist()]])

    def whole(self,
        size:int|None=None, # See `read`
    )->torch.Tensor|None: # uint8 `(n, 3, H, W)`; `None` if a frame is missing, or if it takes more than 256 MiB
        "All frames"
        w, h = self.scaled(size)
        if 3*self.index.n*w*h > WHOLE_BYTES: return
        with _refused(self): got, x = self._decode(list(range(self.index.n)), (w, h))
        if len(got) < len(x): return
        return torch.from_numpy(x if list(got) == sorted(got) else x[[got[i] for i in sorted(got)]])  # a container may have them out of order

    def _decode(self, want, wh, seek=True, quick=True):
        "`{number: row}` for those of the ascending frame numbers `want` that can be decoded, and rows `(3, H, W)`"
        ix, got, last = self.index, {}, None
        x = np.empty((len(want), 3, *wh[::-1]), np.uint8)
        times, quick = ix.pts[want].tolist(), quick and not ix.counted
        number, shown = dict(zip(times, want)), None if quick or ix.counted else set(ix.pts.tolist())

        def keep(i, frame):
            if i not in got: _rgb(frame, x[got.setdefault(i, len(got))])

        seek = seek and not ix.counted and len(ix.keys) > 1 and times[0] >= ix.keys[1]
        f, s = _open(self, ix.format, probe=not (quick and ix.format == 'mov'))  # MP4 has the time stamps and how far frames are out of order
        with f:
            if seek: f.seek(times[0], stream=s)
            # only of H.264 does the stream say for certain which frames no other frame is made from
            skip = quick and s.codec_context.name == 'h264'
            for n, frame in enumerate(_frames(f, s, number if skip else None)):
                t = n if ix.counted else frame.pts
                if t in number: keep(number[t], frame)
                elif t is None or shown is not None and t not in shown: continue  # an edit list hides it
                last = t, frame
                if t >= times[-1]: break
            if quick and len(got) < len(want): return self._decode(want, wh, seek, quick=False)
            # broken before the last frame asked for: the last good one stands in
            if last is not None and last[0] < times[-1]: keep(int(np.searchsorted(ix.pts, last[0])), last[1])
        # some containers land behind the frame they were asked to seek
        return self._decode(want, wh, seek=False, quick=False) if seek and (not got or min(got) > want[0]) else (got, x)


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
def _whole(path, size): return VideoFile(path).read(np.arange(_index(path).n), size)


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
        return _whole(str(x), side) if 3*x.index.n*np.prod(x.scaled(side)) <= WHOLE_BYTES else None

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
