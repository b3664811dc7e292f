"Columns, hooks and graphs disappear when a fit fails."
import pytest
from fastai.callback.core import Callback
from fastai.metrics import accuracy
from helpers import learner, make, model
from strategy_helpers import PENALTIES

from sdfast.strategies import Telemetry


class Boom(Callback):
    order, run_valid = 20, False
    def after_pred(self):
        if self.iter == 2: raise RuntimeError('boom')


@pytest.mark.parametrize('name', PENALTIES)
def test_an_exception_leaves_no_hook_no_column_and_no_graph(name):
    learn = learner([*make(name, .5, model()), Telemetry(), Boom()], metrics=accuracy)
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1)
    assert not any(m._forward_hooks for m in learn.model.modules())
    assert len(learn.metrics) == 1
    assert '_do_epoch' not in learn.__dict__
    assert all(getattr(cb, 'pull', None) is None for cb in learn.cbs)
    learn.remove_cb(next(cb for cb in learn.cbs if isinstance(cb, Boom)))
    learn.fit(1)
    assert len(learn.recorder.values[0]) == len(learn.recorder.metric_names) - 2 and len(learn.metrics) == 1


@pytest.mark.parametrize('name', PENALTIES + ['stoch_norm'])
def test_a_fit_that_fails_before_its_first_epoch_leaves_nothing_either(name):
    class Late(Callback):
        order = 90
        def before_fit(self): raise RuntimeError('boom')
    for attached in (True, False):
        cbs = [*make(name, .5, model()), Telemetry()]
        learn = learner(cbs if attached else (), metrics=accuracy)
        with pytest.raises(RuntimeError, match='boom'): learn.fit(1, cbs=[Late()] if attached else [*cbs, Late()])
        assert len(learn.validate()) == 2 and len(learn.metrics) == 1 and '_do_epoch' not in learn.__dict__
        learn.fit(1)
        assert len(learn.metrics) == 1 and len(learn.recorder.values[0]) == len(learn.recorder.metric_names) - 2
