"""Decoded videos in a file, made once and shared by all processes and studies that read the same videos.

A set of videos is a folder with one file for each `PART_BYTES` of frames. Its name is a digest of the videos' content
and of the settings and libraries that decide their pixels. Processes verify the files' digests and memory-map them, so
that they share memory, too."""
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import Damaged, StoreError
from ..runtime import store
from ..runtime.progress import track
from .cache import MAX_FOLDER_BYTES, MAX_TASK_BYTES, MemoryBudget, small_enough
from .index import PIXELS
from .indexing import index_video
from .video import VideoError, VideoFile

__all__ = ['decoded_folder', 'Decoded']

PARTS = 'parts.json'  # written last: digests of the set's files
PART_BYTES = 2**28  # frames that are decoded before they are written
NO_ROOM = 'refused'  # name of a file that marks a set which could not be stored
RETRY_SECONDS = 600  # how long this mark is valid
TEMPORARY = 'videos.tmp'  # the file that is being written
OWN_FILES = re.compile(r'[0-9a-f]{16}/videos(-[0-9a-f]{16}\.safetensors|\.tmp)')  # files in the folder that may go


def decoded_folder()->Path|None: # Need not exist yet; `None` if the variable is empty
    "The folder in which studies share decoded videos: `$SDFAST_DECODED`, by default `decoded` in `store.home()`"
    folder = os.environ.get('SDFAST_DECODED')
    if folder is None: return store.home()/'decoded'
    return Path(folder).expanduser() if folder else None


def _content_key(path):
    "Digest and suffix of a file (FFmpeg may guess the format from the suffix); `None` if it cannot be read"
    if not os.path.isfile(path): return None  # reading a pipe would block forever
    try: digest = store.digest(path)
    except OSError: return None
    return digest + ascii(Path(path).suffix.lower())[1:-1]  # a file name need not be text


def _no_room_lately(place):
    "Whether storing failed a short while ago, so that processes that waited do not all try again"
    try: return time.time() - (place/NO_ROOM).stat().st_mtime < RETRY_SECONDS
    except OSError: return False


def _frame_bytes(path, size):
    "Bytes of all frames, or `None` if the video is broken or too large to keep"
    video = VideoFile(path)
    try: return video.nbytes(size) if small_enough(video, size) else None
    except VideoError: return None


def _parts(sizes):
    "Keys, in lists of up to `PART_BYTES`"
    part, left = [], PART_BYTES
    for key, n in sizes.items():
        if part and n > left:
            yield part
            part, left = [], PART_BYTES
        part.append(key)
        left -= n
    if part: yield part


def _write_part(frames, place):
    "Write frames to a file; returns its name and digest"
    tmp = place/TEMPORARY
    save_file(frames, tmp)
    digest = store.digest(tmp)
    name = f'videos-{digest}.safetensors'
    os.replace(tmp, place/name)
    return {name:digest}


def _decode_whole(path, size):
    "All frames, or `None` if a frame cannot be decoded"
    try: return VideoFile(path).whole(size)
    except VideoError: return None


