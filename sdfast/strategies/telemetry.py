"What a penalty really does while it trains: how hard it pulls, where to, how old its teacher is, how far the encoder has come."
import torch
from fastai.callback.core import Callback

from ..resume import Stateful
from .penalty import Columns, Penalty

__all__ = ['Telemetry']


class Telemetry(Stateful, Columns, Callback):
    """Columns for the recorder: for each `Penalty` NAME_ratio, the sum over the epoch's batches of `lam*term` relative to the
    task loss's; NAME_cos, the cosine between its gradient and the task's on the encoder, the mean of a few batches; NAME_age,
    batches since its teacher was renewed, their mean; and `moved`, `||w - w0|| / ||w0||` of the encoder since the fit began.

    The cosine costs two more backward passes on every `every`-th batch. Nothing of training changes."""
    order, run_valid = 7, False  # behind the penalties
    _stateattrs, _kept = ('_start', '_columns', '_sums'), ('_start',)
    _start, _sums = None, None

    def __init__(self,
        every:int=50, # Batches between two samples of the cosine; the second batch of an epoch is the first, as the first often has no pull
    ):
        if every < 1: raise ValueError(f'every must be at least 1, not {every}')
        self.every = every

    def _penalties(self): return [cb for cb in self.learn.cbs if isinstance(cb, Penalty)]

    def before_fit(self):
        if self.learn.lock.locked(): return  # `validate` and `get_preds`
        self._start, self._sums = None, {}
        names = [f'{p.name}_{what}' for p in self._penalties() for what in ('ratio', 'cos', *(['age'] if hasattr(p, 'born') else []))]
        self.show({n:lambda n=n: self._value(n) for n in names} | ({'moved': self._moved} if names else {}))

    def _value(self, name):
        top, bottom = self._sums.get(name, (0., 0.))
        return float(top)/float(bottom) if float(bottom) else float('nan')

    def _add(self, name, top, bottom=1.):
        t, b = self._sums.get(name, (0., 0.))
        self._sums[name] = t + top, b + bottom

    def before_train(self):
        self._sums = {}
        if self._start is None and self._penalties(): self._start = {n:p.detach().clone() for n, p in self._penalties()[0].module().named_parameters()}

    def _moved(self):
        if self._start is None: return float('nan')
        now = dict(self._penalties()[0].module().named_parameters())
        far = sum((now[n].detach() - w).double().square().sum() for n, w in self._start.items() if n in now)
        return (far.sqrt()/sum(w.double().square().sum() for w in self._start.values()).sqrt()).item()

    def after_loss(self):
        sample = self.iter % self.every == min(1, self.every - 1)
        for p in self._penalties():
            if hasattr(p, 'born'): self._add(f'{p.name}_age', self.train_iter - p.born)
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

    def leave(self):
        self._start = None
        super().leave()
