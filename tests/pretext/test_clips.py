"Clips and labels made from whole videos: drawn in training, fixed otherwise."
import random

import torch
from pretraining import place_video

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoFile
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.pace import Pace


def test_validation_clips_are_the_same_each_time_and_training_clips_are_not(dls):
    def read(pace, dl): return [(x.clone(), y.clone()) for x, y in pace.loader(dl)]
    def equal(a, b): return all(torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b))
    pace = Pace(paces=(1, 2, 3))
    assert pace.loader(dls.valid) is pace.loader(dls.valid)
    first = read(pace, dls.valid)
    random.seed(9)
    assert equal(first, read(pace, dls.valid))
    assert equal(first, read(Pace(paces=(1, 2, 3)), dls.valid))
    assert not equal(read(pace, dls.train), read(pace, dls.train))


def test_training_crops_are_drawn_for_each_clip_and_validation_crops_are_central(counted, monkeypatch):
    class Two(Pace):
        def sample(self, n, frames, stride, rnd): return [[0, 1], [0, 1]], 0
    place_video(monkeypatch, 20, 28)
    clips = PretextClips(Two(), SampleClips(2, size=24))
    clips.cache, clips.crop.flip = True, False
    def columns(split):
        "Left column of each of the clips, the same in all frames"
        v = clips((VideoFile(counted[0]),), split_idx=split)[0].as_subclass(torch.Tensor)[:, :, 2]
        assert torch.equal(v[:, 0], v[:, 1])
        return v[:, 0, 0, 0].tolist()
    drawn = [columns(0) for _ in range(30)]
    assert {column for pair in drawn for column in pair} == set(range(5))
    assert any(a != b for a, b in drawn)
    assert columns(1) == [2, 2]
