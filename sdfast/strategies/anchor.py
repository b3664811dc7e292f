"""Anchors: penalties on the distance of the weights from their starting point, `lam/2 sum s (w - w0)^2`.

The scale s is 1 for `L2SP`, the Fisher information for `EWC`, each weight's effect on the outputs for `MAS`
(memory-aware synapses), and its contribution to the learning of the source for `SI`. lam has the same unit in all of
them: the gradient is `lam s (w - w0)`."""
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import InputError
from ..models.averages import as_real
from .base import Penalty
from .importance import Importance
from .mixins import Anchored
from .optimizers import momenta, warn_of_decay

__all__ = ['L2SP', 'EWC', 'MAS', 'SI']


class _Distance(torch.autograd.Function):
    """`1/2 sum scale*(weight - anchor)^2` over lists of tensors, in float32, and its gradient `scale*(weight -
    anchor)`.

    It makes one node in the graph instead of several for each weight."""
    @staticmethod
    def forward(ctx, anchors, scale, *weights):
        away = torch._foreach_sub([w.float() for w in weights], [a.float() for a in anchors])
        pull = away if scale is None else torch._foreach_mul(away, scale)
        ctx.pull, ctx.dtypes = pull, [w.dtype for w in weights]
        return sum((a*p).sum() for a, p in zip(away, pull))/2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grads = torch._foreach_mul(ctx.pull, grad)
        return None, None, *(g.to(t) for g, t in zip(grads, ctx.dtypes))


class WeightPenalty(Penalty):
    """A `Penalty` on the trainable weights of the encoder. Subclasses set `anchors` and, for unequal weighting,
    `scale`.

    With `direct` the term has no gradient. Instead, each optimizer step is followed by a step towards the anchors
    (`pull_back`), which neither the gradient scaler nor Adam rescales."""
    direct = False
    anchors: dict[str, torch.Tensor]|None = None  # name of a parameter -> tensor of its shape
    scale: dict[str, torch.Tensor]|None = None  # the same
    _groups: Sequence[list[str]] = ()  # for each parameter group of the optimizer, the names of its penalised weights
    first_lam = .1
    _stateattrs = Penalty._stateattrs + ('anchors', 'scale')

    def weights(self)->dict[str, torch.nn.Parameter]:
        "Trainable parameters of the encoder by name"
        return {n:p for n, p in self.module().named_parameters() if p.requires_grad}

    def before_train(self):
        super().before_train()
        self.warn_if_frozen()
        names = {id(p):n for n, p in self.weights().items()}
        groups = [] if self.loop.opt is None else self.loop.opt.param_lists
        self._groups = [[names[id(p)] for p in params if id(p) in names] for params in groups]
        self._warn_of_weight_decay()
        self._warn_of_other_anchors()

    def term(self)->torch.Tensor:
        "`1/2 sum scale*(weight - anchor)^2`; 0 if nothing is trainable"
        weights = self.weights()
        if not weights: return torch.zeros((), device=next(self.loop.model.parameters()).device)
        assert self.anchors is not None  # set in `begin`
        anchors = [as_real(self.anchors[n]) for n in weights]
        scale = None if self.scale is None else [self.scale[n] for n in weights]
        return _Distance.apply(anchors, scale, *map(as_real, weights.values()))

    @property
    def needs_steps(self)->bool: return self.direct or super().needs_steps

    def attached(self)->None:
        super().attached()
        if self.direct and self.loop.opt is None:
            raise InputError(f'{type(self).__name__} moves the weights after each step, at the learning rate of the '
                             'optimizer: call attach(model, optimizer)')

    def add_to(self, loss:torch.Tensor)->torch.Tensor:
        if not self.direct: return super().add_to(loss)
        with torch.no_grad(): self._count_term(self.term())
        return loss

    @torch.no_grad()
    def after_step(self):
        super().after_step()
        if not self.direct or self._skipped: return
        weights = self.weights()
        moms = momenta(self.loop.opt) or [0.]*len(self._groups)
        for names, hyper, mom in zip(self._groups, self.loop.opt.hypers, moms):
            for n in names:
                strength = self.lam*(1. if self.scale is None else self.scale[n])
                self.pull_back(weights[n], self.anchors[n], strength, hyper['lr'], mom)

    def pull_back(self, p:torch.Tensor, anchor:torch.Tensor, strength:float|torch.Tensor, lr:float, mom:float)->None:
        "Move `p` towards its anchor, in place; `strength` is lam times the scale"
        raise NotImplementedError(f'{type(self).__name__} must define `pull_back`')

    def _warn_of_weight_decay(self):
        if not self._groups or 'decay' in self._warned: return  # the optimizer is not known
        if warn_of_decay(type(self).__name__, self.loop.opt, self.weights().values()):
            self._warned = (*self._warned, 'decay')

    def _warn_of_other_anchors(self):
        others = [s for s in self.loop.strategies if isinstance(s, WeightPenalty) and s is not self]
        for other in others:
            if self.anchors is None or other.anchors is None: continue
            both = self.anchors.keys() & other.anchors.keys() & self.weights().keys() & other.weights().keys()
            if any(not torch.equal(self.anchors[n], other.anchors[n].to(self.anchors[n].device)) for n in both):
                self._warn_once('other', f' and {type(other).__name__} pull the same parameters to different anchors: '
                                         'give both the same anchor')


