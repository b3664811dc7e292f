"Importance of weights against closed forms, and what the anchors do with it."
import copy
import warnings
from functools import partial

import fastai.callback.schedule  # noqa: F401, fit_one_cycle
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from helpers import data, learner, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import FrameEncoder, c3d, encoder_head_split, r2plus1d, tiny
from sdfast.models.features import eval_mode
from sdfast.strategies import (
    EWC,
    L2SP,
    MAS,
    SI,
    Importance,
    PathIntegral,
    SelfDistill,
    empirical_fisher,
    fisher_information,
    mas_importance,
    persample,
)
from sdfast.strategies.persample import Layers


@pytest.fixture
def linear():
    "A linear encoder and head in double-precision reach: `(model, x, y, head weight)`"
    torch.manual_seed(0)
    encoder, head = nn.Linear(5, 4), nn.Linear(4, 3)
    return nn.Sequential(encoder, head), torch.randn(40, 5), torch.randint(0, 3, (40,))


# --- importance

def test_exact_fisher_equals_the_closed_form(linear):
    net, x, _ = linear
    got = fisher_information(net, [(x[:16],), (x[16:],)])  # no labels needed
    want_w, want_b = torch.zeros(4, 5, dtype=torch.double), torch.zeros(4, dtype=torch.double)
    W = net[1].weight.detach().double()
    with torch.no_grad(): P = net(x).double().softmax(1)
    for i in range(40):
        for c in range(3):
            d = (P[i] - F.one_hot(torch.tensor(c), 3)) @ W
            want_b += P[i, c]*d**2/40
            want_w += P[i, c]*(d[:, None]*x[i].double()[None])**2/40
    assert ((got.diag['weight'] - want_w).abs()/want_w.abs().max()).max() < 1e-5 and ((got.diag['bias'] - want_b).abs()/want_b.abs().max()).max() < 1e-5
    assert got.n == 40


def test_fisher_equals_the_closed_form_of_a_linear_softmax():
    torch.manual_seed(0)
    encoder, head = nn.Linear(5, 4, bias=True), nn.Linear(4, 3)
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    got = empirical_fisher(nn.Sequential(encoder, head), [(x[:16], y[:16]), (x[16:], y[16:])])
    with torch.no_grad():
        p = head(encoder(x)).softmax(1)
        d = (p - F.one_hot(y, 3)) @ head.weight  # gradient of -log p(y|x) with respect to the encoder's output
    torch.testing.assert_close(got.diag['weight'], (d[:, :, None]*x[:, None]).square().mean(0))
    torch.testing.assert_close(got.diag['bias'], d.square().mean(0))
    assert got.n == 40 and torch.equal(got.anchor['weight'], encoder.weight)
    few = empirical_fisher(nn.Sequential(encoder, head), [(x, y)], n=7)
    torch.testing.assert_close(few.diag['bias'], d[:7].square().mean(0))
    assert few.n == 7 and few.normalized().mean == pytest.approx(1)


def test_sampled_fisher_tends_to_the_exact_one(linear):
    net, x, _ = linear
    x = x.repeat(100, 1)
    rng = torch.get_rng_state()
    got, again, other = (fisher_information(net, [x], labels='sample', seed=s) for s in (0, 0, 1))
    exact = fisher_information(net, [x[:40]])
    assert torch.equal(rng, torch.get_rng_state()) and same(got.diag, again.diag) and not same(got.diag, other.diag)
    torch.testing.assert_close(got.diag['bias'], exact.diag['bias'], rtol=.1, atol=0)


def test_empirical_and_any_loss(linear):
    net, x, y = linear
    a = fisher_information(net, [(x, y)], labels='empirical')
    assert same(a.diag, empirical_fisher(net, [(x, y)]).diag)
    a = empirical_fisher(net, [(x, y)], chunk=1)  # one by one, as any loss
    b = fisher_information(net, [(x, y)], loss=lambda m, x, y: F.cross_entropy(m(x), y))
    assert same(a.diag, b.diag)
    pretext = fisher_information(net, [x], loss=lambda m, x: m[0](x).pow(2).sum())  # without labels or head
    want = torch.stack([(2*net[0](v[None]).detach())[0]**2 for v in x]).mean(0)
    torch.testing.assert_close(pretext.diag['bias'], want)
    with pytest.raises(ValueError, match="'exact', 'sample' or 'empirical', not 'true'"): fisher_information(net, [x], labels='true')
    with pytest.raises(InputError, match='needs labels'): fisher_information(net, [x], labels='empirical')


