"Videos as rows of frames."
import base64
import io

import numpy as np
import pytest
from helpers import numbered
from PIL import Image

from sdfast.data.digits import write_video
from sdfast.report.film import film_strip


def test_frames_are_evenly_spaced(tmp_path):
    write_video(tmp_path/'v.mp4', numbered(12, 32))
    uri, width, height = film_strip(tmp_path/'v.mp4', n=4, height=48)
    assert uri.startswith('data:image/jpeg;base64,')
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).convert('L')
    assert image.size == (width, height) == (4*48 + 3*2, 48)
    want = [6*round(i) for i in np.linspace(0, 11, 4)]
    assert [image.getpixel((24 + 50*i, 24)) for i in range(4)] == pytest.approx(want, abs=5)


def test_what_cannot_be_read_has_no_strip(tmp_path):
    (tmp_path/'bad.mp4').write_bytes(b'x')
    assert film_strip(tmp_path/'bad.mp4') is None
    assert film_strip(tmp_path/'gone.mp4') is None
