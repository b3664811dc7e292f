"Each measure of features and weights against an independent computation."
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from sdfast.errors import InputError
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


def hsic_1(k, l):
    "Song et al., JMLR 2012, Eq. 5, in float64"
    n, ones = len(k), np.ones(len(k))
    k, l = (gram - np.diag(np.diag(gram)) for gram in (k, l))
    parts = np.trace(k @ l), ones @ k @ ones*(ones @ l @ ones)/((n - 1)*(n - 2)), -2/(n - 2)*(ones @ k @ l @ ones)
    return sum(parts)/(n*(n - 3))


def hsic_by_quadruples(k, l):
    "The U-statistic over all sets of four samples (Gretton et al., ALT 2005), of which HSIC_1 is the closed form"
    total, orders = 0., list(permutations(range(4)))
    sets = list(combinations(range(len(k)), 4))
    for chosen in sets:
        for i, j, q, r in ([chosen[place] for place in order] for order in orders):
            total += k[i, j]*(l[i, j] + l[q, r] - 2*l[i, q])
    return total/(len(orders)*len(sets))


def cka(x, y, hsic):
    k, l = (f.double().numpy() @ f.double().numpy().T for f in (x, y))
    return hsic(k, l)/np.sqrt(hsic(k, k)*hsic(l, l))


def related(n, f, g):
    "Features of which some are shared, far from centred"
    torch.manual_seed(0)
    x, y = torch.randn(n, f) + 2, 3*torch.randn(n, g)
    y[:, :4] += 2*x[:, :4]
    return x, y


@pytest.mark.parametrize('n,f,g', [(50, 8, 6), (18, 1280, 96), (32, 30, 40)])
def test_cka_equals_the_closed_form_of_hsic_1(n, f, g):
    x, y = related(n, f, g)
    assert linear_cka(x, y) == pytest.approx(cka(x, y, hsic_1), rel=1e-8)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), rel=1e-12)


def test_cka_equals_the_mean_over_quadruples():
    x, y = related(16, 5, 7)
    assert linear_cka(x, y) == pytest.approx(cka(x, y, hsic_by_quadruples), rel=1e-8)


@pytest.mark.parametrize('n,f', [(16, 1280), (18, 1280), (32, 96), (32, 1280), (100, 512)])
def test_cka_of_unrelated_features_is_0_on_average(n, f):
    "And spreads as the docstring says; the biased estimator has .987 at 18 clips and 1280 features"
    torch.manual_seed(0)
    found = np.array([linear_cka(torch.randn(n, f), torch.randn(n, f)) for _ in range(40)])
    sd = (n*(n - 3)/2)**-.5
    assert abs(found.mean()) < 3*sd/40**.5
    assert .6*sd < found.std() < 1.4*sd
    assert found.min() < 0, 'an unbiased estimate of 0 is negative half of the time'


@pytest.mark.parametrize('n,f', [(50, 8), (18, 1280)])
def test_cka_ignores_rotation_scale_and_shift(n, f):
    torch.manual_seed(0)
    x, y = torch.randn(n, f).double(), torch.randn(n, f).double()
    q = torch.linalg.qr(torch.randn(f, f).double())[0]
    assert linear_cka(x, 3*x @ q + 2) == pytest.approx(1, abs=1e-9)
    assert linear_cka(y, .01*x @ q - 7) == pytest.approx(linear_cka(y, x), abs=1e-9)
    assert linear_cka(x, x) == 1.


def test_cka_does_not_depend_on_the_number_of_clips():
    "The same relation has the same CKA on average from 16 clips as from 2000"
    torch.manual_seed(0)
    def pair(n):
        x = torch.randn(n, 64)
        return x, x + torch.randn(n, 64)
    few = np.mean([linear_cka(*pair(16)) for _ in range(200)])
    assert few == pytest.approx(linear_cka(*pair(2000)), abs=.03)


def test_cka_of_features_that_do_not_vary():
    constant, one = torch.ones(20, 2), torch.zeros(20, 3)
    one[0, 0] = 1.
    assert np.isnan(linear_cka(constant, torch.zeros(20, 2)))
    assert linear_cka(constant, torch.ones(20, 2)) == 1
    # one clip that differs says nothing about pairs of the others
    assert np.isnan(linear_cka(one, torch.randn(20, 3)))
    assert np.isnan(linear_cka(one, 2*one))


def test_cka_refuses_what_it_cannot_compare():
    for n in (1, 4, 15):
        x = torch.rand(n, 3)
        for y in (x, torch.rand(n, 3)):
            with pytest.raises(InputError, match=f'at least 16 clips, not {n}'): linear_cka(x, y)
    with pytest.raises(InputError, match='same N clips'): linear_cka(torch.rand(20, 3), torch.rand(18, 3))
    with pytest.raises(InputError, match='same N clips'): linear_cka(torch.rand(20, 3, 4), torch.rand(20, 3, 4))


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


@pytest.mark.parametrize('measure', [linear_probe, knn, retrieval])
def test_labels_of_a_column_are_flattened(features, measure):
    x, y, xt, yt = features
    assert measure(x, y[:, None], xt, yt[:, None]) == measure(x, y, xt, yt)
    with pytest.raises(InputError, match='one-hot'): measure(x, torch.eye(3)[y], xt, yt)
    with pytest.raises(InputError, match='59 labels belong to 60'): measure(x, y[1:], xt, yt)


def test_a_probe_says_which_classes_it_has_never_seen(features):
    x, y, xt, yt = features
    with pytest.warns(UserWarning, match='class 3 right'): assert linear_probe(x, y, xt, yt + 1) < .5


def test_a_head_of_other_numbers_is_refused(features):
    x, y, *_ = features
    with pytest.raises(InputError, match='no class 0 of 0 to 2'): probe_head(x, y + 1, 3)
    with pytest.raises(InputError, match='no class 2 of 0 to 2'): probe_head(x, torch.where(y == 2, 5, y), 3)
    with pytest.raises(InputError, match='3 classes, not 2'): probe_head(x, y, 2)


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