class L2SP(Anchored, WeightPenalty):
    """`lam/2 ||w - w0||^2` over the encoder's weights w (Li et al., ICML 2018), plus `head/2 ||v||^2` over all other
    weights v of the model.

    As in the original, biases and batch norm are left out; `which='all'` includes them. `decoupled` moves the weights
    by `lr*lam*(w0 - w)` after each step instead of adding a gradient (as AdamW does for L2)."""
    name = 'l2sp'
    _stateattrs = WeightPenalty._stateattrs + Anchored._anchorattrs
    _state = Anchored._state + ('anchors',)
    _argument_attrs = WeightPenalty._argument_attrs | dict(decoupled='direct')

    def __init__(self,
        lam:float, # Weight of the distance
        which:str='weights', # 'weights' of layers only, or 'all' parameters of the encoder
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|torch.nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: encoder before training
        head:float=0., # Weight decay of the layers after the encoder, .01 in the original; not in the reported term
        decoupled:bool=False, # Move the weights after each step instead of adding a gradient
    ):
        super().__init__(lam, encoder)
        if which not in ('weights', 'all'): raise ValueError(f"which must be 'weights' or 'all', not {which!r}")
        if not head >= 0: raise ValueError(f'head must be a number of at least 0, not {head}')
        self.which, self.anchor, self.head, self.direct = which, anchor, head, decoupled

    def begin(self)->None:
        state = self.take()
        if state is not None: self.anchors = state

    def weights(self)->dict[str, torch.nn.Parameter]:
        weights = super().weights()
        return weights if self.which == 'all' else {n:p for n, p in weights.items() if p.ndim > 1}

    def add_to(self, loss:torch.Tensor)->torch.Tensor:
        loss = super().add_to(loss)
        if not self.head: return loss
        ours = {id(p) for p in self.module().parameters()}
        rest = [p for p in self.loop.model.parameters() if id(p) not in ours and p.requires_grad and p.ndim > 1]
        return loss + self.head/2*sum(as_real(p).float().pow(2).sum() for p in rest)

    def pull_back(self, p:torch.Tensor, anchor:torch.Tensor, strength:float, lr:float, mom:float)->None:
        p.sub_((p - anchor)*(lr*strength))


