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

__all__ = ['SPD', 'DiGraP']

BETAS, EPS = (.9, .999), 1e-8  # of the Adam that learns the strength of DiGraP's projections


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
        self.release()
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

    def release(self)->None:
        for h in self._handles: h.remove()
        self._handles = ()
        step = None if self.learn is None else vars(self.learn).get('_step')
        if not isinstance(step, _Step) or self not in step.inside: return
        step.inside.remove(self)
        if step.inside: return
        del self.learn._step
        if step.replaced is not None: self.learn._step = step.replaced

    def after_train(self):
        self.release()
        self.end_budget()


class SPD(InStep):
    """Selective projection decay: pull back a tensor of weights that moves away although its gradient points back (Tian
    et al., NeurIPS 2024).

    After each step, for each parameter w of the encoder with gradient g, if `<g, w - w0> > 0`, where w are the weights
    before the step: `w' <- w' - lam r (w' - w0)`, where w' are those that the optimizer made, and r is the share
    by which their distance grew, `(|w' - w0| - |w - w0|)/|w' - w0|`, or 0 if it did not grow. With lam 1 the distance
    stays as it was; with more, the weights come closer. The optimizer is any, with momentum or an adaptive rate:
    without either, a step never moves away where the gradient points back, unless it is a long one.

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
        grads = [as_real(gradient(p)).to(a.dtype) for p, a in zip(weights.values(), away)]
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


class DiGraP(InStep):
    """Directional gradient projection: where the gradient drives a tensor of weights further away, take a share omega
    of that direction out of it (Huang et al., ICLR 2025).

    Before each step, for each parameter w of the encoder with gradient g and `d = w - w0`, if `<g, d> < 0`: `g <- g -
    omega <g, d>/<d, d> d`. Each parameter has its omega, between 0 and 1 and 0 at first. Adam learns it at the rate
    `lam` (the paper's mu) from the derivative of the loss by the omega of the last step, `<g, h>`, where h is what a
    whole projection would have taken out there. It is scaled to the cosine of the two: the paper normalises it, too,
    but does not print how. Keeps a copy of d, in addition to the weights from before training.

    As in the paper, g is the gradient of the whole loss, and the optimizer is any. Sparse gradients are refused."""
    name = 'digrap'
    first_lam = .1
    # name of a parameter -> omega, Adam's means of its gradient and of the square, number of steps, sign of <g, d>
    _learned: dict = {}
    _last: dict = {}  # name of a parameter -> d in the last step
    _state = InStep._state + ('_learned', '_last')
    _stateattrs = InStep._stateattrs + ('_learned', '_last')

    def before_fit(self):
        self._learned, self._last = {}, {}
        super().before_fit()

    def detached(self)->None:
        self._learned, self._last = {}, {}
        super().detached()

    @property
    def omega(self)->dict[str, float]:
        "The present share of each parameter by name"
        return {n:found[0].item() for n, found in self._learned.items()}

    @torch.no_grad()
    def see_gradients(self)->None:
        weights = self.weights() if self.lam else {}
        if not weights: return
        away = self.away(weights)
        grads = [self._gradient(n, p, a) for (n, p), a in zip(weights.items(), away)]
        dots = torch.stack([dot.sum() for dot in torch._foreach_mul(grads, away)])
        learned = self._learn(weights, grads)
        self._learned = dict(zip(weights, torch.cat([learned, dots.sign()[:, None]], 1)))
        self._last = dict(zip(weights, away))
        squares = torch.stack(torch._foreach_norm(away)).square()
        share = torch.where(dots < 0, learned[:, 0]*dots/squares, torch.zeros_like(dots))
        parts = torch._foreach_mul(away, list(share.unbind()))
        for p, part in zip(weights.values(), parts): as_real(gradient(p)).sub_(part)

    def _gradient(self, name, p, away):
        if gradient(p).layout == torch.strided: return as_real(gradient(p)).to(away.dtype)
        raise InputError(f'DiGraP changes gradients, and that of {name} is sparse: take SPD, or sparse=False')

    def _learn(self, weights, grads):
        "A step of Adam for each omega: `(parameters, 4)` of omega, mean, mean of squares and number of steps"
        cosines = [self._cosine(n, g) for n, g in zip(weights, grads)]
        slope = torch.stack(cosines)
        omega, mean, square, steps = torch.stack([self._learned[n][:4] if n in self._learned else slope.new_zeros(4)
                                                  for n in weights]).unbind(1)
        steps = steps + 1
        mean = BETAS[0]*mean + (1 - BETAS[0])*slope
        square = BETAS[1]*square + (1 - BETAS[1])*slope.square()
        change = mean/(1 - BETAS[0]**steps)/((square/(1 - BETAS[1]**steps)).sqrt() + EPS)
        return torch.stack([(omega - self.lam*change).clamp(0, 1), mean, square, steps], 1)

    def _cosine(self, name, grad):
        "Of a gradient and what a projection would have taken out of the last one, 0 if there is none"
        if name not in self._last: return grad.new_zeros(())
        last, sign = self._last[name], self._learned[name][4]
        sizes = grad.norm()*last.norm()
        return torch.where(sizes > 0, sign*(grad*last).sum()/sizes, torch.zeros_like(sizes))


def gradient(p:nn.Parameter)->torch.Tensor:
    assert p.grad is not None  # as in `weights`
    return p.grad
