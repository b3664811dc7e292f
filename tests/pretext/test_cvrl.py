"CVRL: clips as in the reference, NT-Xent by hand, crops and colours."
import math
import random

import numpy as np
import pytest
import torch
from pretraining import Pixels, random_clips
from torch import nn

from sdfast.data import clips as clips_module
from sdfast.data.clips import SampleClips
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.cvrl import CVRL, draw_gap, nt_xent_logits


def test_close_clips_are_likelier_as_in_the_reference():
    "P(gap <= d) = 2d/m - d²/m²; with m = 100, P(gap <= 50) = .75; whole frames are rounded down"
    rnd = random.Random(0)
    drawn = np.array([draw_gap(rnd.random(), 100) for _ in range(40000)])
    for d in (10, 50, 80): assert abs((drawn < d).mean() - (2*d/100 - d**2/1e4)) < .01
    assert drawn.min() == 0
    assert drawn.max() < 100
    assert draw_gap(1 - 1e-16, 7) == 6


def test_clips_lie_as_in_the_reference():
    m, rnd = CVRL(), random.Random(0)
    drawn = np.array([m.sample(40, 16, 2, rnd)[0] for _ in range(4000)])
    assert drawn.shape == (4000, 2, 16)
    assert (np.diff(drawn, axis=2) == 2).all()
    assert drawn.min() == 0
    assert drawn.max() == 39
    a, b = drawn[..., 0].T
    assert abs((a < b).mean() - (a > b).mean()) < .05
    assert set(np.abs(a - b)) == set(range(10))
    near = np.abs(a - b) == 3  # all starts of a gap are equally likely
    assert np.abs(np.bincount(np.minimum(a, b)[near], minlength=7)/near.sum() - 1/7).max() < .05


def test_clips_of_short_videos_wrap_and_start_anywhere():
    m, rnd = CVRL(), random.Random(0)
    clips = [c for _ in range(300) for c in m.sample(29, 16, 2, rnd)[0]]
    assert all((np.diff(c) % 29 == 2).all() for c in clips)
    assert {c[0] for c in clips} == set(range(29))


def test_nt_xent_equals_an_independent_computation():
    torch.manual_seed(0)
    m = CVRL(hidden=6, dim=5)
    net, x = m.build(Pixels()).eval(), random_clips(b=5, t=4)
    pred = net(x)
    loss = m.loss(pred, torch.zeros(5))
    with torch.no_grad(): z = [net.heads(net.encoder(x[:, i])).numpy().astype(float) for i in range(2)]
    z = [v/np.linalg.norm(v, axis=1, keepdims=True) for v in z]
    total = 0.
    for one, two in (z, z[::-1]):
        for i in range(5):
            own = math.exp(one[i] @ two[i]/.1)
            others = [math.exp(one[i] @ two[j]/.1) + math.exp(one[i] @ one[j]/.1) for j in range(5) if j != i]
            total -= math.log(own/(own + sum(others)))/5
    assert loss.item() == pytest.approx(total, rel=1e-4)
    closer = [z[0][i] @ z[1][i] > z[0][i] @ z[1][(i + 1) % 5] for i in range(5)]
    assert m.scores(pred, None)['pair_acc'].tolist() == closer
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_logits_of_a_part_are_rows_of_those_of_all():
    a, b = (nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    assert torch.allclose(nt_xent_logits(a[2:4], b, a, 2), nt_xent_logits(a, b, a, 0)[2:4])


def test_the_head():
    head = CVRL().heads(7)
    assert [type(m).__name__ for m in head] == ['Linear', 'BatchNorm1d', 'ReLU']*3 + ['Linear']
    hidden = 7*2048 + 2*2048**2 + 3*2*2048
    assert sum(p.numel() for p in head.parameters()) == hidden + 2048*128 + 128


def test_colours_follow_the_reference():
    jitter, blur, solarise = tfms = CVRL().batch_tfms
    assert [type(t).__name__ for t in tfms] == ['ColourJitter', 'Blur', 'Solarise']
    assert sorted(tfms, key=lambda t: t.order) == list(tfms)
    assert jitter.factors == (.8, .8, .8)
    assert (jitter.hue, jitter.p, jitter.grey, jitter.each_frame) == (.2, .8, .2, False)
    assert blur.p == (1., .1)
    assert solarise.p == (0., .2)


def test_crops_follow_the_reference(monkeypatch):
    m, seen = CVRL(), []
    assert (m.area, m.aspect, m.flip) == ((.3, 1.), (.5, 2.), True)
    def get_params(v, area, aspect):
        seen.append((area, aspect))
        return 0, 0, 10, 10
    monkeypatch.setattr(clips_module.RandomResizedCrop, 'get_params', get_params)
    read = PretextClips(m, SampleClips(2, 1, 10))
    read.crop.train = True
    read.crop.crop_frames(torch.zeros(2, 3, 20, 20))
    assert seen == [((.3, 1.), (.5, 2.))]
