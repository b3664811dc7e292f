"`KLToBase` and `FLOW`, against loops in plain PyTorch whose probe is scikit-learn's."
import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.learner import load_learner
from fastai.optimizer import SGD
from helpers import data, learner, model, same, state
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from strategy_helpers import assert_close_nets, check_deep, deep, deep_by_hand, maps, taught
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import FLOW, KLToBase, LwF
from sdfast.strategies.loop import PlainLoop

HOW = dict(lr=.05, opt_func=partial(SGD, mom=.9))


def source_head(n=5):
    torch.manual_seed(5)
    return nn.Linear(6, n)


def divergence(head, start, x, features):
    "KL(p_0 || p) in plain arithmetic"
    p, q = head(taught(start[0], x)[-1]).softmax(1), head(features[-1]).softmax(1)
    return (p*(p/q).log()).sum(1).mean()


def base(net):
    "The encoder before training in eval mode, as a function"
    frozen = copy.deepcopy(net[0]).eval().requires_grad_(False)
    return lambda x: maps(frozen, x)[-1].as_subclass(torch.Tensor)


def probe_of(net):
    "The function from features to logits that scikit-learn finds for the training clips"
    x, y = (torch.cat(t) for t in zip(*data().train))
    f = base(net)(x)
    scale = StandardScaler().fit(f.numpy())
    found = LogisticRegression(max_iter=1000, C=.1).fit(scale.transform(f.numpy()), y.numpy())
    mean, std, w, b = (torch.tensor(v).double() for v in (scale.mean_, scale.scale_, found.coef_, found.intercept_))
    return lambda f: ((f.double() - mean)/std @ w.T + b).float()


# ---- KL to the base

def test_kl_base_is_its_formula():
    head, start = source_head(), deep()
    def extra(net, x, y, f, logits): return 2*divergence(head, start, x, f)
    check_deep(KLToBase(2., head), extra, rtol=1e-4)


def test_kl_base_of_a_probe_needs_no_head():
    start = deep()
    probe = probe_of(start)
    def extra(net, x, y, f, logits): return 2*divergence(probe, start, x, f)
    cb = KLToBase(2.)
    check_deep(cb, extra, rtol=1e-3)
    assert isinstance(cb.head, nn.Linear) and not any(p.requires_grad for p in cb.head.parameters())


def test_kl_base_at_temperature_2_is_lwf():
    head = source_head()
    kl, lwf = learner(KLToBase(2., head, T=2.), net=deep(), **HOW), learner(LwF(2., head), net=deep(), **HOW)
    kl.fit(2), lwf.fit(2)
    assert same(state(kl.model), state(lwf.model))


def test_kl_base_of_independent_logits_is_summed_over_them():
    head, start = source_head(4), deep()
    def extra(net, x, y, f, logits):
        p, q = head(taught(start[0], x)[-1]).sigmoid(), head(f[-1]).sigmoid()
        return (p*(p/q).log() + (1 - p)*((1 - p)/(1 - q)).log()).sum(1).mean()
    check_deep(KLToBase(1., head, activation='sigmoid'), extra, rtol=1e-3)


@pytest.mark.parametrize('make', [lambda: KLToBase(1e3), lambda: KLToBase(1e3, source_head())])
def test_kl_base_of_an_encoder_that_has_not_moved_is_exactly_0(make):
    cb = make()
    learner(cb, net=deep(), lr=0.).fit(1)
    assert cb.mean_term() == 0


# ---- FLOW

