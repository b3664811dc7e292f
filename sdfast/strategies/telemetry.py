"Measurements of penalties during training: size and direction of their gradients, and how far the encoder has moved."
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..models.averages import as_real
from ..models.surgery import find_encoder
from ..runtime.arguments import ShowArguments
from ..runtime.identity import numbered
from ..runtime.resume import Resumable
from .base import Penalty
from .columns import Columns
from .driver import Driver
from .lora import LoRA
from .mixins import Anchored

__all__ = ['Telemetry']


class Telemetry(ShowArguments, Anchored, Resumable, Columns, Driver):
    """Columns for the recorder. For each `Penalty` NAME:

    - NAME_ratio: the sum over the epoch's batches of `lam*term`, divided by that of the task loss;
    - NAME_cos: the cosine between its gradient and the task's on the encoder, mean over a few batches, nan in an epoch
      without such a batch;
    - NAME_age: training batches since its teacher was renewed, mean over the epoch;

    and, with or without penalties, `moved`: `||w - w0|| / ||w0||` of the encoder's weights, adapters of `LoRA` merged.
    w0 are the weights before the first fit; `moved` is nan if it is too late to take them (see `Anchored`).

    The cosine takes two more backward passes in every `every`-th batch. Training does not change."""
    order, run_valid = 7, False  # after the penalties
    _start: dict[str, torch.Tensor]|None = None  # w0
    _sums: dict[str, tuple]|None = None  # column -> (numerator, denominator)
    _stateattrs = Driver._stateattrs + ('_start', '_columns', '_sums') + Anchored._anchorattrs
    _state = Anchored._state + ('_start',)
    _argument_attrs = dict(encoder='protected')

    def __init__(self,
        every:int=50, # Batches between two samples of the cosine; the first sample is the fit's second batch
        encoder:str|Callable|None=None, # Which part, see `find_encoder`; `None`: what the first penalty protects
        anchor:dict|nn.Module|str|Path|None=None, # State dict or encoder for w0; `None`: the encoder before training
    ):
        if every < 1: raise ValueError(f'every must be at least 1, not {every}')
        self.every, self.protected, self.anchor = every, encoder, anchor

    def attached(self)->None:
        raise InputError('Telemetry reads the losses of a Learner; in a loop of your own log the columns() of each '
                         'strategy')

    def _penalties(self):
        "Penalties by name, in the order of the learner's callbacks"
        return {n:cb for n, cb in numbered(self.loop.strategies).items() if isinstance(cb, Penalty)}

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        penalties = list(self._penalties().values())
        if penalties and self.protected is None: return penalties[0].module()
        return find_encoder(self.loop.model, self.protected)

    def before_fit(self):
        if not self.starts(): return
        self.meet()
        self._sums = {}
        columns = {}
        for penalty, p in self._penalties().items():
            for what in ('ratio', 'cos', 'age'):
                name = f'{penalty}_{what}'
                if what != 'age' or hasattr(p, 'age'): columns[name] = partial(self._value, name)
        columns['moved'] = self._moved
        self.show({f'{name}{self.mark()}':f for name, f in columns.items()})

    def _value(self, name):
        top, bottom = self._sums.get(name, (0., 0.))
        return float(top)/float(bottom) if float(bottom) else float('nan')

    def _add(self, name, top, bottom=1.):
        t, b = self._sums.get(name, (0., 0.))
        self._sums[name] = t + top, b + bottom

    def before_train(self):
        self._sums = {}
        if not self._held and self.anchor is None and self.late(): return  # `moved` is nan
        start = self.take()
        if start is not None: self._start = start

    @torch.no_grad()
    def weights(self)->dict[str, torch.Tensor]:
        "The encoder's weights by name, adapters merged"
        for cb in self.learn.cbs:
            if isinstance(cb, LoRA): return cb.merged()
        return {n:p.detach() for n, p in self.module().named_parameters()}

    def snapshot(self)->dict:
        now = self.weights()
        if self.anchor is None: return {n:p.clone() for n, p in now.items()}
        given = self._given_weights(now)
        return {n:given[n].detach().to(p.device, p.dtype, copy=True) for n, p in now.items()}

    def _given_weights(self, now):
        "`anchor` as a dict that has all names of `now`"
        given = self.anchor.state_dict() if isinstance(self.anchor, nn.Module) else self.anchor
        expected = 'Telemetry measures from a state dict or an encoder that has all weights of the one in training'
        if not isinstance(given, dict): raise InputError(f'{expected}, not from {type(given).__name__}')
        missing = sorted(now.keys() - given.keys())
        if missing:
            raise InputError(f'{expected}; {", ".join(missing)} {"is" if len(missing) == 1 else "are"} not in this one')
        return given

    def _moved(self):
        if self._start is None: return float('nan')
        now = self.weights()
        far = sum(as_real(now[n] - w).double().square().sum() for n, w in self._start.items())
        size = sum(as_real(w).double().square().sum() for w in self._start.values())
        return (far.sqrt()/size.sqrt()).item()

    def after_loss(self):
        # count batches over all epochs: otherwise every short epoch would have a sample
        batch = self.epoch*self.n_iter + self.iter
        sample = batch % self.every == min(1, self.every - 1)  # not the first batch, where many are 0
        for name, p in self._penalties().items():
            if hasattr(p, 'age'): self._add(f'{name}_age', p.age)
            if p.pull is None: continue
            self._add(f'{name}_ratio', p.pull.detach(), self.learn.loss.detach())
            if sample and p.pull.requires_grad and p.lam: self._cosine(name, p)

    def _cosine(self, name, p):
        weights = [w for w in p.module().parameters() if w.requires_grad]
        if not weights: return
        def gradient(t): return torch.autograd.grad(t, weights, retain_graph=True, allow_unused=True)
        def dot(a, b):
            pairs = [(as_real(u), as_real(v)) for u, v in zip(a, b) if u is not None and v is not None]
            return sum((u.double()*v.double()).sum() for u, v in pairs)

        task, pull = gradient(self.learn.loss), gradient(p.pull)
        size = (dot(task, task)*dot(pull, pull))**.5
        if size > 0: self._add(f'{name}_cos', dot(task, pull)/size)
