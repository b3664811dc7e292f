"What has no effect says so; layers that are called several times or share their weights are not mistaken."
import copy
import types
import warnings

import pytest
import torch
from helpers import data, learner, model
from situations import Encoder, Model, OneLogit, Twice, bce, loaders, variant, with_twice
from strategy_helpers import needs_peft
from torch import nn

from sdfast.errors import InputError
from sdfast.models.blocks import is_norm
from sdfast.strategies import (
    BYOT,
    L2SP,
    SPD,
    DiGraP,
    EMATeacher,
    FixedTeacher,
    FrozenBN,
    LoRA,
    LwF,
    PathIntegral,
    Replay,
    SelfDistill,
    StochNorm,
)


def net_with(norm):
    net = model()
    net[0].bn = norm
    return net


def warned(net, cb, **options):
    "What a fit with a callback warns of"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learner(cb, net=net, **options).fit(2)
    return [str(w.message) for w in seen if 'no effect' in str(w.message)]


@pytest.mark.parametrize('make', [FrozenBN, StochNorm])
def test_recipes_for_batch_norm_say_that_there_is_none(make):
    for norm in (nn.Identity(), nn.BatchNorm2d(4, track_running_stats=False)):
        assert warned(net_with(norm), make())[0].startswith(f'{make.__name__} has no effect: ')
    assert not warned(model(), make())


@pytest.mark.parametrize('make', [lambda: SelfDistill(1.), lambda: FixedTeacher(1.), lambda: L2SP(1.),
                                  lambda: Replay(1., data().valid, nn.Linear(6, 3))])
def test_penalties_on_a_frozen_encoder_say_so(make):
    net = model()
    net[0].requires_grad_(False)
    said = warned(net, make())
    assert len(said) == 1 and 'all parameters of the encoder are frozen: unfreeze some' in said[0]


@pytest.mark.parametrize('lam', [float('nan'), float('inf'), -1., '3', None])
def test_strengths_are_numbers_of_at_least_0(lam):
    with pytest.raises(InputError, match='lam must be a number of at least 0, not '): SelfDistill(lam)


def test_stochastic_normalisation_refuses_other_statistics():
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    with pytest.raises(InputError, match='not for bn, which keeps'): learner(StochNorm(), net=net_with(norm)).fit(1)
    assert not warned(net_with(norm), FrozenBN())


def test_one_step_an_epoch_leaves_self_distillation_without_effect():
    said, = warned(model(), SelfDistill(1000.), dls=data(bs=48))
    assert said.startswith('SelfDistill has no effect: its term was 0 in all batches of epoch 0')
    assert not warned(model(), SelfDistill(1000.))
    assert not warned(model(), SelfDistill(0.), dls=data(bs=48))


@pytest.mark.parametrize('make', [lambda: FixedTeacher(1., layers='blocks'), lambda: BYOT(1., ['twice'])])
def test_layers_that_are_called_twice_have_no_one_output(make):
    net = Model(variant(forward=lambda self, x: self.twice(self.twice(self.features(x))))())
    net.encoder.twice = Twice(False)
    with pytest.raises(InputError, match=r"twice' .*is called 2 times.*pass layers=\[\.\.\.\] without it"):
        learner(make(), net=net).fit(1)


@pytest.mark.parametrize('strategy', [SelfDistill(1.), FixedTeacher(1.)])
def test_a_forward_that_holds_the_module_is_refused(strategy):
    "A copy would run the layers of the original"
    net = model()
    encoder = net[0]
    encoder.forward = lambda x: encoder.out(encoder.conv(x).flatten(1))
    with pytest.raises(InputError, match='holds the module itself; set it by types.MethodType'):
        learner(strategy, net=net).fit(1)
    encoder.forward = types.MethodType(lambda self, x: self.out(self.conv(x).flatten(1)), encoder)
    learner(strategy, net=net).fit(2)
    assert not strategy.teacher.forward(torch.ones(2, 1, 6, 6)).equal(net[0](torch.ones(2, 1, 6, 6)))


