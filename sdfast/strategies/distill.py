"""Distillation from an earlier state of the same encoder: a penalty on the distance of its features to a teacher's.

The paper's method is `SelfDistill`: L = CE + lam*||f_t(x) - f'(x)||^2, with f' the encoder at the start of the epoch.
`FixedTeacher` and `EMATeacher` differ in when the teacher is renewed. A teacher is a frozen copy; in train mode it
normalises with the batch's statistics and leaves its batch-norm buffers unchanged."""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..models.averages import as_real, averaged_tensors, is_averaged
from ..models.blocks import count_trainable, params_before
from ..models.statistics import as_student
from ..models.surgery import frozen_copy
from .base import FeaturePenalty
from .mixins import Anchored
from .pairs import Pair, same_rows

__all__ = ['feature_distance', 'slice_distance', 'Teacher', 'SelfDistill', 'FixedTeacher', 'EMATeacher']

REDUCTIONS = ('mean', 'batchmean', 'sum')
TEACHER_BN = ('batch', 'running')  # which statistics a teacher's batch norm uses
HALF = ('bfloat16', 'float16')  # reduced precisions that a teacher's forward pass can have


def feature_distance(
    student:torch.Tensor, # Features, batch first
    teacher:torch.Tensor, # Features of the same shape
    reduction:str='mean', # 'mean' over all elements, 'sum', or 'batchmean': the sum divided by the batch size
)->torch.Tensor: # Scalar, float32
    "Squared Euclidean distance of features (Eq. 2 of the paper, which has the sum; its values of lam suit the mean)"
    d = (student.float() - teacher.float()).pow(2)
    if reduction == 'mean': return d.mean()
    return d.sum()/(len(d) if reduction == 'batchmean' else 1)


def slice_distance(
    pairs:Sequence[tuple[torch.Tensor, torch.Tensor]], # Features `(B, F)` of student and teacher, layer by layer
    reduction:str='mean', # See `feature_distance`
)->torch.Tensor: # Scalar, float32
    """The mean over layers of `feature_distance` of features that are scaled to length 1, as the authors of LDIFS do it
    (Mukhoti et al., TMLR 2024): all layers count the same, however large their activations are"""
    distances = [feature_distance(_unit(s), _unit(t), reduction) for s, t in pairs]
    return torch.stack(distances).mean()


def _unit(f): return f.float()/(f.float().norm(dim=1, keepdim=True) + 1e-10)


def check_teacher_bn(teacher_bn:str)->None:
    if teacher_bn not in TEACHER_BN: raise ValueError(f"teacher_bn must be 'batch' or 'running', not {teacher_bn!r}")


def _half_precision(dtype):
    "The torch dtype for a name in `HALF` or such a dtype; `None` for `None`"
    if dtype is None: return None
    name = str(dtype).removeprefix('torch.')
    if name not in HALF: raise ValueError(f"teacher_dtype must be {', '.join(map(repr, HALF))} or None, not {dtype!r}")
    return getattr(torch, name)


