"""Anchors: penalties on how far the weights are from where they started, `lam/2 sum s (w - w0)^2`, and what weighs them.

`L2SP` weighs all weights alike, `EWC` by Fisher information, `MAS` by how much they move the outputs, `SI` by what they
contributed while the source was learned. lam is in one unit for all: its gradient is `lam s (w - w0)`."""
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from fastai.optimizer import momentum_step, sgd_step

from ..errors import InputError
from .base import Penalty, unwrap_optimizer
from .importance import Importance
from .mixins import Anchored

__all__ = ['L2SP', 'EWC', 'MAS', 'SI']



def momenta(opt:object)->list[float]|None:
    "The momentum of each group where `opt` is SGD by heavy ball or without momentum, `None` where it is another"
    core = unwrap_optimizer(opt)
    if isinstance(core, torch.optim.SGD): return [g['momentum'] for g in core.param_groups] if not any(g['nesterov'] or g['dampening'] for g in core.param_groups) else None
    steps = getattr(core, 'cbs', ())
    return [h['mom'] for h in opt.hypers] if momentum_step in steps else [0.]*len(opt.hypers) if sgd_step in steps else None


class _Distance(torch.autograd.Function):
    "`1/2 sum scale*(weight - anchor)^2` of lists of tensors, in float32, and its gradient `scale*(weight - anchor)`: one node in the graph, not some for each weight"
    @staticmethod
    def forward(ctx, anchors, scale, *weights):
        away = torch._foreach_sub([w.float() for w in weights], [a.float() for a in anchors])
        pull = away if scale is None else torch._foreach_mul(away, scale)
        ctx.pull, ctx.dtypes = pull, [w.dtype for w in weights]
        return sum((a*p).sum() for a, p in zip(away, pull))/2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad): return None, None, *(g.to(t) for g, t in zip(torch._foreach_mul(ctx.pull, grad), ctx.dtypes))


class WeightPenalty(Penalty):
    """A `Penalty` on the trainable weights of the encoder.

    With `direct` its term is not differentiated: the optimizer's step is followed by one of its own (`pull_back`), which
    neither the gradient scaler nor Adam's scaling bends."""
    direct, anchors, scale = False, None, None
    _told, _groups, _skipped = (), (), False
    _stateattrs = Penalty._stateattrs + ('anchors', 'scale')

    def weights(self)->dict[str, torch.nn.Parameter]:
        "Trainable parameters of the encoder by name; frozen ones cannot move"
        return {n:p for n, p in self.module().named_parameters() if p.requires_grad}

    def before_train(self):
        super().before_train()
        names = {id(p):n for n, p in self.weights().items()}
        self._groups = [[names[id(p)] for p in ps if id(p) in names] for ps in self.opt.param_lists]  # of the optimizer: names of the weights in each
        self._warn()

    def term(self)->torch.Tensor:
        "`1/2 sum scale*(weight - anchor)^2`; 0 where nothing is trainable"
        weights = self.weights()
        if not weights: return torch.zeros((), device=self.learn.loss_grad.device)
        return _Distance.apply([self.anchors[n] for n in weights], None if self.scale is None else [self.scale[n] for n in weights], *weights.values())

    def after_loss(self):
        if not self.direct: return super().after_loss()
        with torch.no_grad(): term = self.term()
        self._sum = term if self._sum is None else self._sum + term
        self._count += 1

    def before_step(self): self._skipped = False
    def after_cancel_step(self): self._skipped = True  # the gradient scaler saw an overflow: no step happened

    @torch.no_grad()
    def after_step(self):
        if not self.direct or self._skipped: return
        weights = self.weights()
        # plain momentum adds gradients up: each moves a weight by lr/(1 - mom) in all
        for names, h, mom in zip(self._groups, self.opt.hypers, momenta(self.opt) or [0.]*len(self._groups)):
            for n in names: self.pull_back(weights[n], self.anchors[n], self.lam*(1. if self.scale is None else self.scale[n]), h['lr'], mom)

    def _tell(self, what, text):
        if what not in self._told:
            warnings.warn(f'{type(self).__name__}{text}')
            self._told = (*self._told, what)

    def _warn(self):
        decays = {h.get('wd', 0) for h, names in zip(self.opt.hypers, self._groups) if names} - {0, None}
        if decays: self._tell('decay', f' pulls the encoder to where it started while weight decay {max(decays)} pulls it to zero: set wd=0')
        for other in self.learn.cbs:
            if isinstance(other, WeightPenalty) and other is not self and other.anchors is not None and self.anchors is not None:
                both = self.anchors.keys() & other.anchors.keys() & self.weights().keys() & other.weights().keys()
                if any(not torch.equal(self.anchors[n], other.anchors[n].to(self.anchors[n].device)) for n in both):
                    self._tell('other', f' and {type(other).__name__} hold the same parameters to different places: give both the same anchor')


