"""How much of an encoder's knowledge is left after fine-tuning, in comparison with the untouched encoder.

Everything is computed in eval mode on the same clips, so for an untouched encoder all changes are exactly 0.
References: linear probe after fine-tuning, Davari et al., CVPR 2022; change of a linear probe on other data sets,
Mukhoti et al. (LDIFS), TMLR 2024; batch-norm statistics recomputed for the barrier, Jordan et al., ICLR 2023. For the
other measures see `metrics.features`."""
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import get_model
from torch import nn

from ..data.batches import Batches
from ..errors import InputError
from ..models.features import LayerNotCalled, outputs_of
from ..models.labels import loader_vocab
from ..models.statistics import recomputable, reestimate_bn
from ..models.surgery import block_names, find_encoder, frozen_copy
from ..models.weights import wise_ft
from .doubts import warn_of_chance, warn_of_few_clips, warn_of_wide_head
from .extra import check_extra, right_extra
from .features import (
    MIN_CKA_CLIPS,
    drift,
    fit_probe,
    knn,
    linear_cka,
    linear_probe,
    loss_barrier,
    probe_accuracy,
    procrustes,
    retrieval,
    weight_distance,
)
from .loaders import FixedLoaders, spaced_sample
from .per_clip import answer_divergence
from .reading import Evidence, OutputCache, fix_seed, preserve_rng
from .scores import RetentionScores

__all__ = ['Retention']