def test_avalanche_agrees_at_batch_size_1(linear):
    "Their empirical Fisher squares the gradient of a batch: of one sample it is right"
    pytest.importorskip('avalanche', reason='avalanche-lib is not installed: pip install sdfast[peers]')
    from avalanche.training.plugins import EWCPlugin
    net, x, y = linear
    net.train()
    data = [(a, b, 0) for a, b in zip(x, y)]
    class Set(torch.utils.data.Dataset):
        def __len__(self): return len(data)
        def __getitem__(self, i): return data[i]
    plugin = EWCPlugin(1.)
    theirs = plugin.compute_importances(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=.1), Set(), 'cpu', 1)
    ours = empirical_fisher(net, [(x, y)])
    torch.testing.assert_close(theirs['0.weight'].data, ours.diag['weight'], rtol=1e-4, atol=1e-7)


def test_mas_equals_the_closed_form(linear):
    net, x, y = linear
    got = mas_importance(net, [(x, y)])
    W, want = net[1].weight.detach(), torch.zeros(4, 5)
    with torch.no_grad():
        for v in x: want += ((2*net(v)) @ W)[:, None].mul(v[None]).abs()/40  # d||g||^2/dw = (2 g W)_i v_j, sample by sample
    torch.testing.assert_close(got.diag['weight'], want, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(got.diag['weight'], (torch.stack([((2*net(v)) @ W)[:, None].mul(v[None]) for v in x]).mean(0).abs()).detach(), rtol=.05)  # not of the batch


@pytest.mark.parametrize('take', [fisher_information, partial(fisher_information, labels='sample'), empirical_fisher, mas_importance])
def test_taking_importance_leaves_the_model_as_it_was(take):
    net = model(dropout=.5)
    net[0].bn.eval()
    net[0].conv.weight.requires_grad_(False)
    batches = list(data().valid)
    before, modes, rng = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    f = take(net, batches)
    assert same(before, state(net)) and [m.training for m in net.modules()] == modes and torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters()) and not net[0].conv.weight.requires_grad
    assert f.diag['conv.weight'].sum() > 0  # a layer that is frozen now may be trained later


# --- samples taken together, layer by layer, against one by one

class Frames(nn.Module):
    "A linear layer and a norm over tokens, a norm of groups, convolutions of all kinds; `order`: of the samples' frames in the batch"
    def __init__(self, order='sample'):
        super().__init__()
        self.order, self.a, self.b, self.c = order, nn.Conv2d(3, 20, 3, stride=2, padding=1, dilation=2), nn.Conv2d(20, 20, (3, 1), dilation=2, groups=4, bias=False), nn.Conv1d(20, 6, 2, dilation=2)
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
    "Norms of features that have no axes behind the channels"
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.GroupNorm(2, 8), nn.LayerNorm(8))
    net[1].running_mean.normal_(), net[1].running_var.uniform_(.5, 2.)
    return net


def vit():
    import timm
    return FrameEncoder(timm.create_model('test_vit', num_classes=0, img_size=32), 64)


def resnet():
    import timm
    return FrameEncoder(timm.create_model('test_resnet', num_classes=0), 96)


NETS = dict(frames=(Frames, (2, 3, 12, 12)), checkpointed=(checkpointed, (4,)), norms=(norms, (12,)), tiny=(tiny, (4, 3, 16, 16)), c3d=(c3d, (8, 3, 16, 16)), r2plus1d=(r2plus1d, (4, 3, 16, 16)), vit=(vit, (2, 3, 32, 32)), resnet=(resnet, (2, 3, 32, 32)))
TAKES = dict(exact=fisher_information, sample=partial(fisher_information, labels='sample', seed=3), empirical=empirical_fisher, mas=mas_importance)


def net_and_samples(make, shape, n=5, double=False):
    torch.manual_seed(0)
    encoder = make()
    net = nn.Sequential(encoder, nn.LazyLinear(3))
    x, y = torch.randn(n, *shape), torch.randint(0, 3, (n,))
    with eval_mode(net), torch.no_grad(): net(x[:1])
    return (net.double(), x.double(), y) if double else (net, x, y)


