"Co-Tuning: the source task's head continues to learn, from soft source labels for the target's clips."
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from threadpoolctl import threadpool_limits
from torch import nn

from ..errors import InputError
from ..models.features import head_input, to_feature
from .base import FeaturePenalty
from .mixins import Auxiliary
from .targets import check_numbers, class_numbers, mixed_labels
from .train_clips import train_outputs

__all__ = ['category_relation', 'CoTuning']

HOW = ('direct', 'reverse')  # ways to estimate the relation of source and target classes
STRENGTHS = np.logspace(-2, 4, 7)  # values of C for the logistic regression; a large C is little regularisation


def category_relation(
    probs:torch.Tensor, # The source head's predictions for clips of the target task, `(N, n_source)`, rows sum to 1
    y:torch.Tensor, # The clips' target classes `(N,)`
    n_target:int, # Number of target classes
    how:str='direct', # 'direct' or 'reverse'
)->torch.Tensor: # `(n_target, n_source)` float32, rows sum to 1
    """p(y_s|y_t) of Co-Tuning (You et al., NeurIPS 2020).

    'direct' is the mean of `probs` over each target class. 'reverse' fits a logistic regression without intercept from
    `probs` to `y`, evaluates it at each source class to get p(y_t|y_s), and applies Bayes' rule with the mean of
    `probs` as p(y_s). Its regularisation is chosen by cross-validated log-likelihood, in place of the original's
    calibration. Raises `InputError` for a target class without a clip."""
    probs, y = probs.detach().double().cpu(), y.cpu()
    if how not in HOW: raise InputError(f"how must be 'direct' or 'reverse', not {how!r}")
    if probs.ndim != 2 or y.shape != probs.shape[:1] or y.is_floating_point():
        raise InputError('expected probabilities (N, n_source) and a class number for each of the N clips, '
                         f'not {tuple(probs.shape)} and {tuple(y.shape)} of {y.dtype}')
    if (probs < 0).any() or not torch.allclose(probs.sum(1), torch.ones(len(probs)).double(), atol=1e-2):
        raise InputError('probs must be probabilities, whose rows sum to 1: pass logits.softmax(1)')
    count = torch.bincount(y, minlength=n_target)
    if len(count) > n_target: raise InputError(f'class number {y.max()} is not one of {n_target} classes')
    empty = (count == 0).nonzero().flatten().tolist()
    if empty: raise InputError(f'target classes {empty} have no clip to relate them to source classes')
    if how == 'direct':
        sums = torch.zeros(n_target, probs.shape[1]).double().index_add_(0, y, probs)
        return (sums/count[:, None]).float()
    return _reverse_relation(probs.numpy(), y.numpy(), folds=min(5, int(count.min())))


def _reverse_relation(x, y, folds):
    def regression(c): return LogisticRegression(C=c, fit_intercept=False, max_iter=1000)
    def quality(c): return cross_val_score(regression(c), x, y, cv=folds, scoring='neg_log_loss').mean()

    with threadpool_limits(1):
        strength = max(STRENGTHS, key=quality) if folds > 1 else 1.
        fitted = regression(strength).fit(x, y)
        joint = fitted.predict_proba(np.eye(x.shape[1])).T*x.mean(0)
    return torch.from_numpy(joint/joint.sum(1, keepdims=True)).float()


