"Cubic puzzles, CVRL, IIC and MAS: losses against independent computations, clips and labels, shortcuts, checkpoints."
import math
import random
import sys
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from helpers import same, state
from scipy.ndimage import gaussian_filter
from test_pretext import counted, frames, quiet, tiny  # noqa: F401 (a fixture)
from test_pretext_methods import Pixels, clips
from torch import nn

from sdfast.data import cache as cache_module
from sdfast.data import clips as clips_module
from sdfast.data.clips import SampleClips, TensorVideo
from sdfast.data.digits import write_video
from sdfast.data.video import VideoFile, VideoIndex
from sdfast.errors import InputError
from sdfast.models.weights import load_encoder
from sdfast.pretext import (
    CVRL,
    METHODS,
    Blur,
    CubicPuzzle,
    InterIntra,
    MotionStatistics,
    PretextClips,
    Residual,
    Solarise,
    appearance_labels,
    draw_gap,
    motion_labels,
    nt_xent_logits,
    optical_flow,
    puzzle_cells,
    read_checkpoint,
    video_dls,
)
from sdfast.pretext import base as base_module
from sdfast.pretext import statistics as statistics_module
from sdfast.pretext.augment import blur
from sdfast.pretext.iic import disorder
from sdfast.pretext.statistics import regions

SMALL = dict(puzzle=dict(span=1, hidden=6), cvrl=dict(hidden=6, dim=4), iic=dict(negatives=5), mas={})


@pytest.fixture
def dls(counted): return video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2)  # noqa: F811


def needs_opencv(): return pytest.importorskip('cv2', reason="optical flow needs OpenCV: pip install -e '.[pretext]'")


def nll(z, y): return np.mean([-math.log(math.exp(r[i] - max(r))/np.exp(np.array(r) - max(r)).sum()) for r, i in zip(np.asarray(z, float), y)])


@pytest.mark.parametrize('name', SMALL)
def test_it_trains_and_its_checkpoints_load_exactly_and_measure_the_same(dls, name, tmp_path):
    if name == 'mas': needs_opencv()
    learn = quiet(dls, enc := tiny(), m := METHODS[name](**SMALL[name], **(dict(folder=str(tmp_path)) if name == 'mas' else {})), lr=.01)
    before = state(enc)
    learn.fit(2)
    assert all(not torch.equal(before[k], v) for k, v in enc.named_parameters())
    assert learn.recorder.metric_names[3:-1] == [f'{t}{n}' for t in ('train_', '') for n in m.score_names] and np.isfinite(learn.recorder.values[-1]).all()
    m.save(tmp_path/'x.safetensors')
    assert same(state(load_encoder(tiny(7), tmp_path/'x.safetensors')), state(enc))
    other = tiny(8)
    back = read_checkpoint(tmp_path/'x.safetensors', other)
    assert back.config.keys() == m.config.keys() and same(state(back.pretext_net), state(m.pretext_net))
    assert back.held_out(dls.valid)(other) == m.held_out(dls.valid)(enc) == pytest.approx(learn.validate()[0], rel=1e-5)


# cubic puzzles

def test_cells_of_a_puzzle_by_hand():
    assert puzzle_cells(True, 2) == [(2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1)]
    assert puzzle_cells(False, 1) == [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 0, 1)]


@pytest.mark.parametrize('rotation', [.5, 0])
def test_puzzle_loss_equals_an_independent_computation(rotation):
    torch.manual_seed(0)
    m = CubicPuzzle(hidden=5, rotation=rotation)
    net, x, y, turned = m.build(Pixels()), clips(k=4, t=4), torch.tensor([0, 23, 7, 1]), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        loss, found = m.loss(net(x), y, turned), m.scores(net(x), y, turned)
        f = np.concatenate([net.encoder(x[:, i]).numpy() for i in range(4)], 1)
        def layer(name, f): return f @ getattr(net.heads, name).weight.detach().numpy().T + getattr(net.heads, name).bias.detach().numpy()
        h = np.maximum(layer('hidden', f), 0)
        by_hand = nll(layer('order', h), y.tolist()) + (rotation*nll(layer('rotated', h), turned.tolist()) if rotation else 0)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert list(found) == list(m.score_names) == list(m.chances) == ['puzzle_acc', 'rotation_acc'][:2 if rotation else 1]
    assert found['puzzle_acc'].tolist() == (layer('order', h).argmax(1) == y.numpy()).tolist() and m.chances['puzzle_acc'] == 1/24


