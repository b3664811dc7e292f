"What tests of strategies share: callbacks that interfere, models of other shapes, loops in plain PyTorch."
import copy
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.optimizer import SGD
from helpers import data, learner, model, state
from torch import nn

from sdfast.strategies import BSS, R3F, STRATEGIES, CoTuning, Penalty

needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason="LoRA needs PEFT: pip install -e '.[lora]'")

PENALTIES = [n for n, s in STRATEGIES.items() if s.callback is not None and issubclass(s.callback, Penalty)]
# those whose term is 0 for an encoder that has not moved
AT_0 = {'self_distill', 'fixed_teacher', 'ldifs', 'ema_teacher', 'lwf', 'kl_base', 'feature_maps', 'delta', 'l2sp',
        'ewc', 'mas', 'si'}
TAKES = AT_0 - {'self_distill'}  # those that need something from before training, which is not exported


def penalty_by_hand(net, penalty, lam, epochs, lr=.1, dls=None, on_epoch=lambda e: None, on_step=lambda e: None):
    "Plain PyTorch: CE plus `lam * penalty(encoder, x, features)`"
    dls, opt = dls or data(), torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    for _ in range(epochs):
        net.train()
        on_epoch(net[0])
        for x, y in dls.train:
            f = net[0](x)
            loss = F.cross_entropy(net[1](f), y) + lam*penalty(net[0], x, f)
            opt.zero_grad()
            loss.backward()
            opt.step()
            on_step(net[0])
    return net


class Wrapped(nn.Module):
    "A model with an `encoder` that gets twice the input"
    def __init__(self):
        super().__init__()
        self.encoder, self.top = model()

    def forward(self, x): return self.top(self.encoder(2*x))


class Other(nn.Module):
    "A model whose encoder has another name"
    def __init__(self):
        super().__init__()
        self.body, self.top = model()

    def forward(self, x): return self.top(self.body(x))


class Deep(nn.Module):
    "Two blocks and a pooled output"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential()
        self.body.add_module('one', nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
        self.body.add_module('two', nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()))
        self.body.add_module('pool', nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))

    def forward(self, x): return self.body(x)


def deep(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(Deep(), nn.Linear(6, 3))


def maps(net, x):
    "Outputs of both blocks and of the encoder"
    one = net.body.one(x)
    two = net.body.two(one)
    return one, two, net.body.pool(two)


def taught(t, x):
    "A copy of the teacher in train mode, thrown away with its buffers"
    with torch.no_grad(): return maps(copy.deepcopy(t).train(), x)


def deep_by_hand(net, extra, epochs=2, lr=.05, begin=lambda net, e: None):
    "Plain PyTorch: CE plus `extra(whole net, x, y, features)`"
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    for e in range(epochs):
        begin(net, e)
        net.train()
        for x, y in data().train:
            feats = maps(net[0], x)
            logits = net[1](feats[-1])
            opt.zero_grad()
            (F.cross_entropy(logits, y) + extra(net, x, y, feats, logits)).backward()
            opt.step()
    return net


def check_deep(cb, extra, epochs=2, begin=lambda net, e: None, rtol=1e-5):
    "Check that a fit with the callback `cb` equals `deep_by_hand` with `extra`; returns the learner"
    net = deep()
    want = deep_by_hand(copy.deepcopy(net), extra, epochs, begin=begin)
    learn = learner(cb, net=net, lr=.05, opt_func=partial(SGD, mom=.9))
    learn.fit(epochs)
    plain = learner(net=deep(), lr=.05, opt_func=partial(SGD, mom=.9))
    plain.fit(epochs)
    assert_close_nets(learn.model, want, rtol=rtol)
    ours, theirs = learn.model[0].body.one[0].weight, plain.model[0].body.one[0].weight
    assert not torch.allclose(ours, theirs, atol=1e-5), 'the penalty had no effect'
    return learn


def pooled(f): return f.mean((2, 3)) if f.ndim == 4 else f


def seeded_head(seed=9, n=5):
    "A source head that is the same whatever the random state"
    g = torch.Generator().manual_seed(seed)
    head = nn.Linear(6, n)
    with torch.no_grad():
        for p in head.parameters(): p.copy_(torch.randn(p.shape, generator=g))
    return head


FEATURE_PENALTIES = dict(bss=BSS, co_tuning=lambda lam: CoTuning(lam, seeded_head()), r3f=lambda lam: R3F(lam, eps=.1))


class CPUAutocast(MixedPrecision):
    "bfloat16 on CPUs: `CPUAutocast('bf16')`"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)


