"Layers that keep statistics: found, left unchanged, recomputed."
import warnings

import pytest
import torch
from helpers import data, model, same, state
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from sdfast.errors import InputError
from sdfast.models.statistics import (
    as_student,
    keep_buffers,
    keeps_statistics,
    reestimate_bn,
    statistics_layers,
    watch_buffers,
)
from sdfast.models.surgery import frozen_copy


def test_reestimate_bn_is_the_mean_over_batches():
    net = model(dropout=.5)
    net[0].bn.momentum = .3
    net.train()
    net[0].bn.num_batches_tracked.fill_(9)  # it has been trained
    net[0].bn.running_mean.fill_(5.)
    net[0].drop.eval()
    batches = list(data(n=20, bs=6).valid)  # the last one is smaller, and counts as much
    modes, weights, rng = [m.training for m in net.modules()], state(net), torch.get_rng_state()
    assert reestimate_bn(net, batches) is net
    with torch.no_grad(): maps = [net[0].conv(x).transpose(0, 1).flatten(1) for x, _ in batches]
    torch.testing.assert_close(net[0].bn.running_mean, torch.stack([m.mean(1) for m in maps]).mean(0))
    torch.testing.assert_close(net[0].bn.running_var, torch.stack([m.var(1) for m in maps]).mean(0))
    assert [m.training for m in net.modules()] == modes
    assert net[0].bn.momentum == .3
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in state(net).items() if 'running' not in k and 'num' not in k)
    # errors put back what was there; nothing to do without batch norm
    before = state(net)
    def broken():
        yield batches[0]
        raise OSError
    with pytest.raises(OSError): reestimate_bn(net, broken())
    with pytest.raises(InputError, match='no batches'): reestimate_bn(net, [])
    assert same(before, state(net)) and [m.training for m in net.modules()] == modes and net[0].bn.momentum == .3
    reestimate_bn(nn.Linear(2, 2), None)
    inside = nn.Sequential(net[0], nn.BatchNorm1d(6))
    outer = state(inside[1])
    reestimate_bn(inside, batches, inside[0])
    assert same(outer, state(inside[1]))


class Renorm(nn.Module):
    "A norm as in many research repositories, with names and arithmetic of its own"
    def __init__(self, n):
        super().__init__()
        self.drop = nn.Dropout(.5)
        self.register_buffer('mu', torch.zeros(n))
        self.register_buffer('table', torch.arange(float(n)))

    def forward(self, x):
        if not self.training: return x - self.mu[:, None, None]
        m = x.mean((0, 2, 3))
        self.mu = self.mu*.9 + m.detach()*.1  # another tensor
        return x - m[:, None, None]


class Subclass(nn.BatchNorm2d):
    "Ignores `track_running_stats`"
    def forward(self, x):
        if self.training: self.running_mean.lerp_(x.detach().mean((0, 2, 3)), .1)
        return x - (x.mean((0, 2, 3)) if self.training else self.running_mean)[:, None, None]


class Constant(nn.Module):
    "A buffer that never changes"
    def __init__(self):
        super().__init__()
        self.register_buffer('shift', torch.ones(()))

    def forward(self, x): return x + self.shift


NORMS = dict(
    batch=lambda: nn.BatchNorm2d(4),
    batch_and_act=lambda: BatchNormAct2d(4),
    instance=lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    evonorm=lambda: EvoNorm2dB0(4),
    subclass=lambda: Subclass(4),
    own=lambda: Renorm(4))


def norm_net(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), NORMS[name](), Constant())
    watch_buffers(net)
    net(images(9))
    return net


def images(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(6, 1, 6, 6, generator=g)*2 + 1


@pytest.mark.parametrize('name', NORMS)
def test_a_pass_without_effect_on_statistics(name):
    net = norm_net(name)
    before, x = state(net), images()
    want = frozen_copy(net).train()(x)
    with keep_buffers(net): out = net(x)
    assert torch.equal(out, want) and same(before, state(net))
    net(x)
    assert not same(before, state(net))  # as usual
    assert statistics_layers(net) == [net[1]]


@pytest.mark.parametrize('name', NORMS)
def test_a_teacher_is_its_student_while_weights_are_equal(name):
    net = norm_net(name)
    teacher = frozen_copy(net)
    before = state(teacher)
    for i in range(3):  # the student's statistics change, not the teacher's
        out = net(images(i))
        with as_student(teacher, net): assert torch.equal(teacher(images(i)), out)
    assert same(before, state(teacher)) and not same(before, state(net))
    net.eval()
    with as_student(teacher, net): out = teacher(images())
    assert torch.equal(out, frozen_copy(teacher)(images()))
    net.train()
    with as_student(teacher, net, 'running'): assert torch.equal(teacher(images()), out)


@pytest.mark.parametrize('norm', [spectral_norm, parametrizations.spectral_norm])
def test_a_teacher_makes_the_steps_of_a_power_iteration(norm):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(6, 8)), nn.Dropout())
    teacher = frozen_copy(net)
    for i in range(3):
        x = torch.randn(4, 6)
        out = net[0](x)
        with as_student(teacher, net): assert torch.equal(teacher(x), out)  # its dropout is off
    before = state(net)
    with keep_buffers(net): net(x)
    assert same(before, state(net))


def test_a_layer_that_changes_no_buffer_keeps_its_mode():
    net = nn.Sequential(Constant(), nn.Dropout(), nn.LayerNorm(6))
    watch = watch_buffers(net)
    net(images())
    assert not statistics_layers(net) and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    teacher = frozen_copy(net)
    with as_student(teacher, net): assert not any(m.training for m in teacher.modules())
    watch.remove()


def test_a_watched_layer_that_must_not_change_does_not():
    class Other(Renorm): "Not seen before"
    net = nn.Sequential(Other(4))
    before, x = state(net), torch.randn(2, 4, 3, 3)
    assert not keeps_statistics(net[0])
    watch_buffers(net, freeze=True)
    out = net(x)
    assert keeps_statistics(net[0]) and same(before, state(net)) and torch.equal(out, x)


def test_statistics_of_other_norms_are_recomputed_or_named():
    for name in ('instance', 'evonorm'):
        net = norm_net(name)
        twin = norm_net(name)
        momentum = net[1].momentum
        reestimate_bn(net, [(images(i), None) for i in range(3)])
        twin[1].momentum = 1.
        means = []
        for i in range(3):
            twin(images(i))
            means.append(twin[1].running_var.clone())
        torch.testing.assert_close(net[1].running_var, torch.stack(means).mean(0))
        assert net[1].momentum == momentum
    net = norm_net('own')
    with pytest.warns(UserWarning, match='statistics of Renorm cannot be recomputed'): reestimate_bn(net, [])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        reestimate_bn(nn.BatchNorm2d(3, track_running_stats=False), [])