def place_video(monkeypatch, n, side, wide=0):
    "A video whose red is the frame's number, green the row, blue the column of a pixel"
    t, r, c = torch.meshgrid(torch.arange(n), torch.arange(side), torch.arange(side + wide), indexing='ij')
    v = torch.stack([t, r, c], 1).to(torch.uint8)
    monkeypatch.setattr(cache_module, 'decode_whole', lambda path, size: v)
    monkeypatch.setattr(VideoFile, 'scaled', lambda self, size: (side + wide, side))
    return v


@pytest.mark.parametrize('split,stride', [(0, 1), (1, 1), (0, 2)])
def test_the_labels_of_a_puzzle_say_where_its_pieces_were(counted, monkeypatch, split, stride):  # noqa: F811
    place_video(monkeypatch, 20*stride, 28, wide=6)
    m, seen, offsets = CubicPuzzle(replicate=0, span=2), Counter(), {k:set() for k in 'tyx'}
    read = PretextClips(m, SampleClips(2, stride, 10))
    read.cache = True
    monkeypatch.setattr(VideoIndex, 'n', property(lambda self: 20*stride))
    random.seed(0)
    for i in range(300):
        if split: monkeypatch.setattr(base_module.zlib, 'crc32', lambda b, i=i: i)  # as if by many names
        v, order, turned = read((VideoFile(counted[0]),), split_idx=split)
        assert v.shape == (4, 2, 3, 10, 10) and read.side == 28
        v = (v.flip(-1, -2) if turned else v).as_subclass(torch.Tensor).long()
        assert (v[:, 1, 0] - v[:, 0, 0] == stride).all() and (v[..., 1, :, :].diff(dim=-2) == 1).all() and (v[..., 2, :, :].diff(dim=-1) == 1).all()
        first, row, col = (v[:, 0, j, 0, 0] for j in range(3))
        found = list(permutations(range(4)))[order]
        at = [found.index(k) for k in range(4)]  # where each cell in turn went
        t, y, x = first[at], row[at], col[at]
        space = (t.max() - t.min()) <= 2*stride  # within one cell's time
        if space: assert y[0] <= 20 and x[1] - x[0] >= 10 and x[3] - x[2] >= 10 and y[2] - y[0] >= 10 and y[3] - y[1] >= 10  # no pixel in two pieces
        else: assert (t.diff() >= 2*stride).all() and (y.max() - y.min()) <= 4 and (x.max() - x.min()) <= 4
        if not space: offsets['t'] |= {int(d) for d in t.diff()}
        offsets['y'] |= {int(d) for d in y.diff()} if not space else set()
        seen[bool(space)] += 1
        seen[f'order {order}'] += 1
        seen[f'turned {turned}'] += 1
    assert 110 < seen[True] < 190 and 110 < seen['turned 1'] < 190 and sum(k.startswith('order') for k in map(str, seen)) == 24
    assert len(offsets['t']) >= 4 and len(offsets['y']) >= 6  # gaps differ in time and space: neither frames nor edges meet at a known place


def test_pieces_may_be_shown_in_one_channel_and_only_in_training(counted, monkeypatch):  # noqa: F811
    place_video(monkeypatch, 20, 28)
    read = PretextClips(CubicPuzzle(span=2, rotation=0), SampleClips(2, 1, 10))
    read.cache = True
    def grey(v): return bool((v[:, :, 0] == v[:, :, 1]).all() and (v[:, :, 0] == v[:, :, 2]).all())
    random.seed(0)
    drawn = [read((VideoFile(counted[0]),), split_idx=0) for _ in range(200)]
    assert 70 < sum(grey(v) for v, *_ in drawn) < 130 and not any(t for *_, t in drawn)
    def rises(v): return tuple(bool(v.as_subclass(torch.Tensor)[0, :, 0].diff(dim=d).any()) for d in (0, 1, 2))
    assert {rises(v) for v, *_ in drawn if grey(v)} == {(True, False, False), (False, True, False), (False, False, True)}  # time, rows, columns: each channel in turn
    for i in range(12):
        monkeypatch.setattr(base_module.zlib, 'crc32', lambda b, i=i: i)  # as if by many names
        assert not grey(read((VideoFile(counted[0]),), split_idx=1)[0])


