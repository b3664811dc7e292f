"The paper's protocol: clips, crops, schedule, optimizer and Algorithm 1, each against a version written by hand."
import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.optimizer import SGD
from helpers import data, learner, model, state
from torch.nn.functional import cross_entropy, interpolate

from sdfast.data import clips as clips_module
from sdfast.data.clips import SampleClips, clip_indices
from sdfast.data.video import VideoFile
from sdfast.errors import InputError
from sdfast.strategies import SelfDistill
from sdfast.study import fit as fit_module
from sdfast.study.config import RSPNET, Run
from sdfast.study.fit import learning_rates

# ---- clips

def test_reference_fixtures():
    assert [int(clip_indices(29, 16, at=a)[0]) for a in np.linspace(0, 1, 10)] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert clip_indices(29, 16)[0] == 6
    assert clip_indices(10, 16, wrap=True).tolist() == [*range(10), *range(6)]
    assert clip_indices(16, 16, wrap=True).tolist() == list(range(16))
    assert clip_indices(40, 16, at=1, wrap=True).tolist() == list(range(24, 40))
    spread = np.rint(np.linspace(0, 19, 16)).astype(int)  # the video is too short for this stride
    assert clip_indices(20, 16, 2, wrap=True).tolist() == spread.tolist()
    for n in range(17, 60): assert clip_indices(n, 16)[0] == (n - 16)//2  # the centre clip of the code base


@pytest.mark.parametrize('n,frames,stride', [(20, 16, 1), (12, 4, 2), (16, 16, 1), (3, 16, 1)])
def test_every_start_is_as_likely(n, frames, stride):
    s = SampleClips(frames, stride)
    s.train, room = True, max(0, n - (frames - 1)*stride - 1)
    random.seed(0)
    starts = [clip_indices(n, frames, stride, s._places(n)[0])[0] for _ in range(6000)]
    counts = np.bincount(starts, minlength=room + 1)
    assert len(counts) == room + 1
    expected = 6000/(room + 1)
    assert ((counts - expected)**2/expected).sum() < 3*(room + 1) + 12  # chi squared, far above its mean


@pytest.fixture
def film(write, tmp_path):
    "20 frames of 60 x 90 with a gradient, so that a crop shows where it was taken"
    x = np.linspace(0, 100, 60)[:, None] + np.linspace(0, 150, 90)[None]
    write(tmp_path/'f.mp4', np.stack([x]*20).astype(np.uint8))
    return VideoFile(tmp_path/'f.mp4')


@pytest.fixture
def crops(monkeypatch):
    "The random crops `(top, left, height, width)` that were drawn"
    drawn, draw = [], clips_module.RandomResizedCrop.get_params
    def get_params(*args):
        drawn.append(draw(*args))
        return drawn[-1]
    monkeypatch.setattr(clips_module.RandomResizedCrop, 'get_params', get_params)
    return drawn


def resized(frames, size=24): return interpolate(frames.float(), (size, size), mode='bilinear', align_corners=False)


def test_area_crop_is_a_part_of_the_frame_resized_without_antialias(film, crops):
    s = SampleClips(4, size=24, area=(.25, 1), wrap=True)
    s.train = True
    whole = film.read(range(20))
    for i in range(20):
        random.seed(i)
        torch.manual_seed(i)
        clip = s.encodes(film).as_subclass(torch.Tensor)
        random.seed(i)
        start = clip_indices(20, 4, at=s._places(20)[0])[0]
        top, left, h, w = crops[-1]
        want = resized(whole[start:start + 4, :, top:top + h, left:left + w])
        assert clip.shape == (4, 3, 24, 24)
        assert clip.dtype == torch.uint8
        assert (clip.float() - want).abs().max() <= .51
    assert len(crops) == 20  # one draw a clip
    areas, aspects = np.array([h*w/5400 for *_, h, w in crops]), np.array([w/h for *_, h, w in crops])
    assert areas.min() > .24
    assert areas.max() > .7
    assert np.ptp(areas) > .4
    assert .73 < aspects.min() < aspects.max() < 1.37


def test_centre_square_and_ten_clips_in_tests(film):
    s = SampleClips(4, size=24, k=10, area=(.25, 1))
    s.train = False
    clips, whole = s.encodes(film).as_subclass(torch.Tensor), film.read(range(20))
    assert clips.shape == (10, 4, 3, 24, 24)
    for i, start in enumerate(np.rint(np.linspace(0, 16, 10)).astype(int)):
        want = resized(whole[start:start + 4, :, :, 15:75])
        assert (clips[i].float() - want).abs().max() <= .51


def test_half_of_the_training_clips_are_mirrored(film):
    s = SampleClips(1, size=60, flip=True)
    rising = []
    for s.train in (True, False):
        random.seed(0)
        for _ in range(200):
            row = s.encodes(film).as_subclass(torch.Tensor).float().mean((0, 1, 2))
            rising.append(bool(row[-1] > row[0]))
    assert 70 < sum(rising[:200]) < 130
    assert all(rising[200:])