class Teacher(FeaturePenalty):
    """`lam` times the distance between the encoder's features and those of a frozen copy of it, on the same batch.

    With `teacher_bn='batch'` the copy normalises as the student does: with the batch's statistics wherever the student
    uses them, so that the term is exactly 0 while both have the same weights. With 'running' it uses the running
    statistics it was copied with. Neither its buffers nor the student's change, and its dropout is off. With `layers`
    the features of several layers are concatenated or, with `normalise`, scaled to length 1 layer by layer and their
    distances averaged (as LDIFS does). What a feature is says `to_feature`.

    `teacher_dtype` runs the copy's forward pass in half precision, with weights in full precision. This is faster on
    hardware with such arithmetic, but not exact: while both have the same weights, the term is the rounding error
    instead of 0.

    Subclasses call `renew` in `begin`."""
    teacher: nn.Module|None = None
    age = 0  # training batches since the teacher was renewed
    teacher_dtype: torch.dtype|None = None
    _stateattrs = FeaturePenalty._stateattrs + ('teacher',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16' for the teacher; `None`: as the student
        normalise:bool=False, # Scale each layer's features to length 1 and average over layers, see `slice_distance`
    ):
        super().__init__(lam, encoder)
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction must be one of {", ".join(REDUCTIONS)}, not {reduction!r}')
        check_teacher_bn(teacher_bn)
        self.reduction, self.teacher_bn, self.layers, self.normalise = reduction, teacher_bn, layers, normalise
        self.teacher_dtype = _half_precision(teacher_dtype)

    def before_train(self):
        self._check_protects()
        super().before_train()

    def _check_protects(self):
        "Raise `InputError` if the teacher is a copy of a small part behind most of the weights that learn"
        module = self.module()
        size, before = count_trainable(module.parameters()), count_trainable(params_before(self.loop.model, module))
        if not 0 < size < before/4: return
        raise InputError(f'{type(self).__name__}: only the {size:,} weights of encoder={self.protected!r} '
                         f'({type(module).__name__}) are copied, and the {before:,} before it move freely: pass '
                         'encoder= the whole encoder, and layers=[...] to protect what this part returns')

    def renew(self, state:dict|None=None)->None:
        "Make a copy of the current encoder the teacher, with the weights of `state` if given"
        self.teacher, self.age = frozen_copy(self.module()), 0
        if state is not None: self.teacher.load_state_dict(state)

    def after_batch(self):
        super().after_batch()
        self.age += 1

    def epoch_state(self)->dict: return super().epoch_state() | dict(age=self.age)

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        self.age = state['age']

    def precision(self)->AbstractContextManager:
        "The precision of the teacher's forward pass"
        if self.teacher_dtype is None: return nullcontext()
        return torch.autocast(next(self.teacher.parameters()).device.type, self.teacher_dtype)

    def pairs(self)->list[list[Pair]]:
        "For each call of the encoder, what it or each of `layers` returned in the student and in the teacher"
        assert self.teacher is not None  # set in `begin`
        self.check_inputs()
        calls = self.calls()
        layers = self.recorded()
        found = []
        for i, (args, kwargs, _) in enumerate(calls):
            taught = self._teach(layers, args, kwargs)
            for n in layers: self._check_calls(n, len(calls))
            found.append([self._pair(n, i, taught[n]) for n in layers or ['']])
        return found

    def _pair(self, layer, i, taught):
        args, kwargs, out = self.calls(layer)[i]
        return Pair(self.module().get_submodule(layer), args, kwargs, out, taught, layer, self.what(layer))

    def _teach(self, layers, args, kwargs):
        "The teacher's outputs by layer for one call of the encoder"
        outputs = {}
        hooks = [self.teacher.get_submodule(n).register_forward_hook(lambda m, a, out, n=n: outputs.update({n:out}))
                 for n in layers]
        try:
            with as_student(self.teacher, self.module(), self.teacher_bn), torch.no_grad(), self.precision():
                outputs[''] = self.teacher(*args, **kwargs)
        finally:
            for h in hooks: h.remove()
        return outputs

    def _check_calls(self, layer, n):
        m = len(self.calls(layer))
        if m != n:
            raise InputError(f'{type(self).__name__}: layer {layer!r} is called {m} times where the encoder is called '
                             f'{n} times, so it has several outputs: pass layers=[...] without it')

    def term(self)->torch.Tensor:
        distances = [self._distance(found) for found in self.pairs()]
        return sum(distances)/len(distances)

    def _distance(self, found):
        features = same_rows([pair.features() for pair in found])
        if self.normalise: return slice_distance(features, self.reduction)
        if self.layers is None: (student, teacher), = features
        else: student, teacher = (torch.cat([f.float() for f in fs], 1) for fs in zip(*features))
        return feature_distance(student, teacher, self.reduction)


