"""Anchors: penalties on the distance of the weights from where they started."""
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..models import eval_mode
from .penalty import Anchored, Penalty, find_encoder

__all__ = ['L2SP', 'EWC', 'Fisher', 'empirical_fisher']


class WeightPenalty(Penalty):
    "A `Penalty` on the trainable weights of the encoder"

    def weights(self)->dict[str, torch.nn.Parameter]:
        "Trainable parameters of the encoder by name; frozen ones cannot move"
        return {n:p for n, p in self.module().named_parameters() if p.requires_grad}

    def quadratic(self, weights, anchor, scale=None):
        "`1/2 sum scale*(weight - anchor)^2`; 0 where nothing is trainable"
        total = torch.zeros((), device=self.learn.loss_grad.device)
        for n, p in weights.items():
            d = (p.float() - anchor[n].float()).pow(2)
            total = total + (d if scale is None else d*scale[n]).sum()
        return total/2

    def warn_of_decay(self):
        decays = {h.get('wd', 0) for h in self.opt.hypers} - {0, None}
        if decays and not self._warned:
            warnings.warn(f'{type(self).__name__} pulls the encoder to where it started while weight decay {max(decays)} pulls it to zero: set wd=0')
            self._warned = True
    _warned = False


class L2SP(Anchored, WeightPenalty):
    """`lam/2 ||w - w0||^2` over the encoder's weights (Li et al., ICML 2018).

    As in the original, biases and batch norm are left out; `which='all'` counts them in. The original's second term, a
    small weight decay on the new head, is left to the optimizer."""
    name = 'l2sp'
    anchors = None
    _stateattrs = Penalty._stateattrs + Anchored._anchorattrs + ('anchors',)

    def __init__(self,
        lam:float, # Weight of the distance
        which:str='weights', # 'weights' of layers only, or 'all' parameters of the encoder
        encoder=None, # Which part of the model to protect, see `find_encoder`
        anchor=None, # State dict, encoder or file to hold on to; default: the encoder when training begins
    ):
        super().__init__(lam, encoder)
        if which not in ('weights', 'all'): raise ValueError(f"which must be 'weights' or 'all', not {which!r}")
        self.which, self.anchor = which, anchor

    def begin(self):
        if (state := self.take()) is not None: self.anchors = state
        self.warn_of_decay()

    def term(self):
        return self.quadratic({n:p for n, p in self.weights().items() if self.which == 'all' or p.ndim > 1}, self.anchors)


@dataclass(frozen=True)
class Fisher:
    "A diagonal Fisher information and the weights it was taken at, by parameter name of the encoder"
    diag: dict
    anchor: dict
    n: int  # samples it is the mean of

    @property
    def mean(self)->float:
        "Mean over all weights; `lam` times this is the penalty's average strength"
        return (sum(f.sum() for f in self.diag.values())/sum(f.numel() for f in self.diag.values())).item()

    def to(self, device): return Fisher(*({k:v.to(device) for k, v in d.items()} for d in (self.diag, self.anchor)), self.n)

    def normalized(self):
        "Scaled to mean 1, so that a `lam` means the same for another net, data set or recipe"
        mean = self.mean
        if not mean > 0: raise InputError('the Fisher information is zero everywhere: the model is certain of every sample')
        return Fisher({k:v/mean for k, v in self.diag.items()}, self.anchor, self.n)


def empirical_fisher(
    model:torch.nn.Module, # The whole model with the head of the task
    batches, # Yields `(x, y)`; a fastai `DataLoader` of the source task, best without augmentation
    n:int|None=None, # Samples to use, at least 500 for a good estimate; `None`: all
    encoder=None, # Which part of the model the weights are from, see `find_encoder`
)->Fisher:
    """Mean over samples of the squared gradient of `-log p(y|x)`, y the true label, with respect to each weight of the encoder.

    Sample by sample, in eval mode: no batch is squared as a whole, and neither buffers, gradients nor modes of the model change
    (van de Ven 2025, arXiv 2502.11756, on what goes wrong otherwise)."""
    part = find_encoder(model, encoder)
    weights = dict(part.named_parameters())
    device, frozen = next(iter(weights.values())).device, [p for p in weights.values() if not p.requires_grad]
    diag, seen = {k:torch.zeros_like(p) for k, p in weights.items()}, 0
    for p in frozen: p.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad():
            for *xs, ys in batches:
                xs = [x.as_subclass(torch.Tensor).to(device) for x in xs]
                for i, y in enumerate(ys.as_subclass(torch.Tensor).to(device)):
                    if seen == n: break
                    loss = F.cross_entropy(model(*(x[i:i + 1] for x in xs)).float(), y[None])
                    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                    for f, g in zip(diag.values(), grads):
                        if g is not None: f.add_(g.detach()**2)
                    seen += 1
                if seen == n: break
    finally:
        for p in frozen: p.requires_grad_(False)
    if not seen: raise InputError('there are no samples to take the Fisher information from')
    return Fisher({k:f/seen for k, f in diag.items()}, {k:p.detach().clone() for k, p in weights.items()}, seen)


class EWC(WeightPenalty):
    """`lam/2 sum F (w - w*)^2` over the encoder's parameters (Kirkpatrick et al., PNAS 2017).

    Plain SGD with momentum m is stable only while `lr*lam*max(F) < 2(1 + m)`. The head is left out: a new task has a new one."""
    name = 'ewc'
    fisher = None
    _stateattrs = Penalty._stateattrs + ('fisher',)

    def __init__(self,
        lam:float, # Weight of the penalty
        fisher:Fisher, # From `empirical_fisher` on the source task; also says which weights to hold on to
        normalize:bool=False, # Scale F to mean 1, so that `lam` carries over to other nets and data
        encoder=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        self.fisher = fisher.normalized() if normalize else fisher

    def begin(self):
        if self.fisher is None: raise ValueError('EWC has lost its Fisher information: an exported learner does not carry it; pass a new EWC(lam, fisher)')
        here = dict(self.module().named_parameters())
        if here.keys() != self.fisher.diag.keys() or any(p.shape != self.fisher.diag[n].shape for n, p in here.items()):
            raise ValueError('the Fisher information is of another encoder: its parameter names or shapes differ')
        self.fisher = self.fisher.to(next(iter(here.values())).device)
        self.warn_of_decay()

    def term(self): return self.quadratic(self.weights(), self.fisher.anchor, self.fisher.diag)
