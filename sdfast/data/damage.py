"""Find the damaged frames of a video by decoding all of it.

A frame is damaged if FFmpeg marks it or its packet as corrupt, if its packet cannot be decoded without an error, if it
is predicted from such a frame, or if it is missing. So is a frame that another decoding gives other pixels: FFmpeg does
not write all of them where data are missing."""
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from .ffmpeg import CONCEALING, decode_packet, demux_all, end_of, open_video, set_strict
from .index import VideoIndex

__all__ = ['find_damage']

# Codecs in which a packet may show no frame: the one before is repeated, or it only helps to predict others
MAY_HIDE = {'mpeg4', 'vp8', 'vp9', 'av1', 'libdav1d'}


HELD_BYTES = 2**28  # frames of this size are held in memory to make a decoder use other memory


@dataclass(frozen=True)
class Shown:
    "A decoded frame, without its pixels"
    packet: Any  # ordinal number of the packet that it comes from; `None`: unknown
    time: int|None  # time stamp
    corrupt: bool  # as FFmpeg marks it
    key: bool  # whether it is predicted from no other
    pixels: int  # checksum of its pixels, if asked for


@dataclass
class Decoding:
    "What happened when a file was decoded from the first packet to the last"
    codec: str  # FFmpeg's name of the decoder
    times: list = field(default_factory=list)  # time stamp of each packet
    keys: list = field(default_factory=list)  # whether a packet is that of a key frame, for each
    failed: set = field(default_factory=set)  # ordinal numbers of packets that are corrupt or cannot be decoded
    frames: list = field(default_factory=list)  # a `Shown` for each frame, in the order of the decoder


def decode_log(
    path:str, # Video file
    index:VideoIndex, # Its index
    strict:bool, # Count what FFmpeg conceals as an error
    pixels:bool=False, # Compute checksums of pixels
    other:bool=False, # Decode with other memory and, where that changes no sound frame, afresh from each key frame
)->Decoding: # What happened
    "Decode all of a video"
    container, stream = open_video(path, index.format, number=index.stream)
    with container:
        if strict: set_strict(stream)
        stream.codec_context.copy_opaque = True  # the number of a packet becomes that of its frame
        log = Decoding(stream.codec_context.name)
        held: deque = deque(maxlen=0)
        restart = other and log.codec not in CONCEALING
        for i, packet in enumerate(demux_all(container, stream)):
            log.times.append(packet.dts if packet.pts is None else packet.pts)
            log.keys.append(packet.is_keyframe)
            if packet.is_corrupt: log.failed.add(i)
            if restart and i and packet.is_keyframe: log.frames += [_shown(f, pixels) for f in _drain(stream)]
            packet.opaque = [i]  # not `i`: PyAV finds it by its identity, and all threads share small integers
            try: frames = decode_packet(packet)
            except av.FFmpegError:
                log.failed.add(i)
                continue
            if other and frames and not held.maxlen: held = deque(maxlen=max(32, HELD_BYTES//_nbytes(frames[0])))
            held += frames
            log.frames += [_shown(f, pixels) for f in frames]
    return log


def _drain(stream):
    "The frames that the decoder has kept back; then it forgets the frames before"
    try: frames = decode_packet(end_of(stream))
    except (av.FFmpegError, EOFError): frames = []
    stream.codec_context.flush_buffers()
    return frames


def _nbytes(frame): return sum(plane.buffer_size for plane in frame.planes)


def _shown(frame, pixels):
    number = frame.opaque[0] if frame.opaque else None
    checksum = _checksum(frame) if pixels else 0
    return Shown(number, frame.pts, frame.is_corrupt, bool(frame.key_frame), checksum)


def _checksum(frame):
    return zlib.crc32(frame.reformat(format='rgb24', threads=1).to_ndarray().tobytes())


def find_damage(
    path:str, # Video file
    index:VideoIndex, # Its index
)->tuple[np.ndarray, np.ndarray]: # Numbers of the damaged frames, and of those that have no picture of their own
    """Decode a video and, if anything is wrong or the decoder would not say so, again as `decode_through` does.

    Raises `av.error.ExitError` if it takes too long."""
    strict = decode_log(path, index, strict=True)
    missing = _missing(strict, index)
    tainted = _tainted(strict, set())
    errors = bool(tainted) or any(f.corrupt for f in strict.frames)
    if not errors and strict.codec in CONCEALING: return _unexplained(strict, index, missing, tainted), missing
    log = decode_log(path, index, strict=False, pixels=True)
    again = decode_log(path, index, strict=False, pixels=True, other=True)
    tainted = _tainted(log, strict.failed)
    pixels = {f.packet:f.pixels for f in again.frames}
    differ = {f.packet for f in log.frames if pixels.get(f.packet, f.pixels) != f.pixels}
    if not errors and not differ: return _unexplained(strict, index, missing, tainted), missing
    sound = {f.packet for f in strict.frames} - tainted - differ - {None}
    damaged = {n for f, n in _numbers(log, index) if f.corrupt or f.packet not in sound}
    missing = _missing(log, index)
    damaged |= set(_unexplained(log, index, missing, tainted).tolist())
    return np.array(sorted(damaged), np.int64), missing


def _numbers(log, index):
    "Pairs of a frame and its number in the index. Frames that an edit list hides have none"
    if index.counted: return list(zip(log.frames, range(index.n)))
    number = dict(zip(index.pts.tolist(), range(index.n)))
    return [(f, number[f.time]) for f in log.frames if f.time in number]


def _missing(log, index):
    found = {n for _, n in _numbers(log, index)}
    return np.array([n for n in range(index.n) if n not in found], np.int64)


def _unexplained(log, index, missing, tainted):
    "Those of the missing frames that the codec may not leave out, or that damage may have removed"
    if log.codec not in MAY_HIDE: return missing
    hidden = {time for i, time in enumerate(log.times) if i not in tainted}
    return np.array([n for n in missing.tolist() if index.counted or index.pts[n] not in hidden], np.int64)


def _tainted(log, failed):
    "Ordinal numbers of the packets that failed, and of those that may be predicted from them: up to the next key frame"
    failed = failed | log.failed
    if not failed: return set()
    place = {f.packet:i for i, f in enumerate(log.frames)}
    keys = {f.packet for f in log.frames if f.key and not f.corrupt} - failed
    tainted, key, spoilt, spoilt_before = set(), None, False, False
    for i in range(len(log.times)):
        if i in keys and log.keys[i]: key, spoilt, spoilt_before = i, False, spoilt
        spoilt = spoilt or i in failed
        # a frame that is shown before the key frame may be predicted from the group before
        leads = spoilt_before and key is not None and place.get(i, len(place)) < place[key]
        if spoilt or leads: tainted.add(i)
    return tainted
