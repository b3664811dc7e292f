"Each recipe against a hand-written loop or a closed form, and against interrupts, checkpoints and other callbacks."
import copy
import math
import random
import sys
import warnings
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import ParamScheduler, SchedLin, fit_one_cycle, lr_find  # noqa: F401  (patches Learner)
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import TfmdDL
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from helpers import data, learner, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import c3d, encoder_head_split, r2plus1d, tiny
from sdfast.models.surgery import reestimate_bn
from sdfast.models.weights import wise_ft
from sdfast.strategies import (
    L2SP,
    LPFT,
    FixedTeacher,
    FrozenBN,
    LayerDecay,
    LinearProbe,
    LoRA,
    LowerLR,
    Replay,
    SelfDistill,
    WiSEFT,
    layer_groups,
    wise_ft_sweep,
)

needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason="LoRA needs PEFT: pip install -e '.[peers]'")


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "Nets this small are slower on several, much so where they are shared"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def close(a, b, **kw):
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], **(dict(rtol=1e-5, atol=1e-6) | kw), msg=lambda m: f'{k}: {m}')


def source(n=20, bs=8, seed=5, **kw):
    "Loader of source images that shuffles"
    return data(n=n, bs=bs, seed=seed).train.new(shuffle=True, drop_last=False, **kw)


def source_head():
    torch.manual_seed(7)
    return nn.Linear(6, 3)


MAKE = dict(frozen_bn=FrozenBN, frozen_affine=lambda: FrozenBN(affine=True), linear_probe=LinearProbe, lp_ft=lambda: LPFT(1), layer_decay=lambda: LayerDecay(.5),
            lower_lr=lambda: LowerLR(3.), wise_ft=WiSEFT, replay=lambda: Replay(1., source(), source_head()),
            lora=pytest.param(lambda: LoRA(2, 2), marks=needs_peft))
every = pytest.mark.parametrize('make', [pytest.param(getattr(v, 'values', [v])[0], marks=getattr(v, 'marks', ()), id=k) for k, v in MAKE.items()])


def clean(learn):
    "Nothing of a callback is left in a learner"
    net, encoder = learn.model, learn.model[0]
    assert state(net).keys() == state(model()).keys() and not [k for k in vars(encoder) if 'peft' in k]
    assert all(p.requires_grad for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert all(m.momentum == .1 and m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert not len(learn.metrics) and 'step' not in vars(learn.opt)
    assert {id(p) for ps in learn.opt.param_lists for p in ps} == {id(p) for p in net.parameters()}


def all_moved(a, b): return not any(torch.equal(a[k], b[k]) for k in a if not k.endswith('conv.bias'))  # batch norm takes that bias off again


class Stop(Callback):
    order, run_valid = 20, False
    def __init__(self, error, epoch=0): self.error, self.at = error, epoch
    def after_loss(self):
        if self.iter == 2 and self.epoch == self.at: raise self.error


class CPUAutocast(MixedPrecision):
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)


# --- the contract of every recipe ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [LayerDecay, LowerLR, LPFT, WiSEFT, partial(Replay, dl=source(), head=source_head())],
                         ids=['layer_decay', 'lower_lr', 'lp_ft', 'wise_ft', 'replay'])
def test_the_end_of_the_scale_is_plain_fine_tuning_to_the_bit(make):
    none = make(1.) if make in (LayerDecay, WiSEFT) else make(0)
    plain, zero = (learner(cbs, net=model(dropout=.3)) for cbs in ([], [none]))
    for learn in (plain, zero):
        torch.manual_seed(3)  # of dropout
        learn.fit(3)
    assert same(state(plain.model), state(zero.model))
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in zero.recorder.values]


