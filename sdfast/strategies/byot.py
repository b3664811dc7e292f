"Distillation of a model's last layer into its earlier ones."
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..models.features import per_sample
from .base import FeaturePenalty
from .mixins import Auxiliary
from .outputs import as_output, soft_divergence
from .targets import logits_of, task_loss

__all__ = ['BYOT']


class BYOT(Auxiliary, FeaturePenalty):
    """Be your own teacher (Zhang et al., ICCV 2019): shallow layers learn from the last one through heads of their own.

    The term is `sum_l (1 - alpha) CE(q_l, y) + alpha T^2 KL(q || q_l) + beta mean (F_l - F)^2`, where q and F are the
    outputs and features of the whole net, without gradient. CE is the task's own loss, with its class weights, label
    smoothing or MixUp; in a training loop of your own, give it to `attach(criterion=...)` unless it is plain. Targets
    are class numbers or class probabilities. A head takes the mean over time and space, maps it linearly to the width
    of F, and applies ReLU and a linear classifier (the original has convolutions). The heads are not part of the model;
    a model with another head gets other heads.

    `official=True` is the loss of the authors' code, with lam 1: alpha .3, a cross-entropy of softened outputs in place
    of the divergence, without the factor T^2, and no term of features (June 2020). With `beta=.03` it is that of their
    journal version (July 2020): `beta |A_l F_l - F|`, the norm over the whole batch, A_l linear, for all layers but the
    deepest of the shallow ones."""
    kinds, needs_mean = ('classes', 'soft'), True
    _stateattrs = FeaturePenalty._stateattrs + Auxiliary._auxattrs

    def __init__(self,
        lam:float, # Weight of the whole sum
        layers:str|Sequence[str]|None='blocks', # Names of layers of the encoder, or 'blocks': all but the last
        alpha:float|None=None, # Share of the last layer's outputs among the targets; `None`: .1, or .3 if official
        beta:float|None=None, # Weight of the distance of features; `None`: .03, or 0 if official
        T:float=3., # Temperature
        encoder:str|Callable|None=None, # Which part of the model has the layers, see `find_encoder`
        official:bool=False, # The loss of the authors' code, see above
    ):
        super().__init__(lam, encoder)
        self.layers, self.alpha, self.beta, self.T, self.official = layers, alpha, beta, T, official
        alpha, beta = self._shares()
        if not 0 <= alpha <= 1 or beta < 0 or not T > 0:
            raise ValueError('alpha must be between 0 and 1, beta at least 0 and T positive, '
                             f'not {alpha}, {beta} and {T}')

    def _shares(self):
        "`alpha` and `beta`"
        alpha, beta = (.3, 0.) if self.official else (.1, .03)
        return alpha if self.alpha is None else self.alpha, beta if self.beta is None else self.beta

    def layer_names(self)->list[str]:
        names = super().layer_names()
        if self.layers != 'blocks' or not names: return names
        last = self.module().get_submodule(names[-1])
        # the norm after the last block of a transformer belongs to that block
        return names[:-2] if isinstance(last, (nn.LayerNorm, nn.RMSNorm)) else names[:-1]

    def term(self)->torch.Tensor:
        kind, y = self.target_kind(), self.batch_targets()
        features, logits = self._feature(), logits_of(self.loop.outputs)
        shallow = [per_sample(self._feature(n), len(features), self.what(n)) for n in self.recorded()]
        if not shallow:
            raise InputError('BYOT found no layers before the last; pass layers=[NAME, ...] of the encoder')
        if self.aux is None: self._make_heads(shallow, features.shape[1], logits.shape[1])
        alpha, beta = self._shares()
        total: Any = 0.
        for s, (widen, classify, *adapt) in zip(shallow, self.aux):
            f = widen(s.float())
            q = classify(f.relu()).float()
            hard = (1 - alpha)*self._hard(q, y, kind)
            soft = alpha*self._soft(q, logits.detach())
            total = total + (hard + soft + beta*self._hint(f, adapt, features.detach().float()))
        return total

    def _soft(self, q, logits):
        if not self.official: return soft_divergence(q, logits, self.T)
        return F.cross_entropy(q/self.T, (logits.float()/self.T).softmax(1))

    def _hint(self, f, adapt, features):
        if not self.official: return (f.float() - features).pow(2).mean()
        return torch.dist(adapt[0](f.relu()).float(), features) if adapt else 0.

    def _feature(self, layer=''):
        features = self.features(layer)
        if len(features) == 1: return features[0]
        advice = 'pass layers=[...] without it' if layer else 'take SelfDistill, which averages over calls'
        raise InputError(f'{self.what(layer)} is called {len(features)} times in a forward pass, so that its '
                         f'classifier has several inputs: {advice}')

    def _hard(self, q, y, kind):
        return task_loss(as_output(self.loop, q), y, kind, self.loop.criterion)

    def _make_heads(self, shallow, width, n_classes):
        adapted = len(shallow) - 1 if self.official and self._shares()[1] else 0

        def head(i, s):
            layers = [nn.Linear(s.shape[1], width), nn.Linear(width, n_classes)]
            return nn.ModuleList([*layers, nn.Linear(width, width)] if i < adapted else layers)
        self.set_auxiliary(lambda: nn.ModuleList(head(i, s) for i, s in enumerate(shallow)))
