"Weight averaging (WiSE-FT, LiNeS): interpolate the encoder between its weights before and after fine-tuning."
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fastai.learner import Learner
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.merging import check_beta, depth_shares, interpolate, lines_shares
from ..models.statistics import reestimate_bn, statistics_moved
from ..models.surgery import find_encoder
from ..models.weights import anchor_state, check_alpha, weights_before
from ..runtime.resume import Resumable
from .budget import Budget
from .budgeted import Budgeted
from .lora import LoRA
from .mixins import Anchored
from .recipe import Recipe

__all__ = ['wise_ft_sweep', 'WiSEFT', 'LiNeS']


def _interpolate(model, part, start, share, dl):
    """Move `part` to `share`, a number or one for each weight, between `start` and its current weights.

    Between the two ends, batch-norm statistics fit neither and are recomputed from `dl`, unless training left them
    unchanged."""
    moved = statistics_moved(part.state_dict(), start)
    shares = set(share.values()) if isinstance(share, Mapping) else {share}
    part.load_state_dict(interpolate(part, start, share))
    if not moved or shares in ({0}, {1}): return
    if dl is None:
        raise InputError('weight averaging takes the statistics of batch norm from the training data: '
                         'call attach(model, batches=LOADER)')
    reestimate_bn(model, dl, part)


def wise_ft_sweep(
    learn:Learner|nn.Module, # Learner or model, fine-tuned
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    alphas:Iterable[float], # Numbers from 0 to 1
    dl:Iterable, # Batches `(x, y)` of the target task, for batch-norm statistics
    measure:Callable, # Function of `learn`
    encoder:str|Callable|None=None, # Which part of the model to interpolate, see `find_encoder`
)->Iterator[tuple]: # A pair for each of `alphas`
    "Yield `(alpha, measure(learn))` for each alpha; after each one, the encoder is restored bit for bit"
    model = get_model(learn.model if isinstance(learn, Learner) else learn)
    part = find_encoder(model, encoder)
    start, end = weights_before(part, anchor), anchor_state(part)
    for alpha in alphas:
        check_alpha(alpha)
        try:
            _interpolate(model, part, start, alpha, dl)
            value = measure(learn)
        finally: part.load_state_dict(end)
        yield alpha, value


class WiSEFT(Budgeted, Anchored, Resumable, Recipe):
    """After the fit, interpolate the encoder by `wise_ft` between its weights before and after.

    Its batch-norm statistics are recomputed from the train loader. The head does not change. The recorder's numbers are
    those before the interpolation. With `retain` the largest alpha that keeps so much is taken, found by bisection
    after the fit, and `alpha` is not used. Does nothing after `lr_find` or if the fit was interrupted in the middle of
    an epoch (early stopping is not an interruption). Raises `ValueError` if it is too late to take the weights before
    training, see `Anchored`.

    With `by_depth` layers near the input keep less of what they learned, `alpha**d`, where d is 1 for the last of
    `encoder_layers` and grows towards the input: what `LayerDecay` does to the rates, done after training."""
    name, order = 'wise_ft', 80  # after SaveModelCallback, which loads the best epoch
    _start: dict|None = None  # the encoder's state before training
    _whole = False  # whether the last epoch trained to its end
    _stateattrs = Recipe._stateattrs + Budgeted._budgetattrs + Anchored._anchorattrs + ('_start', '_whole')
    _state = Anchored._state + ('_start', '_whole')

    def __init__(self,
        alpha:float=.5, # How much of fine-tuning to keep; 0 and 1 are exactly the two ends
        encoder:str|Callable|None=None, # Which part of the model to interpolate, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
        by_depth:bool=False, # Keep `alpha**d` of fine-tuning in the layer at depth d
    ):
        super().__init__(encoder)
        check_alpha(alpha)
        self.alpha, self.anchor, self.by_depth = alpha, anchor, by_depth

    def shares(self, alpha:float)->float|dict[str, float]:
        "How much of fine-tuning to keep, of all weights or by name"
        return depth_shares(self.module(), alpha) if self.by_depth else alpha

    def begin(self)->None:
        self._whole = False
        if any(isinstance(cb, LoRA) for cb in self.loop.strategies):
            raise ValueError(f'{type(self).__name__} cannot interpolate an encoder with adapters: fit with LoRA() '
                             'alone, then call wise_ft_sweep or lines')

    def strength(self)->float: return 1 - self.alpha
    def set_strength(self, lam:float)->None: self.alpha = 1 - lam

    def set_budget(self, retain:float|Budget)->None:
        self.alpha = min(self.alpha, .5)  # any strength above 0
        super().set_budget(retain)

    def after_step(self)->None: Recipe.after_step(self)  # alpha is found after the fit

    def before_train(self):
        self._whole = False
        self.begin_budget()
        self.take_at_start()

    def take_at_start(self)->None:
        state = self.take()
        if state is not None: self._start = state

    def after_train(self): self._whole = True

    def detached(self)->None:
        if self._whole: self._finish()
        super().detached()

    def after_fit(self):
        if self._whole and not self.learn.lock.locked() and not self.loop.trial: self._finish()
        super().after_fit()

    def _finish(self):
        self._whole = False
        if self.budget is not None: self.alpha = self._largest_alpha()
        self._interpolate(self.alpha)

    def _interpolate(self, alpha):
        _interpolate(get_model(self.loop.model), self.module(), self._start, self.shares(alpha), self.loop.batches)

    def _largest_alpha(self):
        "The largest alpha, in steps of 1/64, with which the floor is held; 0 if there is none"
        end, low, high = anchor_state(self.module()), 0, 64
        if self._keeps(1., end): return 1.
        while high - low > 1:
            middle = (low + high)//2
            if self._keeps(middle/64, end): low = middle
            else: high = middle
        if not (low or self._keeps(0., end)): self._say_not_held()
        return low/64

    def _say_not_held(self):
        kept = self.kept_history[-1]['kept']
        warnings.warn(f'{type(self).__name__} cannot hold its floor: {100*kept:.1f} % of what the encoder knew is left '
                      f'with alpha 0, less than {100*self.budget.retain:.1f} %: lower retain, or take WiSEFT(), which '
                      'scales all layers')

    def _keeps(self, alpha, end):
        "Whether the floor is held with `alpha`; restores the encoder"
        self.alpha = alpha
        try:
            self._interpolate(alpha)
            return self.measure_kept() >= self.budget.retain
        finally: self.module().load_state_dict(end)


class LiNeS(WiSEFT):
    """After the fit, scale what each layer of the encoder has learned by its depth (Wang et al., arXiv 2410.17146).

    Layer l of L keeps the share `alpha + beta*(l - 1)/(L - 1)` of its change, see `lines`. All else is as in `WiSEFT`:
    batch-norm statistics, `retain`, and when nothing is done."""
    name = 'lines'

    def __init__(self,
        alpha:float=.5, # How much of its change the first layer keeps; with 1, and no `beta`, the fit is a plain one
        beta:float|None=None, # How much more the last layer keeps; `None`: all of its change
        encoder:str|Callable|None=None, # Which part of the model to scale, see `find_encoder`
        anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file; `None`: the encoder before training
    ):
        super().__init__(alpha, encoder, anchor)
        self.beta = check_beta(beta)

    def shares(self, alpha:float)->dict[str, float]: return lines_shares(self.module(), alpha, self.beta)
