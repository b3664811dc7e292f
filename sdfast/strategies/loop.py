"What a strategy sees of the loop that trains, and training loops that somebody else writes."
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from fastai.optimizer import OptimWrapper
from fastai.torch_core import get_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.batches import Batches
from ..errors import InputError
from ..models.copies import Hook
from .hooks import is_paused
from .targets import PROBLEM_TYPES

__all__ = ['Loop']


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
    clips: int|None = None # Number of clips that an epoch trains on, if known
    valid_clips: int = 0 # Number of clips that it is validated on, if known
    batch_size: int|None = None # Number of clips in a batch, if known
    ask_targets: str = 'call loss(targets)' # What to do if the targets are not known
    numbers: Any = None # Those of the batch's clips in the training data, if known; see `ClipNumbers`
    labels: Any = None # Labels of the training data by these numbers, if known
    ask_numbers: str = 'call loss(targets, numbers)' # What to do if the numbers are not known

    @property
    def wrapped(self)->bool:
        "Whether DDP has wrapped the model: it waits for gradients of all parameters that required one by then"
        return isinstance(self.model, DistributedDataParallel)


def sizes_of(dl:Any)->tuple[int|None, int|None]:
    "The number of clips that a loader yields, and of those in a batch; `None` where it does not say"
    items, bs = getattr(dl, 'dataset', None), getattr(dl, 'batch_size', None) or getattr(dl, 'bs', None)
    return len(items) if isinstance(items, Sized) else None, bs if isinstance(bs, int) else None


class PlainLoop(Loop):
    """A training loop that somebody else writes: hooks on the model show its batches to the strategy.

    A batch is what the model is called with, with gradients enabled, between two calls of `loss`."""
    def __init__(self,
        strategy:Any, # A `BaseStrategy`, whose methods are called
        model:nn.Module, # Called by the training loop
        optimizer:torch.optim.Optimizer|None=None, # For strategies that act on it
        epochs:int|None=None, # Number of epochs, for strategies with a schedule
        batches:Iterable|None=None, # Loader of the training data, see `split_batch`
        scaler:Any=None, # The loop's `torch.amp.GradScaler`
        criterion:Callable|None=None, # The loop's loss
        split:Callable|None=None, # Tells clips from labels in `batches`, as for `split_batch`
    ):
        if batches is not None and split is not None: batches = Batches(batches, split)
        self.strategy, self.model, self.epochs, self.batches = strategy, model, epochs, batches
        self.unaugmented, self.scaler, self.given_criterion = batches, scaler, criterion
        self.clips, self.batch_size = sizes_of(batches)
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
        return [loop.strategy for loop in loops if isinstance(loop, PlainLoop)]

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