def close(a, b, rtol):
    "Relative to the largest of each weight tensor, or for those that only have rounding (a bias which softmax takes out) of all"
    top = max(f.abs().max().item() for f in b.diag.values())
    return a.n == b.n and all((a.diag[k] - f).abs().max() <= rtol*max(f.abs().max().item(), 1e-3*top) for k, f in b.diag.items())


def spy(monkeypatch):
    "Counts the batches that were taken together, and those that were not"
    said, real = [], Layers.sums
    monkeypatch.setattr(Layers, 'sums', lambda *a: said.append(real(*a)) or said[-1])
    return said


@pytest.mark.parametrize('name,take', [(n, t) for n in NETS for t in TAKES if n not in ('c3d', 'r2plus1d') or t in ('empirical', 'mas')])  # of large nets two will do
@pytest.mark.parametrize('double', [False, True])
def test_samples_together_equal_one_by_one(name, take, double, monkeypatch):
    net, x, y = net_and_samples(*NETS[name], double=double)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]  # the last one is smaller
    want = TAKES[take](net, batches, chunk=1)
    said = spy(monkeypatch)
    got = TAKES[take](net, batches, chunk=3)
    assert close(got, want, 1e-10 if double else 1e-5) and all(f.dtype == (torch.double if double else torch.float32) for f in got.diag.values())
    if name == 'vit': assert not said  # a position embedding has no rule
    else: assert len(said) == 3 and None not in said
    if name == 'frames': assert got.diag['unused.weight'].abs().sum() == 0


def test_how_many_samples_go_together_by_default(monkeypatch):
    taken, real = [], Layers.sums
    monkeypatch.setattr(Layers, 'sums', lambda self, outputs, cotangents, batch, f: taken.append(len(batch[0])) or real(self, outputs, cotangents, batch, f))
    for width, want in ((8, [16, 4]), (1600, [4]*5)):  # 2.6 million weights
        empirical_fisher(nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2)), [(torch.randn(20, width), torch.randint(0, 2, (20,)))])
        assert taken == want
        taken.clear()


class Rounded(nn.Linear):
    "Whose result depends on how many samples it is given, as rounding's does, by a factor"
    by = 0.
    def forward(self, x): return F.linear(x, self.weight, self.bias)*(1 + self.by*(len(x) == 1))


@pytest.mark.parametrize('by,double,together', [(1e-3, False, True), (.05, False, False), (1e-3, True, False)])
def test_rounding_is_not_taken_for_samples_that_mix(by, double, together, monkeypatch):
    "It turns single ReLUs of a deep net on and off, which changes gradients by parts in a thousand; not in double precision"
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
        if way == 'buffer-free norm': self.c = nn.BatchNorm1d(4, track_running_stats=False)
        if way == 'own forward': self.c = Doubled(4, 4)
        if way == 'free parameter': self.scale = nn.Parameter(torch.ones(4))
        if way == 'weight norm': self.c = nn.utils.parametrizations.weight_norm(self.c)
        if way == 'hook': self.c.register_forward_hook(lambda m, a, out: out*2)
        if way == 'circular': self.c = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1, padding_mode='circular'), nn.Flatten())

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
        if way == 'buffer-free norm': return self.c(torch.stack([h, h.sin()], -1)).mean(-1)
        if way == 'keyword': return self.c(input=h)
        return self.c(h)*(self.scale if way == 'free parameter' else 1.)


class Doubled(nn.Linear):
    def forward(self, x): return 2*super().forward(x)


WAYS = ['tied', 'called twice', 'functional', 'also functional', 'unseen', 'no grad', 'mixed', 'shifted', 'keyword', 'buffer-free norm', 'own forward', 'free parameter', 'weight norm', 'hook', 'circular', 'frames']


@pytest.mark.parametrize('take', TAKES)
@pytest.mark.parametrize('way', WAYS)
def test_what_cannot_be_taken_apart_is_taken_one_by_one(way, take, monkeypatch):
    "Recognised from its parameters, its calls or, where samples are mixed, from the gradient of one"
    net, x, y = net_and_samples(*((partial(Frames, 'frame'), (2, 3, 12, 12)) if way == 'frames' else (partial(Twice, way), (4,))))
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    want = TAKES[take](net, batches, chunk=1)
    said = spy(monkeypatch)
    assert close(TAKES[take](net, batches), want, 0.) and (not said or said == [None])