def test_videos_too_short_for_a_puzzle_are_left_out(counted):  # noqa: F811
    dls = video_dls(counted, counted, frames=3, size=24, bs=2)
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 24'): quiet(dls, tiny(), CubicPuzzle()).fit(1)
    with pytest.raises(InputError, match='at least 1'): CubicPuzzle(cell=.9)


# CVRL

def test_near_clips_are_likelier_as_in_the_reference():
    "P(gap <= d) = 2d/m - d²/m²; with m = 100, P(gap <= 50) = .75; whole frames are rounded down"
    rnd = random.Random(0)
    drawn = np.array([draw_gap(rnd.random(), 100) for _ in range(40000)])
    for d in (10, 50, 80): assert abs((drawn < d).mean() - (2*d/100 - d**2/1e4)) < .01
    assert (2*50/100 - 50**2/1e4) == .75 and drawn.min() == 0 and drawn.max() < 100 and draw_gap(1 - 1e-16, 7) == 6


def test_clips_of_cvrl_lie_as_in_the_reference():
    m, rnd = CVRL(), random.Random(0)
    drawn = np.array([m.sample(40, 16, 2, rnd)[0] for _ in range(4000)])
    assert drawn.shape == (4000, 2, 16) and (np.diff(drawn, axis=2) == 2).all() and drawn.min() == 0 and drawn.max() == 39
    a, b = drawn[..., 0].T
    assert abs((a < b).mean() - (a > b).mean()) < .05 and set(np.abs(a - b)) == set(range(10))
    near = np.abs(a - b) == 3  # of a gap, all starts are as likely
    assert np.abs(np.bincount(np.minimum(a, b)[near], minlength=7)/near.sum() - 1/7).max() < .05
    short = [m.sample(29, 16, 2, rnd)[0] for _ in range(300)]  # loops, starts anywhere
    assert all((np.diff(c) % 29 == 2).all() for w in short for c in w) and {c[0] for w in short for c in w} == set(range(29))


def test_nt_xent_equals_an_independent_computation():
    torch.manual_seed(0)
    m = CVRL(hidden=6, dim=5)
    net, x = m.build(Pixels()), clips(b=5, t=4)
    net.eval()
    loss = m.loss(pred := net(x), torch.zeros(5))
    with torch.no_grad():
        z = [net.heads(net.encoder(x[:, i])).numpy().astype(float) for i in range(2)]
        z = [v/np.linalg.norm(v, axis=1, keepdims=True) for v in z]
        total = 0.
        for one, two in (z, z[::-1]):
            for i in range(5):
                s = [math.exp(one[i] @ two[j]/.1) for j in range(5)] + [math.exp(one[i] @ one[j]/.1) for j in range(5) if j != i]
                total -= math.log(s[i]/sum(s))/5
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert m.scores(pred, None)['pair_acc'].tolist() == [z[0][i] @ z[1][i] > z[0][i] @ z[1][(i + 1) % 5] for i in range(5)]
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_head_of_cvrl(): assert [type(m).__name__ for m in CVRL().heads(7)] == ['Linear', 'BatchNorm1d', 'ReLU']*3 + ['Linear'] and sum(p.numel() for p in CVRL().heads(7).parameters()) == 7*2048 + 2*2048**2 + 3*2*2048 + 2048*128 + 128


