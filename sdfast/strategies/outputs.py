"Distillation of outputs: of the source head, or of the model of the previous epoch."
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.features import check_logits
from ..models.statistics import as_student
from ..models.surgery import frozen_copy
from .base import Penalty
from .distill import FixedTeacher, check_teacher_bn
from .loop import Loop
from .stored import StoredAnswers
from .targets import INDEPENDENT, class_numbers, logits_of, loss_family, task_loss, two_classes

__all__ = ['soft_divergence', 'LwF', 'PSKD']

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
    head: fit a probe, see `probe_head`. A model whose head grows, so that its first outputs are the source's classes,
    answers for them itself: with `shared_head` the divergence is of these outputs, and the head learns from it, too
    (LwF.MC of Rebuffi et al., CVPR 2017, with softmax).

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
        shared_head:bool=False, # The model's first outputs are the source's classes, see above
    ):
        super().__init__(lam, 'mean', teacher_bn, encoder, anchor)
        self.shared_head = shared_head
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
        if self.shared_head: logits = [(self._own_logits(teacher), teacher) for _, teacher in logits]
        how = self._activation_of(logits[0][0])
        divergences = [soft_divergence(s, t, self.T, how) for s, t in logits]
        total: Any = sum(divergences)
        return total/len(calls)

    def _own_logits(self, teacher):
        "The model's own outputs for the source's classes"
        logits = logits_of(self.loop.outputs)
        if logits.ndim == 2 and len(logits) == len(teacher) and logits.shape[1] >= teacher.shape[1]:
            return logits[:, :teacher.shape[1]]
        raise InputError(f'LwF with shared_head: the model returns {tuple(logits.shape)} where the source head returns '
                         f'{tuple(teacher.shape)}; expected as many rows, and the source\'s classes as first columns')

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

    In the authors' code, p is what the model answered when it was last trained on the clip, before that step and to
    another view of it. `stored=True` does so, without a teacher's forward pass. It must know which clips a batch has,
    see `ClipNumbers`. A clip that has no answer yet takes y.

    Targets are class numbers or class probabilities."""
    name = 'pskd'
    kinds, needs_mean = ('classes', 'soft'), True
    most = 1.  # lam is a share
    teacher: nn.Module|None = None
    age = 0
    answers: StoredAnswers|None = None  # with `stored`, in a fit
    _stateattrs = Penalty._stateattrs + ('teacher', 'answers')

    def __init__(self,
        lam:float=.8, # Share of the soft targets in the last epoch, at most 1
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        stored:bool=False, # Take p from the last epoch's training, as the authors' code does; there is no teacher
    ):
        super().__init__(lam)
        if lam > 1: raise ValueError(f'lam of PSKD is a share, at most 1, not {lam}')
        check_teacher_bn(teacher_bn)
        self.teacher_bn, self.stored = teacher_bn, stored

    def begin(self)->None:
        self.n_epochs()  # fail before the first batch
        self.teacher, self.age = None, 0
        if self.stored: self._stored().begin(self.loop.epoch)
        elif self.loop.epoch: self.teacher = frozen_copy(get_model(self.loop.model))

    def after_train(self):
        super().after_train()
        if self.stored: self._stored().end_epoch()

    def state_dict(self)->dict:
        return super().state_dict() | (dict(answers=self._stored().state_dict()) if self.stored else {})

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        if self.stored: self._stored().load_state_dict(state['answers'])

    def _stored(self):
        if self.answers is None: self.answers = StoredAnswers('PSKD(stored=True)')
        return self.answers

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
        pred, y = logits_of(loop.outputs).float(), self.batch_targets()
        p = self._remembered(pred, y, kind) if self.stored else None if self.teacher is None else self._taught(pred)
        if p is None: return pred.sum()*0
        own = task_loss(as_output(loop, pred), y, kind, loop.criterion)
        return (loop.epoch + 1)/self.n_epochs()*(F.cross_entropy(pred, p) - own)

    def _remembered(self, pred, y, kind):
        "The class probabilities of the last epoch's training; `None` in the first epoch"
        numbers = self._stored().add(self.loop, pred.softmax(1))
        if self.answers.table is None: return None
        if kind == 'classes': y = F.one_hot(class_numbers(y), pred.shape[1])
        return self.answers.of(numbers, y.to(pred))

    def _taught(self, pred):
        "The teacher's class probabilities"
        args, kwargs = self.unchanged_inputs()
        with as_student(self.teacher, get_model(self.loop.model), self.teacher_bn), torch.no_grad():
            p = logits_of(self.teacher(*args, **kwargs)).float().softmax(1)
        if p.shape == pred.shape: return p
        raise InputError(f'PSKD: the model returns {pred.shape[1]} classes, its copy of the last epoch {p.shape[1]}: '
                         'start a new fit after changing the head')
