"""What fine-tuning kept of what an encoder knew, measured against the untouched encoder.

Everything is computed in eval mode on the same clips; an untouched encoder is changed by exactly 0. Sources: linear probe after
fine-tuning, Davari et al., CVPR 2022; ΔLP on other data sets, Mukhoti et al. (LDIFS), TMLR 2024; retrieval R@k, Xu et al. (VCOP),
CVPR 2019; linear CKA, Kornblith et al., ICML 2019; Procrustes, Ding et al., NeurIPS 2021; barrier, Frankle et al., ICML 2020, with
batch norm's statistics taken anew, Jordan et al., ICLR 2023."""
from collections.abc import Callable

from fastai.callback.core import Callback
from fastai.torch_core import num_distrib

from ..errors import InputError
from ..models.surgery import find_encoder, frozen_copy
from ..runtime.resume import Stateful
from ..strategies.base import Columns
from .features import drift, linear_cka, weight_distance
from .retention import Retention, RetentionScores, preserve_rng, read_clips

__all__ = ['RetentionCurve']



class RetentionCurve(Stateful, Columns, Callback):
    """What the encoder keeps, epoch by epoch, for a tenth of an epoch's cost: columns `kept_acc` (with the old head, where there
    is one), `kept_cka`, `kept_drift` and `kept_weights` in the recorder; layer by layer in `history`.

    Measured on a fixed sample of the clips of `retention`, spread evenly over them and kept in memory. Training is the same to the
    bit with and without it. Raises `InputError` for a `retention` without clips."""
    order, run_valid = 8, False  # before the recorder looks at columns
    history = ()  # of the last fit: one dict an epoch, `RetentionScores.flat` names
    _stateattrs, _state = ('retention', 'history', '_columns', '_sample'), ('history',)
    _sample = None

    def __init__(self,
        retention:Retention, # Of the encoder before training
        clips:int|None=None, # How many; by default as many as cost a tenth of an epoch, if they fit into 256 MiB
        every:int=1, # Epochs between two measurements; the last of a fit is always measured
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if retention.clips is None: raise InputError('RetentionCurve needs a Retention with test_dl or clips')
        if every < 1 or clips is not None and clips < 2: raise InputError('RetentionCurve needs every of at least 1 and clips of at least 2')
        self.retention, self.n, self.every, self.protected = retention, clips, every, encoder

    def affordable(self)->int:
        "How many clips a tenth of an epoch pays for: a training clip costs three forward passes, a validation clip one; half is for all else"
        valid = len(self.dls.valid_ds) if len(self.dls.loaders) > 1 else 0
        return max(2, int(.05*(3*len(self.dls.train_ds) + valid)/max(1, num_distrib())))

    def before_fit(self):
        if self.learn.lock.locked() or hasattr(self.learn, 'lr_finder'): return  # `validate`, `get_preds`, `lr_find`
        if self._sample is None: self._sample = self.retention.sample(self.n or self.affordable(), None if self.n else 2**28)
        self.history, labelled = [], self.retention.head is not None and self.retention.clips is self.retention.test_dl
        names = (dict(kept_acc='source_acc') if labelled else {}) | dict(kept_cka='cka', kept_drift='drift', kept_weights='weight_distance')
        self.show({column:lambda k=k: self._now(k) for column, k in names.items()})

    def _now(self, name): return self.history[-1].get(name, float('nan')) if self.history and self.history[-1]['epoch'] == self.epoch else float('nan')

    def after_train(self):
        if self._sample is None or hasattr(self.learn, 'lr_finder') or (self.epoch + 1) % self.every and self.epoch + 1 < self.n_epoch: return
        rows, clips = self._sample
        with preserve_rng():
            copy = frozen_copy(find_encoder(self.learn.model, self.protected))
            names = dict(copy.named_modules())
            layers = [n for n in self.retention.layers if n in names]  # adapters rename them
            whole = len(layers) == len(self.retention.layers)
            # batches as large as in training
            bs = max(1, (getattr(self.dls.train, 'bs', None) or 32)//(clips.shape[1] if clips.ndim == 6 else 1))
            old_head = self.retention.head if self.retention.clips is self.retention.test_dl else None
            r = read_clips(copy, clips.split(bs), old_head, layers if whole else ())
            ref = self.retention._readings['clips']
            kept = self.retention.compare(r.x, r.layers, copy, rows) if whole else dict(cka=linear_cka(r.x, ref.x[rows]), drift=drift(r.x, ref.x[rows]))
            kept['weight_distance'] = weight_distance(dict(copy.named_parameters()), self.retention.weights)
            if r.logits is not None: kept['source_acc'] = (r.logits.argmax(1) == ref.y[rows]).double().mean().item()
        self.history.append(dict(epoch=self.epoch) | RetentionScores(**kept).flat())
