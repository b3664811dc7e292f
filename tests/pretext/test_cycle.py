"TimeCycle: the reference's numbers, its parts by hand, clips, and where patches are cut."
from math import atan2, cos, pi, sin
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretraining import OneConv, fill, tiny, waves

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.cycle import TimeCycle, affinity, cut_patch, inliers, moving_place, patch_places, place_distance

PLACES = torch.tensor([[.2, -.3, .4], [-.5, .1, -.6]])


def test_losses_and_gradients_are_those_of_the_reference():
    """xiaolonw/TimeCycle (16d33ac) on the same clips and weights, with this convolution as its encoder, maps of 9x9 and
    3x3, 1x1 convolutions in place of 4x4, and without the factor 227/210 on translations when maps are cut: distances
    after cycles of 1, 2 and 3 steps, of the direct ways, negative inliers, their weighted sum, the gradient's norm.

    With its own sizes (30x30, 10x10, 512 channels), in training mode and float64, the loss differed by 3e-14 and
    gradients by 6e-11 of their norm. With the factor, .00031 of .031 are different."""
    method = TimeCycle(steps=3, ahead=1, dim=8, temperature=.2, layer='conv', sizes=(5, 9, 3))
    net = fill(method.build(OneConv(5, (1, 4, 4), (1, 4, 4))))
    fill(net.heads.place, 1.)
    place = patch_places(PLACES)
    pred = net(waves(2, 4, 1, 3, 36, 36), place)
    loss = method.loss(pred, None)
    loss.backward()
    def distance(ends): return place_distance(ends, place[:, None]).mean(0)
    assert distance(pred[0]).tolist() == pytest.approx([.51754159, .51598054, .51300359], rel=1e-5)
    assert distance(pred[1]).mean().item() == pytest.approx(.5174216, rel=1e-5)
    assert pred[2].mean().item() == pytest.approx(.01334775, rel=1e-5)
    assert loss.item() == pytest.approx(.048704583, rel=1e-5)
    assert net.encoder.conv.weight.grad.norm().item() == pytest.approx(.11661032, rel=1e-4)


# ---- parts

def test_places_are_a_turned_third_of_the_frame():
    (a, b, x), (c, d, y) = patch_places(PLACES)[0].tolist()
    assert (x, y) == pytest.approx((.2, -.3))
    assert (a, b, c, d) == pytest.approx((cos(.4)/3, -sin(.4)/3, sin(.4)/3, cos(.4)/3))


