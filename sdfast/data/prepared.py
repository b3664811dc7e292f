"Prepared copies: small copies of a task's videos, which decode faster and are used in place of the videos."
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from ..errors import Damaged, InputError
from ..runtime import store
from .video import VideoFile

__all__ = ['prepared_copies']

MANIFEST = 'prepared.json'
# swscale's flags for an accurate conversion from RGB to YUV, by number: PyAV has names for all only since 18
EXACT = 0x2 | 0x4000 | 0x40000  # SWS_BILINEAR, SWS_FULL_CHR_H_INP, SWS_ACCURATE_RND
MAX_ERROR = 6.  # largest mean absolute error of a copy's frame, in grey levels


def prepared_copies(
    paths:Iterable, # Video files
# `(copies, size, folder)`: path of a video -> path of its copy; short side in pixels; folder of the copies
)->tuple[dict, int|None, Path]:
    """Find the copies made by `experiments/prepare.py`.

    They are in `$SDFAST_PREPARED` or, by default, in `ROOT.prepared`, next to the deepest folder ROOT that contains all
    videos. If the variable is empty, no copies are used. A copy is used only if the sizes of video and copy equal those
    in `prepared.json`."""
    paths = [str(p) for p in paths]
    root = os.path.commonpath([os.path.dirname(p) for p in paths])
    setting = os.environ.get('SDFAST_PREPARED')
    folder = Path(f'{root}.prepared' if setting is None else setting)
    manifest = None if setting == '' else read_manifest(folder)
    if not manifest: return {}, None, folder
    copies = {}
    for path in paths:
        name = os.path.relpath(path, root)
        made = manifest['files'].get(name)
        if made is None: continue
        copy = copy_path(folder, name)
        if _size(path) == made['bytes'] and _size(copy) == made['copy_bytes']: copies[path] = str(copy)
    return copies, manifest['size'] if copies else None, folder


def copy_path(folder:Path, name:str)->Path:
    "Path of a video's copy; `name` is the video's path below its root"
    return folder/f'{name}.mp4'


def _size(path): return os.path.getsize(path) if os.path.exists(path) else -1


def read_manifest(folder:Path)->dict|None:
    """Read the settings of the copies in a folder, and `files`, the facts about each; `None` if there are no copies.

    A damaged file is no reason to stop: the originals are there, and runs on them have other keys."""
    try: manifest = store.read_json(folder/MANIFEST, checked=False)
    except FileNotFoundError: return None
    except Damaged: manifest = {}
    if isinstance(manifest.get('files'), dict) and isinstance(manifest.get('size'), int): return manifest
    warnings.warn(f'{folder/MANIFEST} is damaged, so the copies in {folder} are not used; experiments/prepare.py makes '
                  'them again')
    return None


def write_manifest(folder:Path, manifest:dict)->None:
    "Replace the manifest in one step"
    store.write_json(folder/MANIFEST, manifest)


def encode_copy(path:Path, frames:np.ndarray, gop:int, quality:int)->None:
    "Write RGB `(n, 3, H, W)` as H.264, frame i at time i, a key frame at least every `gop` frames"
    options = dict(crf=str(quality), preset='veryfast', tune='fastdecode', bf='0', g=str(gop), sc_threshold='0')
    with av.open(str(path), 'w', format='mp4') as f:
        stream = f.add_stream('libx264', rate=25, options=options)
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = 'yuv420p'
        stream.codec_context.thread_count = 1
        for i, x in enumerate(frames):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(x.transpose(1, 2, 0)), format='rgb24')
            frame = rgb.reformat(format='yuv420p', interpolation=EXACT, threads=1)
            frame.pts = i
            f.mux(stream.encode(frame))
        f.mux(stream.encode())


def make_copy(path:str, to:Path, size:int, gop:int, quality:int)->dict:
    "Make a copy and compare it with the video, frame by frame. Raises `InputError`"
    frames = _all_frames(path, _even_size(VideoFile(path), size))
    to.parent.mkdir(parents=True, exist_ok=True)
    tmp = to.with_name(f'{to.name}.tmp')
    try:
        encode_copy(tmp, frames, gop, quality)
        error = _errors(VideoFile(tmp), frames, gop)
        os.replace(tmp, to)
    finally: tmp.unlink(missing_ok=True)
    return dict(bytes=os.path.getsize(path), copy_bytes=to.stat().st_size, frames=len(frames),
                error=round(float(error.mean()), 3), worst=round(float(error.max()), 3))


def _even_size(video, size):
    "Width and height of a copy, which are even, as H.264 with yuv420p requires"
    w, h = video.index.width, video.index.height
    scale = min(1, size/min(w, h))
    return max(2, 2*round(w*scale/2)), max(2, 2*round(h*scale/2))


def _all_frames(path, size):
    "All frames of a video. Raises `InputError` if one cannot be decoded"
    video = VideoFile(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        frames = video.read(np.arange(video.index.n), size).numpy()
    if caught: raise InputError(str(caught[0].message).removeprefix(f'{path}: '))
    return frames


def _errors(copy, frames, gop):
    "Mean absolute error of each frame of a copy. Raises `InputError` if the copy is not good enough"
    n = len(frames)
    index = copy.index
    if index.n != n: raise InputError(f'the copy has {index.n} frames instead of {n}')
    key_frames = np.searchsorted(index.pts, index.keys)
    if index.counted or np.diff([*key_frames, n]).max() > gop:
        raise InputError(f'the copy has no key frame every {gop} frames')
    copied = copy.read(np.arange(n)).numpy()
    error = np.array([abs(a.astype(np.int16) - b).mean() for a, b in zip(copied, frames)])
    if error.max() > MAX_ERROR:
        raise InputError(f'frame {error.argmax()} of the copy is off by {error.max():.1f} grey levels on average, '
                         f'more than {MAX_ERROR:g}; a lower --quality is better')
    return error


def try_copy(path:str, *args)->tuple[dict|None, str|None]:
    "Call `make_copy`; returns `(its result, None)`, or `(None, the reason)` if it fails"
    try: return make_copy(path, *args), None
    except (InputError, av.FFmpegError, OSError) as e: return None, str(e).removeprefix(f'{path}: ')


def check_prepared_size(
    name:str, # Name of the task, for the error
    prepared:int, # Short side of its prepared copies in pixels
    size:int|None, # Side of crops, `None` for whole frames
    area:tuple|None, # Share of the frame that a training crop covers, see `SampleClips`
)->None:
    "Raise `InputError` if crops would be larger than prepared copies"
    needed = math.inf if size is None else math.ceil(size/math.sqrt(area[0] if area else 1))
    if prepared >= needed: return
    crops = f' and crops of {area[0]:g} of the frame' if area else ''
    raise InputError(f'{name}: its prepared copies have a short side of {prepared} pixels, too few for '
                     f'size {size}{crops}; prepare with --size {needed} or more, or set the environment variable '
                     'SDFAST_PREPARED to nothing to use the originals')
