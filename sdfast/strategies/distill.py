"""Distillation from an earlier state of the same encoder: one class, three teachers.

The paper's method is `SelfDistill`: L = CE + lam*||f_t(x) - f'(x)||^2, with f' the encoder at the start of the epoch."""
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .penalty import Anchored, FeaturePenalty, frozen_copy

__all__ = ['feature_distance', 'Teacher', 'SelfDistill', 'FixedTeacher', 'EMATeacher']

REDUCTIONS = ('mean', 'batchmean', 'sum')


def feature_distance(
    student:torch.Tensor, # Features, batch first
    teacher:torch.Tensor, # Features of the same shape
    reduction:str='mean', # 'mean' over all elements, 'batchmean': summed over features, averaged over the batch, or 'sum'
)->torch.Tensor: # Scalar, float32
    "Squared Euclidean distance of features (Eq. 2 of the paper, which sums; its range of lam fits the mean)"
    d = (student.float() - teacher.float()).pow(2)
    if reduction == 'mean': return d.mean()
    return d.sum()/(len(d) if reduction == 'batchmean' else 1)


class Teacher(FeaturePenalty):
    """`lam` times the distance between the encoder's features and those of a frozen copy of it, on the same batch.

    The copy normalises as the student does (`teacher_bn='batch'`: batch statistics wherever the student uses them, so that
    the term is exactly 0 while both have the same weights) or with the running statistics it was copied with ('running').
    Neither its buffers nor the student's are touched; its dropout is off."""
    teacher = None
    _stateattrs = FeaturePenalty._stateattrs + ('teacher',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if reduction not in REDUCTIONS: raise ValueError(f'reduction must be one of {", ".join(REDUCTIONS)}, not {reduction!r}')
        if teacher_bn not in ('batch', 'running'): raise ValueError(f"teacher_bn must be 'batch' or 'running', not {teacher_bn!r}")
        self.reduction, self.teacher_bn = reduction, teacher_bn

    def renew(self, state:dict|None=None):
        "Copy the encoder, with the weights of `state` if given"
        self.teacher = frozen_copy(self.module())
        if state is not None: self.teacher.load_state_dict(state)
        for m in self.teacher.modules():
            if isinstance(m, _BatchNorm): m.track_running_stats = False  # in train mode: the batch's statistics, buffers left alone

    def term(self):
        for t, s in zip(self.teacher.modules(), self.module().modules()):
            if isinstance(t, _BatchNorm): t.training = s.training and self.teacher_bn == 'batch'
        distances = []
        for args, kwargs, out in self.calls():
            with torch.no_grad(): target = self.teacher(*args, **kwargs)
            distances.append(feature_distance(out, target, self.reduction))
        return sum(distances)/len(distances)


class SelfDistill(Teacher):
    "The teacher is the encoder at the start of each epoch (Zhou et al., self-distilled transfer learning, Eq. 3)"
    def begin(self): self.renew()


class FixedTeacher(Anchored, Teacher):
    "The teacher is the encoder from before training (as in LDIFS, Mukhoti et al., TMLR 2024, on the last features)"
    _stateattrs = Teacher._stateattrs + Anchored._anchorattrs

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder=None, # Which part of the model to protect, see `find_encoder`
        anchor=None, # State dict, encoder or file to teach; default: the encoder when training begins
    ):
        super().__init__(lam, reduction, teacher_bn, encoder)
        self.anchor = anchor

    def begin(self):
        if (state := self.take()) is not None: self.renew(state)


class EMATeacher(FixedTeacher):
    "The teacher is the exponential moving average of the encoder (mean teacher, Tarvainen & Valpola 2017), moved after each optimizer step"
    _skipped = False

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder=None, # Which part of the model to protect, see `find_encoder`
        anchor=None, # State dict, encoder or file the average starts from; default: the encoder when training begins
        decay:float=.99, # Part of the average that each step keeps
    ):
        super().__init__(lam, reduction, teacher_bn, encoder, anchor)
        if not 0 <= decay <= 1: raise ValueError(f'decay must be between 0 and 1, not {decay}')
        self.decay = decay

    def before_step(self): self._skipped = False
    def after_cancel_step(self): self._skipped = True  # the gradient scaler saw an overflow: no step happened

    @torch.no_grad()
    def after_step(self):
        if self._skipped: return
        teacher, student = self.teacher.state_dict(), self.module().state_dict()
        floats = [k for k, v in teacher.items() if v.is_floating_point()]
        torch._foreach_lerp_([teacher[k] for k in floats], [student[k] for k in floats], 1 - self.decay)
        for k in teacher.keys() - floats: teacher[k].copy_(student[k])
