"Distillation of outputs: of the source head, of the previous epoch's model, or of the model's own last layer."
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.features import check_logits, per_sample
from ..models.statistics import as_student
from ..models.surgery import frozen_copy
from .base import FeaturePenalty, Penalty
from .distill import FixedTeacher, check_teacher_bn
from .loop import Loop
from .mixins import Auxiliary
from .targets import INDEPENDENT, logits_of, loss_family, task_loss, two_classes

__all__ = ['soft_divergence', 'LwF', 'PSKD', 'BYOT']

ACTIVATIONS = ('softmax', 'sigmoid')  # what makes probabilities of logits


def soft_divergence(
    student:torch.Tensor, # Logits `(B, C)`
    teacher:torch.Tensor, # Logits of the same shape
    T:float=2., # Temperature
    activation:str='softmax', # 'sigmoid' for independent logits: the divergence is summed over the classes
)->torch.Tensor: # Scalar, float32
    """`T^2 KL(teacher || student)` of softened outputs, averaged over the batch (Hinton et al. 2015)

    The factor T^2 keeps the size of the gradient independent of T."""
    if activation == 'sigmoid':
        n = len(student)
        student, teacher = (two_classes(t).flatten(0, -2) for t in (student, teacher))
        return soft_divergence(student, teacher, T)*(len(student)/n)
    log_student = F.log_softmax(student.float()/T, 1)
    log_teacher = F.log_softmax(teacher.float()/T, 1)
    return T*T*F.kl_div(log_student, log_teacher, reduction='batchmean', log_target=True)


def as_output(loop:Loop, logits:torch.Tensor)->Any:
    "Logits in the form that the task's loss takes: in a `Learner`, that of the model's output"
    out = loop.outputs
    return logits if torch.is_tensor(out) or loop.loss_of_logits else type(out)(logits=logits)


class LwF(FixedTeacher):
    """Learning without forgetting: `lam T^2 KL` between the source head's outputs on the old features and on the new
    ones (Li & Hoiem, 2016). Code without the factor `T^2` needs a lam T^2 times as large.

    The source head is frozen, so only the information that it uses is protected. A self-supervised encoder has no such
    head: fit a probe, see `probe_head`.

    For a source task with independent logits (multi-label, or one logit) the divergence is the binary one, summed over
    the logits: `activation='sigmoid'`. By default the source task is taken to be of the kind of the task that is being
    learned, if its loss is known."""
    kinds = ('classes', 'soft', 'multi-label', 'binary')
    head: nn.Module|None = None
    _stateattrs = FixedTeacher._stateattrs + ('head',)

    def __init__(self,
        lam:float, # Weight of the divergence
        head:nn.Module, # The source task's head, from features to logits
        T:float=2., # Temperature
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
        activation:str|None=None, # 'softmax' or 'sigmoid', which the head's logits are for; `None`: see above
    ):
        super().__init__(lam, 'mean', teacher_bn, encoder, anchor)
        if activation not in (None, *ACTIVATIONS):
            raise InputError(f"activation must be 'softmax' or 'sigmoid', not {activation!r}")
        if not T > 0: raise ValueError(f'T must be positive, not {T}')
        self.head, self.T, self.activation = self.own_head(head), T, activation

    def own_head(self, head:Any)->nn.Module|None:
        "A frozen copy of the head; raises `InputError` if there is none"
        if isinstance(head, nn.Module): return frozen_copy(head)
        raise InputError(f'{type(self).__name__} needs the head of the source task, a module from features to logits, '
                         f'not {type(head).__name__}; for an encoder without one fit a probe: '
                         'probe_head(features, labels, n_classes)')

    def begin(self)->None:
        self.check_head()
        super().begin()
        if self.head is not None: self.head.to(next(self.module().parameters()).device)

    def check_head(self)->None:
        "Raise `ValueError` if the head is missing"
        if self.head is not None: return
        who = type(self).__name__
        raise ValueError(f'{who} lacks its source head: an exported learner does not carry it; '
                         f'pass a new {who}(lam, head)')

    def term(self)->torch.Tensor:
        assert self.head is not None  # checked in `begin`
        calls = self.pairs()
        logits = [tuple(map(self.head, pair.inputs(self.head))) for call in calls for pair in call]
        check_logits(logits[0][0], type(self).__name__)
        how = self._activation_of(logits[0][0])
        divergences = [soft_divergence(s, t, self.T, how) for s, t in logits]
        total: Any = sum(divergences)
        return total/len(calls)

    def _activation_of(self, logits):
        how = self.activation or self._task_activation(logits.shape[1])
        if how == 'softmax' and logits.shape[1] < 2:
            raise InputError(f'{type(self).__name__}: the source head has one output, whose softmax is always 1: pass '
                             "a head with two outputs or more, or activation='sigmoid' if it is a logit")
        return how

    def _task_activation(self, outputs):
        loop = self.loop
        known = loop.criterion is not None or loop.targets is not None
        if not known or loss_family(loop.criterion) == 'softmax' or isinstance(loop.outputs, (tuple, list)):
            return 'softmax'
        ask = "say what the source head's logits are for: activation='softmax' or 'sigmoid'"
        try: kind = self.target_kind()
        except InputError as e: raise InputError(f'{e}, or {ask}') from None
        if kind == 'binary' and outputs > 1:
            raise InputError(f'{type(self).__name__}: this task has one logit, which says nothing about the {outputs} '
                             f'of the source head: {ask}')
        return ACTIVATIONS[kind in INDEPENDENT]


