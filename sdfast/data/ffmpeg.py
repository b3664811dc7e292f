"""The interface to FFmpeg, through PyAV: open a file, decode its frames in order, convert them to RGB.

Files may be broken or malicious. Only containers that hold their own data are opened, the size of a frame and the time
to read a packet are limited, and each error of FFmpeg becomes a `VideoError`."""
import errno
import os
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ..errors import InputError

__all__ = ['VideoError']

MAX_PIXELS = 2**26  # largest number of pixels of a frame; 8K has half as many
OPEN_SECONDS, PACKET_SECONDS = 60, 30  # longest time to open a file, and to read one packet of it
MAX_ERRORS = 1000  # number of errors in a row after which the rest of a file is given up
# FFmpeg's demuxers for containers and raw streams that hold all of their data. All others are refused: playlists, lists
# of pictures, session descriptions and scripts read other files, devices or the network
FORMATS = tuple(
    'apng apv asf av1 avi avs2 avs3 bink cavsvideo dhav dirac dnxhd dv evc film_cpk flic flv gif gxf h261 h263 h264 '
    'hevc ifv ipmovie ivf kux lvf m4v matroska mjpeg mjpeg_2000 moflex mov mp3 mpeg mpegts mpegvideo mxf nsv nut nuv '
    'obu ogg rm roq smk swf ty usm vc1 vc1test vivo vvc wav wtv xmv yop yuv4mpegpipe'.split())
# Decoders that conceal what is missing in a frame, and report it if they are strict. Others may say nothing and leave a
# part of the frame as it was in memory, which is zero or an earlier frame
CONCEALING = frozenset('flv h261 h263 h263i h263p h264 mpeg1video mpeg2video mpeg4 msmpeg4 msmpeg4v1 msmpeg4v2 rv10 '
                       'rv20 vc1 wmv1 wmv2 wmv3'.split())
# Decoders that use no frame from before a key frame, whatever is missing in it, after they were flushed
RESTARTING = CONCEALING | frozenset('av1 dnxhd hevc libaom-av1 libdav1d libvpx libvpx-vp9 mjpeg prores vp8 vp9 '
                                    'vvc'.split())
# Tags in the header need not be UTF-8. PyAV 19 always reads them byte by byte, earlier versions only when asked to.
PICTURES = {'bmp', 'jpeg2000', 'jpegls', 'mjpeg', 'png', 'tiff', 'webp'}  # codecs of still pictures, such as covers
TAGS: dict[str, Any] = dict(metadata_errors='surrogateescape') if int(av.__version__.split('.')[0]) < 19 else {}


class VideoError(InputError):
    "A video without a frame that can be decoded; the message names the file and says why"


class Corrupt(Exception):
    "FFmpeg marks a packet or a frame as corrupt"


def _reason(error):
    "FFmpeg's message, without the path and the function name that PyAV adds"
    if isinstance(error, av.error.ExitError):
        return (f'opening it takes over {OPEN_SECONDS} s, or finding its next packet over {PACKET_SECONDS} s: it may '
                'have a long gap; download or copy it again')
    if isinstance(error, av.FFmpegError) and error.strerror: return error.strerror
    return str(error) or type(error).__name__


@contextmanager
def ffmpeg_errors(path:str)->Iterator[None]:
    "Turn FFmpeg's errors outside `decode_frames`, such as those of seeking and scaling, into a `VideoError`"
    try: yield
    except av.FFmpegError as e: raise VideoError(f'{path}: cannot be decoded ({_reason(e)})') from None


def _file_name(path):
    "The absolute path, as FFmpeg would take `x:1.mp4` for an address; as text, as PyAV 19 refuses a `VideoFile`"
    return str(path) if os.path.isabs(path) else os.path.join(os.getcwd(), str(path))


def open_video(
    path:str|Path, # Video file
    format:str|None=None, # Container format, if it is known
    probe:bool=True, # Decode some frames to identify the streams, instead of relying on the container's header
    number:int|None=None, # Index of the stream, if it is known
)->tuple[InputContainer, VideoStream]:
    "Open a file and find its video stream: the first that is not a cover picture. Raises `VideoError`"
    full = _file_name(path)
    if os.path.exists(full) and not os.path.isfile(full):
        raise VideoError(f'{path}: cannot be opened (not a file)')  # opening a pipe would block forever
    limit = dict(max_pixels=str(MAX_PIXELS))  # a few bytes can declare a frame of gigabytes, the first or a later one
    options = limit | dict(format_whitelist=','.join(FORMATS), protocol_whitelist='file')
    if not probe: options |= dict(probesize='32', analyzeduration='1')  # FFmpeg's smallest values
    try: container = av.open(full, format=format, options=options, timeout=(OPEN_SECONDS, PACKET_SECONDS), **TAGS)
    except av.error.ArgumentError:
        raise VideoError(f'{path}: cannot be opened (not a container of video; playlists and lists of pictures are '
                         'refused)') from None
    except (av.FFmpegError, OSError, ValueError) as e:  # `ValueError`: the path contains a NUL
        raise VideoError(f'{path}: cannot be opened ({_reason(e)})') from None
    try: stream = _video_stream(container, number)
    except (av.FFmpegError, IndexError): stream = None  # see `decode_frames`
    if stream is None or stream.codec_context is None:
        pictures = len(container.streams.video)
        container.close()
        why = 'uses a codec that this build of FFmpeg cannot decode'
        if stream is None: why = 'has no video stream, only a picture' if pictures else 'has no video stream'
        raise VideoError(f'{path}: {why}')
    stream.codec_context.options = limit
    stream.thread_type = 'NONE'  # for many short reads in parallel workers, decoder threads cost more than they save
    return container, stream


