"Penalties on the distance of weights, against loops written out by hand, and when they are stable."
import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from fastai.callback.core import Callback
from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from helpers import data, learner, model, state
from strategy_helpers import penalty_by_hand
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import encoder_head_split
from sdfast.strategies import EWC, L2SP, MAS, SI, Importance, empirical_fisher


def fisher_of(net, n=None):
    torch.manual_seed(7)
    head = nn.Linear(6, 3)
    return empirical_fisher(nn.Sequential(net[0], head), data(seed=5).valid, n)


@pytest.mark.parametrize('which', ['weights', 'all'])
def test_l2sp_equals_a_hand_written_loop(which):
    net = model()
    start = [p.detach().clone() for p in net[0].parameters()]
    def penalty(e, x, f):
        return .5*sum(((p - s)**2).sum() for p, s in zip(e.parameters(), start) if which == 'all' or p.ndim > 1)
    want = penalty_by_hand(copy.deepcopy(net), penalty, .3, 3)
    learn = learner(L2SP(.3, which=which), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_ewc_equals_a_hand_written_loop():
    net = model()
    fisher = fisher_of(net)
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    def penalty(e, x, f): return .5*sum((fisher.diag[n]*(p - start[n])**2).sum() for n, p in e.named_parameters())
    want = penalty_by_hand(copy.deepcopy(net), penalty, 3., 3)
    learn = learner(EWC(3., fisher), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weight_decay_warns():
    with pytest.warns(UserWarning, match='set wd=0'): learner(L2SP(1.), opt_func=Adam).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner(L2SP(1.), opt_func=partial(Adam, wd=0.)).fit(1)


def importance_of(net, seed=3):
    g = torch.Generator().manual_seed(seed)
    return Importance({n:torch.rand(p.shape, generator=g) for n, p in net[0].named_parameters()},
                      {n:p.detach().clone() for n, p in net[0].named_parameters()}, 1)


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
            penalty = sum((imp.diag[n]*(p - imp.anchor[n])**2).sum() for n, p in hand[0].named_parameters())
            (F.cross_entropy(hand(x), y) + 2/2*penalty).backward()
            opt.step()
    for a, b in zip(state(net).values(), state(hand).values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('make', [lambda imp: EWC(.7, imp), lambda imp: L2SP(.7, which='all')], ids=['ewc', 'l2sp'])
def test_the_term_and_its_gradient_equal_those_of_a_graph_over_all_weights(make):
    """Value, gradient and, as Telemetry does, its gradient again; a frozen weight gets none, one in half precision its
    own type"""
    net, learn = model(), learner(make(imp := importance_of(model())))
    cb = next(c for c in learn.cbs if isinstance(c, (EWC, L2SP)))
    net[0].out.weight.data = net[0].out.weight.data.bfloat16()
    net[0].bn.bias.requires_grad_(False)
    with torch.no_grad():
        for p in net[0].parameters(): p.add_(.1*torch.randn_like(p))
    cb.learn.model, cb.learn.loss_grad, cb.anchors = net, torch.zeros(()), imp.anchor
    weights = {n:p for n, p in net[0].named_parameters() if p.requires_grad}
    scale = {n:1 if cb.scale is None else cb.scale[n] for n in weights}
    want = sum(((p.float() - imp.anchor[n])**2*scale[n]).sum() for n, p in weights.items())/2
    got = cb.lam*cb.term()
    torch.testing.assert_close(got, .7*want, rtol=1e-6, atol=0)
    wants = torch.autograd.grad(.7*want, list(weights.values()))
    for _ in range(2):
        for a, b in zip(torch.autograd.grad(got, list(weights.values()), retain_graph=True), wants):
            torch.testing.assert_close(a, b, rtol=1e-6 if b.dtype == torch.float32 else 1e-2, atol=1e-9)


class Slope(Callback):
    "In place of data: a loss with gradient `g` on one weight"
    order = 1
    def __init__(self, g): self.g = g
    def after_loss(self): self.learn.loss_grad = (self.learn.model[0].weight*self.g).sum()


def one_weight(): return nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 3))


def vectors(n=16):
    from fastai.data.core import DataLoaders, Datasets, TfmdDL
    from fastai.data.transforms import ItemGetter
    sets = Datasets([(torch.ones(1), torch.tensor(0))]*n, tfms=[[ItemGetter(0)], [ItemGetter(1)]],
                    splits=[range(n), range(2)])
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
        cbs = [EWC(.5, imp, implicit=implicit), Slope(3.)]
        learner(cbs, net=net, dls=vectors(), lr=.05, opt_func=opt, wd=0.).fit(30)
        rest[implicit] = net[0].weight.item()
    assert rest[False] == pytest.approx(1 - 3/(.5*4), abs=1e-3) and rest[True] == pytest.approx(1 - 3/(.5*4), abs=1e-3)


@pytest.mark.parametrize('opt,mom', [(partial(SGD, mom=.9), .9), (partial(SGD, mom=0.), 0.), (TORCH, .9)])
def test_the_bound_of_stability_and_the_way_around_it(opt, mom):
    """Heavy ball diverges just above lr*lam*F = 2(1 + m), not just below; the implicit step at 10 times the bound does
    not"""
    imp = Importance({'weight': torch.tensor([[4.]])}, {'weight': torch.tensor([[1.]])}, 1)
    limit = 2*(1 + mom)/(.05*4)
    def end(lam, implicit=False):
        torch.manual_seed(0)
        net = one_weight()
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter('always')
            cbs = [EWC(lam, imp, implicit=implicit), Slope(0.)]
            learner(cbs, net=net, dls=vectors(), lr=.05, opt_func=opt, wd=0.).fit(20)
        return abs(net[0].weight.item() - 1), [str(w.message) for w in messages if 'unstable' in str(w.message)]
    far, messages = end(.97*limit)
    assert far < 1 and not messages
    far, messages = end(1.05*limit)
    assert not far < 1e3 and len(messages) == 1 and f'the largest safe lam is {limit:.3g}' in messages[0]
    far, messages = end(10*limit, implicit=True)
    assert far < 1e-3 and not messages


def test_the_bound_is_of_the_group_that_learns_fastest():
    """The largest importance counts with the learning rate of its own group, in the batch in which a schedule gets
    there; not for Adam, whose steps have another bound"""
    net, imp = model(), importance_of(model())
    imp.diag['out.bias'][0] = 50.
    def split(net):
        return [list(net[0].conv.parameters()) + list(net[0].bn.parameters()), list(net[0].out.parameters()),
                list(net[1].parameters())]
    def messages(lam, lr=(.1, .01, .1), fit='fit', **kw):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            learn = learner(EWC(lam, imp), net=copy.deepcopy(net), splitter=split, **kw)
            getattr(learn, fit)(1, lr=list(lr)) if fit == 'fit' else learn.fit_one_cycle(1, lr)
        return [str(w.message) for w in caught if 'unstable' in str(w.message)]
    slow, fast = 2*1.9/(.01*50), 2*1.9/(.1*max(f.max().item() for n, f in imp.diag.items() if not n.startswith('out')))
    assert slow < fast and not messages(.99*slow)
    assert f'learning rate 0.01 and momentum 0.9, the largest safe lam is {slow:.3g}' in messages(1.01*slow)[0]
    assert len(messages(.5*slow, lr=(.1, .1, .1))) == 1
    assert not messages(1.01*slow, opt_func=Adam)
    assert not messages(1.01*slow, opt_func=ranger)
    # .05*.1*50 is safe at the top of the cycle, .3*.1*50 is not
    assert not messages(.05*slow, lr=.1, fit='one_cycle') and messages(.3*slow, lr=.1, fit='one_cycle')


ANCHORS = dict(
    ewc=lambda imp: EWC(2., imp),
    implicit=lambda imp: EWC(2., imp, implicit=True),
    decoupled=lambda imp: L2SP(.3, decoupled=True),
    l2sp=lambda imp: L2SP(.3),
)


@pytest.mark.parametrize('make', ANCHORS.values(), ids=ANCHORS)
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
        # batch norm takes that one out: Adam scales up the rounding of its zero gradient
        if n != '0.conv.bias': torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
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
            moved = sum(((p - start[n])**2).sum() for n, p in hand[0].named_parameters() if p.ndim > 1)
            (F.cross_entropy(hand(x), y) + .15*moved + .1*(hand[1].weight**2).sum()).backward()
            opt.step()
    for a, b in zip(net.parameters(), hand.parameters()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='head'): L2SP(1., head=-1)


def test_what_cannot_be_right_raises_or_warns():
    net = model()
    imp = importance_of(net)
    wanted = r'EWC needs the importance of each weight, from fisher_information\(source_model, source_batches\)'
    with pytest.raises(InputError, match=f'{wanted}, not NoneType'): EWC(1., None)
    with pytest.raises(InputError, match='MAS needs'): MAS(1., 'x')
    for p in net[0].parameters(): p.requires_grad_(False)
    frozen = 'MAS has no effect, as all parameters of the encoder are frozen: unfreeze some'
    with pytest.warns(UserWarning, match=frozen): learner(MAS(1., imp), net=net).fit(1)
    other = {n:p + 1 for n, p in imp.anchor.items()}
    with pytest.warns(UserWarning, match='pull the same parameters to different anchors'):
        learner([EWC(1., imp), L2SP(1., anchor=dict(model()[0].state_dict()) | other)]).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner([EWC(.1, importance_of(model())), L2SP(.1)]).fit(1)  # the same place: nothing to tell
    with pytest.warns(UserWarning, match='set wd=0'): learner(MAS(1., imp), opt_func=Adam).fit(1)
    learn = learner(L2SP(.1, head=0.), splitter=encoder_head_split)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1, wd=[0., .01])  # of the head alone, as in the original
        learner([EWC(.1, importance_of(model()))], opt_func=partial(SGD, mom=.9), lr=.01).fit(1)
    with pytest.warns(UserWarning, match='weight decay 0.01 pulls it to zero'):
        learner(L2SP(.1), splitter=encoder_head_split).fit(1, wd=[.01, 0.])
