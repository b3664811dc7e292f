"Inter-intra contrast: views, banks and loss against independent computations."
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from helpers import same, state
from pretraining import Pixels, quiet, random_clips, read_frames, tiny
from torch import nn

from sdfast.data.clips import SampleClips, TensorVideo
from sdfast.data.video import VideoFile
from sdfast.errors import InputError
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.iic import InterIntra, Residual, disorder
from sdfast.pretext.loaders import video_dls


def test_disorder_by_hand():
    class Draw:
        def randrange(self, n): return n - 2
        def sample(self, of, k): return 1, 3
    assert disorder('repeat', 6, Draw()) == [4]*6
    assert disorder('shuffle', 16, Draw()) == [0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7]


def test_disorder_is_drawn():
    rnd = random.Random(0)
    assert {tuple(disorder('repeat', 3, rnd)) for _ in range(60)} == {(i,)*3 for i in range(3)}
    shuffled = {tuple(disorder('shuffle', 8, rnd)) for _ in range(300)}
    assert len(shuffled) == 6
    assert tuple(range(8)) not in shuffled
    assert all(sorted(frames) == list(range(8)) for frames in shuffled)


@pytest.mark.parametrize('split', [0, 1])
def test_residuals_follow_the_reference(split):
    x = torch.rand(3, 2, 5, 3, 4, 4)
    y = Residual()(TensorVideo(x), split_idx=split).as_subclass(torch.Tensor)
    assert y.shape == (3, 3, 5, 3, 4, 4)
    assert torch.equal(y[:, :2], x)
    for t in range(5):  # the last frame precedes the first
        torch.testing.assert_close(y[:, 2, t], (x[:, 0, t] - x[:, 0, t - 1] + 1)/2)


@pytest.mark.parametrize('kind,different', [('repeat', 1), ('shuffle', 4)])
def test_clips_and_numbers_of_videos(counted, kind, different):
    dls = video_dls(counted[:4], counted[4:], frames=4, size=24, bs=4)
    m, starts = InterIntra(disorder=kind), set()
    m.prepare(dls.train)
    assert m.videos == 4
    assert sorted(m.numbers) == sorted(map(str, counted[:4]))
    assert sorted(m.numbers.values()) == [0, 1, 2, 3]
    m.batch_tfms = ()
    loader = m.loader(dls.train)
    for _ in range(8):
        for x, number, zero in loader:
            in_order, mixed = read_frames(dls.train, x).unbind(1)
            assert sorted(number.tolist()) == [0, 1, 2, 3]
            assert not zero.any()
            assert (in_order.diff(dim=1) == 1).all()
            for p, q in zip(in_order.tolist(), mixed.tolist()):
                assert set(q) <= set(p)
                assert len(set(q)) == different
                assert q != p
            starts |= set(in_order[:, 0].tolist())
    assert len(starts) > 10
    with pytest.raises(InputError, match='row for each of 4 videos, but there are 2'): m.prepare(dls.valid)


def test_rows_have_length_1():
    rows = InterIntra(videos=4).heads(7).rows
    assert rows.shape == (3, 4, 7)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(3, 4))


def test_what_it_refuses(counted):
    with pytest.raises(InputError, match='row for each training video'): InterIntra().heads(3)
    with pytest.raises(InputError, match='repeat or shuffle'): InterIntra(disorder='x')
    dls = video_dls(counted, counted, frames=28, size=24, bs=2)
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 28'):
        quiet(dls, tiny(), InterIntra()).fit(1)


def test_the_clip_in_disorder_is_cropped_as_the_one_in_order(counted):
    read, crops = PretextClips(InterIntra(), SampleClips(4, size=24)), []
    crop = read.crop.crop_frames
    def count(v):
        crops.append(v)
        return crop(v)
    read.crop.crop_frames = count
    assert read((VideoFile(counted[0]),), split_idx=0)[0].shape == (2, 4, 3, 24, 24)
    assert len(crops) == 1


def unit(f): return f/np.linalg.norm(f, axis=-1, keepdims=True)