class Decoded:
    """The frames of a set of videos, shared through a file in `folder`; used as the `cache` of a `SampleClips`.

    The first process that calls `open` makes the files, and others wait for them. Left out are videos with a frame that
    cannot be decoded, those larger than `MAX_VIDEO_BYTES`, and what does not fit into `MAX_TASK_BYTES`. If the files
    cannot be written, each process keeps the frames that it has decoded."""

    def __init__(self,
        paths:Iterable, # Video files
        size:int|None, # Short side in pixels, see `VideoFile.read`
        folder:str|Path, # Holds files of up to 8 GiB in total; created if it does not exist
    ):
        self.paths = [str(p) for p in paths]
        self.size = size
        self.folder = Path(folder).expanduser()
        self.budget = MemoryBudget()  # for videos that a process decodes itself
        self._frames: dict|None = None  # path -> frames, after `open`

    def __call__(self,
        path:str, # One of the videos
        size:int|None, # Short side in pixels
    # uint8 `(n, 3, H, W)`, not to be changed; `None` before `open`, and for other videos and sizes
    )->torch.Tensor|None:
        "All frames of a video"
        if self._frames is None or size != self.size: return None
        return self._frames.get(path)

    def __copy__(self): return self
    def __deepcopy__(self, memo): return self
    # pickled as `True`: an exported learner keeps decoded videos in its own memory and does not need the folder
    def __reduce__(self): return bool, (True,)

    def open(self)->None:
        "Read the files, or make them if they do not exist; later calls do nothing"
        if self._frames is not None: return
        frames = self._open()
        self.budget.n_bytes += sum({id(v):v.nbytes for v in frames.values()}.values())
        self._frames = frames

    def _open(self):
        keys = {p:_content_key(p) for p in self.paths}
        keys = {p:key for p, key in keys.items() if key is not None}
        identity = PIXELS, sorted(av.library_versions.items()), self.size, sorted(set(keys.values()))
        place = self.folder/hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
        try: frames = self._load_or_make(place, keys)
        except StoreError as e:
            warnings.warn(f'{e}; each process decodes videos for itself')
            return {}
        return {p:frames[key] for p, key in keys.items() if key in frames}

    def _load_or_make(self, place, keys):
        "Content key -> frames"
        frames = self._load(place)
        if frames is not None: return frames
        with store.claim(place):
            frames = self._load(place)  # another process may have made it meanwhile
            if frames is not None: return frames
            if _no_room_lately(place): return {}
            self._make({key:p for p, key in keys.items()}, place)
            return self._load(place) or {}

    def _load(self, place):
        "The mapped files, or `None` if they do not exist or are damaged"
        try:
            parts = store.read_json(place/PARTS)['files']
            store.verify(place, parts)
            frames = {}
            for name in parts:
                with suppress(OSError): os.utime(place/name)  # record the time of last use
                frames |= load_file(place/name)
            return frames
        except (Damaged, OSError, SafetensorError): return None

    def _sizes(self, path_of):
        "Key -> bytes of the frames, for the videos that are kept: in order of their keys, up to `MAX_TASK_BYTES`"
        index_video.cache_clear()  # its entries may be of earlier content
        kept, left = {}, MAX_TASK_BYTES
        for key in sorted(path_of):
            n = _frame_bytes(path_of[key], self.size)
            if n is None or n > left: continue
            kept[key] = n
            left -= n
        return kept

    def _make(self, path_of, place):
        "Decode the videos, `PART_BYTES` at a time, and write them"
        try:
            for old in (place/PARTS, *place.glob('videos-*')): old.unlink(missing_ok=True)
            sizes = self._sizes(path_of)
            size = sum(sizes.values())
            if size > MAX_FOLDER_BYTES: raise OSError(0, f'they take more than {MAX_FOLDER_BYTES/2**30:g} GiB')
            if shutil.disk_usage(place).free < 2*size: raise OSError(0, 'the disk is nearly full')
            self._make_room(size)
            files: dict[str, str] = {}
            for part in _parts(sizes):
                frames = self._decode({key:path_of[key] for key in part})
                if frames: files |= _write_part(frames, place)
            store.write_json(place/PARTS, dict(files=files))
        except (OSError, SafetensorError, StoreError) as e:
            for file in (place/TEMPORARY, *place.glob('videos-*')):
                with suppress(OSError): file.unlink()
            with suppress(OSError): (place/NO_ROOM).touch()
            why = getattr(e, 'strerror', None) or e
            warnings.warn(f'{self.folder} cannot keep decoded videos ({why}); each process decodes them for itself')

    def _decode(self, path_of):
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = pool.map(lambda p: _decode_whole(p, self.size), path_of.values())
            frames = dict(zip(path_of, track(found, 'decoding videos', len(path_of))))
        # leave out files that were replaced while they were decoded
        return {key:v for key, v in frames.items() if v is not None and _content_key(path_of[key]) == key}

    def _make_room(self, size):
        "Remove the least recently used files until `size` more bytes fit into the folder"
        files = []
        for f in self.folder.glob('*/videos*'):
            if not OWN_FILES.fullmatch(f.relative_to(self.folder).as_posix()): continue
            # another process may be removing files too
            with suppress(FileNotFoundError): files.append((f.stat().st_mtime, f.stat().st_size, f))
        total = size + sum(n for _, n, _ in files)
        for _, n, f in sorted(files):
            if total <= MAX_FOLDER_BYTES: return
            f.unlink(missing_ok=True)
            total -= n


def keep_decoded(
    paths:Sequence[str], # Videos of a task
    size:int|None, # Short side in pixels, `None`: as shown
    workers:int, # Loading processes, which would not share what they keep
    folder:str|Path|None=None, # Share what is decoded with other processes here
)->MemoryBudget|Decoded|bool: # For `SampleClips`; `False` with loading processes, or if the videos take too much memory
    "What keeps the decoded videos of a task, the size of which is estimated from 16 of them"
    if workers: return False
    sample = pd.Series(paths).sample(min(16, len(paths)), random_state=0)
    if len(paths)*np.mean([VideoFile(p).nbytes(size) for p in sample]) >= MAX_TASK_BYTES: return False
    return MemoryBudget() if folder is None else Decoded(paths, size, folder)
