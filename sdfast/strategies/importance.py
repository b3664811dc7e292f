"""Anchors: penalties on how far the weights are from where they started, `lam/2 sum s (w - w0)^2`, and what weighs them.

`L2SP` weighs all weights alike, `EWC` by Fisher information, `MAS` by how much they move the outputs, `SI` by what they
contributed while the source was learned. lam is in one unit for all: its gradient is `lam s (w - w0)`."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastai.callback.core import Callback

from ..errors import InputError
from ..models.features import eval_mode
from ..models.surgery import find_encoder
from ..runtime.resume import Stateful
from .base import Penalty
from .persample import layers_of

__all__ = ['Importance', 'Fisher', 'fisher_information', 'empirical_fisher', 'mas_importance', 'PathIntegral']



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


class PathIntegral(Stateful, Callback):
    """Watches training on the source for `SI`: what each weight contributed to the fall of the loss, `-sum g dw` over steps.

    Only where we train the source: of weights from elsewhere the path is not known. Refuses to run beside a `Penalty`, whose
    gradient is not the task's."""
    order, run_valid = 4, False
    integral, start, steps, _before, _skipped = None, None, 0, None, False
    _stateattrs, _state = ('integral', 'start', '_before'), ('integral', 'start', 'steps')

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
