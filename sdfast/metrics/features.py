"Measures of features and of weights: similarity, drift, probes, neighbours, retrieval, loss barrier."
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from torch import nn

from ..errors import InputError
from ..models.averages import as_real
from ..models.labels import clip_labels
from ..models.probes import fit_probe, probe_head

__all__ = ['linear_cka', 'procrustes', 'drift', 'weight_distance', 'linear_probe', 'probe_head', 'knn', 'retrieval',
           'loss_barrier']

RETRIEVAL_AT = (1, 5, 10, 20, 50)  # values of k in R@k
# CKA of fewer clips is refused: that of unrelated features has a standard deviation of .10 at 16 clips, .17 at 10
MIN_CKA_CLIPS = 16


def linear_cka(
    x:torch.Tensor, # Features `(N, F)`
    y:torch.Tensor, # Features of the same N samples `(N, G)`
)->float: # At most 1, exactly 1 for equal features; about 0 for unrelated ones, so it may be below 0
    """Linear centred kernel alignment (Kornblith et al., ICML 2019) by the unbiased estimator of HSIC.

    HSIC_1 (Song et al., JMLR 2012) is unbiased for any number of samples, as in Nguyen et al., ICLR 2021. The biased
    estimator of the first CKA paper is .99 for unrelated features of 18 samples and 1280 dimensions. For unrelated
    features of many dimensions its standard deviation is `(N(N - 3)/2)**-.5`: .10 for 16 samples, .05 for 32, .01 for
    140. Raises `InputError` for fewer than 16; nan if one of the two does not
    vary, or varies in one sample only, and they differ."""
    check_cka_input(x, y)
    if torch.equal(x, y): return 1.
    x, y = (f.double() - f.double().mean(0) for f in (x, y))
    norm = (_hsic(x, x)*_hsic(y, y)).sqrt()
    return max(-1., min(1., (_hsic(x, y)/norm).item())) if norm > 0 else float('nan')


def check_cka_input(x:torch.Tensor, y:torch.Tensor)->None:
    "Raise `InputError` unless both are features `(N, F)` of the same samples, enough for CKA to say anything"
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f'CKA compares features (N, F) and (N, G) of the same N clips, not {tuple(x.shape)} and '
                         f'{tuple(y.shape)}')
    if len(x) < MIN_CKA_CLIPS:
        raise InputError(f'CKA needs at least {MIN_CKA_CLIPS} clips, not {len(x)}: with fewer, chance alone makes '
                         'unrelated features look similar; use more clips')


def _hsic(x, y):
    """`N(N - 3)` times HSIC_1 of centred features.

    It is the sum of products of off-diagonal entries of the Gram matrices, centred without bias. The row sums of Gram
    matrices of centred features are 0, so only norms of samples remain to be subtracted."""
    n = len(x)
    k, l = x.square().sum(1), y.square().sum(1)  # diagonals of the Gram matrices
    # the samples' Gram matrices and the features' covariances have the same product: use the smaller ones
    by_sample = n < max(x.shape[1], y.shape[1])
    product = ((x @ x.T)*(y @ y.T)).sum() if by_sample else (x.T @ y).square().sum()
    hsic = product - n/(n - 2)*(k @ l) + k.sum()*l.sum()/((n - 1)*(n - 2))
    # what is left of equal numbers is rounding, as where all samples but one are the same
    return torch.where(hsic.abs() > 1e-12*k.norm()*l.norm()*n, hsic, torch.zeros_like(hsic))


def procrustes(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the same samples by the untouched encoder, `(N, F)`
)->float: # Between 0 and 2; exactly 0 for equal features
    """Orthogonal Procrustes distance `min_Q ||x Q - ref||^2` of centred features, each scaled to norm 1 (Ding et al.,
    NeurIPS 2021).

    It is the part of the difference that no rotation explains; nan if one is constant."""
    if torch.equal(x, ref): return 0.  # with the singular values below it would be about 1e-16
    x, ref = (f.double() - f.double().mean(0) for f in (x, ref))
    norm = x.norm()*ref.norm()
    if not 0 < norm < float('inf'): return float('nan')
    return max(0., (2 - 2*torch.linalg.svdvals(x.T @ ref).sum()/norm).item())


def drift(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Features of the untouched encoder
)->float: # 0 for equal features
    "How far features moved, relative to their size: `||x - ref|| / ||ref||`"
    if torch.equal(x, ref): return 0.
    return ((x.double() - ref.double()).norm()/ref.double().norm()).item()


