"Motion and appearance statistics: labels against independent computations, crops of clip and flow, the loss by hand."
import math
from collections import Counter

import numpy as np
import pytest
import torch
from pretraining import Pixels, place_video, random_clips

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoFile, VideoIndex
from sdfast.errors import InputError
from sdfast.pretext import statistics as statistics_module
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.statistics import MotionStatistics, appearance_labels, motion_labels, regions

# regions

def box(top, left, bottom, right): return {y*112 + x for y in range(top, bottom) for x in range(left, right)}


@pytest.fixture
def patterns():
    "Grid, rings and triangles of 112 pixels, as sets of pixels"
    return [[set(p.tolist()) for p in pattern] for pattern in regions(112)]


def test_the_grid_has_blocks_of_28_pixels(patterns):
    assert patterns[0] == [box(28*i, 28*j, 28*i + 28, 28*j + 28) for i in range(4) for j in range(4)]


def test_rings_are_differences_of_squares(patterns):
    squares = [box(k, k, 112 - k, 112 - k) for k in (42, 28, 14, 0)]
    assert patterns[1] == [squares[0], *(outer - inner for inner, outer in zip(squares, squares[1:]))]


def test_triangles_share_the_diagonals(patterns):
    triangles = patterns[2]
    assert len(triangles) == 8
    assert all(len(t) == 56*57/2 for t in triangles)
    inside = [(50, 5), (5, 50), (5, 60), (50, 107), (60, 5), (107, 50), (107, 60), (60, 107)]
    for k, (y, x) in enumerate(inside): assert [y*112 + x in t for t in triangles] == [i == k for i in range(8)]
    for y, x in ((0, 0), (111, 111), (0, 111), (111, 0)): assert sum(y*112 + x in t for t in triangles) == 2


def test_sides_are_multiples_of_8():
    with pytest.raises(InputError, match='multiple of 8'): regions(20)


# motion

