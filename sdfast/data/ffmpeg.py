"""The interface to FFmpeg, through PyAV: open a file, decode its frames in order, convert them to RGB.

Files may be broken or malicious. The size of a frame is limited, and each error of FFmpeg becomes a `VideoError`."""
import os
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import InputError

__all__ = ['VideoError']

MAX_PIXELS = 2**26  # largest number of pixels of a frame; 8K has half as many
# Tags in the header need not be UTF-8. PyAV 19 always reads them byte by byte, earlier versions only when asked to.
TAGS: dict[str, Any] = dict(metadata_errors='surrogateescape') if int(av.__version__.split('.')[0]) < 19 else {}


class VideoError(InputError):
    "A video without a frame that can be decoded; the message names the file and says why"


def _reason(error):
    "FFmpeg's message, without the path and the function name that PyAV adds"
    if isinstance(error, av.FFmpegError) and error.strerror: return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def ffmpeg_errors(path:str)->Iterator[None]:
    "Turn FFmpeg's errors outside `decode_frames`, such as those of seeking and scaling, into a `VideoError`"
    try: yield
    except av.FFmpegError as e: raise VideoError(f'{path}: cannot be decoded ({_reason(e)})') from None


def open_video(
    path:str|Path, # Video file
    format:str|None=None, # Container format, if it is known
    probe:bool=True, # Decode some frames to identify the streams, instead of relying on the container's header
)->tuple[InputContainer, VideoStream]:
    "Open a file and find its video stream. Raises `VideoError`"
    if os.path.exists(path) and not os.path.isfile(path):
        raise VideoError(f'{path}: cannot be opened (not a file)')  # opening a pipe would block forever
    limit = dict(max_pixels=str(MAX_PIXELS))  # a few bytes can declare a frame of gigabytes, the first or a later one
    options = limit if probe else limit | dict(probesize='32', analyzeduration='1')  # FFmpeg's smallest values
    try: container = av.open(str(path), format=format, options=options, **TAGS)
    except (av.FFmpegError, OSError, ValueError) as e:  # `ValueError`: the path contains a NUL
        raise VideoError(f'{path}: cannot be opened ({_reason(e)})') from None
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        container.close()
        why = 'has no video stream' if stream is None else 'uses a codec that this build of FFmpeg cannot decode'
        raise VideoError(f'{path}: {why}')
    stream.codec_context.options = limit
    stream.thread_type = 'NONE'  # for many short reads in parallel workers, decoder threads cost more than they save
    return container, stream


def decode_frames(
    container:InputContainer, # From `open_video`
    stream:VideoStream, # From `open_video`
    # Time stamps of the needed frames; others are skipped if no frame is predicted from them. `None`: all are needed
    times:Container[int]|None=None,
)->Iterator[VideoFrame]:
    "Decode frames until the end of the stream or the first broken packet"
    try:
        for packet in container.demux(stream):
            if times is not None:
                needed = packet.pts is None or packet.pts in times
                stream.codec_context.skip_frame = 'DEFAULT' if needed else 'NONREF'
            yield from packet.decode()
    except av.FFmpegError: return


_local = threading.local()  # one scaler per thread, which swscale sets up again only for another size


def write_rgb(
    frame:VideoFrame, # Decoded, of any size
    out:np.ndarray, # uint8 `(3, H, W)`, whose shape decides the size
)->None:
    "Write a frame, upright and scaled, into `out`"
    if frame.rotation: out = np.rot90(out, -frame.rotation//90 % 4, (1, 2))
    h, w = out.shape[1:]
    if not hasattr(_local, 'scaler'): _local.scaler = VideoReformatter()
    scale = _local.scaler.reformat
    if (w, h) == (frame.width, frame.height):
        # without scaling, swscale leaves the last columns of planes unwritten for some widths, so use packed RGB
        out[:] = scale(frame, w, h, 'rgb24', threads=1).to_ndarray().transpose(2, 0, 1)
        return
    # with scaling, swscale is exact for planes, and three times as fast as for packed RGB
    planes = scale(frame, w, h, 'gbrp', threads=1).planes
    for channel, plane in zip((1, 2, 0), planes):
        out[channel] = np.ndarray((h, w), np.uint8, plane, 0, (plane.line_size, 1))
