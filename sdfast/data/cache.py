"""Decoded videos in memory: which are kept, and how many bytes they may take.

A process decodes each video once and keeps all of its frames. A `Decoded` shares them with other processes."""
from collections.abc import Callable

import numpy as np
import torch

from .video import VideoFile

__all__ = ['MAX_VIDEO_BYTES', 'MAX_TASK_BYTES', 'MAX_FOLDER_BYTES']

MAX_VIDEO_BYTES = 2**28  # largest decoded video to keep; a larger one is decoded clip by clip
MAX_TASK_BYTES = 2**31  # limit for all decoded videos of a task, and for a loader's batches: above it, none is kept
MAX_PROCESS_BYTES = 2**33  # limit for the videos that a process decoded and keeps: later ones are decoded clip by clip
MAX_FOLDER_BYTES = 2**33  # limit for the files in a `Decoded` folder: the least recently used ones are removed


decoded_videos: dict[tuple, torch.Tensor] = {}  # (path, short side) -> all frames
_n_bytes = 0


def small_enough(video:VideoFile, size:int|None)->bool:
    "Whether a decoded video with short side `size` may be kept"
    return video.nbytes(size) <= MAX_VIDEO_BYTES


def decode_whole(path:str, size:int|None)->torch.Tensor:
    "Decode all frames of a video once per process: uint8 `(n, 3, H, W)`, not to be changed"
    global _n_bytes
    key = path, size
    if key not in decoded_videos:
        frames = VideoFile(path).read(np.arange(VideoFile(path).index.n), size)
        decoded_videos[key] = frames
        _n_bytes += frames.nbytes
    return decoded_videos[key]


def _has_room(video, size):
    "Whether a video is kept, or may be"
    return (str(video), size) in decoded_videos or _n_bytes + video.nbytes(size) <= MAX_PROCESS_BYTES


def cached_frames(
    video:VideoFile, # A video
    size:int|None, # Short side in pixels, see `VideoFile.read`
    cache:bool|Callable, # The `cache` of `SampleClips`
)->torch.Tensor|None: # uint8 `(n, 3, H, W)`, not to be changed; `None` if they are not kept
    "All frames of a video, if they are kept: from the function `cache` if it has them, else decoded by this process"
    if not cache: return None
    if callable(cache):
        shared = cache(str(video), size)
        if shared is not None: return shared
    return decode_whole(str(video), size) if small_enough(video, size) and _has_room(video, size) else None
