"Videos and loaders of the tests of pre-training."
import pytest
from helpers import numbered

from sdfast.data.digits import write_video
from sdfast.pretext.loaders import video_dls


@pytest.fixture(scope='session')
def counted(tmp_path_factory):
    "Six videos of 20 frames whose grey level is 6 times the number of the frame"
    root = tmp_path_factory.mktemp('counted')
    for i in range(6): write_video(root/f'v{i}.mp4', numbered(20))
    return sorted(root.glob('*.mp4'))


@pytest.fixture
def dls(counted):
    "Four videos to train on and two held out, clips of 4 frames, without labels"
    return video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2)
