"""Distillation from an earlier state of the same encoder: of its features (`Teacher` and its kinds) and its feature maps.

The paper's method is `SelfDistill`: L = CE + lam*||f_t(x) - f'(x)||^2, with f' the encoder at the start of the epoch. Wherever a
teacher is a copy in train mode, it normalises with the batch and leaves batch norm's buffers alone."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..models.features import eval_mode
from ..models.surgery import block_names, find_encoder, frozen_copy
from .base import FeaturePenalty
from .mixins import Anchored

__all__ = ['feature_distance', 'map_distance', 'Teacher', 'SelfDistill', 'FixedTeacher', 'EMATeacher', 'FeatureMaps', 'DELTA', 'channel_attention']

REDUCTIONS = ('mean', 'batchmean', 'sum')
LOW = ('bfloat16', 'float16')


def feature_distance(
    student:torch.Tensor, # Features, batch first
    teacher:torch.Tensor, # Features of the same shape
    reduction:str='mean', # 'mean' over all elements, 'batchmean': summed over features, averaged over the batch, or 'sum'
)->torch.Tensor: # Scalar, float32
    "Squared Euclidean distance of features (Eq. 2 of the paper, which sums; its range of lam fits the mean)"
    d = (student.float() - teacher.float()).pow(2)
    if reduction == 'mean': return d.mean()
    return d.sum()/(len(d) if reduction == 'batchmean' else 1)


def map_distance(
    student:torch.Tensor, # Feature maps `(B, C, ...)`, any number of axes behind the channels, none included
    teacher:torch.Tensor, # Maps of the same shape
    weights:torch.Tensor|None=None, # Of the channels `(C,)`, which sum to 1; `None`: equal
)->torch.Tensor: # Scalar, float32
    "`1/2 sum_c C w_c mean (s_c - t_c)^2`, averaged over the batch and places (Li et al., DELTA, ICLR 2019, whose code sums over the batch)"
    d = (student.float() - teacher.float()).pow(2).flatten(2).mean(-1) if student.ndim > 2 else (student.float() - teacher.float()).pow(2)
    return (d if weights is None else d*weights*d.shape[1]).sum(1).mean()/2


def pooled(f:torch.Tensor)->torch.Tensor: return f.flatten(2).mean(-1) if f.ndim > 2 else f


def batch_statistics(teacher:nn.Module)->Iterator[nn.Module]:
    "In train mode its batch norm then uses the batch's statistics and leaves its buffers alone"
    for m in teacher.modules():
        if isinstance(m, _BatchNorm): m.track_running_stats = False
    return teacher


class Teacher(FeaturePenalty):
    """`lam` times the distance between the encoder's features and those of a frozen copy of it, on the same batch.

    The copy normalises as the student does (`teacher_bn='batch'`: batch statistics wherever the student uses them, so that
    the term is exactly 0 while both have the same weights) or with the running statistics it was copied with ('running').
    Neither its buffers nor the student's are touched; its dropout is off. With `layers` the features are those of several
    blocks, each averaged over time and space, side by side (as LDIFS).

    `teacher_dtype` lets the copy, whose weights stay as they are, compute in half the bits where the student does not: faster where the
    processor has such arithmetic, and no longer exact: a student that has not moved is at the distance that rounding makes."""
    teacher, age, teacher_dtype = None, 0, None  # `age`: training batches since the teacher was renewed
    _stateattrs = FeaturePenalty._stateattrs + ('teacher',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16': the teacher's forward under autocast in it, see `Teacher`; `None`: as the student's
    ):
        super().__init__(lam, encoder)
        if reduction not in REDUCTIONS: raise ValueError(f'reduction must be one of {", ".join(REDUCTIONS)}, not {reduction!r}')
        if teacher_bn not in ('batch', 'running'): raise ValueError(f"teacher_bn must be 'batch' or 'running', not {teacher_bn!r}")
        if teacher_dtype is not None and str(teacher_dtype).removeprefix('torch.') not in LOW: raise ValueError(f"teacher_dtype must be {', '.join(map(repr, LOW))} or None, not {teacher_dtype!r}")
        self.reduction, self.teacher_bn, self.layers = reduction, teacher_bn, layers
        self.teacher_dtype = teacher_dtype and getattr(torch, str(teacher_dtype).removeprefix('torch.'))

    def renew(self, state:dict|None=None)->None:
        "Copy the encoder, with the weights of `state` if given"
        self.teacher, self.age = frozen_copy(self.module()), 0
        if state is not None: self.teacher.load_state_dict(state)
        batch_statistics(self.teacher)

    def after_batch(self):
        super().after_batch()
        self.age += 1

    def lower(self)->AbstractContextManager:
        "The precision of the teacher's forward"
        return nullcontext() if self.teacher_dtype is None else torch.autocast(next(self.teacher.parameters()).device.type, self.teacher_dtype)

    def pairs(self)->Iterator[tuple]:
        "`(layer, student's output, teacher's)` of each call of the encoder; the layer is '' for what it returns"
        for t, s in zip(self.teacher.modules(), self.module().modules()):
            if isinstance(t, _BatchNorm): t.training = s.training and self.teacher_bn == 'batch'
        names, calls, found = [n for n in self._recorders if n], self.calls(), []
        for i, (args, kwargs, out) in enumerate(calls):
            seen = {}
            hooks = [self.teacher.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: seen.update({n:o})) for n in names]
            try:
                with torch.no_grad(), self.lower(): seen[''] = self.teacher(*args, **kwargs)
            finally:
                for h in hooks: h.remove()
            for n in names:
                if len(self.calls(n)) != len(calls): raise RuntimeError(f'{type(self).__name__}: layer {n!r} is called {len(self.calls(n))} times where the encoder is called {len(calls)} times')
            found.append([(n, self.calls(n)[i][2], seen[n]) for n in names] or [('', out, seen[''])])
        return found

    def term(self)->torch.Tensor:
        distances = []
        for found in self.pairs():
            (_, s, t), *more = found
            if self.layers is not None: s, t = (torch.cat([pooled(f[i]).float() for f in found], 1) for i in (1, 2))
            distances.append(feature_distance(s, t, self.reduction))
        return sum(distances)/len(distances)


class SelfDistill(Teacher):
    "The teacher is the encoder at the start of each epoch (Zhou et al., self-distilled transfer learning, Eq. 3)"
    def begin(self)->None: self.renew()


class FixedTeacher(Anchored, Teacher):
    "The teacher is the encoder from before training (LDIFS, Mukhoti et al., TMLR 2024; theirs are the features of several `layers`)"
    _stateattrs, _state = Teacher._stateattrs + Anchored._anchorattrs, Anchored._state + ('age',)

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file to teach; default: the encoder when training begins
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16': the teacher's forward under autocast in it, see `Teacher`; `None`: as the student's
    ):
        super().__init__(lam, reduction, teacher_bn, encoder, layers, teacher_dtype)
        self.anchor = anchor

    def begin(self)->None:
        if (state := self.take()) is not None: self.renew(state)

    def state_dict(self)->dict: return super().state_dict() | dict(teacher=None if self.teacher is None else self.teacher.state_dict())

    def load_state_dict(self, state:dict)->None:
        if state['teacher'] is not None: self.renew(state['teacher'])
        super().load_state_dict(state)


class EMATeacher(FixedTeacher):
    "The teacher is the exponential moving average of the encoder (mean teacher, Tarvainen & Valpola 2017), moved after each optimizer step"
    _skipped = False

    def __init__(self,
        lam:float, # Weight of the distance
        reduction:str='mean', # See `feature_distance`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file the average starts from; default: the encoder when training begins
        decay:float=.99, # Part of the average that each step keeps
        layers:str|Sequence[str]|None=None, # Names of layers of the encoder, or 'blocks'; `None`: what it returns
        teacher_dtype:str|torch.dtype|None=None, # 'bfloat16' or 'float16': the teacher's forward under autocast in it, see `Teacher`; `None`: as the student's
    ):
        super().__init__(lam, reduction, teacher_bn, encoder, anchor, layers, teacher_dtype)
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
        self.age = -1  # 0 for the next batch


class FeatureMaps(FixedTeacher):
    "`lam` times `map_distance` of the outputs of `layers` to those of the encoder from before training, summed over the layers"
    weights = None
    _stateattrs = FixedTeacher._stateattrs + ('weights',)

    def __init__(self,
        lam:float, # Weight of the distance
        layers:str|Sequence[str]='blocks', # Names of layers of the encoder, or 'blocks'
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file to teach; default: the encoder when training begins
    ):
        super().__init__(lam, 'mean', teacher_bn, encoder, anchor, layers)

    def term(self)->torch.Tensor:
        found = self.pairs()
        return sum(map_distance(s, t, self.weight(n, s)) for call in found for n, s, t in call)/len(found)

    def weight(self, layer:str, out:torch.Tensor)->torch.Tensor|None: return None


class DELTA(FeatureMaps):
    """`FeatureMaps` with attention: a channel counts by how much the loss grows without it (Li et al., DELTA, ICLR 2019).

    The original's second term, a weight decay of the head, is left to the optimizer."""
    def __init__(self,
        lam:float, # Weight of the distance
        weights:dict, # From `channel_attention`: layer -> `(C,)`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file to teach; default: the encoder when training begins
    ):
        super().__init__(lam, list(weights), teacher_bn, encoder, anchor)
        self.weights = weights

    def begin(self)->None:
        if self.weights is None: raise ValueError('DELTA has lost its channel weights: an exported learner does not carry them; pass a new DELTA(lam, weights)')
        super().begin()

    def weight(self, layer:str, out:torch.Tensor)->torch.Tensor:
        w = self.weights[layer]
        if len(w) != out.shape[1]: raise ValueError(f'DELTA has {len(w)} weights for layer {layer!r}, which has {out.shape[1]} channels')
        return w.to(out.device)


