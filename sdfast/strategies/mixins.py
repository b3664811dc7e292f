"""Mix-ins for penalties that need more than the batch: `Anchored` keeps the weights from before training, `Auxiliary`
trains its own modules."""
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from ..models.weights import anchor_state

if TYPE_CHECKING:
    from .base import Penalty as _Penalty
    from .core import BaseStrategy as _Strategy
else: _Penalty = _Strategy = object

__all__ = ['Anchored', 'Auxiliary']


class Anchored(_Strategy):
    """Mix-in for a callback that needs the weights from before training, which it takes once.

    They are `anchor` or, without one, the encoder's weights at the start of the first fit (`lr_find` does not count).
    Call `take` in `begin`. If it is too late to take them, because a fit starts at a later epoch or after
    `load_learner`, `take` raises `ValueError`. In a resumed fit, `Resume` restores them from its checkpoint."""
    anchor: dict|nn.Module|str|Path|None = None
    _held = False  # whether weights have been taken
    _trial = False  # whether they were taken for `lr_find`, so that a fit must take them again
    _taken = False  # whether a fit has taken them
    _state: tuple[str, ...] = ('_held', '_trial', '_taken')
    _anchorattrs = ('anchor', '_held', '_trial')  # for `_stateattrs`: not exported

    def take(self)->dict|None:
        "Take the weights at the start of training; returns `None` if they have been taken already"
        trial = self.loop.trial
        if self._held and (trial or not self._trial): return None
        if self.anchor is None and not trial and self.late():
            raise ValueError(
                f'{type(self).__name__} lacks the weights from before training: an exported learner does not carry '
                f'them, and a fit that starts at epoch {self.loop.epoch} is too late to take them. '
                'Pass anchor=STATE_DICT, ENCODER or FILE')
        taken = self.snapshot()
        self._held, self._trial = True, trial
        self._taken = self._taken or not trial
        return taken

    def snapshot(self)->dict:
        "A copy of the weights to keep"
        return anchor_state(self.module(), self.anchor)

    def late(self)->bool:
        "Whether the encoder has been trained already"
        return self._taken or self.loop.epoch > 0

    def forget(self)->None:
        self._held, self._trial, self._taken = False, False, False
        super().forget()

    def attached(self)->None:
        super().attached()
        self.take_at_start()  # training may start with other weights than those that it was attached to

    def take_at_start(self)->None:
        "Take the weights when the strategy is attached; `begin` does, where it calls `take`"
        self.begin()

    def after_fit(self):
        if self._trial: self._held = False
        super().after_fit()


class Auxiliary(_Penalty):
    """Mix-in for a `Penalty` that trains its own modules, `self.aux`, which are not part of the model.

    `set_auxiliary` makes them. They are trained by SGD with the learning rate and momentum of the model's last
    parameter group. They step when the model does: not after each micro-batch of an accumulated gradient, nor when the
    gradient scaler skips a step. `lr_find` uses separate modules, and a model with another head gets other ones."""
    aux: Any = None  # an `nn.Module`
    _aux_opt: torch.optim.SGD|None = None
    _aside: tuple|None = None  # the fits' modules and optimizer, while `lr_find` runs
    _saved: dict|None = None  # a checkpoint's state, until modules exist to load it into
    needs_optimizer, needs_steps = True, True
    _auxattrs = ('aux', '_aux_opt', '_aside')  # for `_stateattrs`: not exported

    def before_fit(self):
        super().before_fit()
        if self.loop.trial:
            self._aside = self.aux, self._aux_opt
            self.aux = None

    def leave(self)->None:
        if self._aside is not None:
            self.aux, self._aux_opt = self._aside
            self._aside = None
        super().leave()

    def state_dict(self)->dict:
        state = super().state_dict()
        if self.aux is None: return state
        return state | dict(aux=self.aux.state_dict(), aux_opt=self._aux_opt.state_dict())

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        self._saved = state if 'aux' in state else None
        if self.aux is not None: self._restore()

    def _restore(self):
        if self._saved is None: return
        self.aux.load_state_dict(self._saved['aux'])
        self._aux_opt.load_state_dict(self._saved['aux_opt'])
        self._saved = None

    def set_auxiliary(self, make:Callable)->None:
        "Make the modules by calling `make`, with a fixed seed and without changing the random state"
        device = next(self.module().parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            torch.manual_seed(0)
            self.aux = make().to(device).train()
        self._aux_opt = torch.optim.SGD(self.aux.parameters(), lr=1., momentum=.9)
        self._restore()

    def forget_head(self)->None:
        self.aux = self._aux_opt = self._saved = None
        super().forget_head()

    def after_step(self):
        super().after_step()
        if not self._skipped: self._step_aux()
        self._aux_opt.zero_grad()

    def _step_aux(self):
        # not in `before_step`, which runs for each micro-batch: gradients must be reduced and unscaled once
        scale = self.loop.scale  # this batch's: `MixedPrecision` updates it later
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        graded = [p for p in self.aux.parameters() if p.grad is not None]
        for p in graded:
            if world > 1: dist.all_reduce(p.grad)
            p.grad.div_(world*(scale or 1.))
        if scale is not None and not all(p.grad.isfinite().all() for p in graded): return
        hyper = self.loop.opt.hypers[-1]
        for g in self._aux_opt.param_groups: g.update(lr=float(hyper['lr']), momentum=float(hyper.get('mom', 0.) or 0.))
        self._aux_opt.step()
