"Strategies that take a budget: `retain` of every class that has a strength, and the λ that follows from it."
import inspect
import math
import warnings
from collections.abc import Callable
from copy import copy
from functools import partial, wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fastai.torch_core import get_random_states, set_random_states

from ..errors import InputError
from ..models.surgery import frozen_copy
from .budget import EVERY, MEASUREMENTS, Budget
from .drift_kept import KeptByDrift

if TYPE_CHECKING:
    from .core import BaseStrategy as _Strategy
else: _Strategy = object

__all__ = ['Budgeted']

COLLAPSE = .25  # share lost beyond the floor, after λ grew, that is a collapse


def _documented(
    retain:float|Budget|None=None, # Share of what the encoder knew to keep, by adapting the strength, see `Budget`
): "What `_takes_retain` adds"


def _takes_retain(init):
    "`__init__` with the argument `retain`, which every class with a strength has"
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())
    if any(p.name == 'retain' for p in parameters): return init
    first = parameters[1]  # the strength, or what stands for it

    @wraps(init)
    def with_retain(self, *args, retain=None, **kwargs):
        if retain is not None:
            needs_start = not args and first.name not in kwargs and first.default is Parameter.empty
            if needs_start: kwargs[first.name] = self.first_lam
        init(self, *args, **kwargs)
        if retain is not None: self.set_budget(retain)
    added = Parameter('retain', Parameter.KEYWORD_ONLY, default=None, annotation=float|Budget|None)
    at = next((i for i, p in enumerate(parameters) if p.kind is Parameter.VAR_KEYWORD), len(parameters))
    with_retain.__delwrap__ = _documented  # type: ignore[attr-defined]  # where docments finds the comment
    with_retain.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters[:at], added, *parameters[at:]])
    return with_retain


