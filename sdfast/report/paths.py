"""What keeping costs along a path of strengths: fronts, dominated areas, and what is kept at equal learning.

Each strategy's strengths, from weak to strong, make a path of points (learned, kept)."""
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..stats import TINY, Difference, mean_interval, paired_arrays

__all__ = ['pareto_front', 'hypervolume', 'kept_at', 'matched_kept', 'matched_difference']


def pareto_front(
    x:ArrayLike, # First coordinate of each point, higher is better
    y:ArrayLike, # Second one, higher is better
)->np.ndarray: # Whether each point is on the front: each of equal points is, points with a nan never are
    "Points that no other one dominates, being as high in both coordinates and higher in one"
    a, b = paired_arrays(x, y)
    as_high = (a >= a[:, None]) & (b >= b[:, None])  # whether the column's point is as high as the row's
    higher = (a > a[:, None]) | (b > b[:, None])
    dominated = (as_high & higher).any(1)
    return ~dominated & ~np.isnan(a + b)


def hypervolume(
    x:ArrayLike, # First coordinate of each point, higher is better
    y:ArrayLike, # Second one, higher is better; points with a nan add nothing
    ref:tuple[float, float]=(0, 0), # Corner; points that are not above it in both coordinates add nothing
)->float: # In units of `x` times units of `y`
    "Area between a corner and the front of the points (Zitzler & Thiele 1998, 1999)"
    a, b = paired_arrays(x, y)
    a0, b0 = ref
    above = (a > a0) & (b > b0)
    a, b = a[above], b[above]
    order = np.argsort(-a)
    widths, heights = -np.diff(a[order], append=a0), np.maximum.accumulate(b[order]) - b0
    return float(widths @ heights)


def kept_at(
    learned:ArrayLike, # Learned at each point of the path, ordered by strength
    kept:ArrayLike, # Kept at each point; a nan in either breaks the path there
    at:float, # Level of learning to compare at
)->float: # nan if no place of the path reaches `at`
    """The most that a path keeps where it learns at least `at`; the path is the polyline through its points.

    Paths of real runs are neither monotone nor functions: they cross a level several times or turn back. Whoever
    chooses a strength would choose the best, hence the maximum. Over a noisy path it is optimistic, equally so for
    paths with equally many points."""
    x, y = paired_arrays(learned, kept)
    x = np.where(np.isnan(y), np.nan, x) - at
    i = np.flatnonzero(x[:-1]*x[1:] < 0)  # the path crosses the level after these points
    crossings = y[i] + (y[i + 1] - y[i])*x[i]/(x[i] - x[i + 1])
    places = np.r_[y[x >= -TINY], crossings]
    return float(places.max()) if len(places) else np.nan


def _matched(at, level, *paths):
    """`kept_at` of the path of means, or the first path's minus the second's.

    Its interval is from a jackknife over the seeds of all paths together."""
    paths = [paired_arrays(*p) for p in paths]
    shapes = [x.shape for x, _ in paths]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError('arrays of (seeds, settings) are needed, of the same seeds: got '
                         f'{", ".join(map(str, shapes))}')
    failed = [np.isnan(x + y) for x, y in paths]
    seeds = np.flatnonzero(~np.any([f.all(1) for f in failed], 0))
    # a setting that failed at one seed is left out for all, or jackknifed paths would have different settings
    paths = [(x, np.where(f[seeds].any(0), np.nan, y)) for (x, y), f in zip(paths, failed)]
    n = len(seeds)

    def estimate(i):
        level = at(i) if callable(at) else at
        first, *second = (kept_at(x[i].mean(0), y[i].mean(0), level) for x, y in paths)
        return first - sum(second)

    full = estimate(seeds) if n else np.nan
    if n < 2: return Difference(full, np.nan, np.nan, n)
    pseudo = np.array([n*full - (n - 1)*estimate(np.delete(seeds, i)) for i in range(n)])
    # an interval about the estimate covers better than one about the mean of the pseudo-values
    interval = mean_interval(pseudo - pseudo.mean() + full, level)
    return Difference(full, interval.low, interval.high, n)


def matched_kept(
    learned:ArrayLike, # `(seeds, settings)`, settings ordered by strength
    kept:ArrayLike, # The same for what was kept; a setting with a nan is left out, and a seed that has only nan
    at:float|Callable, # Level of learning, or a function from indices of seeds to it, if it is itself a mean over seeds
    level:float=.95, # Nominal coverage
)->Difference: # Mean nan if the path does not reach `at`; ends nan also if a path without one of the seeds does not
    """`kept_at` of the path of means over seeds, with a t interval from the delete-one jackknife's pseudo-values.

    Source: Tukey 1958; Efron & Stein 1981. With 6 seeds its nominal 95 % covers .95 where the path trades learning for
    keeping. It covers about .90 where noise picks the maximum, on a flat path or one that barely reaches `at`: the
    maximum jumps between settings there, and the jackknife is rough."""
    return _matched(at, level, (learned, kept))


def matched_difference(
    learned_a:ArrayLike, # `(seeds, settings)`, settings ordered by strength
    kept_a:ArrayLike, # The same for what was kept
    learned_b:ArrayLike, # Of the reference, at the same seeds; its settings may differ
    kept_b:ArrayLike, # The same for what was kept
    at:float|Callable, # Level of learning, or a function from indices of seeds to it
    level:float=.95, # Nominal coverage
)->Difference: # As from `matched_kept`
    """How much more a keeps than b at equal learning: `matched_kept` of a minus that of b.

    Pairs are kept: each path of the jackknife leaves out the same seed of a, b and `at`."""
    return _matched(at, level, (learned_a, kept_a), (learned_b, kept_b))