def test_logits_of_a_part_are_rows_of_those_of_all():
    a, b = (nn.functional.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    assert torch.allclose(nt_xent_logits(a[2:4], b, a, 2), nt_xent_logits(a, b, a, 0)[2:4])


def test_blur_equals_scipys():
    x, sigma = torch.rand(2, 3, 4, 3, 21, 18), torch.rand(2, 3)*1.9 + .1
    ours = blur(x, sigma, 3)
    for i in range(2):
        for j in range(3):
            s = sigma[i, j].item()
            theirs = gaussian_filter(x[i, j].numpy().astype(float), (0, 0, s, s), mode='constant', radius=(0, 0, 3, 3))
            np.testing.assert_allclose(ours[i, j], theirs, atol=1e-5)


def test_blur_and_solarise_are_drawn_by_the_place_of_the_clip():
    x = TensorVideo(torch.rand(200, 2, 2, 3, 20, 20))
    def changed(tfm): return (tfm(x, split_idx=0) != x).as_subclass(torch.Tensor).flatten(2).any(2).float().mean(0)
    a, b = changed(Blur((1., .1)))
    assert a > .9 and .02 < b < .2  # a width of .1 pixel changes nothing
    a, b = changed(Solarise((0., .2)))
    assert a == 0 and .1 < b < .3
    y, plain = Solarise((1., 1.))(x, split_idx=0).as_subclass(torch.Tensor), x.as_subclass(torch.Tensor)
    assert torch.equal(y, torch.where(plain < .5, plain, 1 - plain)) and all(torch.equal(t(x, split_idx=1), x) for t in (Blur((1., 1.)), Solarise((1., 1.))))


def test_cvrl_crops_and_colours_follow_the_reference():
    m = CVRL()
    assert (m.area, m.aspect, m.flip) == ((.3, 1.), (.5, 2.), True) and [type(t).__name__ for t in m.batch_tfms] == ['ColourJitter', 'Blur', 'Solarise']
    jitter, blur_, solarise = m.batch_tfms
    assert (jitter.factors, jitter.hue, jitter.p, jitter.grey, jitter.each_frame) == ((.8, .8, .8), .2, .8, .2, False) and blur_.p == (1., .1) and solarise.p == (0., .2)
    assert sorted(m.batch_tfms, key=lambda t: t.order) == list(m.batch_tfms)
    read, seen = PretextClips(m, SampleClips(2, 1, 10)), []
    old, clips_module.RandomResizedCrop.get_params = clips_module.RandomResizedCrop.get_params, lambda v, area, aspect: (seen.append((area, aspect)), (0, 0, 10, 10))[1]
    try:
        read.crop.train = True
        read.crop.crop_frames(torch.zeros(2, 3, 20, 20))
    finally: clips_module.RandomResizedCrop.get_params = old
    assert seen == [((.3, 1.), (.5, 2.))]


# IIC

def test_a_clip_in_disorder_by_hand():
    class Draw:
        def randrange(self, n): return n - 2
        def sample(self, of, k): return 1, 3
    assert disorder('repeat', 6, Draw()) == [4]*6 and disorder('shuffle', 16, Draw()) == [0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7]
    rnd = random.Random(0)
    assert {tuple(disorder('repeat', 3, rnd)) for _ in range(60)} == {(i,)*3 for i in range(3)}
    drawn = {tuple(disorder('shuffle', 8, rnd)) for _ in range(300)}
    assert len(drawn) == 6 and tuple(range(8)) not in drawn and all(sorted(d) == list(range(8)) for d in drawn)


@pytest.mark.parametrize('split', [0, 1])
def test_residuals_follow_the_reference(split):
    x = torch.rand(3, 2, 5, 3, 4, 4)
    y = Residual()(TensorVideo(x), split_idx=split).as_subclass(torch.Tensor)
    assert y.shape == (3, 3, 5, 3, 4, 4) and torch.equal(y[:, :2], x)
    for t in range(5): torch.testing.assert_close(y[:, 2, t], (x[:, 0, t] - x[:, 0, t - 1] + 1)/2)  # x[-1] is before x[0]


def test_clips_and_numbers_of_iic(counted):  # noqa: F811
    dls = video_dls(counted[:4], counted[4:], frames=4, size=24, bs=4)
    for kind in ('repeat', 'shuffle'):
        m, seen = InterIntra(disorder=kind), set()
        m.prepare(dls.train)
        assert m.videos == 4 and m.heads(7).rows.shape == (3, 4, 7) and torch.allclose(m.heads(7).rows.norm(dim=2), torch.ones(3, 4))
        m.batch_tfms = ()
        loader = m.loader(dls.train)
        for i in range(8):
            for x, number, zero in loader:
                a, b = frames(dls.train.after_batch.decode((x,))[0]).unbind(1)
                assert sorted(number.tolist()) == [0, 1, 2, 3] and not zero.any() and (a.diff(dim=1) == 1).all()
                assert all(set(q) <= set(p) and len(set(q)) == (1 if kind == 'repeat' else 4) and q != p for p, q in zip(a.tolist(), b.tolist()))
                seen |= set(a[:, 0].tolist())
        assert len(seen) > 10
        m2 = InterIntra(disorder=kind)
        m2.prepare(dls.train)
        assert [m2.numbers[str(p)] for p in counted[:4]] == [0, 1, 2, 3] or sorted(m2.numbers.values()) == [0, 1, 2, 3]
        with pytest.raises(InputError, match='row for each of 4 videos, but there are 2'): m.prepare(dls.valid)
    with pytest.raises(InputError, match='row for each training video'): InterIntra().heads(3)
    with pytest.raises(InputError, match='repeat or shuffle'): InterIntra(disorder='x')
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 28'): quiet(video_dls(counted, counted, frames=28, size=24, bs=2), tiny(), InterIntra()).fit(1)


def test_the_clip_in_disorder_is_cropped_as_the_one_in_order(counted):  # noqa: F811
    read, crops = PretextClips(InterIntra(), SampleClips(4, size=24)), 0
    old = read.crop.crop_frames
    def count(v):
        nonlocal crops
        crops += 1
        return old(v)
    read.crop.crop_frames = count
    assert read((VideoFile(counted[0]),), split_idx=0)[0].shape == (2, 4, 3, 24, 24) and crops == 1


@pytest.mark.parametrize('training,length', [(True, False), (False, False), (True, True)])
def test_iic_on_a_batch_equals_an_independent_computation(training, length):
    torch.manual_seed(0)
    m = InterIntra(negatives=3, videos=6, momentum=.7, unit=length)
    net, x, index = m.build(Pixels()).train(training), clips(k=3, t=4), torch.tensor([4, 0, 5, 1])
    before = net.heads.rows.clone().numpy().astype(float)
    torch.manual_seed(5)
    loss = m.loss(pred := net(x, index), torch.zeros(4))
    torch.manual_seed(5)
    others = torch.randint(6, (4, 3)).tolist() if training else [[0, 2, 5]]*4  # of 0 to 5, evenly spaced; .5*5 rounds to even
    with torch.no_grad(): frames_, mixed, residual = (net.encoder(x[:, i]).numpy().astype(float) for i in range(3))
    def unit(f): return f/np.linalg.norm(f, axis=-1, keepdims=True)
    if length: frames_, mixed, residual = map(unit, (frames_, mixed, residual))
    total = 0.
    for f, k, own in ((frames_, 1, residual), (residual, 0, frames_)):
        for i in range(4):
            first = [before[k][index[i]], before[2][index[i]]] if training else [unit(own[i]), unit(mixed[i])]
            s = np.array([f[i] @ r for r in (first[0], *(before[k][j] for j in others[i]), first[1], *(before[2][j] for j in others[i]))])/.07
            total += (np.log(np.exp(s - s.max()).sum()) + s.max() - s[0])/4
    assert loss.item() == pytest.approx(total, rel=1e-4)
    after = before.copy()
    if training:
        for k, f in enumerate((frames_, residual, mixed)): after[k][index] = unit(.7*before[k][index] + .3*f)
    np.testing.assert_allclose(net.heads.rows, after, atol=1e-6)
    a, b, c = unit(frames_), unit(residual), unit(mixed)
    found = m.scores(pred, None)
    assert found['inter_acc'].tolist() == [a[i] @ b[i] > a[i] @ b[(i + 1) % 4] for i in range(4)] and found['intra_acc'].tolist() == [a[i] @ b[i] > a[i] @ c[i] for i in range(4)]
    equal = torch.ones(4)
    assert m.scores((*pred[:2], equal, equal, equal), None)['intra_acc'].tolist() == [.5]*4  # as a net has it that tells nothing apart
    loss.backward()
    assert all(p.grad is not None for p in net.encoder.parameters())


def test_held_out_views_are_normalised_by_their_batch_and_nothing_stays():
    m, x = InterIntra(videos=4, negatives=2), clips(k=3, t=4)
    x[:, 2] = 9 + .1*x[:, 2]  # of another kind than the others
    net, index = m.build(tiny()), torch.arange(4)
    for _ in range(20): net.train()(x, index)
    before = state(net)
    with torch.no_grad(): found = net.eval()(x, index)
    assert same(before, state(net)) and not any(b.training or not getattr(b, 'track_running_stats', True) for b in net.modules())
    with torch.no_grad(): f = [nn.functional.normalize(net.encoder.train()(x[:, i]), dim=1) for i in range(3)]
    torch.testing.assert_close(found[2], (f[0]*f[2]).sum(1)), torch.testing.assert_close(found[4], (f[0]*f[1]).sum(1))


def test_each_view_passes_batch_norm_on_its_own():
    m = InterIntra(videos=4, negatives=2)
    net = m.build(tiny()).train()
    bn = next(m for m in net.encoder.modules() if hasattr(m, 'num_batches_tracked'))
    net(clips(k=3, t=4), torch.arange(4))
    assert bn.num_batches_tracked == 3


def test_the_rows_of_iic_are_those_of_the_videos_trained_on(dls):
    learn = quiet(dls, tiny(), m := InterIntra(negatives=2), lr=.01)
    seen = []
    class See(Callback):
        order = 50
        def before_fit(self): self.rows = self.learn.model.heads.rows.clone()
        def before_batch(self): seen.append((self.learn.training, len(self.learn.xb), len(self.learn.yb)))
    learn.fit(1, cbs=(see := See()))
    assert not (see.rows == m.pretext_net.heads.rows).all(-1).any() and set(seen) == {(True, 2, 1), (False, 2, 1)}
    rows = m.pretext_net.heads.rows.clone()
    learn.validate(), m.held_out(dls.valid)(learn.model)
    assert torch.equal(rows, m.pretext_net.heads.rows)
    learn.fit(1)
    assert not torch.equal(rows, m.pretext_net.heads.rows)  # a second fit goes on with them


# MAS

def test_regions_of_the_statistics_by_hand():
    "Of 112 pixels: blocks of 28, squares of 28, 56, 84 and 112, triangles of 56*57/2"
    grid, rings, triangles = ([set(p.tolist()) for p in pattern] for pattern in regions(112))
    def box(top, left, bottom, right): return {y*112 + x for y in range(top, bottom) for x in range(left, right)}
    assert grid == [box(28*i, 28*j, 28*i + 28, 28*j + 28) for i in range(4) for j in range(4)]
    squares = [box(k, k, 112 - k, 112 - k) for k in (42, 28, 14, 0)]
    assert rings == [squares[0], *(b - a for a, b in zip(squares, squares[1:]))]
    assert len(triangles) == 8 and all(len(t) == 1596 for t in triangles)
    for k, pixel in enumerate([(50, 5), (5, 50), (5, 60), (50, 107), (60, 5), (107, 50), (107, 60), (60, 107)]): assert [pixel[0]*112 + pixel[1] in t for t in triangles] == [i == k for i in range(8)]
    for y, x in ((0, 0), (111, 111), (0, 111), (111, 0)): assert sum(y*112 + x in t for t in triangles) == 2  # on a diagonal
    with pytest.raises(InputError, match='multiple of 8'): regions(20)


def test_motion_labels_equal_an_independent_computation():
    "From the reference's description, pixel by pixel"
    rng, s = np.random.default_rng(0), 16
    for _ in range(3):
        flow = rng.normal(size=(5, 2, s, s))
        flow[:, 0, 3:8, 9:12] += 2*rng.random()
        found = {}
        for c in range(2):
            f = np.pad(flow[:, c], ((0, 0), (1, 1), (1, 1)), mode='symmetric')
            dx, dy = np.zeros((5, s, s)), np.zeros((5, s, s))
            for k in range(3):  # a convolution turns the kernels -1 0 1 by 180 degrees
                dx += f[:, k:k + s, :s] - f[:, k:k + s, 2:]
                dy += f[:, :s, k:k + s] - f[:, 2:, k:k + s]
            found['frame', c] = 1 + int(np.argmax([np.sqrt(dx[t]**2 + dy[t]**2).sum() for t in range(5)]))
            dx, dy = dx.sum(0).ravel(), dy.sum(0).ravel()
            for i, pattern in enumerate(regions(s)):
                strength = [sum(math.hypot(dx[p], dy[p]) for p in part)/(len(part) if i == 1 else 1) for part in pattern]
                k, bins = strength.index(max(strength)), [0.]*8
                for p in pattern[k]:
                    a = math.degrees(math.atan2(dy[p], dx[p])) % 360
                    b, share = int(a//45), a % 45/45
                    bins[b] += math.hypot(dx[p], dy[p])*(1 - share)
                    bins[(b + 1) % 8] += math.hypot(dx[p], dy[p])*share
                found[i, c] = k + 1, bins.index(max(bins)) + 1
        by_hand = [n for i in range(3) for c in range(2) for n in found[i, c]] + [found['frame', 0], found['frame', 1]]
        assert motion_labels(flow).tolist() == by_hand


def test_motion_labels_by_hand():
    flow = np.zeros((15, 2, 112, 112))
    assert motion_labels(flow).tolist() == [0, 0, 0, 0] + [1]*10  # a clip that stands still, as the reference has it
    flow[:, 0, 60:80, 100:110] = 3  # in the third row's last block of the grid, the outer ring, the last triangle
    flow[6, 1, 35:50, 35:50] = 1
    found = motion_labels(flow)
    assert found[0] == 12 and found[4] == 4 and found[8] == 8 and found[12:].tolist() == [1, 7]


def test_appearance_labels_equal_an_independent_computation():
    rng, s = np.random.default_rng(0), 16
    clip = rng.integers(0, 256, (4, s, s, 3))//86*86
    clip[1:, :4] = clip[:1, :4]  # stays
    clip = clip.astype(np.uint8)
    def colour(pixels):
        count = Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
        r, g, b = min(count, key=lambda c: (-count[c], c[::-1]))
        return 1 + ['001', '011', '101', '111', '000', '010', '100', '110'].index(''.join(str(int(v >= 128)) for v in (r, g, b)))
    flat, by_hand = clip.reshape(4, -1, 3), []
    for pattern in regions(s):
        kept = []
        for p in pattern:
            hists = [[np.histogram(flat[t, p, c], 256, (0, 256))[0] for t in range(4)] for c in range(3)]
            kept.append(sum(np.min(h, 0).sum()/np.max(h, 0).sum() for h in hists)/3)
        for k in (kept.index(min(kept)), kept.index(max(kept))): by_hand += [k + 1, colour(flat[:, pattern[k]])]
    found = appearance_labels(clip)
    assert found.tolist() == [*by_hand, colour(clip)] and len(found) == 13 and found[2] <= 4


@pytest.mark.parametrize('code,rgb', enumerate([(0, 0, 255), (0, 128, 128), (128, 127, 255), (200, 200, 200), (127, 127, 127), (0, 255, 0), (255, 0, 0), (128, 128, 0)]))
def test_colours_are_numbered_as_in_the_reference(code, rgb): assert appearance_labels(np.full((2, 8, 8, 3), rgb, np.uint8))[[1, 3, 12]].tolist() == [code + 1]*3


@pytest.fixture
def moving(tmp_path):
    "A texture that moves 2 pixels a frame to the right and 1 down"
    wide = (255*gaussian_filter(np.random.default_rng(0).random((140, 140)), 2, mode='wrap'))
    wide = ((wide - wide.min())/(wide.max() - wide.min())*255).astype(np.uint8)
    write_video(tmp_path/'m.mp4', np.stack([np.roll(wide, (t, 2*t), (0, 1))[20:116, 20:116] for t in range(8)]))
    return VideoFile(tmp_path/'m.mp4')


def test_flow_is_that_of_the_video_and_computed_once(moving, tmp_path, monkeypatch):
    cv2 = needs_opencv()
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path/'home'))
    flow = optical_flow(moving, 96)
    assert flow.shape == (7, 2, 96, 96) and flow.dtype == np.uint8
    u, v = np.median(flow*(40/255) - 20, (0, 2, 3))
    assert abs(u - 2) < .2 and abs(v - 1) < .2
    u, v = np.median(optical_flow(moving, 96, stride=2)*(40/255) - 20, (0, 2, 3))
    assert abs(u - 4) < .4 and abs(v - 2) < .4 and len(optical_flow(moving, 96, stride=2)) == 6
    with monkeypatch.context() as m:
        m.setattr(cv2, 'DISOpticalFlow_create', lambda *a: pytest.fail('computed again'))
        assert np.array_equal(optical_flow(moving, 96), flow)
    files = sorted((tmp_path/'home'/'flow').rglob('*.npz'))
    assert len(files) == 2
    for f in files: f.write_bytes(f.read_bytes()[:300])  # cut off
    assert np.array_equal(optical_flow(moving, 96), flow)
    assert optical_flow(moving, 48, folder=tmp_path/'other').shape == (7, 2, 48, 48) and list((tmp_path/'other').rglob('*.npz'))


