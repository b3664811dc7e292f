"Cubic puzzles: where pieces are, the loss by hand, no shortcut to the order."
import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from pretraining import Pixels, as_named, nll, place_video, quiet, random_clips, tiny

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoFile, VideoIndex
from sdfast.errors import InputError
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.loaders import video_dls
from sdfast.pretext.puzzle import CubicPuzzle, puzzle_cells


def test_cells_by_hand():
    assert puzzle_cells(True, 2) == [(2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]
    assert puzzle_cells(False, 1) == [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1)]


@pytest.mark.parametrize('rotation', [.5, 0])
def test_the_loss_equals_an_independent_computation(rotation):
    torch.manual_seed(0)
    m = CubicPuzzle(hidden=5, rotation=rotation)
    net, x = m.build(Pixels()), random_clips(k=4, t=4)
    y, turned = torch.tensor([0, 23, 7, 1]), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        loss, found = m.loss(net(x), y, turned), m.scores(net(x), y, turned)
        f = np.concatenate([net.encoder(x[:, i]).numpy() for i in range(4)], 1)
    def layer(module, f): return f @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    h = np.maximum(layer(net.heads.hidden, f), 0)
    by_hand = nll(layer(net.heads.order, h), y.tolist())
    if rotation: by_hand += rotation*nll(layer(net.heads.rotated, h), turned.tolist())
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    names = ['puzzle_acc', 'rotation_acc'] if rotation else ['puzzle_acc']
    assert list(found) == list(m.score_names) == list(m.chances) == names
    assert found['puzzle_acc'].tolist() == (layer(net.heads.order, h).argmax(1) == y.numpy()).tolist()
    assert m.chances['puzzle_acc'] == 1/24


def reader(method):
    "Clips of 2 frames of 10x10, from memory"
    def make(stride=1):
        read = PretextClips(method, SampleClips(2, stride, 10))
        read.cache = True
        return read
    return make


@pytest.mark.parametrize('split,stride', [(0, 1), (1, 1), (0, 2)])
def test_the_labels_say_where_the_pieces_were(counted, monkeypatch, split, stride):
    place_video(monkeypatch, 20*stride, 28, wide=6)
    monkeypatch.setattr(VideoIndex, 'n', property(lambda self: 20*stride))
    read = reader(CubicPuzzle(replicate=0, span=2))(stride)
    assert read.side == 28
    seen, gaps_in_time, gaps_in_rows = Counter(), set(), set()
    random.seed(0)
    for i in range(300):
        if split: as_named(monkeypatch, i)
        v, order, turned = read((VideoFile(counted[0]),), split_idx=split)
        assert v.shape == (4, 2, 3, 10, 10)
        v = (v.flip(-1, -2) if turned else v).as_subclass(torch.Tensor).long()
        frame, row, column = v.unbind(2)
        assert (frame[:, 1] - frame[:, 0] == stride).all()
        assert (row.diff(dim=-2) == 1).all()
        assert (column.diff(dim=-1) == 1).all()

        shown = list(permutations(range(4)))[order]
        place_of = [shown.index(cell) for cell in range(4)]
        t, y, x = (axis[place_of, 0, 0, 0] for axis in (frame, row, column))
        at_one_time = bool((t.max() - t.min()) <= 2*stride)  # within the time of one cell
        if at_one_time:  # no pixel is in two pieces
            assert y[0] <= 20
            assert x[1] - x[0] >= 10 and x[3] - x[2] >= 10
            assert y[2] - y[0] >= 10 and y[3] - y[1] >= 10
        else:
            assert (t.diff() >= 2*stride).all()
            assert y.max() - y.min() <= 4
            assert x.max() - x.min() <= 4
            gaps_in_time |= set(t.diff().tolist())
            gaps_in_rows |= set(y.diff().tolist())
        seen.update([f'at one time {at_one_time}', f'order {order}', f'turned {turned}'])
    assert 110 < seen['at one time True'] < 190
    assert 110 < seen['turned 1'] < 190
    assert sum(name.startswith('order') for name in seen) == 24
    # neither frames nor edges meet at a known place
    assert len(gaps_in_time) >= 4
    assert len(gaps_in_rows) >= 6


def is_grey(v): return bool((v[:, :, 0] == v[:, :, 1]).all() and (v[:, :, 0] == v[:, :, 2]).all())


def test_half_of_the_training_videos_show_one_channel(counted, monkeypatch):
    place_video(monkeypatch, 20, 28)
    read = reader(CubicPuzzle(span=2, rotation=0))()
    random.seed(0)
    drawn = [read((VideoFile(counted[0]),), split_idx=0) for _ in range(200)]
    assert not any(turned for *_, turned in drawn)
    grey = [v.as_subclass(torch.Tensor)[0, :, 0] for v, *_ in drawn if is_grey(v)]
    assert 70 < len(grey) < 130
    rises = {tuple(bool(v.diff(dim=d).any()) for d in (0, 1, 2)) for v in grey}
    assert rises == {(True, False, False), (False, True, False), (False, False, True)}  # each channel in turn


def test_validation_videos_keep_their_channels(counted, monkeypatch):
    place_video(monkeypatch, 20, 28)
    read = reader(CubicPuzzle(span=2, rotation=0))()
    for i in range(12):
        as_named(monkeypatch, i)
        assert not is_grey(read((VideoFile(counted[0]),), split_idx=1)[0])


def test_videos_too_short_are_skipped(counted):
    dls = video_dls(counted, counted, frames=3, size=24, bs=2)
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 24'):
        quiet(dls, tiny(), CubicPuzzle()).fit(1)


def test_what_it_refuses():
    with pytest.raises(InputError, match='at least 1'): CubicPuzzle(cell=.9)
