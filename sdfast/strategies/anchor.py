"""Anchors: penalties on how far the weights are from where they started, `lam/2 sum s (w - w0)^2`, and what weighs them.

`L2SP` weighs all weights alike, `EWC` by Fisher information, `MAS` by how much they move the outputs, `SI` by what they
contributed while the source was learned. lam is in one unit for all: its gradient is `lam s (w - w0)`."""
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.optimizer import momentum_step, sgd_step

from ..errors import InputError
from ..models import eval_mode
from ..resume import Stateful
from .penalty import Anchored, Penalty, find_encoder
from .persample import layers_of
from .recipes import _core

__all__ = ['L2SP', 'EWC', 'MAS', 'SI', 'Importance', 'Fisher', 'fisher_information', 'empirical_fisher', 'mas_importance', 'PathIntegral']


def momenta(opt:object)->list[float]|None:
    "The momentum of each group where `opt` is SGD by heavy ball or without momentum, `None` where it is another"
    core = _core(opt)
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
    _stateattrs, _kept = WeightPenalty._stateattrs + Anchored._anchorattrs, Anchored._kept + ('anchors',)

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


@dataclass(frozen=True)
class Importance:
    "How much each weight of an encoder matters, and the weights it was taken at, by parameter name"
    diag: dict  # parameter -> importance of each weight, of its shape
    anchor: dict  # parameter -> weights
    n: int  # samples it is the mean of; steps, for `PathIntegral`

    @property
    def mean(self)->float:
        "Mean over all weights; `lam` times this is the penalty's average strength"
        return (sum(f.sum() for f in self.diag.values())/sum(f.numel() for f in self.diag.values())).item()

    def to(self, device:torch.device|str)->'Importance': return Importance(*({k:v.to(device) for k, v in d.items()} for d in (self.diag, self.anchor)), self.n)

    def normalized(self)->'Importance':
        "Scaled to mean 1, so that a `lam` means the same for another net, data set or recipe"
        mean = self.mean
        if not mean > 0: raise InputError('the importance is zero everywhere: the model is certain of every sample')
        return Importance({k:v/mean for k, v in self.diag.items()}, self.anchor, self.n)

    def then(self, new:'Importance', gamma:float=1.)->'Importance':
        "Of one task after another, `gamma*old + new`, held at the new weights (online EWC, Schwarz et al., ICML 2018)"
        if self.diag.keys() != new.diag.keys(): raise ValueError('both must be of the same encoder: their parameter names differ')
        return Importance({k:gamma*self.diag[k].to(f.device) + f for k, f in new.diag.items()}, new.anchor, self.n + new.n)


Fisher = Importance


LARGE = 2_000_000  # weights of a net whose samples are so large that four of them are enough to be as fast together, nearly, as more


def _wide(t): return t if t.dtype == torch.float64 else t.float()


