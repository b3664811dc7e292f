"fastai's events drive strategies: a `Learner` as the loop that `core.BaseStrategy` works in."
from typing import Any

from fastai.callback.core import Callback
from fastai.data.core import Datasets, test_set
from fastai.learner import Learner
from torch import nn

from .clip_numbers import labels_in, numbers_in
from .core import BaseStrategy
from .loop import Loop

__all__ = ['Driver']


class LearnerLoop(Loop):
    "What a strategy sees of a `Learner`"
    loss_of_logits = False
    kwargs: dict = {}  # fastai calls a model with positional arguments
    ask_numbers = "take fastai's DataLoader, with a batch size and of data with an index"

    def __init__(self,
        learn:Learner, # In a fit
    ): self.learn = learn

    @property
    def model(self)->nn.Module: return self.learn.model
    @property
    def opt(self)->Any: return self.learn.opt
    @property
    def epoch(self)->int: return self.learn.epoch
    @property
    def epochs(self)->int: return self.learn.n_epoch
    @property
    def trial(self)->bool: return hasattr(self.learn, 'lr_finder')
    @property
    def batches(self)->Any: return self.learn.dls.train
    @property
    def unaugmented(self)->Any:
        dls = self.learn.dls
        train, valid = (vars(dl).get('dl', dl) for dl in (dls.train, dls.valid))  # unwrapped from `DistributedDL`
        if isinstance(train.dataset, Datasets):
            items = test_set(train.dataset, train.dataset.items, with_labels=True)
            return valid.new(items, shuffle=False, drop_last=False)
        return train.new(shuffle=False, drop_last=False) if hasattr(train, 'new') else train

    @property
    def clips(self)->int: return len(self.learn.dls.train_ds)
    @property
    def valid_clips(self)->int: return len(self.learn.dls.valid_ds) if len(self.learn.dls.loaders) > 1 else 0
    @property
    def batch_size(self)->int|None: return getattr(self.learn.dls.train, 'bs', None)
    @property
    def classes(self)->int: return getattr(self.learn.dls, 'c', 0)
    @property
    def divided(self)->bool: return 'dl' not in vars(self.learn.dls.train)  # `DistributedDL` has all clips
    @property
    def strategies(self)->list: return [cb for cb in self.learn.cbs if isinstance(cb, BaseStrategy)]
    @property
    def args(self)->tuple: return self.learn.xb
    @property
    def inputs(self)->Any: return self.learn.xb
    @property
    def outputs(self)->Any: return self.learn.pred
    @property
    def targets(self)->Any:
        yb = self.learn.yb
        return yb[0] if len(yb) == 1 else tuple(yb) or None  # a strategy that needs one tensor refuses several

    @property
    def criterion(self)->Any: return self.learn.loss_func
    @property
    def numbers(self)->Any: return numbers_in(self.learn)
    @property
    def labels(self)->Any: return labels_in(self.learn)

    @property
    def gradient_scale(self)->Any: return self.scale  # strategies come before `MixedPrecision` unscales the gradients
    @property
    def scale(self)->float|None:
        scaler = vars(self.learn).get('scaler')  # set by `MixedPrecision`
        return None if scaler is None else scaler.get_scale()


class Driver(BaseStrategy, Callback):
    """Base of strategies as fastai callbacks, whose methods are named after fastai's events.

    In a fit, `loop` is the `Learner`."""
    @property
    def loop(self)->Loop:
        "Where the strategy is at work: a loop that it is attached to, or a `Learner`"
        return LearnerLoop(self.learn) if self._loop is None and self.learn is not None else super().loop
