"What holds for every penalty: BSS, Co-Tuning, R3F and stochastic normalisation, which need settings of their own."
import copy
import random

import pytest
import torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from helpers import data, learner, model, same, state
from strategy_helpers import FEATURE_PENALTIES, CPUAutocast, Stop, Wrapped, assert_close_nets, relate, seeded_head
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import SelfDistill, StochNorm

FEATURE_STRATEGIES = FEATURE_PENALTIES | dict(stoch_norm=lambda lam: StochNorm(p=.5 if lam else 0.))


@pytest.mark.parametrize('name', FEATURE_PENALTIES)
def test_reported_losses_are_the_task_loss_and_buffers_stay(name):
    plain, penal = learner(lr=0.), learner(FEATURE_PENALTIES[name](1e4), lr=0.)
    for learn in (plain, penal): learn.fit(2)
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in penal.recorder.values]
    assert same(state(plain.model), state(penal.model))
    assert penal.recorder.metric_names[-2] == name and penal.recorder.values[-1][-1] > 0


@pytest.mark.parametrize('name', FEATURE_PENALTIES)
def test_the_term_does_what_it_is_for(name):
    def last(lam):
        learn = learner(FEATURE_PENALTIES[name](lam))
        learn.fit(3)
        return learn.recorder.values[-1][-1]
    assert last(dict(bss=.02, co_tuning=3., r3f=10.)[name]) < last(0.)


@pytest.mark.parametrize('name', ['co_tuning', 'r3f'])
def test_accumulation_equals_one_big_batch(name):
    net = model()
    net[0].bn = nn.GroupNorm(2, 4)  # batch norm itself depends on the micro-batch
    def run(bs, cbs):
        learn = learner([FEATURE_PENALTIES[name](3.), *cbs], dls=data(bs=bs), net=copy.deepcopy(net))
        learn.fit(2)
        return learn.model
    assert_close_nets(run(24, []), run(8, [GradientAccumulation(24)]), rtol=1e-4)


@pytest.mark.parametrize('name', FEATURE_STRATEGIES)
def test_bf16_autocast_keeps_the_meaning(name):
    def run(cbs):
        learn = learner([FEATURE_STRATEGIES[name](.1), *cbs])
        torch.manual_seed(4)
        learn.fit(2)
        return learn.recorder.values[-1][-1 if name in FEATURE_PENALTIES else 0]
    assert run([CPUAutocast('bf16')]) == pytest.approx(run([]), rel=.15)


@pytest.mark.parametrize('name', FEATURE_STRATEGIES)
def test_validate_get_preds_and_lr_find_change_nothing(name, tmp_path):
    def run(disturb):
        learn = learner(FEATURE_STRATEGIES[name](.3), path=tmp_path)
        values = []
        if disturb:
            learn.lr_find(num_it=8, show_plot=False)
            assert len(learn.validate()) == 1 and not learn.metrics
            learn.get_preds()
        learn.create_opt()
        for n in (2, 1):
            torch.manual_seed(1), random.seed(1)
            learn.fit(n)
            values.append([v[:] for v in learn.recorder.values])
            assert len(values[-1][0]) == 2 + (name in FEATURE_PENALTIES)
            if disturb:
                assert len(learn.validate()) == 1 and learn.get_preds()[0].shape == (16, 3) and not learn.metrics
        assert not learn.model[0]._forward_hooks and type(learn.model[0].bn) is nn.BatchNorm2d
        return state(learn.model), values
    a, b = run(False), run(True)
    assert same(a[0], b[0]) and a[1] == b[1]


@pytest.mark.parametrize('name', FEATURE_STRATEGIES)
@pytest.mark.parametrize('error', [KeyboardInterrupt(), CancelFitException(), RuntimeError('x')])
def test_interrupts_leave_nothing_behind(name, error, tmp_path):
    learn = learner(FEATURE_STRATEGIES[name](.3), path=tmp_path)
    try: learn.fit(1, cbs=Stop(error))
    except (KeyboardInterrupt, RuntimeError): pass
    learn.export('x.pkl')  # nothing unpicklable is left either
    assert type(load_learner(tmp_path/'x.pkl').model[0].bn) is nn.BatchNorm2d
    learn.fit(1)
    assert not learn.model[0]._forward_hooks and len(learn.metrics) == 0
    assert learn.recorder.metric_names.count(name) == (name in FEATURE_PENALTIES)


@pytest.mark.parametrize('name', FEATURE_STRATEGIES)
def test_export_is_no_larger(name, tmp_path):
    plain, learn = learner(path=tmp_path), learner(FEATURE_STRATEGIES[name](.3), path=tmp_path)
    plain.fit(1), learn.fit(1)
    plain.export('plain.pkl'), learn.export('x.pkl')
    assert (tmp_path/'x.pkl').stat().st_size < (tmp_path/'plain.pkl').stat().st_size + 1500
    loaded = load_learner(tmp_path/'x.pkl')
    loaded.dls, loaded.logger = data(), lambda *a: None
    assert same(state(loaded.model), state(learn.model))
    if name == 'co_tuning':
        with pytest.raises(InputError, match='does not carry'): loaded.fit(1)
    else: loaded.fit(1)


@pytest.mark.parametrize('name', FEATURE_STRATEGIES)
def test_a_model_that_is_no_sequential(name):
    torch.manual_seed(0)
    cb = FEATURE_STRATEGIES[name](.3)
    learner(cb, net=Wrapped(), lr=0.).fit(1)
    if name == 'co_tuning':
        twice = [(2*x, y) for x, y in data().train]
        torch.manual_seed(0)
        torch.testing.assert_close(cb.relation, relate(nn.Sequential(Wrapped().encoder), seeded_head(), twice))


def test_all_together_with_a_teacher():
    def run(cbs):
        learn = learner(cbs)
        torch.manual_seed(2)
        learn.fit(2)
        return learn.model
    make = [lambda: SelfDistill(1.), *(lambda f=f: f(.1) for f in FEATURE_STRATEGIES.values())]
    assert_close_nets(run([f() for f in make]), run([f() for f in reversed(make)]), rtol=1e-4, atol=1e-5)
