"""What a strategy does, without a trainer: attach it to a model and call it in a training loop of your own.

    penalty = SelfDistill(lam=100).attach(model, encoder='videomae')
    for epoch in range(epochs):
        penalty.start_epoch()
        for x, y in loader:
            loss = criterion(model(x), y) + penalty.loss(y)
            loss.backward()
            optimizer.step()
            penalty.after_step()
            optimizer.zero_grad()
    penalty.detach()

The same objects are fastai callbacks: `driver` calls the same methods from a `Learner`'s events. A strategy knows
training only through its `loop`, a `PlainLoop` or a `LearnerLoop`."""
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.statistics import watch_buffers
from ..models.surgery import Met, find_encoder
from ..runtime.identity import number
from .loop import Loop, PlainLoop

__all__ = ['BaseStrategy']


class BaseStrategy:
    """Base of all strategies: what changes how an encoder is trained, in any training loop.

    In a loop of your own, `attach` it, call `start_epoch` before each epoch and `after_step` after each step of the
    optimizer, and `detach` it at the end; or use it as a context manager. A penalty is added to the loss by `loss`.

    A subclass defines what happens at these moments: `forget` when it meets another model, `begin` and `undo` around a
    fit or an epoch (see the base classes in `base`), `before_train` and `after_train` around a training epoch,
    `before_batch`, `before_step` and `after_step`. It reads the state of training from `self.loop`."""
    learn: Any = None  # the `Learner`, for a callback in one
    protected: str|Callable|None = None  # which part of the model to act on, see `find_encoder`
    needs_optimizer = False  # whether `attach` needs it
    needs_steps: bool = False  # whether `after_step` has an effect
    _loop: PlainLoop|None = None  # the loop that the strategy is attached to
    _met: Met|None = None  # the model that the strategy's state is about
    _steps = 0  # calls of `after_step` in this epoch
    _skipped = False  # whether the gradient scaler has skipped the last step
    _stateattrs: tuple[str, ...] = ('_loop', '_met')  # not exported

    @property
    def loop(self)->Loop:
        "Where the strategy is at work"
        if self._loop is None: raise InputError(f'{type(self).__name__} is not attached to a model: call attach(model)')
        return self._loop

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        return find_encoder(self.loop.model, self.protected)

    def batch_targets(self)->torch.Tensor:
        "The targets of this batch, of the shape that the loss takes; raises `InputError` if they are not known"
        who, targets = type(self).__name__, self.loop.targets
        if targets is None: raise InputError(f'{who} needs the targets of the batch: {self.loop.ask_targets}')
        return targets.as_subclass(torch.Tensor)

    def n_epochs(self)->int:
        "Number of epochs of this fit"
        epochs = self.loop.epochs
        if epochs is None:
            raise InputError(f'{type(self).__name__} follows a schedule: call attach(model, epochs=NUMBER)')
        return epochs

    def meet(self)->None:
        "Forget what was taken from another model: anchors, averages and heads belong to one model"
        try: part = self.module()
        except InputError:
            if self.protected is not None: raise
            part = get_model(self.loop.model)  # not every strategy needs an encoder
        met, before = Met(part, self.loop.model), self._met
        if before is not None and not before.is_encoder_of(met): self.forget()
        elif before is not None and not before.is_head_of(met): self.forget_head()
        self._met = met
        watch_buffers(get_model(self.loop.model))

    def forget(self)->None:
        "Drop the state that belongs to another model"
        self.forget_head()

    def forget_head(self)->None: "Drop the state that belongs to another head of the same encoder"

    def mark(self)->str:
        "What its name and columns end with: '_2' for the second strategy of this name that acts on the model"
        strategies = self.loop.strategies if self._loop is not None or self.learn is not None else ()
        return number(self, strategies)

    def load_state_dict(self, state:dict)->None: "Continue from a saved state, see `Resumable`; there is none here"

    # ---- moments of training

    def begin(self)->None: "Called before each epoch of a penalty, before each fit of a recipe"
    def before_train(self)->None: "Called before each training epoch"
    def after_train(self)->None: "Called after each training epoch"
    def before_batch(self)->None: "Called before the model sees a training batch"

    def before_step(self)->None:
        "Called before each step of the optimizer"
        self._skipped = False

    def after_cancel_step(self)->None:
        "Called in fastai if there is no step, because the gradient scaler has seen an overflow"
        self._skipped = True

    def after_step(self)->None:
        "Called after each step of the optimizer, and after one that the gradient scaler has skipped"
        self._steps += 1
        if self._loop is not None: self._skipped = not self._loop.made_step()

    # ---- a training loop of one's own

    def attach(self,
        model:nn.Module, # The model that the loop calls, wrapped by DDP or not
        optimizer:torch.optim.Optimizer|None=None, # For strategies that act on weights or rates, or with `scaler`
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        epochs:int|None=None, # Number of epochs, for strategies with a schedule (PSKD, LPFT)
        batches:Iterable|None=None, # Loader of the training data, for CoTuning, WiSEFT and FLOW, see `split_batch`
        scaler:Any=None, # `torch.amp.GradScaler` of the loop, for strategies that read gradients
        criterion:Callable|None=None, # The task's loss `(logits, targets)`; `None`: cross-entropy, see `target_kind`
        split:Callable|None=None, # Function of a batch of `batches` that returns `(clips, labels)`
    )->'BaseStrategy': # Itself
        """Act on `model` until `detach`; weights from before training are taken now.

        Raises `InputError` if the strategy is in use already, or needs an optimizer and gets none."""
        self.check_free()
        if not isinstance(model, nn.Module): raise InputError(f'attach needs a model, not {type(model).__name__}')
        if self.needs_optimizer and optimizer is None:
            raise InputError(f'{type(self).__name__} acts on the optimizer: call attach(model, optimizer)')
        return self.enter(PlainLoop(self, model, optimizer, epochs, batches, scaler, criterion, split), encoder)

    def check_free(self)->None:
        "Raise `InputError` if the strategy is in use"
        who = type(self).__name__
        if self._loop is None and self.learn is None: return
        raise InputError(f'{who} is in use already: call detach() first, or make another {who}')

    def enter(self,
        loop:PlainLoop, # Whose hooks are on the model
        encoder:str|Callable|None=None, # As for `attach`
        state:dict|None=None, # From `state_dict` of a strategy with state, to continue from
    )->'BaseStrategy': # Itself
        "Act in a loop until `detach`, which removes its hooks; for `attach` and adapters of trainers"
        before = self.protected
        if encoder is not None: self.protected = encoder
        self._loop = loop
        try:
            self.meet()
            if state is not None: self.load_state_dict(state)
            self.attached()
        except BaseException:
            self._loop.remove()
            self._loop, self.protected = None, before
            raise
        return self

    def attached(self)->None: "Called by `attach`"
    def detached(self)->None: "Called by `detach`, before the hooks are removed"

    def start_epoch(self,
        epoch:int|None=None, # Its number, from 0; `None`: the one after the last
    )->None:
        "Start a training epoch: renew the teacher, take what is needed, look for the layers to record"
        loop = self._attached_loop('start_epoch')
        self.end_epoch()
        if epoch is not None: loop.epoch = epoch
        loop.started, self._steps = True, 0
        self.before_train()
        loop.start_batch()

    def end_epoch(self)->None:
        "End the training epoch, if there is one; the next `start_epoch` and `detach` do so, too"
        loop = self._attached_loop('end_epoch')
        if not loop.started: return
        self._check_steps()
        self.after_train()
        loop.started, loop.epoch = False, loop.epoch + 1

    def epoch_state(self)->dict:
        "What this training epoch has brought so far, for a checkpoint in its middle; beside `state_dict`"
        return dict(steps=self._steps)

    def load_epoch_state(self, state:dict)->None:
        "Continue an epoch in its middle; after `load_state_dict` and `start_epoch`"
        self._steps = state['steps']

    def _attached_loop(self, what)->PlainLoop:
        if self._loop is None:
            raise InputError(f'{type(self).__name__}.{what} needs a model: call attach(model) first; '
                             'a Learner calls it by itself')
        return self._loop

    def _check_steps(self):
        if self.needs_steps and not self._steps:
            warnings.warn(f'{type(self).__name__}.after_step was not called in epoch {self.loop.epoch}: call it after '
                          'each optimizer.step()')

    def detach(self,
        interrupted:bool=False, # Whether training stopped in the middle of an epoch
    )->None:
        """End the last epoch, undo what the strategy changed in the model, and remove its hooks.

        As a context manager, a strategy is detached at the end, and counts as interrupted after an exception."""
        if self._loop is None: return
        try:
            if not interrupted: self.end_epoch()
            self.detached()
        finally:
            self._loop.remove()
            self._loop = None

    def __enter__(self)->'BaseStrategy': return self
    def __exit__(self, error:Any, *details:Any)->None: self.detach(interrupted=error is not None)

    def columns(self)->dict[str, Callable]:
        "Numbers for a log, by name: functions of no argument, to be called after an epoch"
        return {}
