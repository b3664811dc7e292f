"What is left of an encoder's knowledge, guessed without source clips: how far its features drift on target clips."
import warnings
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from fastai.torch_core import get_random_states, set_random_states
from sklearn.isotonic import IsotonicRegression
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..models.features import encode
from ..models.surgery import frozen_copy

__all__ = ['KeptByDrift', 'drift_curve']

# drift of features -> share of the old head's accuracy that is left: `drift_curve` of the 300 final runs in
# experiments/results/moving_digits_paths, whose drift is that of source clips
MEASURED = ((0., 1.), (.168, .984), (.226, .963), (.238, .962), (.25, .96), (.271, .956), (.297, .947), (.327, .934),
            (.689, .135))


class KeptByDrift:
    """The share that is left, from the drift of features on target clips, `||f - f_0|| / ||f_0||`, for a `Budget`.

    What drift costs which share differs between encoders and tasks: pass a `curve` that was measured on a task with
    source clips, see `drift_curve`. Without one, that of the embedded task is used, with a warning; there it is the
    drift of source clips, by the old head. Between the points
    of the curve the share is interpolated; beyond the last, its last slope continues, down to 0.

    The clips are an evenly spaced sample of the training data, without augmentation where the loader allows it, which
    is kept in memory with the features of the encoder before training."""
    def __init__(self,
        curve:Sequence[tuple[float, float]]|None=None, # Pairs (drift, share that is left); `None`: see above
        clips:int|Iterable=256, # Number of clips of the training data, or a loader of other clips
    ):
        if not (isinstance(clips, Iterable) or isinstance(clips, int) and clips >= 2):
            raise InputError(f'clips of KeptByDrift is a number of at least 2 or a loader, not {clips!r}')
        self.given, self.clips = curve is not None, clips
        self.drifts, self.shares = _checked(MEASURED if curve is None else curve)
        self._sample: list|None = None  # batches of clips
        self._before: torch.Tensor|None = None  # their features by the encoder before training

    def begin(self, strategy:Any)->None: # At work in a loop
        "Take the clips, and their features before training"
        if self._sample is None: self._sample = self._take(strategy)
        if self._before is not None: return
        if strategy.loop.epoch > 0:
            raise InputError(f'{type(strategy).__name__}(retain=...) lacks the features from before training: a fit '
                             f'that starts at epoch {strategy.loop.epoch} is too late to measure them')
        if not self.given:
            warnings.warn('retain without source clips is a guess: it takes the relation of drift and forgetting '
                          'that was measured on moving_digits; pass retain=Budget(SHARE, KeptAccuracy(...)) where you '
                          'have clips of the source, or KeptByDrift(curve) with a curve of your own')
        states = get_random_states()
        try: self._before = self._features(frozen_copy(strategy.module()))
        finally: set_random_states(**states)

    def _take(self, strategy):
        dl = self.clips if isinstance(self.clips, Iterable) else strategy.loop.unaugmented
        if dl is None:
            raise InputError(f'{type(strategy).__name__}(retain=...) measures drift on target clips: call '
                             'attach(model, batches=LOADER), or pass retain=Budget(SHARE, KeptByDrift(clips=LOADER))')
        states = get_random_states()
        try: batches = [split_batch(b, who='the loader of target clips')[0] for b in dl]
        finally: set_random_states(**states)
        if not batches: raise InputError('KeptByDrift: the loader of target clips has no batches')
        if not isinstance(self.clips, int): return batches
        sample = torch.cat(batches)
        rows = torch.linspace(0, len(sample) - 1, min(self.clips, len(sample))).round().long()
        return list(sample[rows.to(sample.device)].split(len(batches[0])))

    @torch.no_grad()
    def _features(self, encoder):
        assert self._sample is not None  # set in `begin`
        return torch.cat([encode(encoder, x)[0].float().cpu() for x in self._sample])

    def drift(self, encoder:nn.Module)->float: # In eval mode
        "How far the features of the clips have moved, relative to their size"
        assert self._before is not None  # set in `begin`
        return ((self._features(encoder) - self._before).norm()/self._before.norm()).item()

    def __call__(self, encoder:nn.Module)->float: return self.share(self.drift(encoder))

    def share(self, drift:float)->float:
        "The share that is left after so much drift, by the curve"
        if drift <= self.drifts[-1]: return float(np.interp(drift, self.drifts, self.shares))
        slope = (self.shares[-1] - self.shares[-2])/(self.drifts[-1] - self.drifts[-2])
        return max(0., float(self.shares[-1] + slope*(drift - self.drifts[-1])))

    def forget(self)->None:
        "Drop what is of another encoder"
        self._sample = self._before = None

    def fresh(self)->'KeptByDrift':
        "A copy that has not met an encoder"
        other = copy(self)
        other.forget()
        return other

    def state_dict(self)->dict: return dict(before=self._before)

    def load_state_dict(self, state:dict)->None:
        self._before = None if state['before'] is None else state['before'].cpu()


def _checked(curve):
    points = sorted((float(d), float(k)) for d, k in curve)
    drifts, shares = (np.array(v) for v in zip(*points)) if points else (np.array([]), np.array([]))
    falls = len(points) > 1 and (np.diff(drifts) > 0).all() and (np.diff(shares) <= 0).all()
    if not falls or (drifts[0], shares[0]) != (0, 1):
        raise InputError('the curve of KeptByDrift needs pairs (drift, share) from (0, 1) on, at least two, whose '
                         f'share falls with the drift, not {list(curve)}')
    return drifts, shares


def drift_curve(
    drifts:Sequence[float], # Of target clips, one for each measured encoder
    kept:Sequence[float], # Accuracy on the source that each has, as a share of the untouched encoder's
)->list[tuple[float, float]]: # Pairs (drift, share), from (0, 1) on
    """The curve for `KeptByDrift`: the isotonic regression of what is kept on drift.

    Both come from runs on a task with source clips, such as `Retention` with `clips=TARGET_CLIPS`, which measures the
    drift of these."""
    x, y = [0., *map(float, drifts)], [1., *map(float, kept)]
    weights = [float(len(x)), *[1.]*(len(x) - 1)]  # an encoder without drift has lost nothing
    fitted = IsotonicRegression(increasing=False, y_max=1.).fit(x, y, weights)
    at = np.unique(np.quantile(x, np.linspace(0, 1, 9)))
    shares = fitted.predict(at)
    shares[0] = 1.
    return [(float(d), float(k)) for d, k in zip(at, shares)]