@every
def test_validate_get_preds_and_lr_find_change_nothing(make, tmp_path):
    def run(disturb):
        cb = make()
        learn = learner(cb, path=tmp_path)
        learn.create_opt()
        if disturb:
            start = state(learn.model)
            random_state, py = torch.get_rng_state(), random.getstate()
            learn.lr_find(num_it=8, show_plot=False)
            torch.set_rng_state(random_state), random.setstate(py)
            assert same(state(learn.model), start)
            clean(learn)
            assert len(learn.validate()) == 1
            learn.get_preds()
            clean(learn)
        torch.manual_seed(1), random.seed(1)
        if isinstance(cb, Replay): cb.source, cb._random = source(), None  # a trial reads and draws too
        learn.fit(2)
        if disturb:
            start = state(learn.model)
            assert len(learn.validate()) == 1 and learn.get_preds()[0].shape == (16, 3) and same(state(learn.model), start)
        torch.manual_seed(2)
        learn.fit(1)
        clean(learn)
        return state(learn.model)
    assert same(run(False), run(True))


@every
@pytest.mark.parametrize('attached', [True, False])
def test_interrupts_leave_nothing_behind(make, attached, tmp_path):
    for error in (KeyboardInterrupt(), CancelFitException()):
        cb = make()
        learn = learner(cb if attached else (), path=tmp_path)
        try: learn.fit(2, cbs=[Stop(error)] if attached else [cb, Stop(error)])
        except KeyboardInterrupt: pass
        if attached: learn.fit(2)
        clean(learn)
        learn.remove_cb(cb)
        learn.fit(1, reset_opt=True)
        clean(learn)
        before = state(learn.model)
        learn.fit(1)
        assert all_moved(before, state(learn.model))  # all of it trains again, statistics too


@pytest.mark.parametrize('make', [LinearProbe, pytest.param(lambda: LoRA(2), marks=needs_peft)])
def test_an_optimizer_made_while_the_encoder_was_frozen_is_completed(make):
    learn = learner(make())
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(KeyboardInterrupt()))
    learn.fit(1, lr=.05, wd=.2, reset_opt=True)
    clean(learn)
    assert learn.opt.hypers[0]['lr'] == .05 and learn.opt.hypers[0]['wd'] == .2


@every
def test_export_and_save_carry_nothing_extra(make, tmp_path):
    plain, learn = learner(path=tmp_path), learner(make(), path=tmp_path)
    plain.fit(2), learn.fit(2)
    plain.export('plain.pkl'), learn.export('x.pkl')
    assert (tmp_path/'x.pkl').stat().st_size < (tmp_path/'plain.pkl').stat().st_size + 1500
    loaded = load_learner(tmp_path/'x.pkl')
    assert same(state(loaded.model), state(learn.model))
    loaded.dls, loaded.logger = data(), lambda *a: None
    if isinstance(learn.cbs[-1], (WiSEFT, Replay)):
        with pytest.raises(ValueError, match='does not carry'): loaded.fit(1)
    else:
        loaded.fit(2)
        clean(loaded)
    learn.save('m', with_opt=False)
    assert torch.load(tmp_path/'models/m.pth').keys() == model().state_dict().keys()


@every
def test_composes_with_penalties_mixed_precision_and_accumulation(make):
    def run(*cbs):
        learn = learner([make(), *cbs], opt_func=partial(SGD, mom=.9, wd=0.))
        before = state(learn.model)
        learn.fit(2)
        clean(learn)
        assert all(v.isfinite().all() for v in state(learn.model).values())
        return before, state(learn.model)
    run(FixedTeacher(1.), L2SP(.1)), run(GradientAccumulation(24))
    (before, full), (_, low) = run(), run(CPUAutocast('bf16'))
    # what bfloat16 rounds is little beside what training moves, and what stands still does so to the bit
    weights = [k for k in full if 'bn.' not in k and k != '0.conv.bias']  # batch norm takes that bias off again
    assert [k for k in weights if torch.equal(full[k], before[k])] == [k for k in weights if torch.equal(low[k], before[k])]
    apart, moved = ((sum((a[k] - b[k]).square().sum() for k in weights))**.5 for a, b in ((low, full), (full, before)))
    assert 0 < apart < .1*moved


