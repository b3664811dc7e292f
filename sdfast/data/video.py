"""Video files: the number and size of their frames, and any of their frames as a tensor.

Frames are numbered in the order in which they are shown, also if the frame rate varies."""
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import update_wrapper
from pathlib import Path
from threading import Lock
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import InputError
from .ffmpeg import MAX_PIXELS, VideoError, decode_frames, ffmpeg_errors, open_video, write_rgb

__all__ = ['VideoError', 'VideoIndex', 'VideoFile']

# Version of the pixels that `VideoFile.read` returns, part of a run's key: increase it when they change.
PIXELS = 3  # 2: scaled frames are converted exactly; 3: interlaced frames are scaled as a whole
MAX_INDEX_BYTES = 2**29  # limit for the indexes in memory of a process; a long video's takes megabytes
MAX_ASPECT = 64  # largest ratio of a frame's long and short side


@dataclass(frozen=True)
class VideoIndex:
    "Facts about a video that its container gives, mostly without decoding"
    pts: np.ndarray  # time stamp of each frame, in the order shown, in units of the stream's time base
    keys: np.ndarray  # time stamps of the key frames, ascending
    width: int  # as shown: after rotation, with square pixels
    height: int  # as shown
    counted: bool  # whether frames are counted from the start, because time stamps cannot be trusted
    format: str  # container format, so that it need not be guessed again
    stream: int  # index of the video stream in the container

    @property
    def n(self)->int: return len(self.pts)

    @property
    def nbytes(self)->int: return self.pts.nbytes + self.keys.nbytes


class KeepRecent:
    "Decorates a function of a path: keeps its most recently used results, up to `MAX_INDEX_BYTES`"

    def __init__(self,
        f:Callable, # Its results have `nbytes`
    ):
        update_wrapper(self, f)
        self.f, self.lock = f, Lock()
        self.cache_clear()

    def cache_clear(self)->None:
        self.kept: OrderedDict[str, Any] = OrderedDict()
        self.nbytes = 0

    def __call__(self, path:str)->'VideoIndex':
        with self.lock:
            if path in self.kept:
                self.kept.move_to_end(path)
                return self.kept[path]
        result = self.f(path)
        with self.lock:
            if path not in self.kept: self.nbytes += _kept_bytes(path, result)
            self.kept[path] = result
            while self.nbytes > MAX_INDEX_BYTES and len(self.kept) > 1:
                self.nbytes -= _kept_bytes(*self.kept.popitem(last=False))
        return result


def _kept_bytes(path, index): return index.nbytes + len(path) + 800  # the objects themselves


@KeepRecent
def index_video(path:str)->VideoIndex:
    "Read the index of a video and decode its first frame. Raises `VideoError` if no frame can be decoded"
    container, stream = open_video(path)
    with ffmpeg_errors(path), ExitStack() as opened:
        opened.enter_context(container)
        times = _time_stamps(container, stream)
        container, stream = _rewind(path, container, stream, opened)
        first = next(decode_frames(container, stream), None)
        if first is None:
            limit = f': the size of its frames is unknown or above the limit of {MAX_PIXELS:,} pixels'
            raise VideoError(f'{path}: no frame can be decoded{"" if stream.codec_context.width else limit}')
        width, height = _shown_size(path, first, stream.sample_aspect_ratio)
        counted = times is None
        if counted:
            container, stream = _rewind(path, container, stream, opened)
            n = sum(1 for _ in decode_frames(container, stream))
            times = np.arange(n), np.zeros(0, np.int64)
        pts, keys = times
        return VideoIndex(pts, keys, width, height, counted, container.format.name.split(',')[0], stream.index)


def _rewind(path, container, stream, opened):
    "Go back to the start. Streams without a container have no time stamps to seek by, and are opened again"
    try:
        container.seek(0)
        return container, stream
    except av.FFmpegError:
        container, stream = open_video(path, number=stream.index)
        opened.enter_context(container)
        return container, stream


def _time_stamps(container, stream):
    "Time stamps of all frames and of the key frames, ascending; `None` if they cannot be trusted"
    try:
        packets = [p for p in container.demux(stream) if p.size]
        packets = [(p.dts if p.pts is None else p.pts, p.is_keyframe, p.is_discard) for p in packets]
    except av.FFmpegError: packets = []
    # AVI has no presentation times: with B-frames, time stamps are in the order of storage
    if container.format.name == 'avi' and stream.codec_context.has_b_frames: return None
    if any(time is None for time, _, _ in packets): return None
    keys = np.array(sorted(time for time, key, _ in packets if key), dtype=np.int64)
    pts = np.array(sorted(time for time, _, hidden in packets if not hidden), dtype=np.int64)  # edit lists hide frames
    if len(keys): pts = pts[pts >= keys[0]]  # the file may start within a group of pictures
    # 4:4:4 video of old x264 builds is decoded correctly only from the file's first packet, which names the build
    if stream.codec_context.name == 'h264' and '444' in (stream.codec_context.pix_fmt or ''): keys = keys[:1]
    if not len(pts) or len(np.unique(pts)) < len(pts): return None
    return pts, keys


def _shown_size(path, frame, pixel_aspect):
    "Width and height of a frame with square pixels, after rotation"
    w, h = frame.width, frame.height
    pixel_aspect = pixel_aspect or Fraction(1)
    pixel_aspect = Fraction(pixel_aspect.numerator, pixel_aspect.denominator)  # PyAV 19 has its own rational type
    if Fraction(1, 8) < pixel_aspect < 8: w = max(1, round(w*pixel_aspect))
    if max(w, h) > MAX_ASPECT*min(w, h):
        raise VideoError(f'{path}: frames of {w}x{h} pixels, the long side more than {MAX_ASPECT} times the short one')
    return (h, w) if frame.rotation % 180 else (w, h)


