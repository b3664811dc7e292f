"Bootstrap intervals against loops that resample by hand, and against scipy."
import numpy as np
import pytest
import torch
from scipy import stats

from sdfast.errors import InputError
from sdfast.metrics.features import drift, linear_cka, loss_barrier, procrustes
from sdfast.metrics.resample import Resamples, barrier_samples, cka_samples, drift_samples, procrustes_samples


def by_hand(x, groups, statistic, n=2000, level=.95):
    "Percentiles of a statistic over samples of groups, each drawn by a loop"
    rng, names = np.random.default_rng(7), np.unique(groups)
    rows = {g:np.flatnonzero(np.asarray(groups) == g) for g in names}
    values = []
    for _ in range(n):
        drawn = np.concatenate([rows[g] for g in rng.choice(names, len(names))])
        values.append(statistic(x[drawn]))
    return np.quantile(values, [(1 - level)/2, (1 + level)/2])


def test_the_interval_of_a_mean_is_that_of_a_loop():
    x = np.random.default_rng(0).random(40) < .3
    found = Resamples(range(40)).mean(x, (0, 1))
    assert found.mean == x.mean()
    assert found.n == 40
    assert (found.low, found.high) == pytest.approx(by_hand(x, range(40), np.mean), abs=.03)


def test_groups_are_drawn_as_wholes():
    "Ten clips of each group are alike, so that there are 8 independent values and not 80"
    x = np.repeat(np.random.default_rng(1).random(8), 10)
    groups = np.repeat([f'g{i}' for i in range(8)], 10)
    grouped, single = Resamples(groups).mean(x), Resamples(range(80)).mean(x)
    assert (grouped.low, grouped.high) == pytest.approx(by_hand(x, groups, np.mean), abs=.02)
    assert grouped.high - grouped.low > 2.5*(single.high - single.low)
    assert grouped.n == 8


def test_groups_of_different_sizes_weigh_by_their_clips():
    x, groups = np.array([0.]*9 + [1., 1., .5]), ['a']*9 + ['b', 'b', 'c']
    found = Resamples(groups).mean(x)
    assert found.mean == pytest.approx(x.mean())
    assert (found.low, found.high) == pytest.approx(by_hand(x, groups, np.mean), abs=.02)


@pytest.mark.parametrize('n', [5, 20])
def test_shares_without_spread_reach_as_far_as_cannot_be_excluded(n):
    "The bootstrap of n equal values has no width; Clopper and Pearson's bound says how many others there may be"
    exact = stats.binomtest(0, n).proportion_ci(.95, 'exact').high
    none, all_right = Resamples(range(n)).mean([0.]*n, (-1, 1)), Resamples(range(n)).mean([1.]*n, (0, 1))
    assert (none.mean, none.low, none.high) == pytest.approx((0, -exact, exact))
    assert (all_right.mean, all_right.low, all_right.high) == pytest.approx((1, 1 - exact, 1))
    plain = Resamples(range(n)).mean([2.]*n)
    assert (plain.low, plain.high) == (2, 2)


def test_one_group_has_no_interval():
    found = Resamples(['a', 'a', 'a']).mean([1., 2., 3.])
    assert found.mean == 2
    assert np.isnan(found.low) and np.isnan(found.high)


def test_the_same_groups_give_the_same_interval():
    x = np.random.default_rng(0).random(30)
    assert Resamples(range(30)).mean(x) == Resamples(range(30)).mean(x)
    assert Resamples(range(30), seed=1).mean(x) != Resamples(range(30)).mean(x)
    assert Resamples(range(30), level=.5).mean(x).low > Resamples(range(30)).mean(x).low


def test_settings_that_cannot_work():
    with pytest.raises(InputError, match='resamples must be at least 100'): Resamples(range(9), n=10)
    with pytest.raises(InputError, match='level'): Resamples(range(9), level=1.)


# ---- statistics that are no means: all clips once are the measure itself, samples are as by hand

@pytest.fixture
def features():
    g = torch.Generator().manual_seed(0)
    ref = torch.randn(40, 6, generator=g)
    return ref + .6*torch.randn(40, 6, generator=g), ref


@pytest.mark.parametrize('samples,measure', [(drift_samples, drift), (procrustes_samples, procrustes),
                                             (cka_samples, linear_cka)], ids=lambda f: f.__name__)
def test_a_statistic_of_all_clips_is_the_measure(features, samples, measure):
    x, ref = features
    assert samples(x, ref)(torch.ones(1, 40, dtype=torch.double)).item() == pytest.approx(measure(x, ref), rel=1e-5)


@pytest.mark.parametrize('samples,measure,tolerance', [
    (drift_samples, drift, .02), (procrustes_samples, procrustes, .05)], ids=['drift', 'procrustes'])
def test_their_intervals_are_those_of_a_loop(features, samples, measure, tolerance):
    x, ref = features
    found = Resamples(range(40), 500).interval(measure(x, ref), samples(x, ref))
    low, high = by_hand(np.arange(40), range(40), lambda rows: measure(x[rows], ref[rows]), 500)
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance)


def test_unrelated_features_have_a_cka_interval_around_0():
    "Clips that a sample draws twice would make them look similar: the plain formula gives values far from 0"
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 200, generator=g), torch.randn(40, 200, generator=g)
    found = Resamples(range(40), 400).interval(linear_cka(x, y), cka_samples(x, y))
    assert found.low < 0 < found.high
    assert abs(found.low + found.high)/2 < .1
    naive = by_hand(np.arange(40), range(40), lambda rows: linear_cka(x[rows], y[rows]), 100)
    assert naive[0] > .1


def test_the_barrier_of_samples():
    losses, at = torch.rand(4, 30, generator=torch.Generator().manual_seed(1)), [0., .3, .6, 1.]
    losses[1] += .5
    value = loss_barrier(losses.double().mean(1).tolist(), at)
    found = Resamples(range(30), 500).interval(value, barrier_samples(losses, at))
    def statistic(rows): return loss_barrier(losses.double()[:, rows].mean(1).tolist(), at)
    assert (found.low, found.high) == pytest.approx(by_hand(np.arange(30), range(30), statistic, 500), abs=.05)
    assert barrier_samples(losses, at)(torch.ones(1, 30, dtype=torch.double)).item() == pytest.approx(value)