class Retention:
    """Measures what an encoder kept: `Retention(model, train_dl, test_dl)(tuned_encoder)`.

    The reference is the current `model`, whose outputs are computed once. Loaders yield `(x, y)`, y class numbers, or
    dicts, see `split_batch`; `clips` may yield only `x`. They must neither shuffle nor augment: each reading is checked
    to give the same clips as the first. CKA is left out, with a warning, where there are fewer than 16 clips. An old
    head that is not above chance is warned of, as it has nothing to forget. Measuring draws no random numbers and
    changes neither modes nor statistics."""

    def __init__(self,
        model:nn.Module, # Untouched `Sequential(encoder, head)` of the source task, or see `find_encoder`
        train_dl:Iterable|None=None, # Source clips to fit the probe and the neighbours on
        test_dl:Iterable|None=None, # Source clips to measure on
        *,
        valid_dl:Iterable|None=None, # Held-out source clips, to choose strengths
        clips:Iterable|None=None, # Clips to compare features on, without labels; by default those of `test_dl`
        others:dict|None=None, # Other tasks to probe: name -> `(train loader, test loader)`
        pretext:Callable|None=None, # Function of a copy of the encoder that returns its loss on the pre-training task
        head:nn.Module|None=None, # Maps features to source logits; by default that of `Sequential(encoder, head)`
        layers:str|Sequence[str]|None='blocks', # Submodules to compare: names, 'blocks' for `block_names`, or none
        bn:bool=True, # Also measure the old head with recomputed batch-norm statistics
        barrier_at:Sequence[float]=(.25, .5, .75), # Positions between untouched (0) and tuned (1) weights; may be empty
        extra:Sequence[str]=(), # More measures of the source, see `EXTRA`; two need `valid_dl`, one takes another pass
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
        cache:str|Path|None=None, # Folder for outputs of the untouched encoder, which processes can share
        split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
        activation:str|None=None, # What the head's logits are for, see `answer_divergence`
    ):
        if train_dl is None and test_dl is None and clips is None and not others and pretext is None:
            raise InputError('Retention has nothing to measure on: pass train_dl and test_dl of the source, clips '
                             'without labels, others or pretext')
        if (train_dl is None) != (test_dl is None):
            raise InputError('Retention needs both train_dl, to fit the probe, and test_dl, to measure on')
        self.train_dl, self.test_dl, self.valid_dl = train_dl, test_dl, valid_dl
        self.extra = check_extra(extra, valid_dl, test_dl)
        self.clips = test_dl if clips is None else clips
        self.others, self.pretext, self.split, self.activation = others or {}, pretext, split, activation
        self.loaders = FixedLoaders(self._named_loaders(), unlabelled=['clips'], split=split)

        model = get_model(model)
        self.untouched = frozen_copy(find_encoder(model, encoder))
        if head is None and encoder is None and isinstance(model, nn.Sequential): head = model[1]
        self.head = None if head is None else frozen_copy(head)
        self.layers = block_names(self.untouched) if layers == 'blocks' else list(layers or ())
        known = dict(self.untouched.named_modules())
        missing = [n for n in self.layers if n not in known]
        if missing: raise InputError(f'the encoder has no layer {missing[0]!r}; it has {", ".join(known)}')
        outside = [a for a in barrier_at if not 0 < a < 1]
        if outside: raise InputError(f'barrier_at must lie between 0 and 1, not at {outside[0]}')
        self.bn = bn and bool(recomputable(self.untouched))
        self.barrier_at = tuple(barrier_at)
        self.weights = {k:p.detach().clone() for k, p in self.untouched.named_parameters()}
        self._samples: dict[tuple, tuple] = {}
        self.readings = self._read_untouched(cache, given=layers != 'blocks')
        self.evidence = Evidence(self.readings)  # of the untouched encoder, complete once `reference` was read
        if self.clips is not None: warn_of_few_clips(self.readings['clips'])
        if self.head is not None and self.test_dl is not None:
            labels, test = self.readings['train_dl'].y, self.readings['test_dl']
            if loader_vocab(self.test_dl) is None: warn_of_wide_head(labels, test)
            warn_of_chance('the old head', test.accuracy(), test, 'its accuracy says nothing about forgetting; train '
                           'the source model longer, or pass the head of these classes')

    def _read_untouched(self, cache, given):
        "Outputs of the untouched encoder; blocks that it does not call are left out, unless they were `given`"
        while True:
            read = OutputCache(cache, self.untouched, self.layers) if cache else outputs_of
            try:
                with preserve_rng(): return self._read_all(self.untouched, read)
            except LayerNotCalled as e:
                if given: raise
                self.layers.remove(e.layer)

    @cached_property
    def reference(self)->RetentionScores:
        "Scores of the untouched encoder"
        with preserve_rng(): scores = self._score(self.untouched, self.evidence)
        if self.test_dl is not None:
            warn_of_chance('a new probe on the untouched encoder', scores.source_probe, self.readings['test_dl'],
                           'there is no knowledge of the source to forget')
        return scores

    def __call__(self, encoder:nn.Module)->RetentionScores:
        """Measure an encoder (not a whole model) with the architecture of the untouched one; a fit may be running.

        With adapters, which rename weights, measures of the weights are nan or missing. Raises `FloatingPointError`
        for features that are not finite."""
        return self.measure(encoder)[0]

    def measure(self, encoder:nn.Module)->tuple[RetentionScores, Evidence]:
        "Measure an encoder as a call does; also returns what the scores were computed from"
        with preserve_rng():
            copy = self._copy(encoder)
            found = Evidence(self._read_all(copy))
            return self._score(copy, found), found

    def change(self, encoder:nn.Module)->dict[str, float]:
        """Scores of `encoder` minus those of the untouched one, named as in `RetentionScores.flat`.

        Negative accuracies are forgetting; for an untouched encoder all are exactly 0."""
        reference = self.reference.flat()
        return {k:v - reference[k] for k, v in self(encoder).flat().items()}

    def held_out(self, encoder:nn.Module)->RetentionScores:
        "Scores on `valid_dl` only, by which strengths may be chosen"
        if self.valid_dl is None: raise InputError('Retention was given no valid_dl to choose strengths by')
        assert self.train_dl is not None  # the probe is fitted on it
        with preserve_rng():
            copy = self._copy(encoder)
            train, valid = self._read(copy, 'train_dl'), self._read(copy, 'valid_dl')
            assert train.y is not None  # only `clips` may come without labels
            return RetentionScores(self._on_valid(fit_probe(train.x, train.y), valid))

    def compare(self,
        x:torch.Tensor, # Features `(N, F)`
        layers:dict, # Outputs `(N, C)` of each of `self.layers`
        encoder:nn.Module, # The encoder of these features
        rows:slice|torch.Tensor=slice(None), # The clips of these features
    )->tuple[dict, dict]: # Measures of the features; layer -> its measures
        """Measures that need no labels: CKA, Procrustes distance, drift, and distances of weights by layer.

        Fewer than 16 clips have no CKA."""
        reference, weights = self.readings['clips'], dict(encoder.named_parameters())

        def measures(a, b):
            cka = dict(cka_unbiased=linear_cka(a, b)) if len(a) >= MIN_CKA_CLIPS else {}
            return cka | dict(procrustes=procrustes(a, b), drift=drift(a, b))
        each = {n:measures(layers[n], reference.layers[n][rows]) for n in self.layers}
        for n, found in each.items():
            untouched = {k:p for k, p in self.weights.items() if k.startswith(f'{n}.')}
            if untouched: found['weight_distance'] = weight_distance(weights, untouched)
        return measures(x, reference.x[rows]), each

    def sample(self,
        n:int, # Number of videos; at least two are taken
        size:int|None=None, # Largest size in bytes; if given, `n` counts each of several clips of a video
    )->tuple[torch.Tensor, torch.Tensor]: # Indices, and the clips as a loader yields them; kept in memory
        "Take an evenly spaced sample of `clips`"
        if (n, size) not in self._samples:
            assert self.clips is not None  # the caller knows
            traces = self.readings['clips'].trace
            with preserve_rng(): self._samples[n, size] = spaced_sample(self.clips, traces, n, size, self.split)
        return self._samples[n, size]

    def _copy(self, encoder):
        encoder = get_model(encoder)
        names, first = dict(encoder.named_parameters()), next(iter(self.weights))
        if first not in names and f'0.{first}' in names:
            raise InputError('Retention measures encoders: pass learn.model[0], not the whole model')
        return frozen_copy(encoder)

    def _named_loaders(self):
        "Name -> loader; the names are those of the arguments"
        loaders = dict(train_dl=self.train_dl, test_dl=self.test_dl, valid_dl=self.valid_dl)
        if self.clips is not self.test_dl: loaders['clips'] = self.clips
        for task, (train, test) in self.others.items():
            loaders |= dict(zip(_other_names(task), (train, test)))
        return {name:dl for name, dl in loaders.items() if dl is not None}

    def _read(self, encoder, name, outputs=outputs_of):
        "The outputs of an encoder for the clips of a loader"
        head = self.head if name in ('test_dl', 'valid_dl', 'clips') else None
        layers = self.layers if name == ('test_dl' if self.clips is self.test_dl else 'clips') else ()
        return self.loaders.read(encoder, name, head, layers, outputs)

    def _read_all(self, encoder, outputs=outputs_of):
        "Name of a loader -> the outputs of an encoder for its clips; `clips` is there if there are any to compare"
        readings = {name:self._read(encoder, name, outputs) for name in self.loaders}
        if 'test_dl' in readings: readings.setdefault('clips', readings['test_dl'])
        return readings

    @cached_property
    def about(self)->dict: # Name -> number
        "Numbers of clips that measures are of, and `source_chance`, the share of the source's most frequent class"
        names = dict(source_clips='test_dl', compared_clips='clips', valid_source_clips='valid_dl')
        counts = {column:len(self.readings[name]) for column, name in names.items() if name in self.readings}
        others = {f'others.{task}.clips':len(self.readings[_other_names(task)[1]]) for task in self.others}
        if others: counts |= dict(other_clips=sum(others.values())) | others
        return counts if self.test_dl is None else counts | dict(source_chance=self.readings['test_dl'].chance)

    def _score(self, encoder, found):
        values, layers, answers, readings = {}, {}, None, found.readings
        others = {}
        for task in self.others:
            train, test = (readings[name] for name in _other_names(task))
            others[task] = linear_probe(train.x, train.y, test.x, test.y)
        if others: values['other_probe'] = float(np.mean(list(others.values())))
        if self.test_dl is not None:
            values |= self._on_source(encoder, found)
            if self.head is not None: answers = readings['test_dl'].logits.softmax(1)
        if self.clips is not None:
            features, layers = self.compare(readings['clips'].x, readings['clips'].layers, encoder)
            values |= features
            logits, before = (r['clips'].logits for r in (readings, self.readings))
            if self.head is not None: values['kl'] = answer_divergence(logits, before, self.activation).mean().item()
        values['weight_distance'] = weight_distance(dict(encoder.named_parameters()), self.weights)
        if self.pretext is not None:
            fix_seed()
            values['pretext'] = float(self.pretext(frozen_copy(encoder)))
        return RetentionScores(values, others, layers, self.about, answers)

    def _on_source(self, encoder, found):
        "Measures on the labelled source clips"
        train, test = found.readings['train_dl'], found.readings['test_dl']
        found.probe = probe = fit_probe(train.x, train.y)
        values = dict(source_probe=probe_accuracy(probe, test.x, test.y),
                      source_knn=knn(train.x, train.y, test.x, test.y))
        for k, share in retrieval(train.x, train.y, test.x, test.y).items(): values[f'r{k}'] = share
        found.extra = right_extra(self.extra, encoder, self.loaders, found.readings)
        values |= {name:right.double().mean().item() for name, right in found.extra.items()}
        if self.valid_dl is not None: values |= self._on_valid(probe, found.readings['valid_dl'])
        if self.head is not None:
            values['source_acc'] = test.accuracy()
            if self.bn or self.barrier_at: values |= self._between_weights(encoder, found)
        return values

    def _on_valid(self, probe, valid):
        values = dict(valid_source_probe=probe_accuracy(probe, valid.x, valid.y))
        if self.head is not None: values['valid_source_acc'] = valid.accuracy()
        return values

    def _between_weights(self, encoder, found):
        "With recomputed batch-norm statistics: the old head's accuracy, and the barrier of its loss"
        start, point = self.untouched.state_dict(), frozen_copy(encoder)
        if start.keys() != point.state_dict().keys(): return {}  # adapters: there is no straight line
        places, readings = [*self.barrier_at, 1.], []
        for a in places:
            point.load_state_dict(wise_ft(encoder, start, a))
            readings.append(self._with_recomputed_bn(point))
        values = {}
        found.recomputed = readings[-1]
        if self.bn: values['source_acc_bn'] = readings[-1].accuracy()
        if self.barrier_at:
            found.between = dict(zip([0., *places], [self._untouched_reading, *readings]))
            values['barrier'] = loss_barrier([r.loss() for r in found.between.values()], list(found.between))
        return values

    @cached_property
    def _untouched_reading(self): return self._with_recomputed_bn(frozen_copy(self.untouched))

    def _with_recomputed_bn(self, encoder):
        "Recompute batch-norm statistics on about sixteen batches of train clips, then read the test clips"
        step = max(1, self.readings['train_dl'].n_batches//16)

        def batches():
            for i, (x, _) in enumerate(Batches(self.train_dl, self.split)):
                if i % step: continue
                if x.ndim == 6: x = x.flatten(0, 1)  # several clips of a video are separate inputs
                if i == 0 or len(x) > 1: yield x, None  # a last batch of one clip may have no variance
        reestimate_bn(encoder, batches())
        return self._read(encoder, 'test_dl')


def _other_names(task): return f"the train part of others[{task!r}]", f"others[{task!r}]"
