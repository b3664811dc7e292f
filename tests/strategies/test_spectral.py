"Batch spectral shrinkage against NumPy."
import copy

import numpy as np
import pytest
import torch
from helpers import learner, model
from strategy_helpers import assert_close_nets, term_by_hand

from sdfast.errors import InputError
from sdfast.strategies import BSS, bss


@pytest.mark.parametrize('shape', [(8, 5), (5, 8), (6, 6), (1, 4), (6, 4, 3), (5, 4, 2, 3, 2)])
@pytest.mark.parametrize('k', [1, 3, 9])
def test_bss_equals_numpy(shape, k):
    x = np.random.default_rng(0).normal(size=shape)
    mat = x.reshape(*shape[:2], -1).mean(2)
    s = np.sort(np.linalg.svd(mat)[1])
    got = bss(torch.tensor(x), k)
    assert got.dtype == torch.float32 and got.item() == pytest.approx((s[:k]**2).sum(), rel=1e-4)


def test_the_gradient_of_bss():
    "2 s u v' of the smallest singular values, and central differences"
    x = np.random.default_rng(1).normal(size=(7, 4))
    t = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    bss(t, 2).backward()
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    want = sum(2*s[i]*np.outer(u[:, i], vt[i]) for i in (2, 3))
    np.testing.assert_allclose(t.grad, want, atol=1e-5)
    def value(z): return (np.linalg.svd(z)[1][2:]**2).sum()
    for i, j in ((0, 0), (3, 2), (6, 3)):
        d = np.zeros_like(x)
        d[i, j] = 1e-5
        assert t.grad[i, j].item() == pytest.approx((value(x + d) - value(x - d))/2e-5, abs=1e-4)


def test_bss_of_low_precision_and_of_infinite_features():
    x = torch.randn(8, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16): low = bss(x.bfloat16())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(bss(x.bfloat16().float()).item())
    x[2, 1], x[0, 0] = float('inf'), float('nan')
    assert torch.isfinite(bss(x.requires_grad_()))


def test_bss_equals_a_hand_written_loop():
    "The smallest eigenvalue of the smaller Gram matrix"
    net = model()
    def term(net, x, y, f, pred): return torch.linalg.eigvalsh((f.T @ f).double())[:2].sum()
    want = term_by_hand(copy.deepcopy(net), term, .05)
    learn = learner(BSS(.05, k=2), net=net)
    learn.fit(2)
    assert_close_nets(learn.model, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('k', [0, 1.5, -1])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match='at least 1'): BSS(1., k=k)


@pytest.mark.parametrize('lam', [-1, float('nan')])
def test_strength_out_of_range_is_refused(lam):
    with pytest.raises(ValueError, match='at least 0'): BSS(lam)


def test_features_without_a_batch_are_refused():
    with pytest.raises(InputError, match=r'not of shape \(3,\)'): bss(torch.ones(3))
