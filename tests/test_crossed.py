"Differences over two random factors"
import numpy as np
import pytest
from scipy import stats

from sdfast.crossed import crossed_difference
from sdfast.errors import InputError
from sdfast.stats import mean_interval


def draw(rng, model=1., seed=1., rest=1., n=(5, 6)):
    "A table with random effects of the given standard deviations"
    return rng.normal(0, model, (n[0], 1)) + rng.normal(0, seed, (1, n[1])) + rng.normal(0, rest, n)


@pytest.mark.parametrize('model,seed,rest', [(1, 1, 1), (1, 0, 1), (0, 1, 1), (0, 0, 1), (2, .3, 1)])
def test_interval_covers(model, seed, rest):
    rng = np.random.default_rng(0)
    found = [crossed_difference(draw(rng, model, seed, rest)) for _ in range(1000)]
    covered = np.mean([d.low < 0 < d.high for d in found])
    assert .935 < covered < .995
    assert np.isclose(np.mean([d.p < .05 for d in found]), 1 - covered)


def test_an_interval_over_seeds_alone_does_not_cover():
    rng = np.random.default_rng(0)
    found = [mean_interval(draw(rng, 2., .3).mean(0)) for _ in range(500)]
    assert np.mean([d.low < 0 < d.high for d in found]) < .6


def test_variances_are_those_of_anova():
    y = draw(np.random.default_rng(3), 3., 2.)
    d = crossed_difference(y)
    # sums of squares by projection on dummy variables
    rows, columns = np.kron(np.eye(5), np.ones((6, 1))), np.kron(np.ones((5, 1)), np.eye(6))
    def explained(x): return np.sum((x @ np.linalg.lstsq(x, y.ravel() - y.mean(), rcond=None)[0])**2)
    a, b = explained(rows), explained(columns)
    rest = np.sum((y - y.mean())**2) - a - b
    ms = a/4 + b/5 - rest/20
    df = ms**2/((a/4)**2/4 + (b/5)**2/5 + (rest/20)**2/20)
    assert np.isclose(d.error, np.sqrt(ms/30)) and np.isclose(d.df, df)
    assert np.isclose(d.high - d.mean, stats.t.ppf(.975, df)*d.error)
    assert np.isclose(d.p, 2*stats.t.sf(abs(y.mean())/d.error, df))


def test_without_an_effect_of_the_seed_it_is_the_interval_over_source_models():
    model = np.array([0., 1, 2, 3, 5])
    rest = np.array([[1., -1, 0], [-1, 1, 0], [1, 0, -1], [0, -1, 1], [-1, 1, 0]])  # no mean over a row or a column
    d, expected = crossed_difference(model[:, None] + rest), mean_interval(model)
    assert np.isclose(d.low, expected.low) and np.isclose(d.high, expected.high) and d.df == 4


def test_equivalence_is_two_one_sided_tests():
    y = .1 + draw(np.random.default_rng(5), .1, .1, .1)
    d = crossed_difference(y)
    t = stats.t(d.df, 0, d.error)
    assert np.isclose(d.p_equivalent(.5), max(t.sf(.5 + d.mean), t.sf(.5 - d.mean)))
    assert np.isclose(d.p_not_below(.5), t.sf(.5 + d.mean))
    # equivalent at 5 % exactly where the 90 % interval is within the margin
    narrow = crossed_difference(y, .9)
    for margin in (.1, .2, .3, .4): assert (d.p_equivalent(margin) < .05) == (max(-narrow.low, narrow.high) < margin)


def test_equal_values_and_missing_ones():
    zero = crossed_difference(np.zeros((3, 4)))
    assert zero.p == 1 and zero.p_equivalent(.1) == 0 and (zero.low, zero.high) == (0, 0)
    y = draw(np.random.default_rng(1))
    holed = y.copy()
    holed[2, 3] = np.nan
    assert crossed_difference(holed) == crossed_difference(np.delete(y, 3, 1))
    for one in (y[:1], y[:, :1], y[:, :0]):
        d = crossed_difference(one)
        assert np.isnan([d.low, d.p, d.p_equivalent(1), d.p_not_below(1)]).all()
    with pytest.raises(InputError, match='source models by seeds'): crossed_difference(y[0])
