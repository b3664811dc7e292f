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
training only through its `loop`, a `PlainLoop` here and a `LearnerLoop` there."""
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.copies import Hook
from ..models.statistics import watch_buffers
from ..models.surgery import Met, find_encoder
from ..runtime.identity import number
from .hooks import is_paused
from .targets import PROBLEM_TYPES

__all__ = ['BaseStrategy']


class Loop:
    """What a strategy sees of the loop that trains: the model, the optimizer, the epoch and the current batch.

    A subclass gives the attributes below, and `args`, `kwargs`, `outputs` and `targets` of the current batch."""
    model: nn.Module # In training, perhaps wrapped by DDP
    opt: Any = None # The optimizer in fastai's interface, which groups parameters; `None` if there is none
    epoch: int = 0 # Number of the training epoch
    epochs: int|None = None # Number of epochs, if known
    trial: bool = False # Whether this is a trial, such as `lr_find`, whose effects are undone
    batches: Any = None # The loader of the training data, if known
    unaugmented: Any = None # A loader of the same in order, if possible without augmentation
    classes: int = 0 # Number of classes of the targets, 0 if it is not known
    divided: bool = True # Whether each process of a distributed loop loads a part of the data
    scale: float|None = None # Factor by which a gradient scaler has multiplied the loss of this step
    gradient_scale: Any = None # In `before_step`: the factor that the gradients of the model still have
    strategies: list # All strategies that act on this model
    args: tuple # Positional arguments of the model in this batch
    kwargs: dict # Its keyword arguments
    outputs: Any # What it returned
    targets: Any # What the loss compares the outputs with, a tensor; `None` if not given
    criterion: Callable|None # The task's loss; `None` if not known
    loss_of_logits: bool = True # Whether it takes logits, or what the model returns
    inputs: Any = () # In `before_batch`: what the model is going to be called with


class PlainLoop(Loop):
    """A training loop that somebody else writes: hooks on the model show its batches to the strategy.

    A batch is what the model is called with, with gradients enabled, between two calls of `loss`."""
    def __init__(self,
        strategy:'BaseStrategy', # Whose methods are called
        model:nn.Module, # Called by the training loop
        optimizer:torch.optim.Optimizer|None=None, # For strategies that act on it
        epochs:int|None=None, # Number of epochs, for strategies with a schedule
        batches:Iterable|None=None, # Loader of the training data `(x, y)`
        scaler:Any=None, # The loop's `torch.amp.GradScaler`
        criterion:Callable|None=None, # The loop's loss
    ):
        self.strategy, self.model, self.epochs, self.batches = strategy, model, epochs, batches
        self.unaugmented, self.scaler, self.given_criterion = batches, scaler, criterion
        self.optimizer, self.opt = optimizer, None if optimizer is None else OptimWrapper(opt=optimizer)
        self.started = False  # whether an epoch has started
        self.read = True  # whether `loss` has read the batch, so that the next call of the model is another one
        self._stepped = False  # whether the optimizer has made a step since the last `after_step`
        self._scale: float|None = None  # the scaler's at the last step, which it may change before `after_step`
        self._targets: Any = None
        self._calls: list[tuple] = []  # of the model in this batch
        self._mode: bool|None = None  # whether the model was in train mode then
        self._live: bool|None = None  # whether the call in progress is one of training
        root = get_model(model)
        self._handles = [root.register_forward_pre_hook(Hook(self._before_forward), with_kwargs=True),
                         root.register_forward_hook(Hook(self._after_forward), with_kwargs=True)]
        if optimizer is not None: self._handles.append(optimizer.register_step_pre_hook(Hook(self._before_step)))

    @property
    def scale(self)->float|None:
        return self.scaler.get_scale() if self._scale is None and self.scaler is not None else self._scale
    @property
    def gradient_scale(self)->Any:
        # the scaler has unscaled the gradients by now, except for a fused optimizer, which it tells the scale
        return getattr(self.optimizer, 'grad_scale', None)
    @property
    def strategies(self)->list:
        hooks = get_model(self.model)._forward_pre_hooks.values()
        loops = [getattr(h.f, '__self__', None) for h in hooks if isinstance(h, Hook)]
        return [loop.strategy for loop in loops if loop is not None]

    def recording(self)->bool:
        "Whether what the model computes belongs to a training batch"
        if not self.started or is_paused(get_model(self.model)): return False
        return torch.is_grad_enabled() if self._live is None else self._live

    def _before_forward(self, module, args, kwargs):
        self._live, self.inputs = torch.is_grad_enabled(), (args, kwargs)
        # an evaluation without `torch.no_grad` is not part of the batch
        if self.recording() and (self.read or self._mode != module.training): self.start_batch(module.training)

    def _after_forward(self, module, args, kwargs, out):
        if self.recording(): self._calls.append((args, kwargs, out))
        self._live = None

    def start_batch(self, mode:bool|None=None)->None:
        "Forget the last batch"
        self.read, self._mode, self._calls, self._scale = False, mode, [], None
        self.strategy.before_batch()

    def end_batch(self)->None:
        "Called after `loss` has read the batch: the graphs of its outputs may be freed"
        self.read, self._targets, self._calls, self.inputs = True, None, [], ()

    def _before_step(self, optimizer, args, kwargs):
        self._stepped = True
        if self.scaler is not None: self._scale = self.scaler.get_scale()
        self.strategy.before_step()

    def made_step(self)->bool:
        "Whether the optimizer has made a step since the last call; a gradient scaler skips some"
        made = self._stepped or self.optimizer is None
        self._stepped = False
        return made

    def remove(self)->None:
        "Remove the hooks"
        for h in self._handles: h.remove()

    def _call(self):
        if len(self._calls) == 1: return self._calls[0]
        raise InputError(f'{type(self.strategy).__name__} needs one forward pass of the model for each loss(), found '
                         f'{len(self._calls)}: attach it to the module that the loop calls, and call that once')

    @property
    def args(self)->tuple: return self._call()[0]
    @property
    def kwargs(self)->dict: return self._call()[1]
    @property
    def outputs(self)->Any: return self._call()[2]

    @property
    def targets(self)->Any:
        if self._targets is None and len(self._calls) == 1: return self.kwargs.get('labels')  # as in transformers
        return self._targets
    @targets.setter
    def targets(self, targets): self._targets = targets

    @property
    def criterion(self)->Callable|None:
        if self.given_criterion is not None: return self.given_criterion
        if len(self._calls) != 1 or self.kwargs.get('labels') is None: return None
        # a model of transformers that gets labels computes its loss itself
        problem = getattr(getattr(get_model(self.model), 'config', None), 'problem_type', None)
        return PROBLEM_TYPES.get(str(problem))


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
        if targets is None: raise InputError(f'{who} needs the targets of the batch: call loss(targets)')
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
        batches:Iterable|None=None, # Loader of the training data `(x, y)`, for CoTuning and WiSEFT
        scaler:Any=None, # `torch.amp.GradScaler` of the loop, for strategies that read gradients
        criterion:Callable|None=None, # The task's loss `(logits, targets)`; `None`: cross-entropy, see `target_kind`
    )->'BaseStrategy': # Itself
        """Act on `model` until `detach`; weights from before training are taken now.

        Raises `InputError` if the strategy is in use already, or needs an optimizer and gets none."""
        who = type(self).__name__
        if self._loop is not None or self.learn is not None:
            raise InputError(f'{who} is in use already: call detach() first, or make another {who}')
        if not isinstance(model, nn.Module): raise InputError(f'attach needs a model, not {type(model).__name__}')
        if self.needs_optimizer and optimizer is None:
            raise InputError(f'{who} acts on the optimizer: call attach(model, optimizer)')
        before = self.protected
        if encoder is not None: self.protected = encoder
        self._loop = PlainLoop(self, model, optimizer, epochs, batches, scaler, criterion)
        try:
            self.meet()
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
        if loop.started:
            self._check_steps()
            self.after_train()
            loop.epoch += 1
        if epoch is not None: loop.epoch = epoch
        loop.started, self._steps = True, 0
        self.before_train()
        loop.start_batch()

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
            if self._loop.started and not interrupted:
                self._check_steps()
                self.after_train()
            self.detached()
        finally:
            self._loop.remove()
            self._loop = None

    def __enter__(self)->'BaseStrategy': return self
    def __exit__(self, error:Any, *details:Any)->None: self.detach(interrupted=error is not None)

    def columns(self)->dict[str, Callable]:
        "Numbers for a log, by name: functions of no argument, to be called after an epoch"
        return {}