def assert_close_nets(a, b, **kw):
    tolerance = dict(rtol=1e-5, atol=1e-6) | kw
    for u, v in zip(a.state_dict().values(), b.state_dict().values()): torch.testing.assert_close(u, v, **tolerance)


def term_by_hand(net, term, lam, epochs=2, params=(), on_epoch=lambda e: None):
    "Plain PyTorch: CE plus `lam*term(net, x, y, features, logits)`"
    dls, opt = data(), torch.optim.SGD([*net.parameters(), *params], lr=.1, momentum=.9)
    for epoch in range(epochs):
        net.train()
        on_epoch(epoch)
        for x, y in dls.train:
            f = net[0](x)
            pred = net[1](f)
            loss = F.cross_entropy(pred, y) + lam*term(net, x, y, f, pred)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return net


def relate(net, head, dl):
    "p(y_s|y_t) of the head on the encoder's features, as means over target classes"
    net = copy.deepcopy(net).eval()
    with torch.no_grad(): p, y = (torch.cat(t) for t in zip(*[(head(net[0](x)).softmax(1), y) for x, y in dl]))
    return torch.stack([p[y == c].mean(0) for c in range(3)])


def assert_close_states(a, b, **kw):
    assert a.keys() == b.keys()
    tolerance = dict(rtol=1e-5, atol=1e-6) | kw
    for k in a: torch.testing.assert_close(a[k], b[k], **tolerance, msg=lambda m: f'{k}: {m}')


def source(n=20, bs=8, seed=5, **kw):
    "Loader of source images that shuffles"
    return data(n=n, bs=bs, seed=seed).train.new(shuffle=True, drop_last=False, **kw)


def source_head():
    torch.manual_seed(7)
    return nn.Linear(6, 3)


def clean(learn):
    "Nothing of a callback is left in a learner"
    net, encoder = learn.model, learn.model[0]
    assert state(net).keys() == state(model()).keys() and not [k for k in vars(encoder) if 'peft' in k]
    assert all(p.requires_grad for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert all(m.momentum == .1 and m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert not len(learn.metrics) and 'step' not in vars(learn.opt)
    assert {id(p) for ps in learn.opt.param_lists for p in ps} == {id(p) for p in net.parameters()}


class Stop(Callback):
    "Raises `error` in the third batch of an epoch"
    order, run_valid = 20, False
    def __init__(self, error, epoch=0): self.error, self.at = error, epoch
    def after_loss(self):
        if self.iter == 2 and self.epoch == self.at: raise self.error


def loop_by_hand(net, epochs, opt, term=lambda x, y: 0, mode=lambda net, e: None, dls=None):
    "Plain PyTorch with CE"
    dls = dls or data()
    for e in range(epochs):
        net.train()
        mode(net, e)
        for x, y in dls.train:
            loss = F.cross_entropy(net(x), y) + term(x, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return state(net)


def sgd(net, lr=.1): return torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)


def moved(net):
    "A measure by formula: 1 for the encoder of `net`, less the further its weights are"
    start = [p.detach().clone() for p in net[0].parameters()]
    def kept(encoder):
        far = sum((p - w).square().sum() for p, w in zip(encoder.parameters(), start))
        return 1 - far.sqrt().item()/10
    return kept