@every
def test_batch_norm_of_a_recipe(make):
    "With lr 0 nothing learns: statistics move as in plain fine-tuning, or not at all where a recipe says so; nothing else has moved them"
    cb = make()
    ours, plain = learner(cb, lr=0.), learner(lr=0.)
    ours.fit(2), plain.fit(1 if isinstance(cb, LPFT) else 2)  # it probes in the first
    still = isinstance(cb, (FrozenBN, LinearProbe, LoRA)) and not isinstance(cb, LPFT)
    want = reestimate_bn(model(), data().train) if isinstance(cb, WiSEFT) else model() if still else plain.model
    assert same(state(ours.model), state(want)) and not same(state(model()), state(plain.model))


@pytest.mark.parametrize('make', [lambda: LayerDecay(.5), lambda: LowerLR(2.), lambda: LPFT(1), lambda: Replay(1., data(seed=5).valid, source_head()), FrozenBN,
                                  LinearProbe, WiSEFT, pytest.param(lambda: LoRA(2, 2), marks=needs_peft)],
                         ids=['layer_decay', 'lower_lr', 'lp_ft', 'replay', 'frozen_bn', 'linear_probe', 'wise_ft', 'lora'])
def test_accumulation_equals_one_big_batch(make):
    net = model()
    # batch norm itself depends on the micro-batch, unless it is frozen
    if make not in (FrozenBN, LinearProbe): net[0].bn = nn.GroupNorm(2, 4)
    def run(bs, cbs):
        cb = make()
        if isinstance(cb, Replay): cb.source = data(n=16, bs=16, seed=5).train
        learn = learner([cb, *cbs], dls=data(bs=bs), net=copy.deepcopy(net))
        learn.fit(2)
        return state(learn.model)
    close(run(24, []), run(8, [GradientAccumulation(24)]), rtol=1e-4)


# --- freezing -----------------------------------------------------------------------------------------------------------

def by_hand(net, epochs, opt, term=lambda x, y: 0, mode=lambda net, e: None, dls=None):
    "Plain PyTorch with CE"
    dls = dls or data()
    for e in range(epochs):
        net.train()
        mode(net, e)
        for x, y in dls.train:
            loss = F.cross_entropy(net(x), y) + term(x, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return state(net)


def sgd(net, lr=.1): return torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)


@pytest.mark.parametrize('affine', [False, True])
def test_frozen_bn_equals_a_hand_written_loop(affine):
    net = model()
    net[0].bn.running_mean.fill_(.3)
    hand = copy.deepcopy(net)
    for p in hand[0].bn.parameters(): p.requires_grad_(not affine)
    want = by_hand(hand, 2, sgd(hand), mode=lambda net, e: net[0].bn.eval())
    class Train(Callback):
        "Another callback switches modes in the middle of the epoch"
        order, run_valid = -7, False
        def before_batch(self): self.learn.model.train()
    learn = learner([FrozenBN(affine), Train()], net=copy.deepcopy(net))
    learn.fit(2)
    close(state(learn.model), want)
    assert same(state(learn.model[0].bn), state(net[0].bn)) == affine


def test_linear_probe_is_a_linear_model_on_fixed_features():
    net = model(dropout=.5)
    head = copy.deepcopy(net[1])
    learn = learner(LinearProbe(), net=net, opt_func=partial(SGD, mom=.9, wd=.1))
    for p in net.parameters(): p.grad = torch.zeros_like(p)  # as an earlier fit leaves them: momentum and decay would still act
    before = state(net[0])
    learn.fit(2)
    assert same(before, state(net[0]))
    net[0].eval()
    opt = torch.optim.SGD(head.parameters(), lr=.1, momentum=.9)
    for _ in range(2):
        for x, y in data().train:
            with torch.no_grad(): f = net[0](x)
            opt.zero_grad()
            F.cross_entropy(head(f), y).backward()
            head.weight.data.mul_(1 - .1*.1)  # fastai decays first, and no biases
            opt.step()
    close(state(head), state(net[1]))
    clean(learn)