def is_mov(
    path:str|Path, # Video file
)->bool:
    "Whether a file is an MP4 or of its kin, which its first bytes tell"
    options = dict(format_whitelist='mov', protocol_whitelist='file')
    try: av.open(_file_name(path), options=options, timeout=OPEN_SECONDS, **TAGS).close()
    except av.error.ArgumentError: return False
    except (av.FFmpegError, OSError, ValueError): pass  # opening it for good tells what is wrong
    return True


def zeros_at_end(
    path:str|Path, # Video file
    most:int=2**26, # Stop after about this many bytes
)->int: # 0 if the file cannot be read
    "Number of bytes that are zero at the end of a file"
    block = 2**16
    try:
        if not os.path.isfile(path): return 0  # opening a pipe would block forever
        with open(path, 'rb') as f:
            end = start = f.seek(0, os.SEEK_END)
            while start and end - start < most:
                start = max(0, start - block)
                f.seek(start)
                data = f.read(block).rstrip(b'\0')
                if data: return end - start - len(data)
                block = 2**20
            return end - start
    except (OSError, ValueError): return 0


def _video_stream(container, number):
    "The stream with an index or, without one, the first that is a video; `None` if there is none"
    if number is not None: return next((s for s in container.streams.video if s.index == number), None)
    return next((s for s in container.streams.video if not _is_picture(container, s)), None)


def _is_picture(container, stream):
    """Whether a stream is a cover: marked as one or, as Matroska and AVI have no such mark, a single picture beside
    another video or sound."""
    if stream.disposition & Disposition.attached_pic: return True
    codec = stream.codec_context
    others = len(container.streams.video) + len(container.streams.audio) - 1
    if codec is None or codec.name not in PICTURES or not others: return False
    packets = (p for p in container.demux(stream) if p.size)
    is_single = len(list(islice(packets, 2))) < 2
    container.seek(0)
    return is_single


def decode_frames(
    container:InputContainer, # From `open_video`
    stream:VideoStream, # From `open_video`
    # Time stamps of the needed frames; others are skipped if no frame is predicted from them. `None`: all are needed
    times:Container[int]|None=None,
    is_right:Callable|None=None, # Called with the first packet: whether it is the one that it seems to be
)->Iterator[VideoFrame]:
    """Decode frames until the end of the stream.

    Raises `Corrupt` or an error of FFmpeg for anything damaged, also where FFmpeg would conceal it."""
    set_strict(stream)
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt or is_right is not None and not is_right(packet): raise Corrupt
            is_right = None
            if times is not None:
                needed = packet.pts is None or packet.pts in times
                stream.codec_context.skip_frame = 'DEFAULT' if needed else 'NONREF'
            yield from decode_packet(packet)
    except IndexError: raise Corrupt from None  # PyAV does not know streams that begin in the middle


def decode_packet(
    packet:Packet, # From `container.demux`
)->list[VideoFrame]: # Those that the decoder has finished
    "Decode a packet. Raises an error of FFmpeg"
    try: return packet.decode()
    except ValueError as e:
        if isinstance(e, av.FFmpegError): raise
        # PyAV 19, after it has failed to open the decoder
        raise av.error.DecoderNotFoundError(errno.EINVAL, str(e)) from None


def set_strict(
    stream:VideoStream, # From `open_video`, of which nothing is decoded yet
)->None:
    "Let the decoder fail where it would conceal an error. Frames that are decoded without one are the same"
    stream.codec_context.options = {**stream.codec_context.options, 'err_detect': 'explode'}


def demux_all(
    container:InputContainer, # From `open_video`
    stream:VideoStream, # From `open_video`
)->Iterator[Packet]: # The last one is empty, for the decoder to give what it has kept back
    "Packets of a stream, also after places that cannot be read. Raises `av.error.ExitError` if one takes too long"
    errors = 0
    while errors < MAX_ERRORS:
        try:
            for packet in container.demux(stream):
                errors = 0
                yield packet
            return
        except av.error.ExitError: raise
        except (av.FFmpegError, IndexError): errors += 1  # see `decode_frames`
    yield end_of(stream)


def end_of(
    stream:VideoStream, # From `open_video`
)->Packet: # An empty one
    "The packet after which a decoder gives the frames that it has kept back"
    end = Packet()
    end.stream = stream
    return end


def decode_through(
    container:InputContainer, # From `open_video`
    stream:VideoStream, # From `open_video`
)->Iterator[VideoFrame]:
    "Decode all frames that can be decoded, damaged or not. What they are does not depend on which ones are used"
    for packet in demux_all(container, stream):
        with suppress(av.FFmpegError): yield from decode_packet(packet)


_local = threading.local()  # one scaler per thread, which swscale sets up again only for another size


def _progressive(frame):
    "The same frame, marked as progressive"
    key = frame.width, frame.height, frame.format.name
    if getattr(_local, 'unmark_key', None) != key:
        graph = av.filter.Graph()
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                  time_base=frame.time_base or Fraction(1, 25))
        unmark, sink = graph.add('setfield', 'prog'), graph.add('buffersink')
        source.link_to(unmark)
        unmark.link_to(sink)
        graph.configure()
        _local.unmark, _local.unmark_key = graph, key
    _local.unmark.push(frame)
    return _local.unmark.pull()


def write_rgb(
    frame:VideoFrame, # Decoded, of any size
    out:np.ndarray, # uint8 `(3, H, W)`, whose shape decides the size
)->None:
    "Write a frame, upright and scaled, into `out`"
    if frame.rotation: out = np.rot90(out, -frame.rotation//90 % 4, (1, 2))
    h, w = out.shape[1:]
    # swscale scales the two fields of interlaced frames separately; cameras and editors mark progressive ones, too
    if frame.interlaced_frame: frame = _progressive(frame)
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