class Weighted(WeightPenalty):
    "A `WeightPenalty` scaled by an `Importance`"
    importance: Importance|None = None
    _stateattrs = WeightPenalty._stateattrs + ('importance',)
    _argument_attrs = WeightPenalty._argument_attrs | dict(implicit='direct')
    _largest: Sequence[float] = ()  # the largest importance in each parameter group of the optimizer

    def __init__(self,
        lam:float, # Weight of the penalty
        importance:Importance, # The scale of each weight, and the anchors
        normalize:bool=False, # Scale the importance to mean 1, so that `lam` carries over to other nets and data
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        implicit:bool=False, # Pull back after each optimizer step instead of by a gradient: stable for every lam
    ):
        super().__init__(lam, encoder)
        if not isinstance(importance, Importance):
            raise InputError(f'{type(self).__name__} needs the importance of each weight, {self.how}, '
                             f'not {type(importance).__name__}')
        self._use(importance.normalized() if normalize else importance)
        self.normalize, self.direct = normalize, implicit

    def _use(self, importance):
        self.importance = importance
        self.anchors, self.scale = importance.anchor, importance.diag

    def begin(self)->None:
        who = type(self).__name__
        if self.anchors is None or self.scale is None:
            raise ValueError(f'{who} lacks its importance: an exported learner does not carry it; '
                             f'pass a new {who}(lam, importance)')
        params = dict(self.module().named_parameters())
        if any(p.is_complex() for p in params.values()):
            raise InputError(f'{who} knows no importance of complex weights: take L2SP or a teacher instead')
        if params.keys() != self.scale.keys() or any(p.shape != self.scale[n].shape for n, p in params.items()):
            raise ValueError('the importance is of another encoder: its parameter names or shapes differ')
        self._use(self.importance.to(next(iter(params.values())).device))

    def before_train(self):
        super().before_train()
        self._largest = [max((self.scale[n].max().item() for n in names), default=0.) for names in self._groups]

    def add_to(self, loss:torch.Tensor)->torch.Tensor:
        if not (self.direct or 'stable' in self._warned or self.loop.trial or not self._groups):
            self._check_stable()  # in each batch, as a schedule may raise the learning rate later
        return super().add_to(loss)

    def _check_stable(self):
        "Warn if gradient steps diverge: SGD with momentum m is stable only while `lr*lam*importance < 2(1 + m)`"
        moms = momenta(self.loop.opt)
        if moms is None: return
        limits = [(2*(1 + mom)/(hyper['lr']*largest), hyper['lr'], mom)
                  for hyper, mom, largest in zip(self.loop.opt.hypers, moms, self._largest) if hyper['lr']*largest > 0]
        limit, lr, mom = min(limits, default=(float('inf'), 0., 0.))
        if self.lam >= limit:
            self._warn_once('stable', f': lam {self.lam:g} is unstable at learning rate {lr:g} and momentum {mom:g}, '
                                      f'the largest safe lam is {limit:.3g} (lr*lam*max importance < 2(1 + momentum)); '
                                      'take a smaller one, or implicit=True')

    def pull_back(self, p:torch.Tensor, anchor:torch.Tensor, strength:float|torch.Tensor, lr:float, mom:float)->None:
        c = lr*strength/(1 - mom)  # with momentum, each gradient moves a weight by lr/(1 - mom) times itself in total
        p.add_(anchor*c).div_(1 + c)  # minimises the penalty plus the squared distance from the optimizer's new weights


class EWC(Weighted):
    """`lam/2 sum F (w - w*)^2` over the encoder's parameters, F from `fisher_information` (Kirkpatrick et al., PNAS
    2017).

    As a gradient, the penalty is stable under SGD with momentum m only while `lr*lam*max(F) < 2(1 + m)`: a warning
    names the largest safe lam. `implicit=True` takes the step `w <- (w + c w*)/(1 + c)`, `c = lr*lam*F/(1 - m)`, which
    has the same fixed point and no such limit. The head is excluded, because a new task has a new one."""
    name, how = 'ewc', 'from fisher_information(source_model, source_batches)'


class MAS(Weighted):
    """Memory-aware synapses: `lam/2 sum O (w - w*)^2`, O from `mas_importance` (Aljundi et al., ECCV 2018, without the
    1/2).

    Options as in `EWC`."""
    name, how = 'mas', 'from mas_importance(source_model, source_batches)'


class SI(Weighted):
    """Synaptic intelligence: `lam/2 sum O (w - w*)^2`, O from a `PathIntegral` over the training on the source (Zenke
    et al., ICML 2017, whose 2c is our lam). Options as in `EWC`."""
    name, how = 'si', 'from PathIntegral().importance() after training on the source'