@torch.no_grad()
def channel_attention(
    model:nn.Module, # Whole model, its head fitted to the encoder as it is: the source's, or a probe on the target
    batches:Iterable, # Yields `(x, y)` of that head's task
    layers:str|Sequence[str]='blocks', # Names of layers of the encoder, or 'blocks'
    encoder:str|Callable|None=None, # Which part of the model the layers are of, see `find_encoder`
    T:float=5., # Temperature
)->dict[str, torch.Tensor]: # Layer -> weights `(C,)` that sum to 1
    "How much each channel matters: softmax over channels of the growth of the loss without the channel, over T (DELTA). One pass a channel, in eval mode"
    part, device = find_encoder(model, encoder), next(model.parameters()).device
    layers = block_names(part) if layers == 'blocks' else list(layers)
    batches = [(x.as_subclass(torch.Tensor).to(device), y.as_subclass(torch.Tensor).to(device)) for x, y in batches]
    if not batches: raise InputError('there are no samples to weigh the channels on')
    def loss(): return (sum(F.cross_entropy(model(x).float(), y, reduction='sum') for x, y in batches)/sum(len(y) for _, y in batches)).item()
    weights = {}
    with eval_mode(model):
        whole = loss()
        for name in layers:
            dropped, width = [], []
            def drop(m, args, out):
                width[:] = [out.shape[1]]
                if not dropped: return None
                out = out.clone()
                out[:, dropped[0]] = 0
                return out
            hook = part.get_submodule(name).register_forward_hook(drop)
            try:
                model(batches[0][0])
                growth = []
                for c in range(width[0]):
                    dropped[:] = [c]
                    growth.append(loss() - whole)
            finally: hook.remove()
            weights[name] = torch.tensor(growth).div(T).softmax(0)
    return weights
