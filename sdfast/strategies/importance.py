"""The importance of each weight of an encoder: Fisher information (for `EWC`) and memory-aware synapses (for `MAS`).

Both are means over samples of a function of each sample's gradient. `PathIntegral` (for `SI`) is in `path_integral`."""
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.batches import split_batch
from ..errors import InputError
from ..models.features import eval_mode
from ..models.surgery import find_encoder
from ..runtime.progress import track
from .likelihood import Likelihood
from .persample import layers_of
from .targets import logits_of

__all__ = ['Importance', 'Fisher', 'fisher_information', 'empirical_fisher', 'mas_importance']

# Largest default number of samples to differentiate together, and the memory that they may take on a CPU, in bytes
CHUNK, MEMORY = 16, 2*2**30
FEW = 4  # samples by which it is decided what the outputs are


@dataclass(frozen=True)
class Importance:
    "The importance of each weight of an encoder, and the weights at which it was measured"
    diag: dict  # name of a parameter -> importance of each of its weights
    anchor: dict  # name of a parameter -> weights
    n: int  # number of samples in the mean; for `PathIntegral` the number of steps

    def __repr__(self)->str: return f'Importance({len(self.diag)} parameters, n={self.n})'

    @property
    def mean(self)->float:
        "Mean over all weights; `lam` times this is the penalty's average strength"
        return (sum(f.sum() for f in self.diag.values())/sum(f.numel() for f in self.diag.values())).item()

    def to(self, device:torch.device|str)->'Importance':
        "A copy on `device`"
        def moved(tensors): return {k:v.to(device) for k, v in tensors.items()}
        return Importance(moved(self.diag), moved(self.anchor), self.n)

    def normalized(self)->'Importance':
        "Scale to mean 1, so that a `lam` has the same effect for other nets, data sets and recipes"
        mean = self.mean
        if not mean > 0: raise InputError('the importance is zero everywhere: the model is certain of every sample')
        return Importance({k:v/mean for k, v in self.diag.items()}, self.anchor, self.n)

    def then(self, new:'Importance', gamma:float=1.)->'Importance':
        """Combine the importances of successive tasks, `gamma*old + new`, at the new weights (online EWC, Schwarz et
        al., ICML 2018)"""
        if self.diag.keys() != new.diag.keys():
            raise ValueError('both must be of the same encoder: their parameter names differ')
        diag = {k:gamma*self.diag[k].to(f.device) + f for k, f in new.diag.items()}
        return Importance(diag, new.anchor, self.n + new.n)


Fisher = Importance


def _single_precision(t):
    "Convert half precision to float32"
    return t if t.dtype == torch.float64 else t.float()


class _SampleSums:
    """For each weight w, the sum over samples and cotangents c of `f(d <outputs(sample), c>/dw)`.

    `cotangents(outputs, sample)` gives the c. Each sample has its own gradient, never that of a batch as a whole.
    `chunk` samples are processed together if `persample` supports the model, else one by one."""
    def __init__(self, part, f, outputs, cotangents, chunk, draw):
        self.f, self.outputs, self.cotangents = f, outputs, cotangents
        self.draw = draw  # random generator of `cotangents`, or `None`
        self.weights = dict(part.named_parameters())
        self.diag = {k:torch.zeros_like(_single_precision(p), requires_grad=False) for k, p in self.weights.items()}
        self.layers = layers_of(part) if chunk > 1 else None

    def add(self, batch):
        "Add the samples of `batch`, a list of tensors with the batch first"
        sums = self._together(batch)
        if sums is None:
            for i in range(len(batch[0])): self._alone([t[i:i + 1] for t in batch])
            return
        for k, p in self.weights.items():
            if id(p) in sums: self.diag[k].add_(sums[id(p)])

    def _together(self, batch):
        "The sums by id of the parameter, or `None` if samples must be processed one by one"
        if self.layers is None or not (len(batch[0]) > 1 or self.layers.verified): return None
        state = None if self.draw is None else self.draw.get_state()
        sums = self.layers.sums(self.outputs, self.cotangents, batch, self.f)
        if sums is None:
            self.layers = None
            if self.draw is not None: self.draw.set_state(state)  # repeat the same draws, sample by sample
        return sums

    def _alone(self, sample):
        out = self.outputs(sample)
        cotangents = list(self.cotangents(out, sample))
        weights = list(self.weights.values())
        for i, c in enumerate(cotangents):
            more = i + 1 < len(cotangents)
            grads = torch.autograd.grad(out, weights, c, allow_unused=True, retain_graph=more)
            for d, g in zip(self.diag.values(), grads):
                if g is not None: d.add_(self.f(_single_precision(g)))


