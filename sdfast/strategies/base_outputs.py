"""The answers of the encoder before training on the clips that are trained on: kept (`KLToBase`), or used to weight the
clips (`FLOW`). Neither needs a clip of the source."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..models.features import check_logits, head_input, to_feature
from ..models.modes import eval_mode
from ..models.surgery import frozen_copy
from .distill import FixedTeacher
from .outputs import LwF, as_output
from .targets import check_kind, check_numbers, class_numbers, clip_losses, logits_of, task_loss
from .train_clips import Probe, base_probe, numbers_of, train_outputs

__all__ = ['KLToBase', 'FLOW']


class BaseHead(FixedTeacher):
    "Mix-in for a `FixedTeacher` with a `head`, which is fitted as a linear probe before training if none was given"
    head: nn.Module|None = None
    fits_probe = False
    _stateattrs = FixedTeacher._stateattrs + ('head',)

    def begin(self)->None:
        super().begin()
        if self.fits_probe and self.head is None: self.head = base_probe(self)

    def snapshot(self)->dict:
        if self.fits_probe: self.head = None  # it belongs to the weights that are taken now
        return super().snapshot()

    def forget_head(self)->None:
        if self.fits_probe: self.head = None  # another head is another task
        super().forget_head()

    def state_dict(self)->dict:
        fitted = self.head if self.fits_probe else None
        return super().state_dict() | dict(probe=None if fitted is None else fitted.state_dict())

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        if self.fits_probe and state['probe'] is not None: self.head = Probe.of(state['probe'])


class KLToBase(BaseHead, LwF):
    """`lam KL(p_0 || p)` on the clips that are trained on: p_0 are the class probabilities by a frozen head on the
    features of the encoder before training, p those by the same head on the present features.

    This divergence predicts what a fine-tuning forgets (Shenfeld et al., RL's Razor, arXiv 2509.04259); here it is the
    penalty. It is exactly 0 while the encoder is unchanged. The head is the source's or, with `head=None`, a linear
    probe of the new task on the encoder before training, which needs neither the source's clips nor its head. With the
    source's head and temperature 2 this is `LwF`, whose notes on `activation` hold here, too."""
    name = 'kl_base'

    def __init__(self,
        lam:float, # Weight of the divergence
        head:nn.Module|None=None, # From features to logits, such as the source's; `None`: a probe, see above
        T:float=1., # Temperature; the divergence is multiplied by T^2
        teacher_bn:str='batch', # 'batch' or 'running' statistics in the batch norm of the encoder before training
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
        activation:str|None=None, # 'softmax' or 'sigmoid', which the head's logits are for; `None`: see `LwF`
    ):
        super().__init__(lam, head, T, teacher_bn, encoder, anchor, activation)  # type: ignore[arg-type]
        self.fits_probe = head is None
        if self.fits_probe: self.activation = 'softmax'

    def own_head(self, head:Any)->nn.Module|None: return None if head is None else super().own_head(head)
    def check_head(self)->None:
        if not self.fits_probe: super().check_head()


class FLOW(BaseHead):
    """Weight each clip by how easy it is for the encoder before training, `exp(-l_0/T)` (Sanyal et al., ICML 2025).

    l_0 is the clip's loss by a linear probe of the task on the encoder before training, in eval mode, or by `head`. T
    is the median of l_0 over the training clips without augmentation. As in the authors' code, l_0 is of the clip as it
    is trained on, and the weighted losses are divided by the number of clips, not by the sum of weights.

    `lam` is the share of the weighting: the weight is `1 - lam + lam exp(-l_0/T)`, so 1 is FLOW. The term is the change
    of the loss, and negative. It is the task's own loss that is weighted, clip by clip; l_0 is plain cross-entropy,
    binary for independent logits. A loss that cannot give the loss of each clip, such as that of MixUp, is refused."""
    name = 'flow'
    kinds, needs_mean = ('classes', 'soft', 'multi-label', 'binary'), True
    most = 1.  # lam is a share
    first_lam = 1.
    median: float|None = None  # the temperature in use
    _stateattrs = BaseHead._stateattrs + ('median',)

    def __init__(self,
        lam:float=1., # Share of the weighting, at most 1
        head:nn.Module|None=None, # From features to logits of the task; `None`: a linear probe, fitted before training
        temperature:float|None=None, # T; `None`: the median of l_0
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(lam, 'mean', 'running', encoder, anchor)
        if lam > 1: raise InputError(f'lam of FLOW is the share of the weighting, at most 1, not {lam}')
        if head is not None and not isinstance(head, nn.Module):
            raise InputError(f'head of FLOW is a module from features to logits, not {type(head).__name__}')
        if temperature is not None and not 0 < temperature < float('inf'):
            raise InputError(f'temperature of FLOW must be a number above 0, not {temperature!r}')
        self.head, self.fits_probe = None if head is None else frozen_copy(head), head is None
        self.temperature = temperature

    def begin(self)->None:
        if self.head is None and not self.fits_probe:
            raise ValueError('FLOW lacks its head: an exported learner does not carry it; pass a new FLOW(lam, head)')
        super().begin()
        assert self.head is not None  # given or fitted
        self.head.to(next(self.module().parameters()).device)
        if self.median is None: self.median = self.temperature or self._median()

    def _median(self):
        "The median loss of the training clips before training"
        with eval_mode(self.teacher):
            logits, y = train_outputs(
                self, self._base_logits, 'without the training data the median loss is not known: pass '
                                         'temperature=NUMBER, or attach(..., batches=LOADER)')
        kind = check_kind('FLOW', self.kinds, logits, y, self.loop.criterion) if not self.fits_probe else 'classes'
        median = self._base_losses(logits, y, kind).double().median().item()
        if 0 < median < float('inf'): return median
        raise InputError(f'FLOW: the median loss of the training clips before training is {median}, so that nothing '
                         'tells easy clips from others: pass temperature=NUMBER')

    def _base_logits(self, module, args, kwargs, out):
        assert self.teacher is not None and self.head is not None  # made in `begin`
        out = self.teacher(*args, **kwargs)
        return self.head(head_input(self.head, out, to_feature(self.teacher, out, args, kwargs)))

    def _base_losses(self, logits, y, kind):
        "Plain loss of each clip by the head on the encoder before training"
        if self.fits_probe and kind != 'soft': y, kind = numbers_of('FLOW', y), 'classes'
        if kind == 'classes': check_numbers('FLOW', class_numbers(y), logits.shape[1])
        return clip_losses(logits, y, kind)

    def snapshot(self)->dict:
        self.median = None
        return super().snapshot()

    def warn_if_frozen(self)->None: "It weights what the head learns from, too"
    def state_dict(self)->dict: return super().state_dict() | dict(median=self.median)

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        self.median = state['median']

    def term(self)->torch.Tensor:
        kind, criterion = self.target_kind(), self.loop.criterion
        y, logits = self.batch_targets(), logits_of(self.loop.outputs).float()
        outputs = as_output(self.loop, logits)
        losses = clip_losses(outputs, y, kind, criterion)
        with torch.no_grad():
            # a loss with class weights divides by their sum, not by the number of clips
            whole = task_loss(outputs, y, kind, criterion)
            n = torch.where(whole > 0, losses.sum()/whole, torch.full_like(whole, len(losses)))
            change = self.clip_weights(y, kind) - 1
        return (change*losses).sum()/n

    def clip_weights(self, y:torch.Tensor, kind:str)->torch.Tensor:
        "`exp(-l_0/T)` of the clips of the batch"
        assert self.head is not None and self.median is not None  # made in `begin`
        logits = [self.head(pair.inputs(self.head)[1]).float() for call in self.pairs() for pair in call]
        check_logits(logits[0], 'FLOW')
        if any(len(z) != len(y) for z in logits):
            raise InputError(f'FLOW: the encoder sees {len(logits[0])} clips where there are {len(y)} targets, so that '
                             'clips have no loss of their own: take KLToBase')
        losses = torch.stack([self._base_losses(z, y, kind) for z in logits]).mean(0)
        return (-losses/self.median).exp()
