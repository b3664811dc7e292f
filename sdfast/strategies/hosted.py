"""Strategies in the loop of a trainer that somebody else wrote: what `sdfast.lightning` and `sdfast.hf` have in common.

An adapter tells a `Hosted` when training starts, an epoch, a batch and a step begin and end, and adds its `loss`."""
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from ..data.batches import Batches, split_batch
from ..errors import InputError
from ..runtime.resume import Resumable, plain_state
from .core import BaseStrategy
from .loop import PlainLoop
from .lora import LoRA

__all__ = ['Place', 'Hosted']


@dataclass
class Place:
    "Where a trainer trains: what its adapter knows at the start of a fit"
    model: nn.Module  # what is called on each batch, without DDP around it
    optimizer: torch.optim.Optimizer  # PyTorch's, without a trainer's wrapper
    epoch: int = 0  # number of the epoch that comes first, more than 0 if training is resumed
    epochs: int|None = None  # number of epochs, if known
    batches: Iterable|None = None  # loader of the training data, if known
    scaler: Any = None  # `torch.amp.GradScaler`, if there is one
    unscaled: bool = False  # whether the scaler has unscaled the gradients before `before_step`
    criterion: Callable|None = None  # the task's loss, if known
    wrapped: bool = False  # whether DDP has wrapped the model
    advice: str = ''  # what to do if `model` is not called


def _in_order(dl:Any)->tuple[Any, bool]:
    "A loader of the same clips in their order, and whether each process reads a part of them"
    # not the loader itself: reading it in an epoch would move what reads it, too (persistent workers, stateful loaders)
    bs = getattr(dl, 'batch_size', None) or getattr(getattr(dl, 'batch_sampler', None), 'batch_size', None)
    items, collate = getattr(dl, 'dataset', None), getattr(dl, 'collate_fn', None)
    if collate is None or isinstance(items, IterableDataset) or not isinstance(items, Sized) or not bs: return dl, True
    in_order: Any = DataLoader(items, batch_size=bs, collate_fn=collate)  # type: ignore[arg-type]
    return in_order, False


class HostedLoop(PlainLoop):
    "A loop whose batches and steps an adapter marks"
    ask_targets = 'pass targets=FUNCTION of the batch'
    ask_numbers = 'pass numbers=FUNCTION of the batch'
    opened = False  # whether the trainer is computing its loss of a batch

    def __init__(self, strategy:BaseStrategy, place:Place, split:Callable|None):
        super().__init__(strategy, place.model, place.optimizer, place.epochs, place.batches, place.scaler,
                         place.criterion, split)
        self.place, self.epoch = place, place.epoch
        if place.batches is None: return
        loader, self.divided = _in_order(place.batches)
        self.unaugmented = Batches(loader, split)

    @property
    def wrapped(self)->bool: return self.place.wrapped

    @property
    def gradient_scale(self)->float|None:
        if self.scaler is None: return None
        # a fused optimizer unscales them by itself
        fused = getattr(self.optimizer, '_step_supports_amp_scaling', False)
        return None if self.place.unscaled and not fused else self.scaler.get_scale()

    def recording(self)->bool: return self.opened and super().recording()

    def open(self)->None:
        "A batch starts"
        self.start_batch(self.model.training)
        self.opened = True

    def _before_forward(self, module, args, kwargs):
        self._live, self.inputs = torch.is_grad_enabled(), (args, kwargs)
        # again, as the trainer may have called `model.train()` since
        if self.recording() and not self._calls: self.strategy.before_batch()

    def _before_step(self, optimizer, args, kwargs): self._stepped = True  # with a closure, before the forward pass

    def before_step(self)->None:
        if self.scaler is not None: self._scale = self.scaler.get_scale()
        self.strategy.before_step()

    def _call(self):
        if self._calls: return super()._call()
        raise InputError(f'{type(self.strategy).__name__} needs what {type(self.model).__name__} returns, which was '
                         f'not called in this batch: {self.place.advice}')


