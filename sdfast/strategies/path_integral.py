"The path integral of synaptic intelligence (SI): how much each weight lowered the loss during training."
from collections.abc import Callable

import torch

from ..errors import InputError
from ..runtime.arguments import ShowArguments
from ..runtime.resume import Resumable
from .base import Penalty
from .driver import Driver
from .importance import Importance

__all__ = ['PathIntegral']


class PathIntegral(ShowArguments, Resumable, Driver):
    """Record, during training on the source, how much each weight lowers the loss, `-sum g dw` over steps, for `SI`.

    It cannot be computed for weights that were trained elsewhere. Raises `InputError` in a fit with a `Penalty`, whose
    gradient would be included."""
    order, run_valid = 4, False
    integral: dict[str, torch.Tensor]|None = None
    start: dict[str, torch.Tensor]|None = None  # weights before training
    steps = 0
    _before: dict|None = None  # weights and gradients before the current step
    needs_optimizer, needs_steps = True, True
    _stateattrs = Driver._stateattrs + ('integral', 'start', '_before')
    _state = ('integral', 'start', 'steps')
    _argument_attrs = dict(encoder='protected')

    def __init__(self,
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ): self.protected = encoder

    def _weights(self): return dict(self.module().named_parameters())

    def before_fit(self):
        if not self.learn.lock.locked(): self.meet()

    def forget(self)->None:
        self.integral, self.start, self.steps = None, None, 0
        super().forget()

    def before_train(self):
        if any(isinstance(cb, Penalty) and cb.lam for cb in self.loop.strategies):
            raise InputError('PathIntegral needs the gradient of the task alone: train the source without penalties')
        if self.integral is not None: return
        if any(p.is_complex() for p in self._weights().values()):
            raise InputError('PathIntegral knows no importance of complex weights: take a teacher instead of SI')
        self.start = {n:p.detach().clone() for n, p in self._weights().items()}
        self.integral = {n:torch.zeros_like(p, dtype=torch.float32) for n, p in self._weights().items()}

    def before_step(self):
        super().before_step()
        scale = self.loop.gradient_scale or 1.
        self._before = {n:(p.detach().clone(), p.grad.detach().float()/scale)
                        for n, p in self._weights().items() if p.grad is not None}

    def after_step(self):
        super().after_step()
        if self._skipped: return
        for n, p in self._weights().items():
            if n not in self._before: continue
            weight, grad = self._before[n]
            self.integral[n].sub_(grad*(p.detach() - weight).float())
        self.steps += 1
        self._before = None

    def importance(self,
        xi:float=.1, # Damping of the division by the squared distance
    )->Importance: # At the current weights
        "`max(0, integral)/((w - w_start)^2 + xi)`"
        if self.integral is None or self.start is None:
            raise InputError('PathIntegral has seen no training: add it to the callbacks of the source fit')
        end = {n:p.detach().clone() for n, p in self._weights().items()}
        diag = {}
        for n, w in end.items():
            squared = (w - self.start[n]).float()**2
            diag[n] = self.integral[n].clamp(min=0)/(squared + xi)
        return Importance(diag, end, self.steps)