def flow_by_hand(lam, head=None, temperature=None, smoothing=0., weight=None, epochs=2):
    "Weights of clips in each batch from the frozen encoder, the mean of weighted losses"
    net = deep()
    features = base(net)
    head = probe_of(net) if head is None else head.requires_grad_(False)
    def plain(x, y): return F.cross_entropy(head(features(x)), y, reduction='none')
    everything = torch.cat([plain(x, y) for x, y in data().train])
    T = temperature or float(everything.sort().values[(len(everything) - 1)//2])
    def extra(net, x, y, f, logits):
        w = torch.tensor([1 - lam + lam*math.exp(-v/T) for v in plain(x, y).tolist()])
        each = F.cross_entropy(logits, y, weight, reduction='none', label_smoothing=smoothing)
        count = len(y) if weight is None else weight[y].sum()
        return (w*each).sum()/count - F.cross_entropy(logits, y)  # which `deep_by_hand` adds
    return deep_by_hand(net, extra, epochs)


@pytest.mark.parametrize('lam', [1., .4])
def test_flow_is_the_loop_of_its_authors(lam):
    learn = learner(FLOW(lam), net=deep(), **HOW)
    learn.fit(2)
    assert_close_nets(learn.model, flow_by_hand(lam), rtol=1e-3, atol=1e-5)
    plain = learner(net=deep(), **HOW)
    plain.fit(2)
    assert not torch.allclose(plain.model[0].body.one[0].weight, learn.model[0].body.one[0].weight, atol=1e-4)


def test_flow_with_a_head_and_a_temperature():
    head = source_head(3)
    learn = learner(FLOW(1., head, temperature=.7), net=deep(), **HOW)
    learn.fit(2)
    assert_close_nets(learn.model, flow_by_hand(1., head, .7), rtol=1e-3, atol=1e-5)
    other = learner(cb := FLOW(1., head), net=deep(), **HOW)
    other.fit(2)
    assert_close_nets(other.model, flow_by_hand(1., head), rtol=1e-3, atol=1e-5)
    assert cb.median != .7


@pytest.mark.parametrize('options', [dict(label_smoothing=.2), dict(weight=torch.tensor([1., 3., .5]))])
def test_flow_weights_the_tasks_own_loss(options):
    learn = learner(FLOW(1.), net=deep(), **HOW)
    learn.loss_func = nn.CrossEntropyLoss(**options)
    learn.fit(2)
    want = flow_by_hand(1., smoothing=options.get('label_smoothing', 0.), weight=options.get('weight'))
    assert_close_nets(learn.model, want, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings('error:.*has no effect')
def test_flow_weights_what_a_head_on_a_frozen_encoder_learns_from():
    def fit(*cbs):
        net = deep()
        net[0].requires_grad_(False)
        learner(cbs, net=net, **HOW).fit(2)
        return net[1].weight
    assert not torch.allclose(fit(FLOW(1.)), fit(), atol=1e-3)


class Hot(Callback):
    "Multi-label targets: the class, and the next one"
    def before_batch(self):
        y = F.one_hot(self.learn.yb[0], 3).float()
        self.learn.yb = ((y + y.roll(1, 1)).clamp(max=1),)


def test_flow_of_independent_logits_weights_their_mean():
    head, net = source_head(3), deep()
    learn = learner([FLOW(1., head, temperature=1.), Hot()], net=deep(), **HOW)
    learn.loss_func = nn.BCEWithLogitsLoss()
    learn.fit(2)
    features, opt = base(net), torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    for _ in range(2):
        net.train()
        for x, y in data().train:
            y = F.one_hot(y, 3).float()
            y = (y + y.roll(1, 1)).clamp(max=1)
            def losses(z, y=y): return F.binary_cross_entropy_with_logits(z, y, reduction='none').mean(1)
            loss = ((-losses(head(features(x)))).exp().detach()*losses(net(x))).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
    assert_close_nets(learn.model, net, rtol=1e-3, atol=1e-5)


def mean_of_squares(z, y): return (z.softmax(1) - F.one_hot(y, 3)).square().mean()  # a loss that nobody knows
def centred(z, y): return F.cross_entropy(z - z.mean(0), y)  # of clips together
def summed(z, y): return F.cross_entropy(z, y, reduction='sum')


def test_a_loss_that_does_not_give_that_of_each_clip_is_refused_or_asked_clip_by_clip():
    def fit(loss, cb=None):
        learn = learner([cb or FLOW(1.)], net=deep(), **HOW)
        learn.loss_func = loss
        learn.fit(1)
        return learn.model
    plain = fit(nn.CrossEntropyLoss())
    assert_close_nets(fit(lambda z, y: F.cross_entropy(z, y)), plain, rtol=1e-4)
    assert all(p.isfinite().all() for p in fit(mean_of_squares).parameters())
    with pytest.raises(InputError, match='does not give the loss of each clip'): fit(centred)
    with pytest.raises(InputError, match='a mean over the batch'): fit(summed)
    with pytest.raises(InputError, match='no MixUp'): learner([FLOW(1.), MixUp(.4)], net=deep(), **HOW).fit(1)


# ---- both

@pytest.mark.parametrize('strategy', [KLToBase, FLOW])
def test_a_class_without_training_clips_gets_no_probability(strategy):
    "Such as the classes of earlier tasks where a head grows; the others have what a probe of them alone gives"
    probes = []
    for spread in (1, 2):
        cb = strategy(1.).attach(model(), batches=[(x, spread*y) for x, y in data().train])
        f = cb.teacher(next(iter(data().train))[0])
        probes.append(cb.head(f).softmax(1))
    alone, spread = probes
    torch.testing.assert_close(spread[:, [0, 2, 4]], alone)
    assert not spread[:, [1, 3]].any()


def test_what_they_cannot_do_is_said_in_one_line():
    with pytest.raises(InputError, match='at most 1, not 2'): FLOW(2.)
    with pytest.raises(InputError, match='temperature of FLOW must be a number above 0, not 0'): FLOW(1., temperature=0)
    with pytest.raises(InputError, match='head of FLOW is a module'): FLOW(1., 'probe')
    with pytest.raises(InputError, match='KLToBase needs the head of the source task.*not str'): KLToBase(1., 'probe')
    for cb in (KLToBase(1.), FLOW(1.)):
        with pytest.raises(InputError, match='without the training data no probe can be fitted'): cb.attach(model())
    with pytest.raises(InputError, match='the median loss is not known'): FLOW(1., source_head()).attach(model())
    for cb in (KLToBase(1.), FLOW(1.)):
        clips = [(x, y.float()/2) for x, y in data().train]
        with pytest.raises(InputError, match=r'fits a probe on class numbers, not on targets \(48,\)'):
            cb.attach(model(), batches=clips)
    flow = FLOW(1.).attach(net := model(), batches=data().train)
    flow.start_epoch()
    net[1] = nn.Linear(6, 4)
    net(torch.randn(2, 1, 6, 6))
    with pytest.raises(InputError, match='the label 3 is not one of the 3 classes'): flow.loss(torch.tensor([0, 3]))


@pytest.mark.parametrize('make', [lambda: KLToBase(2.), lambda: FLOW(1.)])
def test_a_probe_continues_from_a_saved_state(make):
    def train(cb, net, epochs):
        opt = torch.optim.SGD(net.parameters(), lr=.1)
        net.train()
        for e in epochs:
            cb.start_epoch(e)
            for x, y in data().train:
                (F.cross_entropy(net(x), y) + cb.loss(y)).backward()
                opt.step()
                opt.zero_grad()
        return net
    whole = model()
    train(make().attach(whole, batches=data().train), whole, [0, 1])
    net = model()
    first = make().attach(net, batches=data().train)
    train(first, net, [0])
    saved, other = copy.deepcopy(first.state_dict()), make()
    first.detach()
    other.enter(PlainLoop(other, net), state=saved)  # without the training data
    for a, b in zip(train(other, net, [1]).parameters(), whole.parameters()): assert torch.equal(a, b)


@pytest.mark.parametrize('make', [lambda: KLToBase(1.), lambda: FLOW(1.)])
def test_a_probe_is_of_one_task_and_is_not_exported(make, tmp_path):
    cb = make()
    learn = learner(cb, path=tmp_path, net=deep(), lr=.05)
    learn.fit(1)
    first = cb.head
    learn.fit(1)
    assert cb.head is first
    learn.model[1], learn.opt = nn.Linear(6, 3), None  # another task on the same encoder
    learn.fit(1)
    assert cb.head is not first and torch.equal(cb.head.weight, first.weight)  # of the encoder before training
    learn.export('x.pkl')
    loaded = load_learner(tmp_path/'x.pkl')
    assert loaded.cbs[-1].head is None
    loaded.dls, loaded.logger = data(), lambda *a: None
    with pytest.raises(ValueError, match='lacks the weights from before training'): loaded.fit(1)
