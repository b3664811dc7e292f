"Fisher information and memory-aware synapses, against closed forms."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from helpers import data, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import Importance, empirical_fisher, fisher_information, mas_importance


@pytest.fixture
def linear():
    "A linear encoder and head in double-precision reach: `(model, x, y, head weight)`"
    torch.manual_seed(0)
    encoder, head = nn.Linear(5, 4), nn.Linear(4, 3)
    return nn.Sequential(encoder, head), torch.randn(40, 5), torch.randint(0, 3, (40,))


def test_exact_fisher_equals_the_closed_form(linear):
    net, x, _ = linear
    got = fisher_information(net, [(x[:16],), (x[16:],)])  # no labels needed
    want_w, want_b = torch.zeros(4, 5, dtype=torch.double), torch.zeros(4, dtype=torch.double)
    W = net[1].weight.detach().double()
    with torch.no_grad(): P = net(x).double().softmax(1)
    for i in range(40):
        for c in range(3):
            d = (P[i] - F.one_hot(torch.tensor(c), 3)) @ W
            want_b += P[i, c]*d**2/40
            want_w += P[i, c]*(d[:, None]*x[i].double()[None])**2/40
    assert ((got.diag['weight'] - want_w).abs()/want_w.abs().max()).max() < 1e-5
    assert ((got.diag['bias'] - want_b).abs()/want_b.abs().max()).max() < 1e-5
    assert got.n == 40


def test_fisher_equals_the_closed_form_of_a_linear_softmax():
    torch.manual_seed(0)
    encoder, head = nn.Linear(5, 4, bias=True), nn.Linear(4, 3)
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    got = empirical_fisher(nn.Sequential(encoder, head), [(x[:16], y[:16]), (x[16:], y[16:])])
    with torch.no_grad():
        p = head(encoder(x)).softmax(1)
        d = (p - F.one_hot(y, 3)) @ head.weight  # gradient of -log p(y|x) with respect to the encoder's output
    torch.testing.assert_close(got.diag['weight'], (d[:, :, None]*x[:, None]).square().mean(0))
    torch.testing.assert_close(got.diag['bias'], d.square().mean(0))
    assert got.n == 40 and torch.equal(got.anchor['weight'], encoder.weight)
    few = empirical_fisher(nn.Sequential(encoder, head), [(x, y)], n=7)
    torch.testing.assert_close(few.diag['bias'], d[:7].square().mean(0))
    assert few.n == 7 and few.normalized().mean == pytest.approx(1)


def test_sampled_fisher_tends_to_the_exact_one(linear):
    net, x, _ = linear
    x = x.repeat(100, 1)
    rng = torch.get_rng_state()
    got, again, other = (fisher_information(net, [x], labels='sample', seed=s) for s in (0, 0, 1))
    exact = fisher_information(net, [x[:40]])
    assert torch.equal(rng, torch.get_rng_state()) and same(got.diag, again.diag) and not same(got.diag, other.diag)
    torch.testing.assert_close(got.diag['bias'], exact.diag['bias'], rtol=.1, atol=0)


def test_empirical_and_any_loss(linear):
    net, x, y = linear
    a = fisher_information(net, [(x, y)], labels='empirical')
    assert same(a.diag, empirical_fisher(net, [(x, y)]).diag)
    a = empirical_fisher(net, [(x, y)], chunk=1)  # one by one, as any loss
    b = fisher_information(net, [(x, y)], loss=lambda m, x, y: F.cross_entropy(m(x), y))
    assert same(a.diag, b.diag)
    pretext = fisher_information(net, [x], loss=lambda m, x: m[0](x).pow(2).sum())  # without labels or head
    want = torch.stack([(2*net[0](v[None]).detach())[0]**2 for v in x]).mean(0)
    torch.testing.assert_close(pretext.diag['bias'], want)
    with pytest.raises(ValueError, match="'exact', 'sample' or 'empirical', not 'true'"):
        fisher_information(net, [x], labels='true')
    with pytest.raises(InputError, match='needs labels'): fisher_information(net, [x], labels='empirical')


