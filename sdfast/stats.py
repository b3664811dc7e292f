"Intervals and tests for paired comparisons, and adjustments for many of them."
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import InputError

__all__ = ['Difference', 'paired_difference', 'mean_interval', 'bca_interval', 'proportion_interval', 'above_chance',
           'mcnemar', 'paired_test', 'p_value', 'sign_flip', 'holm', 'benjamini_hochberg', 'adjust', 'judge']

TINY = 1e-6  # closer values count as equal: steps of accuracies are larger, rounding errors are smaller


@dataclass(frozen=True)
class Difference:
    "A mean with a confidence interval, whose ends are nan where there is none"
    mean: float  # of the values or of their differences
    low: float  # lower end
    high: float  # upper end
    n: int  # number of values or pairs

    @property
    def verdict(self)->str:
        "'higher' or 'lower' if the interval excludes 0, 'no interval' if there is none, else 'not distinguishable'"
        if np.isnan(self.low): return 'no interval'
        if self.low > 0: return 'higher'
        return 'lower' if self.high < 0 else 'not distinguishable'


@cache  # a page asks for the same few quantiles thousands of times
def _t(level, df): return float(stats.t.ppf((1 + level)/2, df))


def _known(x:ArrayLike)->np.ndarray:
    "The values that are not nan"
    values = np.asarray(x, float)
    return values[~np.isnan(values)]


def mean_interval(
    x:ArrayLike, # Values, one a seed; nan counts as missing
    level:float=.95, # Coverage of the interval
)->Difference: # Its `n` leaves out missing values
    """Student's t interval of a mean.

    There is none for one value, nor for equal values other than 0: accuracies of a few clips are steps, and two seeds
    on the same step do not show the spread."""
    values = _known(x)
    n, mean = len(values), float(values.mean()) if len(values) else np.nan
    if n < 2: return Difference(mean, np.nan, np.nan, n)
    equal = np.ptp(values) < TINY
    if equal and abs(mean) > TINY: return Difference(mean, np.nan, np.nan, n)
    half = _t(level, n - 1)*values.std(ddof=1)/np.sqrt(n)
    low, high = values.mean() - half, values.mean() + half
    # 0 but for rounding, as .1 + .2 - .3 at each seed, is no difference
    if equal: low, high = min(low, 0), max(high, 0)
    return Difference(mean, float(low), float(high), n)


def paired_arrays(a:ArrayLike, b:ArrayLike)->tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(a, float), np.asarray(b, float)
    if x.shape != y.shape: raise ValueError(f'pairs are needed: {x.shape} against {y.shape} values')
    return x, y


def paired_difference(
    a:ArrayLike, # Values, one a seed
    b:ArrayLike, # Values of the reference at the same seeds; pairs with a nan are left out
    level:float=.95, # Coverage of the interval
)->Difference: # Mean and interval of `a - b`
    "Paired differences with Student's t interval"
    mine, reference = paired_arrays(a, b)
    return mean_interval(mine - reference, level)


def bca_interval(
    x:ArrayLike, # Values, one a seed; nan counts as missing
    level:float=.95, # Nominal coverage
    resamples:int=9999, # Bootstrap samples
    seed:int=0, # Of the resampling: the same values give the same interval
)->tuple[float, float]: # Ends; nan for fewer than 2 values and for equal ones
    """Bias-corrected accelerated bootstrap interval of a mean (Efron 1987, Better bootstrap confidence intervals).

    It does not make up for few seeds: for normal values its nominal 95 % covers .86 at n = 6 and .94 at n = 30. The t
    interval covers .95 at both; verdicts therefore use that one."""
    values = _known(x)
    if len(values) < 2 or np.ptp(values) < TINY: return np.nan, np.nan
    rng = np.random.default_rng(seed)
    boot = stats.bootstrap((values,), np.mean, n_resamples=resamples, confidence_level=level, method='BCa',
                           random_state=rng)
    low, high = boot.confidence_interval
    return float(low), float(high)


def proportion_interval(
    right:int, # Videos classified correctly
    n:int, # Videos
    level:float=.95, # Coverage of the interval
)->Difference: # Its mean is the accuracy
    "An accuracy of one model with Wilson's interval: its spread over videos, not over repeated training"
    ci = stats.binomtest(int(right), int(n)).proportion_ci(level, method='wilson')
    return Difference(right/n, float(ci.low), float(ci.high), int(n))


def above_chance(
    accuracy:float, # Share of videos classified correctly
    n:int, # Videos
    chance:float, # Accuracy of always answering the most frequent class
    level:float=.95, # 1 minus the accepted error
)->bool: # False if the accuracy can be chance
    "Whether an accuracy is above chance, by the one-sided binomial test"
    right = round(accuracy*n)
    return bool(stats.binomtest(right, int(n), chance, alternative='greater').pvalue < round(1 - level, 9))