def test_a_tied_head_or_autocast_is_taken_one_by_one(monkeypatch):
    net, x, y = net_and_samples(partial(nn.Linear, 4, 3), (4,))
    net[1] = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    want, said = empirical_fisher(net, [(x, y)], chunk=1), spy(monkeypatch)
    assert close(empirical_fisher(net, [(x, y)]), want, 0.) and said == [None]
    net, said[:] = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), []
    with torch.autocast('cpu', torch.bfloat16): a, b = empirical_fisher(net, [(x, y)], chunk=1), empirical_fisher(net, [(x, y)])
    assert same(a.diag, b.diag) and said == [None]
    with pytest.raises(ValueError, match='chunk must be at least 1, not 0'): empirical_fisher(net, [(x, y)], chunk=0)


def test_part_of_the_samples_and_a_loss_of_its_own(monkeypatch):
    net, x, y = net_and_samples(*NETS['frames'], n=9)
    want = empirical_fisher(net, [(x, y)], n=7, chunk=1)
    for chunk in (2, 4, 16): assert close(empirical_fisher(net, [(x[:4], y[:4]), (x[4:], y[4:])], n=7, chunk=chunk), want, 1e-5)
    said = spy(monkeypatch)
    mean = fisher_information(net, [(x, y)], n=7, loss=lambda m, x, y: F.cross_entropy(m(x), y))  # a mean over the batch is of one sample
    assert close(mean, want, 1e-5) and not said


def test_path_integral_is_minus_gradient_times_step():
    "By hand over an epoch of plain SGD with momentum; with micro-batches a step is one"
    for accumulate in (False, True):
        net, hand = model(), model()
        path = PathIntegral()
        cbs = [path, *([GradientAccumulation(24)] if accumulate else [])]
        learner(cbs, net=net, dls=data(bs=8)).fit(2)
        opt = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9)
        start = {n:p.detach().clone() for n, p in hand[0].named_parameters()}
        omega, step = {n:torch.zeros_like(p) for n, p in start.items()}, 3 if accumulate else 1
        for _ in range(2):
            hand.train()
            for i, (x, y) in enumerate(data(bs=8).train):
                (F.cross_entropy(hand(x), y)/step).backward()
                if (i + 1) % step: continue
                before = {n:p.detach().clone() for n, p in hand[0].named_parameters()}
                opt.step()
                for n, p in hand[0].named_parameters(): omega[n] -= p.grad*(p.detach() - before[n])
                opt.zero_grad()
        imp = path.importance(xi=.01)
        for n, p in hand[0].named_parameters():
            torch.testing.assert_close(imp.diag[n], omega[n].clamp(min=0)/((p.detach() - start[n])**2 + .01), rtol=2e-3, atol=1e-6)
        assert same(imp.anchor, {n:p.detach() for n, p in net[0].named_parameters()}) and path.steps == (4 if accumulate else 12)
    with pytest.raises(InputError, match='seen no training'): PathIntegral().importance()
    with pytest.raises(InputError, match='without penalties'): learner([PathIntegral(), SelfDistill(1.)]).fit(1)


def test_importance_of_one_task_after_another():
    a, b = (Importance({'w': torch.tensor(v)}, {'w': torch.tensor(w)}, n) for v, w, n in (([1., 3.], [0., 0.], 4), ([2., 2.], [5., 6.], 6)))
    c = a.then(b, gamma=.5)
    assert c.diag['w'].tolist() == [2.5, 3.5] and c.anchor['w'].tolist() == [5, 6] and c.n == 10 and c.mean == 3
    assert a.then(b).normalized().mean == pytest.approx(1) and a.diag['w'].tolist() == [1, 3]
    with pytest.raises(ValueError, match='same encoder'): a.then(Importance({'v': torch.ones(1)}, {'v': torch.ones(1)}, 1))
    with pytest.raises(InputError, match='zero everywhere'): Importance({'w': torch.zeros(2)}, {'w': torch.zeros(2)}, 1).normalized()


# --- what is done with it

