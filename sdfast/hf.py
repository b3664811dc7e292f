"""Strategies and `RetentionCurve` in `transformers.Trainer`:

    from sdfast.hf import with_strategies
    trainer = with_strategies(Trainer)(model, args, train_dataset=..., strategies=[SelfDistill(lam=100)])
    trainer.train()

A callback of the Trainer cannot change the loss, so a mix-in adds the terms where the Trainer back-propagates.
transformers is an extra: `pip install 'sdfast[hf]'`. Nothing else in sdfast imports this module."""
import io
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import Damaged, InputError
from .runtime import store
from .strategies.hosted import Hosted, Place
from .strategies.rates import ScaledLR

try:
    from transformers import Trainer, TrainerCallback
    from transformers.modeling_outputs import ImageClassifierOutput
    from transformers.trainer_utils import get_last_checkpoint
except ImportError:
    raise InputError("sdfast.hf needs transformers and accelerate, which are not installed: pip install 'sdfast[hf]'"
                     ) from None

if TYPE_CHECKING: _Trainer = Trainer
else: _Trainer = object

__all__ = ['StrategyMixin', 'with_strategies']

FILE = 'sdfast'  # first part of the name of the file in a checkpoint's folder


class StrategyMixin(_Trainer):
    """Mix-in for a `transformers.Trainer`, before it among the bases; or see `with_strategies`.

    The strategies' terms are added to the loss that is back-propagated, whatever computes it: a subclass's
    `compute_loss`, `compute_loss_func`, label smoothing. Accumulation, clipping (`max_grad_norm`), precision and DDP
    act on the sum. Evaluation does not see the strategies. The logged loss stays the task loss; the strategies' numbers
    are logged once an epoch under their names. Their state is a file in each checkpoint, and training that resumes from
    one, in the middle of an epoch too, ends as if it had not been interrupted.

    Raises `InputError` for FSDP, DeepSpeed and DataParallel (start several GPUs by torchrun)."""
    def __init__(self,
        *args:Any, # Of the Trainer
        strategies:Sequence=(), # Strategies, or lists of them
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        targets:Callable|None=None, # Function of a batch that returns its targets; `None`: see `split_batch`
        criterion:Callable|None=None, # The task's loss `(logits, targets)`; `None`: that of Trainer or model
        epochs:int|None=None, # Number of epochs, for strategies with a schedule; `None`: the Trainer's
        batches:Iterable|None=None, # Training data, for CoTuning, WiSEFT and FLOW; `None`: the Trainer's loader
        split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
        numbers:Callable|None=None, # Function of a batch that returns the numbers of its clips, see `ClipNumbers`
        **kwargs:Any, # Of the Trainer
    ):
        super().__init__(*args, **kwargs)
        self.hosted = Hosted(strategies, targets, split, numbers)
        self._given = SimpleNamespace(encoder=encoder, criterion=criterion, epochs=epochs, batches=batches)
        self._replaced: list[tuple] = []  # objects, names of methods, and what they had in their place
        self.add_callback(_Events(self))

    def train(self, resume_from_checkpoint:Any=None, *args:Any, **kwargs:Any)->Any:
        folder = resume_from_checkpoint
        if folder is True: folder = get_last_checkpoint(self.args.output_dir)
        if folder and self.hosted.strategies: self._load_strategies(folder)
        try: return super().train(resume_from_checkpoint, *args, **kwargs)
        finally: self.leave_strategies(interrupted=True)

    # ---- checkpoints

    def _load_strategies(self, folder):
        self.hosted.refuse_to_resume()
        try: files = store.find(folder, FILE, 'pt')
        except Damaged as e: raise InputError(f'{e}; resume from another checkpoint') from None
        if not files:
            raise InputError(f'{folder} has no state of the strategies: it is of training without them, or its process '
                             'died while it was written; resume from another checkpoint, or start again')
        self.hosted.load_state_dict(torch.load(files[0], map_location='cpu', weights_only=True))

    def save_strategies(self,
        folder:str|Path, # Of a checkpoint; nothing is written if it does not exist
    )->None:
        "Write the strategies' state into a checkpoint"
        if not self.hosted.strategies or not Path(folder).is_dir(): return
        data = io.BytesIO()
        torch.save(self.hosted.state_dict(), data)
        file = store.put(folder, FILE, data.getvalue(), 'pt')
        for other in store.find(folder, FILE, 'pt', check=False):
            if other != file: other.unlink(missing_ok=True)

    # ---- where training takes place

    def enter_strategies(self,
        train_dataloader:Iterable, # The Trainer's
    )->None:
        "Attach the strategies to what the Trainer has prepared"
        if not self.hosted.strategies: return
        self._check_supported()
        given, state = self._given, self.state
        optimizer, model = cast(Any, self.optimizer), cast(nn.Module, self.model)
        place = Place(model, getattr(optimizer, 'optimizer', optimizer), int(state.epoch or 0),
                      given.epochs or state.num_train_epochs, given.batches or train_dataloader,
                      getattr(self.accelerator, 'scaler', None), False, given.criterion or self._criterion(),
                      isinstance(self.model_wrapped, DistributedDataParallel), 'call the model in compute_loss')
        self.hosted.attach(place, given.encoder)
        self._replace(self, 'training_step', self._step_with_terms)
        self._replace(self.accelerator, 'backward', self._backward_with_terms)

    def _check_supported(self):
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or self.args.n_gpu > 1:
            what = 'FSDP and DeepSpeed split the model' if sharded else 'DataParallel copies the model in each step'
            raise InputError(f'{what}, which strategies do not support: start one process for each GPU by torchrun')
        scaled = [type(s).__name__ for s in self.hosted.strategies if isinstance(s, ScaledLR)]
        if scaled and self.args.fp16:
            raise InputError(f'{scaled[0]} sets learning rates in steps that accelerate replaces with fp16=True: take '
                             'bf16=True')

    def _criterion(self):
        "The task's loss, if the model does not compute it"
        if self.compute_loss_func is not None:
            compute: Any = self.compute_loss_func
            return lambda z, y: compute(ImageClassifierOutput(logits=z), y, num_items_in_batch=None)
        smoothing = self.args.label_smoothing_factor
        return nn.CrossEntropyLoss(label_smoothing=smoothing) if smoothing else None

    def leave_strategies(self,
        interrupted:bool=False, # Whether training has failed
    )->None:
        "Detach the strategies, and undo what they have changed"
        for obj, name, before in self._replaced:
            vars(obj).pop(name, None)
            if before is not None: vars(obj)[name] = before
        self._replaced = []
        self.hosted.detach(interrupted)

    # ---- what is replaced while training

    def _replace(self, obj, name, make):
        self._replaced.append((obj, name, vars(obj).get(name)))
        setattr(obj, name, make(getattr(obj, name)))

    def _step_with_terms(self, step):
        @wraps(step)
        def training_step(model, inputs, *args, **kwargs):
            with self.hosted.batch(dict(inputs)): loss = step(model, inputs, *args, **kwargs)
            if self.hosted.pending:
                raise InputError(f'{type(self).__name__}.training_step must call self.accelerator.backward(loss), '
                                 'where the terms of the strategies are added')
            # here, as the Trainer clips gradients next
            if self.accelerator.gradient_state.sync_gradients: self.hosted.before_step()
            return loss
        return training_step

    def _backward_with_terms(self, back):
        @wraps(back)
        def backward(loss, *args, **kwargs):
            if self.hosted.pending:
                self.hosted.close()
                with self.accelerator.autocast(): terms = self.hosted.loss()
                if terms is not None: loss = loss + terms/self.current_gradient_accumulation_steps
            return back(loss, *args, **kwargs)
        return backward


