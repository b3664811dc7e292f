"Strategies in a training loop of one's own: the same numbers as in fastai, and what the loop may do."
import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from helpers import data, learner, make, model, state
from strategy_helpers import needs_peft
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import (
    BYOT,
    L2SP,
    PSKD,
    R3F,
    STRATEGIES,
    EMATeacher,
    FixedTeacher,
    LowerLR,
    Penalty,
    SelfDistill,
    Telemetry,
    WiSEFT,
)

NAMES = [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES if n != 'finetune']


def plain_loop(net, strategies, dls=None, epochs=2, lr=.1):
    "Ten steps and more of plain PyTorch, validation included"
    dls = dls or data()
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    torch.manual_seed(1)
    for s in strategies: s.attach(net, opt, epochs=epochs, batches=dls.train)
    for _ in range(epochs):
        net.train()
        for s in strategies: s.start_epoch()
        for x, y in dls.train:
            loss = F.cross_entropy(net(x), y)
            for s in strategies:
                if hasattr(s, 'loss'): loss = loss + s.loss(y)
            loss.backward()
            opt.step()
            for s in strategies: s.after_step()
            opt.zero_grad()
        net.eval()
        for x, _ in dls.valid: net(x)  # with gradients: an evaluation is no part of a batch
    for s in strategies: s.detach()
    return net


@pytest.mark.parametrize('name', NAMES)
def test_a_plain_loop_equals_fastai(name):
    lam = {'lower_lr': 1., 'lp_ft': 1., 'layer_decay': 1., 'stoch_norm': .5, 'wise_ft': .3}.get(name, .3)
    net = model()
    learn = learner(make(name, lam, net), net=net)
    torch.manual_seed(1)
    learn.fit(2)
    other = model()
    plain_loop(other, make(name, lam, other))
    for k, v in state(net).items(): torch.testing.assert_close(other.state_dict()[k], v, rtol=1e-6, atol=1e-6)
    moved = max((a - b).abs().max() for a, b in zip(net.parameters(), model().parameters()))
    assert moved > 1e-3


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(4, 1, 6, 6, generator=g)


def moved(net):
    "The net after a change of its weights"
    with torch.no_grad():
        for p in net.parameters(): p.add_(.1)
    return net


def test_the_term_of_a_loop_is_the_distance_to_the_teacher():
    net = model().eval()
    teacher = copy.deepcopy(net[0])
    with SelfDistill(3.).attach(net) as penalty:
        penalty.start_epoch()
        moved(net)
        x = batch()
        net(x)
        want = 3*(net[0](x) - teacher(x)).square().mean()
        torch.testing.assert_close(penalty.loss(), want)
        assert penalty.columns()['self_distill']() == pytest.approx(want.item()/3)
    assert not net._forward_hooks and not net[0]._forward_hooks and not net._forward_pre_hooks


def test_several_calls_of_an_encoder_are_averaged_and_evaluations_left_out():
    net = model()
    penalty = FixedTeacher(1.).attach(net.train())
    penalty.start_epoch()
    moved(net)
    with torch.no_grad(): net(batch(9))
    net(batch(0))
    one = penalty.loss()
    net(batch(1))
    two = penalty.loss()
    net(batch(0))
    net(batch(1))
    torch.testing.assert_close(penalty.loss(), (one + two)/2)
    net.eval()
    net(batch(9))  # with gradients
    net.train()
    net(batch(0))
    torch.testing.assert_close(penalty.loss(), one)


def test_what_a_loop_forgets_is_said_in_one_line():
    net, x = model(), batch()
    with pytest.raises(InputError, match='attach'): SelfDistill(1.).loss()
    with pytest.raises(InputError, match='attach'): SelfDistill(1.).start_epoch()
    penalty = SelfDistill(1.).attach(net)
    with pytest.raises(InputError, match='start_epoch'): penalty.loss()
    with pytest.raises(InputError, match='in use'): penalty.attach(model())
    penalty.start_epoch()
    with pytest.raises(InputError, match='not called'): penalty.loss()
    net(x)
    penalty.loss()
    with pytest.raises(InputError, match='not called'): penalty.loss()
    with pytest.raises(InputError, match='a model, not'): SelfDistill(1.).attach('model')
    with pytest.raises(InputError, match='optimizer'): L2SP(1., decoupled=True).attach(model())
    pskd = PSKD(.5).attach(net, epochs=2)
    pskd.start_epoch()
    with pytest.raises(InputError, match='found 0'): pskd.loss(torch.zeros(4).long())
    net(x), net(x)
    with pytest.raises(InputError, match='found 2'): pskd.loss(torch.zeros(4).long())


def test_a_forgotten_step_is_a_warning():
    net = model()
    penalty = EMATeacher(1.).attach(net)
    penalty.start_epoch()
    net(batch())
    penalty.loss()
    with pytest.warns(UserWarning, match='after_step was not called in epoch 0'): penalty.start_epoch()


def test_a_failed_attach_leaves_nothing():
    net = model()
    with pytest.raises(InputError, match='optimizer'): L2SP(1., decoupled=True).attach(net)
    assert not net._forward_hooks and not net._forward_pre_hooks


def test_weights_from_before_training_are_taken_when_attached():
    net = model()
    penalty = FixedTeacher(1.).attach(net)
    before = state(net[0])
    moved(net)  # say, the checkpoint of an interrupted training
    penalty.start_epoch()
    assert all(torch.equal(v, before[k]) for k, v in penalty.teacher.state_dict().items())


