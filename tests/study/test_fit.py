"Parts of a fit: batch sizes and early stopping; schedules and the optimizer are in test_protocol.py."
from fastai.learner import ValueMetric
from helpers import learner

from sdfast.study.fit import KeepBest, fit_batch_size


def test_an_epoch_has_two_batches():
    assert fit_batch_size(100, 32) == 32
    assert fit_batch_size(63, 32) == 16
    assert fit_batch_size(2, 32) == 1


def test_patience_counts_epochs_without_improvement():
    accs = iter([.5, .6, .6, .55, .4, .9])
    stop = KeepBest(load=False, patience=3)
    learn = learner(cbs=stop, metrics=ValueMetric(lambda: next(accs), 'accuracy'))
    learn.fit(9)
    assert len(learn.recorder.values) == 5
    assert (stop.epoch_, stop.best) == (1, .6)
    assert next(accs) == .9
