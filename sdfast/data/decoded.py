"""Whole decoded videos, made once and shared by all processes and studies that read the same ones.

A set of videos is one file, named by their content and by what else decides their pixels. Processes map it, so that they share its
memory, too; before that its digest is compared."""
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
from .video import PIXELS, VideoError, VideoFile, index_video

__all__ = ['decoded_folder', 'Decoded']

REFUSED = 'refused'  # marks a set for which there was no room
KEEP_BYTES = 2**33  # in a folder; of more, what was not used for longest is removed


def decoded_folder()->Path|None: # Which need not be there yet; `None` if the variable is set to nothing
    "Where studies share decoded videos: `$SDFAST_DECODED`, by default `decoded` in `store.home()`"
    where = os.environ.get('SDFAST_DECODED')
    return store.home()/'decoded' if where is None else Path(where).expanduser() if where else None


def _content(path):
    "Of a file's content and what its name says of the format; `None` where it cannot be read"
    if not os.path.isfile(path): return  # a pipe would block for ever
    with suppress(OSError): return store.digest(path) + ascii(Path(path).suffix.lower())[1:-1]  # a name need not be text


def _refused(place):
    "Whether there was no room a short while ago: those who waited for what is not there do not try one after another"
    with suppress(OSError): return time.time() - (place/REFUSED).stat().st_mtime < 600


def _whole(path, size):
    with suppress(VideoError): return VideoFile(path).whole(size)


class Decoded:
    """The frames of each of some videos, once `open` was called: from a file in `folder`, which is made if it is not there.

    Of several processes one makes it, and the others wait. Videos of which a frame cannot be decoded are left out, and those that are
    too large to be kept whole. Without room for the file this process keeps what it decoded."""

    def __init__(self,
        paths:Iterable, # Video files
        size:int|None, # Short side in pixels, see `VideoFile.read`
        folder:str|Path, # For files of up to 8 GiB in all
    ): self.paths, self.size, self.folder, self._videos = list(map(str, paths)), size, Path(folder).expanduser(), None

    def __call__(self,
        path:str, # One of the videos
        size:int|None, # What is asked for
    )->torch.Tensor|None: # uint8 `(n, 3, H, W)`, not to be changed; `None` for a video or a size that is not here, and before `open`
        "All frames of a video"
        return self._videos.get(path) if self._videos and size == self.size else None

    def __copy__(self): return self
    def __deepcopy__(self, memo): return self
    def __reduce__(self): return bool, (True,)  # pickled with a learner: who loads it keeps decoded videos in memory, but need not have the folder

    def open(self)->None:
        "Read the file, or make it; once"
        if self._videos is None: self._videos = self._open()

    def _open(self):
        names = {p:c for p in self.paths if (c := _content(p))}
        what = PIXELS, sorted(av.library_versions.items()), self.size, sorted(set(names.values()))
        place = self.folder/hashlib.sha256(repr(what).encode()).hexdigest()[:16]
        try:
            if (found := self._load(place)) is None:
                with store.claim(place):
                    if (found := self._load(place)) is None: found = {} if _refused(place) else self._keep(self._decode(names), place)
        except StoreError as e:
            warnings.warn(f'{e}; each process decodes videos for itself')
            return {}
        return {p:found[c] for p, c in names.items() if c in found}

    def _load(self, place):
        try:
            if not (files := store.find(place, 'videos', 'safetensors')): return
            with suppress(OSError): os.utime(files[0])  # used now
            return load_file(files[0])
        except (Damaged, OSError, SafetensorError): return

    def _decode(self, names):
        one = {c:p for p, c in names.items()}
        index_video.cache_clear()  # this process may remember another content of a file
        with ThreadPoolExecutor(torch.get_num_threads()) as pool: found = list(pool.map(lambda p: _whole(p, self.size), one.values()))
        return {c:v for (c, p), v in zip(one.items(), found) if v is not None and _content(p) == c}  # unless it was replaced meanwhile

    def _keep(self, videos, place):
        "What was decoded, mapped if it could be written down"
        tmp, size = place/'videos.tmp', sum(v.nbytes for v in videos.values())
        try:
            for f in place.glob('videos-*'): f.unlink()  # damaged
            if size > KEEP_BYTES: raise OSError(0, f'they take more than {KEEP_BYTES/2**30:g} GiB')
            if shutil.disk_usage(place).free < 2*size: raise OSError(0, 'the disk is nearly full')
            self._make_room(size)
            save_file(videos, tmp)
            os.replace(tmp, place/f'videos-{store.digest(tmp)}.safetensors')
        except (OSError, SafetensorError) as e:
            with suppress(OSError): tmp.unlink()
            with suppress(OSError): (place/REFUSED).touch()
            warnings.warn(f'{self.folder} cannot keep decoded videos ({getattr(e, "strerror", None) or e}); each process decodes them for itself')
        return self._load(place) or videos

    def _make_room(self, size):
        files = []
        for f in self.folder.glob('*/videos*'):
            if not re.fullmatch(r'[0-9a-f]{16}/videos(-[0-9a-f]{16}\.safetensors|\.tmp)', f.relative_to(self.folder).as_posix()): continue  # not ours
            with suppress(FileNotFoundError): files.append((f.stat().st_mtime, f.stat().st_size, f))  # another process may make room, too
        total = size + sum(n for _, n, _ in files)
        for _, n, f in sorted(files):
            if total <= KEEP_BYTES: return
            f.unlink(missing_ok=True)
            total -= n