def motion_by_hand(flow, side):
    "The labels from the reference's description, pixel by pixel"
    found, frames = {}, []
    for c in range(2):
        f = np.pad(flow[:, c], ((0, 0), (1, 1), (1, 1)), mode='symmetric')
        dx, dy = np.zeros((len(flow), side, side)), np.zeros((len(flow), side, side))
        for k in range(3):  # a convolution turns the kernels -1 0 1 by 180 degrees
            dx += f[:, k:k + side, :side] - f[:, k:k + side, 2:]
            dy += f[:, :side, k:k + side] - f[:, 2:, k:k + side]
        frames.append(1 + int(np.argmax([np.sqrt(dx[t]**2 + dy[t]**2).sum() for t in range(len(flow))])))
        dx, dy = dx.sum(0).ravel(), dy.sum(0).ravel()
        for i, pattern in enumerate(regions(side)):
            strength = [sum(math.hypot(dx[p], dy[p]) for p in part)/(len(part) if i == 1 else 1) for part in pattern]
            k, directions = strength.index(max(strength)), [0.]*8
            for p in pattern[k]:
                angle = math.degrees(math.atan2(dy[p], dx[p])) % 360
                low, share = int(angle//45), angle % 45/45
                directions[low] += math.hypot(dx[p], dy[p])*(1 - share)
                directions[(low + 1) % 8] += math.hypot(dx[p], dy[p])*share
            found[i, c] = k + 1, directions.index(max(directions)) + 1
    return [n for i in range(3) for c in range(2) for n in found[i, c]] + frames


@pytest.mark.parametrize('seed', range(3))
def test_motion_labels_equal_an_independent_computation(seed):
    rng = np.random.default_rng(seed)
    flow = rng.normal(size=(5, 2, 16, 16))
    flow[:, 0, 3:8, 9:12] += 2*rng.random()
    assert motion_labels(flow).tolist() == motion_by_hand(flow, 16)


def test_motion_labels_of_a_clip_without_motion():
    assert motion_labels(np.zeros((15, 2, 112, 112))).tolist() == [0, 0, 0, 0] + [1]*10  # as in the reference


def test_motion_labels_by_hand():
    flow = np.zeros((15, 2, 112, 112))
    flow[:, 0, 60:80, 100:110] = 3  # in the last block of the grid's third row, the outer ring, the last triangle
    flow[6, 1, 35:50, 35:50] = 1
    found = motion_labels(flow)
    assert found[[0, 4, 8]].tolist() == [12, 4, 8]
    assert found[12:].tolist() == [1, 7]


# appearance

def colour_by_hand(pixels):
    counts = Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    colour = min(counts, key=lambda c: (-counts[c], c[::-1]))
    names = ['001', '011', '101', '111', '000', '010', '100', '110']
    return 1 + names.index(''.join(str(int(v >= 128)) for v in colour))


def test_appearance_labels_equal_an_independent_computation():
    rng, side = np.random.default_rng(0), 16
    clip = rng.integers(0, 256, (4, side, side, 3))//86*86
    clip[1:, :4] = clip[:1, :4]  # stays
    clip = clip.astype(np.uint8)
    flat, by_hand = clip.reshape(4, -1, 3), []
    for pattern in regions(side):
        overlap = []
        for p in pattern:
            hists = [[np.histogram(flat[t, p, c], 256, (0, 256))[0] for t in range(4)] for c in range(3)]
            overlap.append(sum(np.min(h, 0).sum()/np.max(h, 0).sum() for h in hists)/3)
        for k in (overlap.index(min(overlap)), overlap.index(max(overlap))):
            by_hand += [k + 1, colour_by_hand(flat[:, pattern[k]])]
    found = appearance_labels(clip)
    assert found.tolist() == [*by_hand, colour_by_hand(clip)]
    assert len(found) == 13
    assert found[2] <= 4


COLOURS = [(0, 0, 255), (0, 128, 128), (128, 127, 255), (200, 200, 200), (127, 127, 127), (0, 255, 0), (255, 0, 0),
           (128, 128, 0)]


@pytest.mark.parametrize('code,rgb', enumerate(COLOURS))
def test_colours_are_numbered_as_in_the_reference(code, rgb):
    assert appearance_labels(np.full((2, 8, 8, 3), rgb, np.uint8))[[1, 3, 12]].tolist() == [code + 1]*3


# the method

def test_the_flow_of_the_clip_is_cropped_as_its_frames(counted, monkeypatch):
    place_video(monkeypatch, 20, 18, wide=6)
    monkeypatch.setattr(VideoIndex, 'n', property(lambda self: 20))
    t, r, c = torch.meshgrid(torch.arange(18), torch.arange(18), torch.arange(24), indexing='ij')
    flow = torch.stack([10*t + r, 3*c], 1).numpy().astype(np.uint8)
    seen = []
    def labels(flow):
        seen.append((flow + 20)*255/40)
        return np.zeros(14, np.float32)
    monkeypatch.setattr(statistics_module, 'optical_flow', lambda video, side, stride, folder: flow)
    monkeypatch.setattr(statistics_module, 'motion_labels', labels)
    read = PretextClips(MotionStatistics(), SampleClips(5, 2, 16))
    read.cache = True
    for split in (0, 1)*20:
        v, motion, appearance = read((VideoFile(counted[0]),), split_idx=split)
        frame, row, column = v[0, :, :, 0, 0].long().unbind(1)
        assert v.shape == (1, 5, 3, 16, 16)
        assert frame.diff().tolist() == [2]*4
        assert seen[-1].shape == (4, 2, 16, 16)
        np.testing.assert_allclose(seen[-1][:, 0, 0, 0], (10*frame + row)[:4], atol=1e-6)
        np.testing.assert_allclose(seen[-1][:, 1, 0, 0], (3*column)[:4], atol=1e-6)
    assert (int(row[0]), int(column[0])) == (1, 4)  # outside training the crop is central
    assert motion.shape == (14,)
    assert appearance.shape == (13,)


@pytest.fixture
def batch():
    "A method, its predictions for a batch, the same computed by hand, and labels"
    torch.manual_seed(0)
    m = MotionStatistics(motion=2., appearance=.1)
    net, x = m.build(Pixels()), random_clips(k=1, t=4)
    labels = torch.rand(4, 14)*16, torch.rand(4, 13)*8
    with torch.no_grad(): pred, f = net(x), net.encoder(x[:, 0]).numpy()
    by_hand = [f @ h.weight.detach().numpy().T + h.bias.detach().numpy() for h in net.heads]
    return m, pred, by_hand, labels


def test_the_loss_equals_an_independent_computation(batch):
    m, pred, (motion, appearance), labels = batch
    errors = np.mean((motion - labels[0].numpy())**2), np.mean((appearance - labels[1].numpy())**2)
    assert m.loss(pred, *labels).item() == pytest.approx(2*errors[0] + .1*errors[1], rel=1e-5)


def test_scores_equal_an_independent_computation(batch):
    m, pred, by_hand, labels = batch
    for score, p, y in zip(m.scores(pred, *labels).values(), by_hand, labels):
        def distance(i, j): return ((p[i] - y[j].numpy())**2).sum()
        assert score.tolist() == [float(distance(i, i) < distance(i, (i + 1) % 4)) for i in range(4)]


def test_scores_compare_with_the_next_video(batch):
    m, line = batch[0], torch.tensor([[0.], [1.], [3.]])
    pred = torch.tensor([[.6], [1.4], [2.]])
    assert m.scores((pred, pred), line, line)['motion_acc'].tolist() == [0., 1., 1.]


def test_a_single_video_has_nothing_to_compare_with(batch):
    m, pred, _, labels = batch
    one = m.scores((pred[0][:1], pred[1][:1]), labels[0][:1], labels[1][:1])
    assert one['motion_acc'].tolist() == [.5]


def test_what_it_refuses():
    with pytest.raises(InputError, match='one of them above 0'): MotionStatistics(0, 0)
