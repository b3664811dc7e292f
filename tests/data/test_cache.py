"Videos that are kept decoded give the clips that a file gives; large ones are not kept."
import random

import numpy as np
import torch

from sdfast.data import cache as cache_module
from sdfast.data.cache import cached_frames, decode_whole
from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoFile


def test_cached_and_uncached_clips_are_equal(shared):
    path = shared/'real/fights2/fight/fi005.mp4'
    for split in (0, 1):
        found = []
        for cache in (False, True):
            random.seed(3)
            found.append(SampleClips(4, 3, 48, cache=cache)(VideoFile(path), split_idx=split))
        assert torch.equal(*found)


def test_frames_come_from_the_function_that_has_them(write, tmp_path):
    write(tmp_path/'x.mp4', np.zeros((3, 32, 32), np.uint8))
    video, own = VideoFile(tmp_path/'x.mp4'), torch.ones(3, 3, 16, 16)
    assert cached_frames(video, 16, False) is None
    assert cached_frames(video, 16, lambda path, size: own if (path, size) == (str(video), 16) else None) is own
    assert cached_frames(video, 16, lambda path, size: None) is decode_whole(str(video), 16)
    assert cached_frames(video, 16, True) is decode_whole(str(video), 16)


def test_long_videos_are_not_kept_decoded(write, tmp_path, monkeypatch):
    write(tmp_path/'x.mp4', np.zeros((12, 32, 32), np.uint8))
    kept = []
    def decode(path, side):
        kept.append(path)
        return VideoFile(path).read(np.arange(12), side)
    monkeypatch.setattr(cache_module, 'decode_whole', decode)
    clip = SampleClips(4, 1, 32, cache=True)
    a = clip(VideoFile(tmp_path/'x.mp4'), split_idx=1)
    assert len(kept) == 1
    monkeypatch.setattr(cache_module, 'MAX_VIDEO_BYTES', 12*32*32*3 - 1)
    assert torch.equal(clip(VideoFile(tmp_path/'x.mp4'), split_idx=1), a)
    assert len(kept) == 1


def test_the_decoded_videos_of_a_process_are_bounded(write, tmp_path, monkeypatch):
    "Those that are kept stay, so that a loader does not decode whole videos again and again"
    videos = [VideoFile(tmp_path/f'{i}.mp4') for i in range(3)]
    for video in videos: write(video, np.zeros((3, 32, 32), np.uint8))
    cache_module.decoded_videos.clear()
    monkeypatch.setattr(cache_module, '_n_bytes', 0)
    monkeypatch.setattr(cache_module, 'MAX_PROCESS_BYTES', 2*3*3*32*32)
    found = [cached_frames(video, 32, True) for video in [*videos, *videos]]
    assert [frames is not None for frames in found] == [True, True, False]*2
    assert found[0] is found[3]
    clips = [SampleClips(2, 1, 32, cache=cache)(videos[2], split_idx=1) for cache in (True, False)]
    assert torch.equal(*clips)
