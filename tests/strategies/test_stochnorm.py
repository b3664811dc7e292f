"Stochastic normalisation against NumPy and a loop by hand."
import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from helpers import Net, learner, model, same, state
from strategy_helpers import Stop, assert_close_nets, term_by_hand
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import SelfDistill, StochNorm, plain_norm, stoch_norm


def norm_of(dim, c=6, **kw):
    m = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1](c, **kw)
    g = torch.Generator().manual_seed(dim)
    with torch.no_grad():
        if m.affine: m.weight.copy_(torch.rand(c, generator=g) + .5), m.bias.copy_(torch.randn(c, generator=g))
        if m.running_mean is not None:
            m.running_mean.copy_(torch.randn(c, generator=g)), m.running_var.copy_(torch.rand(c, generator=g) + .5)
    return m


@pytest.mark.parametrize('dim,shape', [(1, (5, 6)), (1, (5, 6, 4)), (2, (4, 6, 3, 2)), (3, (3, 6, 2, 3, 2))])
@pytest.mark.parametrize('momentum,affine', [(.1, True), (None, True), (.3, False)])
def test_stoch_norm_equals_numpy(dim, shape, momentum, affine):
    m = norm_of(dim, momentum=momentum, affine=affine)
    rm, rv = m.running_mean.numpy().astype(float), m.running_var.numpy().astype(float)
    w, b = (m.weight.detach().numpy(), m.bias.detach().numpy()) if affine else (np.ones(6), np.zeros(6))
    stoch_norm(m, .4)
    rng = np.random.default_rng(0)
    for step in (1, 2):
        x = rng.normal(1, 2, shape).astype('f')
        torch.manual_seed(step)
        moving = (torch.rand(6) < .4).numpy()
        torch.manual_seed(step)
        got, want = m(torch.tensor(x)).detach().numpy(), np.empty(shape)
        assert 0 < moving.sum() < 6
        for c in range(6):
            v = x[:, c].astype(float)
            mean, var = (rm[c], rv[c]) if moving[c] else (v.mean(), v.var())
            want[:, c] = w[c]*(v - mean)/np.sqrt(var + m.eps) + b[c]
            a = 1/step if momentum is None else momentum
            rm[c], rv[c] = (1 - a)*rm[c] + a*v.mean(), (1 - a)*rv[c] + a*v.var(ddof=1)
        np.testing.assert_allclose(got, want, atol=1e-5)
        np.testing.assert_allclose(m.running_mean, rm, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(m.running_var, rv, rtol=1e-5, atol=1e-6)
        assert m.num_batches_tracked == step


def test_p_is_the_part_of_channels_with_moving_statistics():
    for p in (.1, .5, .9):
        m, x = nn.BatchNorm2d(4000), torch.randn(4, 4000, 1, 1)
        torch.manual_seed(0)
        y = stoch_norm(m, p)(x)
        moving = x/(1 + m.eps)**.5  # initial statistics are 0 and 1
        assert torch.isclose(y, moving).all(3).all(2).all(0).float().mean() == pytest.approx(p, abs=.03)


def test_p_1_uses_moving_statistics_only_and_p_0_draws_nothing():
    m, x = norm_of(2), torch.randn(4, 6, 3, 3)
    want = copy.deepcopy(m).eval()(x)
    assert torch.equal(stoch_norm(copy.deepcopy(m), 1.)(x), want)
    rng = torch.get_rng_state()
    zero = stoch_norm(copy.deepcopy(m), 0.)
    assert type(zero) is nn.BatchNorm2d and torch.equal(zero(x), m(x)) and torch.equal(rng, torch.get_rng_state())


def test_the_gradient_of_stoch_norm():
    "Also where a second call moves the statistics that the first one has normalised by"
    a, b, w = torch.randn(3, 5, 6).double()
    def f(a, again=False):
        m = stoch_norm(norm_of(1).double(), .5)
        torch.manual_seed(0)
        y = m(a)
        if again: m(10*b)
        return y
    assert torch.autograd.gradcheck(f, a.requires_grad_())
    assert torch.equal(*(torch.autograd.grad((w*f(a, again)).sum(), a)[0] for again in (False, True)))


def test_where_stoch_norm_is_plain():
    x = torch.randn(4, 6, 3, 3)
    for make in (lambda: norm_of(2).eval(), lambda: norm_of(2, track_running_stats=False),
                 lambda: norm_of(2, track_running_stats=False).eval()):
        m, rng = make(), torch.get_rng_state()
        assert torch.equal(stoch_norm(make(), .9)(x), m(x)) and torch.equal(rng, torch.get_rng_state())
    m = stoch_norm(norm_of(2), .9)
    m.track_running_stats = False  # as in a teacher, and in `keep_buffers`
    before = state(m)
    assert torch.equal(m(x), F.batch_norm(x, None, None, m.weight, m.bias, True)) and same(before, state(m))


def test_a_kind_of_batch_norm_with_a_forward_of_its_own():
    from timm.layers import BatchNormAct2d
    m, x = BatchNormAct2d(6), torch.randn(4, 6, 3, 3)
    m.running_mean.fill_(.3)
    want = F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias).relu()
    assert torch.equal(stoch_norm(m, 1.)(x), want) and m.running_mean[0] != .3
    assert type(plain_norm(m)) is BatchNormAct2d


