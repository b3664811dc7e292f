"One fit of a study: SGD with a schedule, seeded epochs, stopped if it diverges."
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from torch import nn

from ..data.block import MultiClip
from ..errors import InputError, StoreError
from ..models.encoders import encoder_head_split
from ..runtime.arguments import ShowArguments
from ..runtime.progress import Progress
from ..runtime.resume import Resumable
from ..strategies.base import Penalty
from .failures import error_message

__all__ = ['learning_rates', 'fit_batch_size']


def fit_model(dls:DataLoaders, model:nn.Module, epochs:int, lr:float, seed:int, cbs:Sequence[Callback]=(),
              progress:Progress=Progress(), schedule:str='cosine', wd:float=0.)->tuple[Learner, str|None]:
    "Train with SGD and momentum .9; returns the learner, and the reason if it diverged, else `None`"
    check = StopDiverged()
    rates = ParamScheduler(dict(lr=learning_rates(schedule, lr, epochs)))
    cbs = [*cbs, Seeded(seed), check, ProgressReporter(progress), MultiClip(), rates]
    # weight decay as in torch and RSPNet's code: coupled, on all parameters; fastai's default is decoupled and excludes
    # batch norm and biases
    sgd = partial(SGD, mom=.9, decouple_wd=False)
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=sgd, lr=lr, wd=wd, wd_bn_bias=True,
                    splitter=encoder_head_split, metrics=accuracy, cbs=cbs)
    try:
        with learn.no_bar(), learn.no_logging(), train_together(learn): learn.fit(epochs)
    except StoreError as e: raise StoreError(error_message(e)) from None
    return learn, check.why


@contextmanager
def train_together(learn:Learner)->Iterator[None]:
    "Make the processes that torchrun started train one model in this context; without torchrun nothing changes"
    if num_distrib() < 2:
        yield
        return
    from ..runtime.sharded import ShardedDL  # here, since accelerate is an extra
    cuda = torch.cuda.is_available()

    def shard(dl):
        # only training loaders drop the last batch; each process validates on all clips, so that counts are exact
        return ShardedDL(dl, device=learn.dls.device) if dl.drop_last and not isinstance(dl, ShardedDL) else dl
    with learn.distrib_ctx(sync_bn=cuda, cpu=not cuda):  # SyncBatchNorm needs GPUs
        learn.distributed_trainer._wrap_dl = shard
        yield


# ---- schedules and sizes

def learning_rates(
    name:str, # 'cosine': per batch, to 0; 'epoch_cosine': per epoch, to lr/1000; 'steps': times .1 at 50, 70 and 90 %
    lr:float, # Learning rate at the start
    epochs:int, # Length of the whole training, in epochs
)->Callable: # Function of the completed share of all epochs, from 0 to 1, that returns the learning rate
    "A learning rate schedule; 'epoch_cosine' and 'steps' are those of RSPNet's code"
    def epoch(pos): return int(pos*epochs + 1e-6)  # `pos` is rounded

    def epoch_cosine(pos):
        low = lr/1000
        return low + (lr - low)*(1 + math.cos(math.pi*epoch(pos)/epochs))/2

    def steps(pos):
        passed = sum(epoch(pos) >= part*epochs/10 for part in (5, 7, 9))
        return lr*.1**passed
    schedules = dict(cosine=SchedCos(lr, 0.), epoch_cosine=epoch_cosine, steps=steps)
    if name not in schedules:
        raise InputError(f'unknown schedule {name!r}; known are cosine, epoch_cosine and steps')
    return schedules[name]


def fit_batch_size(
    n:int, # Number of training clips
    bs:int, # Requested batch size, in clips
)->int: # Batch size in clips, at most `bs`
    """Halve a batch size until an epoch has at least two batches.

    With one batch per epoch, a teacher that is renewed each epoch would always equal its student."""
    while bs > 1 and n < 2*bs: bs //= 2
    return bs


# ---- callbacks

class Seeded(ShowArguments, Callback):
    "Makes order, clips and augmentation of an epoch depend only on seed and epoch, not on earlier computations"
    order = 100  # after all callbacks that draw random numbers

    def __init__(self, seed:int): self.seed = seed

    def before_train(self):
        s = self.seed*100_003 + self.epoch
        # processes that train together draw different clips in the same order
        set_seed(s + 10_000_019*rank_distrib())
        vars(self.dl).get('dl', self.dl).rng = random.Random(s)


class StopDiverged(Callback):
    "Stops a fit after an epoch if the loss, a penalty, a weight or a statistic is not finite; `why` says which"
    order, why = 60, None

    def after_train(self):
        bad = self._not_finite()
        for other in _gather(bad): bad = bad or other
        if not bad: return
        self.why = f'diverged in epoch {self.epoch}: {", ".join(bad)} is not finite'
        raise CancelFitException

    def _not_finite(self):
        terms = {cb.name:cb.mean_term() for cb in self.learn.cbs if isinstance(cb, Penalty)}
        bad = [n for n, v in dict(loss=self.learn.loss_grad.item(), **terms).items() if not np.isfinite(v)]
        if bad: return bad
        state = [t for t in self.learn.model.state_dict().values() if t.is_floating_point()]
        return [] if all(torch.isfinite(t).all() for t in state) else ['a weight or statistic']


def _gather(x):
    "List the `x` of all processes that train together"
    if num_distrib() < 2: return [x]
    parts = [None]*num_distrib()
    torch.distributed.all_gather_object(parts, x)
    return parts


class ProgressReporter(Callback):
    "Reports training batches to a progress listener"
    order, run_valid = 70, False

    def __init__(self, progress:Progress=Progress()): self.progress = progress

    def after_batch(self): self.progress.epoch(self.epoch, (self.iter + 1)/self.n_iter)


class SkipValidation(Callback):
    """Skips validation where nothing reads its results: it has no batches, so loss and metrics are `None`.

    A cancelled validation would also lose the recorder's values of callbacks."""
    order = 51  # after the recorder, which resets its values of the previous epoch

    def __init__(self, last:bool=True): self.last = last  # whether the last epoch is skipped, too

    def before_validate(self):
        if self.learn.lock.locked(): return  # called by `validate` or `get_preds`
        if self.last or self.epoch + 1 < self.n_epoch: self.learn.dl = ()


class KeepBest(ShowArguments, Resumable, Callback):
    "Keeps the weights of the epoch with the best validation accuracy, the earliest of several; loads them at the end"
    order = 61  # `after_fit` runs before recipes that change the trained weights
    epoch_: int|None = None
    best = -1.
    state: dict[str, torch.Tensor]|None = None
    _state = ('epoch_', 'best', 'state')

    def __init__(self,
        load:bool=True, # Load the best epoch's weights after the fit
        patience:int=0, # Stop the fit after this many epochs without improvement; 0: never
    ): self.load, self.patience = load, patience

    def after_epoch(self):
        if self.learn.lock.locked(): return  # called by `get_preds`
        acc = dict(zip(self.recorder.metric_names, self.recorder.log))['accuracy']
        if acc > self.best:
            self.best, self.epoch_ = acc, self.epoch
            self.state = {k:v.detach().cpu().clone() for k, v in self.learn.model.state_dict().items()}
        elif self.patience and self.epoch - self.epoch_ >= self.patience: raise CancelFitException

    def after_fit(self):
        if self.load and self.state is not None and not self.learn.lock.locked():
            self.learn.model.load_state_dict(self.state)