def _per_sample(model, batches, n, encoder, f, outputs, cotangents, chunk, draw=None):
    """`Importance` from single samples, in eval mode: no batch is squared as a whole, and neither buffers, gradients, modes
    nor the random state of the model change. It is the mean over samples of `sum_c f(d <outputs(sample), c>/dw)` over the
    `cotangents(outputs, sample)`; `chunk` samples at once where `persample` can take the model apart, one by one elsewhere"""
    if batches is None: raise InputError('the importance of weights is taken from samples of the source task, or of the target: pass a loader of them, not None')
    if chunk is not None and chunk < 1: raise ValueError(f'chunk must be at least 1, not {chunk}')
    part = find_encoder(model, encoder)
    weights = dict(part.named_parameters())
    device, frozen = next(iter(weights.values())).device, [p for p in weights.values() if not p.requires_grad]
    diag, seen = {k:torch.zeros_like(_wide(p), requires_grad=False) for k, p in weights.items()}, 0
    if chunk is None: chunk = 4 if device.type == 'cpu' and sum(p.numel() for p in weights.values()) > LARGE else 16
    layers = layers_of(part) if chunk > 1 else None

    def alone(sample):
        out = outputs(sample)
        cots = list(cotangents(out, sample))
        for i, c in enumerate(cots):
            for d, g in zip(diag.values(), torch.autograd.grad(out, list(weights.values()), c, allow_unused=True, retain_graph=i + 1 < len(cots))):
                if g is not None: d.add_(f(_wide(g)))

    for p in frozen: p.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad():
            for batch in batches:
                batch = [t.as_subclass(torch.Tensor).to(device) for t in (batch if isinstance(batch, (tuple, list)) else [batch])]
                if n is not None: batch = [t[:n - seen] for t in batch]
                for some in zip(*(t.split(chunk) for t in batch)):
                    state, sums = None if draw is None else draw.get_state(), None
                    if layers is not None and (len(some[0]) > 1 or layers.verified) and (sums := layers.sums(outputs, cotangents, list(some), f)) is None:
                        layers = None
                        if draw is not None: draw.set_state(state)
                    if sums is not None:
                        for k, p in weights.items():
                            if id(p) in sums: diag[k].add_(sums[id(p)])
                    else:
                        for i in range(len(some[0])): alone([t[i:i + 1] for t in some])
                    seen += len(some[0])
                if seen == n: break
    finally:
        for p in frozen: p.requires_grad_(False)
    if dist.is_available() and dist.is_initialized():  # each process has a part of the samples
        count = torch.tensor(float(seen), device=device)
        for t in (*diag.values(), count): dist.all_reduce(t)
        seen = int(count)
    if not seen: raise InputError('there are no samples to take the importance from')
    return Importance({k:d/seen for k, d in diag.items()}, {k:p.detach().clone() for k, p in weights.items()}, seen)


def _logits(model, *inputs):
    out = model(*inputs)
    if not torch.is_tensor(out) or out.ndim != 2:
        raise InputError(f'Fisher information is of a model with a head, which returns logits (B, classes), not {tuple(out.shape) if torch.is_tensor(out) else type(out).__name__}: '
                         'pass Sequential(encoder, head), with a probe as head if there is none (sdfast.forgetting.probe_head), or loss=FUNCTION, for instance a pretext loss')
    return _wide(out)


def fisher_information(
    model:torch.nn.Module, # The whole model with a head: the source's, or one fitted to the target
    batches:Iterable, # Yields `(x, y)`, or `x` where no label is needed; a fastai `DataLoader`, best without augmentation
    n:int|None=None, # Samples to use, at least 500 for a good estimate; `None`: all
    labels:str='exact', # Whose gradient: of every class weighted with its probability ('exact'), of one drawn by it ('sample'), of the true one ('empirical')
    encoder:str|Callable|None=None, # Which part of the model the weights are from, see `find_encoder`
    loss:Callable|None=None, # Instead of `labels`: a function `(model, *sample)` to a scalar, for instance a pretext loss; it gets samples one by one
    seed:int=0, # Of 'sample'
    chunk:int|None=None, # Samples at once, which bounds the memory: about that of a training step with one and a half times as many. `None`: 16, of large nets on a CPU 4
)->Importance: # Its `anchor` are the weights now
    """Diagonal Fisher information: mean over samples of `E_c (d -log p(c|x) / dw)^2` for each weight of the encoder.

    'exact' costs a backward pass a class. Each sample's gradient by itself and in eval mode (van de Ven 2025, arXiv 2502.11756, on
    what goes wrong otherwise); under torch.distributed the processes' samples are put together. Samples go together where
    the encoder is made of convolutions, linear layers and norms, one by one through any other."""
    if labels not in ('exact', 'sample', 'empirical'): raise ValueError(f"labels must be 'exact', 'sample' or 'empirical', not {labels!r}")
    if loss is not None: return _per_sample(model, batches, n, encoder, torch.square, lambda sample: loss(model, *sample), lambda out, sample: [torch.ones_like(out)], 1)
    draw = torch.Generator().manual_seed(seed)

    def outputs(sample):
        if labels == 'empirical' and len(sample) < 2: raise InputError("labels='empirical' needs labels: batches of (x, y), not of x alone")
        return _logits(model, *(sample[:-1] if labels == 'empirical' else sample[:1])).log_softmax(1)

    def cotangents(logp, sample):  # the signs do not matter to the square
        logp, classes = logp.detach(), logp.shape[1]
        if labels == 'exact': return (torch.zeros_like(logp).index_copy(1, torch.tensor([c], device=logp.device), logp[:, c:c + 1].div(2).exp()) for c in range(classes))
        y = sample[-1] if labels == 'empirical' else torch.cat([torch.multinomial(p, 1, generator=draw) for p in logp.exp().cpu()]).to(logp.device)
        return [(y if y.is_floating_point() else F.one_hot(y.flatten().long(), classes)).to(logp)]
    return _per_sample(model, batches, n, encoder, torch.square, outputs, cotangents, chunk, draw)