def test_the_probe_after_a_fit_moves_nothing_either():
    for opt in (partial(SGD, mom=.9, wd=.1), Adam, partial(OptimWrapper, opt=partial(torch.optim.AdamW, weight_decay=.1))):
        learn = learner(opt_func=opt)
        learn.fit(1)
        before = state(learn.model)
        learn.fit(1, cbs=LinearProbe())
        after = state(learn.model)
        assert all(torch.equal(before[k], after[k]) == k.startswith('0.') for k in before)
        learn.fit(1)
        assert all_moved(after, state(learn.model))


def test_lpft_equals_a_hand_written_loop():
    net = model()
    hand = copy.deepcopy(net)
    def mode(net, e):
        net[0].requires_grad_(e >= 2)
        if e < 2: net[0].eval()
    want = by_hand(hand, 4, sgd(hand), mode=mode)
    seen = []
    class Spy(Callback):
        def before_train(self): seen.append([bool(self.opt.state[p]) for p in self.learn.model[0].parameters() if 'grad_avg' in self.opt.state[p]])
    learn = learner([LPFT(2), Spy()], net=net)
    learn.fit(4)
    close(state(net), want)
    assert [len(s) for s in seen] == [0, 0, 0, 6]  # no momentum from the probe


def test_lpft_that_starts_late():
    def run(epoch):
        learn = learner(LPFT(2))
        before = state(learn.model[0])
        learn.fit(3, start_epoch=epoch)
        return before, state(learn.model[0]), learn
    before, after, learn = run(2)
    assert all_moved(before, after)
    plain = learner()
    plain.fit(1)
    assert same(state(plain.model), state(learn.model))
    with pytest.warns(UserWarning, match='never trains the encoder'): learner(LPFT(2)).fit(2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner(LPFT(2)).fit(3)


# --- learning rates -----------------------------------------------------------------------------------------------------

def names(groups, net): return [[n for p in g for n, q in net.named_parameters() if q is p] for g in groups]


def test_layer_groups():
    net = model()
    assert names(layer_groups(net), net) == [['0.conv.weight', '0.conv.bias', '0.bn.weight', '0.bn.bias'], ['0.out.weight', '0.out.bias'], ['1.weight', '1.bias']]
    for make, n in ((tiny, 4), (c3d, 8), (r2plus1d, 5)):
        with torch.device('meta'): net = nn.Sequential(make(), nn.Linear(2, 2))
        groups = layer_groups(net)
        assert len(groups) == n + 1 and sum(map(len, groups)) == len(list(net.parameters()))
    class Tokens(nn.Module):
        def __init__(self): super().__init__(); self.pos, self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2), nn.Linear(2, 2); self.b.weight = self.a.weight
    net = nn.Sequential(nn.Sequential(Tokens()), nn.Linear(2, 2))
    assert [len(g) for g in layer_groups(net)] == [3, 1, 2]  # the encoder's own are the first layer's, tied weights count once
    assert [len(g) for g in layer_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))] == [2, 0]


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'torch'])
@pytest.mark.parametrize('splitter', [None, encoder_head_split, layer_groups])
def test_layer_decay_equals_parameter_groups_of_torch(opt, splitter):
    net = model()
    hand, lr, wd = copy.deepcopy(net), .02, .1
    e = hand[0]
    groups = [dict(params=[*e.conv.parameters(), *e.bn.parameters()], lr=lr/4), dict(params=e.out.parameters(), lr=lr/2), dict(params=hand[1].parameters(), lr=lr)]
    if opt == 'sgd': want, ours = torch.optim.SGD(groups, momentum=.9), partial(SGD, mom=.9)
    else: want = torch.optim.AdamW(groups, weight_decay=wd, eps=1e-5, betas=(.9, .99))
    if opt == 'adamw': ours = partial(Adam, wd=wd)
    if opt == 'torch': ours = partial(OptimWrapper, opt=partial(torch.optim.AdamW, weight_decay=wd, eps=1e-5, betas=(.9, .99)))
    learn = learner(LayerDecay(.5), net=net, opt_func=ours, lr=lr, wd_bn_bias=True, **(dict(splitter=splitter) if splitter else {}))
    n = len(encoder_head_split(net)) if splitter is encoder_head_split else 3 if splitter else 1
    learn.fit(3)
    got, want = ({k:v for k, v in s.items() if k != '0.conv.bias'} for s in (state(net), by_hand(hand, 3, want)))  # its gradient is 0 but for rounding
    close(got, want, rtol=1e-4, atol=1e-5)
    assert len(learn.opt.hypers) == n and {h['lr'] for h in learn.opt.hypers} == {lr}


