"Weight averaging after a fit and between two states."
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from helpers import data, learner, model, same, state
from strategy_helpers import Stop, assert_close_states

from sdfast.errors import InputError
from sdfast.models.statistics import reestimate_bn
from sdfast.models.weights import wise_ft
from sdfast.strategies import LinearProbe, LiNeS, WiSEFT, wise_ft_sweep


@pytest.mark.parametrize('alpha', [0., .4, 1.])
def test_wise_ft_callback(alpha):
    plain, learn = learner(), learner(WiSEFT(alpha))
    start = state(plain.model[0])
    plain.fit(2), learn.fit(2)
    end = state(plain.model[0])
    assert plain.recorder.values == learn.recorder.values and same(state(plain.model[1]), state(learn.model[1]))
    want = model()
    want.load_state_dict(plain.model.state_dict())
    want[0].load_state_dict(wise_ft(want[0], start, alpha))
    if alpha == .4: reestimate_bn(want, data().train)
    assert same(state(want), state(learn.model))
    if alpha == 1: assert same(state(learn.model[0]), end)
    if alpha == 0: assert same(state(learn.model[0]), start)
    again = wise_ft_sweep(plain, start, [alpha], data().train, lambda learn: state(learn.model))
    assert all(same(v, state(learn.model)) for _, v in again) and same(state(plain.model[0]), end)


def after_a_fit(cb, epochs=2):
    "Encoder before, after a plain fit and after one with `cb`, and the whole model of the latter"
    plain, learn = learner(), learner(cb)
    start = state(plain.model[0])
    plain.fit(epochs), learn.fit(epochs)
    assert plain.recorder.values == learn.recorder.values and same(state(plain.model[1]), state(learn.model[1]))
    return start, state(plain.model[0]), learn.model


def by_hand(start, end, conv, out, whole):
    "The model whose layers have these shares of what they learned, with recomputed statistics"
    net = model()
    net.load_state_dict(whole.state_dict())
    scale = dict(conv=conv, bn=conv, out=out)
    net[0].load_state_dict({k:start[k] + scale[k.split('.')[0]]*(v - start[k]) if v.is_floating_point() else v
                            for k, v in end.items()})
    return state(reestimate_bn(net, data().train))


@pytest.mark.parametrize('alpha', [0., .3, .9])
def test_lines_scales_layers_and_recomputes_statistics(alpha):
    start, end, net = after_a_fit(LiNeS(alpha))
    assert_close_states(state(net), by_hand(start, end, alpha, 1., net))
    assert torch.equal(net[0].out.weight, end['out.weight'])  # the last layer keeps all
    if alpha == 0: assert torch.equal(net[0].conv.weight, start['conv.weight'])
    else: assert not torch.equal(net[0].conv.weight, start['conv.weight'])


def test_lines_with_beta():
    start, end, net = after_a_fit(LiNeS(.2, .5))
    assert_close_states(state(net), by_hand(start, end, .2, .7, net))
    with pytest.raises(InputError, match='beta must be'): LiNeS(.2, -1.)


@pytest.mark.parametrize('alpha', [.3, .9])
def test_wise_ft_depth(alpha):
    start, end, net = after_a_fit(WiSEFT(alpha, by_depth=True))
    assert_close_states(state(net), by_hand(start, end, alpha**2, alpha, net))


def test_lines_of_a_frozen_encoder_and_in_two_fits():
    learn = learner([LinearProbe(), LiNeS()])
    before = state(learn.model[0])
    learn.fit(1)
    assert same(before, state(learn.model[0]))
    learn = learner(LiNeS(0., 0.))
    start = state(learn.model[0])
    for _ in range(2): learn.fit(1)
    assert same(start, state(learn.model[0]))  # of the first fit


def test_lines_of_one_layer_warns():
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 6)), torch.nn.Linear(6, 3))
    with pytest.warns(UserWarning, match='LiNeS finds one layer in Sequential'): learner(LiNeS(), net=net).fit(1)


def test_wise_ft_takes_its_start_once(tmp_path):
    cb = WiSEFT(0.)
    learn = learner(cb, path=tmp_path)
    start = state(learn.model[0])
    for fit in (lambda: learn.validate(), lambda: learn.lr_find(num_it=8, show_plot=False), lambda: learn.fit(1),
                lambda: learn.fit(3, start_epoch=1)):
        fit()
        assert same(state(learn.model[0]), start)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(KeyboardInterrupt()))
    assert not same(state(learn.model[0]), start)
    class StopLate(Callback):
        def before_validate(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=StopLate())
    learn.fit(1, start_epoch=1)  # trains nothing
    assert not same(state(learn.model[0]), start)
    learn.fit(2, cbs=Stop(CancelFitException(), epoch=1))
    assert not same(state(learn.model[0]), start)  # interrupted
    learn.fit(5, cbs=EarlyStoppingCallback(min_delta=100., patience=1))
    assert same(state(learn.model[0]), start) and len(learn.recorder.values) == 2
    class Check(Callback):
        order = 200
        def after_epoch(self):
            if not self.learn.lock.locked():
                before = state(self.learn.model)
                self.learn.validate()
                assert same(before, state(self.learn.model)) and not same(start, state(self.learn.model[0]))
    learn.fit(2, cbs=Check())
    assert same(state(learn.model[0]), start)


def test_wise_ft_too_late_says_so():
    with pytest.raises(ValueError, match='Pass anchor='): learner(WiSEFT()).fit(3, start_epoch=1)
    start = model(3)[0]
    learn = learner(WiSEFT(0., anchor=start))
    learn.fit(3, start_epoch=1)
    assert same(state(learn.model[0]), state(start))


def test_wise_ft_of_an_encoder_that_did_not_move_is_that_encoder():
    learn = learner([LinearProbe(), WiSEFT()])
    before = state(learn.model[0])
    learn.fit(1)
    assert same(before, state(learn.model[0]))


def test_wise_ft_comes_after_the_best_epoch_is_loaded(tmp_path):
    learn = learner([SaveModelCallback(fname='best'), WiSEFT(0.)], path=tmp_path)
    start = state(learn.model[0])
    learn.fit(2)
    assert same(start, state(learn.model[0]))


def test_sweep_restores_whatever_happens():
    net = model()
    end, start = state(net), model(1)[0]
    seen = wise_ft_sweep(net, start, [0, .5, 1], data().train, lambda net: net[0].conv.weight.detach().clone())
    a, w = next(seen)
    assert a == 0 and torch.equal(w, start.conv.weight) and same(state(net), end)
    a, w = next(seen)
    torch.testing.assert_close(w, .5*(start.conv.weight + net[0].conv.weight))
    assert same(state(net), end)
    def broken(net): raise OSError
    with pytest.raises(OSError): next(wise_ft_sweep(net, start, [.5], data().train, broken))
    assert same(state(net), end)


@pytest.mark.parametrize('alpha', [1.1, float('nan')])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match='between 0'): WiSEFT(alpha)


def test_a_sweep_without_an_anchor_is_refused():
    with pytest.raises(ValueError, match='pass a state dict'): next(wise_ft_sweep(model(), None, [1], [], len))
