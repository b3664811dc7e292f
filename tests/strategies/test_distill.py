"Distillation of layers, maps, outputs and whole models, each against a formula written out by hand."
import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.optimizer import SGD
from helpers import data, learner, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.surgery import block_names
from sdfast.strategies import (
    BYOT,
    DELTA,
    PSKD,
    EMATeacher,
    FeatureMaps,
    FixedTeacher,
    LwF,
    SelfDistill,
    channel_attention,
    map_distance,
    soft_divergence,
)


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


def by_hand(net, extra, epochs=2, lr=.05, begin=lambda net, e: None):
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


def check(cb, extra, epochs=2, begin=lambda net, e: None, rtol=1e-5):
    net = deep()
    want = by_hand(copy.deepcopy(net), extra, epochs, begin=begin)
    learn = learner(cb, net=net, lr=.05, opt_func=partial(SGD, mom=.9))
    learn.fit(epochs)
    plain = learner(net=deep(), lr=.05, opt_func=partial(SGD, mom=.9))
    plain.fit(epochs)
    for a, b in zip(state(learn.model).values(), state(want).values()): torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)
    assert not torch.allclose(learn.model[0].body.one[0].weight, plain.model[0].body.one[0].weight, atol=1e-5)  # it did something
    return learn


def pooled(f): return f.mean((2, 3)) if f.ndim == 4 else f


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_several_layers_side_by_side(cls, reduction):
    start, now = deep(), {}
    def extra(net, x, y, f, logits):
        t = taught(now['t'] if cls is SelfDistill else start[0], x)
        s, t = (torch.cat([pooled(g[0]), pooled(g[1])], 1) for g in (f, t))
        d = ((s - t)**2).sum()
        return (2. if reduction == 'mean' else .01)*(d/s.numel() if reduction == 'mean' else d)
    check(cls(2. if reduction == 'mean' else .01, reduction=reduction, layers='blocks'), extra, 3, begin=lambda net, e: now.update(t=copy.deepcopy(net[0])))


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16, 'float16'])
@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
def test_a_teacher_in_half_precision(cls, dtype):
    "Each batch's distance is that to a copy of the teacher run under autocast by hand, its weights float32; and within rounding of the exact one"
    seen = []
    class Spy(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            (args, _, out), = cb.calls()
            low = torch.bfloat16 if 'bfloat16' in str(dtype) else torch.float16
            with torch.no_grad(), torch.autocast('cpu', low): t = copy.deepcopy(cb.teacher).train()(*args)
            with torch.no_grad(): exact = copy.deepcopy(cb.teacher).train()(*args)
            assert t.dtype == low
            seen.append(((cb.pull/.5).item(), F.mse_loss(out, t.float()).item(), F.mse_loss(out, exact).item(), ((t.float() - exact).norm()/exact.norm()).item()))
    cb = copy.deepcopy(cls(.5, teacher_dtype=dtype))
    learner([cb, Spy()]).fit(3)
    assert {p.dtype for p in cb.teacher.parameters()} == {torch.float32}
    got, want, exact, off = np.array(seen).T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)
    assert 0 < off.max() < (.03 if 'bfloat16' in str(dtype) else .004), 'rounding of a few layers: 8 and 11 bits'
    np.testing.assert_allclose(np.sqrt(got), np.sqrt(exact), rtol=.1, atol=.02)
    assert seen[0][0] > 0 == seen[0][2], 'before the first step the exact distance is 0, this one is not'


