"""What a fine-tuning forgot, from the encoder before and after it: nothing is trained.

Everything that `Retention` measures, with intervals over clips, by class, by layer, and clip by clip."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..errors import InputError
from ..models.labels import loader_vocab
from ..stats import Difference
from .columns import AUDIT_MEASURES
from .per_clip import answer_divergence, kept_neighbours, right_answers
from .resample import (
    MOST_GRAM,
    Resamples,
    barrier_samples,
    cka_samples,
    drift_samples,
    procrustes_samples,
)
from .retention import Retention
from .scores import RetentionScores

__all__ = ['Change', 'Audit', 'audit']

OLD_HEAD = 'source_acc'
SHARE, CHANGE = (0., 1.), (-1., 1.)  # what a share and a change of one can be


@dataclass(frozen=True)
class Change:
    "A measure of two encoders on the same clips, with intervals"
    before: Difference  # of the untouched encoder
    after: Difference  # of the fine-tuned one
    change: Difference  # after minus before, paired by clip


@dataclass(frozen=True)
class Audit:
    "What changed from one encoder to another on the clips of one task"
    measures: dict[str, Change]  # name in `AUDIT_MEASURES` -> its change
    classes: dict[str, dict[str, Change]]  # class -> measure -> its change, of measures that are means over clips
    layers: dict[str, dict[str, float]]  # layer -> `drift`, `weight_distance` and others
    # a row for each test clip: label, `drift`, and for other measures `NAME.before` and `NAME.after`
    clips: pd.DataFrame
    groups: int  # number of groups of clips

    def flips(self,
        measure:str=OLD_HEAD, # Whose answers: `source_acc`, `source_probe` or another measure of right answers
    )->tuple[pd.DataFrame, pd.DataFrame]: # Rows of `clips`
        "The clips that went from right to wrong, and those that went from wrong to right"
        if f'{measure}.after' not in self.clips:
            raise InputError(f'{measure!r} was not measured: choose one of {", ".join(self.measures)}')
        before, after = (self.clips[f'{measure}.{when}'].astype(float) for when in ('before', 'after'))
        return self.clips[before > after], self.clips[before < after]


def audit(
    before:nn.Module|Retention, # The untouched `Sequential(encoder, head)`, or the `Retention` of it
    after:nn.Module, # The fine-tuned encoder, or a model like `before` with it
    train_dl:Iterable|None=None, # Labelled clips of a task, to fit the probe and the neighbours on
    test_dl:Iterable|None=None, # Its clips to measure on
    *,
    groups:Sequence|None=None, # Group of each clip that is measured on; `None`: each is its own
    resamples:int=2000, # Bootstrap samples
    level:float=.95, # Coverage of the intervals
    seed:int=0, # Of the bootstrap
    **kwargs, # For `Retention`: `clips` without labels, `head`, `layers`, `barrier_at`, `pretext` and others
)->Audit: # Measures, classes, layers and clips
    """Compare two encoders on the clips of a task, with or without labels.

    Differences, distances, divergences and flips of an untouched encoder are exactly 0. Intervals are by bootstrap over
    `groups`. Raises `InputError` as `Retention` does."""
    retention = before if isinstance(before, Retention) else Retention(before, train_dl, test_dl, **kwargs)
    if retention.clips is None: raise InputError('an audit needs test_dl or clips to compare features on')
    is_pair = isinstance(after, nn.Sequential) and len(after) == 2
    encoder: Any = after[0] if is_pair else after  # type: ignore[index]
    scores, found = retention.measure(encoder)
    n = len(retention.readings['clips'])
    groups = list(range(n)) if groups is None else list(groups)
    if len(groups) != n: raise InputError(f'groups name {len(groups)} clips, and {n} are measured on')
    return _Comparison(retention, scores, found, groups, (resamples, level, seed)).audit()


class _Comparison:
    "The readings of both encoders, and the numbers that follow from them"
    def __init__(self, retention:Retention, scores:RetentionScores, found:Any, groups:list, settings:tuple):
        self.retention, self.groups, self.settings = retention, groups, settings
        self.scores = dict(before=retention.reference, after=scores)
        self.found = dict(before=retention.evidence, after=found)
        self.clips = dict(before=retention.readings['clips'], after=found.readings['clips'])
        self.labelled = retention.test_dl is not None and retention.clips is retention.test_dl
        self.resamples = Resamples(groups, *settings)
        self.means = self._means()

    def audit(self):
        classes: dict[str, dict[str, Change]] = {}
        table = self._table()
        if self.labelled:
            for number in self.clips['before'].y.unique():
                mine = self.clips['before'].y == number
                classes[table.label[mine.numpy()].iloc[0]] = self._of_clips(mine)
        return Audit(self._all_measures(), classes, self.scores['after'].layers, table,
                     self.resamples.groups)

    # ---- means over clips

    def _means(self):
        "Measure -> its value for each clip, before and after"
        pair, means = (self.clips['before'], self.clips['after']), {}
        if self.labelled:
            right = [right_answers(self.found[when], self.retention.bn) for when in ('before', 'after')]
            means |= {m:(right[0][m], right[1][m]) for m in right[0] if m in right[1]}
        if pair[0].logits is not None:
            kl = answer_divergence(pair[1].logits, pair[0].logits, self.retention.activation)
            means['kl'] = torch.zeros_like(kl), kl
        kept = kept_neighbours(pair[1].x, pair[0].x)
        return means | dict(neighbours=(torch.ones_like(kept), kept))

    def _equal(self, measure):
        "Whether both encoders give the same outputs, so that their answers are equal on any other clip, too"
        if not torch.equal(self.clips['before'].x, self.clips['after'].x): return False
        if measure != 'source_acc_bn': return True
        return torch.equal(*(self.found[when].recomputed.logits for when in ('before', 'after')))

    def _of_clips(self, mine):
        "Changes of means over some clips"
        resamples = Resamples([g for g, m in zip(self.groups, mine) if m], *self.settings)
        return {m:self._change(m, before[mine], after[mine], resamples) for m, (before, after) in self.means.items()}

    def _change(self, measure, before, after, resamples):
        before, after = before.double(), after.double()
        equal, row = self._equal(measure), AUDIT_MEASURES[measure]
        if row.compares and equal: return _compared(_constant(after[0].item(), resamples.groups), before[0].item())
        if row.compares: return _compared(resamples.mean(after, SHARE if row.share else None), before[0].item())
        change = _constant(0., resamples.groups) if equal else resamples.mean(after - before, CHANGE)
        return Change(resamples.mean(before, SHARE), resamples.mean(after, SHARE), change)

    # ---- all measures

    def _all_measures(self):
        changes = {m:self._change(m, *pair, self.resamples) for m, pair in self.means.items()}
        before, after = (self.scores[when].values for when in ('before', 'after'))
        statistics = self._statistics()
        for m, value in after.items():
            if m in changes or m not in before: continue
            has_spread = m in statistics and value != before[m]
            found = statistics[m](value) if has_spread else _constant(value, self.resamples.groups)
            changes[m] = _compared(found, before[m])
        return {m:changes[m] for m in AUDIT_MEASURES if m in changes}

    def _statistics(self):
        "Measure -> function of its value that gives the interval"
        x, ref, between = self.clips['after'].x, self.clips['before'].x, self.found['after'].between
        def interval(value, samples, *args): return self.resamples.interval(value, samples(*args))
        return dict(
            drift=lambda value: interval(value, drift_samples, x, ref),
            procrustes=lambda value: interval(value, procrustes_samples, x, ref),
            cka_unbiased=lambda value: self._cka_interval(value, x, ref),
            barrier=lambda value: interval(value, barrier_samples, _losses(between), list(between)))

    def _cka_interval(self, value, x, ref):
        "Of many clips that of an evenly spaced part, which is wider"
        rows = torch.linspace(0, len(x) - 1, min(len(x), MOST_GRAM)).round().long()
        resamples = Resamples([self.groups[i] for i in rows.tolist()], *self.settings)
        return resamples.interval(value, cka_samples(x[rows], ref[rows]))

    # ---- clip by clip

    def _table(self):
        x, ref = (self.clips[when].x.double() for when in ('after', 'before'))
        columns: dict[str, Any] = dict(drift=((x - ref).norm(dim=1)/ref.norm(dim=1)).numpy())
        for m, pair in self.means.items():
            if AUDIT_MEASURES[m].compares: columns[m] = pair[1].numpy()
            else: columns |= {f'{m}.{when}':v.numpy() for when, v in zip(('before', 'after'), pair)}
        if self.labelled: columns = self._answers() | columns
        return pd.DataFrame(columns)

    def _answers(self):
        "Label, the old head's answer and its probability of the label"
        y = self.clips['before'].y
        vocab = loader_vocab(self.retention.test_dl)
        def names(numbers): return [str(vocab[i]) if vocab else str(i) for i in numbers.tolist()]
        columns = dict(label=names(y))
        for when, reading in self.clips.items():
            if reading.logits is None: continue
            shares = reading.logits.double().softmax(1)
            columns[f'answer.{when}'] = names(reading.logits.argmax(1))
            columns[f'probability.{when}'] = shares[torch.arange(len(y)), y].numpy()
        return columns


def _compared(after:Difference, before:float)->Change:
    "The change of a measure whose value before is a constant"
    change = Difference(after.mean - before, after.low - before, after.high - before, after.n)
    return Change(Difference(before, before, before, after.n), after, change)


def _constant(value, n):
    "A value that has no spread over clips, such as a distance of weights"
    return Difference(value, value, value, n)


def _losses(between):
    "Loss of each clip at each place between two sets of weights"
    return torch.stack([cross_entropy(r.logits.double(), r.y, reduction='none') for r in between.values()])
