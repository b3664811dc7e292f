"Directional gradient projection, against a loop in plain PyTorch with its formula."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import Adam
from helpers import data, learner
from strategy_helpers import assert_close_nets, deep
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import DiGraP


def deep_net():
    "Without batch norm, before which the gradient of a bias is rounding"
    net = deep()
    net[0].body.one[1], net[0].body.two[1] = nn.GroupNorm(2, 4), nn.GroupNorm(2, 6)
    return net


def batches(epochs=4, bs=8): return [b for _ in range(epochs) for b in data(bs=bs).train]


def by_hand(net, opt, rate, clips, change=lambda net: None):
    "One parameter and one number at a time"
    start = {p:p.detach().clone() for p in net[0].parameters()}
    state = {p:dict(omega=0., m=0., v=0., t=0, h=None) for p in start}
    net.train()
    for x, y in clips:
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        change(net)
        for p, s in state.items():
            g, d = p.grad.double(), (p.detach() - start[p]).double()
            size = 0. if s['h'] is None else float(g.norm()*s['h'].norm())
            slope = float((g*s['h']).sum())/size if size else 0.
            s['t'] += 1
            s['m'], s['v'] = .9*s['m'] + .1*slope, .999*s['v'] + .001*slope**2
            step = s['m']/(1 - .9**s['t'])/(math.sqrt(s['v']/(1 - .999**s['t'])) + 1e-8)
            s['omega'] = min(1., max(0., s['omega'] - rate*step))
            dot, square = float((g*d).sum()), float((d*d).sum())
            s['h'] = dot/square*d if square else torch.zeros_like(d)  # what a whole projection takes out
            if dot < 0: p.grad.sub_((s['omega']*s['h']).float())
        opt.step()
    return [s['omega'] for s in state.values()]


def sgd(net): return torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
def adam(net): return torch.optim.Adam(net.parameters(), lr=.02, eps=1e-5, betas=(.9, .99))


@pytest.mark.parametrize('rate', [.05, .5])
@pytest.mark.parametrize('how', ['sgd', 'adam', 'loop', 'clipped', 'accumulated'])
def test_digrap_is_its_formula(rate, how):
    hand, net, bs = deep_net(), deep_net(), 24 if how == 'accumulated' else 8
    def clip(n): return how == 'clipped' and nn.utils.clip_grad_norm_(n.parameters(), .5)
    omegas = by_hand(hand, adam(hand) if how == 'adam' else sgd(hand), rate, batches(bs=bs), clip)
    cb = DiGraP(rate)
    if how == 'loop':
        opt = sgd(net)
        with cb.attach(net, opt):
            cb.start_epoch()
            for x, y in batches():
                opt.zero_grad()
                F.cross_entropy(net(x), y).backward()
                opt.step()
            found = list(cb.omega.values())
    else:
        extra = dict(clipped=[GradientClip(.5)], accumulated=[GradientAccumulation(24)]).get(how, [])
        options = dict(opt_func=partial(Adam, wd=0.), lr=.02) if how == 'adam' else {}
        learner([cb, *extra], net=net, **options).fit(4)
        found = list(cb.omega.values())
    assert_close_nets(net, hand, rtol=1e-3, atol=1e-4)
    assert found == pytest.approx(omegas, abs=2e-3)
    assert max(found) > 0
    plain = deep_net()
    by_hand(plain, adam(plain) if how == 'adam' else sgd(plain), 0., batches(bs=bs), clip)
    assert not torch.allclose(plain[0].body.one[0].weight, net[0].body.one[0].weight, atol=1e-3)


def test_a_whole_projection_leaves_nothing_of_what_drives_away():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Identity())
    opt = torch.optim.SGD(net.parameters(), lr=0.)
    w, start = net[0].weight, torch.zeros(2, 3)
    with DiGraP(.1, encoder='0', anchor=dict(weight=start)).attach(net, opt) as cb:
        cb.start_epoch()
        cb._learned = dict(weight=torch.tensor([1., 0., 0., 1., 1.]))  # omega is 1
        cb._last = dict(weight=torch.zeros(2, 3))
        w.grad = -w.detach() + torch.randn(2, 3)*.01
        opt.step()
        assert abs((w.grad*w).sum()) < 1e-6
        w.grad = w.detach().clone()  # points back: free
        opt.step()
        assert torch.equal(w.grad, w)


def test_sparse_gradients_are_refused():
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    opt = torch.optim.SGD(net.parameters(), lr=.1)
    with DiGraP(.1, encoder='0').attach(net, opt) as cb:
        cb.start_epoch()
        net(torch.zeros(2, 2).long()).sum().backward()
        with pytest.raises(InputError, match='that of weight is sparse: take SPD'): opt.step()


def test_another_fit_starts_with_no_projection():
    cb = DiGraP(.5)
    learn = learner(cb, net=deep_net())
    learn.fit(2)
    assert max(cb.omega.values()) > 0 and next(iter(cb._learned.values()))[3] == 12
    learn.fit(1)
    assert next(iter(cb._learned.values()))[3] == 6
