"Gradients of single samples from one backward pass equal those of samples one by one, or are refused."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from helpers import same
from torch import nn

from sdfast.models.features import eval_mode
from sdfast.models.nets import FrameEncoder, c3d, r2plus1d, tiny
from sdfast.strategies import empirical_fisher, fisher_information, mas_importance, persample
from sdfast.strategies import importance as importance_module
from sdfast.strategies.persample import Layers


class Frames(nn.Module):
    """A linear layer and a norm over tokens, a norm of groups, convolutions of all kinds; `order`: of the samples'
    frames in the batch"""
    def __init__(self, order='sample'):
        super().__init__()
        self.order = order
        self.a = nn.Conv2d(3, 20, 3, stride=2, padding=1, dilation=2)
        self.b = nn.Conv2d(20, 20, (3, 1), dilation=2, groups=4, bias=False)
        self.c = nn.Conv1d(20, 6, 2, dilation=2)
        self.gn, self.ln, self.lin, self.unused = nn.GroupNorm(2, 20), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(2, 2)
        self.bn = nn.BatchNorm1d(6)
        self.bn.running_mean.normal_(), self.bn.running_var.uniform_(.5, 2.), self.bn.weight.data.normal_()

    def forward(self, x):  # (B, T, 3, 12, 12)
        B, T = x.shape[:2]
        f = x.flatten(0, 1) if self.order == 'sample' else x.transpose(0, 1).flatten(0, 1)
        f = self.c(self.gn(self.b(self.a(f).relu_()).tanh()).flatten(2)).relu_()
        f = self.lin(self.ln(self.bn(f).transpose(1, 2)).tanh()).mean(1)
        return (f.unflatten(0, (B, T)) if self.order == 'sample' else f.unflatten(0, (T, B)).transpose(0, 1)).mean(1)


def checkpointed(): return Twice('checkpoint')


def norms():
    "Norms of features without axes after the channels"
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.LayerNorm(8))
    net[1].running_mean.normal_(), net[1].running_var.uniform_(.5, 2.)
    return net


def vit():
    import timm
    return FrameEncoder(timm.create_model('test_vit', num_classes=0, img_size=32), 64)


def resnet():
    import timm
    return FrameEncoder(timm.create_model('test_resnet', num_classes=0), 96)


# name -> function that makes an encoder, shape of a sample
NETS = dict(
    frames=(Frames, (2, 3, 12, 12)),
    checkpointed=(checkpointed, (4,)),
    norms=(norms, (12,)),
    tiny=(tiny, (4, 3, 16, 16)),
    c3d=(c3d, (8, 3, 16, 16)),
    r2plus1d=(r2plus1d, (4, 3, 16, 16)),
    vit=(vit, (2, 3, 32, 32)),
    resnet=(resnet, (2, 3, 32, 32)))


ESTIMATES = dict(exact=fisher_information, sample=partial(fisher_information, labels='sample', seed=3),
                 empirical=empirical_fisher, mas=mas_importance)


def net_and_samples(make, shape, n=5, double=False):
    torch.manual_seed(0)
    encoder = make()
    net = nn.Sequential(encoder, nn.LazyLinear(3))
    x, y = torch.randn(n, *shape), torch.randint(0, 3, (n,))
    with eval_mode(net), torch.no_grad(): net(x[:1])
    return (net.double(), x.double(), y) if double else (net, x, y)


def close(a, b, rtol):
    """Relative to the largest of each weight tensor, or for those that only have rounding (a bias which softmax takes
    out) of all"""
    top = max(f.abs().max().item() for f in b.diag.values())
    def near(got, want): return (got - want).abs().max() <= rtol*max(want.abs().max().item(), 1e-3*top)
    return a.n == b.n and all(near(a.diag[k], f) for k, f in b.diag.items())


def spy(monkeypatch):
    "Counts the batches that were taken together, and those that were not"
    said, real = [], Layers.sums
    monkeypatch.setattr(Layers, 'sums', lambda *a: said.append(real(*a)) or said[-1])
    return said


def is_cheap(net, estimate): return net not in ('c3d', 'r2plus1d') or estimate in ('empirical', 'mas')


@pytest.mark.parametrize('name,take', [(n, t) for n in NETS for t in ESTIMATES if is_cheap(n, t)])
@pytest.mark.parametrize('double', [False, True])
def test_samples_together_equal_one_by_one(name, take, double, monkeypatch):
    net, x, y = net_and_samples(*NETS[name], double=double)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]  # the last one is smaller
    want = ESTIMATES[take](net, batches, chunk=1)
    said = spy(monkeypatch)
    got = ESTIMATES[take](net, batches, chunk=3)
    assert close(got, want, 1e-10 if double else 1e-5)
    assert all(f.dtype == (torch.double if double else torch.float32) for f in got.diag.values())
    if name == 'vit': assert not said  # a position embedding has no rule
    else: assert len(said) == 3 and None not in said
    if name == 'frames': assert got.diag['unused.weight'].abs().sum() == 0


def test_how_many_samples_go_together_by_default(monkeypatch):
    taken, real = [], Layers.sums
    def sums(self, outputs, cotangents, batch, f):
        taken.append(len(batch[0]))
        return real(self, outputs, cotangents, batch, f)
    monkeypatch.setattr(Layers, 'sums', sums)
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2))
    batches = [(torch.randn(20, 8), torch.randint(0, 2, (20,)))]
    # kept for the backward pass: a sample's 8 inputs, 8 features and 2 log probabilities, and the head's 16 weights
    needed = 1.5*4*(8 + 8 + 2 + 16)
    for memory, want in ((2**31, [16, 4]), (int(16*needed) - 1, [15, 5]), (int(4*needed), [4]*5), (1, [])):
        monkeypatch.setattr(importance_module, 'MEMORY', memory)
        at_once = empirical_fisher(net, batches)
        assert taken == want
        assert close(at_once, empirical_fisher(net, batches, chunk=1), 1e-5)
        taken.clear()