def test_areas_that_cannot_be():
    for bad in (dict(area=(0, 1)), dict(area=(.5,)), dict(area=(.25, 1), size=None)):
        with pytest.raises(InputError, match='area must be'): SampleClips(**bad)


# ---- optimisation

def test_the_cosine_of_epochs_is_torchs():
    rate = learning_rates('epoch_cosine', .1, 100)
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100, eta_min=.1/1000)
    for epoch in range(100):
        assert rate(epoch/100) == rate((epoch + .99)/100) == pytest.approx(opt.param_groups[0]['lr'], rel=1e-9)
        opt.step()
        sched.step()


def test_other_learning_rates():
    rate = learning_rates('steps', .005, 100)
    falls = [round(rate(e/100)/.005, 9) for e in (0, 49, 50, 69, 70, 89, 90, 99)]
    assert falls == [1, 1, .1, .1, .01, .01, .001, .001]
    assert learning_rates('cosine', 1., 3)(.5) == pytest.approx(.5)
    with pytest.raises(InputError, match='unknown schedule'): learning_rates('linear', 1., 3)


def test_settings_of_rspnet():
    run = Run(**RSPNET)
    assert (run.frames, run.stride, run.size, run.clips) == (16, 1, 112, 10)
    assert (run.wd, run.epochs, run.area, run.flip, run.wrap) == (1e-4, 100, .25, True, True)


def test_sgd_is_torchs_with_weight_decay_on_everything(monkeypatch):
    "`fit_model` against torch's optimizer and scheduler in a hand-written loop"
    dls, net = data(), model()
    hand = copy.deepcopy(net)
    monkeypatch.setattr(fit_module.Seeded, 'before_train', lambda self: None)
    learn, why = fit_module.fit_model(dls, net, 3, .1, 0, schedule='epoch_cosine', wd=1e-2)
    assert why is None
    opt = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9, weight_decay=1e-2)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 3, eta_min=1e-4)
    for _ in range(3):
        hand.train()
        for x, y in data().train:
            opt.zero_grad()
            cross_entropy(hand(x), y).backward()
            opt.step()
        sched.step()
    for k, v in state(net).items():
        torch.testing.assert_close(v, hand.state_dict()[k], rtol=1e-5, atol=1e-6)


# ---- Algorithm 1

def algorithm_1(net, dls, lam, reduction, epochs, lr, teacher_bn='batch'):
    """The paper's loop: a step of SGD a batch on CE + lam*||f(x) - f'(x)||^2, theta' is theta after the last epoch.

    Returns the distance of each step."""
    opt, losses = torch.optim.SGD(net.parameters(), lr=lr, momentum=.9), []
    for _ in range(epochs):
        teacher = copy.deepcopy(net[0])
        for p in teacher.parameters(): p.requires_grad = False
        for x, y in dls.train:
            net.train()
            if teacher_bn == 'batch':
                teacher.train()
                kept = {k:v.clone() for k, v in teacher.named_buffers()}
                target = teacher(x)
                for k, v in teacher.named_buffers(): v.copy_(kept[k])
            else: target = teacher.eval()(x)
            f = net[0](x)
            distance = sum(((f[i] - target[i])**2).sum() for i in range(len(f)))
            distance = dict(sum=distance, batchmean=distance/len(f), mean=distance/f.numel())[reduction]
            opt.zero_grad()
            (cross_entropy(net[1](f), y) + lam*distance).backward()
            opt.step()
            losses.append(distance.item())
    return losses


@pytest.mark.parametrize('teacher_bn', ['batch', 'running'])
@pytest.mark.parametrize('reduction,lam', [('mean', 3.), ('batchmean', .5), ('sum', .06)])
def test_self_distill_is_the_papers_algorithm_1(reduction, lam, teacher_bn):
    net, dls = model(), data()
    hand = copy.deepcopy(net)
    penalty = SelfDistill(lam, reduction=reduction, teacher_bn=teacher_bn)
    learn = learner(penalty, dls, net, lr=.02, opt_func=partial(SGD, mom=.9), wd=0.)
    with learn.no_bar(): learn.fit(2)
    losses = algorithm_1(hand, data(), lam, reduction, 2, .02, teacher_bn)
    for (k, v), w in zip(state(net).items(), hand.state_dict().values()):
        torch.testing.assert_close(v, w, rtol=1e-6, atol=1e-6, msg=lambda m: f'{k}: {m}')
    first, second = losses[:len(losses)//2], losses[len(losses)//2:]
    assert max(first) > 1e-4
    assert learn.recorder.values[-1][2] == pytest.approx(np.mean(second), rel=1e-4)  # the reported term
    if teacher_bn == 'batch': assert second[0] == pytest.approx(0, abs=1e-10)  # renewed: student equals teacher
    else: assert second[0] > 1e-4
