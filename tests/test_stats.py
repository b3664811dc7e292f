"Intervals against scipy, and their coverage."
import numpy as np
import pytest
from scipy import stats

from sdfast.stats import mean_interval, paired_difference


def test_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 7), rng.normal(0, 1, 7)
    want = stats.ttest_rel(a, b).confidence_interval(.95)
    got = paired_difference(a, b)
    assert (got.low, got.high) == pytest.approx((want.low, want.high)) and got.mean == pytest.approx((a - b).mean()) and got.n == 7


def test_verdicts_and_missing_values():
    assert paired_difference([2, 2.1, 1.9], [1, 1, 1]).verdict == 'higher' and paired_difference([1, 1, 1], [2, 2.1, 1.9]).verdict == 'lower'
    assert paired_difference([1, -1, 0], [0, 0, 0]).verdict == 'not distinguishable'
    one = paired_difference([1, np.nan], [0, 0])
    assert one.n == 1 and one.mean == 1 and np.isnan(one.low) and one.verdict == 'no interval'
    assert np.isnan(mean_interval([]).mean) and paired_difference([1, 2], [1, 2]).verdict == 'not distinguishable'
    assert paired_difference([.5, .6], [.4, .5]).verdict == 'no interval'  # the same step twice is no certainty
    with pytest.raises(ValueError, match='pairs'): paired_difference([1, 2], [1])


def test_coverage_is_95_percent():
    rng = np.random.default_rng(0)
    hits = [(d := paired_difference(rng.normal(.3, 1, 6), rng.normal(0, 1, 6))).low <= .3 <= d.high for _ in range(4000)]
    assert abs(np.mean(hits) - .95) < .012  # 3.5 standard errors