class Hosted:
    """Strategies that an adapter drives: `attach`, then for each epoch `to_epoch`, for each batch `batch` and `loss`,
    for each step `before_step` and `after_step`, at last `end_epoch` and `detach`.

    `state_dict` may be taken after any step, in the middle of an epoch, too."""
    def __init__(self,
        strategies:Sequence, # Strategies, or lists of them
        targets:Callable|None=None, # Function of a batch that returns its targets; `None`: see `split_batch`
        split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
        numbers:Callable|None=None, # Function of a batch that returns the numbers of its clips in the training data
    ):
        self.strategies: list[BaseStrategy] = []
        for s in strategies: self.strategies += s if isinstance(s, (list, tuple)) else [s]
        for s in self.strategies:
            if isinstance(s, BaseStrategy): continue
            what = s.__name__ if isinstance(s, type) else type(s).__name__
            raise InputError(f'expected strategies of sdfast, such as SelfDistill(lam=100), not {what}')
        self.targets, self.split, self.numbers = targets, split, numbers
        self.attached = False
        self.pending = False  # whether the loss of a batch is still to be asked for
        self._batch: Any = None
        self._stepping = False  # whether `before_step` was called without `after_step`
        self._saved: dict|None = None  # a state to continue from

    def attach(self,
        place:Place, # Where
        encoder:str|Callable|None=None, # As for `BaseStrategy.attach`
    )->None:
        "Start a fit; after an error no strategy is attached"
        if place.wrapped: self._refuse_lora('cannot add adapters to a model that DDP has wrapped: train in one process')
        states = [None]*len(self.strategies) if self._saved is None else self._saved['states']
        device = next(place.model.parameters()).device
        self.attached = True
        try:
            for s, state in zip(self.strategies, states):
                s.check_free()
                s.enter(HostedLoop(s, place, self.split), encoder, _moved(state, device))
        except BaseException:
            self.detach(interrupted=True)
            raise

    def _refuse_lora(self, why):
        if any(isinstance(s, LoRA) for s in self.strategies):
            raise InputError(f'LoRA {why}, or give the trainer a model of peft.get_peft_model')

    def _loops(self)->list[HostedLoop]:
        return [s.loop for s in self.strategies if isinstance(s.loop, HostedLoop)]

    def to_epoch(self, epoch:int)->None: # Its number
        "Be in a training epoch; starts it unless it has started"
        saved = self._saved or {}
        if epoch > (epoch if saved.get('epoch') is None else saved['epoch']): self.end_epoch()  # saved in its last step
        for i, s in enumerate(self.strategies):
            loop: Any = s.loop
            if loop.started and loop.epoch == epoch: continue
            s.start_epoch(epoch)
            if saved.get('epoch') != epoch: continue
            s.load_epoch_state(_moved(saved['middle'][i], next(loop.model.parameters()).device))
        self._saved = None

    def end_epoch(self)->None:
        "End the training epoch; one that was saved at its end and resumed ends here, too"
        if self._saved is not None and self._saved['epoch'] is not None: self.to_epoch(self._saved['epoch'])
        for s in self.strategies: s.end_epoch()

    # ---- batches and steps

    @contextmanager
    def batch(self,
        batch:Any, # What the trainer computes its loss on
    )->Iterator[None]: # A context manager
        "What is computed in this context is part of a training batch"
        self._batch, self.pending = batch, True
        for loop in self._loops(): loop.open()
        try: yield
        except BaseException:
            self.skip()
            raise
        finally: self.close()

    def close(self)->None:
        "What is computed from now on is no part of the batch"
        for loop in self._loops(): loop.opened = False

    def loss(self)->torch.Tensor|None: # Scalar; `None` without penalties
        "The sum of the terms of the batch, to be added to the task's loss"
        self.close()
        targets = self._targets() if self.strategies else None
        numbers = None if self.numbers is None else self.numbers(self._batch)
        terms = [s.loss(targets, numbers) for s in self.strategies if hasattr(s, 'loss')]
        self.skip()
        return sum(terms[1:], terms[0]) if terms else None

    def _targets(self):
        if self.targets is not None: y = self.targets(self._batch)
        else:
            try: y = split_batch(self._batch, self.split)[1]
            except InputError: return None  # a strategy that needs targets says so
        device = next(self._loops()[0].model.parameters()).device
        return y.to(device) if torch.is_tensor(y) else y

    def skip(self)->None:
        "End a batch; without a call of `loss`, it has no term"
        self._batch, self.pending = None, False
        for s in self.strategies:
            loop: Any = s.loop
            if not loop.read and hasattr(s, 'after_batch'): s.after_batch()
            loop.end_batch()

    def before_step(self)->None:
        "Gradients are there, and the optimizer is going to make a step"
        self._stepping = True
        for loop in self._loops(): loop.before_step()

    def after_step(self)->None:
        "The optimizer has made a step, or its gradient scaler has skipped it"
        if not self._stepping: return
        self._stepping = False
        for s in self.strategies: s.after_step()

    # ---- results, and the end

    def columns(self)->dict[str, float]: # Name -> number
        "The numbers of the last epoch, for a log"
        return {name:float(f()) for s in self.strategies for name, f in s.columns().items()}

    def state_dict(self)->dict:
        "The state of all strategies, made of tensors, numbers, strings and containers"
        if not self.attached and self._saved is not None: return self._saved
        started = self.attached and any(loop.started for loop in self._loops())
        return plain_state(dict(
            names=[type(s).__name__ for s in self.strategies],
            states=[s.state_dict() if isinstance(s, Resumable) else None for s in self.strategies],
            epoch=self._loops()[0].epoch if started else None,
            middle=[s.epoch_state() for s in self.strategies] if started else []))

    def load_state_dict(self, state:dict)->None:
        "Continue from what `state_dict` returned, at the next `attach`"
        names = [type(s).__name__ for s in self.strategies]
        if list(state['names']) != names:
            raise InputError(f'the checkpoint is of training with {", ".join(state["names"]) or "no strategies"}, not '
                             f'with {", ".join(names)}: resume with the same strategies in the same order')
        if state['epoch'] is not None: self.refuse_to_resume()
        self._saved = state

    def refuse_to_resume(self)->None:
        "Raise `InputError` if a strategy cannot continue from a checkpoint"
        self._refuse_lora('cannot resume from a checkpoint of this trainer: train without interruption')

    def detach(self,
        interrupted:bool=False, # Whether training stopped in the middle of an epoch
    )->None:
        "End the fit, and undo what the strategies changed in the model; after an error of one, too"
        if not self.attached: return
        self.attached, self._saved, self._stepping = False, None, False
        errors = []
        for s in self.strategies:
            try: s.detach(interrupted)
            except Exception as e: errors.append(e)
        if errors: raise errors[0]


def _moved(x:Any, device:torch.device)->Any:
    "A state whose tensors are on `device`"
    if torch.is_tensor(x): return x.to(device)
    if isinstance(x, dict): return {k:_moved(v, device) for k, v in x.items()}
    return type(x)(_moved(v, device) for v in x) if isinstance(x, (list, tuple)) else x
