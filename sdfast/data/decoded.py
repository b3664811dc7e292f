"""Decoded videos in a file, made once and shared by all processes and studies that read the same ones.

A set of videos is one file. Its name is a digest of their content and of what else decides their pixels. Processes
compare its digest, then map it, so that they share its memory too."""
import hashlib
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import Damaged, StoreError
from ..runtime import store
from .cache import MAX_FOLDER_BYTES, small_enough
from .video import PIXELS, VideoError, VideoFile, index_video

__all__ = ['decoded_folder', 'Decoded']

NO_ROOM = 'refused'  # the file that marks a set for which there was no room
RETRY_SECONDS = 600  # how long that mark holds
OWN_FILES = re.compile(r'[0-9a-f]{16}/videos(-[0-9a-f]{16}\.safetensors|\.tmp)')  # below the folder


def decoded_folder()->Path|None: # Need not exist yet; `None` if the variable is empty
    "Where studies share decoded videos: `$SDFAST_DECODED`, by default `decoded` in `store.home()`"
    folder = os.environ.get('SDFAST_DECODED')
    if folder is None: return store.home()/'decoded'
    return Path(folder).expanduser() if folder else None


def _content_key(path):
    "Digest and suffix, from which FFmpeg may guess the format; `None` if the file cannot be read"
    if not os.path.isfile(path): return None  # reading a pipe would block for ever
    try: digest = store.digest(path)
    except OSError: return None
    return digest + ascii(Path(path).suffix.lower())[1:-1]  # a file name need not be text


def _no_room_lately(place):
    "Whether there was no room a short while ago, so that processes that waited do not all try in turn"
    try: return time.time() - (place/NO_ROOM).stat().st_mtime < RETRY_SECONDS
    except OSError: return False


def _decode_whole(path, size):
    "All frames, or `None` if one of them cannot be decoded or they are too large to keep"
    video = VideoFile(path)
    try: return video.whole(size) if small_enough(video, size) else None
    except VideoError: return None


class Decoded:
    """All frames of each of some videos, shared through a file in `folder`: the `cache` of a `SampleClips`.

    The file is made by the first process that calls `open`; others wait for it. Videos with a frame that cannot be
    decoded, and those larger than `MAX_VIDEO_BYTES`, are left out. If the file cannot be written, this process keeps
    what it decoded."""

    def __init__(self,
        paths:Iterable, # Video files
        size:int|None, # Short side in pixels, see `VideoFile.read`
        folder:str|Path, # For files of up to 8 GiB in total; made if it does not exist
    ):
        self.paths = [str(p) for p in paths]
        self.size = size
        self.folder = Path(folder).expanduser()
        self._frames = None  # path -> frames, once `open` was called

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
    # In a pickled learner it becomes True: decoded videos are kept in memory, and the folder is not needed
    def __reduce__(self): return bool, (True,)

    def open(self)->None:
        "Read the file, or make it, once"
        if self._frames is None: self._frames = self._open()

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
        "Frames of each content"
        frames = self._load(place)
        if frames is not None: return frames
        with store.claim(place):
            frames = self._load(place)  # another process may have made it meanwhile
            if frames is not None: return frames
            if _no_room_lately(place): return {}
            return self._save(self._decode(keys), place)

    def _load(self, place):
        "The mapped file, or `None` if it does not exist or is damaged"
        try:
            files = store.find(place, 'videos', 'safetensors')
            if not files: return None
            with suppress(OSError): os.utime(files[0])  # the time of last use
            return load_file(files[0])
        except (Damaged, OSError, SafetensorError): return None

    def _decode(self, keys):
        path_of = {key:p for p, key in keys.items()}
        index_video.cache_clear()  # this process may remember the index of earlier content
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = pool.map(lambda p: _decode_whole(p, self.size), path_of.values())
            frames = dict(zip(path_of, found))
        # without files that were replaced while they were decoded
        return {key:v for key, v in frames.items() if v is not None and _content_key(path_of[key]) == key}

    def _save(self, frames, place):
        "The frames, mapped from the file if it could be written"
        tmp = place/'videos.tmp'
        size = sum(v.nbytes for v in frames.values())
        try:
            for damaged in place.glob('videos-*'): damaged.unlink()
            if size > MAX_FOLDER_BYTES: raise OSError(0, f'they take more than {MAX_FOLDER_BYTES/2**30:g} GiB')
            if shutil.disk_usage(place).free < 2*size: raise OSError(0, 'the disk is nearly full')
            self._make_room(size)
            save_file(frames, tmp)
            os.replace(tmp, place/f'videos-{store.digest(tmp)}.safetensors')
        except (OSError, SafetensorError) as e:
            with suppress(OSError): tmp.unlink()
            with suppress(OSError): (place/NO_ROOM).touch()
            why = getattr(e, 'strerror', None) or e
            warnings.warn(f'{self.folder} cannot keep decoded videos ({why}); each process decodes them for itself')
        return self._load(place) or frames

    def _make_room(self, size):
        "Remove the files that were not used for longest until `size` bytes more fit into the folder"
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