def test_avalanche_agrees_at_batch_size_1(linear):
    "Their empirical Fisher squares the gradient of a batch: of one sample it is right"
    pytest.importorskip('avalanche', reason='avalanche-lib is not installed: pip install sdfast[peers]')
    from avalanche.training.plugins import EWCPlugin
    net, x, y = linear
    net.train()
    data = [(a, b, 0) for a, b in zip(x, y)]
    class Set(torch.utils.data.Dataset):
        def __len__(self): return len(data)
        def __getitem__(self, i): return data[i]
    plugin = EWCPlugin(1.)
    theirs = plugin.compute_importances(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=.1), Set(),
                                        'cpu', 1)
    ours = empirical_fisher(net, [(x, y)])
    torch.testing.assert_close(theirs['0.weight'].data, ours.diag['weight'], rtol=1e-4, atol=1e-7)


def test_mas_equals_the_closed_form(linear):
    net, x, y = linear
    got = mas_importance(net, [(x, y)])
    W, want = net[1].weight.detach(), torch.zeros(4, 5)
    with torch.no_grad():
        # d||g||^2/dw = (2 g W)_i v_j, sample by sample
        for v in x: want += ((2*net(v)) @ W)[:, None].mul(v[None]).abs()/40
    torch.testing.assert_close(got.diag['weight'], want, rtol=1e-4, atol=1e-6)
    # not of the batch
    assert not torch.allclose(got.diag['weight'],
        (torch.stack([((2*net(v)) @ W)[:, None].mul(v[None]) for v in x]).mean(0).abs()).detach(), rtol=.05)


@pytest.mark.parametrize('take', [fisher_information, partial(fisher_information, labels='sample'), empirical_fisher,
                                  mas_importance])
def test_taking_importance_leaves_the_model_as_it_was(take):
    net = model(dropout=.5)
    net[0].bn.eval()
    net[0].conv.weight.requires_grad_(False)
    batches = list(data().valid)
    before, modes, rng = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    f = take(net, batches)
    assert same(before, state(net))
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters()) and not net[0].conv.weight.requires_grad
    assert f.diag['conv.weight'].sum() > 0  # a layer that is frozen now may be trained later


def test_importance_of_one_task_after_another():
    a, b = (Importance({'w': torch.tensor(v)}, {'w': torch.tensor(w)}, n) for v, w,
            n in (([1., 3.], [0., 0.], 4), ([2., 2.], [5., 6.], 6)))
    c = a.then(b, gamma=.5)
    assert c.diag['w'].tolist() == [2.5, 3.5] and c.anchor['w'].tolist() == [5, 6] and c.n == 10 and c.mean == 3
    assert a.then(b).normalized().mean == pytest.approx(1) and a.diag['w'].tolist() == [1, 3]
    with pytest.raises(ValueError, match='same encoder'):
        a.then(Importance({'v': torch.ones(1)}, {'v': torch.ones(1)}, 1))
    with pytest.raises(InputError, match='zero everywhere'):
        Importance({'w': torch.zeros(2)}, {'w': torch.zeros(2)}, 1).normalized()


def test_importance_without_samples_or_without_a_head_is_refused(linear):
    net, x, y = linear
    for take in (fisher_information, empirical_fisher, mas_importance):
        with pytest.raises(InputError, match='samples of the source task, or of the target: pass a loader of them'):
            take(net, None)
    maps = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 3, 1))
    for labels in ('exact', 'sample', 'empirical'):
        wanted = r'a model with a head, which returns logits \(B, classes\), not \(4, 3, 3\).*probe_head.*pretext'
        with pytest.raises(InputError, match=wanted): fisher_information(maps, [(x[:, None], y)], labels=labels)
    with pytest.raises(InputError, match='returned tuple'): fisher_information(Both(net), [(x, y)], encoder='net')


class Both(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x), x
