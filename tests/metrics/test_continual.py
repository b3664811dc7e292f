"Measures of accuracy matrices, by hand and against avalanche-lib."
from types import SimpleNamespace as NS

import numpy as np
import pytest

from sdfast.errors import InputError
from sdfast.metrics.continual import (
    average_accuracy,
    backward_transfer,
    forward_transfer,
    learning_accuracy,
    task_forgetting,
)

NAN = np.nan


def test_measures_by_hand():
    R = [[.9, .1, .2], [.7, .8, .3], [.8, .6, .9]]
    assert average_accuracy(R) == pytest.approx((.8 + .6 + .9)/3)
    assert learning_accuracy(R) == pytest.approx((.9 + .8 + .9)/3)
    assert task_forgetting(R) == pytest.approx([.1, .2])
    assert backward_transfer(R) == pytest.approx(-.15)
    assert forward_transfer(R, [.5, .05, .1]) == pytest.approx(((.1 - .05) + (.3 - .1))/2)  # without the source


def test_old_heads_have_no_accuracy_before_their_task():
    "A task that gained and lost again: forgetting from when it was learned and from its best differ"
    R = [[.5, NAN, NAN], [.9, .6, NAN], [.6, .7, .8]]
    assert task_forgetting(R) == pytest.approx([-.1, -.1])
    assert task_forgetting(R, best=True) == pytest.approx([.3, -.1])
    assert backward_transfer(R) == pytest.approx(.1)
    assert average_accuracy(R) == pytest.approx(.7)
    assert np.isnan(forward_transfer(R, [0, 0, 0]))


def test_missing_accuracies_are_not_skipped(): assert np.isnan(average_accuracy([[.5, NAN], [NAN, .5]]))


@pytest.mark.parametrize('call', [
    lambda: average_accuracy(np.ones((2, 3))),
    lambda: task_forgetting([[1.]]),
    lambda: backward_transfer([1., 2.]),
    lambda: forward_transfer(np.ones((2, 2)), [1.]),
])
def test_measures_say_what_they_need(call):
    with pytest.raises(InputError, match='accuracy'): call()


def fed(cls, R, initial=None):
    "The result of avalanche-lib's metric of a stream that evaluated all experiences after each was trained on"
    class Fed(cls):
        def metric_result(self, strategy): return strategy.value
    m = Fed()
    def evaluate(values):
        m.before_eval(None)
        for j, v in enumerate(values):
            m.eval_exp_id = j
            m.after_eval_exp(NS(value=v))
    if initial is not None: evaluate(initial)
    m.at_init = False
    for i, row in enumerate(R):
        m.before_training_exp(NS(experience=NS(current_experience=i)))
        evaluate(row)
    return m.result()


@pytest.mark.parametrize('n', [2, 3, 6])
def test_measures_equal_avalanches(n):
    pytest.importorskip('avalanche', reason="the peer of the metrics: pip install -e '.[peers]'")
    from avalanche.evaluation.metrics import BWT, Forgetting, ForwardTransfer, StreamBWT, StreamForgetting
    from avalanche.evaluation.metrics.forward_transfer import StreamForwardTransfer
    rng = np.random.default_rng(n)
    for _ in range(20):
        R, initial = rng.random((n, n)), rng.random(n)
        forgetting, bwt, fwt = Forgetting(), BWT(), ForwardTransfer()
        for j in range(n):
            fwt.update(j, initial[j], initial=True)
            if j: fwt.update(j, R[j - 1, j])
            for i in range(j, n):
                for m in (forgetting, bwt): m.update(j, R[i, j], initial=i == j)
        assert list(forgetting.result().values()) == pytest.approx(task_forgetting(R))
        assert list(bwt.result().values()) == pytest.approx(-task_forgetting(R))
        assert np.mean(list(bwt.result().values())) == pytest.approx(backward_transfer(R))
        assert np.mean(list(fwt.result().values())) == pytest.approx(forward_transfer(R, initial))
        assert fed(StreamForgetting, R) == pytest.approx(task_forgetting(R).mean())
        assert fed(StreamBWT, R) == pytest.approx(backward_transfer(R))
        assert fed(StreamForwardTransfer, R, initial) == pytest.approx(forward_transfer(R, initial))