def test_without_opencv_it_says_what_to_install(moving, dls, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    for f in (lambda: optical_flow(moving, 96, folder=tmp_path), lambda: quiet(dls, tiny(), MotionStatistics()).fit(1)):
        with pytest.raises(InputError, match=r'pip install .sdfast\[pretext\]'): f()


def test_the_flow_of_the_clip_is_cropped_as_its_frames(counted, monkeypatch):  # noqa: F811
    place_video(monkeypatch, 20, 18, wide=6)
    monkeypatch.setattr(VideoIndex, 'n', property(lambda self: 20))
    t, r, c = torch.meshgrid(torch.arange(18), torch.arange(18), torch.arange(24), indexing='ij')
    monkeypatch.setattr(statistics_module, 'optical_flow', lambda video, side, stride, folder: torch.stack([10*t + r, 3*c], 1).numpy().astype(np.uint8))
    seen = []
    monkeypatch.setattr(statistics_module, 'motion_labels', lambda flow: (seen.append((flow + 20)*255/40), np.zeros(14, np.float32))[1])
    read = PretextClips(MotionStatistics(), SampleClips(5, 2, 16))
    read.cache = True
    for split in (0, 1)*20:
        v, *labels = read((VideoFile(counted[0]),), split_idx=split)
        first, row, col = v[0, :, :, 0, 0].long().unbind(1)
        assert v.shape == (1, 5, 3, 16, 16) and first.diff().tolist() == [2]*4 and seen[-1].shape == (4, 2, 16, 16)
        np.testing.assert_allclose(seen[-1][:, 0, 0, 0], (10*first + row)[:4], atol=1e-6)
        np.testing.assert_allclose(seen[-1][:, 1, 0, 0], (3*col)[:4], atol=1e-6)
    assert (int(row[0]), int(col[0])) == (1, 4) and labels[0].shape == (14,) and labels[1].shape == (13,)


def test_mas_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    m = MotionStatistics(motion=2., appearance=.1)
    net, x, y = m.build(Pixels()), clips(k=1, t=4), (torch.rand(4, 14)*16, torch.rand(4, 13)*8)
    with torch.no_grad():
        loss, f = m.loss(pred := net(x), *y).item(), net.encoder(x[:, 0])
        p = [f.numpy() @ h.weight.numpy().T + h.bias.numpy() for h in net.heads]
    assert loss == pytest.approx(2*np.mean((p[0] - y[0].numpy())**2) + .1*np.mean((p[1] - y[1].numpy())**2), rel=1e-5)
    far = [[((a[i] - b[j].numpy())**2).sum() for i in range(4) for j in (i, (i + 1) % 4)] for a, b in zip(p, y)]
    for s, d in zip(m.scores(pred, *y).values(), far): assert s.tolist() == [float(a < b) for a, b in zip(d[::2], d[1::2])]
    line = torch.tensor([[0.], [1.], [3.]])  # of the next, not of the one before
    assert m.scores((line.new_tensor([[.6], [1.4], [2.]]),)*2, line, line)['motion_acc'].tolist() == [0., 1., 1.]
    assert m.scores((pred[0][:1], pred[1][:1]), y[0][:1], y[1][:1])['motion_acc'].tolist() == [.5]  # nothing to tell apart
    with pytest.raises(InputError, match='one of them more'): MotionStatistics(0, 0)