@needs_peft
def test_adapters_of_tied_weights_are_refused():
    with pytest.raises(InputError, match='cannot adapt twice.first and twice.second, which have one weight in common'):
        learner(LoRA(2), net=Model(with_twice(True))).fit(1)
    learner(LoRA(2, targets=['out']), net=Model(with_twice(True))).fit(1)
    learner(LoRA(2), net=Model(with_twice(False))).fit(1)


def test_one_logit_says_nothing_about_a_source_head_of_several():
    def fit(head, **options):
        learn = learner(LwF(1., head, **options), dls=loaders(2, lambda y: y.float()), net=OneLogit(Encoder()))
        learn.loss_func = bce
        learn.fit(1)
    with pytest.raises(InputError, match="the 5 of the source head: say .* activation='softmax'"): fit(nn.Linear(6, 5))
    fit(nn.Linear(6, 5), activation='softmax')
    fit(nn.Linear(6, 5), activation='sigmoid')


class InPlace(nn.Module):
    "An encoder that changes its input, and returns a tuple"
    def __init__(self, encoder):
        super().__init__()
        self.inner = encoder

    def forward(self, x): return self.inner(x.sub_(.5)), None


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(6, 3)

    def forward(self, out): return self.top(out[0] if isinstance(out, tuple) else out)


def test_replay_leaves_the_source_clips_as_they_are():
    "A list of batches is read again and again"
    batches = list(data(seed=5).valid)
    before = copy.deepcopy(batches)
    learner(Replay(1., batches, nn.Linear(6, 3)), net=nn.Sequential(InPlace(model()[0]), First())).fit(2)
    for (a, _), (b, _) in zip(batches, before): assert torch.equal(a, b)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize('module, want', [
    (nn.BatchNorm2d(4), True), (nn.LayerNorm([4, 3, 3]), True), (Scale(), True), (nn.Sequential(Scale()), True),
    (nn.Linear(4, 4), False), (nn.ReLU(), False), (Twice(False), False)])
def test_what_only_normalises_or_scales(module, want): assert is_norm(module) == want


def plain_steps(strategy, scaler=None, overflow=()):
    "Five steps of a plain loop; the gradients of the batches `overflow` are infinite, or, without scaler, left out"
    net = model()
    opt = torch.optim.SGD(net.parameters(), lr=.05, momentum=.9)
    strategy.attach(net, opt, scaler=scaler)
    strategy.start_epoch()
    for i, (x, y) in enumerate(list(data().train)[:5]):
        if scaler is None and i in overflow: continue
        loss = nn.functional.cross_entropy(net(x), y)
        if hasattr(strategy, 'loss'): loss = loss + strategy.loss(y)
        if i in overflow: loss = loss*float('inf')
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None: opt.step()
        else:
            scaler.step(opt)
            scaler.update()
        strategy.after_step()
        opt.zero_grad()
    strategy.detach()
    return net


def inside(s):
    "What a strategy keeps, apart from the model"
    own = getattr(s, 'teacher', None) or getattr(s, 'aux', None)
    if own is None: return list(getattr(s, 'integral', None).values()) if hasattr(s, 'integral') else []
    return list(own.parameters())


@pytest.mark.parametrize('make', [
    lambda: EMATeacher(1., decay=.5), lambda: BYOT(1., ['conv']), lambda: L2SP(3., decoupled=True), PathIntegral,
    lambda: SPD(1.), lambda: DiGraP(.5)])
def test_the_scaler_of_a_loop_changes_nothing(make):
    "It scales the loss, changes the scale at each step, and skips steps"
    one, other = make(), make()
    net = plain_steps(one, torch.amp.GradScaler('cpu', init_scale=64., growth_interval=1), overflow=(2,))
    same_net = plain_steps(other, overflow=(2,))
    bn = ('running_mean', 'running_var', 'num_batches_tracked')  # see one batch more
    for (n, a), b in zip(net.state_dict().items(), same_net.state_dict().values()):
        if not n.endswith(bn): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert len(inside(one)) == len(inside(other))
    for a, b in zip(inside(one), inside(other)): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
