"Distillation of feature maps: the outputs of several layers of a fixed teacher, optionally with DELTA's attention."
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..models.channels import channel_axis
from ..models.features import eval_mode, to_maps
from ..models.returned import find_tensors, map_tensors
from ..models.surgery import block_names, find_encoder
from .distill import FixedTeacher
from .targets import check_kind, check_mean, check_numbers, check_same, class_numbers, logits_of

__all__ = ['map_distance', 'FeatureMaps', 'DELTA', 'channel_attention']


def map_distance(
    student:torch.Tensor, # Feature maps `(B, C, ...)` with any number of further axes, or none
    teacher:torch.Tensor, # Maps of the same shape
    weights:torch.Tensor|None=None, # Weights of the channels `(C,)`, with sum 1; `None`: equal
)->torch.Tensor: # Scalar, float32
    """`1/2 sum_c C w_c mean (s_c - t_c)^2`, averaged over batch and places (Li et al., DELTA, ICLR 2019, whose code
    sums over the batch)"""
    return _weighted(_channel_errors(student, teacher), weights)


def _channel_errors(student, teacher):
    "Squared differences averaged over places, `(B, C)`"
    d = (student.float() - teacher.float()).pow(2)
    return d.flatten(2).mean(-1) if d.ndim > 2 else d


def _weighted(d, weights):
    if weights is not None: d = d*weights*d.shape[1]
    return d.sum(1).mean()/2


class FeatureMaps(FixedTeacher):
    """`lam` times `map_distance` between the outputs of `layers` in the encoder and in the encoder before training,
    summed over the layers"""
    first_lam = .1
    weights: dict[str, torch.Tensor]|None = None  # layer -> weights of its channels; `None`: equal
    _stateattrs = FixedTeacher._stateattrs + ('weights',)

    def __init__(self,
        lam:float, # Weight of the distance
        layers:str|Sequence[str]='blocks', # Names of layers of the encoder, or 'blocks'
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(lam, 'mean', teacher_bn, encoder, anchor, layers)

    def term(self)->torch.Tensor:
        calls = self.pairs()
        total: Any = sum(self._distance(pair) for call in calls for pair in call)
        return total/len(calls)

    def _distance(self, pair):
        # the channels of parallel branches count as those of one map
        errors = torch.cat([_channel_errors(s, t) for s, t in pair.maps()], 1)
        return _weighted(errors, self.weight(pair.layer, errors))

    def weight(self, layer:str, errors:torch.Tensor)->torch.Tensor|None:
        "Weights of a layer's channels, given their errors `(B, C)`; `None`: equal"
        return None


class DELTA(FeatureMaps):
    """`FeatureMaps` with attention: channels without which the loss grows most have most weight (Li et al., DELTA, ICLR
    2019).

    The original's second term, a weight decay of the head, is left to the optimizer."""
    def __init__(self,
        lam:float, # Weight of the distance
        weights:dict, # From `channel_attention`: layer -> `(C,)`
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the teacher's batch norm
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(lam, list(weights), teacher_bn, encoder, anchor)
        self.weights = weights

    def begin(self)->None:
        if self.weights is None:
            raise ValueError('DELTA lacks its channel weights: an exported learner does not carry them; '
                             'pass a new DELTA(lam, weights)')
        super().begin()

    def weight(self, layer:str, errors:torch.Tensor)->torch.Tensor:
        assert self.weights is not None  # checked in `begin`
        w = self.weights[layer]
        if len(w) != errors.shape[1]:
            raise ValueError(f'DELTA has {len(w)} weights for layer {layer!r}, which has {errors.shape[1]} channels')
        return w.to(errors.device)


@torch.no_grad()
def channel_attention(
    model:nn.Module, # Encoder and a head that was fitted to it: the source's, or a probe on the target
    batches:Iterable, # Yields `(x, y)` of that head's task
    layers:str|Sequence[str]='blocks', # Names of layers of the encoder, or 'blocks'
    encoder:str|Callable|None=None, # Which part of the model has the layers, see `find_encoder`
    T:float=5., # Temperature
    loss_func:Callable|None=None, # That task's loss `(logits, y)`, a mean over samples; `None`: cross-entropy
)->dict[str, torch.Tensor]: # Layer -> weights `(C,)` with sum 1
    """The importance of each channel: softmax over channels of (loss without the channel - loss)/T (DELTA).

    It makes one pass over the batches for each channel, in eval mode. Raises `InputError` for targets that are not
    those of cross-entropy, unless `loss_func` is given."""
    part, device = find_encoder(model, encoder), next(model.parameters()).device
    given = layers != 'blocks'
    layers = list(layers) if given else block_names(part)
    batches = [[t.as_subclass(torch.Tensor).to(device) for t in split_batch(b)] for b in batches]
    if not batches: raise InputError('there are no samples to weigh the channels on')
    n = sum(len(y) for _, y in batches)

    summed = _summed_loss(model, batches, loss_func)
    def loss(): return (sum(summed(logits_of(model(x)).float(), y) for x, y in batches)/n).item()

    weights = {}
    with eval_mode(model):
        whole = loss()
        for name in layers:
            layer = part.get_submodule(name)
            growth, channels = [], _channels(model, layer, batches[0][0])
            if not channels and not given: continue
            if not channels: raise InputError(f'layer {name!r} was not called; name other layers')
            for c in range(channels):
                hook = layer.register_forward_hook(partial(_without, c), with_kwargs=True)
                try: growth.append(loss() - whole)
                finally: hook.remove()
            weights[name] = torch.tensor(growth).div(T).softmax(0)
    return weights


def _summed_loss(model, batches, loss_func):
    "The loss as a function of logits and targets, summed over samples"
    if loss_func is not None:
        check_mean('channel_attention', loss_func)
        return lambda logits, y: loss_func(logits, y)*len(y)
    who, advice = 'channel_attention', "pass loss_func=LOSS, the task's loss"
    with eval_mode(model):
        x, y = batches[0]
        logits = logits_of(model(x), who)
    kind = check_kind(who, ('classes', 'soft'), logits, y, advice=advice, instead=advice)
    for _, y in batches:
        check_same(who, kind, y, advice)
        if kind == 'classes': check_numbers(who, class_numbers(y), logits.shape[1])
    def summed(logits, y): return F.cross_entropy(logits, class_numbers(y) if kind == 'classes' else y, reduction='sum')
    return summed


def _channels(model, layer, x):
    "Number of channels of a layer's output; 0 if the model does not call it"
    found = []
    hook = layer.register_forward_hook(
        lambda m, args, kwargs, out: found.append(to_maps(m, out, args, kwargs, 'a layer')), with_kwargs=True)
    try: model(x)
    finally: hook.remove()
    return sum(m.shape[1] for m in found[-1]) if found else 0


def _without(channel, module, args, kwargs, out):
    "What a layer returned with zeros in one channel; those of parallel branches are counted one after the other"
    left = channel

    def zero(t):
        nonlocal left
        axis = channel_axis(module, t, args, kwargs, find_tensors)
        if 0 <= left < t.shape[axis]:
            t = t.clone()
            t.select(axis, left).zero_()
        left -= t.shape[axis]
        return t

    return map_tensors(out, zero)
