"Retention measured epoch by epoch: training is not disturbed, and the numbers are those of `Retention`."
import copy
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from helpers import data, learner, model, same, state

from sdfast.errors import InputError
from sdfast.metrics.curve import RetentionCurve
from sdfast.metrics.retention import Retention
from sdfast.strategies import L2SP, SelfDistill, WiSEFT


def curve(net=None, **kwargs):
    net, batches = net or model(), list(data(seed=5).valid)
    return RetentionCurve(Retention(net, batches, batches), **kwargs)


@pytest.mark.parametrize('cbs', [[], [lambda: SelfDistill(3.), lambda: L2SP(.1)], [lambda: WiSEFT(.5)]],
                         ids=['plain', 'penalties', 'wise'])
def test_training_is_the_same_with_it(cbs):
    "Weights, statistics and random states bit for bit, with dropout"
    def fit(measured):
        net = model(dropout=.3)
        learn = learner(cbs=[make() for make in cbs] + ([curve(net)] if measured else []), net=net)
        learn.fit(3)
        return learn, state(learn.model), torch.get_rng_state(), random.getstate()
    plain, weights, torch_state, python_state = fit(False)
    learn, with_curve, *states = fit(True)
    assert same(weights, with_curve)
    assert torch.equal(torch_state, states[0])
    assert python_state == states[1]
    assert not [n for n in plain.recorder.metric_names if n.startswith('kept')]

    history, names = learn.retention_curve.history, list(learn.recorder.metric_names)
    assert [d['epoch'] for d in history] == [0, 1, 2]
    assert history[2]['drift'] > 0
    assert history[0].keys() >= {'source_acc', 'procrustes', 'layers.conv.cka_unbiased', 'layers.out.weight_distance'}
    shown = [row[names.index('kept_cka_unbiased') - 1] for row in learn.recorder.values]
    assert shown == [d['cka_unbiased'] for d in history]


def test_it_is_retention_on_its_sample():
    net = model()
    cb = curve(net, clips=16)  # all clips
    learn = learner(cbs=cb, net=net)
    learn.fit(2)
    last, whole = cb.history[-1], cb.retention(learn.model[0]).flat()
    assert (last.pop('epoch'), last.pop('clips')) == (1, 16)
    assert last == pytest.approx({k:whole[k] for k in last}, rel=1e-4)


def test_every_second_epoch_and_the_last():
    net = model()
    cb = curve(net, every=2)
    learn = learner(cbs=cb, net=net)
    assert cb.n is None
    learn.fit(4)
    assert [d['epoch'] for d in cb.history] == [1, 3]
    assert np.isnan(learn.recorder.values[0][-1])
    assert cb.affordable() == 16 == len(cb._sample[0])  # what CKA needs; a tenth of an epoch would be 8
    learn.fit(1)
    assert [d['epoch'] for d in cb.history] == [0]


def test_validate_and_predictions_measure_nothing():
    net = model()
    cb = curve(net)
    learn = learner(cbs=cb, net=net)
    learn.fit(1)
    history = cb.history
    learn.validate()
    learn.get_preds()
    assert cb.history is history
    assert not learn.metrics


def test_columns_without_labels(source, tuned, pretext):
    net, train, test = source
    learn = learner(cbs=RetentionCurve(Retention(net, clips=[x for x, _ in test]), clips=16), net=copy.deepcopy(net))
    learn.fit(1)
    assert learn.recorder.metric_names[-5:-1] == ['valid_loss', 'kept_cka_unbiased', 'kept_drift', 'kept_weights']


def test_labels_of_other_clips_are_not_read(source):
    net, train, test = source
    cb = RetentionCurve(Retention(net, train, test, clips=train), clips=16)
    learner(cbs=cb, net=copy.deepcopy(net)).fit(1)
    assert 'source_acc' not in cb.history[0]
    assert 'cka_unbiased' in cb.history[0]


def test_in_a_fit_with_adapters(source):
    pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[lora]'")
    from sdfast.strategies import LoRA
    net, train, test = source
    retention, found = Retention(net, train, test), []
    class Measure(Callback):
        def after_train(self): found.append(retention(self.learn.model[0]).flat())
    curve = RetentionCurve(retention, clips=16)
    learn = learner(cbs=[LoRA(r=2), Measure(), curve], net=copy.deepcopy(net))
    learn.fit(1)
    assert 'source_probe' in found[0]
    assert 'barrier' not in found[0]
    assert np.isnan(found[0]['weight_distance'])
    assert 'cka_unbiased' in curve.history[0]
    assert retention(learn.model[0]).barrier is not None  # adapters are merged


def test_a_tenth_of_an_epoch():
    cb = curve(model())
    learner(cbs=cb, dls=data(n=400), net=model()).fit(1)
    assert cb.affordable() == int(.05*(3*400 + 16))


def test_a_sample_too_small_for_cka_has_no_column():
    net = model()
    cb = curve(net, clips=9)
    learn = learner(cbs=cb, net=net)
    learn.fit(1)
    assert 'kept_cka_unbiased' not in learn.recorder.metric_names
    assert 'cka_unbiased' not in cb.history[0]
    assert cb.history[0]['clips'] == 9


def test_what_it_refuses(source, pretext):
    net, train, test = source
    with pytest.raises(InputError, match='with test_dl or clips'): RetentionCurve(Retention(net, pretext=pretext))
    with pytest.raises(InputError, match='at least'): RetentionCurve(Retention(net, train, test), every=0)