def test_half_precision_of_teacher_and_student_together_is_exact():
    "Under the fit's own autocast the option changes nothing: both forwards are rounded alike"
    class CPUAutocast(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
    def run(lr, **kw):
        learn = learner([SelfDistill(3., **kw), CPUAutocast('bf16')], lr=lr)
        learn.fit(2)
        return state(learn.model), learn.recorder.values[-1][-1]
    a, b = run(.1), run(.1, teacher_dtype='bfloat16')
    assert same(a[0], b[0]) and a[1] == b[1] > 0 and run(0., teacher_dtype='bfloat16')[1] == 0


@pytest.mark.parametrize('dtype', ['float32', 'half', 16, torch.float64, ''])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(ValueError, match="teacher_dtype must be 'bfloat16', 'float16' or None, not"): SelfDistill(1., teacher_dtype=dtype)


def test_blocks_and_names_of_layers():
    net = deep()
    assert block_names(net[0]) == ['body.one', 'body.two']
    learner(FixedTeacher(1., layers=['body.one.0', 'body.two']), net=deep()).fit(1)
    learner(EMATeacher(1., layers=['body.two']), net=deep()).fit(1)
    with pytest.raises(ValueError, match="no layer 'body.three'; it has .*body.two"): learner(SelfDistill(1., layers=['body.three']), net=deep()).fit(1)
    from sdfast.models.encoders import c3d, tiny
    assert block_names(c3d())[:3] == ['body.conv1', 'body.bn1', 'body.conv2'] and len(block_names(tiny())) == 4


@pytest.mark.parametrize('shape', [(5, 6), (5, 6, 4), (5, 6, 4, 3), (5, 6, 2, 4, 3)])
def test_map_distance_of_any_rank(shape):
    rng = np.random.default_rng(0)
    s, t, w = rng.normal(size=shape), rng.normal(size=shape), rng.dirichlet(np.ones(6))
    want = weighted = 0.
    for b in range(5):
        for c in range(6):
            d = np.mean((s[b, c] - t[b, c])**2)
            want, weighted = want + d/2/5, weighted + 6*w[c]*d/2/5
    got = [map_distance(torch.tensor(s), torch.tensor(t), v).item() for v in (None, torch.tensor(w))]
    # without weights each channel counts as if it had 1/C of the weight
    assert got == pytest.approx([want, weighted], rel=1e-5)
    assert map_distance(torch.tensor(s), torch.tensor(t), torch.full((6,), 1/6)).item() == pytest.approx(want, rel=1e-5)


def test_feature_maps_and_delta():
    start, w = deep(), {'body.one': torch.tensor([.7, .1, .1, .1]), 'body.two': torch.full((6,), 1/6)}
    def extra(weights):
        def f(net, x, y, feats, logits):
            total = 0.
            for s, t, name in zip(feats, taught(start[0], x), w):
                d = ((s - t)**2).mean((2, 3))  # (B, C)
                total = total + .5*(d*(weights[name]*d.shape[1] if weights else 1)).sum(1).mean()
            return .3*total
        return f
    check(FeatureMaps(.3), extra(None))
    check(DELTA(.3, w), extra(w))
    with pytest.raises(ValueError, match="4 weights for layer 'body.two', which has 6 channels"): learner(DELTA(1., {'body.two': torch.ones(4)/4}), net=deep()).fit(1)


def test_channel_attention_is_the_loss_without_the_channel():
    net, batches = deep(), [(x, y) for x, y in data().valid]
    before, modes = state(net), [m.training for m in net.modules()]
    w = channel_attention(net, batches)
    assert list(w) == ['body.one', 'body.two'] and all(v.sum().item() == pytest.approx(1) for v in w.values())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), state(net).values())) and [m.training for m in net.modules()] == modes
    net.eval()
    growth = []
    with torch.no_grad():
        x, y = (torch.cat(t) for t in zip(*batches))
        for c in range(6):
            f = net[0].body.two(net[0].body.one(x)).clone()
            f[:, c] = 0
            growth.append((F.cross_entropy(net[1](net[0].body.pool(f)), y) - F.cross_entropy(net(x), y)).item())
    torch.testing.assert_close(w['body.two'], torch.tensor(growth).div(5).softmax(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match='no samples'): channel_attention(net, [])


def test_soft_divergence_is_hintons_and_timms():
    rng = torch.Generator().manual_seed(0)
    s, t = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    for T in (1., 2., 4.):
        p, q = (np.exp(v.numpy()/T)/np.exp(v.numpy()/T).sum(1, keepdims=True) for v in (t, s))
        assert soft_divergence(s, t, T).item() == pytest.approx(T*T*(p*np.log(p/q)).sum(1).mean(), rel=1e-5)
    timm = pytest.importorskip('timm')
    task = pytest.importorskip('timm.task', reason='this timm has no distillation')
    a, b = (timm.create_model('test_resnet', num_classes=4) for _ in range(2))
    kd = task.LogitDistillationTask(a, b, criterion=nn.CrossEntropyLoss(), temperature=3., distill_loss_weight=1., verbose=False)
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    kd.eval()
    out = kd(x, y)
    a.eval(), b.eval()
    with torch.no_grad(): assert out['kd_loss'].item() == pytest.approx(soft_divergence(a(x), b(x), 3.).item(), rel=1e-4)


def test_lwf():
    start = deep()
    torch.manual_seed(5)
    head = nn.Linear(6, 7)
    def extra(net, x, y, f, logits):
        p = (head(taught(start[0], x)[-1])/2).softmax(1)
        q = (head(f[-1])/2).log_softmax(1)
        return .5*4*(p*(p.log() - q)).sum(1).mean().nan_to_num()
    frozen = state(head)
    check(LwF(.5, head), extra, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), state(head).values())) and head.weight.grad is not None  # ours by hand; the callback's is a copy
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
    learn = check(PSKD(.8), extra, 3, begin=begin)
    assert learn.recorder.values[0][2] == 0 and learn.recorder.values[1][2] != 0
    with pytest.raises(ValueError, match='at most 1'): PSKD(2.)
    class Soft(Callback):
        def before_batch(self): self.learn.yb = (F.one_hot(self.yb[0], 3).float(),)
    learn = learner([PSKD(.5), Soft()], net=deep())
    learn.loss_func = F.cross_entropy
    with pytest.raises(InputError, match='class numbers'): learn.fit(1)


