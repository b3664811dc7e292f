"""Videos as a fastai `DataBlock`: decoding with PyAV, clip sampling, clip-consistent augmentation, film strips.

A clip is `(T, C, H, W)`, several clips of one video `(K, T, C, H, W)`, a batch has one more axis in front.
Frames are counted in the order in which they are shown, whatever the frame rate does.
"""
import os
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import ArrayLike

from ..errors import InputError

__all__ = ['VideoError', 'VideoIndex', 'VideoFile']

PIXELS = 2  # counts changes of what `VideoFile.read` returns: part of the key of a run. 2: scaled frames are converted exactly
MAX_PIXELS = 2**26  # of a frame: 8K has half of it
MAX_ASPECT = 64  # of a frame's long side to its short one
WHOLE_BYTES = 2**28  # a longer video is not kept decoded
# Tags in the header need not be UTF-8. PyAV 19 always reads them byte by byte, earlier versions only when asked to.
TAGS = dict(metadata_errors='surrogateescape') if int(av.__version__.split('.')[0]) < 19 else {}


class VideoError(InputError):
    "A file of which no frame can be decoded; the message names it and says why"


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
def index_video(path):
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
        return index_video(str(self))

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