@pytest.mark.parametrize('fit', ['one_cycle', 'slice', 'scheduler'])
@pytest.mark.parametrize('splitter', [None, encoder_head_split])
def test_schedules_are_scaled_and_never_compound(fit, splitter):
    def run(cb):
        seen = []
        class Spy(Callback):
            order, run_valid = 95, False
            def before_step(self): self.start = state(self.learn.model)
            def after_step(self):
                moved = {n:(p.detach() - self.start[n]).norm().item() for n, p in self.learn.model.named_parameters()}
                grads = {n:p.grad.norm().item() for n, p in self.learn.model.named_parameters()}
                seen.append((float(self.opt.hypers[-1]['lr']), float(self.opt.hypers[0]['lr']), {n:moved[n]/grads[n] for n in moved}))
        learn = learner([cb, Spy()], opt_func=SGD, **(dict(splitter=splitter) if splitter else {}))
        if fit == 'one_cycle': learn.fit_one_cycle(2, .1, moms=(0., 0., 0.))
        if fit == 'slice': learn.fit(2, slice(.01, .1))
        if fit == 'scheduler': learn.fit(2, cbs=ParamScheduler({'lr': SchedLin(.1, .01)}))
        return seen, learn
    seen, learn = run(LayerDecay(.5))
    for head, encoder, rates in seen:
        for n, d, lr in (('1.weight', 0, head), ('0.out.weight', 1, encoder), ('0.conv.weight', 2, encoder), ('0.bn.weight', 2, encoder)):
            assert rates[n] == pytest.approx(lr*.5**d, rel=1e-2)
    plain, _ = run(LayerDecay(1.))
    assert [s[:2] for s in plain] == [s[:2] for s in seen]  # schedule and recorder are the user's


def test_lower_lr_is_plain_at_that_rate_to_the_bit():
    for opt in (partial(SGD, mom=.9, wd=.1), Adam, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)):
        low, plain = learner(LowerLR(3.), lr=.1, opt_func=opt), learner(lr=.1/4, opt_func=opt)
        low.fit(2), plain.fit(2)
        assert same(state(low.model), state(plain.model)) and low.recorder.lrs[-1] == .1


def test_an_interrupt_inside_the_step_leaves_the_groups_whole():
    learn = learner(LayerDecay(.5), splitter=encoder_head_split)
    learn.create_opt()
    step = type(learn.opt).step
    def interrupted(self, *a):
        assert len(self.hypers) == 3
        raise KeyboardInterrupt
    type(learn.opt).step = interrupted
    try:
        with pytest.raises(KeyboardInterrupt): learn.fit(1)
    finally: type(learn.opt).step = step
    assert len(learn.opt.hypers) == len(learn.opt.param_lists) == 2
    learn.fit_one_cycle(1, .1)
    clean(learn)


def test_two_that_set_rates_are_refused():
    with pytest.raises(ValueError, match='keep one'): learner([LayerDecay(), LowerLR(1.)]).fit(1)


# --- averaging ----------------------------------------------------------------------------------------------------------

