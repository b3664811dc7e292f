"Pace prediction: frames and labels as in the reference, and no shortcut to the label."
import random

import numpy as np
import pytest
import torch
from pretraining import quiet, read_frames, tiny

from sdfast.errors import InputError
from sdfast.pretext.loaders import video_dls
from sdfast.pretext.pace import Pace, pace_indices


@pytest.mark.parametrize('n,frames,pace,start', [(29, 16, 2, 20), (10, 16, 4, 9), (175, 16, 1, 174), (3, 5, 4, 1)])
def test_indices_follow_the_reference(n, frames, pace, start):
    "Counted from 1 as there: append, step, and back to frame 1 when the number exceeds the length"
    reference, i = [], start + 1
    while len(reference) < frames:
        if i > n: i = 1
        reference.append(i - 1)
        i += pace
    assert pace_indices(n, frames, pace, start) == reference


def test_indices_by_hand():
    assert pace_indices(29, 16, 2, 20) == [20, 22, 24, 26, 28, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def test_paces_and_starts_are_uniform():
    rnd, pace = random.Random(0), Pace()
    drawn = [pace.sample(50, 16, 1, rnd) for _ in range(8000)]
    labels = np.bincount([y for _, y in drawn])/8000
    starts = np.bincount([i[0][0] for i, _ in drawn], minlength=50)/8000
    assert np.abs(labels - .25).max() < .02
    assert np.abs(starts - .02).max() < .008


@pytest.mark.parametrize('restart', [True, False])
def test_the_label_is_the_pace_of_the_frames(counted, restart):
    dls = video_dls(counted[:4], counted[4:], frames=5, size=24, bs=2)
    pace, seen = Pace(restart=restart, jitter=(0, 0, 0, 0)), set()
    for _ in range(12):
        for x, y in pace.loader(dls.train):
            for numbers, label in zip(read_frames(dls.train, x)[:, 0], y.tolist()):
                seen.add(label)
                assert numbers.tolist() == pace_indices(20, 5, label + 1, int(numbers[0]))
                assert restart or (numbers.diff() == label + 1).all()
    assert seen == {0, 1, 2, 3}


def test_videos_too_short_for_the_fastest_pace_are_skipped(counted):
    "Without a restart every clip that is cut would be a fast one; with clips that are too long no video is left"
    dls = video_dls(counted, counted, frames=8, size=24, bs=2)
    method = Pace(paces=(1, 2, 3), restart=False)
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 22'):
        quiet(dls, tiny(), method).fit(1)
    method.build(tiny())
    with pytest.raises(InputError, match='no held-out video'), pytest.warns(UserWarning):
        method.held_out(dls.valid)(tiny())


def test_jitter_of_frames_hides_the_pace_that_brightness_would_reveal(counted):
    "The videos grow brighter: the slope of a clip's brightness is its pace, unless frames are jittered one by one"
    dls = video_dls(counted, counted[:1], frames=4, size=24, bs=6)
    def separation(jitter):
        "Share of pairs of a fast and a slow clip of which the fast one has the larger slope"
        pace, slopes, labels = Pace(paces=(1, 3), restart=False, jitter=jitter), [], []
        for _ in range(20):
            for x, y in pace.loader(dls.train):
                pixels = dls.train.after_batch.decode((x,))[0].as_subclass(torch.Tensor).float()
                level = pixels.mean((-3, -2, -1))[:, 0]
                slopes += (level[:, -1] - level[:, 0]).tolist()
                labels += y.tolist()
        slopes, fast = np.array(slopes), np.array(labels) == 1
        return (slopes[fast][:, None] > slopes[~fast]).mean()
    assert separation((0, 0, 0, 0)) == 1
    assert separation(Pace().jitter) < .85
