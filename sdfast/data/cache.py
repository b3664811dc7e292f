"""Decoded videos in memory: which are kept, and how many bytes they may take.

A process decodes each video once and keeps all of its frames. A `Decoded` shares them with other processes."""
import warnings
from typing import Any

import numpy as np
import torch

from .video import VideoFile

__all__ = ['MAX_VIDEO_BYTES', 'MAX_TASK_BYTES', 'MAX_FOLDER_BYTES', 'MemoryBudget']

MAX_VIDEO_BYTES = 2**28  # largest decoded video to keep; a larger one is decoded clip by clip
MAX_TASK_BYTES = 2**31  # limit for all decoded videos of a task, and for a loader's batches: later ones are not kept
MAX_PROCESS_BYTES = 2**33  # limit for the videos that a process decoded and keeps: later ones are decoded clip by clip
MAX_FOLDER_BYTES = 2**33  # limit for the files in a `Decoded` folder: the least recently used ones are removed


class MemoryBudget:
    """The bytes of decoded videos that may be kept. What is kept is counted, not estimated.

    Videos that no longer fit are decoded clip by clip, with one warning."""

    def __init__(self,
        limit:int=MAX_TASK_BYTES, # In bytes
        used:int=0, # Bytes that are kept already
    ):
        self.limit, self.n_bytes = limit, used
        self.counted: set[tuple] = set()  # (path, short side) of the videos that are counted
        self.full = False  # whether a video did not fit

    def admits(self,
        video:VideoFile, # A video
        size:int|None, # Short side in pixels, see `VideoFile.read`
    )->bool:
        "Whether a video may be kept; it then counts"
        key = str(video), size
        if key in self.counted: return True
        n = video.nbytes(size)
        if self.n_bytes + n > self.limit:
            if not self.full:
                warnings.warn(f'decoded videos fill the {self.limit/2**30:.3g} GiB that are kept in memory; the others '
                              'are decoded clip by clip, which is slower')
            self.full = True
            return False
        self.counted.add(key)
        self.n_bytes += n
        return True

    def __copy__(self): return self
    def __deepcopy__(self, memo): return self
    # pickled as `True`: an exported learner starts to count again
    def __reduce__(self): return bool, (True,)


decoded_videos: dict[tuple, torch.Tensor] = {}  # (path, short side) -> all frames
process_budget = MemoryBudget(MAX_PROCESS_BYTES)


def small_enough(video:VideoFile, size:int|None)->bool:
    "Whether a decoded video with short side `size` may be kept"
    return video.nbytes(size) <= MAX_VIDEO_BYTES


def decode_whole(path:str, size:int|None)->torch.Tensor:
    "Decode all frames of a video once per process: uint8 `(n, 3, H, W)`, not to be changed"
    key = path, size
    if key not in decoded_videos: decoded_videos[key] = VideoFile(path).read(np.arange(VideoFile(path).index.n), size)
    return decoded_videos[key]


def cached_frames(
    video:VideoFile, # A video
    size:int|None, # Short side in pixels, see `VideoFile.read`
    cache:Any, # The `cache` of `SampleClips`
)->torch.Tensor|None: # uint8 `(n, 3, H, W)`, not to be changed; `None` if they are not kept
    """All frames of a video, if they are kept: from the function `cache` if it has them, else decoded by this process,
    as far as the budgets of the process and of the `cache` allow."""
    if not cache: return None
    if callable(cache):
        shared = cache(str(video), size)
        if shared is not None: return shared
    own = cache if isinstance(cache, MemoryBudget) else getattr(cache, 'budget', process_budget)
    may = small_enough(video, size) and own.admits(video, size) and process_budget.admits(video, size)
    return decode_whole(str(video), size) if may else None
