"Which frames a clip has, and which part of the picture."
import collections
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from helpers import numbered
from hypothesis import given
from hypothesis import strategies as st

from sdfast.data.clips import SampleClips, clip_indices
from sdfast.data.video import VideoFile
from sdfast.errors import InputError

VIDEO_AND_CLIP = dict(n=st.integers(1, 200), frames=st.integers(1, 32), stride=st.integers(1, 8))


def test_ten_even_clips_of_the_reference_protocol():
    # numeric fixture of RSPNet: 29 frames, clips of 16
    assert [int(clip_indices(29, 16, at=a)[0]) for a in np.linspace(0, 1, 10)] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert clip_indices(29, 16)[0] == 6


@given(n=st.integers(1, 300), frames=st.integers(1, 32), stride=st.integers(1, 8), at=st.floats(0, 1))
def test_clip_indices_stay_inside_and_keep_their_stride(n, frames, stride, at):
    i = clip_indices(n, frames, stride, at)
    assert len(i) == frames
    assert i.min() >= 0
    assert i.max() < n
    if n > (frames - 1)*stride: assert (np.diff(i) == stride).all()
    else:
        assert i[0] == 0
        assert i[-1] == n - 1
        assert (np.diff(i) >= 0).all()
    if at == 1 and n > (frames - 1)*stride: assert i[-1] == n - 1


@given(**VIDEO_AND_CLIP, at=st.floats(0, 1), wrap=st.booleans())
def test_clip_indices_equal_a_plain_reference(n, frames, stride, at, wrap):
    """Frame by frame and in fractions: the start is `at` of the room, rounded to the nearest frame.

    Halves are rounded to even, but that of the middle down."""
    span = 1 + stride*(frames - 1)
    if n >= span or not wrap:
        start = math.floor(Fraction(max(0, n - span))/2) if at == .5 else round(Fraction(at*max(0, n - span)))
        want = []
        for i in range(frames): want.append(start + stride*i if start + stride*i < n else n - 1)
    elif n <= frames: want = [next(itertools.islice(itertools.cycle(range(n)), i, None)) for i in range(frames)]
    else: want = None  # see below
    got = clip_indices(n, frames, stride, at, wrap)
    assert len(got) == frames
    assert got.dtype.kind == 'i'
    assert got.min() >= 0
    assert got.max() < n
    if want: assert [int(i) for i in got] == want
    else:  # the nearest frames; RSPNet's np.linspace falls on either side of a half
        exact = [Fraction(i*(n - 1), frames - 1) for i in range(frames)]
        assert all(abs(int(i) - e) <= Fraction(1, 2) for i, e in zip(got, exact))
    if n >= frames or not wrap: assert (np.diff(got) >= 0).all()


@given(**VIDEO_AND_CLIP, k=st.integers(1, 12), wrap=st.booleans())
def test_places_of_several_clips_reach_from_end_to_end(n, frames, stride, k, wrap):
    places = _places(SampleClips(frames, stride, 8, k=k, wrap=wrap), n, train=False)
    starts = [int(clip_indices(n, frames, stride, at, wrap)[0]) for at in places]
    room = max(0, n - 1 - stride*(frames - 1))
    assert len(starts) == k
    assert starts == sorted(starts)
    if k == 1: assert starts == [room//2]
    else: assert all(abs(s - room*i/(k - 1)) <= .5 + 1e-9 for i, s in enumerate(starts))


def _places(clip, n, train):
    clip.train = train
    return clip._places(n)


@given(n=st.integers(1, 120), frames=st.integers(1, 32), stride=st.integers(1, 8), fine=st.integers(1, 5))
def test_every_training_start_is_as_likely_as_any_other(n, frames, stride, fine):
    """Draws of `random.random` on an even grid fall on each start equally often.

    The smallest and the largest draw fall on the first and the last start."""
    room, clip = max(0, n - 1 - stride*(frames - 1)), SampleClips(frames, stride, 8)
    def start(draw):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(random, 'random', lambda: draw)
            return int(clip_indices(n, frames, stride, *_places(clip, n, train=True))[0])
    grid = (room + 1)*fine
    assert collections.Counter(start((i + .5)/grid) for i in range(grid)) == {s:fine for s in range(room + 1)}
    assert start(0.) == 0
    assert start(np.nextafter(1., 0)) == room


def sample(path, split_idx, **kwargs):
    t = SampleClips(**kwargs)
    return t(VideoFile(path), split_idx=split_idx)


def test_training_clips_are_random_others_are_not(write, tmp_path):
    write(tmp_path/'x.mp4', numbered(40))
    path = tmp_path/'x.mp4'
    first = lambda split: round(sample(path, split, frames=4, stride=2, size=32)[0].float().mean().item()/6)
    random.seed(0)
    starts = {first(0) for _ in range(60)}
    assert min(starts) <= 3
    assert max(starts) >= 30
    assert len(starts) > 15
    assert {first(1) for _ in range(3)} == {16}  # (40 - 7)/2, the middle
    x = sample(path, 1, frames=4, stride=2, size=32, k=3)
    assert x.shape == (3, 4, 3, 32, 32)
    assert (x.float().mean((2, 3, 4))/6).round().int().tolist() == [[0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39]]


def test_short_video_repeats_its_last_frame(write, tmp_path):
    write(tmp_path/'x.mp4', numbered(3))
    x = sample(tmp_path/'x.mp4', 1, frames=8, size=32)
    assert (x.float().mean((1, 2, 3))/6).round().int().tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize('cache', [False, True])
def test_short_side_is_scaled_then_cropped(write, tmp_path, cache):
    x = np.zeros((4, 60, 120), np.uint8)
    x[:, :, 60:] = 200  # right half bright
    write(tmp_path/'x.mp4', x)
    v = sample(tmp_path/'x.mp4', 1, frames=2, size=30, cache=cache)
    assert v.shape == (2, 3, 30, 30)
    columns = v[0, 0].float().mean(0)
    assert columns[:13].max() < 20
    assert columns[17:].min() > 180  # the centre, neither squeezed nor shifted
    random.seed(0)
    drawn = [sample(tmp_path/'x.mp4', 0, frames=2, size=30, cache=cache) for _ in range(40)]
    means = {round(clip.float().mean().item()/40) for clip in drawn}
    assert means >= {0, 5}  # training crops reach both ends


@pytest.mark.parametrize('bad', [dict(frames=0), dict(stride=0), dict(size=0), dict(k=0)])
def test_nonsense_sizes_are_refused(bad):
    with pytest.raises(InputError, match='at least 1'): SampleClips(**bad)