def test_copies_and_pickles_of_stoch_norm_are_plain():
    net = model()
    keys = net.state_dict().keys()
    stoch_norm(net[0], .5)
    assert net.state_dict().keys() == keys
    assert type(net[0].bn) is not nn.BatchNorm2d
    assert isinstance(net[0].bn, nn.BatchNorm2d)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), copy.copy(net[0].bn), pickle.loads(pickle.dumps(net)),
                  torch.load(file, weights_only=False)):
        bns = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [type(m) for m in bns] == [nn.BatchNorm2d] and torch.equal(bns[0].weight, net[0].bn.weight)
    twice = stoch_norm(stoch_norm(net[0], .5), .9)
    assert twice.bn.p == .9 and type(plain_norm(twice).bn) is nn.BatchNorm2d


class HandNorm(nn.BatchNorm2d):
    "The same in plain torch operations"
    def forward(self, x):
        if not self.training: return super().forward(x)
        s = (torch.rand(self.num_features) < .5).float()
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        a, b = s*self.running_mean + (1 - s)*mean, s*self.running_var + (1 - s)*var
        with torch.no_grad():
            n = x.numel()/x.shape[1]
            self.running_mean = .9*self.running_mean + .1*mean
            self.running_var = .9*self.running_var + .1*var*n/(n - 1)
            self.num_batches_tracked += 1
        v = (1, -1, 1, 1)
        return self.weight.view(v)*(x - a.view(v))/(b.view(v) + self.eps).sqrt() + self.bias.view(v)


def test_stoch_norm_equals_a_hand_written_loop():
    net = model()
    hand = copy.deepcopy(net)
    hand[0].bn = HandNorm(4)
    learn = learner(StochNorm(), net=net)
    learn.fit(1)
    torch.manual_seed(1)
    random.seed(1)
    want = term_by_hand(hand, lambda *a: 0., 0., 1)
    assert_close_nets(learn.model, want, rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    learn.fit(1)
    assert type(learn.model[0].bn) is nn.BatchNorm2d and learn.model[0].bn.num_batches_tracked == 12


def test_stoch_norm_is_on_in_training_only_and_copies_stay_plain():
    seen, teach = set(), SelfDistill(1.)
    class Spy(Callback):
        def after_pred(self):
            net = self.learn.model
            seen.add((self.training, *(type(m.bn).__name__ for m in (net[0], teach.teacher,
                                                                     pickle.loads(pickle.dumps(net[0]))))))
    learn = learner([StochNorm(), teach, Spy()])
    learn.fit(2)
    plain = 'BatchNorm2d'
    assert seen == {(True, 'StochBatchNorm2d', plain, plain), (False, plain, plain, plain)}
    assert type(learn.model[0].bn) is nn.BatchNorm2d


@pytest.mark.parametrize('error', [KeyboardInterrupt(), CancelFitException(), RuntimeError('x')])
@pytest.mark.parametrize('own', [True, False])
def test_an_interrupted_stoch_norm_is_taken_back(error, own):
    cb = StochNorm()
    learn = learner(cb if own else None)
    try: learn.fit(1, cbs=[Stop(error)] if own else [Stop(error), cb])
    except (KeyboardInterrupt, RuntimeError): pass
    if own: learn.validate()
    assert type(learn.model[0].bn) is nn.BatchNorm2d


@pytest.mark.parametrize('p', [-1, float('nan')])
def test_p_out_of_range_is_refused(p):
    with pytest.raises(InputError, match='between 0 and 1'): StochNorm(p)
    with pytest.raises(InputError, match='between 0 and 1'): stoch_norm(Net(), p)
