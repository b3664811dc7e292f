"Each measure against an independent computation; an untouched encoder changed by exactly 0."
import copy

import numpy as np
import pytest
import torch
from conftest import model, state
from torch import nn

from sdfast.forgetting import Retention, drift, extract, knn, linear_cka, linear_probe, probe_head, weight_distance


@pytest.fixture
def source():
    "A model and loaders of a source task of 3 separable classes of images"
    torch.manual_seed(0)
    x, y = torch.randn(90, 1, 6, 6), torch.arange(90) % 3
    for c in range(3): x[y == c, 0, 2*c] += 2
    batch = lambda a, b: [(x[i:i + 15], y[i:i + 15]) for i in range(a, b, 15)]
    return model(), batch(0, 60), batch(60, 90)


def test_untouched_is_exactly_unchanged(source):
    net, train, test = source
    net.train()
    r = Retention(net, train, test)
    before, rng = state(net), torch.get_rng_state()
    assert set(r.change(copy.deepcopy(net[0])).values()) == {0.} and set(r.change(net[0]).values()) == {0.}
    assert (r.reference.cka, r.reference.drift, r.reference.weight_distance) == (1., 0., 0.)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and net.training and torch.equal(rng, torch.get_rng_state())


def test_the_reference_is_a_copy(source):
    net, train, test = source
    r = Retention(net, train, test)
    ref = r.reference.source_acc
    with torch.no_grad():
        for p in net.parameters(): p.mul_(-3)
    change = r.change(net[0])
    assert r.reference.source_acc == ref and change['weight_distance'] == pytest.approx(4) and change['cka'] < 0 < change['drift']


def test_scores_equal_a_computation_by_hand(source):
    net, train, test = source
    r = Retention(net, train, test)
    tuned = copy.deepcopy(net[0])
    with torch.no_grad():
        for p in tuned.parameters(): p.add_(.1*torch.randn_like(p))
    got = r(tuned)
    tuned.eval(), net.eval()
    with torch.no_grad():
        x, y = torch.cat([b[0] for b in test]), torch.cat([b[1] for b in test])
        assert got.source_acc == pytest.approx((net[1](tuned(x)).argmax(1) == y).float().mean().item())
        f, f0 = tuned(x).double().numpy(), net[0](x).double().numpy()
    assert got.drift == pytest.approx(np.sqrt(((f - f0)**2).sum()/(f0**2).sum()))
    flat = lambda m: torch.cat([p.flatten() for p in m.parameters()])
    assert got.weight_distance == pytest.approx(((flat(tuned) - flat(net[0])).norm()/flat(net[0]).norm()).item(), rel=1e-5)


def test_cka_equals_its_definition_and_ignores_rotation_and_scale():
    torch.manual_seed(0)
    for n, f, g in ((50, 8, 6), (10, 30, 40)):  # both ways to compute it
        x, y = torch.randn(n, f), torch.randn(n, g)
        h = np.eye(n) - 1/n
        hsic = lambda a, b: np.trace(h @ a.numpy().astype(float) @ a.numpy().T @ h @ b.numpy().astype(float) @ b.numpy().T)
        assert linear_cka(x, y) == pytest.approx(hsic(x, y)/np.sqrt(hsic(x, x)*hsic(y, y)), rel=1e-5)
        q = torch.linalg.qr(torch.randn(f, f))[0]
        assert linear_cka(x, 3*x @ q + 2) == pytest.approx(1, abs=1e-5) and linear_cka(x, x) == 1.
    assert np.isnan(linear_cka(torch.ones(5, 2), torch.ones(5, 2)))


def test_drift_and_weight_distance():
    a = torch.tensor([[3., 4.]])
    assert drift(a, a) == 0 and drift(2*a, a) == pytest.approx(1)
    assert weight_distance(dict(w=torch.tensor([3., 4.]), b=torch.zeros(1)), dict(w=torch.zeros(2) + 3., b=torch.zeros(1))) == pytest.approx(1/np.sqrt(18))


def test_probe_and_neighbours():
    torch.manual_seed(0)
    y, yt = torch.arange(60) % 3, torch.arange(30) % 3
    x, xt = (3*torch.eye(4)[k] + torch.randn(len(k), 4) for k in (y, yt))
    assert linear_probe(x, y, xt, yt) == linear_probe(x, y, xt, yt) > .8
    # neighbours by hand
    z, zt = (v/v.norm(dim=1, keepdim=True) for v in (x, xt))
    near = (zt @ z.T).topk(5).indices
    assert knn(x, y, xt, yt) == pytest.approx((y[near].mode(1).values == yt).float().mean().item())
    assert knn(x[:2], y[:2], xt, yt) > 0  # fewer clips than neighbours
    for classes in (3, 2):
        keep, keept = y < classes, yt < classes
        head = probe_head(x[keep], y[keep], classes)
        with torch.no_grad(): acc = (head(xt[keept]).argmax(1) == yt[keept]).float().mean().item()
        assert acc == pytest.approx(linear_probe(x[keep], y[keep], xt[keept], yt[keept])) and head.weight.shape == (classes, 4)


def test_extract_averages_clips_of_a_video(source):
    net = nn.Sequential(nn.Flatten(), nn.Linear(2*3*4*4, 5))
    x, y = torch.rand(3, 2, 2, 3, 4, 4), torch.arange(3)
    f, labels = extract(net, [(x, y)])
    with torch.no_grad(): torch.testing.assert_close(f, torch.stack([net(x[:, i]) for i in range(2)]).mean(0))
    assert torch.equal(labels, y)
