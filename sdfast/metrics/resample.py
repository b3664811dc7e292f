"""Bootstrap intervals over the clips of a test part, or over groups of clips that belong together.

The encoders and what was fitted to train clips stay as they are: an interval says how a number would vary on other
clips of the same kind, and not how it would vary if a model was trained again."""
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import InputError
from ..stats import Difference

__all__ = ['Resamples']

LEAST_KNOWN = .99  # share of the samples in which a statistic must have a value, as one without spread has none
MOST_GRAM = 4000  # largest number of clips of which Gram matrices are made for CKA


class Resamples:
    """Bootstrap samples of clips (Efron 1979), drawn once, so that all numbers of the same clips are paired.

    Groups are drawn with all their clips. Intervals are those of percentiles. Fewer than two groups have none."""
    def __init__(self,
        groups:Sequence, # Name of each clip's group: person, scene or recording; all different without groups
        n:int=2000, # Number of samples
        level:float=.95, # Coverage of the intervals
        seed:int=0, # Of the samples: the same groups give the same intervals
    ):
        if n < 100 or not 0 < level < 1:
            raise InputError(f'resamples must be at least 100, and level between 0 and 1, not {n} and {level}')
        self.level = level
        _, of_clip = np.unique(np.asarray(groups, str), return_inverse=True)
        self.groups = int(of_clip.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(self.groups, np.full(self.groups, 1/self.groups), n)
        self.weights = torch.tensor(drawn[:, of_clip], dtype=torch.double)  # how often a sample has a clip

    def interval(self,
        value:float, # Of all clips
        statistic:Callable[[torch.Tensor], torch.Tensor], # Values of samples, from their weights `(samples, clips)`
    )->Difference: # Its `n` is the number of groups
        "The interval of any statistic"
        if self.groups < 2: return Difference(value, np.nan, np.nan, self.groups)
        values = statistic(self.weights).numpy()
        known = values[np.isfinite(values)]
        if len(known) < LEAST_KNOWN*len(values): return Difference(value, np.nan, np.nan, self.groups)
        low, high = np.quantile(known, [(1 - self.level)/2, (1 + self.level)/2])
        return Difference(value, float(low), float(high), self.groups)

    def mean(self,
        x:ArrayLike, # A value of each clip
        limits:tuple[float, float]|None=None, # Smallest and largest possible value of a share or a change of one
    )->Difference:
        """The interval of a mean.

        If all clips have the same value, the bootstrap sees no spread, however few they are. The interval of a share
        then reaches as far as the share of other clips that cannot be excluded (Clopper & Pearson 1934): of n groups
        without a change, those with one may be `1 - .025**(1/n)`, .17 of 20, at 95 %."""
        values = torch.as_tensor(np.asarray(x, float))
        found = self.interval(values.mean().item(), lambda w: w @ values/w.sum(1))
        if limits is None or np.isnan(found.low) or values.min() < values.max(): return found
        unseen = 1 - ((1 - self.level)/2)**(1/self.groups)
        low, high = limits
        return Difference(found.mean, max(low, found.mean - unseen), min(high, found.mean + unseen), found.n)


# ---- statistics that are no means

def drift_samples(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the same clips by the untouched encoder
)->Callable: # For `Resamples.interval`
    "The drift of samples of the clips, see `drift`"
    moved, size = (x.double() - ref.double()).square().sum(1), ref.double().square().sum(1)
    return lambda w: ((w @ moved)/(w @ size)).sqrt()


def procrustes_samples(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the same clips by the untouched encoder
)->Callable: # For `Resamples.interval`
    "The Procrustes distance of samples of the clips, with the rotation that is best for all clips"
    x, ref = (f.double() - f.double().mean(0) for f in (x, ref))
    u, _, v = torch.linalg.svd(x.T @ ref, full_matrices=False)
    x = x @ (u @ v)
    both, one, other = (x*ref).sum(1), x.square().sum(1), ref.square().sum(1)

    def distance(w):
        n = w.sum(1)
        mx, mr = (w @ x)/n[:, None], (w @ ref)/n[:, None]
        norms = (w @ one - n*mx.square().sum(1))*(w @ other - n*mr.square().sum(1))
        return (2 - 2*(w @ both - n*(mx*mr).sum(1))/norms.sqrt()).clamp(min=0)
    return distance


def cka_samples(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the same clips by the untouched encoder
)->Callable: # For `Resamples.interval`
    """The unbiased CKA of samples of the clips, see `linear_cka`.

    Pairs of a clip with itself, which a sample has where it draws a clip twice, count 0 as they do without sampling,
    else unrelated features would look similar."""
    grams = [_gram(f) for f in (x, ref)]

    def cka(w):
        (kk, kl, ll) = (_hsic(grams[i], grams[j], w) for i, j in ((0, 0), (0, 1), (1, 1)))
        return (kl/(kk*ll).sqrt()).clamp(-1, 1)
    return cka


def _gram(f):
    f = f.double() - f.double().mean(0)
    return (f @ f.T).fill_diagonal_(0)


def _hsic(k, l, w):
    n = w.sum(1)
    wk, wl = w @ k, w @ l
    trace = ((w @ (k*l))*w).sum(1)
    sums = (wk*w).sum(1)*(wl*w).sum(1)/((n - 1)*(n - 2))
    return trace + sums - 2/(n - 2)*(wk*wl*w).sum(1)


def barrier_samples(
    losses:torch.Tensor, # Of each clip `(places, N)`
    at:Sequence[float], # The places, from 0 to 1
)->Callable: # For `Resamples.interval`
    "The barrier of samples of the clips, see `loss_barrier`"
    share = torch.tensor(at, dtype=torch.double)

    def barrier(w):
        means = (w @ losses.double().T)/w.sum(1, keepdim=True)
        straight = means[:, :1] + share*(means[:, -1:] - means[:, :1])
        return (means - straight).amax(1).clamp(min=0)
    return barrier
