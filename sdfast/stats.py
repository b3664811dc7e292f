"Intervals and tests for paired comparisons, corrections for many of them, and the trade-off of learning against keeping."
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .errors import InputError

__all__ = ['Difference', 'paired_difference', 'mean_interval', 'bca_interval', 'proportion_interval', 'mcnemar', 'paired_test', 'p_value', 'sign_flip', 'holm',
           'benjamini_hochberg', 'adjust', 'judge', 'pareto_front', 'hypervolume', 'kept_at', 'matched_kept', 'matched_difference']

TINY = 1e-6  # closer values are equal: steps of accuracies are larger, the noise of their arithmetic is smaller


@dataclass(frozen=True)
class Difference:
    "A mean with a confidence interval; its ends are nan where there is none"
    mean: float  # of the values or of their differences
    low: float  # lower end
    high: float  # upper end
    n: int  # values or pairs that it is of

    @property
    def verdict(self)->str:
        "'higher' or 'lower' if the interval excludes 0, 'no interval' if there is none, else 'not distinguishable'"
        if np.isnan(self.low): return 'no interval'
        return 'higher' if self.low > 0 else 'lower' if self.high < 0 else 'not distinguishable'


@cache
def _t(level, df)->float: return float(stats.t.ppf((1 + level)/2, df))  # a page asks for the same few thousands of times


def mean_interval(
    x:ArrayLike, # Values, one a seed; nan counts as missing
    level:float=.95, # Coverage of the interval
)->Difference: # `n` counts values that are there
    """Student's t interval of a mean. There is none for one value, nor for equal values that are not 0: accuracies of a few
    clips are steps, and two seeds on the same step say nothing of the spread"""
    x = np.asarray(x, float)
    x = x[~np.isnan(x)]
    if len(x) < 2 or (np.ptp(x) < TINY and abs(x.mean()) > TINY): return Difference(float(x.mean()) if len(x) else np.nan, np.nan, np.nan, len(x))
    half = _t(level, len(x) - 1)*x.std(ddof=1)/np.sqrt(len(x))
    low, high = x.mean() - half, x.mean() + half
    if np.ptp(x) < TINY: low, high = min(low, 0), max(high, 0)  # zeros but for rounding, .1 + .2 - .3 at each seed, differ from nothing
    return Difference(float(x.mean()), float(low), float(high), len(x))


