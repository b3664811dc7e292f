"""The distribution that a model's outputs stand for, and the gradients of its logarithm, for Fisher information.

For each kind of targets it is a softmax over classes, independent sigmoids, or a normal distribution around the
outputs."""
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from ..errors import InputError
from .targets import INDEPENDENT, OF_SOFTMAX, check_kind, check_numbers, check_same, class_numbers

__all__ = ['Likelihood']

KINDS = ('classes', 'soft', 'multi-label', 'binary', 'regression')  # all but dense ones
WHO = 'Fisher information'
ADVICE = "pass kind='classes', 'multi-label' or 'regression', or loss=FUNCTION"


class Likelihood:
    "Outputs and vectors of vector-Jacobian products, whose squared gradients add up to the Fisher information"
    def __init__(self,
        labels:str, # 'exact', 'sample' or 'empirical', see `fisher_information`
        kind:str|None, # One of `KINDS`; `None`: found by `look`
        draw:torch.Generator, # Of 'sample'
    ):
        if kind is not None and kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        self.labels, self.kind, self.draw, self.given = labels, kind, draw, kind is not None
        self.width = 0  # number of outputs, found by `look`

    def look(self,
        logits:Callable, # Function that returns the outputs for some samples
        batch:list, # The whole batch: inputs, and labels if there are any
    )->None:
        "Find the kind in the first batch, and refuse labels in the next ones that do not fit it"
        y = batch[-1] if len(batch) > 1 else None
        if not self.width:
            out = logits()
            self.width = out.shape[1]
            if self.kind is None: self.kind = self._find(out, y)
        if y is not None and self.labels == 'empirical': self._check(y)

    def _check(self, y):
        if not self.given: check_same(WHO, self.kind, y, ADVICE)
        if self.kind == 'classes' and not y.is_floating_point(): check_numbers(WHO, class_numbers(y), self.width, False)
        elif y.shape != (len(y), self.width) and y.numel() != len(y)*(self.width == 1):
            raise InputError(f'{WHO}: labels {tuple(y.shape)} of {y.dtype} do not fit {self.width} outputs; {ADVICE}')

    def _find(self, logits, y):
        if y is not None:
            logits = logits[:1].expand(len(y), self.width)
            if self.labels == 'empirical' or y.shape == logits.shape or self.width < 2:
                return check_kind(WHO, KINDS, logits, y, advice=ADVICE, instead=ADVICE)
        if self.width > 1: return 'classes'  # labels, if there are any, may be of another task
        raise InputError('Fisher information: the softmax of one output is always 1, its Fisher information 0; pass '
                         "kind='binary' for the logit of two classes, kind='regression' or loss=FUNCTION")

    def outputs(self, logits:torch.Tensor)->torch.Tensor:
        "What is differentiated"
        return logits.log_softmax(1) if self.kind in OF_SOFTMAX else logits

    def cotangents(self, out:torch.Tensor, y:torch.Tensor)->Iterable[torch.Tensor]:
        "The vectors for a batch of outputs; the square removes their signs"
        if self.kind in OF_SOFTMAX: return self._of_softmax(out, y)
        mean, deviation = out, torch.ones_like(out)
        if self.kind in INDEPENDENT:
            mean = out.sigmoid()
            deviation = (mean*(1 - mean)).sqrt()
        if self.labels == 'exact': return (_only(deviation, c) for c in range(out.shape[1]))
        if self.labels == 'empirical': return [mean - y.reshape(out.shape).to(out)]
        return [mean - self._sample(mean)]

    def _sample(self, mean):
        m = mean.cpu()
        if self.kind == 'regression': drawn = m + torch.randn(m.shape, generator=self.draw).to(m)
        else: drawn = torch.bernoulli(m, generator=self.draw)
        return drawn.to(mean.device)

    def _of_softmax(self, logp, y):
        classes = logp.shape[1]
        if self.labels == 'exact': return (_root_of_probability(logp, c) for c in range(classes))
        if self.labels == 'sample':
            y = torch.cat([torch.multinomial(p, 1, generator=self.draw) for p in logp.exp().cpu()]).to(logp.device)
        targets = y if y.shape == logp.shape else F.one_hot(y.flatten().long(), classes)
        return [targets.to(logp)]


def _root_of_probability(logp, c):
    "`sqrt(p(c))` at class c and 0 elsewhere, so that the squared gradient is weighted with the probability"
    index = torch.tensor([c], device=logp.device)
    return torch.zeros_like(logp).index_copy(1, index, logp[:, c:c + 1].div(2).exp())


def _only(deviation, c):
    "The deviation of output c, and 0 elsewhere"
    return F.pad(deviation[:, c:c + 1], (c, deviation.shape[1] - c - 1))
