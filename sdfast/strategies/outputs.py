"Distillation of outputs: of the source head, of the previous epoch's model, or of the model's own last layer."
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.surgery import frozen_copy
from .base import FeaturePenalty, Penalty
from .distill import FixedTeacher, batch_statistics, check_teacher_bn, follow_modes, pooled
from .mixins import Auxiliary

__all__ = ['soft_divergence', 'LwF', 'PSKD', 'BYOT']


def soft_divergence(
    student:torch.Tensor, # Logits `(B, C)`
    teacher:torch.Tensor, # Logits of the same shape
    T:float=2., # Temperature
)->torch.Tensor: # Scalar, float32
    """`T^2 KL(teacher || student)` of softened outputs, averaged over the batch (Hinton et al. 2015)

    The factor T^2 keeps the size of the gradient independent of T."""
    log_student = F.log_softmax(student.float()/T, 1)
    log_teacher = F.log_softmax(teacher.float()/T, 1)
    return T*T*F.kl_div(log_student, log_teacher, reduction='batchmean', log_target=True)


class LwF(FixedTeacher):
    """Learning without forgetting: `lam T^2 KL` between the source head's outputs on the old features and on the new
    ones (Li & Hoiem, 2016). Code without the factor `T^2` needs a lam T^2 times as large.

    The source head is frozen, so only the information that it uses is protected. A self-supervised encoder has no such
    head: fit a probe, see `probe_head`."""
    head: nn.Module|None = None
    _stateattrs = FixedTeacher._stateattrs + ('head',)

    def __init__(self,
        lam:float, # Weight of the divergence
        head:nn.Module, # The source task's head, from features to logits
        T:float=2., # Temperature
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(lam, 'mean', teacher_bn, encoder, anchor)
        if not isinstance(head, nn.Module):
            raise InputError('LwF needs the head of the source task, a module from features to logits, '
                             f'not {type(head).__name__}; for an encoder without one fit a probe: '
                             'probe_head(features, labels, n_classes)')
        if not T > 0: raise ValueError(f'T must be positive, not {T}')
        self.head, self.T = frozen_copy(head), T

    def begin(self)->None:
        if self.head is None:
            raise ValueError('LwF lacks its source head: an exported learner does not carry it; '
                             'pass a new LwF(lam, head)')
        super().begin()
        self.head.to(next(self.module().parameters()).device)

    def term(self)->torch.Tensor:
        assert self.head is not None  # checked in `begin`
        calls = self.pairs()
        divergences = [soft_divergence(self.head(s), self.head(t), self.T) for call in calls for _, s, t in call]
        total: Any = sum(divergences)
        return total/len(calls)


class PSKD(Penalty):
    """Progressive self-knowledge distillation (Kim et al., ICCV 2021), with targets `(1 - a_t) y + a_t p`.

    p are the class probabilities of the previous epoch's model for the same batch, and `a_t = lam*t/n_epoch` in epoch
    t = 1, 2...; in the first epoch p is y. The term is the change of the cross-entropy, `t/n_epoch (CE(p) - CE(y))`; it
    can be negative. Targets must be class numbers."""
    name = 'pskd'
    teacher: nn.Module|None = None
    age = 0
    _stateattrs = Penalty._stateattrs + ('teacher',)

    def __init__(self,
        lam:float=.8, # Share of the soft targets in the last epoch, at most 1
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
    ):
        super().__init__(lam)
        if lam > 1: raise ValueError(f'lam of PSKD is a share, at most 1, not {lam}')
        check_teacher_bn(teacher_bn)
        self.teacher_bn = teacher_bn

    def begin(self)->None:
        self.n_epochs()  # fail before the first batch
        self.teacher, self.age = None, 0
        if self.loop.epoch: self.teacher = batch_statistics(frozen_copy(get_model(self.loop.model)))

    def after_batch(self):
        super().after_batch()
        self.age += 1

    def term(self)->torch.Tensor:
        y, pred = self.batch_targets(), self.loop.outputs.float()
        if y.is_floating_point() or y.ndim != 1:
            raise InputError(f'PSKD needs class numbers as targets, not a {y.dtype} tensor of shape {tuple(y.shape)}')
        if self.teacher is None: return pred.sum()*0
        follow_modes(self.teacher, get_model(self.loop.model), self.teacher_bn)
        with torch.no_grad(): p = self.teacher(*self.loop.args, **self.loop.kwargs).float().softmax(1)
        return (self.loop.epoch + 1)/self.n_epochs()*(F.cross_entropy(pred, p) - F.cross_entropy(pred, y))


class BYOT(Auxiliary, FeaturePenalty):
    """Be your own teacher (Zhang et al., ICCV 2019): shallow layers learn from the last one through heads of their own.

    The term is `sum_l (1 - alpha) CE(q_l, y) + alpha T^2 KL(q || q_l) + beta mean (F_l - F)^2`, where q and F are the
    outputs and features of the whole net, without gradient. A head takes the mean over time and space, maps it linearly
    to the width of F, and applies ReLU and a linear classifier (the original has convolutions). The heads are not part
    of the model."""
    _stateattrs = FeaturePenalty._stateattrs + Auxiliary._auxattrs

    def __init__(self,
        lam:float, # Weight of the whole sum
        layers:str|Sequence[str]|None='blocks', # Names of layers of the encoder, or 'blocks': all but the last
        alpha:float=.1, # Share of the last layer's outputs among the targets
        beta:float=.03, # Weight of the distance of features
        T:float=3., # Temperature
        encoder:str|Callable|None=None, # Which part of the model has the layers, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if not 0 <= alpha <= 1 or beta < 0 or not T > 0:
            raise ValueError('alpha must be between 0 and 1, beta at least 0 and T positive, '
                             f'not {alpha}, {beta} and {T}')
        self.layers, self.alpha, self.beta, self.T = layers, alpha, beta, T

    def layer_names(self)->list[str]:
        names = super().layer_names()
        return names[:-1] if self.layers == 'blocks' else names

    def term(self)->torch.Tensor:
        features, logits = pooled(self.calls()[0][2]), self.loop.outputs
        y = self.batch_targets()
        shallow = [pooled(self.calls(n)[0][2]) for n in self._recorders if n]
        if not shallow:
            raise InputError('BYOT found no layers before the last; pass layers=[NAME, ...] of the encoder')
        if self.aux is None: self._make_heads(shallow, features.shape[1], logits.shape[1])
        total: Any = 0.
        for s, (widen, classify) in zip(shallow, self.aux):
            f = widen(s.float())
            q = classify(f.relu()).float()
            hard = (1 - self.alpha)*F.cross_entropy(q, y)
            soft = self.alpha*soft_divergence(q, logits.detach(), self.T)
            hint = self.beta*(f.float() - features.detach().float()).pow(2).mean()
            total = total + (hard + soft + hint)
        return total

    def _make_heads(self, shallow, width, n_classes):
        def heads():
            return nn.ModuleList(nn.ModuleList([nn.Linear(s.shape[1], width), nn.Linear(width, n_classes)])
                                 for s in shallow)
        self.set_auxiliary(heads)
