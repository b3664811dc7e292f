"The moving average of whatever a state dict can hold: tied, complex and half-precision weights, extra state."
import pytest
import torch
from fastai.callback.core import Callback
from helpers import learner
from torch import nn

from sdfast.strategies import L2SP, EMATeacher, Telemetry, WiSEFT


class Encoder(nn.Module):
    "Two layers with options"
    def __init__(self, tie='no', dtype=torch.float32):
        super().__init__()
        self.a, self.b = nn.Linear(36, 36, dtype=dtype), nn.Linear(36, 36, dtype=dtype)
        if tie == 'weight': self.b.weight = self.a.weight
        if tie == 'module': self.b = self.a
        if tie == 'data': self.b.weight.data = self.a.weight.data
        self.seen = dict(calls=0)

    def forward(self, x):
        self.seen['calls'] += self.training
        out = self.b(self.a(x.flatten(1).to(self.a.weight.dtype)).relu())
        return out.float()

    def get_extra_state(self): return self.seen
    def set_extra_state(self, seen): self.seen = seen


class Average(Callback):
    "By hand, in float64"
    order, run_valid = 60, False
    def __init__(self, decay): self.decay, self.mean = decay, None
    def before_train(self): self.mean = self.learn.model[0].a.weight.detach().double()
    def after_step(self): self.mean.lerp_(self.learn.model[0].a.weight.detach().double(), 1 - self.decay)


def averages(net, decay, lr=.1, epochs=1):
    cb, hand = EMATeacher(0., decay=decay), Average(decay)
    learner([cb, hand], net=net, lr=lr).fit(epochs)
    return cb.teacher, hand.mean


@pytest.mark.parametrize('tie', ['no', 'weight', 'module', 'data'])
def test_a_tied_weight_moves_once_a_step(tie):
    torch.manual_seed(0)
    net = nn.Sequential(Encoder(tie), nn.Linear(36, 3))
    start = net[0].a.weight.detach().clone()
    teacher, mean = averages(net, .9)
    torch.testing.assert_close(teacher.a.weight.double(), mean, rtol=0, atol=1e-6)
    assert (mean - start).abs().max() > 1e-3
    assert teacher.seen == net[0].seen and teacher.seen is not net[0].seen and teacher.seen['calls']


def test_a_slow_average_of_bfloat16_does_not_stand_still():
    torch.manual_seed(0)
    net = nn.Sequential(Encoder(dtype=torch.bfloat16), nn.Linear(36, 3))
    start = net[0].a.weight.detach().clone()
    teacher, mean = averages(net, .99, lr=.5, epochs=1)
    assert teacher.a.weight.dtype == torch.bfloat16
    assert torch.equal(teacher.a.weight, mean.bfloat16()) or (teacher.a.weight - mean).abs().max() < 2e-3
    moved, should = (teacher.a.weight.double() - start).norm(), (mean - start).norm()
    assert moved.item() == pytest.approx(should.item(), rel=.05)


class Fourier(nn.Module):
    "A filter with complex weights"
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x): return torch.fft.irfft2(torch.fft.rfft2(x[:, 0])*self.filter, s=(6, 6)).flatten(1)


def test_complex_weights_are_averaged_pulled_and_measured():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(Fourier(), nn.Linear(36, 3))
    start = net()[0].filter.detach()
    means = []
    class Hand(Callback):
        order, run_valid = 60, False
        def after_step(self):
            means.append(.9*(means[-1] if means else start) + .1*self.learn.model[0].filter.detach())
    cb = EMATeacher(1., decay=.9)
    learn = learner([cb, Hand(), Telemetry()], net=net())
    learn.fit(1)
    end = learn.model[0].filter.detach()
    torch.testing.assert_close(cb.teacher.filter, means[-1])
    assert (means[-1].imag - start.imag).abs().max() > 1e-4
    moved = learn.recorder.values[0][learn.recorder.metric_names.index('moved') - 1]
    assert moved == pytest.approx(((end - start).abs().norm()/start.abs().norm()).item(), rel=1e-4)
    # the gradient of L2SP pulls real and imaginary parts
    cb = L2SP(2., which='all')
    penalty = cb.attach(other := net())
    penalty.start_epoch()
    with torch.no_grad(): other[0].filter.add_(1 + 2j)
    other(torch.randn(2, 1, 6, 6))
    loss = penalty.loss()
    loss.backward()
    assert loss.item() == pytest.approx(2/2*24*5)
    torch.testing.assert_close(other[0].filter.grad, torch.full((6, 4), 2 + 4j))
    learn = learner(WiSEFT(.25), net=net())
    learn.fit(1)
    assert (learn.model[0].filter.imag - start.imag).abs().max() > 1e-5
