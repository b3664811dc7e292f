"""Ways to fine-tune that work on what comes out of the network, or on how it normalises: batch spectral shrinkage, stochastic
normalisation, Co-Tuning with the source task's head, and smoothness against noise (R3F)."""
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import Datasets, test_set
from fastai.torch_core import get_model, no_random
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..models.features import extract
from ..models.surgery import find_encoder, keep_buffers
from .base import Columns, FeaturePenalty, Penalty, Recorder
from .mixins import Auxiliary

__all__ = ['bss', 'BSS', 'stoch_norm', 'plain_norm', 'StochNorm', 'category_relation', 'CoTuning', 'sym_kl', 'R3F']



@contextmanager
def unwatched(model:nn.Module)->Iterator[nn.Module]:
    "A forward pass inside adds nothing to what penalties collect of the main one"
    watches = [h for m in model.modules() for h in m._forward_hooks.values() if isinstance(h, Recorder)]
    counts = [len(w.calls) for w in watches]
    try: yield model
    finally:
        for w, n in zip(watches, counts): del w.calls[n:]


def bss(
    features:torch.Tensor, # `(B, F)`; maps `(B, F, ...)` are averaged over the trailing dimensions
    k:int=1, # How many of the smallest singular values
)->torch.Tensor: # Scalar, float32
    """Sum of the squares of the `k` smallest singular values of the batch's feature matrix (Chen et al., NeurIPS 2019).

    The matrix has min(B, F) of them: of a batch smaller than the width of the features, the smallest of B values are meant."""
    if features.ndim < 2: raise InputError(f'features must be (B, F) or maps (B, F, ...), not of shape {tuple(features.shape)}')
    f = features.float()
    if f.ndim > 2: f = f.flatten(2).mean(2)
    # LAPACK raises for what is not finite; the task loss shows it anyway, to whoever handles it
    return torch.linalg.svdvals(f.nan_to_num(0., 0., 0.))[-k:].square().sum()