class PSKD(Penalty):
    """Progressive self-knowledge distillation (Kim et al., ICCV 2021), with targets `(1 - a_t) y + a_t p`.

    p are the class probabilities of the previous epoch's model for the same batch, and `a_t = lam*t/n_epoch` in epoch
    t = 1, 2...; in the first epoch p is y. The term is the change of the loss, `t/n_epoch (CE(p) - L(y))`; it can be
    negative. L is the task's own loss: with class weights, label smoothing or MixUp the whole is `(1 - a_t) L(y) + a_t
    CE(p)`. In a training loop of your own, give it to `attach(criterion=...)` unless it is plain cross-entropy.

    Targets are class numbers or class probabilities."""
    name = 'pskd'
    kinds, needs_mean = ('classes', 'soft'), True
    most = 1.  # lam is a share
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
        if self.loop.epoch: self.teacher = frozen_copy(get_model(self.loop.model))

    def before_batch(self): self.see_inputs()

    def after_batch(self):
        super().after_batch()
        self.age += 1

    def epoch_state(self)->dict:
        teacher = None if self.teacher is None else self.teacher.state_dict()
        return super().epoch_state() | dict(teacher=teacher, age=self.age)

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        self.age = state['age']
        if self.teacher is not None: self.teacher.load_state_dict(state['teacher'])

    def term(self)->torch.Tensor:
        loop, kind = self.loop, self.target_kind()
        pred = logits_of(loop.outputs).float()
        if self.teacher is None: return pred.sum()*0
        own = task_loss(as_output(loop, pred), self.batch_targets(), kind, loop.criterion)
        return (loop.epoch + 1)/self.n_epochs()*(F.cross_entropy(pred, self._taught(pred)) - own)

    def _taught(self, pred):
        "The teacher's class probabilities"
        args, kwargs = self.unchanged_inputs()
        with as_student(self.teacher, get_model(self.loop.model), self.teacher_bn), torch.no_grad():
            p = logits_of(self.teacher(*args, **kwargs)).float().softmax(1)
        if p.shape == pred.shape: return p
        raise InputError(f'PSKD: the model returns {pred.shape[1]} classes, its copy of the last epoch {p.shape[1]}: '
                         'start a new fit after changing the head')


class BYOT(Auxiliary, FeaturePenalty):
    """Be your own teacher (Zhang et al., ICCV 2019): shallow layers learn from the last one through heads of their own.

    The term is `sum_l (1 - alpha) CE(q_l, y) + alpha T^2 KL(q || q_l) + beta mean (F_l - F)^2`, where q and F are the
    outputs and features of the whole net, without gradient. CE is the task's own loss, with its class weights, label
    smoothing or MixUp; in a training loop of your own, give it to `attach(criterion=...)` unless it is plain. Targets
    are class numbers or class probabilities. A head takes the mean over time and space, maps it linearly to the width
    of F, and applies ReLU and a linear classifier (the original has convolutions). The heads are not part of the model;
    a model with another head gets other heads."""
    kinds, needs_mean = ('classes', 'soft'), True
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
        total: Any = 0.
        for s, (widen, classify) in zip(shallow, self.aux):
            f = widen(s.float())
            q = classify(f.relu()).float()
            hard = (1 - self.alpha)*self._hard(q, y, kind)
            soft = self.alpha*soft_divergence(q, logits.detach(), self.T)
            hint = self.beta*(f.float() - features.detach().float()).pow(2).mean()
            total = total + (hard + soft + hint)
        return total

    def _feature(self, layer=''):
        features = self.features(layer)
        if len(features) == 1: return features[0]
        advice = 'pass layers=[...] without it' if layer else 'take SelfDistill, which averages over calls'
        raise InputError(f'{self.what(layer)} is called {len(features)} times in a forward pass, so that its '
                         f'classifier has several inputs: {advice}')

    def _hard(self, q, y, kind):
        return task_loss(as_output(self.loop, q), y, kind, self.loop.criterion)

    def _make_heads(self, shallow, width, n_classes):
        def heads():
            return nn.ModuleList(nn.ModuleList([nn.Linear(s.shape[1], width), nn.Linear(width, n_classes)])
                                 for s in shallow)
        self.set_auxiliary(heads)
