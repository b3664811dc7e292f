"Videos that are kept decoded give the clips that a file gives; large ones are not kept."
import random

import numpy as np
import pandas as pd
import pytest
import torch

from sdfast.data import cache as cache_module
from sdfast.data import decoded as decoded_module
from sdfast.data.cache import MemoryBudget, cached_frames, decode_whole, decoded_videos
from sdfast.data.clips import SampleClips
from sdfast.data.task import make_task
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
    monkeypatch.setattr(cache_module, 'process_budget', MemoryBudget(2*3*3*32*32))
    with pytest.warns(UserWarning, match='clip by clip'):
        found = [cached_frames(video, 32, True) for video in [*videos, *videos]]
    assert [frames is not None for frames in found] == [True, True, False]*2
    assert found[0] is found[3]
    clips = [SampleClips(2, 1, 32, cache=cache)(videos[2], split_idx=1) for cache in (True, False)]
    assert torch.equal(*clips)


def test_what_a_task_keeps_is_counted(write, tmp_path, monkeypatch):
    "Lengths differ, so a sample of videos says little; the batches are those of clips that are decoded one by one"
    rows = []
    for i in range(40):
        write(tmp_path/f'{i}.mp4', np.random.default_rng(i).integers(0, 255, (3 if i % 10 else 60, 32, 32), np.uint8))
        rows.append((str(tmp_path/f'{i}.mp4'), 'ab'[i % 2], ('train', 'test')[i % 4 > 1], str(i)))
    task = make_task('x', pd.DataFrame(rows, columns=['path', 'label', 'split', 'group']))
    limit = 3*32*32*150
    monkeypatch.setattr(decoded_module, 'MemoryBudget', lambda: MemoryBudget(limit))
    decoded_videos.clear()
    dls, plain = (task.dls(frames=2, size=32, bs=4, train_only=True, workers=w) for w in (0, 1))
    with pytest.warns(UserWarning, match='decoded videos fill') as caught:
        for _ in range(2): found = [x for x, _ in task.dl(dls, 'train', 'test')]
    assert sum('decoded videos fill' in str(w.message) for w in caught) == 1
    kept = sum(frames.nbytes for (path, _), frames in decoded_videos.items() if path.startswith(str(tmp_path)))
    assert limit - 3*32*32*60 < kept <= limit
    assert all(torch.equal(x, y) for x, (y, _) in zip(found, task.dl(plain, 'train', 'test')))