def importance_of(net, seed=3):
    g = torch.Generator().manual_seed(seed)
    return Importance({n:torch.rand(p.shape, generator=g) for n, p in net[0].named_parameters()}, {n:p.detach().clone() for n, p in net[0].named_parameters()}, 1)


@pytest.mark.parametrize('cls', [EWC, MAS, SI])
def test_weighted_penalties_equal_a_hand_written_loop(cls):
    net = model()
    hand, imp = copy.deepcopy(net), importance_of(net)
    learner(cls(2., imp), net=net).fit(3)
    opt = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9)
    for _ in range(3):
        hand.train()
        for x, y in data().train:
            opt.zero_grad()
            (F.cross_entropy(hand(x), y) + sum((imp.diag[n]*(p - imp.anchor[n])**2).sum() for n, p in hand[0].named_parameters())).backward()  # 2/2
            opt.step()
    for a, b in zip(state(net).values(), state(hand).values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('make', [lambda imp: EWC(.7, imp), lambda imp: L2SP(.7, which='all')], ids=['ewc', 'l2sp'])
def test_the_term_and_its_gradient_equal_those_of_a_graph_over_all_weights(make):
    "Value, gradient and, as Telemetry does, its gradient again; a frozen weight gets none, one in half precision its own type"
    net, learn = model(), learner(make(imp := importance_of(model())))
    cb = next(c for c in learn.cbs if isinstance(c, (EWC, L2SP)))
    net[0].out.weight.data = net[0].out.weight.data.bfloat16()
    net[0].bn.bias.requires_grad_(False)
    with torch.no_grad():
        for p in net[0].parameters(): p.add_(.1*torch.randn_like(p))
    cb.learn.model, cb.learn.loss_grad, cb.anchors = net, torch.zeros(()), imp.anchor
    weights = {n:p for n, p in net[0].named_parameters() if p.requires_grad}
    want = sum(((p.float() - imp.anchor[n])**2*(1 if cb.scale is None else cb.scale[n])).sum() for n, p in weights.items())/2
    got = cb.lam*cb.term()
    torch.testing.assert_close(got, .7*want, rtol=1e-6, atol=0)
    wants = torch.autograd.grad(.7*want, list(weights.values()))
    for _ in range(2):
        for a, b in zip(torch.autograd.grad(got, list(weights.values()), retain_graph=True), wants): torch.testing.assert_close(a, b, rtol=1e-6 if b.dtype == torch.float32 else 1e-2, atol=1e-9)


class Slope(Callback):
    "In place of data: a loss with gradient `g` on one weight"
    order = 1
    def __init__(self, g): self.g = g
    def after_loss(self): self.learn.loss_grad = (self.learn.model[0].weight*self.g).sum()


def one_weight(): return nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 3))


def vectors(n=16):
    from fastai.data.core import DataLoaders, Datasets, TfmdDL
    from fastai.data.transforms import ItemGetter
    sets = Datasets([(torch.ones(1), torch.tensor(0))]*n, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(2)])
    return DataLoaders(TfmdDL(sets.train, bs=1, num_workers=0), TfmdDL(sets.valid, bs=1, num_workers=0), device='cpu')


TORCH = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9))


@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(SGD, mom=0.), partial(SGD, mom=.5), TORCH])
def test_implicit_step_rests_where_the_gradient_does(opt):
    "Stationary point of g w + lam/2 F (w - w*)^2, here w* - g/(lam F), for either way of stepping"
    imp = Importance({'weight': torch.tensor([[4.]])}, {'weight': torch.tensor([[1.]])}, 1)
    rest = {}
    for implicit in (False, True):
        torch.manual_seed(0)
        net = one_weight()
        learner([EWC(.5, imp, implicit=implicit), Slope(3.)], net=net, dls=vectors(), lr=.05, opt_func=opt, wd=0.).fit(30)
        rest[implicit] = net[0].weight.item()
    assert rest[False] == pytest.approx(1 - 3/(.5*4), abs=1e-3) and rest[True] == pytest.approx(1 - 3/(.5*4), abs=1e-3)