def test_a_patch_is_cut_where_it_says():
    "Of a ramp, the value at a place is its coordinate"
    at = torch.linspace(-1, 1, 31)
    ramp = torch.stack(torch.meshgrid(at, at, indexing='xy'))[None].expand(2, -1, -1, -1)
    places = patch_places(PLACES)
    found = cut_patch(ramp, places, 5)
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing='xy')).flatten(1)
    expected = (places[:, :, :2] @ grid + places[:, :, 2:]).unflatten(2, (5, 5))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_affinity_by_loops():
    patch, frame = F.normalize(waves(1, 4, 2, 2), dim=1), F.normalize(waves(1, 4, 3, 3).flip(1), dim=1)
    found = affinity(patch, frame, .3)
    for y in range(2):
        for x in range(2):
            e = np.exp([patch[0, :, y, x] @ frame[0, :, i//3, i % 3]/.3 for i in range(9)])
            assert found[0, :, y, x].tolist() == pytest.approx((e/e.sum()).tolist(), rel=1e-5)


def test_inliers_by_a_mask_as_in_the_reference():
    "The reference warps a mask for each place of the frame; here by loops over places and pixels"
    found, places = waves(2, 25, 3, 3).softmax(1), patch_places(torch.tensor([[.1, .2, .3], [.8, -.9, 0.]]))
    for n in range(2):
        top = bottom = 0.
        for v, y in enumerate((-1, 0, 1)):
            for u, x in enumerate((-1, 0, 1)):
                px, py = ((places[n] @ torch.tensor([x, y, 1.])) + 1).mul(2).tolist()  # in pixels of 5x5
                for i in range(25):
                    weight = max(0, 1 - abs(px - i % 5))*max(0, 1 - abs(py - i//5))
                    top += weight*found[n, i, v, u].item()
                    bottom += weight + 1e-5
        assert inliers(found, places)[n].item() == pytest.approx(top/bottom, rel=1e-4)


def test_distances_of_places_by_points():
    a, b = patch_places(PLACES)
    at = torch.linspace(-1, 1, 20)
    points = torch.stack([*torch.meshgrid(at, at, indexing='ij'), torch.ones(20, 20)]).flatten(1)
    expected = ((a - b) @ points).square().sum(0).mean()
    assert place_distance(a, b).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_compare_with_the_place_of_another_video():
    places = patch_places(torch.tensor([[-.5, 0., 0.], [.5, 0., 0.]]))
    right, wrong = places[:1], places[1:]
    cycles = torch.stack([torch.cat([wrong, right]), torch.cat([right, right])])
    skips = torch.stack([torch.cat([right, right, wrong]), torch.cat([wrong, right, right])])
    scores = TimeCycle().scores((cycles, skips, None, places), None)
    assert scores['cycle_acc'].tolist() == [1, 0]
    assert scores['skip_acc'].tolist() == [1, 0]
    middle = patch_places(torch.zeros(2, 1, 3))
    assert TimeCycle().scores((middle, middle, None, places), None)['cycle_acc'].tolist() == [.5, .5]


# ---- clips

def test_the_patch_is_cut_where_most_changes():
    "A square of 8 pixels that appears in a frame of 72 (parts of 24 pixels, a third apart)"
    rnd, later = Random(0), torch.zeros(1, 3, 72, 72)
    later[:, :, 36:44, 12:20] = 255
    centres = []
    for _ in range(100):
        place = moving_place(torch.zeros(1, 3, 72, 72), later, rnd)
        assert abs(atan2(place[1, 0], place[0, 0])) <= pi/4
        centres.append(place[:, 2].tolist())
    x, y = np.array(centres).T
    inside = (np.abs(x - (16/36 - 1)) < .45) & (np.abs(y - (40/36 - 1)) < .45)
    assert inside.mean() > .8  # nine or ten parts have a part of the square
    assert len(set(x)) > 50
    assert np.abs(x).max() <= 2/3 + 1e-6


@pytest.fixture
def read(monkeypatch):
    "Reads clips of a video of `n` frames whose red is the number of the frame"
    def make(n, frames=1, stride=2, **options):
        monkeypatch.setattr(VideoFile, 'index', type('Index', (), dict(n=n)))
        monkeypatch.setattr('sdfast.pretext.clips.cached_frames', lambda video, side, cache: None)
        def fake(self, idx, size=None):
            return torch.as_tensor(list(idx)).to(torch.uint8)[:, None, None, None].expand(-1, 3, 30, 30)
        monkeypatch.setattr(VideoFile, 'read', fake)
        clips = PretextClips(TimeCycle(**options), SampleClips(frames, stride, 24))
        clips.crop.train = True
        def draw(rnd):
            x, place, _ = clips.method.item(clips, VideoFile('v.mp4'), rnd)
            return x.as_subclass(torch.Tensor)[:, :, 0, 0, 0].tolist(), place
        return draw
    return make


def test_frames_lie_as_in_the_reference(read):
    "Four frames, each second, and one that starts (4 + 4)*2 - 1 = 15 frames after the first"
    draw, rnd = read(20), Random(0)
    found = [draw(rnd)[0] for _ in range(60)]
    first = {clip[0][0] for clip in found}
    assert first == {0, 1, 2, 3, 4}
    for clip in found: assert [c[0] - clip[0][0] for c in clip] == [0, 2, 4, 6, 15]


def test_steps_of_several_frames_do_not_overlap(read):
    x, place = read(16, frames=2, stride=1, steps=3, ahead=1)(Random(1))
    assert [b - a for a, b in x] == [1]*4
    assert [c[0] - x[0][0] for c in x] == [0, 2, 4, 7]
    assert place.shape == (2, 3)


def test_short_videos_are_skipped(read):
    with pytest.raises(VideoError, match='take 16'): read(15)(Random(0))


# ---- sizes

def test_sizes_are_those_of_the_encoders_maps():
    method = TimeCycle()
    method.measure(tiny(), torch.zeros(1, 1, 3, 72, 72))
    assert (method.layer, method.sizes) == ('body.3', (24, 9, 3))
    tracker = method.heads(24)
    assert tracker.place.in_features == 64*9
    reference = TimeCycle(layer='x', sizes=(1024, 30, 10)).heads(1024)
    assert [reference.read[i].kernel_size for i in (0, 2)] == [(4, 4)]*2
    assert reference.place.in_features == 64*4*4


@pytest.mark.parametrize('options', [dict(steps=0), dict(ahead=0), dict(skip=-1.), dict(temperature=0.)])
def test_what_it_refuses(options):
    with pytest.raises(InputError, match='steps, ahead and dim must be at least 1'): TimeCycle(**options)


def test_heads_without_sizes_are_refused():
    with pytest.raises(InputError, match='pass its name and sizes'): TimeCycle().build(tiny())