def test_wise_ft_is_the_line_between_two_states_and_pure():
    a, b = model(0)[0], model(1)[0]
    b.bn.num_batches_tracked.fill_(7)
    a.bn.num_batches_tracked.fill_(3)
    start, end, rng = state(a), state(b), torch.get_rng_state()
    assert same(wise_ft(b, a, 0), start) and same(wise_ft(b, start, 1), end)
    half = wise_ft(b, a, .3)
    assert half['bn.num_batches_tracked'] == 7
    close({k:v for k, v in half.items() if 'num' not in k}, {k:.7*start[k] + .3*end[k] for k in start if 'num' not in k})
    half['conv.weight'].zero_()
    assert same(state(b), end) and same(state(a), start) and torch.equal(rng, torch.get_rng_state())
    c = copy.deepcopy(a).half()
    assert same(wise_ft(c, state(c), .3), state(c))  # equal ends: exactly there


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
    assert [m.training for m in net.modules()] == modes and net[0].bn.momentum == .3 and torch.equal(rng, torch.get_rng_state())
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


def test_wise_ft_takes_its_start_once(tmp_path):
    cb = WiSEFT(0.)
    learn = learner(cb, path=tmp_path)
    start = state(learn.model[0])
    for fit in (lambda: learn.validate(), lambda: learn.lr_find(num_it=8, show_plot=False), lambda: learn.fit(1), lambda: learn.fit(3, start_epoch=1)):
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


# --- adapters -----------------------------------------------------------------------------------------------------------

class Video(nn.Module):
    "Factored, pointwise and grouped convolutions over time and space"
    def __init__(self):
        super().__init__()
        self.space, self.bn = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(4)
        self.time, self.point, self.odd = nn.Conv3d(4, 4, (3, 1, 1), (2, 1, 1), (1, 0, 0)), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, (1, 1, 3), padding=(0, 0, 1))
        self.grouped, self.out = nn.Conv3d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 6)

    def forward(self, x):
        x = self.odd(self.point(self.time(self.bn(self.space(x)).relu()).relu()))
        return self.out(self.grouped(x).relu().mean((2, 3, 4)))


def video_learner(cbs, **kw):
    torch.manual_seed(0)
    x, y = torch.randn(16, 1, 4, 6, 6), torch.randint(0, 3, (16,))
    from fastai.data.core import DataLoaders
    dl = lambda: TfmdDL(list(zip(x, y)), bs=8, num_workers=0)
    return learner(cbs, dls=DataLoaders(dl(), dl(), device='cpu'), net=nn.Sequential(Video(), nn.Linear(6, 3)), **kw), x


@needs_peft
@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.Adam)])
@pytest.mark.parametrize('splitter', [encoder_head_split, layer_groups])
def test_lora_merges_what_it_computed(opt, splitter):
    class Spy(Callback):
        order = 65  # while the adapters are in
        def after_epoch(self):
            if self.learn.lock.locked(): return
            self.learn.model.eval()
            with torch.no_grad(): seen.append(self.learn.model(x))
    seen, cb = [], LoRA(2, 8)
    learn, x = video_learner([cb, Spy()], opt_func=opt, splitter=splitter)
    before, adapted = state(learn.model), ['0.space.weight', '0.time.weight', '0.point.weight', '0.odd.weight', '0.out.weight']
    learn.fit(2)
    after = state(learn.model)
    learn.model.eval()
    with torch.no_grad(): torch.testing.assert_close(learn.model(x), seen[-1], rtol=1e-5, atol=1e-6)
    assert after.keys() == before.keys() and not hasattr(learn.model[0], 'peft_config')
    for k, v in after.items():
        assert torch.equal(v, before[k]) != (k.startswith('1.') or k in adapted), k
        if k in adapted: assert torch.linalg.matrix_rank((v - before[k]).flatten(1), rtol=1e-4) <= 2
    assert {id(p) for ps in learn.opt.param_lists for p in ps} == {id(p) for p in learn.model.parameters()}
    learn.fit(1)  # a second one begins anew
    assert not same(after, state(learn.model))


