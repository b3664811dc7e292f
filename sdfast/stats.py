"Intervals for paired comparisons."
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ['Difference', 'paired_difference', 'mean_interval', 'proportion_interval', 'mcnemar']


@dataclass(frozen=True)
class Difference:
    "A mean with a confidence interval; its ends are nan where there is none"
    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self)->str:
        "'higher' or 'lower' if the interval excludes 0, 'no interval' if there is none, else 'not distinguishable'"
        if np.isnan(self.low): return 'no interval'
        return 'higher' if self.low > 0 else 'lower' if self.high < 0 else 'not distinguishable'


def mean_interval(
    x, # Values, one a seed; nan counts as missing
    level:float=.95, # Coverage of the interval
)->Difference:
    """Student's t interval of a mean. There is none for one value, nor for equal values that are not 0: accuracies of a few
    clips are steps, and two seeds on the same step say nothing of the spread"""
    x = np.asarray(x, float)
    x = x[~np.isnan(x)]
    if len(x) < 2 or (np.ptp(x) < 1e-6 and abs(x.mean()) > 1e-6): return Difference(float(x.mean()) if len(x) else np.nan, np.nan, np.nan, len(x))
    half = stats.t.ppf((1 + level)/2, len(x) - 1)*x.std(ddof=1)/np.sqrt(len(x))
    return Difference(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def paired_difference(
    a, # Values, one a seed
    b, # Values of the reference at the same seeds; pairs with a nan are left out
    level:float=.95, # Coverage of the interval
)->Difference:
    "`a - b` with Student's t interval of the paired differences"
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape: raise ValueError(f'pairs are needed: {a.shape} against {b.shape} values')
    return mean_interval(a - b, level)


def proportion_interval(
    right:int, # Videos classified correctly
    n:int, # Videos
    level:float=.95, # Coverage of the interval
)->Difference:
    "An accuracy with Wilson's interval: the spread over videos, for one trained model; not over repeated training"
    ci = stats.binomtest(int(right), int(n)).proportion_ci(level, method='wilson')
    return Difference(right/n, float(ci.low), float(ci.high), int(n))


def mcnemar(
    right, # For each video whether a model was right
    reference, # The same of the model it is compared with, same videos
)->float: # Two-sided p value; 1 if the models never disagree
    "McNemar's exact test of paired right and wrong answers"
    right, reference = np.asarray(right, bool), np.asarray(reference, bool)
    if right.shape != reference.shape: raise ValueError(f'pairs are needed: {right.shape} against {reference.shape} answers')
    gained, lost = int((right & ~reference).sum()), int((~right & reference).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.
