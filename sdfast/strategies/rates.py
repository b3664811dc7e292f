"Recipes that set the learning rate of each layer."
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fastai.torch_core import get_model
from torch import nn

from ..models.layers import encoder_layers, without_repeats
from ..models.surgery import find_encoder
from ..runtime.resume import Resumable
from .budgeted import Budgeted
from .columns import Columns
from .optimizers import unwrap_optimizer
from .recipe import Recipe

__all__ = ['layer_groups', 'LayerDecay', 'LowerLR', 'EncoderLR']


def layer_groups(
    model:nn.Module, # Wrapped by DDP or not
    encoder:str|Callable|None=None, # Which part of the model has the layers, see `find_encoder`
)->list[list[nn.Parameter]]: # From input to head; the last group has all parameters outside the encoder
    "The parameters of a model by layer, see `encoder_layers`; a splitter for fastai's `Learner`"
    model = get_model(model)
    groups = encoder_layers(find_encoder(model, encoder))
    return without_repeats([*groups, list(model.parameters())])


class ScaledLR(Budgeted, Resumable, Columns, Recipe):
    """Each parameter learns at `rate(lr, depth)`, where `lr` is the current learning rate of its group in the
    optimizer.

    The rates are changed only during a step, which splits the optimizer's groups by depth and restores them afterwards.
    So schedulers, `lr_find`, `freeze` and checkpoints see the original groups, and factors cannot accumulate. The
    recorder shows `lr`."""
    needs_optimizer = True
    _stepping: Any = None  # the optimizer whose `step` is replaced
    _replaced: Any = None  # what it had in this place, such as a scheduler's `step`; `None` for its class's
    _depths: dict[int, int] = {}  # id of a parameter -> depth
    _stateattrs = Recipe._stateattrs + Budgeted._budgetattrs + ('_stepping', '_replaced', '_depths', '_columns')

    def rate(self, lr:float, depth:int)->float: raise NotImplementedError(f'{type(self).__name__} must define `rate`')

    def depths(self)->dict[int, int]:
        "Id of a parameter -> depth; parameters that are not listed have depth 0, like the head's"
        return {}

    def begin(self)->None:
        others = [cb for cb in self.loop.strategies if isinstance(cb, ScaledLR) and cb is not self]
        if others:
            raise ValueError(f'{type(self).__name__} and {type(others[0]).__name__} both set learning rates: keep one, '
                             'and scale the lr of the fit for the other')

    def before_fit(self):
        if not self.starts(): return
        super().before_fit()
        self.show(self.columns())

    def after_fit(self):
        Columns.after_fit(self)
        Recipe.after_fit(self)

    def before_train(self):
        self.begin_budget()
        self.release()
        core = unwrap_optimizer(self.loop.opt)
        self._depths, self._stepping, self._replaced = self.depths(), core, vars(core).get('step')
        core.step = partial(self._step, core, core.step)

    def _step(self, core, step, *args, **kwargs):
        groups = self._by_depth(core.param_groups)
        if isinstance(core, torch.optim.Optimizer): split = dict(param_groups=groups)
        else: split = dict(param_lists=[g.pop('params') for g in groups], hypers=groups)  # fastai's
        whole = {k:vars(core)[k] for k in split}
        try:
            vars(core).update(split)
            return step(*args, **kwargs)
        finally: vars(core).update(whole)

    def _by_depth(self, groups):
        split = []
        for g in groups:
            by_depth = {}
            for p in g['params']: by_depth.setdefault(self._depths.get(id(p), 0), []).append(p)
            split += [{**g, 'params':params, 'lr':self.rate(g['lr'], d)} for d, params in by_depth.items()]
        return split

    def release(self)->None:
        if self._stepping is not None: vars(self._stepping).pop('step', None)
        if self._replaced is not None: self._stepping.step = self._replaced
        self._stepping = self._replaced = None

    def after_train(self):
        self.release()
        self.end_budget()


class LayerDecay(ScaledLR):
    """The head learns at lr, a layer of the encoder at `lr*decay**d`, where d is 1 for the last of its `layer_groups`
    and grows towards the input (Clark et al., ELECTRA, ICLR 2020)."""
    def __init__(self,
        decay:float=.75, # Factor from layer to layer; with 1 training equals plain fine-tuning bit for bit
        encoder:str|Callable|None=None, # Which part of the model has the layers, see `find_encoder`
    ):
        super().__init__(encoder)
        if not 0 < decay <= 1:
            raise ValueError(f'decay must be above 0 and at most 1, not {decay}; '
                             'to train only the head take LinearProbe()')
        self.decay = decay

    def strength(self)->float: return 1/self.decay - 1
    def set_strength(self, lam:float)->None: self.decay = 1/(1 + lam)

    def depths(self)->dict[int, int]:
        groups = layer_groups(self.loop.model, self.protected)
        if len(groups) == 2 and len(groups[0]) > 4:
            warnings.warn(f'LayerDecay finds one layer in {type(self.module()).__name__}, so there is no decay '
                          'inside it: pass encoder=... to name the module whose children are the layers')
        return {id(p):d for d, params in enumerate(reversed(groups)) for p in params}

    def rate(self, lr:float, depth:int)->float: return lr*self.decay**depth


class LowerLR(ScaledLR):
    "Plain fine-tuning at `lr/(1 + lam)`: the control for methods that may forget less only because weights move less"
    first_lam = 3.

    def __init__(self,
        lam:float, # At least 0; with 0 training equals plain fine-tuning bit for bit
    ):
        super().__init__()
        if not 0 <= lam < float('inf'): raise ValueError(f'lam must be a number of at least 0, not {lam}')
        self.lam = lam

    def rate(self, lr:float, depth:int)->float: return lr/(1 + self.lam)


class EncoderLR(ScaledLR):
    """The head learns at lr, the encoder at `lr/(1 + lam)`: the control for methods that may forget less only because
    the encoder moves less, which leaves the head its learning rate."""
    first_lam = 3.

    def __init__(self,
        lam:float, # At least 0, such as 7 for an eighth of lr; with 0 training equals plain fine-tuning bit for bit
        encoder:str|Callable|None=None, # Which part of the model learns more slowly, see `find_encoder`
    ):
        super().__init__(encoder)
        if not 0 <= lam < float('inf'): raise ValueError(f'lam must be a number of at least 0, not {lam}')
        self.lam = lam

    def depths(self)->dict[int, int]: return {id(p):1 for p in self.module().parameters()}
    def rate(self, lr:float, depth:int)->float: return lr/(1 + self.lam) if depth else lr