class L2SP(Anchored, WeightPenalty):
    """`lam/2 ||w - w0||^2` over the encoder's weights (Li et al., ICML 2018), and `head/2 ||v||^2` over those of the rest.

    As in the original, biases and batch norm are left out; `which='all'` counts them in. `decoupled` moves the weights by
    `lr*lam*(w0 - w)` after each step instead of adding a gradient (to L2-SP what AdamW is to L2)."""
    name = 'l2sp'
    _stateattrs, _state = WeightPenalty._stateattrs + Anchored._anchorattrs, Anchored._state + ('anchors',)

    def __init__(self,
        lam:float, # Weight of the distance
        which:str='weights', # 'weights' of layers only, or 'all' parameters of the encoder
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|torch.nn.Module|str|Path|None=None, # State dict, encoder or file to hold on to; default: the encoder when training begins
        head:float=0., # Weight decay of the layers behind the encoder, .01 in the original; not in the reported term
        decoupled:bool=False, # Move the weights after each step instead of adding a gradient
    ):
        super().__init__(lam, encoder)
        if which not in ('weights', 'all'): raise ValueError(f"which must be 'weights' or 'all', not {which!r}")
        if not head >= 0: raise ValueError(f'head must be a number of at least 0, not {head}')
        self.which, self.anchor, self.head, self.direct = which, anchor, head, decoupled

    def begin(self)->None:
        if (state := self.take()) is not None: self.anchors = state

    def weights(self)->dict[str, torch.nn.Parameter]: return {n:p for n, p in super().weights().items() if self.which == 'all' or p.ndim > 1}

    def after_loss(self):
        super().after_loss()
        if not self.head: return
        ours = {id(p) for p in self.module().parameters()}
        rest = [p for p in self.learn.model.parameters() if id(p) not in ours and p.requires_grad and p.ndim > 1]
        self.learn.loss_grad = self.loss_grad + self.head/2*sum(p.float().pow(2).sum() for p in rest)

    def pull_back(self, p:torch.Tensor, anchor:torch.Tensor, strength:float, lr:float, mom:float)->None: p.sub_((p - anchor)*(lr*strength))


class Weighted(WeightPenalty):
    "A `WeightPenalty` whose weights count by an `Importance`"

    def __init__(self,
        lam:float, # Weight of the penalty
        importance:Importance, # Also says which weights to hold on to
        normalize:bool=False, # Scale it to mean 1, so that `lam` carries over to other nets and data
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        implicit:bool=False, # Step by step towards the anchor instead of by gradient: stable for every lam
    ):
        super().__init__(lam, encoder)
        if not isinstance(importance, Importance): raise InputError(f'{type(self).__name__} needs the importance of each weight, {self.how}, not {type(importance).__name__}')
        if normalize: importance = importance.normalized()
        self.anchors, self.scale, self.direct = importance.anchor, importance.diag, implicit

    def begin(self)->None:
        who = type(self).__name__
        if self.anchors is None: raise ValueError(f'{who} has lost its importance: an exported learner does not carry it; pass a new {who}(lam, importance)')
        here = dict(self.module().named_parameters())
        if here.keys() != self.scale.keys() or any(p.shape != self.scale[n].shape for n, p in here.items()):
            raise ValueError('the importance is of another encoder: its parameter names or shapes differ')
        if not self.weights(): self._tell('frozen', ' has nothing to hold, as all parameters of the encoder are frozen: unfreeze some, or leave it away')
        device = next(iter(here.values())).device
        self.anchors, self.scale = ({k:v.to(device) for k, v in d.items()} for d in (self.anchors, self.scale))

    def before_train(self):
        super().before_train()
        self._largest = [max((self.scale[n].max().item() for n in names), default=0.) for names in self._groups]

    def after_loss(self):
        super().after_loss()
        if self.direct or 'stable' in self._told or hasattr(self.learn, 'lr_finder') or (moms := momenta(self.opt)) is None: return
        # in each batch, as a schedule may raise the learning rate later
        limits = [(2*(1 + m)/(h['lr']*f), h['lr'], m) for h, m, f in zip(self.opt.hypers, moms, self._largest) if h['lr']*f > 0]
        limit, lr, mom = min(limits, default=(float('inf'), 0., 0.))
        if self.lam >= limit:
            self._tell('stable', f': lam {self.lam:g} is unstable at learning rate {lr:g} and momentum {mom:g}, the largest safe lam is {limit:.3g} '
                       '(lr*lam*max importance < 2(1 + momentum)); take a smaller one, or implicit=True')

    def pull_back(self, p:torch.Tensor, anchor:torch.Tensor, strength:float|torch.Tensor, lr:float, mom:float)->None:
        c = lr*strength/(1 - mom)
        p.add_(anchor*c).div_(1 + c)  # the minimum of the penalty and the distance to where the step led


class EWC(Weighted):
    """`lam/2 sum F (w - w*)^2` over the encoder's parameters, F from `fisher_information` (Kirkpatrick et al., PNAS 2017).

    By gradient, SGD with momentum m is stable only while `lr*lam*max(F) < 2(1 + m)`: a warning names the largest safe lam.
    `implicit=True` takes the step `w <- (w + c w*)/(1 + c)`, `c = lr*lam*F/(1 - m)`, with the same place of rest and no such
    limit. The head is left out: a new task has a new one."""
    name, how = 'ewc', 'from fisher_information(source_model, source_batches)'


class MAS(Weighted):
    "`lam/2 sum O (w - w*)^2`, O from `mas_importance` (Aljundi et al., ECCV 2018, without the 1/2). Options as in `EWC`"
    name, how = 'mas', 'from mas_importance(source_model, source_batches)'


class SI(Weighted):
    "`lam/2 sum O (w - w*)^2`, O from a `PathIntegral` over the training on the source (Zenke et al., ICML 2017: 2c is our lam). Options as in `EWC`"
    name, how = 'si', 'from PathIntegral().importance() after training on the source'