def test_another_model_is_another_anchor():
    one, two = model(0), model(1)
    penalty = FixedTeacher(1.).attach(one)
    penalty.detach()
    penalty.attach(two)
    assert all(torch.equal(v, two[0].state_dict()[k]) for k, v in penalty.teacher.state_dict().items())
    learn = learner(penalty2 := FixedTeacher(1.), net=one)
    learn.fit(1)
    third = model(2)
    first = state(third[0])
    learner(penalty2, net=third).fit(1)
    assert all(torch.equal(v, first[k]) for k, v in penalty2.teacher.state_dict().items())


def test_state_of_a_loop_is_restored():
    def run(epochs, saved=None, net=None):
        net = net or model()
        opt = torch.optim.SGD(net.parameters(), lr=.1)
        penalty = EMATeacher(1.).attach(net, opt)
        if saved: penalty.load_state_dict(saved)
        for e in epochs:
            penalty.start_epoch(e)
            for i in range(3):
                loss = net(batch(3*e + i)).square().mean() + penalty.loss()
                opt.zero_grad()
                loss.backward()
                opt.step()
                penalty.after_step()
        return net, penalty
    whole, _ = run([0, 1])
    net, penalty = run([0])
    saved = copy.deepcopy(penalty.state_dict())
    penalty.detach()
    net, _ = run([1], saved, net)
    for a, b in zip(net.parameters(), whole.parameters()): assert torch.equal(a, b)


def test_a_model_with_hooks_can_be_copied():
    net = model()
    penalty = PSKD(.5).attach(net, epochs=2)
    other = copy.deepcopy(net)
    penalty.start_epoch()
    other(batch())
    with pytest.raises(InputError, match='found 0'): penalty.loss(torch.zeros(4).long())


class Keywords(nn.Module):
    "A model that is called with keywords"
    def __init__(self):
        super().__init__()
        self.encoder, self.top = model()

    def forward(self, *, pixel_values): return self.top(self.encoder(pixel_values))


def test_models_may_be_called_with_keywords():
    net = Keywords()
    penalty = PSKD(.5).attach(net, epochs=2)
    penalty.start_epoch(1)
    net(pixel_values=batch())
    assert penalty.loss(torch.tensor([0, 1, 2, 0])).requires_grad


def interrupted(strategy):
    "The net after an interrupt in the middle of an epoch that had moved its weights by .1"
    net = model()
    with pytest.raises(KeyboardInterrupt), strategy.attach(net) as s:
        s.start_epoch()
        moved(net)
        raise KeyboardInterrupt
    return net


def test_an_interrupted_epoch_is_not_a_finished_one():
    "WiSEFT interpolates after whole epochs only"
    for a, b in zip(interrupted(WiSEFT(.5)).parameters(), moved(model()).parameters()): assert torch.equal(a, b)


def no_encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


class SmallOutputs(Penalty):
    def term(self): return self.loop.outputs.square().mean()


@pytest.mark.parametrize('make', [lambda: PSKD(.5), lambda: R3F(1.), lambda: LowerLR(1.), lambda: SmallOutputs(.1)])
def test_strategies_on_outputs_need_no_encoder(make):
    net = no_encoder()
    learner(make(), net=net).fit(2)
    other = plain_loop(no_encoder(), [make()])
    for a, b in zip(net.parameters(), other.parameters()): torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match='no submodule'):
        make().attach(no_encoder(), sgd(net), encoder='nose', epochs=2)


def sgd(net): return torch.optim.SGD(net.parameters(), lr=.1)


@pytest.mark.parametrize('make', [lambda: PSKD(.5), lambda: BYOT(1., ['conv'])])
def test_missing_targets_are_asked_for(make):
    net = model()
    penalty = make().attach(net, sgd(net), epochs=2)
    penalty.start_epoch(1)
    net(batch())
    with pytest.raises(InputError, match=r'call loss\(targets\)'): penalty.loss()


def test_telemetry_needs_a_learner():
    net = model()
    with pytest.raises(InputError, match='of a Learner'): Telemetry().attach(net)
    assert not net._forward_hooks


def test_strategies_know_each_other_while_they_are_attached():
    net = model()
    one, two = SelfDistill(1.).attach(net), EMATeacher(1.).attach(net)
    assert one.loop.strategies == two.loop.strategies == [one, two]
    one.detach()
    assert two.loop.strategies == [two]


def test_an_attached_model_is_freed():
    net = model()
    there = weakref.ref(net)
    SelfDistill(1.).attach(net)
    del net
    gc.collect()
    assert there() is None


def test_the_second_pass_of_one_strategy_is_no_batch_of_another():
    net = model()
    r3f, pskd, alone = R3F(1.).attach(net), PSKD(.5).attach(net, epochs=2), SelfDistill(1.).attach(net)
    for s in (r3f, pskd, alone): s.start_epoch(1)
    moved(net)
    for i in range(2):
        y = torch.tensor([0, 1, 2, 0])
        net(batch(i))
        first = alone.loss()
        assert r3f.loss(y) > 0  # passes the batch again, with noise
        assert pskd.loss(y).isfinite()
        torch.testing.assert_close(first, alone.lam*(net[0](batch(i)) - alone.teacher(batch(i))).square().mean())
        for s in (r3f, pskd, alone): s.loop.start_batch()  # what this test has passed is no batch either