def _pairs(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape: raise ValueError(f'pairs are needed: {a.shape} against {b.shape} values')
    return a, b


def paired_difference(
    a:ArrayLike, # Values, one a seed
    b:ArrayLike, # Values of the reference at the same seeds; pairs with a nan are left out
    level:float=.95, # Coverage of the interval
)->Difference: # Its mean is that of `a - b`
    "`a - b` with Student's t interval of the paired differences"
    a, b = _pairs(a, b)
    return mean_interval(a - b, level)


def bca_interval(
    x:ArrayLike, # Values, one a seed; nan counts as missing
    level:float=.95, # Nominal coverage
    resamples:int=9999, # Bootstrap samples
    seed:int=0, # Of the resampling: the same values give the same interval
)->tuple[float, float]: # Ends; nan for fewer than 2 values and for equal ones
    """Bias-corrected accelerated bootstrap interval of a mean (Efron 1987, Better bootstrap confidence intervals). It is no
    refuge from few seeds: of normal values its 95 % cover .86 at n = 6 and .94 at n = 30, while the t interval covers .95 at both
    and is therefore the one that decides"""
    x = np.asarray(x, float)
    x = x[~np.isnan(x)]
    if len(x) < 2 or np.ptp(x) < TINY: return np.nan, np.nan
    boot = stats.bootstrap((x,), np.mean, n_resamples=resamples, confidence_level=level, method='BCa', random_state=np.random.default_rng(seed))
    return tuple(map(float, boot.confidence_interval))


def proportion_interval(
    right:int, # Videos classified correctly
    n:int, # Videos
    level:float=.95, # Coverage of the interval
)->Difference: # Its mean is the accuracy
    "An accuracy with Wilson's interval: the spread over videos, for one trained model; not over repeated training"
    ci = stats.binomtest(int(right), int(n)).proportion_ci(level, method='wilson')
    return Difference(right/n, float(ci.low), float(ci.high), int(n))


def mcnemar(
    right:ArrayLike, # For each video whether a model was right
    reference:ArrayLike, # The same of the model it is compared with, same videos
)->float: # Two-sided p value; 1 if the models never disagree
    "McNemar's exact test of paired right and wrong answers"
    right, reference = np.asarray(right, bool), np.asarray(reference, bool)
    if right.shape != reference.shape: raise ValueError(f'pairs are needed: {right.shape} against {reference.shape} answers')
    gained, lost = int((right & ~reference).sum()), int((~right & reference).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.


def paired_test(
    a:ArrayLike, # Values, one a seed
    b:ArrayLike, # Values of the reference at the same seeds; pairs with a nan are left out
)->float: # Two-sided p value; nan where `paired_difference` has no interval, 1 if all differences are 0
    "Student's paired t test: p < .05 exactly where the 95 % interval of `paired_difference` excludes 0"
    a, b = _pairs(a, b)
    d = (a - b)[~np.isnan(a - b)]
    if np.isnan(mean_interval(d).low): return np.nan
    return 1. if np.ptp(d) < TINY else float(stats.ttest_1samp(d, 0).pvalue)


def p_value(
    d:Difference, # With a Student's t interval of n - 1 degrees of freedom
    level:float=.95, # Of that interval
)->float: # Two-sided p value of 0; nan where there is no interval
    "The p value that belongs to a t interval: for differences that are no plain means of pairs, as of `matched_difference`"
    half = (d.high - d.low)/2
    if np.isnan(half): return np.nan
    if half < TINY: return 1. if abs(d.mean) < TINY else np.nan
    return float(2*stats.t.sf(abs(d.mean)/half*_t(level, d.n - 1), d.n - 1))


def sign_flip(
    d:ArrayLike, # Paired differences, one a seed; nan counts as missing
)->float: # Two-sided p value; nan below 6 pairs, 1 if all are 0
    """Sign-flip test of the mean (Fisher 1935, The Design of Experiments), exact if differences are symmetric about 0 under the null:
    the share of the 2^n sign patterns, above 16 pairs of 65536 drawn ones, whose sum is as far from 0. With 5 pairs the
    smallest p is 2/32 = .0625, so below 6 it could never reject at .05; pairs that differ by 0 count, but add nothing to that power"""
    d = np.asarray(d, float)
    d = d[~np.isnan(d)]
    if len(d) < 6: return np.nan
    d = np.where(np.abs(d) < TINY, 0, d)
    far = np.abs(d.sum()) - 1e-5*np.abs(d).sum()  # rounding must not part ties, else p is too small
    return float(stats.permutation_test((d,), lambda d, axis: (np.abs(d.sum(axis)) >= far)*1., permutation_type='samples', vectorized=True, n_resamples=2**16,
                                        batch=4096, alternative='greater', random_state=np.random.default_rng(0)).pvalue)


def _known(f, p):
    "`f` of the p values that are not nan"
    p = np.array(p, float)
    known = ~np.isnan(p)
    if known.any(): p[known] = f(p[known])
    return p


def holm(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
)->np.ndarray: # Adjusted p values
    "Holm's (1979) step-down adjustment: below .05 with at most 5 % chance of even one false discovery, however the tests depend"
    def f(p):
        order = np.argsort(p)
        return np.minimum(np.maximum.accumulate(p[order]*np.arange(len(p), 0, -1)), 1)[np.argsort(order)]
    return _known(f, p)


def benjamini_hochberg(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
)->np.ndarray: # Adjusted p values
    "Benjamini & Hochberg's (1995) adjustment: of those below .05 at most 5 % are expected to be false, if the tests are independent or depend positively"
    return _known(stats.false_discovery_control, p)


ADJUSTMENTS = dict(holm=holm, bh=benjamini_hochberg, none=lambda p: np.array(p, float))


def adjust(
    p:ArrayLike, # p values of one family; nan stays nan and is not counted
    method:str='holm', # Or 'bh' for the false discovery rate, 'none' to leave them as they are
)->np.ndarray: # Adjusted p values
    "Adjust p values for the number of tests; raises `InputError` for an unknown method"
    if method not in ADJUSTMENTS: raise InputError(f'unknown adjustment {method!r}; choose one of {", ".join(ADJUSTMENTS)}')
    return ADJUSTMENTS[method](p)


def judge(
    diff_mean:float, # Mean difference to the reference
    p_adjusted:float, # Its p value, adjusted for the number of comparisons; nan where there is none
    higher_is_better:bool=True, # As for accuracies; not so for drift
    level:float=.95, # 1 minus the error that is allowed
)->str: # The verdict
    "'better' or 'worse' if p is below 1 - `level`, 'no interval' if there is no p, else 'not distinguishable'"
    if np.isnan(diff_mean) or np.isnan(p_adjusted): return 'no interval'
    if diff_mean == 0 or p_adjusted >= round(1 - level, 9): return 'not distinguishable'  # 1 - .95 is above .05 in floats
    return 'better' if (diff_mean > 0) == higher_is_better else 'worse'


def pareto_front(
    x:ArrayLike, # First coordinate of each point, higher is better
    y:ArrayLike, # Second one, higher is better
)->np.ndarray: # Whether each point is on the front; duplicates all are, points with a nan never
    "Points that no other one beats: as high in both coordinates and higher in one"
    x, y = _pairs(x, y)
    beaten = (x >= x[:, None]) & (y >= y[:, None]) & ((x > x[:, None]) | (y > y[:, None]))  # row by column
    return ~beaten.any(1) & ~np.isnan(x + y)


def hypervolume(
    x:ArrayLike, # First coordinate of each point, higher is better
    y:ArrayLike, # Second one, higher is better; points with a nan add nothing
    ref:tuple[float, float]=(0, 0), # Corner that the area is measured from; what is not above it in both coordinates adds nothing
)->float: # In units of `x` times units of `y`
    "Area between `ref` and the front of the points (Zitzler & Thiele 1998, 1999): that of all places that some point is at least as high as in both"
    (x, y), (x0, y0) = _pairs(x, y), ref
    above = (x > x0) & (y > y0)
    x, y = x[above], y[above]
    order = np.argsort(-x)
    return float(-np.diff(x[order], append=x0) @ (np.maximum.accumulate(y[order]) - y0))


def kept_at(
    learned:ArrayLike, # What each point of the path learned, ordered by strength
    kept:ArrayLike, # What it kept; a nan in either breaks the path there
    at:float, # The level of learning to compare at
)->float: # nan if no place of the path reaches `at`
    """The most kept on a path among its places that learned at least `at`; the path is the polyline through its points. The
    maximum, as paths of real runs are neither monotone nor functions: they pass a level several times or turn back, and who
    chooses a strength would choose the best. The maximum over a noisy path is optimistic, for paths of equally many points equally so"""
    x, y = _pairs(learned, kept)
    x = np.where(np.isnan(y), np.nan, x) - at
    cross = np.flatnonzero(x[:-1]*x[1:] < 0)
    places = np.r_[y[x >= -TINY], y[cross] + (y[cross + 1] - y[cross])*x[cross]/(x[cross] - x[cross + 1])]
    return float(places.max()) if len(places) else np.nan


def _matched(at, level, *paths):
    "`kept_at` of the path of means, or the first one's less the second one's, jackknifed over the seeds of all paths together"
    paths = [_pairs(*p) for p in paths]
    if any(x.ndim != 2 for x, _ in paths) or len({len(x) for x, _ in paths}) > 1:
        raise ValueError(f'arrays of (seeds, settings) are needed, of the same seeds: got {", ".join(str(x.shape) for x, _ in paths)}')
    seeds = np.flatnonzero(~np.any([np.isnan(x + y).all(1) for x, y in paths], 0))
    # a setting that failed at one seed is left out for all, else each jackknifed path would have other settings
    paths = [(x, np.where(np.isnan(x + y)[seeds].any(0), np.nan, y)) for x, y in paths]
    n = len(seeds)

    def f(i):
        level = at(i) if callable(at) else at
        first, *second = (kept_at(x[i].mean(0), y[i].mean(0), level) for x, y in paths)
        return first - sum(second)

    full = f(seeds) if n else np.nan
    pseudo = np.array([n*full - (n - 1)*f(np.delete(seeds, i)) for i in range(n)]) if n > 1 else np.full(1, np.nan)
    ci = mean_interval(pseudo - pseudo.mean() + full, level)  # about the estimate: covers better than about the mean of pseudo-values
    return Difference(full, ci.low, ci.high, n)


def matched_kept(
    learned:ArrayLike, # `(seeds, settings)`, settings ordered by strength
    kept:ArrayLike, # The same of what was kept; a setting with a nan is left out, and a seed with nothing else
    at:float|Callable, # Level of learning, or a function of the seeds' indices that returns it: a reference's mean over seeds is an estimate too
    level:float=.95, # Nominal coverage
)->Difference: # Its mean is nan if the path does not reach `at`, its ends also if a path without one of the seeds does not
    """`kept_at` of the path of means over seeds, with the delete-one jackknife's t interval from pseudo-values (Tukey 1958; Efron &
    Stein 1981). With 6 seeds its 95 % covers .95 where the path trades one for the other, and about .90 where noise picks the
    maximum, on a flat path or one that barely reaches `at`: there the maximum hops, and the jackknife is rough"""
    return _matched(at, level, (learned, kept))


def matched_difference(
    learned_a:ArrayLike, # `(seeds, settings)`, settings ordered by strength
    kept_a:ArrayLike, # The same of what was kept
    learned_b:ArrayLike, # Of the reference, at the same seeds; its settings may be others
    kept_b:ArrayLike, # The same of what was kept
    at:float|Callable, # Level of learning, or a function of the seeds' indices that returns it
    level:float=.95, # Nominal coverage
)->Difference: # As of `matched_kept`
    "`matched_kept` of a less that of b: what a keeps more at equal learning, paired, each jackknifed path leaving out the same seed of both and of `at`"
    return _matched(at, level, (learned_a, kept_a), (learned_b, kept_b))
