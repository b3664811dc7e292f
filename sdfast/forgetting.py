"""What fine-tuning kept of the source task, measured against the untouched model.

Everything is computed in eval mode on the same clips; an untouched encoder scores the reference to the bit."""
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from .errors import InputError
from .models import extract

__all__ = ['Retention', 'Kept', 'linear_cka', 'drift', 'weight_distance', 'linear_probe', 'probe_head', 'knn']


def linear_cka(
    x:torch.Tensor, # Features `(N, F)`
    y:torch.Tensor, # Features of the same N samples `(N, G)`
)->float: # Between 0 and 1; exactly 1 for equal features
    "Linear centred kernel alignment (Kornblith et al., ICML 2019)"
    x, y = (f.double() - f.double().mean(0) for f in (x, y))
    # the Gram matrix of samples or the covariance of features, whichever is smaller, give the same numbers
    if len(x) < max(x.shape[1], y.shape[1]):
        kx, ky = x @ x.T, y @ y.T
        xy, xx, yy = (kx*ky).sum(), (kx*kx).sum(), (ky*ky).sum()
    else: xy, xx, yy = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    norm = (xx*yy).sqrt()
    return (xy/norm).item() if norm > 0 else float('nan')


def drift(
    x:torch.Tensor, # Features `(N, F)`
    ref:torch.Tensor, # Those of the untouched encoder
)->float: # 0 for equal features
    "How far features moved, relative to their size: `||x - ref|| / ||ref||`"
    return ((x.double() - ref.double()).norm()/ref.double().norm()).item()


def weight_distance(
    weights:dict, # Parameters by name
    ref:dict, # Those of the untouched encoder
)->float: # 0 for equal weights
    "How far weights moved, relative to their size: `||w - ref|| / ||ref||`; buffers do not count"
    far = sum((weights[k].detach().double().cpu() - r.double()).square().sum() for k, r in ref.items())
    return (far.sqrt()/sum(r.double().square().sum() for r in ref.values()).sqrt()).item()


def _classifier(x, y):
    with threadpool_limits(1):  # small matrices: threads would cost more than they give, and could change the last digits
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=.1)).fit(x.numpy(), y.numpy())


def linear_probe(x, y, xt, yt)->float:
    "Test accuracy of a logistic regression on standardised train features (L2, C = 0.1, to convergence; deterministic)"
    return float(_classifier(x, y).score(xt.numpy(), yt.numpy()))


def probe_head(x, y, n_classes:int)->nn.Linear:
    "The linear probe on features `x` and labels `y` as a layer: a head for an encoder that came without one"
    scale, probe = _classifier(x, y)
    if len(probe.classes_) != n_classes: raise InputError(f'train features have {len(probe.classes_)} classes of {n_classes}')
    w, b = torch.tensor(probe.coef_), torch.tensor(probe.intercept_)
    if n_classes == 2: w, b = torch.cat([-w, w])/2, torch.cat([-b, b])/2  # scikit-learn keeps one row for two classes
    w = w/torch.tensor(scale.scale_)
    head = nn.Linear(x.shape[1], n_classes)
    with torch.no_grad():
        head.weight.copy_(w)
        head.bias.copy_(b - w @ torch.tensor(scale.mean_))
    return head


def knn(x, y, xt, yt, k:int=5)->float:
    "Test accuracy of the vote of the `k` train clips with the largest cosine similarity"
    return float(KNeighborsClassifier(min(k, len(x)), metric='cosine').fit(x.numpy(), y.numpy()).score(xt.numpy(), yt.numpy()))


@dataclass(frozen=True)
class Kept:
    "What an encoder kept of the source task; accuracies are fractions"
    source_acc: float  # with the head that was trained on the untouched encoder
    source_probe: float  # with a linear probe fitted on this encoder's own features
    source_knn: float  # with the nearest neighbours in this encoder's own features
    cka: float  # linear CKA with the untouched encoder's features on the test clips; 1: unchanged
    drift: float  # relative distance of those features; 0: unchanged
    weight_distance: float  # relative distance of the weights; 0: unchanged


class Retention:
    """Measures how much of a source task an encoder kept: `Retention(model, train_dl, test_dl)(tuned_encoder)`.

    The reference is `model` as it is now; its features are computed once. Loaders must not shuffle or augment."""

    def __init__(self,
        model:nn.Module, # Untouched `Sequential(encoder, head)` of the source task
        train_dl, # Source clips to fit the probe and the neighbours on
        test_dl, # Source clips to measure on
    ):
        self.train_dl, self.test_dl = train_dl, test_dl
        self.head_weights = {k:v.detach().cpu().clone() for k, v in model[1].state_dict().items()}
        self.n_classes = len(self.head_weights['bias'])
        self.weights = {k:p.detach().cpu().clone() for k, p in model[0].named_parameters()}
        self._train, self._test = extract(model[0], train_dl), extract(model[0], test_dl)

    @cached_property
    def reference(self)->Kept:
        "The untouched encoder's scores"
        return self._score(self._train, self._test, self.weights)

    def __call__(self, encoder:nn.Module)->Kept:
        "Scores of `encoder`, which has the architecture of the untouched one"
        return self._score(extract(encoder, self.train_dl), extract(encoder, self.test_dl), dict(encoder.named_parameters()))

    def change(self, encoder:nn.Module)->dict:
        "Scores of `encoder` minus those of the untouched one: negative accuracies are forgetting, exactly 0 is untouched"
        return {k:v - getattr(self.reference, k) for k, v in asdict(self(encoder)).items()}

    def _score(self, train, test, weights):
        (x, y), (xt, yt) = train, test
        logits = xt @ self.head_weights['weight'].T + self.head_weights['bias']
        return Kept((logits.argmax(1) == yt).float().mean().item(), linear_probe(x, y, xt, yt), knn(x, y, xt, yt),
                    linear_cka(xt, self._test[0]), drift(xt, self._test[0]), weight_distance(weights, self.weights))