class VideoFile(str):
    "The path of a video, as a type that transforms dispatch on. The file is opened only when it is needed"

    @classmethod
    def create(cls, fn:str|Path)->'VideoFile': return cls(fn)

    @property
    def index(self)->VideoIndex:
        "Frame times and size as shown, read once per process; raises `VideoError` if nothing can be decoded"
        return index_video(str(self))

    def problem(self)->str|None:
        "Why no frame can be decoded; `None` if at least one can"
        try: self.index
        except VideoError as e: return str(e).removeprefix(f'{self}: ')
        return None

    def scaled(self, size:int|None)->tuple[int,int]:
        "Width and height in pixels after scaling the short side to `size` (`None`: as shown)"
        w, h = self.index.width, self.index.height
        if size is None: return w, h
        return (size, max(size, round(h*size/w))) if w < h else (max(size, round(w*size/h)), size)

    def nbytes(self, size:int|None=None)->int:
        "Bytes of all decoded frames with short side `size` (`None`: as shown)"
        w, h = self.scaled(size)
        return 3*self.index.n*w*h

    def read(self,
        frames:ArrayLike, # Frame numbers, any order, repeats allowed
        size:int|tuple|None=None, # Short side in pixels, aspect kept, or width and height; `None`: as shown
    )->torch.Tensor: # uint8 `(len(frames), 3, H, W)`, upright, RGB
        "Decode `frames`. A frame that cannot be decoded is replaced by the last one before it that can"
        index = self.index
        numbers = np.asarray(frames).tolist()
        wanted = sorted(set(numbers))  # `np.unique` would take 5 % of the time for a clip
        if not wanted or wanted[0] < 0 or wanted[-1] >= index.n:
            raise InputError(f'{self}: frames {numbers} do not all exist; it has frames 0 to {index.n - 1}')
        if not isinstance(size, tuple): size = self.scaled(size)
        with ffmpeg_errors(self): row_of, rows = self._decode(wanted, size)
        if list(row_of) == numbers: return torch.from_numpy(rows)
        if not row_of: raise VideoError(f'{self}: no frame can be decoded')
        missing = sorted(set(wanted) - set(row_of))
        if missing:
            warnings.warn(f'{self}: frames {missing[0]} to {missing[-1]} cannot be decoded, '
                          'the nearest one before is used')
        decoded = np.array(sorted(row_of))
        before = np.maximum(np.searchsorted(decoded, numbers, side='right') - 1, 0)
        return torch.from_numpy(rows[[row_of[i] for i in decoded[before].tolist()]])

    def whole(self,
        size:int|None=None, # See `read`
    )->torch.Tensor|None: # uint8 `(n, 3, H, W)`; `None` if a frame cannot be decoded
        "Decode all frames"
        with ffmpeg_errors(self): row_of, rows = self._decode(list(range(self.index.n)), self.scaled(size))
        if len(row_of) < len(rows): return None
        in_order = list(row_of) == sorted(row_of)  # a container may store frames out of order
        return torch.from_numpy(rows if in_order else rows[[row_of[i] for i in sorted(row_of)]])

    def _decode(self, wanted, size, seek=True, quick=True):
        """Decode ascending frame numbers at a width and height: `{number: row}` and rows `(len(wanted), 3, H, W)`.

        Decoding starts at the preceding key frame (`seek`) and skips frames that are not needed (`quick`). If this
        misses a frame, all are decoded again without these shortcuts. Frames that cannot be decoded have no row."""
        index = self.index
        width, height = size
        times = index.pts[wanted].tolist()
        number = dict(zip(times, wanted))
        rows = np.empty((len(wanted), 3, height, width), np.uint8)
        row_of, last = {}, None
        quick = quick and not index.counted
        shown = None if quick or index.counted else set(index.pts.tolist())

        def keep(i, frame):
            if i in row_of: return
            row_of[i] = len(row_of)
            write_rgb(frame, rows[row_of[i]])

        seek = seek and not index.counted and len(index.keys) > 1 and times[0] >= index.keys[1]
        # the header of an MP4 has the time stamps, and how far frames are out of order
        container, stream = open_video(self, index.format, probe=not (quick and index.format == 'mov'),
                                       number=index.stream)
        with container:
            if seek: container.seek(times[0], stream=stream)
            # only H.264 reliably marks frames that no other frame is predicted from
            skip = quick and stream.codec_context.name == 'h264'
            for n, frame in enumerate(decode_frames(container, stream, number if skip else None)):
                time = n if index.counted else frame.pts
                if time in number: keep(number[time], frame)
                elif time is None or shown is not None and time not in shown: continue  # hidden by an edit list
                last = time, frame
                if time >= times[-1]: break
            if quick and len(row_of) < len(wanted): return self._decode(wanted, size, seek, quick=False)
            # if decoding failed before the last wanted frame, keep the last good one for `read` to fall back to
            if last is not None and last[0] < times[-1]: keep(int(np.searchsorted(index.pts, last[0])), last[1])
        # some containers seek to a position after the wanted frame
        if seek and (not row_of or min(row_of) > wanted[0]): return self._decode(wanted, size, seek=False, quick=False)
        return row_of, rows
