"""What every penalty shares: finding the encoder, watching it in the main forward, adding a term to the loss that is
back-propagated, and reporting that term in a column of its own.

A new penalty is a subclass of `Penalty` with a `term` method."""
import hashlib
from copy import deepcopy
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.learner import ValueMetric
from fastai.torch_core import get_model
from torch import nn

from ..models import load_encoder

__all__ = ['find_encoder', 'frozen_copy', 'anchor_state', 'state_hash', 'Penalty', 'FeaturePenalty', 'Anchored']


def find_encoder(
    model:nn.Module, # Wrapped by DDP or not
    encoder=None, # Name of a submodule, or a function of the model; `None`: fastai's convention
)->nn.Module:
    "The encoder of a model: `model[0]` of a `Sequential(encoder, head)`, or `model.encoder`, or what `encoder` says"
    model = get_model(model)
    children = ', '.join(f'{n} ({type(m).__name__})' for n, m in model.named_children()) or 'none'
    if callable(encoder): return encoder(model)
    if isinstance(encoder, str):
        try: return model.get_submodule(encoder)
        except AttributeError: raise ValueError(f'{type(model).__name__} has no submodule {encoder!r}; its children are {children}') from None
    if isinstance(model, nn.Sequential) and len(model) == 2: return model[0]
    if isinstance(getattr(model, 'encoder', None), nn.Module): return model.encoder
    raise ValueError(f'cannot tell which part of {type(model).__name__} is the encoder: it is neither Sequential(encoder, head) nor has it '
                     f'`encoder`. Pass encoder=NAME or a function of the model; its children are {children}')


def frozen_copy(module:nn.Module)->nn.Module:
    "A copy in eval mode that needs no gradient and carries no forward or backward hooks"
    # handed to deepcopy as already copied: a hook may hold a tensor with a graph, which cannot be copied
    hooks = {id(h):type(h)() for m in module.modules() for h in (m._forward_hooks, m._forward_hooks_with_kwargs, m._backward_hooks)}
    return deepcopy(module, hooks).requires_grad_(False).eval()


def anchor_state(
    encoder:nn.Module, # The encoder that is going to be trained
    anchor=None, # State dict, encoder or file of weights to hold on to; `None`: `encoder` as it stands
)->dict[str, torch.Tensor]: # On the device of `encoder`
    "A copy of the weights to hold on to, under the names that they have in `encoder`"
    if anchor is None: return {k:v.detach().clone() for k, v in encoder.state_dict().items()}
    copy = frozen_copy(encoder)
    if isinstance(anchor, (str, Path)): load_encoder(copy, anchor)
    else: copy.load_state_dict(anchor.state_dict() if isinstance(anchor, nn.Module) else anchor)
    return copy.state_dict()


