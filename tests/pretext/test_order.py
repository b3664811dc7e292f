"Clip order prediction: clips and labels as in the reference, the loss by hand."
import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch
from pretraining import Pixels, nll, random_clips, read_frames

from sdfast.data.video import VideoError
from sdfast.errors import InputError
from sdfast.pretext.loaders import video_dls
from sdfast.pretext.order import ClipOrder, order_label


@pytest.mark.parametrize('clips', [2, 3])
def test_labels_are_lexicographic(clips):
    assert [order_label(p) for p in sorted(permutations(range(clips)))] == list(range(math.factorial(clips)))


def test_labels_by_hand(): assert [order_label(p) for p in ((0, 1, 2), (0, 2, 1), (2, 1, 0))] == [0, 1, 5]


def order_of(label): return list(permutations(range(3)))[label]


def test_clips_lie_as_in_the_reference():
    "Three clips of 16 with gaps of 8 take 64 frames; a shorter video is skipped"
    m, rnd = ClipOrder(), random.Random(0)
    idx, label = m.sample(64, 16, 1, rnd)
    assert [c.tolist() for c in idx] == [list(range(24*i, 24*i + 16)) for i in order_of(label)]
    with pytest.raises(VideoError, match='take 64'): m.sample(63, 16, 1, rnd)


def test_starts_and_orders_are_uniform():
    m, rnd = ClipOrder(), random.Random(0)
    drawn = [m.sample(70, 16, 1, rnd) for _ in range(6000)]
    labels = np.bincount([y for _, y in drawn])
    starts = np.bincount([i.min() for i, _ in drawn])
    assert np.abs(labels/6000 - 1/6).max() < .02
    assert len(starts) == 7
    assert np.abs(starts/6000 - 1/7).max() < .02


def test_gaps_grow_with_the_stride():
    idx, label = ClipOrder().sample(200, 4, 2, random.Random(0))
    in_order = idx[np.argsort(order_of(label))]
    assert (np.diff(in_order, axis=1) == 2).all()
    assert (in_order[1:, 0] - in_order[:-1, 0] == 24).all()


def test_the_label_says_where_the_clips_are(counted):
    dls = video_dls(counted[:4], counted[4:], frames=3, size=24, bs=2)
    m = ClipOrder(gap=2)
    for dl in (dls.train, dls.valid):
        for x, y in m.loader(dl):
            for clips, label in zip(read_frames(dl, x), y):
                starts = clips[:, 0]
                assert order_label(starts.argsort().argsort().tolist()) == label
                assert (clips.diff(dim=1) == 1).all()
                assert (starts.sort().values.diff() == 5).all()


def test_the_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    m = ClipOrder(hidden=5)
    net, x, y = m.build(Pixels()).eval(), random_clips(k=3, t=4), torch.tensor([0, 5, 3, 1])
    with torch.no_grad():
        loss = m.loss(net(x), y)
        f = [net.encoder(x[:, i]).numpy() for i in range(3)]
    def layer(module, f): return f @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    pairs = [np.concatenate([f[i], f[j]], 1) for i, j in ((0, 1), (0, 2), (1, 2))]
    h = np.concatenate([np.maximum(layer(net.heads.pair, p), 0) for p in pairs], 1)
    assert loss.item() == pytest.approx(nll(layer(net.heads.out, h), y.tolist()), rel=1e-5)


def test_dropout_in_training():
    net, f = ClipOrder(hidden=5).build(Pixels()).train(), torch.ones(1, 3, 24)
    assert not torch.equal(net.heads(f), net.heads(f))


def test_order_is_guarded_against_edges_and_places():
    "Gaps, and separate crops: see test_training_crops_are_drawn_for_each_clip_and_validation_crops_are_central"
    assert ClipOrder().gap == 8
    assert ClipOrder().zoom > 1
    assert not ClipOrder().flip
    with pytest.raises(InputError, match='between 2 and 5'): ClipOrder(clips=6)
