"R3F against independent formulas."
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from helpers import learner, model
from scipy.stats import entropy
from strategy_helpers import CPUAutocast, assert_close_nets, seeded_head, term_by_hand
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import BSS, R3F, CoTuning, FeaturePenalty, sym_kl


def test_sym_kl_equals_scipy():
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    p, q = a.double().softmax(1).numpy(), b.double().softmax(1).numpy()
    assert sym_kl(a, b).item() == pytest.approx((entropy(p, q, axis=1) + entropy(q, p, axis=1)).mean(), rel=1e-5)
    fairseq = sum(F.kl_div(u.log_softmax(1), v.softmax(1), reduction='sum') for u, v in ((a, b), (b, a)))/7
    torch.testing.assert_close(sym_kl(a, b), fairseq)
    assert sym_kl(a, a) == 0 and sym_kl(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    near = a + 1e-4*b  # the sum of two divergences is rounding noise here, and may be negative
    exact = sym_kl64(a.double(), near.double())
    assert sym_kl(a, near).item() == pytest.approx(exact, rel=1e-2)


def sym_kl64(a, b):
    p, q = a.softmax(1), b.softmax(1)
    return ((p*(p/q).log()).sum(1) + (q*(q/p).log()).sum(1)).mean().item()


@pytest.mark.parametrize('noise', ['uniform', 'normal'])
def test_r3f_equals_a_hand_written_loop(noise):
    net, g = model(), torch.Generator()
    def term(net, x, y, f, pred):
        z = .1*(2*torch.rand(x.shape, generator=g) - 1) if noise == 'uniform' else .1*torch.randn(x.shape, generator=g)
        p = torch.func.functional_call(net, {n:b.clone() for n, b in net.named_buffers()}, x + z).softmax(1)
        q = pred.softmax(1)
        return ((p*(p/q).log()).sum(1) + (q*(q/p).log()).sum(1)).mean()
    learn = learner(R3F(3., eps=.1, noise=noise), net=copy.deepcopy(net))
    want = term_by_hand(net, term, 3., on_epoch=lambda e: g.manual_seed(1 + e))  # `learner` has seeded with 1
    learn.fit(2)
    assert_close_nets(learn.model, want, rtol=1e-4)
    assert learn.recorder.values[1][-1] > 1e-4


def test_r3f_noise_is_of_the_size_that_was_asked_for():
    cb, x = R3F(eps=.2), torch.zeros(40, 50)
    learner(cb).fit(1)
    z = cb.noisy(x)
    assert .19 < z.max() <= .2 and -.2 <= z.min() < -.19 and abs(z.mean()) < .01
    cb.noise = 'normal'
    assert cb.noisy(x).std().item() == pytest.approx(.2, rel=.05) and cb.noisy(torch.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize('n', [1, 3])
def test_r3f_of_independent_logits_is_the_binary_divergence(n):
    class Targets(Callback):
        def before_batch(self): self.learn.yb = ((self.yb[0][:, None] > torch.arange(n)).float(),)
    seen, net = [], nn.Sequential(model()[0], nn.Linear(6, n))
    class See(Callback):
        order = 6
        def after_loss(self):
            if self.training: seen.append((self.learn.pred.detach(), cb.pull.item()))
    cb = R3F(1., eps=.1)
    outputs = []
    net.register_forward_hook(lambda m, args, out: outputs.append(out.detach()))
    learn = learner([cb, Targets(), See()], net=net)
    learn.loss_func = F.binary_cross_entropy_with_logits
    learn.fit(1)
    for (pred, got), again in zip(seen, outputs[1::2]):
        p, q = pred.sigmoid(), again.sigmoid()
        want = ((p - q)*((p/q).log() - ((1 - p)/(1 - q)).log())).sum(1).mean()
        assert got == pytest.approx(want.item(), rel=1e-3) and got > 0


def test_the_second_pass_is_not_seen_by_other_penalties():
    def run(cbs):
        learn = learner(cbs, lr=0.)
        learn.fit(1)
        return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    alone, counts = run([BSS(1.)]), []
    class Count(FeaturePenalty):
        order = 5.5  # after the others
        def term(self):
            counts.append(len(self.calls()))
            return self.calls()[0][2].mean()
    both = run([R3F(1., eps=.1), CoTuning(1., seeded_head()), BSS(1.), Count(1.)])
    assert both['bss'] == alone['bss'] and set(counts) == {1} and both['r3f'] > 0


def test_noise_that_autocast_rounds_away_warns():
    with pytest.warns(UserWarning, match='rounded away'): learner([R3F(), CPUAutocast('bf16')]).fit(1)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='R3F')
        learner([R3F(eps=.1), CPUAutocast('bf16')]).fit(1)


def test_r3f_says_what_it_needs():
    class Two(nn.Sequential):
        def forward(self, x): return super().forward(x), x
    learn = learner(R3F(), net=Two(*model()))
    learn.loss_func = lambda out, y: F.cross_entropy(out[0], y)
    with pytest.raises(InputError, match='returned tuple'): learn.fit(1)


@pytest.mark.parametrize('bad', [-1, float('nan')])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match='at least 0'): R3F(bad)
    with pytest.raises(InputError, match='eps must be'): R3F(1., eps=bad)


def test_unknown_noise_is_refused():
    with pytest.raises(InputError, match="'uniform' or 'normal'"): R3F(1., noise='salt')