class SelfDistill(Teacher):
    "The teacher is the encoder at the start of each epoch (Zhou et al., self-distilled transfer learning, Eq. 3)"
    first_lam = 30.

    def begin(self)->None: self.renew()

    def epoch_state(self)->dict:
        assert self.teacher is not None  # set in `begin`
        return super().epoch_state() | dict(teacher=self.teacher.state_dict())

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        assert self.teacher is not None  # set in `begin`
        self.teacher.load_state_dict(state['teacher'])

    def after_train(self):
        super().after_train()
        trains = count_trainable(self.module().parameters())
        if not (trains and self.lam and self._sum is not None and self._sum == 0): return
        self._warn_once('one step', f' has no effect: its term was 0 in all batches of epoch {self.loop.epoch}, as the '
                                    'encoder did not change between the first and the last of them. With one step an '
                                    'epoch it never does: take a smaller batch size, or FixedTeacher')


class FixedTeacher(Anchored, Teacher):
    """The teacher is the encoder before training (LDIFS, Mukhoti et al., TMLR 2024, which uses the features of several
    `layers`)"""
    first_lam = 3.
    _stateattrs = Teacher._stateattrs + Anchored._anchorattrs
    _state = Anchored._state + ('age',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16' for the teacher; `None`: as the student
        normalise:bool=False, # Scale each layer's features to length 1 and average over layers, see `slice_distance`
    ):
        super().__init__(lam, reduction, teacher_bn, encoder, layers, teacher_dtype, normalise)
        self.anchor = anchor

    def begin(self)->None: self.take()

    def snapshot(self)->dict:
        "Make a copy with the weights from before training the teacher"
        state = super().snapshot()
        self.renew(state)
        return state

    def state_dict(self)->dict:
        return super().state_dict() | dict(teacher=None if self.teacher is None else self.teacher.state_dict())

    def load_state_dict(self, state:dict)->None:
        if state['teacher'] is not None: self.renew(state['teacher'])
        super().load_state_dict(state)


class EMATeacher(FixedTeacher):
    """The teacher is the exponential moving average of the encoder over optimizer steps (mean teacher, Tarvainen &
    Valpola 2017)"""
    first_lam, needs_steps = 10., True
    _exact: dict[str, torch.Tensor]|None = None  # the average in float32 of tensors in half precision, by name
    _stateattrs = FixedTeacher._stateattrs + ('_exact',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
        decay:float=.99, # Share of the average that is kept at each step
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16' for the teacher; `None`: as the student
        normalise:bool=False, # Scale each layer's features to length 1 and average over layers, see `slice_distance`
    ):
        super().__init__(lam, reduction, teacher_bn, encoder, anchor, layers, teacher_dtype, normalise)
        if not 0 <= decay <= 1: raise ValueError(f'decay must be between 0 and 1, not {decay}')
        self.decay = decay

    @torch.no_grad()
    def after_step(self):
        super().after_step()
        if self._skipped: return
        assert self.teacher is not None  # set in `begin`
        state, kept = self.module().state_dict(), self.teacher.state_dict()
        means = averaged_tensors(kept)
        student = {k:as_real(state[k]) for k in means}
        half = [k for k, v in means.items() if v.itemsize == 2]
        if half: self._average_half({k:means[k] for k in half}, student)
        floats = [k for k in means if means[k].itemsize != 2]
        if floats: torch._foreach_lerp_([means[k] for k in floats], [student[k] for k in floats], 1 - self.decay)
        self._copy_others(kept, state)
        self.age = -1  # `after_batch` makes it 0 for the next batch

    def _average_half(self, means, student):
        "In float32: steps of a slow average are smaller than the rounding of half precision"
        if self._exact is None: self._exact = {k:v.float() for k, v in means.items()}
        exact = [self._exact[k] for k in means]
        torch._foreach_lerp_(exact, [student[k].float() for k in means], 1 - self.decay)
        torch._foreach_copy_(list(means.values()), exact)

    def _copy_others(self, kept, state):
        "Counters, and what modules define as their extra state, are the student's"
        for k, v in kept.items():
            if torch.is_tensor(v) and not is_averaged(v): v.copy_(state[k])
            elif not torch.is_tensor(v):
                self.teacher.get_submodule(k.rpartition('.')[0]).set_extra_state(deepcopy(state[k]))

    def renew(self, state:dict|None=None)->None:
        super().renew(state)
        self._exact = None

    def state_dict(self)->dict: return super().state_dict() | dict(exact=self._exact)

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        self._exact = state.get('exact')
