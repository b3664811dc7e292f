"""Differences over two random factors, such as source models and seeds: intervals and tests of equivalence.

Every seed is run with every source model, so a difference has an effect of its model, one of its seed, and a rest. An
interval over seeds alone speaks of one source model; these speak of source models and seeds that were not run."""
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import InputError
from .stats import Difference

__all__ = ['CrossedDifference', 'crossed_difference']


@dataclass(frozen=True)
class CrossedDifference(Difference):
    "A mean over two random factors, with the standard error and the degrees of freedom of its t interval"
    mean: float  # of the values
    low: float  # lower end of the interval
    high: float  # upper end
    n: int  # number of values
    error: float = np.nan  # standard error; nan where it cannot be estimated
    df: float = np.nan  # degrees of freedom, by Satterthwaite

    @property
    def p(self)->float:
        "Two-sided p value of the mean being 0; nan where there is no interval"
        if np.isnan(self.low): return np.nan
        return float(2*stats.t.sf(abs(self.mean)/self.error, self.df)) if self.error else float(self.mean == 0)

    def p_not_below(self,
        margin:float, # Smallest difference of interest, above 0
    )->float: # One-sided p value; small: the mean is above -margin
        "Test non-inferiority: whether the mean is not below -margin"
        return self._above(self.mean + margin)

    def p_equivalent(self,
        margin:float, # Smallest difference of interest, above 0
    )->float: # The larger p value of the two one-sided tests (TOST, Schuirmann 1987); small: within the margin
        "Test equivalence: whether the mean is between -margin and margin"
        return max(self._above(self.mean + margin), self._above(margin - self.mean))

    def _above(self, distance):
        if np.isnan(self.low): return np.nan
        return float(stats.t.sf(distance/self.error, self.df)) if self.error else float(distance <= 0)


def crossed_difference(
    values:ArrayLike, # A row for each level of the first factor and a column for each of the second; nan: failed
    level:float=.95, # Coverage of the interval
)->CrossedDifference: # Its `n` is the number of values that were used
    """A mean with the t interval of the crossed random-effects model y_ij = m + a_i + b_j + e_ij.

    The variance of the mean is (MS_a + MS_b - MS_e)/(n_a n_b), with Satterthwaite's degrees of freedom (Searle, Casella
    and McCulloch, Variance Components, 1992). Where MS_e exceeds the smaller of the others, that factor's variance is
    estimated as 0, and the larger of MS_a and MS_b takes its place, with its degrees of freedom. A column with a
    missing value is left out. There is no interval with one row or one column."""
    y = np.asarray(values, float)
    if y.ndim != 2: raise InputError(f'values must be a table, source models by seeds, not of {y.ndim} dimensions')
    y = y[:, ~np.isnan(y).any(0)]
    n_a, n_b = y.shape
    mean = float(y.mean()) if y.size else np.nan
    if min(n_a, n_b) < 2: return CrossedDifference(mean, np.nan, np.nan, y.size)
    ms_a = n_b*y.mean(1).var(ddof=1)
    ms_b = n_a*y.mean(0).var(ddof=1)
    rest = y - y.mean(1, keepdims=True) - y.mean(0) + mean
    df_a, df_b, df_e = n_a - 1, n_b - 1, (n_a - 1)*(n_b - 1)
    ms_e = (rest**2).sum()/df_e
    if ms_e < min(ms_a, ms_b):
        ms = ms_a + ms_b - ms_e
        df = ms**2/(ms_a**2/df_a + ms_b**2/df_b + ms_e**2/df_e)
    else: ms, df = max((ms_a, df_a), (ms_b, df_b))
    error = float(np.sqrt(ms/y.size))
    half = stats.t.ppf((1 + level)/2, df)*error
    return CrossedDifference(mean, mean - half, mean + half, y.size, error, float(df))
