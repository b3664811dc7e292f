"""Recipes that freeze a part of the model: batch norm, or the encoder for the whole fit or its first epochs.

Like every `Recipe`, they restore the learner when the fit ends. After an interrupted fit they do so when the next fit
begins, when the callback is removed, or by `undo()`. They compose with each other and with penalties."""
import warnings
from collections.abc import Callable

from ..models.statistics import statistics_layers, warn_without_statistics, watch_buffers
from .recipe import Recipe

__all__ = ['FrozenBN', 'LinearProbe', 'LPFT']


class FrozenBN(Recipe):
    """The encoder's batch norm normalises with its statistics from before training, which do not change.

    The same holds for all layers that keep statistics, such as instance norm and EvoNorm."""
    _watch: watch_buffers|None = None  # finds layers of the user's own classes
    _stateattrs = Recipe._stateattrs + ('_watch',)

    def __init__(self,
        affine:bool=False, # Freeze its weight and bias too
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(encoder)
        self.affine = affine

    def begin(self)->None:
        self._watch = watch_buffers(self.module(), freeze=True)
        norms = statistics_layers(self.module())
        if self.affine: self.freeze(p for m in norms for p in m.parameters(recurse=False))

    def undo(self)->None:
        if self._watch is not None: self._watch.remove()
        self._watch = None
        super().undo()

    def before_train(self): self.set_eval(statistics_layers(self.module()))

    def before_batch(self): self.before_train()  # a callback may have changed modes in the middle of an epoch

    def after_train(self): warn_without_statistics(self.module(), 'FrozenBN')


class LinearProbe(Recipe):
    """Train only the head. The encoder is in eval mode and none of its weights or buffers changes.

    fastai's `freeze` differs: it trains batch norm, updates its statistics and leaves dropout on."""
    def __init__(self,
        encoder:str|Callable|None=None, # Which part of the model to freeze, see `find_encoder`
    ): super().__init__(encoder)

    def probing(self)->bool:
        "Whether the encoder is frozen in this epoch"
        return True

    def begin(self)->None: self.freeze(self.module().parameters())

    def before_train(self):
        if self.probing(): self.freeze(self.module().parameters())
        else:
            self.thaw()
            self.restore_modes()
        self.before_batch()

    def before_batch(self):
        if self.probing(): self.set_eval(self.module().modules())


class LPFT(LinearProbe):
    "A linear probe for the first epochs of a fit, then the whole model (Kumar et al., ICLR 2022)"
    def __init__(self,
        probe_epochs:int, # Number of epochs that train the head only
        encoder:str|Callable|None=None, # Which part of the model to freeze, see `find_encoder`
    ):
        super().__init__(encoder)
        if isinstance(probe_epochs, bool) or not isinstance(probe_epochs, int) or probe_epochs < 0:
            raise ValueError(f'probe_epochs must be a whole number of at least 0, not {probe_epochs!r}')
        self.probe_epochs = probe_epochs

    def probing(self)->bool: return self.loop.epoch < self.probe_epochs

    def begin(self)->None:
        if self.probe_epochs >= self.n_epochs() and not self.loop.trial:
            warnings.warn(f'LPFT({self.probe_epochs}) in a fit of {self.n_epochs()} epochs never trains the '
                          'encoder: fit for more epochs')
