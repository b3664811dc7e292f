"""Strategies and `RetentionCurve` in Lightning, as one callback:

    from sdfast.lightning import StrategyCallback
    L.Trainer(callbacks=[StrategyCallback(SelfDistill(lam=100))]).fit(module, loader)

Lightning is an extra: `pip install 'sdfast[lightning]'`. Nothing else in sdfast imports this module."""
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .errors import InputError
from .strategies.hosted import Hosted, Place

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    # Lightning has two names: the one that the user has imported, if it is only one
    PACKAGES = ['lightning.pytorch', 'pytorch_lightning']
    PACKAGES.sort(key=lambda name: name not in sys.modules)
    for name in PACKAGES:
        try: package = import_module(name)
        except ImportError: continue
        Callback, LightningModule, Trainer = package.Callback, package.LightningModule, package.Trainer
        break
    else:
        raise InputError("sdfast.lightning needs Lightning, which is not installed: pip install 'sdfast[lightning]'")

__all__ = ['StrategyCallback']

SHARDED = 'FSDP', 'DeepSpeed', 'ModelParallel'  # parts of the names of Lightning's strategies that split a model


class StrategyCallback(Callback):
    """Strategies, and `RetentionCurve`, in a fit of a `lightning.Trainer` with automatic optimisation.

    Their terms are added to what `training_step` returns, and from there on treated as the loss is: precision,
    accumulation, clipping, DDP. What `training_step` logs stays the task loss; the strategies' numbers are logged once
    an epoch under their names. Validation, testing and tuning do not see the strategies. Their state is part of
    Lightning's checkpoints: a fit that resumes from one, in the middle of an epoch too, ends as if it had not been
    interrupted. At the end of a fit, also after an error, the module is as it was.

    Raises `InputError` for manual optimisation and for models that are split over devices (FSDP, DeepSpeed)."""
    def __init__(self,
        *strategies:Any, # Strategies, or lists of them
        model:str|Callable|None=None, # Name of the part that `training_step` calls, or function of the module
        encoder:str|Callable|None=None, # Name of the part to protect, or function of the module; see `find_encoder`
        targets:Callable|None=None, # Function of a batch that returns its targets; `None`: see `split_batch`
        criterion:Callable|None=None, # The task's loss `(logits, targets)`; `None`: cross-entropy, see `target_kind`
        epochs:int|None=None, # Number of epochs, for strategies with a schedule; `None`: the trainer's
        batches:Iterable|None=None, # Training data, for CoTuning, WiSEFT and FLOW; `None`: the trainer's loader
        split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
        numbers:Callable|None=None, # Function of a batch that returns the numbers of its clips, see `ClipNumbers`
    ):
        self.hosted = Hosted(strategies, targets, split, numbers)
        self.model, self.encoder, self.criterion = model, encoder, criterion
        self.epochs, self.batches = epochs, batches
        self._replaced: dict = {}  # name of a method -> what the module had in its place

    # ---- the events of a fit

    def setup(self, trainer:Trainer, pl_module:LightningModule, stage:str)->None:
        if stage != 'fit': return
        # a fit that resumes calls this first, before adapters in the checkpoint are found to have no place
        self._replace(pl_module, 'on_load_checkpoint', self._on_load_checkpoint)

    # not `on_fit_start`, in which Lightning's own callbacks look for a learning rate or a batch size
    def on_train_start(self, trainer:Trainer, pl_module:LightningModule)->None:
        self.hosted.attach(*self._place(trainer, pl_module))
        self._replace(pl_module, 'training_step', self._training_step)
        self._replace(pl_module, 'optimizer_step', self._optimizer_step)

    def on_train_epoch_start(self, trainer:Trainer, pl_module:LightningModule)->None:
        self.hosted.to_epoch(trainer.current_epoch)

    def on_train_batch_start(self, trainer:Trainer, pl_module:LightningModule, batch:Any, batch_idx:int)->None:
        self.hosted.to_epoch(trainer.current_epoch)  # a fit that resumes in an epoch does not start it again

    def on_before_optimizer_step(self, trainer:Trainer, pl_module:LightningModule, optimizer:Any)->None:
        if self.hosted.attached: self.hosted.before_step()

    def on_train_epoch_end(self, trainer:Trainer, pl_module:LightningModule)->None:
        self.hosted.end_epoch()
        for name, value in self.hosted.columns().items():
            pl_module.log(name, torch.tensor(value), on_step=False, on_epoch=True, sync_dist=trainer.world_size > 1,
                          batch_size=1)

    def on_train_end(self, trainer:Trainer, pl_module:LightningModule)->None: self._leave(pl_module, False)
    def on_exception(self, trainer:Trainer, pl_module:LightningModule, exception:BaseException)->None:
        self._leave(pl_module, True)
    def teardown(self, trainer:Trainer, pl_module:LightningModule, stage:str)->None: self._leave(pl_module, True)

    def state_dict(self)->dict: return self.hosted.state_dict()
    def load_state_dict(self, state_dict:dict)->None: self.hosted.load_state_dict(state_dict)

    def _leave(self, pl_module, interrupted):
        for name, before in self._replaced.items():
            vars(pl_module).pop(name, None)
            if before is not None: vars(pl_module)[name] = before
        self._replaced = {}
        self.hosted.detach(interrupted)

    # ---- what is wrapped for the duration of a fit

    def _replace(self, pl_module, name, make):
        self._replaced[name] = vars(pl_module).get(name)
        vars(pl_module)[name] = make(getattr(pl_module, name))

    def _on_load_checkpoint(self, load):
        @wraps(load)
        def on_load_checkpoint(checkpoint):
            self.hosted.refuse_to_resume()
            return load(checkpoint)
        return on_load_checkpoint

    def _training_step(self, step):
        @wraps(step)
        def training_step(*args, **kwargs):
            batch = args[0] if args else kwargs.get('batch')
            with self.hosted.batch(batch): out = step(*args, **kwargs)
            return self._with_terms(out)
        return training_step

    def _with_terms(self, out):
        loss = out.get('loss') if isinstance(out, Mapping) else out
        if loss is None: self.hosted.skip()  # Lightning skips the batch
        terms = None if loss is None else self.hosted.loss()
        if terms is None: return out
        return {**out, 'loss':loss + terms} if isinstance(out, Mapping) else loss + terms

    def _optimizer_step(self, step):
        @wraps(step)
        def optimizer_step(*args, **kwargs):
            out = step(*args, **kwargs)
            self.hosted.after_step()  # before a scheduler changes the learning rate
            return out
        return optimizer_step

    # ---- where a fit takes place

    def _place(self, trainer, pl_module)->tuple[Place, str|None]:
        "Where, and the name of the encoder in the model that is called there"
        if not pl_module.automatic_optimization:
            raise InputError(f'{type(pl_module).__name__} optimises manually, where no term can be added to its loss: '
                             'in training_step, call the strategies themselves (attach, loss, after_step)')
        kind = type(trainer.strategy).__name__
        if any(name in kind for name in SHARDED):
            raise InputError(f'{kind} splits the model over devices, which strategies do not support: take '
                             "strategy='ddp'")
        name, model = called_by_step(pl_module, self.model, self.encoder)
        batches: Any = trainer.train_dataloader if self.batches is None else self.batches
        if isinstance(batches, (dict, list, tuple)) and self.batches is None: batches = None  # several loaders
        advice = ('pass model=NAME of the part of the LightningModule that training_step calls, such as '
                  f'{_children(pl_module)}' + (f', instead of {name!r}' if name else ''))
        place = Place(model, trainer.optimizers[0], trainer.current_epoch, self.epochs or _epochs(trainer), batches,
                      getattr(trainer.precision_plugin, 'scaler', None), True, self.criterion,
                      isinstance(trainer.strategy.model, DistributedDataParallel), advice)
        return place, _name_inside(pl_module, model, self.encoder)