class Rounded(nn.Linear):
    "Whose result depends on how many samples it is given, as rounding's does, by a factor"
    by = 0.
    def forward(self, x): return F.linear(x, self.weight, self.bias)*(1 + self.by*(len(x) == 1))


@pytest.mark.parametrize('by,double,together', [(1e-3, False, True), (.05, False, False), (1e-3, True, False)])
def test_rounding_is_not_taken_for_samples_that_mix(by, double, together, monkeypatch):
    """It turns single ReLUs of a deep net on and off, which changes gradients by parts in a thousand; not in double
    precision"""
    monkeypatch.setitem(persample.RULES, Rounded.forward, persample.RULES[nn.Linear.forward])
    net, said, real = nn.Sequential(Rounded(4, 4), nn.Linear(4, 3)), [], Layers.sums
    net[0].by = by
    if double: net = net.double()
    monkeypatch.setattr(Layers, 'sums', lambda *a: said.append(real(*a)) or said[-1])
    empirical_fisher(net, [(torch.randn(6, 4, dtype=net[1].weight.dtype), torch.randint(0, 3, (6,)))])
    assert len(said) == 1 and (said[0] is not None) == together


class Twice(nn.Module):
    "Ways in which a layer's input and output do not tell its gradient, or samples are not by themselves"
    def __init__(self, way):
        super().__init__()
        self.way, self.a, self.b, self.c = way, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        if way == 'tied': self.b.weight = self.a.weight
        if way == 'own forward': self.c = Doubled(4, 4)
        if way == 'free parameter': self.scale = nn.Parameter(torch.ones(4))
        if way == 'weight norm': self.c = nn.utils.parametrizations.weight_norm(self.c)
        if way == 'hook': self.c.register_forward_hook(lambda m, a, out: out*2)
        if way == 'circular':
            self.c = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1, padding_mode='circular'),
                                   nn.Flatten())

    def forward(self, x):
        h = self.b(self.a(x).tanh()).tanh()
        way = self.way
        if way == 'called twice': return self.c(self.c(h).tanh())
        if way == 'functional': return F.linear(h, self.c.weight, self.c.bias)
        if way == 'also functional': return self.c(h) + h@self.c.weight
        if way == 'unseen': return (self.c(h).detach() + F.linear(h.tanh(), self.c.weight, self.c.bias))
        if way == 'no grad':
            with torch.no_grad(): extra = self.c(h)
            return self.c(h) + extra
        if way == 'mixed': return self.c(h - .5*h.mean(0))
        if way == 'shifted': return self.c(h + .1*h.cumsum(0))
        if way == 'checkpoint': return torch.utils.checkpoint.checkpoint(self.c, h, use_reentrant=False)
        if way == 'keyword': return self.c(input=h)
        return self.c(h)*(self.scale if way == 'free parameter' else 1.)


class Doubled(nn.Linear):
    def forward(self, x): return 2*super().forward(x)


WAYS = ['tied', 'called twice', 'functional', 'also functional', 'unseen', 'no grad', 'mixed', 'shifted', 'keyword',
        'own forward', 'free parameter', 'weight norm', 'hook', 'circular', 'frames']


@pytest.mark.parametrize('take', ESTIMATES)
@pytest.mark.parametrize('way', WAYS)
def test_what_cannot_be_taken_apart_is_taken_one_by_one(way, take, monkeypatch):
    "Recognised from its parameters, its calls or, where samples are mixed, from the gradient of one"
    net, x, y = net_and_samples(*((partial(Frames, 'frame'), (2, 3, 12, 12)) if way == 'frames'
                                  else (partial(Twice, way), (4,))))
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    want = ESTIMATES[take](net, batches, chunk=1)
    said = spy(monkeypatch)
    assert close(ESTIMATES[take](net, batches), want, 0.) and (not said or said == [None])


def test_a_tied_head_or_autocast_is_taken_one_by_one(monkeypatch):
    net, x, y = net_and_samples(partial(nn.Linear, 4, 3), (4,))
    net[1] = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    want, said = empirical_fisher(net, [(x, y)], chunk=1), spy(monkeypatch)
    assert close(empirical_fisher(net, [(x, y)]), want, 0.) and said == [None]
    net, said[:] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), []
    with torch.autocast('cpu', torch.bfloat16):
        a, b = empirical_fisher(net, [(x, y)], chunk=1), empirical_fisher(net, [(x, y)])
    assert same(a.diag, b.diag) and said == [None]
    with pytest.raises(ValueError, match='chunk must be at least 1, not 0'): empirical_fisher(net, [(x, y)], chunk=0)


def test_part_of_the_samples_and_a_loss_of_its_own(monkeypatch):
    net, x, y = net_and_samples(*NETS['frames'], n=9)
    want = empirical_fisher(net, [(x, y)], n=7, chunk=1)
    for chunk in (2, 4, 16):
        assert close(empirical_fisher(net, [(x[:4], y[:4]), (x[4:], y[4:])], n=7, chunk=chunk), want, 1e-5)
    said = spy(monkeypatch)
    # a mean over the batch is of one sample
    mean = fisher_information(net, [(x, y)], n=7, loss=lambda m, x, y: F.cross_entropy(m(x), y))
    assert close(mean, want, 1e-5) and not said