def empirical_fisher(
    model:torch.nn.Module, # As for `fisher_information`
    batches:Iterable, # Yields `(x, y)`
    n:int|None=None, # Samples to use; `None`: all
    encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    chunk:int|None=None, # Samples at once
)->Importance: # Its `anchor` are the weights now
    "`fisher_information` with the true labels: one backward pass"
    return fisher_information(model, batches, n, 'empirical', encoder, chunk=chunk)


def mas_importance(
    model:torch.nn.Module, # The whole model with the source's head, or any whose outputs are to stay as they are
    batches:Iterable, # Yields `(x, y)` or `x`: labels are not used
    n:int|None=None, # Samples to use; `None`: all
    encoder:str|Callable|None=None, # Which part of the model the weights are from, see `find_encoder`
    chunk:int|None=None, # Samples at once, as in `fisher_information`
)->Importance: # Its `anchor` are the weights now
    "Mean over samples of `|d ||g(x)||^2 / dw|`, each sample's gradient by itself (Aljundi et al., memory aware synapses, ECCV 2018)"
    return _per_sample(model, batches, n, encoder, torch.abs, lambda sample: _wide(model(sample[0])), lambda out, sample: [2*out.detach()], chunk)


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


class PathIntegral(Stateful, Callback):
    """Watches training on the source for `SI`: what each weight contributed to the fall of the loss, `-sum g dw` over steps.

    Only where we train the source: of weights from elsewhere the path is not known. Refuses to run beside a `Penalty`, whose
    gradient is not the task's."""
    order, run_valid = 4, False
    integral, start, steps, _before, _skipped = None, None, 0, None, False
    _stateattrs, _kept = ('integral', 'start', '_before'), ('integral', 'start', 'steps')

    def __init__(self,
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        self.protected = encoder

    def _weights(self): return dict(find_encoder(self.learn.model, self.protected).named_parameters())

    def before_train(self):
        if any(isinstance(cb, Penalty) and cb.lam for cb in self.learn.cbs): raise InputError('PathIntegral needs the gradient of the task alone: train the source without penalties')
        if self.integral is None:
            self.start = {n:p.detach().clone() for n, p in self._weights().items()}
            self.integral = {n:torch.zeros_like(p, dtype=torch.float32) for n, p in self._weights().items()}

    def before_step(self):
        self._skipped, scaler = False, vars(self.learn).get('scaler')
        scale = scaler.get_scale() if scaler is not None else 1.
        self._before = {n:(p.detach().clone(), p.grad.detach().float()/scale) for n, p in self._weights().items() if p.grad is not None}

    def after_cancel_step(self): self._skipped = True

    def after_step(self):
        if self._skipped: return
        for n, p in self._weights().items():
            if n in self._before:
                w, g = self._before[n]
                self.integral[n].sub_(g*(p.detach() - w).float())
        self.steps, self._before = self.steps + 1, None

    def importance(self,
        xi:float=.1, # Damping of the division by the squared way
    )->Importance: # Held at the weights as they are now
        "`max(0, integral)/((w - w_start)^2 + xi)`"
        if self.integral is None: raise InputError('PathIntegral has seen no training: add it to the callbacks of the source fit')
        end = {n:p.detach().clone() for n, p in self._weights().items()}
        return Importance({n:self.integral[n].clamp(min=0)/((end[n] - self.start[n]).float()**2 + xi) for n in end}, end, self.steps)