class CoTuning(Auxiliary, FeaturePenalty):
    """`lam*CE(source head(features), p(y_s|y_t))`: a copy of the source task's head learns soft source labels (You et
    al., NeurIPS 2020).

    The copy is not part of the model. p(y_s|y_t) is estimated once, with the encoder and head at the start of the first
    fit (`lr_find` does not count), from the train items without augmentation. Raises `InputError` if the encoder has
    already been trained by then."""
    name = 'co_tuning'
    kinds = ('classes',)
    head: nn.Module|None = None
    relation: torch.Tensor|None = None
    _given = False  # whether the relation was an argument
    _before: tuple|None = None  # `(relation,)` as it was before `lr_find`, while `lr_find` runs
    _stateattrs = FeaturePenalty._stateattrs + Auxiliary._auxattrs + ('head', 'relation', '_before')
    _state = ('relation',)

    def __init__(self,
        lam:float=2.3, # Weight of the cross-entropy
        head:nn.Module=None, # The source task's head, from the encoder's features to its logits; not changed
        relation:torch.Tensor=None, # p(y_s|y_t) `(n_target, n_source)`; `None`: estimated
        encoder:str|Callable|None=None, # Which part of the model gives the features, see `find_encoder`
        how:str='direct', # How the relation is estimated, see `category_relation`
    ):
        super().__init__(lam, encoder)
        self.head, self.how = head, how
        if how not in HOW: raise InputError(f"how must be 'direct' or 'reverse', not {how!r}")
        self._check_head()
        self._given = relation is not None
        if relation is None: return
        self.relation = torch.as_tensor(relation).detach().float()
        if self.relation.ndim != 2 or (self.relation < 0).any() or (self.relation.sum(1) - 1).abs().max() > 1e-2:
            raise InputError('relation must be a matrix p(y_s|y_t) of (target, source) classes whose rows sum to 1, '
                             f'see category_relation; this one is {tuple(self.relation.shape)}')

    def _check_head(self):
        if not isinstance(self.head, nn.Module):
            raise InputError("CoTuning needs the source task's head, a module from features to source logits, "
                             f'not {self.head!r} (an exported learner does not carry it). Pass head=MODEL[1] of the '
                             'source task, or a probe: probe_head(*extract(encoder, source_dl), n_classes)')

    def before_fit(self):
        super().before_fit()
        # to be restored after `lr_find`, as the model's weights are
        if self.loop.trial: self._before = (self.relation,)

    def begin(self)->None:
        self._check_head()
        if self.aux is None: self.set_auxiliary(lambda: deepcopy(self.head).requires_grad_(True))
        if self.relation is None: self.relation = self._relate()
        if self.loop.classes and len(self.relation) != self.loop.classes:
            raise InputError(f'relation has rows for {len(self.relation)} target classes, the data have '
                             f'{self.loop.classes}; see category_relation')
        self.relation = self.relation.to(next(self.aux.parameters()).device)

    def _relate(self):
        if self.loop.epoch > 0:
            raise InputError(f'CoTuning: a fit that starts at epoch {self.loop.epoch} is too late to relate the '
                             'classes by the untouched encoder. Pass relation=MATRIX, see category_relation')
        probs, y = train_outputs(
            self, self._source_probs, 'without the training data the classes cannot be related: pass relation=MATRIX, '
                                      'see category_relation, or attach(..., batches=LOADER)')
        y = self._checked(class_numbers(y))
        return category_relation(probs, y, max(self.loop.classes, int(y.max()) + 1), self.how)

    def _source_probs(self, module, args, kwargs, out):
        logits = self.aux(head_input(self.aux, out, to_feature(module, out, args, kwargs)))
        return logits.float().softmax(1)

    def _checked(self, y):
        if y.ndim == 1 and not (y < 0).any(): return y
        raise InputError('CoTuning needs a class number of at least 0 for each clip, not targets '
                         f'{tuple(y.shape)} of which the smallest is {y.min().item()}')

    def term(self)->torch.Tensor:
        calls = self.calls()
        self.target_kind()
        target = self._soft_labels()
        logits = [self.aux(head_input(self.aux, out, f)).float() for (_, _, out), f in zip(calls, self.features())]
        if logits[0].shape[1] < 2:
            raise InputError('CoTuning: the source head has one output, whose softmax is always 1: it needs a head of '
                             'two classes or more')
        if logits[0].shape != target.shape:
            raise InputError(f'CoTuning: the head returns {tuple(logits[0].shape)} where the relation has '
                             f'{tuple(target.shape)}; both must be of the same source classes')
        total: Any = sum(F.cross_entropy(l, target) for l in logits)
        return total/len(logits)

    def _soft_labels(self):
        "p(y_s|y_t) of each clip's label, mixed as the labels are"
        assert self.relation is not None  # set in `begin`
        parts = mixed_labels('CoTuning', self.batch_targets(), self.loop.criterion)
        for _, y in parts: check_numbers('CoTuning', y, len(self.relation), ignored=False)
        if len(parts) == 1: return self.relation.index_select(0, parts[0][1])
        return sum(share*self.relation.index_select(0, y) for share, y in parts)

    def forget_head(self)->None:
        if not self._given: self.relation = None
        super().forget_head()

    def leave(self)->None:
        if self._before is not None:
            self.relation, = self._before
            self._before = None
        super().leave()