def _with_weights(pl_module): return {n:m for n, m in pl_module.named_children() if list(m.parameters())}


def _children(pl_module): return ', '.join(map(repr, _with_weights(pl_module))) or 'none'


def _part(pl_module, which, what):
    "The part of a module by its name, or by a function of the module"
    if callable(which): part = which(pl_module)
    else:
        try: part = pl_module.get_submodule(which)
        except AttributeError: part = None
    if isinstance(part, nn.Module): return part
    raise InputError(f'{what}={which!r} is no part of {type(pl_module).__name__}; its children are '
                     f'{_children(pl_module)}')


def _name_inside(pl_module, model, encoder)->str|None:
    "The name in `model` of a part of the whole module"
    if encoder is None: return None
    part = _part(pl_module, encoder, 'encoder')
    names = [n for n, m in model.named_modules() if m is part]
    if names: return names[0]
    raise InputError(f'encoder={encoder!r} is not inside of the {type(model).__name__} that training_step calls: pass '
                     'model=NAME of the part that has it')


def called_by_step(
    pl_module:LightningModule, # In a fit
    model:str|Callable|None=None, # Name of a part, or function of the module; `None`: see below
    encoder:str|Callable|None=None, # As for `StrategyCallback`
)->tuple[str, nn.Module]: # Its name, '' for the module itself
    """The part of a LightningModule that its `training_step` calls: `model`, or the only child with weights whose name
    the code of `training_step` has, or the module itself if it has a `forward`, or its only child with weights."""
    if model is not None:
        part = _part(pl_module, model, 'model')
        return next((n for n, m in pl_module.named_modules() if m is part), ''), part
    children = _with_weights(pl_module)
    if encoder is not None:
        part = _part(pl_module, encoder, 'encoder')
        children = {n:m for n, m in children.items() if any(inner is part for inner in m.modules())}
    names = _names_in(type(pl_module), 'training_step')
    named = [n for n in children if n in names]
    has_forward = type(pl_module).forward is not LightningModule.forward
    if len(named) != 1 and has_forward: return '', pl_module
    if len(named) != 1: named = list(children)
    if len(named) == 1: return named[0], children[named[0]]
    raise InputError(f'cannot tell which part of {type(pl_module).__name__} training_step calls: pass model=NAME of '
                     f'it to StrategyCallback; its children are {_children(pl_module)}')


def _names_in(cls, method, seen=None):
    "The names of attributes in the code of a method, and in that of the methods that it calls"
    seen = set() if seen is None else seen
    code = getattr(getattr(cls, method, None), '__code__', None)
    if code is None or method in seen: return set()
    seen.add(method)
    own = {n for n in code.co_names if not hasattr(LightningModule, n) or n == 'forward'}
    return own.union(*(_names_in(cls, n, seen) for n in own))


def _epochs(trainer)->int|None:
    "The number of epochs of a fit, if it is known"
    by_epochs = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else math.inf
    steps = trainer.num_training_batches/trainer.accumulate_grad_batches
    by_steps = math.ceil(trainer.max_steps/math.ceil(steps)) if trainer.max_steps > 0 and steps < math.inf else math.inf
    found = min(by_epochs, by_steps)
    return None if found == math.inf else int(found)
