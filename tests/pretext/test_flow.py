"Optical flow: right for a known motion, computed once for a file, an error without OpenCV."
import sys

import numpy as np
import pytest
from pretraining import needs_opencv, quiet, tiny
from scipy.ndimage import gaussian_filter

from sdfast.data.digits import write_video
from sdfast.data.motion import as_pixels
from sdfast.data.video import VideoFile
from sdfast.errors import InputError
from sdfast.pretext.flow import optical_flow
from sdfast.pretext.statistics import MotionStatistics


@pytest.fixture
def moving(tmp_path):
    "A texture that moves 2 pixels a frame to the right and 1 down"
    wide = gaussian_filter(np.random.default_rng(0).random((140, 140)), 2, mode='wrap')
    wide = ((wide - wide.min())/(wide.max() - wide.min())*255).astype(np.uint8)
    write_video(tmp_path/'m.mp4', np.stack([np.roll(wide, (t, 2*t), (0, 1))[20:116, 20:116] for t in range(8)]))
    return VideoFile(tmp_path/'m.mp4')


def motion(flow): return np.median(as_pixels(flow), (0, 2, 3))


def test_flow_is_the_motion_of_the_video(moving, tmp_path):
    needs_opencv()
    flow = optical_flow(moving, 96, folder=tmp_path)
    assert flow.shape == (7, 2, 96, 96)
    assert flow.dtype == np.uint8
    assert motion(flow) == pytest.approx([2, 1], abs=.2)


def test_flow_over_two_frames(moving, tmp_path):
    needs_opencv()
    flow = optical_flow(moving, 96, stride=2, folder=tmp_path)
    assert len(flow) == 6
    assert motion(flow) == pytest.approx([4, 2], abs=.4)


def test_flow_is_computed_once_for_a_file(moving, tmp_path, monkeypatch):
    cv2 = needs_opencv()
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path/'home'))
    flow = optical_flow(moving, 96)
    optical_flow(moving, 96, stride=2)
    files = sorted((tmp_path/'home'/'flow').rglob('*.npz'))
    assert len(files) == 2
    with monkeypatch.context() as m:
        m.setattr(cv2, 'DISOpticalFlow_create', lambda *a: pytest.fail('computed again'))
        assert np.array_equal(optical_flow(moving, 96), flow)
    for f in files: f.write_bytes(f.read_bytes()[:300])  # cut off
    assert np.array_equal(optical_flow(moving, 96), flow)


def test_another_size_in_another_folder(moving, tmp_path):
    needs_opencv()
    assert optical_flow(moving, 48, folder=tmp_path/'other').shape == (7, 2, 48, 48)
    assert list((tmp_path/'other').rglob('*.npz'))


def test_without_opencv_the_error_says_what_to_install(moving, dls, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(InputError, match=r'pip install .sdfast\[pretext\]'): optical_flow(moving, 96, folder=tmp_path)
    learn = quiet(dls, tiny(), MotionStatistics(folder=str(tmp_path)))
    with pytest.raises(InputError, match=r'pip install .sdfast\[pretext\]'): learn.fit(1)
