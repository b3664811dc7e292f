"The KL to the base, a measure of `Retention` that needs no source clip and no label."
import copy

import pytest
import torch
from helpers import data, learner, model
from scipy.special import expit, rel_entr, softmax
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics.audit import audit
from sdfast.metrics.per_clip import answer_divergence
from sdfast.metrics.retention import Retention
from sdfast.models.features import extract
from sdfast.models.probes import probe_head
from sdfast.strategies import KLToBase, soft_divergence


def clips(): return [x for x, _ in data(seed=9).valid]  # of the target, without labels


def logits_of(head, encoder):
    "In eval mode, clip by clip"
    encoder = copy.deepcopy(encoder).eval()
    with torch.no_grad(): return torch.cat([head(encoder(x)) for x in clips()]).as_subclass(torch.Tensor)


@pytest.mark.parametrize('head', ['old', 'probe'])
def test_kl_on_clips_of_the_target_by_hand(head, tuned):
    net = model()
    if head == 'probe': net[1] = probe_head(*extract(net[0], data(seed=9).train), 3)
    other = tuned(net)
    retention = Retention(net, clips=clips())
    p, q = (softmax(logits_of(net[1], e).double().numpy(), 1) for e in (net[0], other))
    assert retention(other).kl == pytest.approx(rel_entr(p, q).sum(1).mean(), rel=1e-6) and retention(other).kl > 0
    assert retention(net[0]).kl == retention.reference.kl == 0
    assert retention.change(other)['kl'] == retention(other).kl
    assert audit(retention, other).measures['kl'].after.mean == pytest.approx(retention(other).kl, rel=1e-9)


@pytest.mark.parametrize('n', [1, 4])
def test_kl_of_independent_logits_is_the_sum_over_them(n, tuned):
    torch.manual_seed(3)
    net, head = model(), nn.Linear(6, n)
    other = tuned(net)
    given = {} if n == 1 else dict(activation='sigmoid')  # a single logit cannot be of a softmax
    retention = Retention(net, clips=clips(), head=head, **given)
    p, q = (expit(logits_of(head, e).double().numpy()) for e in (net[0], other))
    want = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).sum(1).mean()
    assert retention(other).kl == pytest.approx(want, rel=1e-5) and want > 0
    assert audit(retention, other).measures['kl'].after.mean == pytest.approx(want, rel=1e-5)


def test_kl_is_what_the_penalty_holds_down():
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(9, 4, generator=g), torch.randn(9, 4, generator=g)
    for activation in ('softmax', 'sigmoid'):
        want = soft_divergence(after, before, 1., activation).item()
        assert answer_divergence(after, before, activation).mean().item() == pytest.approx(want, rel=1e-6)
    net, kept = model(), {}
    for lam in (0., 10.):
        tuned = copy.deepcopy(net)
        learner(KLToBase(lam, net[1]), net=tuned).fit(3)
        kept[lam] = Retention(net, clips=[x for x, _ in data().valid])(tuned[0]).kl
    assert kept[10.] < .5*kept[0.]


def test_a_softmax_of_one_logit_is_refused():
    with pytest.raises(InputError, match="must be 'sigmoid' for a head of one logit.*not 'softmax' for 1"):
        answer_divergence(torch.zeros(2, 1), torch.ones(2, 1), 'softmax')
    retention = Retention(model(), clips=clips(), activation='tanh')
    with pytest.raises(InputError, match="'softmax' or 'sigmoid': not 'tanh' for 3"): retention(model(1)[0])


def test_without_a_head_there_is_no_kl(tuned):
    net = model()
    assert Retention(net, clips=clips(), encoder='0')(tuned(net)).kl is None
