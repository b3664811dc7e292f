"Distillation of outputs, each method against a formula written out by hand."
import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
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


# ---- the task's own loss

W = torch.tensor([1., 7., 2.])
LOSSES = dict(plain=CrossEntropyLossFlat(), weights=CrossEntropyLossFlat(weight=W), focal=FocalLossFlat(),
              smoothing=LabelSmoothingCrossEntropyFlat(eps=.1), own=lambda z, y: 2*F.cross_entropy(z, y))


# fastai mixes only losses of its own
@pytest.mark.parametrize('loss,mixed', [*((n, False) for n in LOSSES), *((n, True) for n in LOSSES if n != 'own')])
def test_pskd_replaces_a_share_of_the_tasks_loss(loss, mixed):
    "In the last epoch with lam 1 nothing of y is left; before, its share is that of the loss"
    cb, seen = PSKD(1.), []
    class See(Callback):
        order = 6
        def after_loss(self):
            if not self.training or cb.teacher is None: return
            share, p = (self.epoch + 1)/3, cb.teacher(*self.learn.xb).softmax(1)
            want = (1 - share)*self.learn.loss + share*F.cross_entropy(self.learn.pred, p)
            seen.append(((self.learn.loss_grad - want).abs() < 1e-5).item())
    learn = learner([cb, See(), *([MixUp(.4)] if mixed else [])], net=deep(), lr=.05)
    learn.loss_func = LOSSES[loss]
    learn.fit(3)
    assert len(seen) == 12 and all(seen)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_byot_learns_mixed_labels(mix):
    cb, mixer, seen = BYOT(1., layers=['body.one'], alpha=0., beta=0.), mix(.4), []
    class See(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            widen, classify = cb.aux[0]
            q = classify(widen(pooled(cb.calls('body.one')[0][2])).relu())
            losses = [F.cross_entropy(q, y, reduction='none') for y in (self.learn.yb[0], mixer.yb1[0])]
            want = (mixer.lam*losses[0] + (1 - mixer.lam)*losses[1]).mean()
            seen.append((cb.pull - want).abs().item() < 1e-5)
    learner([cb, mixer, See()], net=deep()).fit(1)
    assert len(seen) == 6 and all(seen)


def test_byot_makes_other_heads_for_another_task():
    cb = BYOT(1., layers=['body.one'])
    learn = learner(cb, net=deep(), lr=.05)
    learn.fit(1)
    first = cb.aux
    learn.fit(1)
    assert cb.aux is first
    learn.model[1], learn.opt = nn.Linear(6, 5), None
    learn.fit(1)
    assert cb.aux is not first and cb.aux[0][1].out_features == 5
    second = cb.aux
    learn.model[1], learn.opt = nn.Linear(6, 5), None  # as many classes, but another task
    learn.fit(1)
    assert cb.aux is not second


# ---- LwF and independent logits

def bernoulli_divergence(s, t, T):
    p, q = (t/T).sigmoid(), (s/T).sigmoid()
    return T*T*(p*(p/q).log() + (1 - p)*((1 - p)/(1 - q)).log()).sum(1).mean()


@pytest.mark.parametrize('n', [1, 4])
def test_lwf_of_independent_logits_is_the_binary_divergence(n):
    s, t = torch.randn(6, n), torch.randn(6, n)
    torch.testing.assert_close(soft_divergence(s, t, 3., 'sigmoid'), bernoulli_divergence(s, t, 3.))
    torch.manual_seed(5)
    head, start = nn.Linear(6, n), deep()
    def extra(net, x, y, f, logits): return .5*bernoulli_divergence(head(f[-1]), head(taught(start[0], x)[-1]), 2.)
    check_deep(LwF(.5, head, activation='sigmoid'), extra, rtol=1e-3)


def test_lwf_goes_by_the_tasks_loss_unless_told():
    def term(head, loss, **kwargs):
        cb = LwF(1., head, **kwargs)
        learn = learner([cb, type('Hot', (Callback,), dict(before_batch=hot))()], net=deep(), lr=.05)
        learn.loss_func = loss
        learn.fit(1)
        return cb.mean_term()
    def hot(self): self.learn.yb = (F.one_hot(self.learn.yb[0], 3).float(),)
    torch.manual_seed(5)
    head, one = nn.Linear(6, 4), nn.Linear(6, 1)
    bce, ce = F.binary_cross_entropy_with_logits, F.cross_entropy
    assert term(head, bce) == term(head, bce, activation='sigmoid') != term(head, bce, activation='softmax')
    assert term(head, ce) == term(head, ce, activation='softmax') and term(one, bce) > 0
    with pytest.raises(InputError, match='the source head has one output'): term(one, ce)
    with pytest.raises(InputError, match="not for numbers to predict.*activation='softmax'"): term(head, F.mse_loss)
    assert term(head, F.mse_loss, activation='softmax') > 0
    with pytest.raises(InputError, match="'softmax' or 'sigmoid', not 'tanh'"): LwF(1., head, activation='tanh')


@pytest.mark.parametrize('make', [lambda: PSKD(.8), lambda: BYOT(1., layers=['body.one'])])
def test_the_loss_of_a_plain_loop_is_an_argument(make):
    def fit(criterion, mine):
        net, cb, dls = deep(), make(), data()
        opt = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
        with cb.attach(net, opt, epochs=2, **({'criterion': criterion} if mine else {})):
            for _ in range(2):
                cb.start_epoch()
                net.train()
                for x, y in dls.train:
                    (criterion(net(x), y) + cb.loss(y)).backward()
                    opt.step()
                    cb.after_step()
                    opt.zero_grad()
        return net
    weighted = nn.CrossEntropyLoss(weight=W)
    learn = learner(make(), net=deep(), lr=.05, opt_func=partial(SGD, mom=.9))
    learn.loss_func = weighted
    learn.fit(2)
    for a, b in zip(fit(weighted, True).parameters(), learn.model.parameters()): torch.testing.assert_close(a, b)
    first = next(learn.model.parameters())
    assert not torch.allclose(next(fit(weighted, False).parameters()), first, atol=1e-5)
