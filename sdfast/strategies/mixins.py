"""What every penalty shares: finding the encoder, watching it in the main forward, adding a term to the loss that is
back-propagated, and reporting that term in a column of its own.

A new penalty is a subclass of `Penalty` with a `term` method."""
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..models.weights import anchor_state

__all__ = ['Anchored', 'Auxiliary']



class Anchored:
    """Mix-in for a `Penalty` that holds on to weights from before training: it takes them once and never again.

    They are `anchor` or, without one, the encoder as it stands when the first real fit begins to train (`lr_find` is none).
    Where that moment has passed, in a fit that starts at a later epoch or after `load_learner`, training is an error. A fit that
    goes on by `Resume` has them from there."""
    anchor, _held, _trial, _taken = None, False, False, False
    _state = ('_held', '_trial', '_taken')
    _anchorattrs = ('anchor', '_held', '_trial')  # for `_stateattrs`: not exported

    def take(self)->dict|None:
        "`anchor_state` if this is the moment to take it, else `None`: what was taken stays"
        trial = hasattr(self.learn, 'lr_finder')
        if self._held and (trial or not self._trial): return None
        if self.anchor is None and not trial and self.late():
            raise ValueError(f'{type(self).__name__} has no weights to hold on to: an exported learner does not carry them, and a fit that starts '
                             f'at epoch {self.learn.epoch} is too late to take them. Pass anchor=STATE_DICT, ENCODER or FILE')
        self._held, self._trial, self._taken = True, trial, self._taken or not trial
        return self.snapshot()

    def snapshot(self)->dict: return anchor_state(self.module(), self.anchor)
    def late(self)->bool: return self._taken or self.learn.epoch > 0

    def after_fit(self):
        if self._trial: self._held = False
        super().after_fit()


class Auxiliary:
    """Mix-in for a `Penalty` that trains modules of its own, beside the model and thrown away with the callback.

    They learn by SGD at the learning rate and momentum of the model's last group, and step when the model does: not for
    micro-batches, nor where the gradient scaler skips."""
    aux, _aux_opt, _skipped, _aside, _saved = None, None, False, None, None
    _auxattrs = ('aux', '_aux_opt', '_aside')  # for `_stateattrs`: not exported

    def before_fit(self):
        super().before_fit()
        if hasattr(self.learn, 'lr_finder'): self._aside, self.aux = (self.aux, self._aux_opt), None  # a trial's modules are its own

    def leave(self)->None:
        if self._aside is not None: (self.aux, self._aux_opt), self._aside = self._aside, None
        super().leave()

    def state_dict(self)->dict: return super().state_dict() | ({} if self.aux is None else dict(aux=self.aux.state_dict(), aux_opt=self._aux_opt.state_dict()))

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
        "Modules from the function `make`, the same whatever was drawn before, without touching the random state"
        device = next(self.module().parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            torch.manual_seed(0)
            self.aux = make().to(device).train()
        self._aux_opt = torch.optim.SGD(self.aux.parameters(), lr=1., momentum=.9)
        self._restore()

    def before_step(self): self._skipped = False
    def after_cancel_step(self): self._skipped = True

    def after_step(self):
        if not self._skipped: self._step_aux()
        self._aux_opt.zero_grad()

    def _step_aux(self):
        # here, not in `before_step`, which micro-batches have too: what they add up is put together and unscaled once
        scaler = vars(self.learn).get('scaler')  # of `MixedPrecision`
        scale = scaler.get_scale() if scaler is not None else 1.  # as it was in this batch: `MixedPrecision` updates it later
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        for p in self.aux.parameters():
            if p.grad is None: continue
            if world > 1: dist.all_reduce(p.grad)
            p.grad.div_(world*scale)
        if scaler is not None and not all(p.grad.isfinite().all() for p in self.aux.parameters() if p.grad is not None): return
        hyper = self.opt.hypers[-1]
        for g in self._aux_opt.param_groups: g.update(lr=float(hyper['lr']), momentum=float(hyper.get('mom', 0.) or 0.))
        self._aux_opt.step()
