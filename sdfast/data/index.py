"""Indexes of videos: the times and the size of their frames and which of them are damaged, kept on disk.

To make an index all packets of a file must be read, and to find damage all frames decoded. Both are done once per
machine: a small file for each video keeps what was found, for as long as the video does not change."""
import hashlib
import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from av.packet import Packet

from ..runtime import store

__all__ = ['VideoIndex']

# Version of the pixels that `VideoFile.read` returns, part of a run's key: increase it when they change.
PIXELS = 3  # 2: scaled frames are converted exactly; 3: interlaced frames are scaled as a whole
LAYOUT = 2  # version of the stored files and of what counts as damaged: increase it when they change
ARRAYS = 'pts', 'keys', 'places', 'damaged', 'missing'
NONE = np.zeros(0, np.int64)  # shared by all undamaged videos


@dataclass(frozen=True, slots=True)
class VideoIndex:
    "Facts about a video that its container gives, mostly without decoding"
    pts: np.ndarray  # time stamp of each frame, in the order shown, in units of the stream's time base
    keys: np.ndarray  # time stamps of the key frames, ascending
    width: int  # as shown: after rotation, with square pixels
    height: int  # as shown
    counted: bool  # whether frames are counted from the start, because time stamps cannot be trusted
    format: str  # container format, so that it need not be guessed again
    stream: int  # index of the video stream in the container
    places: np.ndarray|None = None  # byte position in the file of each frame's packet, if frames are not counted
    lost: int = 0  # number of frames that the container announces and does not have
    damaged: np.ndarray|None = None  # numbers of damaged frames, ascending; `None`: not all frames were decoded yet
    missing: np.ndarray|None = None  # numbers of frames that cannot be decoded, or repeat the one before

    @property
    def n(self)->int: return len(self.pts)

    @property
    def nbytes(self)->int: return sum(a.nbytes for name in ARRAYS if (a := getattr(self, name)) is not None)

    def is_at_its_place(self, packet:Packet)->bool:
        """Whether a packet has the time that it has if the file is read from the start.

        AVI has no time stamps: FFmpeg counts packets and, after seeking, trusts a table that may be damaged."""
        time = packet.dts if packet.pts is None else packet.pts
        if self.places is None or time is None: return True
        i = np.searchsorted(self.pts, time)
        return i == self.n or self.pts[i] != time or self.places[i] in (packet.pos, -1)


# ---- on disk

def index_folder()->Path|None: # Need not exist yet; `None` if the variable is empty
    "The folder of the stored indexes: `$SDFAST_INDEX`, by default `index` in `store.home()`"
    folder = os.environ.get('SDFAST_INDEX')
    if folder is None: return store.home()/'index'
    return Path(folder).expanduser() if folder else None


class IndexFile:
    "The file that keeps a video's index. To be made before the video is read, so that later changes are noticed"

    def __init__(self,
        path:str, # Video file
    ):
        self.file = None
        with suppress(OSError, ValueError, RuntimeError):  # no such video, a NUL in its path, no home
            real, stat, folder = os.path.realpath(path), os.stat(path), index_folder()
            versions = PIXELS, LAYOUT, av.__version__, sorted(av.library_versions.items())
            self.identity = ascii((real, stat.st_size, stat.st_mtime_ns, *versions))
            if folder: self.file = folder/f'{_digest(os.fsencode(real))}.index'

    def load(self)->VideoIndex|None:
        "The stored index; `None` if there is none, it is damaged, or the video or FFmpeg have changed"
        if self.file is None: return None
        try:
            digest, body = self.file.read_bytes().split(b'\n', 1)
            if digest.decode() != _digest(body): return None
            header, data = body.split(b'\n', 1)
            facts = json.loads(header)
            if facts.pop('identity') != self.identity: return None
            return _unpack(facts, data)
        except (OSError, ValueError, KeyError, TypeError): return None

    def save(self, index:VideoIndex)->None:
        "Store the index. If that fails, it will be made again"
        if self.file is None: return
        body = _pack(index, self.identity)
        tmp = self.file.with_name(f'{self.file.name}.{os.getpid()}.{threading.get_ident()}.tmp')
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            tmp.write_bytes(_digest(body).encode() + b'\n' + body)
            os.replace(tmp, self.file)
        except OSError:
            with suppress(OSError): tmp.unlink()


def _digest(data): return hashlib.sha256(data).hexdigest()[:32]


def _pack(index, identity):
    "A line of JSON, then the arrays"
    facts = asdict(index)
    arrays = [facts.pop(name) for name in ARRAYS]
    facts |= dict(identity=identity, lengths=[None if a is None else len(a) for a in arrays])
    return json.dumps(facts).encode() + b'\n' + b''.join(a.astype('<i8').tobytes() for a in arrays if a is not None)


def _unpack(facts, data):
    arrays, start = {}, 0
    for name, n in zip(ARRAYS, facts.pop('lengths')):
        arrays[name] = None if n is None else np.frombuffer(data[start:start + 8*n], '<i8') if n else NONE
        start += 8*(n or 0)
    return VideoIndex(**facts, **arrays)