class BSS(FeaturePenalty):
    """`lam` times `bss` of the encoder's features: their weakest directions, which transfer badly, shrink (Chen et al., NeurIPS 2019).

    A property of the batch, not a mean over samples: it changes with the batch size, and the micro-batches of
    `GradientAccumulation` are batches of their own. The original has lam=.001, k=1 for batches of 48 images, 2048 features wide."""
    name = 'bss'

    def __init__(self,
        lam:float, # Weight of the term
        k:int=1, # How many of the smallest singular values
        encoder:str|Callable|None=None, # Which part of the model gives the features, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if not isinstance(k, int) or k < 1: raise InputError(f'k must be a whole number of singular values, at least 1, not {k!r}')
        self.k = k

    def term(self)->torch.Tensor:
        calls = self.calls()
        return sum(bss(out, self.k) for _, _, out in calls)/len(calls)


class _StochNorm:
    "Before a batch norm's class in its bases: normalises each channel by moving statistics with probability `p` while it trains"
    p = .5

    def forward(self, x):
        if not (self.training and self.track_running_stats and self.running_mean is not None): return super().forward(x)
        mean, var = self.running_mean, self.running_var
        # from before this batch, as in the original; copies, as the backward pass reads them after they have moved
        self.running_mean, self.running_var, self.training = mean.clone(), var.clone(), False
        try: moving = super().forward(x)
        finally: self.running_mean, self.running_var, self.training = mean, var, True
        batch = super().forward(x)
        chosen = torch.rand(len(mean), device=x.device) < self.p
        return torch.where(chosen.view(-1, *[1]*(x.ndim - 2)), moving, batch)

    def __reduce_ex__(self, protocol):
        "Copied, pickled or exported, it is the plain batch norm"
        rebuild, (_, *args), *rest = super().__reduce_ex__(1)  # later protocols insist on the class that is there
        return rebuild, (type(self).__bases__[1], *args), *rest


def _check_p(p):
    if not 0 <= p <= 1: raise InputError(f'p must be a probability between 0 and 1, not {p}')


def stoch_norm(
    module:nn.Module, # Its batch norms of 1 to 3 dimensions, and kinds of them such as timm's, change in place
    p:float=.5, # Probability that a channel is normalised by its moving statistics instead of the batch's
)->nn.Module: # The same module
    """Stochastic normalisation (Kou et al., NeurIPS 2020) until `plain_norm`: `y = w*((1-s)*x_batch + s*x_moving) + b`, s ~ B(p) per channel.

    Moving statistics are updated as ever, the state dict keeps its keys, and eval mode is plain batch norm. Here `p=0` is
    plain and draws nothing; the paper's code counts the other way round."""
    _check_p(p)
    plain_norm(module)
    for m in module.modules() if p > 0 else ():
        if isinstance(m, _BatchNorm): m.__class__ = type(f'Stoch{type(m).__name__}', (_StochNorm, type(m)), dict(p=p))
    return module


def plain_norm(
    module:nn.Module, # Changed in place
)->nn.Module: # The same module
    "Take `stoch_norm` back"
    for m in module.modules():
        if isinstance(m, _StochNorm): m.__class__ = type(m).__bases__[1]
    return module


class StochNorm(Columns, Callback):
    """`stoch_norm` on the encoder while it trains (Kou et al., NeurIPS 2020).

    Batch norm that is frozen or keeps no moving statistics, as a teacher's, stays plain, and so does every copy or export
    of the model. The encoder itself is plain again when an epoch has trained, or the fit ends or fails."""

    def __init__(self,
        p:float=.5, # Probability that a channel is normalised by its moving statistics instead of the batch's; 0 is plain fine-tuning
        encoder:str|Callable|None=None, # Which part of the model to normalise so, see `find_encoder`
    ):
        _check_p(p)
        self.p, self.protected = p, encoder

    def before_fit(self):
        if self.starts(): self.show({})  # no columns, but `leave` after an exception

    def before_train(self): stoch_norm(find_encoder(self.learn.model, self.protected), self.p)
    def after_train(self): plain_norm(self.learn.model)

    def leave(self)->None:
        plain_norm(self.learn.model)
        super().leave()


def category_relation(
    probs:torch.Tensor, # What the source head says of the target task's clips, `(N, n_source)`, rows sum to 1
    y:torch.Tensor, # Their target classes `(N,)`
    n_target:int, # Number of target classes
    how:str='direct', # 'direct' or 'reverse'
)->torch.Tensor: # `(n_target, n_source)` float32, rows sum to 1
    """p(y_s|y_t) of Co-Tuning (You et al., NeurIPS 2020).

    'direct': the mean of `probs` over each target class. 'reverse': p(y_t|y_s) by logistic regression from `probs` to `y`,
    without intercept, read off at each source class, then Bayes' rule with the mean of `probs` as p(y_s). How far it is
    regularised is chosen by the log-likelihood in cross-validation, which stands in for the original's calibration.
    `InputError` for a target class without a clip."""
    probs, y = probs.detach().double().cpu(), y.cpu()
    if how not in ('direct', 'reverse'): raise InputError(f"how must be 'direct' or 'reverse', not {how!r}")
    if probs.ndim != 2 or y.shape != probs.shape[:1] or y.is_floating_point():
        raise InputError(f'expected probabilities (N, n_source) and a class number for each of the N clips, not {tuple(probs.shape)} and '
                         f'{tuple(y.shape)} of {y.dtype}')
    if (probs < 0).any() or not torch.allclose(probs.sum(1), torch.ones(len(probs)).double(), atol=1e-2):
        raise InputError('probs must be probabilities, whose rows sum to 1: pass logits.softmax(1)')
    count = torch.bincount(y, minlength=n_target)
    if len(count) > n_target: raise InputError(f'class number {y.max()} is not one of {n_target} classes')
    if empty := (count == 0).nonzero().flatten().tolist(): raise InputError(f'target classes {empty} have no clip to relate them to source classes')
    if how == 'direct': return (torch.zeros(n_target, probs.shape[1]).double().index_add_(0, y, probs)/count[:, None]).float()
    x, y = probs.numpy(), y.numpy()
    def fresh(c): return LogisticRegression(C=c, fit_intercept=False, max_iter=1000)
    folds = min(5, int(count.min()))
    def quality(c): return cross_val_score(fresh(c), x, y, cv=folds, scoring='neg_log_loss').mean()
    with threadpool_limits(1):
        fitted = fresh(max(np.logspace(-2, 4, 7), key=quality) if folds > 1 else 1.).fit(x, y)
        joint = fitted.predict_proba(np.eye(x.shape[1])).T*x.mean(0)
    return torch.from_numpy(joint/joint.sum(1, keepdims=True)).float()


class _SourceProbs(nn.Module):
    "From a batch of the model to what a head on its encoder's features says of it: the encoder sees what the model hands on to it"
    def __init__(self, model, encoder, head):
        super().__init__()
        self.model, self.encoder, self.head = model, encoder, head

    def forward(self, x):
        seen = []
        handle = self.encoder.register_forward_hook(lambda m, args, out: seen.append(out))
        try:
            with unwatched(self.model): self.model(x)
        finally: handle.remove()
        return sum(self.head(f).float().softmax(1) for f in seen)/len(seen)


def _unaugmented(dls):
    "All train items in their order, with the transforms of validation where fastai knows of them"
    train, valid = (vars(dl).get('dl', dl) for dl in (dls.train, dls.valid))  # out of a `DistributedDL`
    if isinstance(train.dataset, Datasets):
        return valid.new(test_set(train.dataset, train.dataset.items, with_labels=True), shuffle=False, drop_last=False)
    return train.new(shuffle=False, drop_last=False) if hasattr(train, 'new') else train


class CoTuning(Auxiliary, FeaturePenalty):
    """`lam*CE(source head(features), p(y_s|y_t))`: the source task's head learns on, from soft source labels (You et al., NeurIPS 2020).

    The head is copied and trained beside the model. p(y_s|y_t) is estimated once, from the encoder and head as they stand
    when the first real fit begins to train (`lr_find` is none), over the train items without augmentation. Where that
    moment has passed, `InputError`."""
    name = 'co_tuning'
    head, relation, _before = None, None, None
    _stateattrs, _state = FeaturePenalty._stateattrs + Auxiliary._auxattrs + ('head', 'relation', '_before'), ('relation',)

    def __init__(self,
        lam:float=2.3, # Weight of the cross-entropy
        head:nn.Module=None, # The source task's head, from the encoder's features to its logits; not changed
        relation:torch.Tensor=None, # p(y_s|y_t) `(n_target, n_source)`; `None`: estimated
        encoder:str|Callable|None=None, # Which part of the model gives the features, see `find_encoder`
        how:str='direct', # How it is estimated, see `category_relation`
    ):
        super().__init__(lam, encoder)
        self.head, self.how = head, how
        if how not in ('direct', 'reverse'): raise InputError(f"how must be 'direct' or 'reverse', not {how!r}")
        self._check_head()
        if relation is not None:
            self.relation = torch.as_tensor(relation).detach().float()
            if self.relation.ndim != 2 or (self.relation < 0).any() or (self.relation.sum(1) - 1).abs().max() > 1e-2:
                raise InputError('relation must be a matrix p(y_s|y_t) of (target, source) classes whose rows sum to 1, see category_relation; '
                                 f'this one is {tuple(self.relation.shape)}')

    def _check_head(self):
        if not isinstance(self.head, nn.Module):
            raise InputError(f"CoTuning needs the source task's head, a module from features to source logits, not {self.head!r} (an exported learner does not carry "
                             'it). Pass head=MODEL[1] of the source task, or a probe: sdfast.forgetting.probe_head(*extract(encoder, source_dl), n_classes)')

    def before_fit(self):
        super().before_fit()
        if hasattr(self.learn, 'lr_finder'): self._before = (self.relation,)  # put back after it, as the model's weights are

    def begin(self)->None:
        self._check_head()
        if self.aux is None: self.set_auxiliary(lambda: deepcopy(self.head).requires_grad_(True))
        if self.relation is None: self.relation = self._relate()
        if len(self.relation) < self._n_target():
            raise InputError(f'relation has rows for {len(self.relation)} target classes, the data have {self._n_target()}; see category_relation')
        self.relation = self.relation.to(next(self.aux.parameters()).device)

    def _n_target(self): return getattr(self.learn.dls, 'c', 0)  # 0 where fastai does not know

    def _relate(self):
        if self.learn.epoch > 0:
            raise InputError(f'CoTuning: a fit that starts at epoch {self.learn.epoch} is too late to relate the classes by the untouched encoder. '
                             'Pass relation=MATRIX, see category_relation')
        with no_random():  # new loaders draw from every random state
            probs, y = extract(_SourceProbs(get_model(self.learn.model), self.module(), self.aux), _unaugmented(self.learn.dls))
        if dist.is_available() and dist.is_initialized() and 'dl' not in vars(self.learn.dls.train):  # each process has its own clips
            parts = [None]*dist.get_world_size()
            dist.all_gather_object(parts, (probs, y))
            probs, y = (torch.cat(t) for t in zip(*parts))
        return category_relation(probs, y, max(self._n_target(), int(y.max()) + 1), self.how)

    def term(self)->torch.Tensor:
        calls, want = self.calls(), self.relation[self.learn.yb[0].as_subclass(torch.Tensor)]
        said = [self.aux(out).float() for _, _, out in calls]
        if said[0].shape != want.shape:
            raise InputError(f'CoTuning: the head returns {tuple(said[0].shape)} where the relation has {tuple(want.shape)}; both must be of the '
                             'same source classes')
        return sum(F.cross_entropy(s, want) for s in said)/len(said)

    def leave(self)->None:
        if self._before is not None: (self.relation,), self._before = self._before, None
        super().leave()


def sym_kl(
    logits_p:torch.Tensor, # `(..., C)`
    logits_q:torch.Tensor, # Of the same shape
)->torch.Tensor: # Scalar, float32
    "KL(p||q) + KL(q||p) `= sum (p - q)(log p - log q)` over classes, mean over samples; the product loses no digits where p and q are close"
    p, q = logits_p.float().log_softmax(-1), logits_q.float().log_softmax(-1)
    return ((p.exp() - q.exp())*(p - q)).sum(-1).mean()


class R3F(Penalty):
    """`lam*sym_kl(model(x), model(x + noise))` (R3F, Aghajanyan et al., 2020, arXiv 2008.03156), noise on the pixels of the normalised clip.

    Gradients go through both passes. The second normalises by its own batch, moves no buffers, is seen by no other penalty
    and draws its noise (from the seed and the epoch) and dropout without touching the random state."""
    name = 'r3f'
    _noise = None
    _stateattrs = Penalty._stateattrs + ('_noise',)

    def __init__(self,
        lam:float=1., # Weight of the divergence
        eps:float=1e-5, # Largest noise ('uniform') or its standard deviation ('normal'); 16-bit autocast rounds small noise away
        noise:str='uniform', # 'uniform' or 'normal'
        encoder:str|Callable|None=None, # As for every strategy; the divergence is that of the whole model's outputs
    ):
        super().__init__(lam, encoder)
        if not eps >= 0: raise InputError(f'eps must be a number of at least 0, not {eps}')
        if noise not in ('uniform', 'normal'): raise InputError(f"noise must be 'uniform' or 'normal', not {noise!r}")
        self.eps, self.noise = eps, noise

    def begin(self)->None:
        device = next(self.learn.model.parameters()).device
        self._noise = torch.Generator(device).manual_seed((torch.initial_seed() + self.learn.epoch) % 2**63)

    def noisy(self, x:torch.Tensor)->torch.Tensor:
        "`x` with noise; integers, such as token numbers, as they are"
        if not x.is_floating_point(): return x
        if self.noise == 'normal': return x + self.eps*torch.randn(x.shape, generator=self._noise, device=x.device, dtype=x.dtype)
        return x + self.eps*(2*torch.rand(x.shape, generator=self._noise, device=x.device, dtype=x.dtype) - 1)

    def term(self)->torch.Tensor:
        model, pred, device = get_model(self.learn.model), self.learn.pred, self.learn.loss_grad.device
        if torch.is_autocast_enabled(device.type) and self.eps < torch.finfo(dtype := torch.get_autocast_dtype(device.type)).eps and not self._warned:
            warnings.warn(f'R3F: noise of eps={self.eps} is rounded away by autocast to {dtype}: use a larger eps or float32')
            self._warned = True
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []), keep_buffers(model), unwatched(model):
            noised = model(*(self.noisy(x) for x in self.learn.xb))
        if not (torch.is_tensor(pred) and torch.is_tensor(noised) and pred.shape == noised.shape):
            got = [tuple(o.shape) if torch.is_tensor(o) else type(o).__name__ for o in (pred, noised)]
            raise InputError(f'R3F needs a model that returns logits (B, classes), alike for the loss and in a second pass; the loss was given {got[0]}, '
                             f'the second pass returned {got[1]}')
        return sym_kl(noised, pred)
    _warned = False