def _fitting_chunk(outputs, sample, weights):
    """How many samples fit into `MEMORY`, by the bytes that one of them keeps for the backward pass.

    What the machine has free does not count, as it would change the rounding from one run to the next."""
    if weights[0].device.type != 'cpu': return CHUNK
    own = {p.untyped_storage().data_ptr() for p in weights}
    kept = {}

    def count(t):
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t): out = outputs(sample)
    needed = 1.5*sum(n for address, n in kept.items() if address not in own)
    del out  # until now it held what was counted
    return int(max(1, min(CHUNK, MEMORY//max(1, needed))))


def _check_norms(model):
    "Refuse batch norm that mixes the samples of a batch in eval mode, too"
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and m.running_mean is None:
            raise InputError(f'batch norm {name!r} has no running statistics, so that a sample has no gradient of its '
                             'own: build the model with track_running_stats=True, or with group norm')


def _tensors(batch, device):
    if isinstance(batch, Mapping): batch = [t for t in split_batch(batch) if t is not None]
    batch = batch if isinstance(batch, (tuple, list)) else [batch]
    if all(map(torch.is_tensor, batch)): return [t.as_subclass(torch.Tensor).to(device) for t in batch]
    got = ', '.join(type(t).__name__ for t in batch)
    raise InputError(f'the importance of weights is taken from batches of tensors, (x, y) or x, not of ({got})')


def _per_sample(model, batches, n, encoder, f, outputs, cotangents, chunk, draw=None, look=None):
    """`Importance` as the mean of `_SampleSums` over samples, in eval mode.

    `look` is called with each batch and its first samples. The model's buffers, gradients and modes and the random
    state do not change."""
    if batches is None:
        raise InputError('the importance of weights is taken from samples of the source task, or of the target: '
                         'pass a loader of them, not None')
    if chunk is not None and chunk < 1: raise ValueError(f'chunk must be at least 1, not {chunk}')
    _check_norms(model)
    part = find_encoder(model, encoder)
    weights = list(part.parameters())
    device = weights[0].device
    sums, seen = None, 0

    frozen = [p for p in weights if not p.requires_grad]
    for p in frozen: p.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad():
            for batch in track(batches, 'measuring the importance of weights'):
                batch = _tensors(batch, device)
                if n is not None: batch = [t[:n - seen] for t in batch]
                if look is not None: look(batch, [t[:chunk or FEW] for t in batch])
                if sums is None:
                    if chunk is None: chunk = _fitting_chunk(outputs, [t[:1].clone() for t in batch], weights)
                    sums = _SampleSums(part, f, outputs, cotangents, chunk, draw)
                for some in zip(*(t.split(chunk) for t in batch)):
                    sums.add(list(some))
                    seen += len(some[0])
                if seen == n: break
    finally:
        for p in frozen: p.requires_grad_(False)

    if sums is None: sums = _SampleSums(part, f, outputs, cotangents, 1, draw)  # other processes may have samples
    if dist.is_available() and dist.is_initialized():  # each process has a part of the samples
        count = torch.tensor(float(seen), device=device)
        for t in (*sums.diag.values(), count): dist.all_reduce(t)
        seen = int(count)
    if not seen: raise InputError('there are no samples to take the importance from')
    anchor = {k:p.detach().clone() for k, p in part.named_parameters()}
    return Importance({k:d/seen for k, d in sums.diag.items()}, anchor, seen)


def _logits(model, *inputs):
    # copies, as samples are passed repeatedly and a model may change its input in place
    out = logits_of(model(*(x.clone() for x in inputs)), 'Fisher information')
    if out.ndim != 2:
        raise InputError('Fisher information is of a model with a head, which returns logits (B, classes), '
                         f'not {tuple(out.shape)}: pass Sequential(encoder, head), with a probe as head if there is '
                         'none (probe_head), or loss=FUNCTION, for instance a pretext loss')
    return _single_precision(out)


def fisher_information(
    model:torch.nn.Module, # The whole model with a head: the source's, or one fitted to the target
    batches:Iterable, # Yields `(x, y)`, or `x` if no label is needed; a `DataLoader`, best without augmentation
    n:int|None=None, # Number of samples, at least 500 for a good estimate; `None`: all
    labels:str='exact', # 'exact': all classes by probability, 'sample': one drawn class, 'empirical': the true class
    encoder:str|Callable|None=None, # Which part of the model the weights are from, see `find_encoder`
    loss:Callable|None=None, # Instead of `labels`: function `(model, *sample)` that returns the loss of one sample
    seed:int=0, # Random seed for 'sample'
    chunk:int|None=None, # Number of samples to process together; `None`: 16, on a CPU fewer if they take over 2 GiB
    kind:str|None=None, # What the outputs are, one of `TARGET_KINDS`; `None`: by the labels and the number of outputs
)->Importance: # Its `anchor` is the current weights
    """Diagonal Fisher information: mean over samples of `E_c (d -log p(c|x) / dw)^2` for each weight of the encoder.

    p is a softmax over classes, or a product of independent sigmoids for 'multi-label' and 'binary', or a normal
    distribution with variance 1 around the outputs for 'regression'. Raises `InputError` where labels and outputs leave
    open which, and for a model whose batch norm has no running statistics: its samples have no gradient of their own.

    The gradient of each single sample is squared, in eval mode (on errors of other implementations see van de Ven 2025,
    arXiv 2502.11756). 'exact' takes one backward pass per class. Under torch.distributed the mean is over the samples
    of all processes. Samples are processed together if all weights of the encoder are in convolutions, linear layers
    and norms, else one by one; `chunk` samples need about the memory of a training step with `1.5*chunk` samples."""
    if labels not in ('exact', 'sample', 'empirical'):
        raise ValueError(f"labels must be 'exact', 'sample' or 'empirical', not {labels!r}")
    if loss is not None:
        def of_loss(sample): return loss(model, *sample)
        def one(out, sample): return [torch.ones_like(out)]
        return _per_sample(model, batches, n, encoder, torch.square, of_loss, one, chunk=1)
    draw = torch.Generator().manual_seed(seed)
    likelihood = Likelihood(labels, kind, draw)

    def inputs_of(sample):
        if labels != 'empirical': return sample[:1]
        if len(sample) > 1: return sample[:-1]
        raise InputError("labels='empirical' needs labels: batches of (x, y), not of x alone")

    def outputs(sample):
        return likelihood.outputs(_logits(model, *inputs_of(sample)))

    def cotangents(out, sample): return likelihood.cotangents(out.detach(), sample[-1])
    def look(batch, some): likelihood.look(lambda: _logits(model, *inputs_of(some)).detach(), batch)
    return _per_sample(model, batches, n, encoder, torch.square, outputs, cotangents, chunk, draw, look)


def empirical_fisher(
    model:torch.nn.Module, # As for `fisher_information`
    batches:Iterable, # Yields `(x, y)`
    n:int|None=None, # Number of samples; `None`: all
    encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    chunk:int|None=None, # Number of samples to process together
    kind:str|None=None, # What the outputs are, as for `fisher_information`
)->Importance: # Its `anchor` is the current weights
    "`fisher_information` with the true labels: one backward pass"
    return fisher_information(model, batches, n, 'empirical', encoder, chunk=chunk, kind=kind)


def mas_importance(
    model:torch.nn.Module, # The whole model with the source's head, or any whose outputs are to stay the same
    batches:Iterable, # Yields `(x, y)` or `x`: labels are not used
    n:int|None=None, # Number of samples; `None`: all
    encoder:str|Callable|None=None, # Which part of the model the weights are from, see `find_encoder`
    chunk:int|None=None, # Number of samples to process together, as in `fisher_information`
)->Importance: # Its `anchor` is the current weights
    """Mean over samples of `|d ||g(x)||^2 / dw|`, with each sample's own gradient (memory-aware synapses, Aljundi et
    al., ECCV 2018)"""
    def outputs(sample): return _single_precision(logits_of(model(sample[0].clone()), 'the importance of MAS'))
    def cotangents(out, sample): return [2*out.detach()]
    return _per_sample(model, batches, n, encoder, torch.abs, outputs, cotangents, chunk)
