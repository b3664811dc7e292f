"""Decoded videos in a file, made once and shared by all processes and studies that read the same videos.

A set of videos is one file. Its folder's name is a digest of the videos' content and of the settings and libraries that
decide their pixels. Processes verify the file's digest and memory-map it, so that they share memory, too."""
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
from .index import PIXELS
from .indexing import index_video
from .video import VideoError, VideoFile

__all__ = ['decoded_folder', 'Decoded']

NO_ROOM = 'refused'  # name of a file that marks a set which could not be stored
RETRY_SECONDS = 600  # how long this mark is valid
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


def _decode_whole(path, size):
    "All frames, or `None` if a frame cannot be decoded or the video is too large to keep"
    video = VideoFile(path)
    try: return video.whole(size) if small_enough(video, size) else None
    except VideoError: return None


class Decoded:
    """The frames of a set of videos, shared through a file in `folder`; used as the `cache` of a `SampleClips`.

    The first process that calls `open` makes the file, and others wait for it. Videos with a frame that cannot be
    decoded, and those larger than `MAX_VIDEO_BYTES`, are left out. If the file cannot be written, each process keeps
    the frames that it has decoded."""

    def __init__(self,
        paths:Iterable, # Video files
        size:int|None, # Short side in pixels, see `VideoFile.read`
        folder:str|Path, # Holds files of up to 8 GiB in total; created if it does not exist
    ):
        self.paths = [str(p) for p in paths]
        self.size = size
        self.folder = Path(folder).expanduser()
        self._frames = None  # path -> frames, after `open`

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
        "Read the file, or make it if it does not exist; later calls do nothing"
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
        "Content key -> frames"
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
            with suppress(OSError): os.utime(files[0])  # record the time of last use
            return load_file(files[0])
        except (Damaged, OSError, SafetensorError): return None

    def _decode(self, keys):
        path_of = {key:p for p, key in keys.items()}
        index_video.cache_clear()  # its entries may be of earlier content
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            found = pool.map(lambda p: _decode_whole(p, self.size), path_of.values())
            frames = dict(zip(path_of, found))
        # leave out files that were replaced while they were decoded
        return {key:v for key, v in frames.items() if v is not None and _content_key(path_of[key]) == key}

    def _save(self, frames, place):
        "Write the frames to the file and return them, memory-mapped if this succeeds"
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
