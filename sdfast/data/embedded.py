"The folder of embedded videos: made once, checked by digest at each use, repaired where it is damaged."
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..errors import Damaged, StoreError
from ..runtime import store
from .indexing import index_video
from .video import VideoError, VideoFile

__all__ = ['embedded_videos']

LIST = 'digests.json'  # file name -> digest of each file in the folder, sealed
THREADS = 8
ELSEWHERE = 'set SDFAST_HOME to a folder that can be written and has room'


def embedded_videos(
    root:Path, # Folder of the videos, made if it does not exist
    write:Callable[[Path], None], # Makes a folder and writes all videos and `manifest.csv` into it, always the same
)->None:
    """Make sure that a folder has the videos as they were written, and say what was repaired.

    All files are compared with the digests that were stored with them. Those that are missing or damaged are made
    again. A folder of an earlier version, which has no digests, is compared with a fresh copy once, frame by frame
    where the bytes differ. Raises `StoreError` if the folder cannot be written or repaired."""
    if not root.exists(): _make(root, write)
    elif _bad_files(root, _digests(root)) != []:
        try: _repair(root, write)
        except StoreError as e:
            if _digests(root) is not None: raise
            warnings.warn(f'{e}. So its videos are used without a check')


def _digests(root):
    "The stored digests; `None` if there are none, or they are damaged themselves"
    try: return store.read_json(root/LIST)['files']
    except (FileNotFoundError, Damaged, KeyError): return None


def _bad_files(root, digests):
    "Names of files that are missing or do not match their digest; `None` without digests"
    if digests is None: return None
    with ThreadPoolExecutor(THREADS) as pool:
        names = list(digests)
        found = pool.map(lambda i: [n for n in names[i::THREADS] if _digest(root/n) != digests[n]], range(THREADS))
        return [name for bad in found for name in bad]


def _digest(file):
    try: return store.digest(file)
    except OSError: return None


def _make(root, write):
    "Make the folder as a whole; if two processes do, the first copy is kept"
    with _fresh_copy(root, write) as (copy, _):
        try: copy.rename(root)  # atomic; fails if another process was first, whose copy is equal
        except OSError:
            if not root.exists(): raise


def _repair(root, write):
    "Replace files that are missing or damaged, one by one, by those of a fresh copy"
    with store.claim(root):
        digests = _digests(root)
        bad = _bad_files(root, digests)
        if bad == []: return  # another process has repaired it
        with _fresh_copy(root, write) as (copy, fresh):
            if digests is None:
                bad = [name for name in _bad_files(root, fresh) if not _same_video(root/name, copy/name)]
                digests = {name:_digest(root/name) for name in fresh}
            for name in bad:
                (root/name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(copy/name, root/name)
            store.write_json(root/LIST, dict(files=digests | {name:fresh[name] for name in bad}))
    index_video.cache_clear()  # its entries may be of damaged files
    if not bad: return
    warnings.warn(f'{root}: {len(bad)} of {len(digests)} files were missing or damaged and are made again, such as '
                  f'{sorted(bad)[0]}')


def _same_video(file, copy):
    "Whether a file shows exactly what a fresh copy does: other versions of FFmpeg write other bytes around it"
    if file.suffix != '.mp4' or not file.is_file(): return False
    try: frames = [VideoFile(f).read(np.arange(VideoFile(f).index.n)) for f in (file, copy)]
    except VideoError: return False
    return torch.equal(*frames)


@contextmanager
def _fresh_copy(root, write)->Iterator[tuple[Path, dict]]:
    "A new copy of the videos in a temporary folder next to `root`, and the digests of its files"
    tmp = root.with_name(f'{root.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        write(tmp)
        files = sorted(f for f in tmp.rglob('*') if f.is_file())
        digests = {f.relative_to(tmp).as_posix():store.digest(f) for f in files}
        store.write_json(tmp/LIST, dict(files=digests))
        yield tmp, digests
    except OSError as e:  # PyAV's errors are such, too
        why = e.strerror or e
        raise StoreError(f'the videos cannot be written to {root}: {why}; {ELSEWHERE}') from None
    finally: shutil.rmtree(tmp, ignore_errors=True)
