"Make the indexes of videos, and keep those that were used last in memory."
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from functools import update_wrapper
from threading import Lock
from typing import Any

import av
import numpy as np

from .damage import find_damage
from .ffmpeg import (
    MAX_PIXELS,
    VideoError,
    decode_through,
    demux_all,
    ffmpeg_errors,
    is_mov,
    open_video,
    zeros_at_end,
)
from .index import IndexFile, VideoIndex

__all__ = ['scan_video']

MAX_INDEX_BYTES = 2**25  # limit for the indexes in memory of a process, 30,000 short videos; the others are on disk
MAX_ASPECT = 64  # largest ratio of a frame's long and short side
MAX_ZEROS = 2**24  # longest run of zeros that a file may end in: most formats are searched for a packet byte by byte


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
        return self.keep(path, self.f(path))

    def keep(self, path:str, result:'VideoIndex')->'VideoIndex':
        "Keep a result in place of an earlier one"
        with self.lock:
            if path in self.kept: self.nbytes -= _kept_bytes(path, self.kept.pop(path))
            self.nbytes += _kept_bytes(path, result)
            self.kept[path] = result
            while self.nbytes > MAX_INDEX_BYTES and len(self.kept) > 1:
                self.nbytes -= _kept_bytes(*self.kept.popitem(last=False))
        return result


def _kept_bytes(path, index): return index.nbytes + len(path) + 800  # the objects themselves


@KeepRecent
def index_video(path:str)->VideoIndex:
    "Load or read the index of a video. Raises `VideoError` if no frame can be decoded"
    file = IndexFile(path)
    index = file.load()
    if index is None:
        index = _read_index(path)
        file.save(index)
    return index


def scan_video(
    path:str, # Video file
)->VideoIndex: # With its damaged frames
    "The index of a video, for which all of it is decoded once. Raises `VideoError` if no frame can be decoded"
    index = index_video(path)
    if index.damaged is not None: return index
    file = IndexFile(path)
    with ffmpeg_errors(path): damaged, missing = find_damage(path, index)
    index = replace(index, damaged=damaged, missing=missing)
    file.save(index)
    return index_video.keep(path, index)


def _read_index(path):
    "Read the index of a video and decode its first frame"
    _check_end(path)
    container, stream = open_video(path)
    with ffmpeg_errors(path), ExitStack() as opened:
        opened.enter_context(container)
        times, lost = _time_stamps(container, stream)
        container, stream = _rewind(path, container, stream, opened)
        first = next(decode_through(container, stream), None)
        if first is None:
            limit = f': the size of its frames is unknown or above the limit of {MAX_PIXELS:,} pixels'
            raise VideoError(f'{path}: no frame can be decoded{"" if stream.codec_context.width else limit}')
        width, height = _shown_size(path, first, stream.sample_aspect_ratio)
        counted = times is None
        if counted:
            container, stream = _rewind(path, container, stream, opened)
            n = sum(1 for _ in decode_through(container, stream))
            times = np.arange(n), np.zeros(0, np.int64)
        pts, keys, *places = times
        name = container.format.name.split(',')[0]
        return VideoIndex(pts, keys, width, height, counted, name, stream.index, *(places or [None]), lost)


def _check_end(path):
    "Raise `VideoError` for a file that ends in many zeros, unless its format does not search them for packets"
    zeros = zeros_at_end(path)
    if zeros <= MAX_ZEROS or is_mov(path): return
    raise VideoError(f'{path}: its last {zeros/2**20:,.0f} MiB, or more, are zeros, as if it was not '
                     'downloaded or copied to its end; get it again, or cut the zeros off')


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
    """Time stamps of all frames and of the key frames, ascending, or `None` if they cannot be trusted; and the number
    of frames that an AVI announces and does not have"""
    is_avi = container.format.name == 'avi'
    packets = [(p.dts if p.pts is None else p.pts, p.is_keyframe, p.is_discard, p.pos, p.size)
               for p in demux_all(container, stream)]
    lost = max(0, stream.frames - len(packets) + 1) if is_avi else 0  # the last packet is none of the file
    packets = [packet[:-1] for packet in packets if packet[-1]]
    # AVI has no presentation times: with B-frames, time stamps are in the order of storage
    if is_avi and stream.codec_context.has_b_frames: return None, lost
    if any(time is None for time, *_ in packets): return None, lost
    keys = np.array(sorted(time for time, key, *_ in packets if key), dtype=np.int64)
    # edit lists hide frames, and the file may start within a group of pictures
    shown = sorted((time, -1 if place is None else place) for time, _, hidden, place in packets
                   if not hidden and (not len(keys) or time >= keys[0]))
    pts, places = np.array(shown, dtype=np.int64).reshape(-1, 2).T.copy()
    # 4:4:4 video of old x264 builds is decoded correctly only from the file's first packet, which names the build
    if stream.codec_context.name == 'h264' and '444' in (stream.codec_context.pix_fmt or ''): keys = keys[:1]
    if not len(pts) or len(np.unique(pts)) < len(pts): return None, lost
    return (pts, keys, places), lost


def _shown_size(path, frame, pixel_aspect):
    "Width and height of a frame with square pixels, after rotation"
    w, h = frame.width, frame.height
    pixel_aspect = pixel_aspect or Fraction(1)
    pixel_aspect = Fraction(pixel_aspect.numerator, pixel_aspect.denominator)  # PyAV 19 has its own rational type
    if Fraction(1, 8) < pixel_aspect < 8: w = max(1, round(w*pixel_aspect))
    if max(w, h) > MAX_ASPECT*min(w, h):
        raise VideoError(f'{path}: frames of {w}x{h} pixels, the long side more than {MAX_ASPECT} times the short one')
    return (h, w) if frame.rotation % 180 else (w, h)
