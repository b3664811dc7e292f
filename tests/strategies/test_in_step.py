"Selective projection decay, against loops in plain PyTorch with its formula, in any optimizer and loop."
import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientClip
from fastai.optimizer import SGD, Adam, Lookahead, OptimWrapper
from helpers import data, same, state
from helpers import learner as learner_of
from helpers import model as batch_norm_model
from strategy_helpers import assert_close_nets, needs_peft
from torch import nn
from trainers import lightning, lightning_module, lightning_trainer, loader, sgd

from sdfast.errors import InputError
from sdfast.strategies import SPD, EMATeacher, EncoderLR, LoRA


def learner(cbs, net=None, **kwargs): return learner_of(cbs, net=net or model(), **kwargs)


def project(tensors, lam):
    "The formula, one tensor at a time: each is (weights, gradient, weights before the step, anchor)"
    for p, g, before, start in tensors:
        if g is None or not float((g*(before - start)).sum()) > 0: continue
        was, now = float((before - start).norm()), float((p - start).norm())
        ratio = min(1., max(0., (now - was)/now))
        p.copy_(p - lam*ratio*(p - start))


def by_hand(net, opt, lam, batches, change=lambda net: None):
    "Cross-entropy, and the formula on the encoder after each step of `opt`; `change` is of the gradients"
    start = {p:p.detach().clone() for p in net[0].parameters()}
    net.train()
    for x, y in batches:
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        change(net)
        before = {p:p.detach().clone() for p in start}
        grads = {p:None if p.grad is None else p.grad.clone() for p in start}
        opt.step()
        with torch.no_grad(): project([(p, grads[p], before[p], start[p]) for p in start], lam)
    return net


def batches(epochs=4): return [b for _ in range(epochs) for b in data().train]


def model():
    "Without batch norm, before which the gradient of a bias is rounding, and so is its sign"
    net = batch_norm_model()
    net[0].bn = nn.GroupNorm(2, 4)
    return net


def differ(a, b): return not torch.allclose(a[0].out.weight, b[0].out.weight, atol=1e-4)


class Slow:
    "torch's SGD, and every third step the mean of the weights and those before it, as `Lookahead` takes"
    def __init__(self, net):
        self.opt, self.count = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9), 0
        self.slow, self.params = [p.detach().clone() for p in net.parameters()], list(net.parameters())
        self.zero_grad = self.opt.zero_grad

    @torch.no_grad()
    def step(self):
        self.opt.step()
        self.count += 1
        if self.count % 3: return
        for p, s in zip(self.params, self.slow): p.copy_(s.add_((p - s)/2))


# optimizer of fastai, the same by PyTorch, and the learning rate
OPTIMIZERS = dict(
    sgd=(partial(SGD, mom=.9), lambda net: torch.optim.SGD(net.parameters(), lr=.1, momentum=.9), .1),
    adam=(partial(Adam, wd=0.), lambda net: torch.optim.Adam(net.parameters(), lr=.03, eps=1e-5, betas=(.9, .99)), .03),
    decoupled=(partial(Adam, wd=.1), lambda net: torch.optim.AdamW(
        net.parameters(), lr=.03, weight_decay=.1, eps=1e-5, betas=(.9, .99)), .03),
    torch=(partial(OptimWrapper, opt=partial(torch.optim.RMSprop)),
           lambda net: torch.optim.RMSprop(net.parameters(), lr=.01), .01),
    lookahead=(lambda params, **kw: Lookahead(SGD(params, mom=.9, **kw), k=3), Slow, .1))