def weight_distance(
    weights:dict, # Parameters by name
    ref:dict, # Parameters of the untouched encoder
)->float: # 0 for equal weights; nan if names differ, as with adapters
    "How far weights moved, relative to their size: `||w - ref|| / ||ref||`, without buffers"
    if not ref or not ref.keys() <= weights.keys(): return float('nan')
    def real(w): return as_real(w.detach()).cpu().double()
    moved = sum((real(weights[k]) - real(r)).square().sum() for k, r in ref.items())
    if moved == 0: return 0.
    size = sum(real(r).square().sum() for r in ref.values())
    return (moved.sqrt()/size.sqrt()).item()


def linear_probe(
    x:torch.Tensor, # Train features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
    xt:torch.Tensor, # Test features `(M, F)`
    yt:torch.Tensor, # Their labels `(M,)`
    C:float=.1, # Inverse of the L2 penalty's weight; `choose_strength` chooses it on held-out clips
)->float: # Accuracy, from 0 to 1
    """Test accuracy of a logistic regression on standardised train features.

    At most 1000 steps of L-BFGS; deterministic. Raises `InputError` for fewer than two classes, `FloatingPointError`
    for features that are not finite."""
    return probe_accuracy(fit_probe(x, y, C), xt, yt)


def probe_accuracy(
    probe:Pipeline, # From `fit_probe`
    x:torch.Tensor, # Test features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
)->float: # From 0 to 1
    "Accuracy of a probe. Warns of labels that it has never seen"
    y = clip_labels(y, 'test labels', len(x))
    warn_of_unseen(probe.classes_, y)
    return float(probe.score(x.numpy(), y.numpy()))


def warn_of_unseen(
    classes:Any, # Class numbers of the train clips, as a vector
    y:torch.Tensor, # Test labels
)->None:
    "Warn of test labels that a probe has never seen"
    unseen = sorted(set(y.tolist()) - set(classes.tolist()))
    if not unseen: return
    warnings.warn(f'the probe cannot get clips of class {unseen[0]} right ({len(unseen)} such classes): no train clip '
                  'is of this class; number the classes of train and test alike')


def knn(
    x:torch.Tensor, # Train features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
    xt:torch.Tensor, # Test features `(M, F)`
    yt:torch.Tensor, # Their labels `(M,)`
    k:int=5, # Number of neighbours that vote, at most N; `choose_neighbours` chooses it on held-out clips
)->float: # Accuracy, from 0 to 1
    "Test accuracy of the majority vote of the `k` train clips with the largest cosine similarity"
    return right_neighbours(x, y, xt, yt, k).double().mean().item()


def right_neighbours(
    x:torch.Tensor, # As for `knn`
    y:torch.Tensor, # Labels of the train clips
    xt:torch.Tensor, # Features of the test clips
    yt:torch.Tensor, # Their labels
    k:int=5, # Number of neighbours that vote, at most N
)->torch.Tensor: # `(M,)`
    "Which test clips the vote of the nearest train clips gets right, see `knn`"
    y, yt = clip_labels(y, 'labels', len(x)), clip_labels(yt, 'test labels', len(xt))
    model = KNeighborsClassifier(min(k, len(x)), metric='cosine').fit(x.numpy(), y.numpy())
    return torch.tensor(model.predict(xt.numpy()) == yt.numpy())


def retrieval(
    x:torch.Tensor, # Features `(N, F)` of the gallery, the train clips
    y:torch.Tensor, # Their labels `(N,)`
    xt:torch.Tensor, # Features `(M, F)` of the queries, the test clips
    yt:torch.Tensor, # Their labels `(M,)`
    at:Sequence[int]=RETRIEVAL_AT, # Values of k
)->dict[int, float]: # k -> R@k, for each k up to the size of the gallery
    "R@k: share of queries with a clip of their class among the k most similar of the gallery (Xu et al., CVPR 2019)"
    y, yt = clip_labels(y, 'labels', len(x)), clip_labels(yt, 'test labels', len(xt))
    x, xt = (nn.functional.normalize(f.double(), dim=1) for f in (x, xt))
    near = (xt @ x.T).topk(min(max(at), len(x))).indices
    first = (y[near] == yt[:, None]).cumsum(1) > 0
    return {k:first[:, k - 1].double().mean().item() for k in at if k <= len(x)}


def loss_barrier(
    losses:Sequence[float], # Losses at points on the straight line between two sets of weights
    at:Sequence[float], # The positions of the points, from 0 to 1
)->float: # 0 if no loss is above the linear interpolation of the losses at both ends
    "Largest excess of the loss over its linear interpolation (Frankle et al., ICML 2020); nan if a loss is not finite"
    if not np.isfinite(losses).all(): return float('nan')
    first, last = losses[0], losses[-1]
    return max(0., *(loss - (first + a*(last - first)) for loss, a in zip(losses, at)))