@pytest.mark.parametrize('training,length', [(True, False), (False, False), (True, True)])
def test_a_batch_equals_an_independent_computation(training, length):
    torch.manual_seed(0)
    m = InterIntra(negatives=3, videos=6, momentum=.7, unit=length)
    net, x, index = m.build(Pixels()).train(training), random_clips(k=3, t=4), torch.tensor([4, 0, 5, 1])
    before = net.heads.rows.clone().numpy().astype(float)
    torch.manual_seed(5)
    pred = net(x, index)
    loss = m.loss(pred, torch.zeros(4))
    torch.manual_seed(5)
    # 3 of 0 to 5, evenly spaced; .5*5 rounds to even
    negatives = torch.randint(6, (4, 3)).tolist() if training else [[0, 2, 5]]*4

    with torch.no_grad(): frames, mixed, residual = (net.encoder(x[:, i]).numpy().astype(float) for i in range(3))
    if length: frames, mixed, residual = map(unit, (frames, mixed, residual))
    total = 0.
    for f, bank, own in ((frames, 1, residual), (residual, 0, frames)):
        for i in range(4):
            if training: positive, disordered = before[bank][index[i]], before[2][index[i]]
            else: positive, disordered = unit(own[i]), unit(mixed[i])
            others, other_disorder = ([before[k][j] for j in negatives[i]] for k in (bank, 2))
            s = np.array([f[i] @ r for r in (positive, *others, disordered, *other_disorder)])/.07
            total += (np.log(np.exp(s - s.max()).sum()) + s.max() - s[0])/4
    assert loss.item() == pytest.approx(total, rel=1e-4)

    after = before.copy()
    if training:
        for bank, f in enumerate((frames, residual, mixed)): after[bank][index] = unit(.7*before[bank][index] + .3*f)
    np.testing.assert_allclose(net.heads.rows, after, atol=1e-6)

    a, b, c = unit(frames), unit(residual), unit(mixed)
    scores = m.scores(pred, None)
    assert scores['inter_acc'].tolist() == [a[i] @ b[i] > a[i] @ b[(i + 1) % 4] for i in range(4)]
    assert scores['intra_acc'].tolist() == [a[i] @ b[i] > a[i] @ c[i] for i in range(4)]
    loss.backward()
    assert all(p.grad is not None for p in net.encoder.parameters())


def test_equally_close_counts_half():
    equal = torch.ones(4)
    assert InterIntra().scores((None, None, equal, equal, equal), None)['intra_acc'].tolist() == [.5]*4


def test_held_out_views_are_normalised_by_their_batch_and_nothing_stays():
    m, x = InterIntra(videos=4, negatives=2), random_clips(k=3, t=4)
    x[:, 2] = 9 + .1*x[:, 2]  # of another kind than the others
    net, index = m.build(tiny()), torch.arange(4)
    for _ in range(20): net.train()(x, index)
    before = state(net)
    with torch.no_grad(): *_, same_video, _, disordered = net.eval()(x, index)
    assert same(before, state(net))
    assert not any(b.training or not getattr(b, 'track_running_stats', True) for b in net.modules())
    with torch.no_grad(): f = [nn.functional.normalize(net.encoder.train()(x[:, i]), dim=1) for i in range(3)]
    torch.testing.assert_close(same_video, (f[0]*f[2]).sum(1))
    torch.testing.assert_close(disordered, (f[0]*f[1]).sum(1))


def test_each_view_passes_batch_norm_separately():
    m = InterIntra(videos=4, negatives=2)
    net = m.build(tiny()).train()
    bn = next(m for m in net.encoder.modules() if hasattr(m, 'num_batches_tracked'))
    net(random_clips(k=3, t=4), torch.arange(4))
    assert bn.num_batches_tracked == 3


def test_rows_change_in_training_alone(dls):
    learn = quiet(dls, tiny(), m := InterIntra(negatives=2), lr=.01)
    seen = set()
    class See(Callback):
        order = 50
        def before_fit(self): self.rows = self.learn.model.heads.rows.clone()
        def before_batch(self): seen.add((self.learn.training, len(self.learn.xb), len(self.learn.yb)))
    learn.fit(1, cbs=(see := See()))
    assert seen == {(True, 2, 1), (False, 2, 1)}
    rows = m.pretext_net.heads.rows.clone()
    assert not (see.rows == rows).all(-1).any()
    learn.validate()
    m.held_out(dls.valid)(learn.model)
    assert torch.equal(rows, m.pretext_net.heads.rows)
    learn.fit(1)
    assert not torch.equal(rows, m.pretext_net.heads.rows)  # a second fit continues with them
