"Optical flow of whole videos, computed once for each file and stored."
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from ..data.motion import flow_in_bytes, opencv
from ..data.video import VideoError, VideoFile
from ..runtime import store

__all__ = ['optical_flow']


def _flow_file(video, side, stride, folder):
    "The path at which the flow of a video is stored, which depends on its name, size, time and the settings"
    path = Path(video).resolve()
    if not path.is_file(): raise VideoError(f'{video}: cannot be opened (no such file)')
    stat = path.stat()
    what = repr((str(path), stat.st_size, stat.st_mtime_ns, side, stride, 'dis medium'))
    key = hashlib.sha256(what.encode()).hexdigest()[:24]
    return Path(folder or store.home()/'flow')/key[:2]/f'{key}.npz'


def optical_flow(
    video:VideoFile, # A file
    side:int, # Short side in pixels that the video is scaled to
    stride:int=1, # Frames from the first to the second of each flow
    folder:str|Path|None=None, # Where flows are kept, by default `flow` in `$SDFAST_HOME` or ~/.cache/sdfast
)->np.ndarray: # uint8 `(n - stride, 2, H, W)`: -20 to 20 pixels is 0 to 255, as in the reference
    """Flow from each frame to the one `stride` later, by OpenCV's DIS, computed once for a file.

    Raises `InputError` without OpenCV, `VideoError` for a broken file."""
    file = _flow_file(video, side, stride, folder)
    try: return np.load(file)['flow']
    except FileNotFoundError: pass
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile): pass  # cut off: computed again
    opencv('MotionStatistics')  # before the video is read
    frames = VideoFile(video).read(np.arange(video.index.n), side).permute(0, 2, 3, 1).numpy()
    flow = flow_in_bytes(frames, stride, 'MotionStatistics')
    data = io.BytesIO()
    np.savez_compressed(data, flow=flow)
    file.parent.mkdir(parents=True, exist_ok=True)
    store.write(file, data.getvalue())
    return flow