@pytest.mark.parametrize('opt,mom', [(partial(SGD, mom=.9), .9), (partial(SGD, mom=0.), 0.), (TORCH, .9)])
def test_the_bound_of_stability_and_the_way_around_it(opt, mom):
    "Heavy ball diverges just above lr*lam*F = 2(1 + m), not just below; the implicit step at 10 times the bound does not"
    imp = Importance({'weight': torch.tensor([[4.]])}, {'weight': torch.tensor([[1.]])}, 1)
    limit = 2*(1 + mom)/(.05*4)
    def end(lam, implicit=False):
        torch.manual_seed(0)
        net = one_weight()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            learner([EWC(lam, imp, implicit=implicit), Slope(0.)], net=net, dls=vectors(), lr=.05, opt_func=opt, wd=0.).fit(20)
        return abs(net[0].weight.item() - 1), [str(w.message) for w in told if 'unstable' in str(w.message)]
    far, told = end(.97*limit)
    assert far < 1 and not told
    far, told = end(1.05*limit)
    assert not far < 1e3 and len(told) == 1 and f'the largest safe lam is {limit:.3g}' in told[0]
    far, told = end(10*limit, implicit=True)
    assert far < 1e-3 and not told


def test_the_bound_is_of_the_group_that_learns_fastest():
    "The largest importance counts with the learning rate of its own group, in the batch in which a schedule gets there; not for Adam, whose steps have another bound"
    net, imp = model(), importance_of(model())
    imp.diag['out.bias'][0] = 50.
    def split(net): return [list(net[0].conv.parameters()) + list(net[0].bn.parameters()), list(net[0].out.parameters()), list(net[1].parameters())]
    def told(lam, lr=(.1, .01, .1), fit='fit', **kw):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            learn = learner(EWC(lam, imp), net=copy.deepcopy(net), splitter=split, **kw)
            getattr(learn, fit)(1, lr=list(lr)) if fit == 'fit' else learn.fit_one_cycle(1, lr)
        return [str(w.message) for w in caught if 'unstable' in str(w.message)]
    slow, fast = 2*1.9/(.01*50), 2*1.9/(.1*max(f.max().item() for n, f in imp.diag.items() if not n.startswith('out')))
    assert slow < fast and not told(.99*slow)
    assert f'learning rate 0.01 and momentum 0.9, the largest safe lam is {slow:.3g}' in told(1.01*slow)[0]
    assert len(told(.5*slow, lr=(.1, .1, .1))) == 1 and not told(1.01*slow, opt_func=Adam) and not told(1.01*slow, opt_func=ranger)
    assert not told(.05*slow, lr=.1, fit='one_cycle') and told(.3*slow, lr=.1, fit='one_cycle')  # .05*.1*50 is safe at the top of the cycle, .3*.1*50 is not


@pytest.mark.parametrize('make', [lambda imp: EWC(2., imp), lambda imp: EWC(2., imp, implicit=True), lambda imp: L2SP(.3, decoupled=True), lambda imp: L2SP(.3)], ids=['ewc', 'implicit', 'decoupled', 'l2sp'])
def test_any_optimizer_of_torch_will_do(make):
    "Wrapped by fastai: SGD of torch ends where fastai's does"
    ends = []
    for opt in (partial(SGD, mom=.9), TORCH):
        net = model()
        learner(make(importance_of(net)), net=net, opt_func=opt, wd=0.).fit(2)
        ends.append(state(net))
    for a, b in zip(*(e.values() for e in ends)): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    learner(make(importance_of(model())), opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), wd=0.).fit(1)
    learner(make(importance_of(model())), opt_func=ranger, wd=0.).fit(1)


