"Distillation of outputs, each method against a formula written out by hand."
import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from helpers import data, learner, state
from strategy_helpers import check_deep, deep, maps, pooled, taught
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import BYOT, PSKD, LwF, soft_divergence


def test_soft_divergence_is_hintons_and_timms():
    rng = torch.Generator().manual_seed(0)
    s, t = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    for T in (1., 2., 4.):
        p, q = (np.exp(v.numpy()/T)/np.exp(v.numpy()/T).sum(1, keepdims=True) for v in (t, s))
        assert soft_divergence(s, t, T).item() == pytest.approx(T*T*(p*np.log(p/q)).sum(1).mean(), rel=1e-5)
    timm = pytest.importorskip('timm')
    task = pytest.importorskip('timm.task', reason='this timm has no distillation')
    a, b = (timm.create_model('test_resnet', num_classes=4) for _ in range(2))
    kd = task.LogitDistillationTask(a, b, criterion=nn.CrossEntropyLoss(), temperature=3., distill_loss_weight=1.,
                                    verbose=False)
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    kd.eval()
    out = kd(x, y)
    a.eval(), b.eval()
    with torch.no_grad():
        assert out['kd_loss'].item() == pytest.approx(soft_divergence(a(x), b(x), 3.).item(), rel=1e-4)


def test_lwf():
    start = deep()
    torch.manual_seed(5)
    head = nn.Linear(6, 7)
    def extra(net, x, y, f, logits):
        p = (head(taught(start[0], x)[-1])/2).softmax(1)
        q = (head(f[-1])/2).log_softmax(1)
        return .5*4*(p*(p.log() - q)).sum(1).mean().nan_to_num()
    frozen = state(head)
    check_deep(LwF(.5, head), extra, rtol=1e-4)
    # ours by hand; the callback's is a copy
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), state(head).values()))
    assert head.weight.grad is not None
    with pytest.raises(InputError, match='LwF needs the head of the source task.*probe_head'): LwF(1., None)
    with pytest.raises(ValueError, match='T must be positive'): LwF(1., head, T=0)


def test_pskd():
    now = {}
    def begin(net, e): now.update(t=copy.deepcopy(net), e=e)
    def extra(net, x, y, f, logits):
        if now['e'] == 0: return 0.
        t = copy.deepcopy(now['t']).train()
        with torch.no_grad(): p = t(x).softmax(1)
        a = .8*(now['e'] + 1)/3
        target = (1 - a)*F.one_hot(y, 3) + a*p
        return -(target*logits.log_softmax(1)).sum(1).mean() - F.cross_entropy(logits, y)  # in place of the hard labels
    learn = check_deep(PSKD(.8), extra, 3, begin=begin)
    assert learn.recorder.values[0][2] == 0 and learn.recorder.values[1][2] != 0
    with pytest.raises(ValueError, match='at most 1'): PSKD(2.)
    class Hot(Callback):
        def before_batch(self): self.learn.yb = (F.one_hot(self.yb[0], 3).float(),)
    learn = learner([PSKD(.5), Hot()], net=deep())
    learn.loss_func = F.binary_cross_entropy_with_logits
    with pytest.raises(InputError, match='class numbers.*not for multi-label targets'): learn.fit(1)


def test_byot():
    "Heads of the same start, an optimizer of their own; one layer before the last"
    torch.manual_seed(0)
    widen, classify = nn.Linear(4, 6), nn.Linear(6, 3)
    own = torch.optim.SGD([*widen.parameters(), *classify.parameters()], lr=.05, momentum=.9)
    net = deep()
    hand = copy.deepcopy(net)
    opt = torch.optim.SGD(hand.parameters(), lr=.05, momentum=.9)
    for _ in range(2):
        hand.train()
        for x, y in data().train:
            f = maps(hand[0], x)
            logits = hand[1](f[-1])
            g = widen(pooled(f[0]))
            q, p = classify(g.relu())/3, (logits.detach()/3).softmax(1)
            hard = F.cross_entropy(3*q, y)
            soft = 9*(p*(p.log() - q.log_softmax(1))).sum(1).mean()
            hint = ((g - f[-1].detach())**2).mean()
            loss = F.cross_entropy(logits, y) + .5*(.8*hard + .2*soft + .1*hint)
            opt.zero_grad(), own.zero_grad()
            loss.backward()
            opt.step(), own.step()
    cb = BYOT(.5, alpha=.2, beta=.1)
    learn = learner(cb, net=net, lr=.05, opt_func=partial(SGD, mom=.9))
    learn.fit(2)
    for a, b in zip(state(learn.model).values(), state(hand).values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cb.aux[0][0].weight, widen.weight, rtol=1e-4, atol=1e-6)
    assert state(learn.model).keys() == state(deep()).keys()
    with pytest.raises(InputError, match='no layers before the last'): learner(BYOT(1., layers=[]), net=deep()).fit(1)
    with pytest.raises(ValueError, match='alpha'): BYOT(1., alpha=2)
