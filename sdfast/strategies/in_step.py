"""Strategies that act inside the optimizer's step: on the gradients that it is given, on the weights that it returns.

They work with every optimizer. In a `Learner` they act around its step, after all callbacks that change gradients, such
as `GradientClip`; in other loops by hooks of the `torch.optim` optimizer, after its closure if it has one. So they see
one gradient where several are accumulated, and nothing where a gradient scaler skips the step."""
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.averages import as_real
from ..models.blocks import count_trainable
from ..models.copies import Hook
from ..runtime.resume import Resumable
from .budgeted import Budgeted
from .columns import Columns
from .lora import LoRA
from .mixins import Anchored
from .optimizers import warn_of_decay
from .recipe import Recipe

__all__ = ['SPD']


class _Step:
    "A `Learner`'s step, and the strategies that act in it"
    def __init__(self, step:Callable, replaced:Any):
        self.step, self.replaced, self.inside = step, replaced, []  # type: ignore[var-annotated]

    def __call__(self)->None:
        for s in self.inside: s.see_gradients()
        self.step()
        for s in self.inside: s.correct_weights()


class InStep(Budgeted, Anchored, Resumable, Columns, Recipe):
    """A recipe that acts on the encoder's trainable weights in each step: `see_gradients` before it, `correct_weights`
    after it. `anchors` are the weights from before training."""
    needs_optimizer = True
    anchors: dict[str, torch.Tensor]|None = None  # name of a parameter -> tensor of its shape
    _handles: Sequence = ()  # of hooks on the optimizer
    _stateattrs = Recipe._stateattrs + Budgeted._budgetattrs + Anchored._anchorattrs + ('anchors', '_handles',
                                                                                       '_columns')
    _state = Anchored._state + ('anchors',)

    def __init__(self,
        lam:float, # Strength, at least 0; with 0 training equals plain fine-tuning bit for bit
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(encoder)
        if isinstance(lam, bool) or not isinstance(lam, Real) or not 0 <= lam < float('inf'):
            raise InputError(f'lam must be a number of at least 0, not {lam!r}')
        self.lam: float = lam  # type: ignore[assignment]
        self.anchor = anchor

    def see_gradients(self)->None: "Called before each step, when its gradients are final; may change them"
    def correct_weights(self)->None: "Called after each step that the optimizer makes"

    def weights(self)->dict[str, nn.Parameter]:
        "Trainable parameters of the encoder by name that the step changes"
        return {n:p for n, p in self.module().named_parameters() if p.requires_grad and p.grad is not None}

    def away(self, weights:dict)->list[torch.Tensor]:
        "How far weights are from their anchors, in single precision or more"
        assert self.anchors is not None  # set in `take_at_start`
        now = [as_real(p.detach()) for p in weights.values()]
        start = [as_real(self.anchors[n]).to(p.device) for n, p in zip(weights, now)]
        if any(p.itemsize == 2 for p in now): now, start = ([t.float() for t in ts] for ts in (now, start))
        return list(torch._foreach_sub(now, start))

    # ---- when it acts

    def begin(self)->None:
        if any(isinstance(s, LoRA) for s in self.loop.strategies):
            raise InputError(f'{type(self).__name__} pulls the weights of the encoder, which LoRA keeps: take one of '
                             'the two')
        if not self.lam: return
        if not count_trainable(self.module().parameters()):
            warnings.warn(f'{type(self).__name__} has no effect, as all parameters of the encoder are frozen: unfreeze '
                          'some')
        if self.loop.opt is not None: warn_of_decay(type(self).__name__, self.loop.opt, self.module().parameters())

    def before_fit(self):
        if not self.starts(): return
        super().before_fit()
        self.show(self.columns())

    def after_fit(self):
        super().after_fit()
        Recipe.after_fit(self)

    def take_at_start(self)->None:
        state = self.take()
        if state is not None: self.anchors = state

    def before_train(self):
        self._release()
        self.begin_budget()
        self.take_at_start()
        if self._loop is not None:
            opt = self._loop.optimizer
            self._handles = [opt.register_step_pre_hook(Hook(self._before_step_of)),
                             opt.register_step_post_hook(Hook(self._after_step_of))]
            return
        step = vars(self.learn).get('_step')
        if not isinstance(step, _Step): step = self.learn._step = _Step(self.learn._step, step)
        step.inside.append(self)

    def _before_step_of(self, optimizer, args, kwargs):
        at = 'closure' if 'closure' in kwargs else 1
        closure = kwargs.get('closure') if at == 'closure' else args[1] if len(args) > 1 else None
        if closure is None: return self.see_gradients()

        def seen():  # gradients are there once it has been called
            loss = closure()
            self.see_gradients()
            return loss
        return (args, kwargs | dict(closure=seen)) if at == 'closure' else ((args[0], seen, *args[2:]), kwargs)

    def _after_step_of(self, optimizer, args, kwargs): self.correct_weights()

    def _release(self):
        for h in self._handles: h.remove()
        self._handles = ()
        step = None if self.learn is None else vars(self.learn).get('_step')
        if not isinstance(step, _Step) or self not in step.inside: return
        step.inside.remove(self)
        if step.inside: return
        del self.learn._step
        if step.replaced is not None: self.learn._step = step.replaced

    def after_train(self):
        self._release()
        self.end_budget()

    def undo(self)->None:
        self._release()
        super().undo()


class SPD(InStep):
    """Selective projection decay: pull back a tensor of weights that moves away although its gradient points back (Tian
    et al., NeurIPS 2024).

    After each step, for each parameter w of the encoder with gradient g, if `<g, w - w0> > 0`, where w are the weights
    before the step: `w' <- w' - lam r (w' - w0)`, where w' are those that the optimizer made, and r is the share of `|w'
    - w0|` by which it grew, `(|w' - w0| - |w - w0|)/|w' - w0|`, or 0 if it did not grow. With lam 1 the distance stays
    as it was; with more, the weights come closer. The optimizer is any, with momentum or an adaptive rate: without
    either, a step never moves away where the gradient points back, unless it is a long one.

    It equals the authors' `AdamSPD` with the optimizer Adam. As there, g is the gradient of the whole loss, penalties
    included, and all parameters of the encoder take part. Weight decay of the optimizer would pull to zero instead."""
    name = 'spd'
    _seen: tuple|None = None  # names of weights, whether their gradients point back, and their distances
    _most: torch.Tensor|None = None  # the largest share of a distance that was taken back in this epoch
    _stateattrs = InStep._stateattrs + ('_seen', '_most')

    def before_train(self):
        self._seen = self._most = None
        super().before_train()

    @torch.no_grad()
    def see_gradients(self)->None:
        if not self.lam or self._seen is not None: return  # a closure may be called several times in a step
        weights = self.weights()
        if not weights: return
        away = self.away(weights)
        grads = [as_real(dense(p.grad)).to(a.dtype) for p, a in zip(weights.values(), away)]
        back = torch.stack([dot.sum() for dot in torch._foreach_mul(grads, away)]) > 0
        self._seen = list(weights), back, torch.stack(torch._foreach_norm(away))

    @torch.no_grad()
    def correct_weights(self)->None:
        if self._seen is None: return
        (names, back, before), self._seen = self._seen, None
        known = dict(self.module().named_parameters())
        weights = {n:known[n] for n in names}
        away = self.away(weights)
        after = torch.stack(torch._foreach_norm(away))
        grown = ((after - before)/after).clamp(0, 1)
        share = self.lam*torch.where(back & (after > before), grown, torch.zeros_like(grown))
        self._most = share.max() if self._most is None else torch.maximum(self._most, share.max())
        torch._foreach_mul_(away, list(share.unbind()))
        for p, pull in zip(weights.values(), away): as_real(p).sub_(pull)

    def after_train(self):
        super().after_train()
        if self._most is None or self._most <= 1: return
        warnings.warn(f'SPD: lam {self.lam:g} has moved weights past those from before training in epoch '
                      f'{self.loop.epoch}, as {self._most:.2f} of a distance was taken back: take a smaller lam')


def dense(grad:torch.Tensor)->torch.Tensor: return grad.to_dense() if grad.layout != torch.strided else grad