class Budgeted(_Strategy):
    """Mix-in for a strategy with a strength, which takes `retain=` in place of it or with it: a share such as .98, or a
    `Budget`. λ then starts with the given strength, or `first_lam`, and changes after each measurement.

    A subclass calls `begin_budget` before and `end_budget` after each training epoch, and where its strength is not
    `lam`, it defines `strength` and `set_strength`."""
    retain: float|Budget|None = None
    budget: Budget|None = None
    first_lam: float = 1.  # where λ starts if only `retain` is given: a strong one of those in the registry
    most: float = math.inf  # the largest strength that the method has
    kept_history: Any = ()  # a dict for each measurement of a fit: `step`, `lam`, `kept`, `aim`
    _limits: tuple[float, float]|None = None  # of λ, from the first one
    _made_steps = 0  # optimizer steps of this fit
    _begun = 0  # those before this epoch
    _continued = False  # whether a state was loaded that the next epoch continues
    _good_lam: float|None = None  # the last λ with which the floor was held, or nearly so
    _low = 0  # measurements below the floor in a row, with the largest λ
    _budgetattrs = ('retain', 'budget', 'kept_history', '_limits')  # for `_stateattrs`: not exported

    def __init_subclass__(cls, **kwargs:Any):
        super().__init_subclass__(**kwargs)
        if '__init__' in vars(cls) and len(inspect.signature(cls.__init__).parameters) > 1:
            cls.__init__ = _takes_retain(cls.__init__)  # type: ignore[method-assign]

    @property
    def needs_steps(self)->bool: return self.budget is not None or super().needs_steps

    def strength(self)->float:
        "The current strength λ"
        return self.lam  # type: ignore[attr-defined]

    def set_strength(self, lam:float)->None:
        "Change the strength λ"
        self.lam = lam

    def set_budget(self, retain:float|Budget)->None:
        "Adapt the strength while training; called by the constructor"
        self.retain, self.budget = retain, copy(retain) if isinstance(retain, Budget) else Budget(retain)
        kept = KeptByDrift() if self.budget.kept is None else self.budget.kept
        self.budget.kept = kept.fresh() if isinstance(kept, KeptByDrift) else kept  # its features are of one fit
        if not self.strength() > 0:
            raise InputError(f'{type(self).__name__}(retain=...) multiplies its strength: start with one above 0, '
                             f'not {self.strength():g}')

    # ---- while training

    def begin_budget(self)->None:
        "Start to measure, before the first epoch of a fit"
        if self.budget is None or self.loop.trial: return
        if self.loop.epoch == 0 and not self._continued:
            self._made_steps, self._low, self._good_lam, self.kept_history = 0, 0, None, []
        self._begun, self._continued = self._made_steps, False
        if self._limits is None: self._limits = self._find_limits()
        begin = getattr(self.budget.kept, 'begin', None)
        if begin is not None: begin(self)

    def forget(self)->None:
        if self.budget is not None and hasattr(self.budget.kept, 'forget'): self.budget.kept.forget()
        super().forget()

    def _find_limits(self):
        budget, lam = self.budget, self.strength()
        lowest = budget.lowest or min(lam, budget.highest or lam)/1000
        highest = min(self.most, budget.highest or 4*max(lam, budget.lowest or lam))
        return lowest, highest

    def _every(self):
        "Optimizer steps between two measurements"
        if self.budget.every is not None: return self.budget.every
        in_epoch, epochs = self._steps_in_epoch(), self.loop.epochs
        return max(1, round(epochs*in_epoch/MEASUREMENTS)) if in_epoch and epochs else EVERY

    def _steps_in_epoch(self):
        "Their number if it is known; more than there are if gradients are accumulated"
        try: return len(self.loop.batches)
        except TypeError: return None  # none, or a loader without a length

    def _done(self):
        "The share of the fit that is over, `None` if it is not known"
        epochs, in_epoch = self.loop.epochs, self._steps_in_epoch()
        if not epochs: return None
        part = (self._made_steps - self._begun)/in_epoch if in_epoch else 1.
        return min(1., (self.loop.epoch + min(1., part))/epochs)

    def after_step(self):
        super().after_step()
        if self.budget is None or self._limits is None or self._skipped or self.loop.trial: return
        self._made_steps += 1
        if self._made_steps % self._every(): return
        done, kept = self._done(), self.measure_kept()
        if not self._recover(kept):
            self.set_strength(self.budget.next_lam(self.strength(), kept, done, *self._limits))
        self._say_if_not_held(kept)

    def measure_kept(self)->float:
        "Measure what is left of what the encoder knew, without an effect on training"
        assert self.budget is not None and self.budget.kept is not None  # set in `begin_budget`
        states = get_random_states()
        try: kept = float(self.budget.kept(frozen_copy(self.module())))
        finally: set_random_states(**states)
        kept = self._mean_over_processes(kept)
        if not math.isfinite(kept):
            raise FloatingPointError(f'{type(self).__name__}: what is kept was measured as {kept} with lam '
                                     f'{self.strength():g}: training has diverged; start with a smaller lam, or set '
                                     'highest of the Budget')
        now = dict(step=self._made_steps, lam=self.strength(), kept=kept, aim=self.budget.aim(self._done()))
        self.kept_history = [*self.kept_history, now]
        return kept

    def _mean_over_processes(self, kept):
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1: return kept
        total = torch.tensor(kept, dtype=torch.float64, device=next(self.module().parameters()).device)
        dist.all_reduce(total)
        return total.item()/dist.get_world_size()

    def _recover(self, kept):
        "Whether training has collapsed since λ grew; λ then goes back, and stays at or below where it was"
        budget, lam = self.budget, self.strength()
        collapsed = kept < budget.retain - max(COLLAPSE, 5*(1 - budget.retain))
        if not collapsed and kept >= budget.retain - 2*(1 - budget.retain): self._good_lam = lam
        if not collapsed or self._good_lam is None or lam <= 1.2*self._good_lam: return False
        warnings.warn(f'{type(self).__name__} collapses with lam {lam:g}: {100*kept:.1f} % of what the encoder knew is '
                      f'left at step {self._made_steps}; lam goes back to {self._good_lam:g} and stays at or below it; '
                      'what is lost may not come back')
        self.set_strength(self._good_lam)
        self._limits = min(self._limits[0], self._good_lam), self._good_lam
        return True

    def _say_if_not_held(self, kept):
        budget = self.budget
        low = kept < budget.retain and self.strength() >= self._limits[1]
        self._low = self._low + 1 if low else 0
        if self._low != budget.patience: return
        warnings.warn(f'{type(self).__name__} cannot hold its floor: {100*kept:.1f} % of what the encoder knew is left '
                      f'at step {self._made_steps}, less than {100*budget.retain:.1f} %, with the largest lam '
                      f'{self._limits[1]:g}: lower retain, raise highest of the Budget, or take another strategy')

    def end_budget(self)->None:
        "Measure at the end of a fit"
        if self.budget is None or self._limits is None or self.loop.trial: return
        if self.loop.epochs is None or self.loop.epoch + 1 < self.loop.epochs: return
        if not self.kept_history or self.kept_history[-1]['step'] < self._made_steps: self.measure_kept()

    # ---- what is logged and saved

    def epoch_state(self)->dict:
        state = super().epoch_state()
        return state if self.budget is None else state | dict(begun=self._begun)

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        self._begun = state.get('begun', 0)

    def columns(self)->dict[str, Callable]:
        columns = super().columns()
        if self.budget is None: return columns
        name = f'{self.name}{self.mark()}'  # type: ignore[attr-defined]
        return columns | {f'{name}_{what}':partial(self._latest, what) for what in ('lam', 'kept')}

    def _latest(self, what):
        return self.kept_history[-1][what] if self.kept_history else float('nan')

    def state_dict(self)->dict:
        state = super().state_dict()  # type: ignore[misc]
        if self.budget is None: return state
        kept: dict = getattr(self.budget.kept, 'state_dict', dict)()
        return state | dict(budget=dict(lam=self.strength(), limits=self._limits, steps=self._made_steps, low=self._low,
                                        good=self._good_lam, history=list(self.kept_history), kept=kept))

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        if self.budget is None or 'budget' not in state: return
        saved, self._continued = state['budget'], True
        self.set_strength(saved['lam'])
        self._limits = saved['limits'] and tuple(saved['limits'])
        self._made_steps, self._low, self._good_lam = saved['steps'], saved['low'], saved['good']
        self.kept_history = saved['history']
        if saved['kept']: self.budget.kept.load_state_dict(saved['kept'])
