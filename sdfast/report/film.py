"A video as a row of frames, for the page."
import base64
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.video import VideoError, VideoFile
from ..errors import InputError

__all__ = ['film_strip']

GAP = 2  # pixels between two frames


def film_strip(
    path:str|Path, # Video file
    n:int=6, # Number of frames, evenly spaced
    height:int=72, # Height of the strip in pixels
)->tuple[str, int, int]|None: # A JPEG as data URI, its width and height; `None` if the video cannot be read
    "Show a video as a row of frames"
    if not Path(path).is_file(): return None
    try: frames = _read_frames(path, n)
    except (VideoError, InputError, OSError): return None
    width = round(frames[0].width*height/frames[0].height)
    width = max(1, min(4*height, width))
    strip = Image.new('RGB', (len(frames)*(width + GAP) - GAP, height), 'white')
    for i, frame in enumerate(frames): strip.paste(frame.resize((width, height)), (i*(width + GAP), 0))
    file = io.BytesIO()
    strip.save(file, 'JPEG', quality=82)
    data = base64.b64encode(file.getvalue()).decode()
    return f'data:image/jpeg;base64,{data}', *strip.size


def _read_frames(path, n):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about frames that replace undecodable ones
        video = VideoFile(str(path))
        places = np.linspace(0, video.index.n - 1, min(n, video.index.n)).round().astype(int)
        x = video.read(places)
    return [Image.fromarray(frame) for frame in x.permute(0, 2, 3, 1).numpy()]
