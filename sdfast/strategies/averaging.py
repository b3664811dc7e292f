"Weight averaging: the encoder from before training and the one after, and the statistics of batch norm between them."
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models import eval_mode
from ..resume import Stateful
from .lora import LoRA
from .penalty import Anchored, anchor_state, find_encoder
from .recipes import Recipe, batch_norms

__all__ = ['wise_ft', 'reestimate_bn', 'wise_ft_sweep', 'WiSEFT']


def _check_alpha(alpha):
    if not 0 <= alpha <= 1: raise ValueError(f'alpha must be between 0 (the weights before training) and 1 (those after), not {alpha}')


def _before(encoder, anchor):
    if anchor is None: raise ValueError('averaging needs the weights from before training: pass a state dict, an encoder or a file as anchor')
    return anchor_state(encoder, anchor)


def wise_ft(
    encoder:nn.Module, # As fine-tuning left it; it does not change
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: as it was before
    alpha:float, # 0: `anchor`, 1: `encoder`, both to the bit
)->dict[str, torch.Tensor]: # A new state dict, under the names of `encoder`
    "`(1 - alpha)*theta_0 + alpha*theta` of weights and floating point buffers, others as in `encoder` (Wortsman et al., CVPR 2022)"
    _check_alpha(alpha)
    start, end = _before(encoder, anchor), anchor_state(encoder)
    if alpha == 0: return start
    if alpha == 1: return end
    return {k:torch.lerp(start[k], v, alpha) if v.is_floating_point() else v for k, v in end.items()}


@torch.no_grad()
def reestimate_bn(
    model:nn.Module, # Called on the inputs of each batch
    dl:Iterable, # Yields `(x, y)`; `y` is not looked at
    part:nn.Module|None=None, # Batch norm of this part of the model only; `None`: of all of it
)->nn.Module: # `model`
    """Set batch norm's running statistics to the mean over the batches of `dl`, as `momentum=None` does.

    All else is in eval mode, so dropout draws nothing. Modes and momentum come back, after an error the statistics as well.
    Without batch norm `dl` is not read. Raises `InputError` for a loader without batches."""
    norms = [m for m in batch_norms(model if part is None else part) if m.track_running_stats and m.running_mean is not None]
    if not norms: return model
    device, seen = norms[0].running_mean.device, 0
    momentum, before = [m.momentum for m in norms], [[b.clone() for b in m.buffers()] for m in norms]
    with eval_mode(model):
        try:
            for m in norms:
                m.train()
                m.reset_running_stats()
                m.momentum = None
            for seen, (*xs, _) in enumerate(dl, 1): model(*(x.as_subclass(torch.Tensor).to(device) for x in xs))
            if not seen: raise InputError('there are no batches to take the statistics of batch norm from; pass a loader that yields (x, y)')
        except BaseException:
            for m, buffers in zip(norms, before):
                for b, old in zip(m.buffers(), buffers): b.copy_(old)
            raise
        finally:
            for m, mom in zip(norms, momentum): m.momentum = mom
    return model


def _interpolate(model, part, start, alpha, dl):
    "Put `part` at `alpha`. Statistics that belong to neither end are taken anew, if training had moved them at all"
    moved = any(k.endswith(('running_mean', 'running_var')) and not torch.equal(v, start[k]) for k, v in part.state_dict().items())
    part.load_state_dict(wise_ft(part, start, alpha))
    if moved and 0 < alpha < 1: reestimate_bn(model, dl, part)


def wise_ft_sweep(
    learn:Learner|nn.Module, # Learner or model, fine-tuned
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder as it was before
    alphas:Iterable[float], # Numbers from 0 to 1
    dl:Iterable, # Batches `(x, y)` of the target task, for the statistics of batch norm
    measure:Callable, # Function of `learn`
    encoder:str|Callable|None=None, # Which part of the model to interpolate, see `find_encoder`
)->Iterator[tuple]: # Pairs, as `alphas` has them
    "Yields `(alpha, measure(learn))`; between two of them and at the end the encoder is what it was, to the bit"
    model = get_model(learn.model if isinstance(learn, Learner) else learn)
    part = find_encoder(model, encoder)
    start, end = _before(part, anchor), anchor_state(part)
    for alpha in alphas:
        try:
            _interpolate(model, part, start, alpha, dl)
            value = measure(learn)
        finally: part.load_state_dict(end)
        yield alpha, value


class WiSEFT(Anchored, Stateful, Recipe):
    """After the fit the encoder becomes `wise_ft` of what it was before and what it is now; its batch norm's statistics are taken
    anew from the train loader. The head stays. What the recorder shows is from before this.

    Not after `lr_find` or a fit that was interrupted in the middle of an epoch; early stopping is no such interrupt.
    Raises `ValueError` where it is too late to take the weights from before, see `Anchored`."""
    name, order = 'wise_ft', 80  # behind SaveModelCallback, which loads the best epoch
    _start, _whole = None, False
    _stateattrs, _kept = Anchored._anchorattrs + ('_start', '_whole'), Anchored._kept + ('_start', '_whole')

    def __init__(self,
        alpha:float=.5, # How much of fine-tuning to keep; 0 and 1 are the two ends, to the bit
        encoder:str|Callable|None=None, # Which part of the model to interpolate, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file to interpolate with; default: the encoder when training begins
    ):
        super().__init__(encoder)
        _check_alpha(alpha)
        self.alpha, self.anchor = alpha, anchor

    def begin(self)->None:
        self._whole = False
        if any(isinstance(cb, LoRA) for cb in self.learn.cbs):
            raise ValueError('WiSEFT cannot interpolate an encoder with adapters: fit with LoRA() alone, then call wise_ft_sweep')

    def before_train(self):
        self._whole = False
        if (state := self.take()) is not None: self._start = state

    def after_train(self): self._whole = True

    def after_fit(self):
        if self._whole and not self.learn.lock.locked() and not hasattr(self.learn, 'lr_finder'):
            self._whole = False
            _interpolate(get_model(self.learn.model), self.module(), self._start, self.alpha, self.dls.train)
        super().after_fit()