@pytest.mark.filterwarnings('ignore:SPD')
@pytest.mark.parametrize('opt', OPTIMIZERS)
@pytest.mark.parametrize('lam', [1., 3.])
def test_spd_is_its_formula_with_any_optimizer(opt, lam):
    ours, torchs, lr = OPTIMIZERS[opt]
    start = model()
    hand, plain = copy.deepcopy(start), copy.deepcopy(start)
    want = by_hand(hand, torchs(hand), lam, batches())
    learn = learner(SPD(lam), net=copy.deepcopy(start), opt_func=ours, lr=lr, wd_bn_bias=True)
    learn.fit(4)
    assert_close_nets(learn.model, want, rtol=1e-3, atol=3e-5)
    assert differ(want, by_hand(plain, torchs(plain), 0., batches()))
    assert '_step' not in vars(learn)
    if opt == 'lookahead': return  # is fastai's
    net = copy.deepcopy(start)
    optimizer = torchs(net)
    with SPD(lam).attach(net, optimizer) as spd:
        spd.start_epoch()
        by_hand(net, optimizer, 0., batches())
    assert_close_nets(net, want)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_spd_with_lam_1_keeps_the_distance_where_the_gradient_points_back():
    w, away = nn.Parameter(torch.tensor([3., 0.])), []
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Identity())
    opt = torch.optim.SGD(net.parameters(), lr=1., momentum=.9)
    net[0].weight = w
    opt.param_groups[0]['params'] = [w]
    opt.state[w]['momentum_buffer'] = torch.tensor([-4., 0.])  # it still moves away
    with SPD(1., encoder='0', anchor=dict(weight=torch.zeros(2))).attach(net, opt) as spd:
        spd.start_epoch()
        w.grad = torch.tensor([1., 0.])
        opt.step()
        away.append(w.norm().item())
        w.grad = torch.tensor([-1., 0.])  # points away, so the weight is free
        opt.step()
    assert away == [pytest.approx(3.)] and w.norm() > 6


class Flip(Callback):
    "Changes every other gradient just before the step, after all other callbacks"
    order, run_valid = 95, False
    def before_fit(self): self.turn = Alternate()
    def before_step(self): self.turn(self.learn.model)


class Alternate:
    "Turns every other gradient round"
    def __init__(self): self.count = 0
    def __call__(self, net):
        self.count += 1
        if self.count % 2: return
        for p in net.parameters(): p.grad.neg_()


def test_spd_sees_the_gradients_that_the_optimizer_sees():
    hand = model()
    want = by_hand(hand, torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9), 1., batches(), Alternate())
    learn = learner([SPD(1.), Flip()])
    learn.fit(4)
    assert_close_nets(learn.model, want, rtol=1e-4, atol=1e-5)


def test_clipping_is_part_of_the_step():
    hand = model()
    def clip(net): nn.utils.clip_grad_norm_(net.parameters(), .5)
    want = by_hand(hand, torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9), 1., batches(), clip)
    learn = learner([SPD(1.), GradientClip(.5)])
    learn.fit(4)
    assert_close_nets(learn.model, want, rtol=1e-4, atol=1e-5)


def test_clipping_by_value_in_lightning_is_part_of_the_step():
    "Lightning clips within the optimizer's closure, after its event before the step"
    lightning()  # or skip
    from sdfast.lightning import StrategyCallback
    trainer = lightning_trainer(StrategyCallback(SPD(1.)), gradient_clip_val=.02, gradient_clip_algorithm='value')
    net, hand = model(), model()
    trainer.fit(lightning_module(net), loader())
    def clip(n): nn.utils.clip_grad_value_(n.parameters(), .02)
    by_hand(hand, sgd(hand), 1., [b for _ in range(2) for b in loader()], clip)
    assert_close_nets(net, hand)


@pytest.mark.parametrize('by_keyword', [True, False])
def test_a_closure_computes_the_gradients_first(by_keyword):
    hand, net = model(), model()
    want = by_hand(hand, torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9), 1., batches())
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    with SPD(1.).attach(net, opt) as spd:
        spd.start_epoch()
        for x, y in batches():
            def closure(x=x, y=y):
                opt.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                return loss
            out = opt.step(closure=closure) if by_keyword else opt.step(closure)
            assert out.item() > 0
    assert_close_nets(net, want)


def test_frozen_weights_and_weights_without_a_gradient_stay():
    hand, net = model(), model()
    for n in (hand, net):
        n[0].out.weight.requires_grad_(False)
        n[0].unused = nn.Parameter(torch.ones(3))
    want = by_hand(hand, torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9), 1., batches())
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    with SPD(1.).attach(net, opt) as spd:
        spd.start_epoch()
        by_hand(net, opt, 0., batches())
    assert_close_nets(net, want)
    assert torch.equal(net[0].out.weight, model()[0].out.weight)