def mcnemar(
    right:ArrayLike, # Whether a model was right on each video
    reference:ArrayLike, # Whether the model it is compared with was right on each, same videos
)->float: # Two-sided p value; 1 if the models never disagree
    "McNemar's exact test of paired right and wrong answers"
    mine, other = np.asarray(right, bool), np.asarray(reference, bool)
    if mine.shape != other.shape: raise ValueError(f'pairs are needed: {mine.shape} against {other.shape} answers')
    gained, lost = int((mine & ~other).sum()), int((~mine & other).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.


def paired_test(
    a:ArrayLike, # Values, one a seed
    b:ArrayLike, # Values of the reference at the same seeds; pairs with a nan are left out
)->float: # Two-sided p value; nan where `paired_difference` has no interval, 1 if all differences are 0
    "Student's paired t test: p < .05 exactly where the 95 % interval of `paired_difference` excludes 0"
    mine, reference = paired_arrays(a, b)
    d = _known(mine - reference)
    if np.isnan(mean_interval(d).low): return np.nan
    return 1. if np.ptp(d) < TINY else float(stats.ttest_1samp(d, 0).pvalue)


def p_value(
    d:Difference, # With a Student's t interval of n - 1 degrees of freedom
    level:float=.95, # Coverage of that interval
)->float: # Two-sided p value of the mean being 0; nan where there is no interval
    "The p value that belongs to a t interval, for differences that are not means of pairs (`matched_difference`)"
    half = (d.high - d.low)/2
    if np.isnan(half): return np.nan
    if half < TINY: return 1. if abs(d.mean) < TINY else np.nan
    return float(2*stats.t.sf(abs(d.mean)/half*_t(level, d.n - 1), d.n - 1))


def sign_flip(
    d:ArrayLike, # Paired differences, one a seed; nan counts as missing
)->float: # Two-sided p value; nan below 6 pairs, 1 if all are 0
    """Sign-flip test of the mean (Fisher 1935, The Design of Experiments).

    It is exact if differences are symmetric about 0 under the null hypothesis: the share of the 2^n sign patterns
    (above 16 pairs, of 65536 drawn ones) whose sum is as far from 0. With 5 pairs the smallest p is 2/32 = .0625, so
    fewer than 6 could never reject at .05. Pairs that differ by 0 count, but do not add power."""
    values = _known(d)
    if len(values) < 6: return np.nan
    values = np.where(np.abs(values) < TINY, 0, values)
    far = np.abs(values.sum()) - 1e-5*np.abs(values).sum()  # rounding must not separate ties, or p would be too small
    def as_far(d, axis): return (np.abs(d.sum(axis)) >= far)*1.
    test = stats.permutation_test((values,), as_far, permutation_type='samples', vectorized=True, n_resamples=2**16,
                                  batch=4096, alternative='greater', random_state=np.random.default_rng(0))
    return float(test.pvalue)


def _of_known(f, p):
    "Apply `f` to the p values that are not nan"
    p = np.array(p, float)
    known = ~np.isnan(p)
    if known.any(): p[known] = f(p[known])
    return p


def holm(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
)->np.ndarray: # Adjusted p values
    """Holm's (1979) step-down adjustment.

    The chance of even one false discovery below .05 is at most 5 %, however the tests depend on each other."""
    def f(p):
        order = np.argsort(p)
        adjusted = np.maximum.accumulate(p[order]*np.arange(len(p), 0, -1))
        return np.minimum(adjusted, 1)[np.argsort(order)]
    return _of_known(f, p)


def benjamini_hochberg(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
)->np.ndarray: # Adjusted p values
    """Benjamini & Hochberg's (1995) adjustment.

    Of the discoveries below .05 at most 5 % are expected to be false, if tests are independent or positively
    dependent."""
    return _of_known(stats.false_discovery_control, p)


ADJUSTMENTS = dict(holm=holm, bh=benjamini_hochberg, none=lambda p: np.array(p, float))


def adjust(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
    method:str='holm', # Or 'bh' for the false discovery rate, 'none' for no adjustment
)->np.ndarray: # Adjusted p values
    "Adjust p values for the number of tests; raises `InputError` for an unknown method"
    if method not in ADJUSTMENTS:
        raise InputError(f'unknown adjustment {method!r}; choose one of {", ".join(ADJUSTMENTS)}')
    return ADJUSTMENTS[method](p)


def judge(
    diff_mean:float, # Mean difference to the reference
    p_adjusted:float, # Its p value, adjusted for the number of comparisons; nan where there is none
    higher_is_better:bool=True, # As for accuracies; `False` for drift
    level:float=.95, # 1 minus the accepted error
)->str: # The verdict
    "'better' or 'worse' if p is below 1 - `level`, 'no interval' if there is no p, else 'not distinguishable'"
    if np.isnan(diff_mean) or np.isnan(p_adjusted): return 'no interval'
    alpha = round(1 - level, 9)  # 1 - .95 is above .05 in floats
    if diff_mean == 0 or p_adjusted >= alpha: return 'not distinguishable'
    return 'better' if (diff_mean > 0) == higher_is_better else 'worse'
