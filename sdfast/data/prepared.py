"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from ..errors import InputError
from .video import VideoFile

__all__ = ['prepared_copies']



def read_manifest(place):
    "What `prepared.json` says, `None` without one"
    try: return json.loads((place/'prepared.json').read_text())
    except FileNotFoundError: return None
    except ValueError as e: raise InputError(f'{place}/prepared.json cannot be read ({e}); delete it and run experiments/prepare.py again, or set SDFAST_PREPARED to nothing') from None


def prepared_copies(
    paths:Iterable, # Video files
)->tuple[dict, int|None, Path]: # Original path to that of its copy, for those that have one; short side in pixels; where copies are looked for
    """Small copies made by `experiments/prepare.py`: in `ROOT.prepared`, beside the deepest folder ROOT that has all videos, or in `$SDFAST_PREPARED`.

    That variable set to nothing turns them off. A copy counts if both files have the sizes that `prepared.json` says."""
    paths = list(map(str, paths))
    root = os.path.commonpath([os.path.dirname(p) for p in paths])
    place = Path(os.environ.get('SDFAST_PREPARED', f'{root}.prepared'))
    if os.environ.get('SDFAST_PREPARED') == '' or not (made := read_manifest(place)): return {}, None, place
    def size(p): return os.path.getsize(p) if os.path.exists(p) else -1
    copies = {}
    for p in paths:
        m = made['files'].get(os.path.relpath(p, root))
        if m and size(p) == m['bytes'] and size(copy := place/f'{os.path.relpath(p, root)}.mp4') == m['copy_bytes']: copies[p] = str(copy)
    return copies, made['size'] if copies else None, place


EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
MAX_ERROR = 6.  # mean grey levels of a frame


def encode_copy(path, frames, gop, quality):
    "Write RGB `(n, 3, H, W)`, frame i at time i"
    with av.open(str(path), 'w', format='mp4') as f:
        s = f.add_stream('libx264', rate=25, options=dict(crf=str(quality), preset='veryfast', tune='fastdecode', bf='0', g=str(gop), sc_threshold='0'))
        s.height, s.width, s.pix_fmt, s.codec_context.thread_count = *frames.shape[2:], 'yuv420p', 1
        for i, x in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x.transpose(1, 2, 0)), format='rgb24').reformat(format='yuv420p', interpolation=EXACT, threads=1)
            frame.pts = i
            f.mux(s.encode(frame))
        f.mux(s.encode())


def make_copy(path, to, size, gop, quality)->dict:
    "Make and check one copy; raises `InputError`"
    v = VideoFile(path)
    n, w, h = v.index.n, v.index.width, v.index.height
    w, h = (max(2, 2*round(x*min(1, size/min(w, h))/2)) for x in (w, h))  # H.264 with its usual colours has even sides
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        x = v.read(np.arange(n), (w, h)).numpy()
    if caught: raise InputError(str(caught[0].message).removeprefix(f'{path}: '))
    to.parent.mkdir(parents=True, exist_ok=True)
    tmp = to.with_name(f'{to.name}.tmp')
    try:
        encode_copy(tmp, x, gop, quality)
        made = VideoFile(tmp)
        if made.index.n != n: raise InputError(f'the copy has {made.index.n} frames instead of {n}')
        if made.index.counted or np.diff([*np.searchsorted(made.index.pts, made.index.keys), n]).max() > gop: raise InputError(f'the copy has no key frame every {gop} frames')
        error = np.array([abs(a.astype(np.int16) - b).mean() for a, b in zip(made.read(np.arange(n)).numpy(), x)])
        if error.max() > MAX_ERROR: raise InputError(f'frame {error.argmax()} of the copy is off by {error.max():.1f} grey levels on average, more than {MAX_ERROR:g}; a lower --quality is better')
        os.replace(tmp, to)
    finally: tmp.unlink(missing_ok=True)
    return dict(bytes=os.path.getsize(path), copy_bytes=to.stat().st_size, frames=n, error=round(float(error.mean()), 3), worst=round(float(error.max()), 3))


def try_copy(path, *args):
    try: return make_copy(path, *args), None
    except (InputError, av.FFmpegError, OSError) as e: return None, str(e).removeprefix(f'{path}: ')


def write_manifest(place, made):
    tmp = place/'prepared.json.tmp'
    tmp.write_text(json.dumps(made, indent=1))
    os.replace(tmp, place/'prepared.json')