def test_sparse_gradients_are_those_that_they_stand_for():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Sequential(nn.Embedding(7, 4), nn.Flatten()), nn.Linear(12, 3))
    sparse = copy.deepcopy(dense)
    sparse[0][0].sparse = True
    x, y = torch.randint(0, 7, (20, 8, 3)), torch.randint(0, 3, (20, 8))
    for net in (dense, sparse):
        opt = torch.optim.SGD(net.parameters(), lr=.5, momentum=.9)
        with SPD(1., encoder='0').attach(net, opt) as spd:
            spd.start_epoch()
            by_hand(net, opt, 0., zip(x, y))
    for a, b in zip(dense.parameters(), sparse.parameters()): torch.testing.assert_close(a, b)


def test_weights_in_half_precision_are_pulled_in_single():
    net = model().bfloat16()
    opt = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
    hand = copy.deepcopy(net)
    theirs = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9)
    start = [p.detach().clone() for p in hand[0].parameters()]
    with SPD(1.).attach(net, opt) as spd:
        spd.start_epoch()
        for i in range(20):
            g = torch.Generator().manual_seed(i)
            grads = [torch.randn(p.shape, generator=g) for p in net[0].parameters()]
            for n, o in ((net, opt), (hand, theirs)):
                for p, grad in zip(n[0].parameters(), grads): p.grad = grad.to(p.dtype)
                before = [p.detach().float().clone() for p in n[0].parameters()]
                o.step()
                if n is net: continue
                with torch.no_grad():
                    for p, b, a in zip(n[0].parameters(), before, start):
                        whole = p.float()
                        project([(whole, p.grad.float(), b, a.float())], 1.)
                        p.copy_(whole)
    for a, b in zip(net[0].parameters(), hand[0].parameters()): torch.testing.assert_close(a, b, rtol=8e-3, atol=1e-3)


def test_teachers_average_the_weights_that_spd_has_made():
    def teacher(order):
        spd, ema = SPD(3.), EMATeacher(0., decay=.5)
        learner([spd, ema] if order else [ema, spd]).fit(2)
        return ema.teacher
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert same(state(teacher(True)), state(teacher(False)))


def test_several_of_them_and_a_scaled_rate_leave_nothing_behind():
    def part(name): return SPD(1., encoder=lambda net: net[0].get_submodule(name))
    learn = learner([part('conv'), EncoderLR(1.), part('bn'), part('out')])
    learn.fit(2)
    assert '_step' not in vars(learn) and 'step' not in vars(learn.opt)
    whole = learner([SPD(1.), EncoderLR(1.)])
    whole.fit(2)
    assert_close_nets(learn.model, whole.model, rtol=1e-6, atol=1e-7)


@needs_peft
def test_spd_refuses_adapters():
    with pytest.raises(InputError, match='SPD pulls the weights of the encoder, which LoRA keeps'):
        learner([SPD(1.), LoRA(2)]).fit(1)


@pytest.mark.parametrize('lam', [-1, float('nan'), float('inf'), '1', None, True])
def test_a_strength_that_is_none_is_refused(lam):
    with pytest.raises(InputError, match='lam must be a number of at least 0'): SPD(lam)


def test_what_is_doubtful_is_said():
    with pytest.warns(UserWarning, match=r'SPD pulls the encoder to its starting point, but weight decay 0\.01'):
        learner(SPD(1.), opt_func=partial(SGD, mom=.9, wd=.01)).fit(1)
    with pytest.warns(UserWarning, match='SPD: lam 50 has moved weights past those from before training'):
        learner(SPD(50.)).fit(2)
    frozen = model()
    frozen[0].requires_grad_(False)
    with pytest.warns(UserWarning, match='SPD has no effect, as all parameters of the encoder are frozen'):
        learner(SPD(1.), net=frozen).fit(1)
    with pytest.raises(InputError, match=r'SPD acts on the optimizer: call attach\(model, optimizer\)'):
        SPD(1.).attach(model())
