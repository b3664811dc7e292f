"Linear probes: classifiers that are fitted on the features of an encoder, which stays as it is."
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from ..errors import InputError
from .labels import clip_labels

__all__ = ['probe_head']


def fit_probe(
    x:torch.Tensor, # Train features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`
    C:float=.1, # Inverse of the L2 penalty's weight
)->Pipeline: # Standardisation and logistic regression
    "The probe of `metrics.linear_probe`, fitted"
    y = clip_labels(y, 'labels of the probe', len(x))
    n_classes = len(y.unique())
    if n_classes < 2: raise InputError(f'a probe needs train clips of at least two classes, not {n_classes}')
    if not torch.isfinite(x).all(): raise FloatingPointError('the features are not finite')
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=C))
    # matrices are small: more threads would be slower, and could change the last digits
    with threadpool_limits(1): return probe.fit(x.numpy(), y.numpy())


def probe_head(
    x:torch.Tensor, # Features `(N, F)`
    y:torch.Tensor, # Their labels `(N,)`, with every class
    n_classes:int, # Number of classes of the head
)->nn.Linear: # Maps F features to `n_classes` logits
    "Fit a linear probe and return it as a layer, a head for an encoder. Raises `InputError` if a class is missing"
    scale, probe = fit_probe(x, y)
    missing = sorted(set(range(n_classes)) - set(probe.classes_.tolist()))
    if missing: raise InputError(f'train features have no class {missing[0]} of 0 to {n_classes - 1}')
    if len(probe.classes_) != n_classes:
        raise InputError(f'train features have {len(probe.classes_)} classes, not {n_classes}')
    w, b = torch.tensor(probe.coef_), torch.tensor(probe.intercept_)
    if n_classes == 2:  # scikit-learn keeps one row for two classes
        w, b = torch.cat([-w, w])/2, torch.cat([-b, b])/2
    w = w/torch.tensor(scale.scale_)
    head = nn.Linear(x.shape[1], n_classes)
    with torch.no_grad():
        head.weight.copy_(w)
        head.bias.copy_(b - w @ torch.tensor(scale.mean_))
    return head
