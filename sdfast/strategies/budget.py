"""A budget of forgetting instead of a strength λ: how λ is adapted while training.

A strategy with `retain=.98` changes its own λ so that what the encoder keeps stays at or above 98 % of what it knew.
This is the dual ascent of constrained optimisation: the floor is a constraint, λ its multiplier, which grows while the
constraint is violated and falls while it holds. On a log scale, as here, λ stays positive and one rate suits all
strategies (GECO, Rezende & Viola, Taming VAEs, 2018). Other work with the same idea: PID control of the multiplier
(Stooke et al., ICML 2020), and the adaptive KL coefficient of PPO for language models (Ziegler et al., 2019)."""
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from ..errors import InputError
from ..runtime.arguments import ShowArguments

__all__ = ['Budget']

MEASUREMENTS = 20  # over a fit, if `every` is not given
EVERY = 25  # steps between two measurements, if the length of the fit is not known


class Budget(ShowArguments):
    """How much an encoder shall keep, how that is measured, and how λ follows from it.

    After each measurement λ is multiplied by `exp(rate*error)`, where `error` is how much less than the aim was kept,
    in units of what may be lost, between -1 and 3. The aim falls from `1 - early*(1 - retain)` at the start of the fit
    to `retain` at its end, because what a teacher that is renewed has let go does not come back.

    `kept` is called with a frozen copy of the encoder in eval mode and returns the share of its knowledge that is left,
    1 for the untouched encoder: see `KeptAccuracy` and `KeptByDrift`. It must use clips that no final report uses."""
    def __init__(self,
        retain:float, # The floor: share of what the encoder knew that it must keep, above 0 and below 1
        kept:Callable|None=None, # Measures the share that is left, see above; `None`: `KeptByDrift()`
        every:int|None=None, # Optimizer steps between two measurements; `None`: 20 measurements in a fit
        rate:float=.5, # By how much the logarithm of λ changes for an error of 1; with 0 λ is constant
        early:float=.5, # Share of the loss that is allowed from the start
        lowest:float|None=None, # Smallest λ; `None`: a thousandth of the first
        highest:float|None=None, # Largest λ; `None`: four times the first
        patience:int=4, # Measurements below the floor in a row, with λ at its largest, before a warning
    ):
        if isinstance(retain, bool) or not isinstance(retain, Real) or not 0 < retain < 1:
            raise InputError(f'retain must be a share above 0 and below 1, such as .98, not {retain!r}; an encoder '
                             'that must keep everything is not trained: take LinearProbe()')
        if kept is not None and not callable(kept):
            raise InputError('kept must be a function of the encoder that returns the share that is left, such as '
                             f'KeptAccuracy(model, loader), not {type(kept).__name__}')
        self.retain: float = float(retain)
        self.kept: Any = kept
        self.every, self.patience = every, patience
        self.rate: float = rate
        self.early: float = early
        self.lowest, self.highest = lowest, highest
        self._check()

    def _check(self):
        for name in ('every', 'patience'):
            value = getattr(self, name)
            if value is None and name == 'every': continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f'{name} of a Budget must be a whole number of at least 1, not {value!r}')
        if not isinstance(self.rate, Real) or not 0 <= self.rate < math.inf:
            raise InputError(f'rate of a Budget must be a number of at least 0, not {self.rate!r}')
        if not isinstance(self.early, Real) or not 0 <= self.early <= 1:
            raise InputError(f'early of a Budget must be a share from 0 to 1, not {self.early!r}')
        for name in ('lowest', 'highest'):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Real) or not 0 < value < math.inf):
                raise InputError(f'{name} of a Budget is a λ above 0, not {value!r}')
        if self.lowest and self.highest and self.lowest > self.highest:
            raise InputError(f'lowest of a Budget, {self.lowest:g}, is above highest, {self.highest:g}')

    def aim(self,
        done:float|None, # Share of the fit that is over; `None`: not known, so that the aim is the floor
    )->float: # Share that shall be left by then
        "What the encoder shall have kept at this time"
        spent = 1. if done is None else self.early + (1 - self.early)*min(1., done)
        return 1 - (1 - self.retain)*spent

    def next_lam(self,
        lam:float, # The current strength
        kept:float, # What was measured
        done:float|None, # As for `aim`
        lowest:float, # Limits of the strength
        highest:float, # The largest
    )->float: # The next strength
        "One step of the dual ascent on log λ"
        error = (self.aim(done) - kept)/(1 - self.retain)
        return min(highest, max(lowest, lam*math.exp(self.rate*min(3., max(-1., error)))))
