"What a penalty really does while it trains: how hard it pulls, where to, how old its teacher is, how far the encoder has come."
from collections.abc import Callable
from pathlib import Path

import torch
from fastai.callback.core import Callback
from torch import nn

from ..errors import InputError
from ..models.surgery import find_encoder
from ..runtime.resume import Stateful
from .base import Columns, Penalty
from .lora import LoRA
from .mixins import Anchored

__all__ = ['Telemetry']



class Telemetry(Anchored, Stateful, Columns, Callback):
    """Columns for the recorder: for each `Penalty` NAME_ratio, the sum over the epoch's batches of `lam*term` relative to the
    task loss's; NAME_cos, the cosine between its gradient and the task's on the encoder, the mean of a few batches, nan in epochs of none; NAME_age,
    batches since its teacher was renewed, their mean; and, without a penalty too, `moved`, `||w - w0|| / ||w0||` of the encoder's
    weights, adapters of `LoRA` merged, since before training: over all fits, or nan where it is too late to take w0 (see `Anchored`).

    The cosine costs two more backward passes on every `every`-th batch. Nothing of training changes."""
    order, run_valid = 7, False  # behind the penalties
    _stateattrs, _state = ('_start', '_columns', '_sums') + Anchored._anchorattrs, Anchored._state + ('_start',)
    _start, _sums = None, None

    def __init__(self,
        every:int=50, # Batches of the fit between two samples of the cosine; its second is the first of them, as the first often has no pull
        encoder:str|Callable|None=None, # Which part of the model moves, see `find_encoder`; `None`: what the first penalty protects
        anchor:dict|nn.Module|str|Path|None=None, # State dict or encoder to measure from; default: the encoder when training begins
    ):
        if every < 1: raise ValueError(f'every must be at least 1, not {every}')
        self.every, self.protected, self.anchor = every, encoder, anchor

    def _penalties(self): return [cb for cb in self.learn.cbs if isinstance(cb, Penalty)]

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        first = next(iter(self._penalties()), None)
        return first.module() if first is not None and self.protected is None else find_encoder(self.learn.model, self.protected)

    def before_fit(self):
        if not self.starts(): return
        self._sums = {}
        names = [f'{p.name}_{what}' for p in self._penalties() for what in ('ratio', 'cos', *(['age'] if hasattr(p, 'age') else []))]
        self.show({n:lambda n=n: self._value(n) for n in names} | {'moved': self._moved})

    def _value(self, name):
        top, bottom = self._sums.get(name, (0., 0.))
        return float(top)/float(bottom) if float(bottom) else float('nan')

    def _add(self, name, top, bottom=1.):
        t, b = self._sums.get(name, (0., 0.))
        self._sums[name] = t + top, b + bottom

    def before_train(self):
        self._sums = {}
        if self._held or self.anchor is not None or not self.late():
            if (start := self.take()) is not None: self._start = start

    @torch.no_grad()
    def weights(self)->dict[str, torch.Tensor]:
        "The encoder's weights by name, adapters merged"
        added = {n:w for cb in self.learn.cbs if isinstance(cb, LoRA) for n, w in cb.changes().items()}
        now = {n.replace('.base_layer.', '.'):p.detach() for n, p in self.module().named_parameters() if '.lora_' not in n}
        return {n:p + added[n] if n in added else p for n, p in now.items()}

    def snapshot(self)->dict:
        now = self.weights()
        if self.anchor is None: return {n:p.clone() for n, p in now.items()}
        given = self.anchor.state_dict() if isinstance(self.anchor, nn.Module) else self.anchor
        if not isinstance(given, dict) or (missing := now.keys() - given.keys()):
            raise InputError('Telemetry measures from a state dict or an encoder that has all of the weights of the one in training'
                             + (f'; {", ".join(sorted(missing))} {"is" if len(missing) == 1 else "are"} not in this one' if isinstance(given, dict) else f', not from {type(given).__name__}'))
        return {n:given[n].detach().to(p.device, p.dtype, copy=True) for n, p in now.items()}

    def _moved(self):
        if self._start is None: return float('nan')
        now = self.weights()
        far = sum((now[n] - w).double().square().sum() for n, w in self._start.items())
        return (far.sqrt()/sum(w.double().square().sum() for w in self._start.values()).sqrt()).item()

    def after_loss(self):
        sample = (self.epoch*self.n_iter + self.iter) % self.every == min(1, self.every - 1)  # counted over epochs: short ones would pay for it in each
        for p in self._penalties():
            if hasattr(p, 'age'): self._add(f'{p.name}_age', p.age)
            if p.pull is None: continue
            self._add(f'{p.name}_ratio', p.pull.detach(), self.learn.loss.detach())
            if sample and p.pull.requires_grad and p.lam: self._cosine(p)

    def _cosine(self, p):
        weights = [w for w in p.module().parameters() if w.requires_grad]
        if not weights: return
        task, pull = (torch.autograd.grad(t, weights, retain_graph=True, allow_unused=True) for t in (self.learn.loss, p.pull))
        def dot(a, b): return sum((u.double()*v.double()).sum() for u, v in zip(a, b) if u is not None and v is not None)
        size = (dot(task, task)*dot(pull, pull))**.5
        if size > 0: self._add(f'{p.name}_cos', dot(task, pull)/size)