def state_hash(state:dict)->str:
    "Sixteen hex digits that change when a name or a value of a state dict does"
    h = hashlib.sha256()
    for k, v in sorted(state.items()): h.update(k.encode() + str(v.dtype).encode() + v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


class _Watch:
    "A forward hook that keeps what went into and came out of a module; pickled or copied, it is empty"
    def __init__(self): self.calls = []
    def __call__(self, module, args, kwargs, out): self.calls.append((args, kwargs, out))
    def __reduce__(self): return _Watch, ()


class Penalty(Callback):
    """Add `lam * self.term()` to the gradient of every training batch.

    `train_loss` and `valid_loss` stay the task loss; the mean of the term over the epoch's batches, before `lam`, is in a
    column of its own. Subclasses define `term` and, if they keep a state, `begin`, which is called each time an epoch
    starts to train: not for skipped epochs, `validate` or `get_preds`. The term is added before `GradientAccumulation`
    (order 6) divides and inside autocast (left at order 10)."""
    order, run_valid = 5, False
    _sum, _count, _column = None, 0, None
    _stateattrs = ('_sum', '_column')  # not exported

    def __init__(self,
        lam:float, # Weight of the term, at least 0; at 0 training is plain fine-tuning to the bit
        encoder=None, # Which part of the model to protect, see `find_encoder`
    ):
        if not lam >= 0: raise ValueError(f'lam must be a number of at least 0, not {lam}')
        # attributes of a callback must not carry a name that the model has: fastai would look there
        self.lam, self.protected = lam, encoder

    def begin(self): "An epoch is about to train: `self.learn.epoch` is its number"

    def term(self)->torch.Tensor: raise NotImplementedError(f'{type(self).__name__} must define `term`')

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        return find_encoder(self.learn.model, self.protected)

    def before_fit(self):
        if self.learn.lock.locked(): return  # `validate` and `get_preds`, whose results must keep their length
        if self._column is None: self._column = ValueMetric(self.mean_term, self.name)
        self._drop_column()  # left there by an interrupted fit
        self.learn.metrics = self.learn.metrics + [self._column]

    def mean_term(self)->float:
        "Mean of the term over the batches of the last epoch that trained, before `lam`"
        return float('nan') if not self._count else (self._sum/self._count).item()

    def before_train(self):
        self._sum, self._count = None, 0
        self.begin()

    def after_loss(self):
        term = self.term()
        self._sum = term.detach() if self._sum is None else self._sum + term.detach()
        self._count += 1
        self.learn.loss_grad = self.loss_grad + self.lam*term

    def after_fit(self):
        if not self.learn.lock.locked(): self._drop_column()

    def _drop_column(self): self.learn.metrics = type(self.learn.metrics)(m for m in self.learn.metrics if m is not self._column)


class FeaturePenalty(Penalty):
    "A `Penalty` on what the encoder returns, taken from the main forward pass by a hook"
    _handle, _watch = None, None
    _stateattrs = Penalty._stateattrs + ('_handle', '_watch')

    def before_train(self):
        self._unhook()  # an interrupted fit leaves its hook behind
        super().before_train()
        self._watch = _Watch()
        self._handle = self.module().register_forward_hook(self._watch, with_kwargs=True)

    def before_batch(self): self._watch.calls.clear()
    def after_batch(self): self._watch.calls.clear()  # else the last graph stays alive

    def calls(self):
        "`[(args, kwargs, out)]` of the encoder in this batch"
        if not self._watch.calls: raise RuntimeError(f'{type(self).__name__}: the encoder was not called in this forward pass; pass encoder=... to name the module that is')
        for _, _, out in self._watch.calls:
            if not torch.is_tensor(out):
                raise TypeError(f'{type(self).__name__} needs an encoder that returns a tensor, this one returned {type(out).__name__}; pass encoder=... to name another module')
        return self._watch.calls

    def after_train(self): self._unhook()
    def after_fit(self):
        self._unhook()  # `after_train` does not come when a callback cancels the fit
        super().after_fit()

    def _unhook(self):
        if self._handle is not None: self._handle.remove()
        self._handle = self._watch = None


class Anchored:
    """Mix-in for a `Penalty` that holds on to weights from before training: it takes them once and never again.

    They are `anchor` or, without one, the encoder as it stands when the first real fit begins to train (`lr_find` is none).
    Where that moment has passed, in a fit that starts at a later epoch or after `load_learner`, training is an error."""
    anchor, _held, _trial, _taken = None, False, False, False
    _anchorattrs = ('anchor', '_held', '_trial')  # for `_stateattrs`: not exported

    def take(self)->dict|None:
        "`anchor_state` if this is the moment to take it, else `None`: what was taken stays"
        trial = hasattr(self.learn, 'lr_finder')
        if self._held and (trial or not self._trial): return None
        if self.anchor is None and not trial and (self._taken or self.learn.epoch > 0):
            raise ValueError(f'{type(self).__name__} has no weights to hold on to: an exported learner does not carry them, and a fit that starts '
                             f'at epoch {self.learn.epoch} is too late to take them. Pass anchor=STATE_DICT, ENCODER or FILE')
        self._held, self._trial, self._taken = True, trial, self._taken or not trial
        return anchor_state(self.module(), self.anchor)

    def after_fit(self):
        if self._trial: self._held = False
        super().after_fit()
