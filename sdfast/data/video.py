"""Video files: the number and size of their frames, and any of their frames as a tensor.

Frames are numbered in the order in which they are shown, also if the frame rate varies. A frame is the same whichever
others are read with it: as it is when the whole file is decoded. Damaged frames are found, and reading them warns."""
import warnings
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import ArrayLike

from ..errors import InputError
from .ffmpeg import (
    RESTARTING,
    Corrupt,
    VideoError,
    decode_frames,
    decode_through,
    ffmpeg_errors,
    open_video,
    write_rgb,
)
from .index import VideoIndex
from .indexing import index_video, scan_video

__all__ = ['VideoError', 'VideoIndex', 'VideoFile']


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

    @property
    def damaged(self)->np.ndarray:
        """Numbers of the frames that are damaged, ascending, found by decoding the whole file once per machine.

        FFmpeg marks them as corrupt, or cannot decode them without an error, or they are predicted from such frames."""
        damaged = scan_video(str(self)).damaged
        assert damaged is not None
        return damaged

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
        """Decode `frames`. Warns if some of them are `damaged`.

        Each is as it is when the whole file is decoded. One that cannot be decoded is replaced by the nearest one
        before it that can. Until the file was searched (by `damaged`; the files of a task are), only damage that the
        decoder reports is noticed, which those of VP8, VP9, AV1 and HEVC do not always do."""
        index = self.index
        numbers = np.asarray(frames).tolist()
        wanted = sorted(set(numbers))  # `np.unique` would take 5 % of the time for a clip
        if not wanted or wanted[0] < 0 or wanted[-1] >= index.n:
            raise InputError(f'{self}: frames {numbers} do not all exist; it has frames 0 to {index.n - 1}')
        if not isinstance(size, tuple): size = self.scaled(size)
        with ffmpeg_errors(self):
            # what is damaged is decoded from the start, so that a frame does not depend on which others are read
            found = None if index.damaged is not None and len(index.damaged) else self._decode_some(wanted, size)
            if found is None: return self._read_through(numbers, size)
        row_of, rows = found
        if list(row_of) == numbers: return torch.from_numpy(rows)
        return torch.from_numpy(rows[[row_of[i] for i in numbers]])

    def _read_through(self, numbers, size):
        "`read` by decoding from the start, past everything that is damaged"
        index = scan_video(str(self))
        present = np.setdiff1d(np.arange(index.n), index.missing)
        if not len(present): raise VideoError(f'{self}: no frame can be decoded')
        stand_in = present[np.maximum(np.searchsorted(present, numbers, side='right') - 1, 0)].tolist()
        row_of, rows = self._decode_through(sorted(set(stand_in)), size)
        if np.isin(numbers, index.damaged).any(): warnings.warn(self._describe_damage(index))
        return torch.from_numpy(rows[[row_of[i] for i in stand_in]])

    def _describe_damage(self, index):
        "The same text whichever frames are read, so that Python shows it once"
        parts = np.split(index.damaged, np.flatnonzero(np.diff(index.damaged) > 1) + 1)
        ranges = [f'{p[0]} to {p[-1]}' if len(p) > 1 else str(p[0]) for p in parts]
        more = f' and {len(ranges) - 8} more parts' if len(ranges) > 8 else ''
        return (f'{self}: {len(index.damaged)} of its {index.n} frames are damaged: {", ".join(ranges[:8])}{more}; for '
                'one that cannot be decoded, the nearest one before is used')

    def whole(self,
        size:int|None=None, # See `read`
    )->torch.Tensor|None: # uint8 `(n, 3, H, W)`; `None` if a frame is damaged or cannot be decoded
        "Decode all frames"
        index = self.index
        if index.damaged is not None and len(index.damaged): return None
        try:
            with ffmpeg_errors(self): row_of, rows = self._decode(list(range(index.n)), self.scaled(size))
        except (VideoError, Corrupt): return None
        if len(row_of) < len(rows): return None
        in_order = list(row_of) == sorted(row_of)  # a container may store frames out of order
        return torch.from_numpy(rows if in_order else rows[[row_of[i] for i in sorted(row_of)]])

    def _decode_some(self, wanted, size):
        """Decode ascending frame numbers at a width and height: `{number: row}` and rows `(len(wanted), 3, H, W)`.

        `None` if anything is damaged or missing on the way. Frames may be missing as some containers seek to a position
        after the wanted one, and as headers of MP4 may not say how far frames are out of order."""
        for ways in (dict(), dict(quick=False), dict(seek=False, quick=False)):
            try: row_of, rows = self._decode(wanted, size, **ways)
            except av.error.ExitError: raise
            except (av.FFmpegError, Corrupt): return None
            if len(row_of) == len(wanted): return row_of, rows
        return None

    def _decode(self, wanted, size, seek=True, quick=True):
        """Decode from the preceding key frame (`seek`), without frames that are not needed (`quick`).

        Raises `Corrupt` or an error of FFmpeg if anything is damaged. Frames that are not found have no row."""
        index = self.index
        times = index.pts[wanted].tolist()
        quick = quick and not index.counted
        seek = seek and not index.counted and len(index.keys) > 1 and times[0] >= index.keys[1]
        # the header of an MP4 has the time stamps, and how far frames are out of order
        container, stream = open_video(self, index.format, probe=not (quick and index.format == 'mov'),
                                       number=index.stream)
        seek = seek and stream.codec_context.name in RESTARTING
        rows = Rows(index, wanted, size)
        with container:
            if seek: container.seek(times[0], stream=stream)
            # only H.264 reliably marks frames that no other frame is predicted from
            skip = quick and stream.codec_context.name == 'h264'
            sound = not seek  # whether there was a key frame: frames before it may be predicted from earlier ones
            is_right = index.is_at_its_place if seek else None
            for frame in decode_frames(container, stream, rows.number if skip else None, is_right):
                sound = sound or frame.key_frame
                if not sound: continue
                if frame.is_corrupt: raise Corrupt
                if rows.add(frame): break
        return rows.row_of, rows.pixels

    def _decode_through(self, wanted, size):
        "Decode ascending frame numbers as they are in a decoding of the whole file"
        container, stream = open_video(self, self.index.format, number=self.index.stream)
        rows = Rows(self.index, wanted, size)
        with container:
            for frame in decode_through(container, stream):
                rows.add(frame)
                if len(rows.row_of) == len(wanted): break
        return rows.row_of, rows.pixels


class Rows:
    "Pixels of wanted frames, filled in the order of the decoder"

    def __init__(self,
        index:VideoIndex, # The video's
        wanted:list, # Frame numbers, ascending
        size:tuple, # Width and height
    ):
        times = index.pts[wanted].tolist()
        self.number = dict(zip(times, wanted))
        self.last, self.counted, self.n = times[-1], index.counted, 0
        self.index = index
        self.pixels = np.empty((len(wanted), 3, size[1], size[0]), np.uint8)
        self.row_of: dict[int, int] = {}  # frame number -> row

    def add(self, frame:VideoFrame)->bool:
        "Keep a frame if it is wanted. Returns whether it is the last wanted one, or after it"
        time = self.n if self.counted else frame.pts
        self.n += 1
        if time is None: return False
        if time in self.number:
            i = self.number[time]
            if i not in self.row_of:
                self.row_of[i] = len(self.row_of)
                write_rgb(frame, self.pixels[self.row_of[i]])
        return time >= self.last and (self.counted or self._is_shown(time))

    def _is_shown(self, time):
        "Whether an edit list does not hide the frame"
        i = np.searchsorted(self.index.pts, time)
        return i < self.index.n and self.index.pts[i] == time