def test_implicit_step_of_adam_and_l2sp_decoupled():
    net = model()
    hand, imp = copy.deepcopy(net), importance_of(net)
    learner(EWC(2., imp, implicit=True), net=net, opt_func=partial(Adam, wd=0., eps=1e-8), lr=.01).fit(1)
    opt = torch.optim.Adam(hand.parameters(), lr=.01, betas=(.9, .99))
    hand2 = copy.deepcopy(hand)
    def loop(net, opt, pull):
        net.train()
        for x, y in data().train:
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
            with torch.no_grad():
                for n, p in net[0].named_parameters(): p.copy_(pull(n, p))
    def prox(n, p):
        c = .01*2*imp.diag[n]
        return (p + c*imp.anchor[n])/(1 + c)
    loop(hand, opt, prox)
    for (n, a), b in zip(net.named_parameters(), hand.parameters()):
        if n != '0.conv.bias': torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)  # batch norm takes that one out: Adam scales up the rounding of its zero gradient
    net = model()
    learn = learner(L2SP(.3, decoupled=True, which='all'), net=net)
    learn.fit(1)
    loop(hand2, torch.optim.SGD(hand2.parameters(), lr=.1, momentum=.9), lambda n, p: p - .1*.3*(p - imp.anchor[n]))
    for a, b in zip(net.parameters(), hand2.parameters()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert learn.recorder.values[0][-1] > 0  # the distance is reported though it is not differentiated


def test_direct_steps_leave_micro_batches_and_skipped_steps_alone():
    from fastai.callback.core import CancelStepException
    imp = importance_of(model())
    runs = []
    for bs, cbs in ((24, []), (8, [GradientAccumulation(24)])):
        net = model()
        net[0].bn = nn.GroupNorm(2, 4)
        learner([EWC(2., importance_of(net), implicit=True), *cbs], net=net, dls=data(bs=bs)).fit(2)
        runs.append(state(net))
    for a, b in zip(runs[0].values(), runs[1].values()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    class Overflow(Callback):
        order = 10
        def before_step(self): raise CancelStepException
    net = model()
    with torch.no_grad(): net[0].conv.weight.add_(1)
    before = [p.detach().clone() for p in net.parameters()]
    learner([EWC(2., imp, implicit=True), Overflow()], net=net).fit(1)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_l2sp_head_term():
    net = model()
    hand = copy.deepcopy(net)
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    learn = learner(L2SP(.3, head=.2), net=net)
    learn.fit(2)
    opt = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9)
    for _ in range(2):
        hand.train()
        for x, y in data().train:
            opt.zero_grad()
            (F.cross_entropy(hand(x), y) + .15*sum(((p - start[n])**2).sum() for n, p in hand[0].named_parameters() if p.ndim > 1) + .1*(hand[1].weight**2).sum()).backward()
            opt.step()
    for a, b in zip(net.parameters(), hand.parameters()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='head'): L2SP(1., head=-1)


def test_what_cannot_be_right_is_told():
    net = model()
    imp = importance_of(net)
    with pytest.raises(InputError, match=r'EWC needs the importance of each weight, from fisher_information\(source_model, source_batches\), not NoneType'): EWC(1., None)
    with pytest.raises(InputError, match='MAS needs'): MAS(1., 'x')
    for p in net[0].parameters(): p.requires_grad_(False)
    with pytest.warns(UserWarning, match='MAS has no effect, as all parameters of the encoder are frozen: unfreeze some'): learner(MAS(1., imp), net=net).fit(1)
    other = {n:p + 1 for n, p in imp.anchor.items()}
    with pytest.warns(UserWarning, match='hold the same parameters to different places'): learner([EWC(1., imp), L2SP(1., anchor=dict(model()[0].state_dict()) | other)]).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner([EWC(.1, importance_of(model())), L2SP(.1)]).fit(1)  # the same place: nothing to tell
    with pytest.warns(UserWarning, match='set wd=0'): learner(MAS(1., imp), opt_func=Adam).fit(1)
    learn = learner(L2SP(.1, head=0.), splitter=encoder_head_split)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1, wd=[0., .01])  # of the head alone, as in the original
        learner([EWC(.1, importance_of(model()))], opt_func=partial(SGD, mom=.9), lr=.01).fit(1)
    with pytest.warns(UserWarning, match='weight decay 0.01 pulls it to zero'): learner(L2SP(.1), splitter=encoder_head_split).fit(1, wd=[.01, 0.])


def test_importance_without_samples_or_without_a_head_is_told(linear):
    net, x, y = linear
    for take in (fisher_information, empirical_fisher, mas_importance):
        with pytest.raises(InputError, match='samples of the source task, or of the target: pass a loader of them, not None'): take(net, None)
    maps = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Conv1d(4, 3, 1))
    for labels in ('exact', 'sample', 'empirical'):
        with pytest.raises(InputError, match=r'a model with a head, which returns logits \(B, classes\), not \(16, 3, 3\).*probe_head.*pretext'): fisher_information(maps, [(x[:, None], y)], labels=labels)
    with pytest.raises(InputError, match='not tuple'): fisher_information(Both(net), [(x, y)], encoder='net')


class Both(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x), x
