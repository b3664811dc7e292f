"Stochastic normalisation: in training, some channels of batch norm use the moving statistics instead of the batch's."
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..models.statistics import keeps_statistics, warn_without_statistics
from ..runtime.arguments import ShowArguments
from ..runtime.resume import Resumable
from .budgeted import Budgeted
from .columns import Columns
from .driver import Driver

__all__ = ['stoch_norm', 'plain_norm', 'StochNorm']


class _StochNorm:
    """Mix-in for a batch-norm class, to be put before it among the bases: in training, each channel uses the moving
    statistics with probability `p`

    `stoch_norm` makes one class for each layer, with its state in the class, so that copies and pickles lack it."""
    p = .5
    before: tuple|None = None  # the moving statistics before the last forward pass
    passes = 0  # forward passes since the last that checkpointing repeated
    repeated = False  # whether checkpointing has repeated a forward pass since the last one

    def forward(self, x):
        if not (self.training and self.track_running_stats and self.running_mean is not None): return super().forward(x)
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        again = in_backward()  # gradient checkpointing repeats the forward pass: it must give the same again
        if not again: self._remember(mean, var)
        elif self.passes > 1:
            raise InputError(f'StochNorm: gradient checkpointing of a layer that is called {self.passes} times in a '
                             'batch is not supported: switch checkpointing off')
        # As in the original, use the moving statistics before this batch. They are copied, because the backward pass
        # needs them after this batch has updated them
        assert self.before is not None
        (self.running_mean, self.running_var), self.training = self.before, False
        try: moving = super().forward(x)
        finally: self.running_mean, self.running_var, self.training = mean, var, True
        if again: batch = self._repeat(x, mean, var, batches)
        else: batch = super().forward(x)
        chosen = torch.rand(len(mean), device=x.device) < self.p
        return torch.where(chosen.view(-1, *[1]*(x.ndim - 2)), moving, batch)

    def _remember(self, mean, var):
        cls = type(self)
        cls.before, cls.passes = (mean.clone(), var.clone()), 1 if cls.repeated else cls.passes + 1
        cls.repeated = False

    def _repeat(self, x, mean, var, batches):
        "Normalise by the batch's statistics without moving any"
        type(self).repeated = True
        self.running_mean, self.running_var = mean.clone(), var.clone()
        self.num_batches_tracked = None if batches is None else batches.clone()
        try: return super().forward(x)
        finally: self.running_mean, self.running_var, self.num_batches_tracked = mean, var, batches

    def __reduce_ex__(self, protocol):
        "A copy, pickle or export is the plain batch norm"
        rebuild, (_, *args), *rest = super().__reduce_ex__(1)  # later protocols require the object's own class
        return rebuild, (type(self).__bases__[1], *args), *rest


def in_backward()->bool:
    "Whether autograd is running a backward pass"
    return torch._C._current_graph_task_id() != -1


def _check_p(p):
    if not 0 <= p <= 1: raise InputError(f'p must be a probability between 0 and 1, not {p}')


def stoch_norm(
    module:nn.Module, # Its batch norms of 1 to 3 dimensions and their subclasses, such as timm's, change in place
    p:float=.5, # Probability that a channel is normalised by its moving statistics instead of the batch's
)->nn.Module: # The same module
    """Switch to stochastic normalisation (Kou et al., NeurIPS 2020) until `plain_norm`.

    `y = w*((1-s)*x_batch + s*x_moving) + b`, s ~ B(p) per channel. Moving statistics are updated as usual, the state
    dict keeps its keys, and eval mode is that of batch norm. `p=0` is plain batch norm and draws no random number; in
    the paper's code p is the probability of the batch's statistics instead."""
    _check_p(p)
    plain_norm(module)
    if p == 0: return module
    others = [n or type(m).__name__ for n, m in module.named_modules()
              if keeps_statistics(m) and not isinstance(m, _BatchNorm)]
    if others:
        raise InputError(f'StochNorm is defined for batch norm, not for {", ".join(others)}, which keeps statistics of '
                         'another kind: pass encoder= a part without it, or FrozenBN() to keep its statistics')
    for m in module.modules():
        if isinstance(m, _BatchNorm): m.__class__ = type(f'Stoch{type(m).__name__}', (_StochNorm, type(m)), dict(p=p))
    return module


def plain_norm(
    module:nn.Module, # Changed in place
)->nn.Module: # The same module
    "Undo `stoch_norm`"
    for m in module.modules():
        if isinstance(m, _StochNorm): m.__class__ = type(m).__bases__[1]
    return module


class StochNorm(ShowArguments, Budgeted, Resumable, Columns, Driver):
    """`stoch_norm` on the encoder while it trains (Kou et al., NeurIPS 2020).

    Batch norm that is frozen or has no moving statistics, such as a teacher's, does not change, and copies and exports
    of the model have plain batch norm. The encoder is restored after each training epoch, and when the fit fails."""
    most = 1.  # p is a probability
    _stateattrs = Driver._stateattrs + Budgeted._budgetattrs + ('_columns',)
    _argument_attrs = dict(encoder='protected')

    def __init__(self,
        p:float=.5, # Probability that a channel is normalised by its moving statistics; 0 is plain fine-tuning
        encoder:str|Callable|None=None, # Which part of the model to normalise this way, see `find_encoder`
    ):
        _check_p(p)
        self.p, self.protected = p, encoder

    def before_fit(self):
        if self.starts(): self.show(self.columns())  # often none, but `leave` is called after an exception

    def detached(self)->None: self.leave()

    def strength(self)->float: return self.p

    def set_strength(self, lam:float)->None:
        self.p = lam
        if self.budget is None or self._limits is None: return
        for m in self.module().modules():
            if isinstance(m, _StochNorm): type(m).p = lam

    def before_train(self):
        self.begin_budget()
        stoch_norm(self.module(), self.p)

    def after_train(self):
        plain_norm(self.loop.model)
        warn_without_statistics(self.module(), 'StochNorm')
        self.end_budget()

    def leave(self)->None:
        plain_norm(self.loop.model)
        super().leave()
