"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import math
import random
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib, set_seed

from ..data.clips import MultiClip
from ..errors import InputError, StoreError
from ..models.encoders import encoder_head_split
from ..runtime.distributed import ShardedDL
from ..runtime.resume import Stateful
from ..strategies.base import Penalty

__all__ = ['learning_rates', 'fit_batch_size']



class ProgressReporter(Callback):
    "Reports progress to a `Progress`"
    order, run_valid = 70, False
    def __init__(self, progress): self.progress = progress
    def after_batch(self): self.progress.epoch(self.epoch, (self.iter + 1)/self.n_iter)


class SkipValidation(Callback):
    "Leaves validation out where nobody reads it"
    order = 51  # behind the recorder, which has forgotten the last epoch's
    def before_validate(self): raise CancelValidException


class Seeded(Callback):
    "Makes order, clips and augmentation of each epoch a function of seed and epoch alone, whatever ran before"
    order = 100
    def __init__(self, seed:int): self.seed = seed
    def before_train(self):
        s = self.seed*100_003 + self.epoch
        set_seed(s + 10_000_019*rank_distrib())  # processes that train together draw other clips, in one order
        vars(self.dl).get('dl', self.dl).rng = random.Random(s)


class StopDiverged(Callback):
    "Ends a fit at the first epoch after which the loss, the penalty, a weight or a statistic is not finite; `why` says which"
    order, why = 60, None
    def after_train(self):
        terms = {cb.name:cb.mean_term() for cb in self.learn.cbs if isinstance(cb, Penalty)}
        bad = [n for n, v in dict(loss=self.learn.loss_grad.item(), **terms).items() if not np.isfinite(v)]
        if not bad and not all(torch.isfinite(t).all() for t in self.learn.model.state_dict().values() if t.is_floating_point()): bad = ['a weight or statistic']
        for who in _gathered(bad): bad = bad or who
        if not bad: return
        self.why = f'diverged in epoch {self.epoch}: {", ".join(bad)} is not finite'
        raise CancelFitException


def _gathered(x):
    "`x` of each process that trains together"
    if num_distrib() < 2: return [x]
    parts = [None]*num_distrib()
    torch.distributed.all_gather_object(parts, x)
    return parts


class KeepBest(Stateful, Callback):
    "Remembers the weights of the epoch with the best validation accuracy, of equals the first, and loads them after the fit"
    order, epoch_, best, state = 61, None, -1., None  # after_fit before recipes that change what was trained
    _state = ('epoch_', 'best', 'state')

    def __init__(self,
        load:bool=True, # Load the best epoch's weights when the fit is over
        patience:int=0, # End the fit after so many epochs without a better one; 0: never
    ): self.load, self.patience = load, patience

    def after_epoch(self):
        if self.learn.lock.locked(): return  # `get_preds`
        acc = dict(zip(self.recorder.metric_names, self.recorder.log))['accuracy']
        if acc > self.best: self.best, self.epoch_, self.state = acc, self.epoch, {k:v.detach().cpu().clone() for k, v in self.learn.model.state_dict().items()}
        elif self.patience and self.epoch - self.epoch_ >= self.patience: raise CancelFitException

    def after_fit(self):
        if self.load and self.state is not None and not self.learn.lock.locked(): self.learn.model.load_state_dict(self.state)


def learning_rates(
    name:str, # 'cosine': to 0, each batch; 'epoch_cosine': to lr/1000, each epoch; 'steps': a tenth at 50, 70 and 90 % of the epochs
    lr:float, # The first
    epochs:int, # Of the whole training
)->Callable: # From the part of training that is done, 0 to 1, to the learning rate
    "A learning rate schedule; the last two are RSPNet's"
    def epoch(pos): return int(pos*epochs + 1e-6)
    if name == 'cosine': return SchedCos(lr, 0.)
    if name == 'epoch_cosine': return lambda pos: lr/1000 + (lr - lr/1000)*(1 + math.cos(math.pi*epoch(pos)/epochs))/2
    if name == 'steps': return lambda pos: lr*.1**sum(epoch(pos) >= part*epochs/10 for part in (5, 7, 9))
    raise InputError(f'unknown schedule {name!r}; known are cosine, epoch_cosine and steps')


def fit_batch_size(
    n:int, # Training clips
    bs:int, # Batch size that was asked for
)->int: # `bs` or a smaller one
    "`bs`, halved until `n` clips make two batches: with one batch an epoch the teacher of an epoch never differs from its student"
    while bs > 1 and n < 2*bs: bs //= 2
    return bs


@contextmanager
def train_together(learn):
    "Inside, what torchrun started trains as one"
    if num_distrib() < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    with learn.distrib_ctx(sync_bn=cuda, cpu=not cuda):  # SyncBatchNorm is for GPUs
        # each process validates on all: what counts is exact
        learn.distributed_trainer._wrap_dl = lambda dl: ShardedDL(dl, device=learn.dls.device) if dl.drop_last and not isinstance(dl, ShardedDL) else dl
        yield


def fit_model(dls, model, epochs, lr, seed, cbs, progress, schedule='cosine', wd=0.):
    "Train with SGD, momentum .9; returns the learner and why it stopped early, if it did"
    check = StopDiverged()
    cbs = [*cbs, Seeded(seed), check, ProgressReporter(progress), MultiClip(), ParamScheduler(dict(lr=learning_rates(schedule, lr, epochs)))]
    # fastai's default, decoupled and without batch norm and biases, is another weight decay than torch's and RSPNet's
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9, decouple_wd=False), lr=lr, wd=wd, wd_bn_bias=True,
                    splitter=encoder_head_split, metrics=accuracy, cbs=cbs)
    try:
        with learn.no_bar(), learn.no_logging(), train_together(learn): learn.fit(epochs)
    except StoreError as e: raise StoreError(error_message(e)) from None
    return learn, check.why


def error_message(e):
    "Of an exception, without what fastai puts in front"
    text = str(e).split(':\n\t')[-1].strip()
    return text.splitlines()[0] if text else ''