@needs_peft
def test_lora_equals_a_hand_written_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 6)), nn.Linear(6, 3))
    w, head = net[0][1].weight.detach().clone(), copy.deepcopy(net[1])
    first = {}
    class Spy(Callback):
        order = 71
        def before_train(self): first.update(a=cb.adapters()['1'][1].weight.detach().clone(), b=cb.adapters()['1'][2].weight.detach().clone())
    cb = LoRA(2, 6)
    learn = learner([cb, Spy()], net=net)
    learn.fit(1)
    a, b = nn.Parameter(first['a']), nn.Parameter(first['b'])
    assert a.shape == (2, 36) and not b.any()
    opt = torch.optim.SGD([a, b, *head.parameters()], lr=.1, momentum=.9)
    for x, y in data().train:
        loss = F.cross_entropy(head(F.linear(x.flatten(1), w + 3*(b @ a), net[0][1].bias.detach())), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    torch.testing.assert_close(net[0][1].weight, w + 3*(b @ a), rtol=1e-4, atol=1e-6)
    close(state(net[1]), state(head), rtol=1e-4)


@needs_peft
def test_fresh_adapters_change_no_feature_and_no_random_number():
    seen = []
    class Spy(Callback):
        order = 71
        def before_train(self):
            self.learn.model.eval()
            with torch.no_grad(): seen.append(self.learn.model[0](x))
            assert sum(p.requires_grad for p in self.learn.model[0].parameters()) == 10
            raise CancelFitException
    learn, x = video_learner([LoRA(2), Spy()])
    before = state(learn.model)
    with torch.no_grad(): want = learn.model.eval()[0](x)
    rng = torch.get_rng_state()
    learn.create_opt()
    learn('before_fit')
    assert torch.equal(rng, torch.get_rng_state())
    learn('after_fit')
    learn.fit(1)
    torch.testing.assert_close(seen[0], want, rtol=0, atol=1e-6)
    assert same(before, state(learn.model))


@needs_peft
def test_lora_interrupted_is_unloaded_with_or_without_what_it_learnt():
    for merge in (True, False):
        cb = LoRA(2)
        learn = learner(cb)
        before = state(learn.model)
        with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=Stop(KeyboardInterrupt(), epoch=1))
        assert any('lora' in k for k in learn.model.state_dict())
        cb.unload(merge)
        cb.unload()
        clean(learn)
        assert same(state(learn.model[0]), {k.removeprefix('0.'):v for k, v in before.items() if k.startswith('0.')}) != merge


@needs_peft
def test_lora_with_the_best_epoch_and_with_penalties(tmp_path):
    learn = learner([SaveModelCallback(fname='best'), LoRA(2), SelfDistill(1.)], path=tmp_path, splitter=encoder_head_split)
    learn.fit_one_cycle(2, .1)
    clean_keys = state(learn.model).keys()
    assert clean_keys == model().state_dict().keys()
    with pytest.raises(ValueError, match='wise_ft_sweep'): learner([LoRA(2), WiSEFT()]).fit(1)


@needs_peft
def test_lora_targets_and_what_it_cannot_adapt():
    def named(**kw):
        learn, _ = video_learner(cb := LoRA(2, **kw))
        return cb.layers()
    assert named() == ['space', 'time', 'point', 'odd', 'out'] and named(targets='out') == ['out'] and named(targets=['time', 'space']) == ['space', 'time']
    with pytest.raises(ValueError, match="no Conv3d, Conv2d or Linear 'nose'; it has space, time"): named(targets=['nose'])
    with pytest.raises(ValueError, match='cannot adapt grouped'): named(targets=['grouped'])
    with pytest.raises(ValueError, match='pass another encoder'): learner(LoRA(2, encoder=lambda m: m[1])).fit(1)
    class Bypass(nn.Module):
        def __init__(self): super().__init__(); self.flat, self.out = nn.Flatten(), nn.Linear(36, 6)
        def forward(self, x): return F.linear(self.flat(x), self.out.weight)
    with pytest.warns(UserWarning, match='without their adapters'): learner(LoRA(2), net=nn.Sequential(Bypass(), nn.Linear(6, 3))).fit(1)


def test_lora_without_peft_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match='pip install peft'): LoRA()


# --- source data --------------------------------------------------------------------------------------------------------