class _Events(TrainerCallback):
    "Tells the strategies of a Trainer what happens"
    def __init__(self, trainer:StrategyMixin): self.trainer = trainer
    @property
    def hosted(self)->Hosted: return self.trainer.hosted

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.trainer.enter_strategies(train_dataloader)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # rounded, as the number of an epoch is a sum of steps
        if self.hosted.attached: self.hosted.to_epoch(int((state.epoch or 0) + 1e-6))

    def on_optimizer_step(self, args, state, control, **kwargs): self.hosted.after_step()

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.hosted.attached: return
        self.hosted.end_epoch()
        columns = {n:v for n, v in self.hosted.columns().items() if v == v}
        if not columns: return
        should_log = control.should_log  # logging would end it, before the Trainer logs the task loss
        self.trainer.log(columns)
        control.should_log = should_log

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.trainer.save_strategies(Path(args.output_dir)/f'checkpoint-{state.global_step}')

    def on_train_end(self, args, state, control, **kwargs):
        if self.hosted.attached: self.hosted.end_epoch()
        self.trainer.leave_strategies()


def with_strategies(
    trainer_class:type, # `Trainer` or a subclass
)->type: # The same with the arguments of `StrategyMixin`
    "Make a Trainer class that takes `strategies`"
    return type(f'{trainer_class.__name__}WithStrategies', (StrategyMixin, trainer_class), {})
