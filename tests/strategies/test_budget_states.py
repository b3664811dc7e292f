"The state of a budget: interrupted fits, second fits, other models, exports."
import pickle

import pytest
from fastai.callback.core import Callback
from helpers import learner, model, same, state
from strategy_helpers import moved

from sdfast.runtime.resume import Resume
from sdfast.strategies import L2SP, Budget, FixedTeacher, KeptByDrift, LowerLR, SelfDistill, StochNorm

pytestmark = pytest.mark.filterwarnings('ignore:.*cannot hold its floor')
CURVE = [(0., 1.), (1., .5)]


class Stop(Exception): pass


def fits(folder, cls, stop_at=None, epochs=4, clips=None):
    net = model(dropout=.3)
    kept = KeptByDrift(CURVE, clips) if clips else moved(net)
    budget = Budget(.95, kept, every=2)
    cb = cls(1., retain=budget) if cls is SelfDistill else cls(retain=budget)
    learn = learner([cb, Resume(folder)], net=net, lr=.02)
    if stop_at is not None:
        class Die(Callback):
            order = 20
            def after_step(self):
                if (self.epoch, self.iter) == (stop_at, 3): raise Stop('stopped')
        learn.add_cb(Die())
        with pytest.raises(Stop): learn.fit(epochs)
    else: learn.fit(epochs)
    return learn, cb


@pytest.mark.parametrize('cls,clips', [(SelfDistill, None), (L2SP, 16), (LowerLR, None), (StochNorm, None)])
def test_an_interrupted_fit_ends_bit_for_bit_as_a_whole_one(cls, clips, tmp_path):
    whole, cb = fits(tmp_path/'a', cls, clips=clips)
    fits(tmp_path/'b', cls, stop_at=2, clips=clips)
    learn, resumed = fits(tmp_path/'b', cls, clips=clips)
    assert same(state(whole.model), state(learn.model))
    assert resumed.kept_history == cb.kept_history
    assert resumed.strength() == cb.strength()


def test_a_second_fit_starts_anew_and_another_model_is_another_reference():
    net = model()
    cb = FixedTeacher(retain=Budget(.95, KeptByDrift(CURVE, 16), every=1))
    learn = learner(cb, net=net)
    learn.fit(2)
    first = cb.kept_history
    learn.fit(1)
    assert len(cb.kept_history) < len(first)
    assert cb.kept_history[0]['step'] == 1
    other = learner(net=model(3))
    other.fit(1, cbs=cb)
    assert cb.kept_history[0]['kept'] > .8  # measured from the other model's start


def test_an_exported_strategy_has_no_budget():
    learn = learner(SelfDistill(retain=Budget(.95, moved(model()), every=1)), lr=.01)
    learn.fit(1)
    cb = learn.self_distill
    learn.remove_cb(cb)
    again = pickle.loads(pickle.dumps(cb))
    assert again.budget is None
    assert again.retain is None


def test_one_measure_of_drift_serves_several_fits():
    def fit(seed, kept):
        cb = FixedTeacher(retain=Budget(.95, kept, every=1))
        learner(cb, net=model(seed), lr=.01).fit(1)
        return cb.kept_history
    kept = KeptByDrift(CURVE, 16)
    for seed in (0, 3): assert fit(seed, kept) == fit(seed, KeptByDrift(CURVE, 16))