def test_replay_equals_a_hand_written_loop():
    net, head, batches = model(), source_head().requires_grad_(False), list(data(n=20, bs=8, seed=5).valid)
    hand = copy.deepcopy(net)
    step = iter(batches*10)
    def term(x, y):
        x, y = next(step)
        e = hand[0]
        h = F.batch_norm(e.conv(x), None, None, e.bn.weight, e.bn.bias, True)  # the statistics of this batch, and no buffer moved
        return .7*F.cross_entropy(head(e.out(h.relu().flatten(1))), y)
    want = by_hand(hand, 3, sgd(hand), term)  # 6 target batches an epoch, 2 source batches: cycles
    weight = head.weight.detach().clone()
    learn = learner(Replay(.7, batches, head), net=net)
    learn.fit(3)
    close(state(net), want)
    assert torch.equal(head.weight, weight) and learn.recorder.metric_names[-2] == 'replay'


def test_replay_is_unseen_by_other_penalties_and_draws_nothing():
    def run(cbs):
        learn = learner(cbs, net=model(dropout=.3))
        learn.create_opt()
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        learn.fit(2)
        columns = [dict(zip(learn.recorder.metric_names[1:], v)) for v in learn.recorder.values]
        return state(learn.model), [c.get('self_distill') for c in columns], torch.rand(1), np.random.rand(), random.random()
    def noise(x): return x + torch.randn_like(x)*random.random()*np.random.rand()
    class Noisy:
        def __iter__(self): return ((noise(x), y) for x, y in source())
    cb = Replay(0., Noisy(), source_head())
    plain, alone = run([]), run([cb])
    assert same(plain[0], alone[0]) and plain[1:] == alone[1:]
    a, b = run([SelfDistill(2.)]), run([Replay(0., Noisy(), source_head()), SelfDistill(2.)])
    assert same(a[0], b[0]) and a[1:] == b[1:] and a[1][-1] > 0
    calls = []
    learn = learner([Replay(1., source(), source_head())])
    learn.model[0].register_forward_hook(lambda *a: calls.append(1))
    learn.fit(1)
    assert len(calls) == 6 + 2


def test_replay_draws_anew_for_each_batch():
    "Nor is the state outside what it draws from: that need not move between batches"
    seen = []
    class Noise:
        def __iter__(self):
            for _ in range(3):
                seen.append((torch.rand(1).item(), np.random.rand(), random.random()))
                yield torch.randn(4, 1, 6, 6), torch.zeros(4).long()
    learn = learner(Replay(1., Noise(), source_head()))
    learn.fit(2)
    assert len(seen) == 12 and all(len(set(s)) == 12 for s in zip(*seen))


def test_replay_needs_batches():
    with pytest.raises(InputError, match='no batches'): learner(Replay(1., [], source_head())).fit(1)
    with pytest.raises(InputError, match='repeatedly'): learner(Replay(1., iter(list(data(n=16).train)), source_head())).fit(1)


# --- nonsense -----------------------------------------------------------------------------------------------------------

def test_nonsense_is_refused():
    for call, word in [(lambda: LPFT(-1), 'whole number'), (lambda: LPFT(1.5), 'whole number'), (lambda: LayerDecay(0), 'LinearProbe'), (lambda: LayerDecay(1.1), 'at most 1'),
                       (lambda: LowerLR(-1), 'at least 0'), (lambda: LowerLR(math.nan), 'at least 0'), (lambda: WiSEFT(1.1), 'between 0'), (lambda: WiSEFT(math.nan), 'between 0'),
                       (lambda: wise_ft(model()[0], None, .5), 'pass a state dict'), (lambda: wise_ft(model()[0], {}, 2), 'between 0'),
                       (lambda: next(wise_ft_sweep(model(), None, [1], [], len)), 'pass a state dict'),
                       (lambda: Replay(-1, [], nn.Linear(2, 2)), 'at least 0')]:
        with pytest.raises(ValueError, match=word): call()


@needs_peft
def test_nonsense_ranks_are_refused():
    for kw in (dict(r=0), dict(r=1.5), dict(alpha=0), dict(alpha=math.nan)):
        with pytest.raises(ValueError, match='must be'): LoRA(**kw)