def test_byot():
    "Heads of the same start, an optimizer of their own; one layer before the last"
    torch.manual_seed(0)
    widen, classify = nn.Linear(4, 6), nn.Linear(6, 3)
    own = torch.optim.SGD([*widen.parameters(), *classify.parameters()], lr=.05, momentum=.9)
    net = deep()
    hand, opt = copy.deepcopy(net), None
    opt = torch.optim.SGD(hand.parameters(), lr=.05, momentum=.9)
    for _ in range(2):
        hand.train()
        for x, y in data().train:
            f = maps(hand[0], x)
            logits = hand[1](f[-1])
            g = widen(pooled(f[0]))
            q, p = classify(g.relu())/3, (logits.detach()/3).softmax(1)
            loss = F.cross_entropy(logits, y) + .5*(.8*F.cross_entropy(3*q, y) + .2*9*(p*(p.log() - q.log_softmax(1))).sum(1).mean() + .1*((g - f[-1].detach())**2).mean())
            opt.zero_grad(), own.zero_grad()
            loss.backward()
            opt.step(), own.step()
    cb = BYOT(.5, alpha=.2, beta=.1)
    learn = learner(cb, net=net, lr=.05, opt_func=partial(SGD, mom=.9))
    learn.fit(2)
    for a, b in zip(state(learn.model).values(), state(hand).values()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cb.aux[0][0].weight, widen.weight, rtol=1e-4, atol=1e-6)
    assert state(learn.model).keys() == state(deep()).keys()
    with pytest.raises(InputError, match='no layers before the last'): learner(BYOT(1., layers=[]), net=deep()).fit(1)
    with pytest.raises(ValueError, match='alpha'): BYOT(1., alpha=2)


def test_a_layer_that_is_called_twice_is_told():
    class Twice(Deep):
        def forward(self, x): return self.body.pool(self.body.two(self.body.one(x)) + self.body.two(self.body.one(x)))
    torch.manual_seed(0)
    net = nn.Sequential(Twice(), nn.Linear(6, 3))
    with pytest.raises(RuntimeError, match="layer 'body.two' is called 2 times where the encoder is called 1"): learner(SelfDistill(1., layers=['body.two']), net=net).fit(1)


def test_model_of_the_tests_still_has_one_feature(): assert block_names(model()[0]) == ['conv', 'bn', 'out']


def test_a_teacher_is_compiled_as_its_student_is(monkeypatch):
    "And trains as an eager one does, epoch after epoch"
    compiled = []
    def compile_(self):
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend='eager')
    monkeypatch.setattr(nn.Module, 'compile', compile_)
    def train(fast):
        net = model()
        if fast: net[0].compile()
        learn = learner([SelfDistill(3.)], net=net)
        learn.fit(3)
        return state(learn.model), [float(l) for l in learn.recorder.losses]
    (a, la), (b, lb) = train(False), train(True)
    assert len(compiled) == 4 and all(m.training is False for m in compiled[1:]) and la == pytest.approx(lb, abs=1e-6)
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)
