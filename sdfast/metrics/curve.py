"What an encoder keeps after each epoch of fine-tuning."
from collections.abc import Callable
from functools import partial
from typing import Any

from fastai.torch_core import num_distrib

from ..errors import InputError
from ..models.surgery import frozen_copy
from ..runtime.arguments import ShowArguments
from ..runtime.resume import Resumable
from ..strategies.columns import Columns
from ..strategies.driver import Driver
from .features import MIN_CKA_CLIPS, drift, linear_cka, weight_distance
from .reading import preserve_rng, read_clips
from .retention import Retention
from .scores import RetentionScores

__all__ = ['RetentionCurve']

# columns in the recorder -> measures
SHOWN = dict(kept_acc='source_acc', kept_cka_unbiased='cka_unbiased', kept_drift='drift',
             kept_weights='weight_distance')


class RetentionCurve(ShowArguments, Resumable, Columns, Driver):
    """Measure after each epoch what the encoder keeps, at a tenth of an epoch's cost.

    The recorder has the columns `kept_acc` (with the old head, if there is one), `kept_cka_unbiased` (from 16 clips
    on), `kept_drift` and `kept_weights`; `history` has all measures, also layer by layer, and the number of `clips`.
    They are measured on a fixed, evenly spaced sample of the clips of `retention`, which is kept in memory. Training
    with and without it is equal bit for bit. Raises `InputError` for a `retention` without clips.

    It works in every loop that strategies work in: `attach` it in a loop of your own, or give it to the adapter for
    Lightning or transformers together with the strategies."""
    order, run_valid = 8, False  # before the recorder reads the columns
    history: Any = ()  # the last fit's measures: a dict for each epoch: `epoch`, `clips`, and `RetentionScores.flat`
    _stateattrs = Driver._stateattrs + ('retention', 'history', '_columns', '_sample')
    _state = ('history',)
    _sample = None
    _epoch = -1  # the last that has ended
    _argument_attrs = dict(clips='n', encoder='protected')

    def __init__(self,
        retention:Retention, # The measurements, with the encoder before training as reference
        clips:int|None=None, # Number of clips; by default those that cost a tenth of an epoch and fit into 256 MiB
        every:int=1, # Epochs between two measurements; the last epoch of a fit is always measured
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if retention.clips is None: raise InputError('RetentionCurve needs a Retention with test_dl or clips')
        if every < 1 or (clips is not None and clips < 2):
            raise InputError(f'RetentionCurve needs every at least 1 and clips at least 2, not {every} and {clips}')
        self.retention, self.n, self.every, self.protected = retention, clips, every, encoder

    def affordable(self)->int:
        """The number of clips that can be measured in a tenth of an epoch's time.

        A training clip takes three forward passes, a validation clip one. Half of the tenth is reserved for everything
        but forward passes. At least 16, which CKA needs."""
        trained = self.loop.clips
        if trained is None:
            raise InputError('RetentionCurve does not know how many clips an epoch has: pass '
                             'RetentionCurve(clips=NUMBER), or the training data by attach(..., batches=LOADER)')
        return max(MIN_CKA_CLIPS, int(.05*(3*trained + self.loop.valid_clips)/max(1, num_distrib())))

    @property
    def _old_head(self):
        "The old head, if the clips have the source's labels"
        return self.retention.head if self.retention.clips is self.retention.test_dl else None

    def before_fit(self):
        if self.learn.lock.locked() or self.loop.trial: return  # `validate`, `get_preds`, `lr_find`
        self.attached()
        self.show(self.columns())

    def attached(self)->None:
        if self._sample is None:
            self._sample = self.retention.sample(self.n or self.affordable(), None if self.n else 2**28)
        if self.loop.epoch == 0: self.history = []

    def detached(self)->None: self.leave()

    def columns(self)->dict[str, Callable]:
        shown = {column:partial(self._latest, measure) for column, measure in SHOWN.items()}
        if self._old_head is None: shown.pop('kept_acc')
        if self._sample is not None and len(self._sample[0]) < MIN_CKA_CLIPS: shown.pop('kept_cka_unbiased')
        mark = self.mark()
        return {f'{column}{mark}':f for column, f in shown.items()}

    def _latest(self, measure):
        measured = self.history and self.history[-1]['epoch'] == self._epoch
        return self.history[-1].get(measure, float('nan')) if measured else float('nan')

    def after_train(self):
        if self._sample is None or self.loop.trial: return
        self._epoch = self.loop.epoch
        last = self._epoch + 1 == self.loop.epochs
        if (self._epoch + 1) % self.every and not last: return
        with preserve_rng(): scores = self._measure()
        self.history.append(dict(epoch=self._epoch, clips=len(self._sample[0])) | scores.flat())

    def _measure(self):
        rows, clips = self._sample
        copy = frozen_copy(self.module())
        names = dict(copy.named_modules())
        complete = all(n in names for n in self.retention.layers)  # adapters rename layers
        clips_each = clips.shape[1] if clips.ndim == 6 else 1
        bs = max(1, (self.loop.batch_size or 32)//clips_each)  # batches as large as in training
        reading = read_clips(copy, clips.split(bs), self._old_head, self.retention.layers if complete else ())
        reference = self.retention.readings['clips']
        if complete: values, layers = self.retention.compare(reading.x, reading.layers, copy, rows)
        else:
            ref = reference.x[rows]
            values, layers = dict(drift=drift(reading.x, ref)), {}
            if len(ref) >= MIN_CKA_CLIPS: values['cka_unbiased'] = linear_cka(reading.x, ref)
        values['weight_distance'] = weight_distance(dict(copy.named_parameters()), self.retention.weights)
        if reading.logits is not None:
            values['source_acc'] = (reading.logits.argmax(1) == reference.y[rows]).double().mean().item()
        return RetentionScores(values, layers=layers)
