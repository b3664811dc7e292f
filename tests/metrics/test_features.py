"Each measure of features and weights against an independent computation."
import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from sdfast.metrics.features import (
    drift,
    knn,
    linear_cka,
    linear_probe,
    loss_barrier,
    probe_head,
    procrustes,
    retrieval,
    weight_distance,
)


@pytest.mark.parametrize('n,f,g', [(50, 8, 6), (10, 30, 40)], ids=['by features', 'by samples'])
def test_cka_equals_its_definition(n, f, g):
    torch.manual_seed(0)
    x, y = torch.randn(n, f), torch.randn(n, g)
    h = np.eye(n) - 1/n
    def gram(a): return a.numpy().astype(float) @ a.numpy().T
    def hsic(a, b): return np.trace(h @ gram(a) @ h @ gram(b))
    assert linear_cka(x, y) == pytest.approx(hsic(x, y)/np.sqrt(hsic(x, x)*hsic(y, y)), rel=1e-5)


@pytest.mark.parametrize('n,f', [(50, 8), (10, 30)])
def test_cka_ignores_rotation_and_scale(n, f):
    torch.manual_seed(0)
    x = torch.randn(n, f)
    q = torch.linalg.qr(torch.randn(f, f))[0]
    assert linear_cka(x, 3*x @ q + 2) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, x) == 1.


def test_cka_of_constant_features():
    assert np.isnan(linear_cka(torch.ones(5, 2), torch.zeros(5, 2)))
    assert linear_cka(torch.ones(5, 2), torch.ones(5, 2)) == 1


def test_procrustes_equals_scipys():
    torch.manual_seed(0)
    x, y = torch.randn(40, 6).double(), torch.randn(40, 6).double()
    a, b = ((f - f.mean(0))/(f - f.mean(0)).norm() for f in (x, y))
    q, _ = orthogonal_procrustes(a.numpy(), b.numpy())
    assert procrustes(x, y) == pytest.approx(((a.numpy() @ q - b.numpy())**2).sum())


def test_procrustes_ignores_rotation_and_scale():
    torch.manual_seed(0)
    x = torch.randn(40, 6).double()
    q = torch.linalg.qr(torch.randn(6, 6).double())[0]
    assert procrustes(x, x) == 0
    assert procrustes(3*x @ q + 1, x) == pytest.approx(0, abs=1e-9)
    assert np.isnan(procrustes(torch.ones(5, 2), torch.zeros(5, 2)))


def test_drift():
    a = torch.tensor([[3., 4.]])
    assert drift(a, a) == 0
    assert drift(0*a, 0*a) == 0
    assert drift(2*a, a) == pytest.approx(1)


def test_weight_distance():
    a = torch.tensor([[3., 4.]])
    assert weight_distance(dict(w=0*a), dict(w=0*a)) == 0
    tuned = dict(w=torch.tensor([3., 4.]), b=torch.zeros(1))
    untouched = dict(w=torch.zeros(2) + 3., b=torch.zeros(1))
    assert weight_distance(tuned, untouched) == pytest.approx(1/np.sqrt(18))


@pytest.fixture
def features():
    "Features and labels of three classes to train and to test on"
    torch.manual_seed(0)
    y, yt = torch.arange(60) % 3, torch.arange(30) % 3
    x, xt = (3*torch.eye(4)[k] + torch.randn(len(k), 4) for k in (y, yt))
    return x, y, xt, yt


def test_probe_is_deterministic(features): assert linear_probe(*features) == linear_probe(*features) > .8


def test_neighbours_by_hand(features):
    x, y, xt, yt = features
    z, zt = (v/v.norm(dim=1, keepdim=True) for v in (x, xt))
    near = (zt @ z.T).topk(5).indices
    assert knn(x, y, xt, yt) == pytest.approx((y[near].mode(1).values == yt).float().mean().item())
    assert knn(x[:2], y[:2], xt, yt) > 0  # fewer clips than neighbours


@pytest.mark.parametrize('classes', [3, 2])
def test_probe_as_a_head(features, classes):
    x, y, xt, yt = features
    x, y, xt, yt = x[y < classes], y[y < classes], xt[yt < classes], yt[yt < classes]
    head = probe_head(x, y, classes)
    with torch.no_grad(): accuracy = (head(xt).argmax(1) == yt).float().mean().item()
    assert accuracy == pytest.approx(linear_probe(x, y, xt, yt))
    assert head.weight.shape == (classes, 4)


def test_retrieval_by_a_loop():
    torch.manual_seed(0)
    x, y, xt, yt = torch.randn(60, 5), torch.randint(0, 6, (60,)), torch.randn(25, 5), torch.randint(0, 6, (25,))
    got = retrieval(x, y, xt, yt)
    assert list(got) == [1, 5, 10, 20, 50]
    for k, share in got.items():
        hits = 0
        for query, label in zip(xt, yt):
            cosines = [(query @ g/(query.norm()*g.norm())).item() for g in x]
            nearest = sorted(range(60), key=lambda i: -cosines[i])[:k]
            hits += any(y[i] == label for i in nearest)
        assert share == hits/25


def test_retrieval_from_a_small_gallery():
    torch.manual_seed(0)
    got = retrieval(torch.randn(12, 5), torch.randint(0, 6, (12,)), torch.randn(25, 5), torch.randint(0, 6, (25,)))
    assert list(got) == [1, 5, 10]


def test_barrier_is_the_height_above_the_line():
    assert loss_barrier([1., 3., 2.], [0., .5, 1.]) == 1.5
    assert loss_barrier([1., 1.2, 2.], [0., .5, 1.]) == 0.
    assert loss_barrier([2., 2.], [0., 1.]) == 0.
    at = np.linspace(0, 1, 5)
    assert loss_barrier(list(1 + at), at) == 0.


def test_barrier_without_finite_losses():
    assert np.isnan(loss_barrier([1., np.nan, 2.], [0., .5, 1.]))
    assert np.isnan(loss_barrier([1., 3., np.inf], [0., .5, 1.]))
