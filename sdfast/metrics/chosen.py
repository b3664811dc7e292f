"Settings of probes that are chosen on held-out clips, never on those that are measured."
from collections.abc import Callable, Sequence

import torch

from .features import fit_probe, knn, probe_accuracy

__all__ = ['choose_strength', 'choose_neighbours']

STRENGTHS = (1e-4, 1e-3, 1e-2, .1, 1., 10.)  # values of C, the inverse of the L2 penalty's weight
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


def choose_strength(
    x:torch.Tensor, # Train features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
    xv:torch.Tensor, # Held-out features `(M, F)`
    yv:torch.Tensor, # Their labels `(M,)`
    strengths:Sequence[float]=STRENGTHS, # Values of C to choose from
)->float: # For `linear_probe`
    "Choose the regularisation of a linear probe by its accuracy on held-out clips; of equal ones the strongest"
    return _best(sorted(strengths), lambda c: probe_accuracy(fit_probe(x, y, c), xv, yv))


def choose_neighbours(
    x:torch.Tensor, # Train features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
    xv:torch.Tensor, # Held-out features `(M, F)`
    yv:torch.Tensor, # Their labels `(M,)`
    ks:Sequence[int]=NEIGHBOURS, # Numbers of neighbours to choose from; those above N are left out
)->int: # For `knn`
    "Choose the number of neighbours by the accuracy on held-out clips; of equal ones the smallest"
    return _best(sorted({min(k, len(x)) for k in ks}), lambda k: knn(x, y, xv, yv, k))


def _best(values:list, accuracy:Callable): return max(values, key=accuracy)  # the first of equal ones
