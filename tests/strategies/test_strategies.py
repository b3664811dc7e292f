"Each strategy against an independent formula, and against the ways in which fastai can bend its meaning."
import copy
import math
import random
import warnings
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import hook_output
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam
from helpers import Net, Source, data, learner, make, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.surgery import find_encoder
from sdfast.models.weights import save_weights, state_hash
from sdfast.strategies import (
    EWC,
    L2SP,
    STRATEGIES,
    EMATeacher,
    FeaturePenalty,
    FixedTeacher,
    LoRA,
    Penalty,
    SelfDistill,
    Telemetry,
    empirical_fisher,
    feature_distance,
)


def fisher_of(net, n=None):
    torch.manual_seed(7)
    head = nn.Linear(6, 3)
    return empirical_fisher(nn.Sequential(net[0], head), data(seed=5).valid, n)


PENALTIES = [n for n in STRATEGIES if n != 'lora' and isinstance((make(n, 0., model()) or [None])[0], Penalty)]
AT_0 = {'self_distill', 'fixed_teacher', 'ldifs', 'ema_teacher', 'lwf', 'feature_maps', 'delta', 'l2sp', 'ewc', 'mas', 'si'}  # their term is 0 for an encoder that has not moved
TAKES = AT_0 - {'self_distill'}  # from before training, something that is not exported


def test_the_registry_is_whole():
    assert len(STRATEGIES) == 26 and AT_0 <= set(PENALTIES) and {'pskd', 'byot', 'bss', 'co_tuning', 'r3f', 'replay'} == set(PENALTIES) - AT_0
    for name, s in STRATEGIES.items():
        assert s.formula and s.paper and len(s.lams) in (0, 3) and list(s.lams) == sorted(s.lams), name
        if name != 'lora' or find_spec('peft'): assert all(isinstance(cb, Callback) for cb in make(name, s.lams[0] if s.lams else 0., model())), name


# --- against hand-written loops ---------------------------------------------------------------------------------------

def by_hand(net, penalty, lam, epochs, lr=.1, dls=None, on_epoch=lambda e: None, on_step=lambda e: None):
    "Plain PyTorch: CE plus `lam * penalty(encoder, x, features)`"
    dls, opt = dls or data(), torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    for _ in range(epochs):
        net.train()
        on_epoch(net[0])
        for x, y in dls.train:
            f = net[0](x)
            loss = F.cross_entropy(net[1](f), y) + lam*penalty(net[0], x, f)
            opt.zero_grad()
            loss.backward()
            opt.step()
            on_step(net[0])
    return net


class Teach:
    "A teacher that is renewed by copying, in train mode on a copy whose buffers are thrown away"
    def __init__(self, net): self.copy(net)
    def copy(self, net): self.t = copy.deepcopy(net)
    def __call__(self, net, x, f):
        t = copy.deepcopy(self.t).train()
        with torch.no_grad(): g = t(x)
        return ((f - g)**2).sum()/f.numel()


def test_self_distill_equals_a_hand_written_loop():
    net = model()
    teacher = Teach(net[0])
    want = by_hand(copy.deepcopy(net), teacher, 2., 3, on_epoch=teacher.copy)
    learn = learner(SelfDistill(2.), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_fixed_teacher_equals_a_hand_written_loop():
    net = model()
    want = by_hand(copy.deepcopy(net), Teach(net[0]), 2., 3)
    learn = learner(FixedTeacher(2.), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_ema_teacher_equals_a_hand_written_loop():
    net = model()
    teacher = Teach(net[0])
    @torch.no_grad()
    def move(e):
        for t, s in zip(teacher.t.parameters(), e.parameters()): t.copy_(.9*t + .1*s)
    want = by_hand(copy.deepcopy(net), teacher, 2., 3, on_step=move)
    learn = learner(EMATeacher(2., decay=.9), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('which', ['weights', 'all'])
def test_l2sp_equals_a_hand_written_loop(which):
    net = model()
    start = [p.detach().clone() for p in net[0].parameters()]
    def penalty(e, x, f): return .5*sum(((p - s)**2).sum() for p, s in zip(e.parameters(), start) if which == 'all' or p.ndim > 1)
    want = by_hand(copy.deepcopy(net), penalty, .3, 3)
    learn = learner(L2SP(.3, which=which), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_ewc_equals_a_hand_written_loop():
    net = model()
    fisher = fisher_of(net)
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    def penalty(e, x, f): return .5*sum((fisher.diag[n]*(p - start[n])**2).sum() for n, p in e.named_parameters())
    want = by_hand(copy.deepcopy(net), penalty, 3., 3)
    learn = learner(EWC(3., fisher), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_feature_distance_reductions_and_shapes():
    a, b = torch.randn(4, 5, 2, 3), torch.randn(4, 5, 2, 3)
    total = sum((u - v)**2 for u, v in zip(a.flatten().tolist(), b.flatten().tolist()))
    for reduction, n in dict(sum=1, batchmean=4, mean=120).items():
        assert feature_distance(a, b, reduction).item() == pytest.approx(total/n, rel=1e-5)
    assert feature_distance(a.half(), b.half()).dtype == torch.float32


# --- the contract of every strategy -----------------------------------------------------------------------------------

@pytest.mark.parametrize('name', [n for n, s in STRATEGIES.items() if s.lams])
def test_lam_0_is_plain_fine_tuning_to_the_bit(name):
    plain, zero = learner(net=model(dropout=.3)), learner(make(name, 0., model(dropout=.3)), net=model(dropout=.3))
    for learn in (plain, zero):
        torch.manual_seed(3)  # of dropout
        learn.fit(3)
    assert same(state(plain.model), state(zero.model))
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in zero.recorder.values]


@pytest.mark.parametrize('name,options', [('l2sp', dict(decoupled=True)), ('l2sp', dict(which='all')), ('ewc', dict(implicit=True)), ('si', dict(normalize=False)), ('self_distill', dict(layers='blocks', reduction='sum')),
                                          ('ema_teacher', dict(teacher_bn='running', decay=.5)), ('lwf', dict(T=4.)), ('co_tuning', dict(how='reverse')), ('r3f', dict(noise='normal', eps=.1)), ('bss', dict(k=3))])
def test_so_is_lam_0_with_options(name, options):
    plain, zero = learner(net=model(dropout=.3)), learner(STRATEGIES[name].callbacks(0., Source(model(dropout=.3)), **options), net=model(dropout=.3))
    for learn in (plain, zero):
        torch.manual_seed(3)
        learn.fit(2)
    assert same(state(plain.model), state(zero.model))


@pytest.mark.parametrize('name', PENALTIES)
def test_reported_losses_are_the_task_loss(name):
    "With lr 0 nothing learns, so a penalty that leaked would show; teachers must not touch batch norm's buffers either"
    plain, penal = learner(lr=0.), learner(make(name, 1e4, model()), lr=0.)
    for learn in (plain, penal):
        learn.opt_func = partial(SGD, mom=.9)
        learn.fit(2)
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in penal.recorder.values]
    assert same(state(plain.model), state(penal.model))
    assert penal.recorder.metric_names[-2] == make(name, 0., model())[0].name
    if name in AT_0: assert penal.recorder.values[-1][-1] == 0


@pytest.mark.parametrize('name', PENALTIES)
def test_the_column_is_the_mean_term(name):
    seen, lam = [], .75
    class Spy(Callback):
        order, run_valid = 6, False
        def after_loss(self): seen.append(((self.learn.loss_grad - self.learn.loss)/lam).item())
    learn = learner([*make(name, lam, model()), Spy()])
    learn.fit(2)
    assert learn.recorder.values[1][-1] == pytest.approx(sum(seen[6:])/6, rel=1e-3, abs=2e-7) and (seen[-1] != 0 or name == 'r3f')  # its term is 1e-10 of the loss


# not so by nature: a spectrum of the batch (bss), noise and source clips drawn batch by batch (r3f, replay)
@pytest.mark.parametrize('name', [n for n in PENALTIES if n not in ('bss', 'r3f', 'replay')])
def test_accumulation_equals_one_big_batch(name):
    net = model()
    net[0].bn = nn.GroupNorm(2, 4)  # batch norm itself depends on the micro-batch
    def run(bs, cbs):
        learn = learner([*make(name, 3., copy.deepcopy(net)), *cbs], dls=data(bs=bs), net=copy.deepcopy(net))
        learn.fit(2)
        return learn.model
    big, small = run(24, []), run(8, [GradientAccumulation(24)])
    for a, b in zip(big.state_dict().values(), small.state_dict().values()):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Scaler(MixedPrecision):
    "The loss scaling of fp16 without its rounding"
    def before_fit(self): self.autocast, self.learn.scaler, self.scales = torch.autocast('cpu', enabled=False), torch.amp.GradScaler('cpu', init_scale=2.**self.power, growth_interval=self.grows), []
    power, grows = 10, 3


# bss and replay do not depend on micro-batches here: those are the same in both
@pytest.mark.parametrize('name', PENALTIES)
@pytest.mark.parametrize('accumulate', [False, True])
def test_loss_scaling_changes_nothing(name, accumulate):
    def run(cbs):
        learn = learner([*make(name, .3, model()), *cbs, *([GradientAccumulation(24)] if accumulate else [])])
        learn.fit(2)
        return learn
    plain, scaled = run([]), run([Scaler()])
    for a, b in zip(state(plain.model).values(), state(scaled.model).values()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert plain.recorder.values[-1][-1] == pytest.approx(scaled.recorder.values[-1][-1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize('name', ['ema_teacher', 'byot', 'co_tuning', 'l2sp', 'ewc'])
def test_a_step_that_the_scaler_skips_is_no_step(name):
    "Scaled by 2^126, gradients overflow until the scaler has come down"
    class Huge(Scaler): power, grows = 126, 1000
    options = dict(l2sp=dict(decoupled=True), ewc=dict(implicit=True)).get(name, {})
    (cb,), moved = STRATEGIES[name].callbacks(5., Source(model()), **options), []
    class Spy(Callback):
        order, run_valid = 90, False
        def inside(self): return {k:v.detach().clone() for m in (self.learn.model, cb.teacher if name == 'ema_teacher' else getattr(cb, 'aux', None)) if isinstance(m, nn.Module) for k, v in m.named_parameters()}
        def before_backward(self):
            self.learn.loss_grad = self.loss_grad*1e3
            self.before = self.inside()
        def after_batch(self): moved.append(not same(self.before, self.inside()))
    learner([cb, Huge(), Spy()], lr=1e-5).fit(2)
    assert not moved[0] and moved[-1] and moved == sorted(moved)


@pytest.mark.parametrize('name', PENALTIES)
def test_bf16_autocast_keeps_the_meaning(name):
    class CPUAutocast(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
    def run(cbs):
        learn = learner([*make(name, .3, model()), *cbs])
        learn.fit(2)
        return learn.recorder.values[-1][-1]
    # rounding changes the smallest singular value most (bss), and takes the noise away (r3f): test_features has settings for those
    if name not in ('bss', 'r3f'):
        low, full = run([CPUAutocast('bf16')]), run([])
        assert low == pytest.approx(full, rel=.03) and 0 < abs(full) < 10
    # both forwards are rounded alike: a student that does not move is at distance 0
    learn = learner([*make(name, 3., model()), CPUAutocast('bf16')], lr=0.)
    learn.fit(1)
    if name in AT_0: assert learn.recorder.values[-1][-1] == 0


@pytest.mark.parametrize('name', PENALTIES)
def test_validate_get_preds_and_lr_find_change_nothing(name, tmp_path):
    def run(disturb):
        cbs = make(name, .3, model())
        learn = learner(cbs, metrics=accuracy, path=tmp_path)
        if disturb:
            learn.lr_find(num_it=8, show_plot=False)
            assert len(learn.validate()) == 2 and len(learn.metrics) == 1
            learn.get_preds()
        torch.manual_seed(1), random.seed(1)
        learn.create_opt()
        learn.fit(2)
        if disturb: assert len(learn.validate()) == 2 and learn.get_preds()[0].shape == (16, 3) and len(learn.metrics) == 1
        learn.fit(1)
        assert not learn.model[0]._forward_hooks
        return state(learn.model), [v[2:] for v in learn.recorder.values]
    a, b = run(False), run(True)
    assert same(a[0], b[0]) and a[1] == b[1]


@pytest.mark.parametrize('name', sorted(TAKES))
def test_the_anchor_survives_whatever_a_learner_does(name, tmp_path):
    (cb,), net = STRATEGIES[name].callbacks(1e-3, Source(model()), **(dict(decay=1.) if name == 'ema_teacher' else {})), model()
    learn, start = learner(cb, net=net, path=tmp_path), state(net[0])
    def held(): return dict(cb.teacher.named_parameters()) if hasattr(type(cb), 'teacher') else cb.anchors
    def fails(error):
        with pytest.raises(type(error)): learn.fit(1, cbs=Stop(error))
    learn.lr_find(num_it=8, show_plot=False)
    learn.validate()
    for do in (lambda: fails(KeyboardInterrupt()), lambda: learn.validate(), lambda: learn.fit(1), lambda: learn.get_preds(), lambda: learn.lr_find(num_it=8, show_plot=False), lambda: fails(RuntimeError('x')),
               lambda: learn.fine_tune(1), lambda: learn.fit(1, cbs=Stop(CancelFitException())), lambda: learn.fit(2, start_epoch=1), lambda: learn.fit(1)):
        do()
        assert all(torch.equal(v, start[n]) for n, v in held().items()) and held().keys() >= dict(net[0].named_parameters()).keys()
    assert not same(start, state(net[0]))


@pytest.mark.parametrize('make_cb', [lambda a: FixedTeacher(1., anchor=a), lambda a: L2SP(1., anchor=a)])
def test_anchor_is_taken_once_and_never_again(make_cb, tmp_path):
    cb = make_cb(None)
    learn = learner(cb, path=tmp_path)
    start = state(learn.model[0])
    held = lambda cb: cb.anchors if isinstance(cb, L2SP) else cb.teacher.state_dict()
    for fit in (lambda: learn.lr_find(num_it=8, show_plot=False), lambda: learn.fit(1), lambda: learn.validate(), lambda: learn.fit(2, start_epoch=1), lambda: learn.fine_tune(1), lambda: learn.get_preds()):
        fit()
        if cb._held: assert same(held(cb), start)
    # explicit: a state dict, a module, a file
    other = Net()
    save_weights(other, tmp_path/'w.safetensors')
    for anchor in (other.state_dict(), other, tmp_path/'w.safetensors'):
        cb = make_cb(anchor)
        learner(cb).fit(1)
        assert same(held(cb), state(other))


@pytest.mark.parametrize('cls', [FixedTeacher, EMATeacher, L2SP])
def test_a_fit_that_starts_late_needs_its_anchor(cls):
    with pytest.raises(ValueError, match='pass anchor='.replace('pass', 'Pass')): learner(cls(1.)).fit(3, start_epoch=1)
    learn = learner(cls(1., anchor=model()[0]))
    learn.fit(3, start_epoch=1)
    assert len(learn.recorder.values) == 3


def test_self_distill_renews_at_each_epoch_that_trains():
    seen = []
    class Spy(Callback):
        order = 4
        def before_train(self): self.now = state_hash(self.learn.model[0].state_dict())
        def after_batch(self):
            if self.training: seen.append((self.epoch, state_hash(cb.teacher.state_dict()) == self.now))
    cb = SelfDistill(1.)
    learn = learner([cb, Spy()])
    learn.fit(3, start_epoch=1)
    assert {e for e, _ in seen} == {1, 2} and all(ok for _, ok in seen)


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
def test_teacher_bn(cls):
    "Equal weights: distance exactly 0 with the batch's statistics, not with the running ones (the trap)"
    def first_term(bn):
        terms, cb = [], cls(1., teacher_bn=bn)
        class Spy(Callback):
            order, run_valid = 6, False
            def after_loss(self): terms.append((self.learn.loss_grad - self.learn.loss).item())
        learner([cb, Spy()]).fit(1)
        return terms[0]
    assert first_term('batch') == 0 and first_term('running') > 1e-3


def test_batch_statistics_follow_a_frozen_batch_norm():
    class FreezeBN(Callback):
        def before_train(self): self.learn.model[0].bn.eval()
    learn = learner([FreezeBN(), SelfDistill(1.)], lr=0.)
    learn.fit(1)
    assert learn.recorder.values[0][-1] == 0


@pytest.mark.parametrize('name', PENALTIES)
def test_freezing_keeps_the_meaning(name):
    "What is frozen stays, and the rest is pulled as before; where nothing of the encoder trains, a penalty on it is plain fine-tuning of the head"
    def run(lam, frozen):
        net = model()
        for p in frozen(net[0]): p.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* has nothing to hold')
            learn = learner([*make(name, lam, copy.deepcopy(net)), Telemetry(every=1)], net=net)
            learn.fit(2)
        return state(net), dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    start = model().state_dict()
    plain, _ = run(0., lambda e: e.parameters())
    whole, row = run(.5, lambda e: e.parameters())
    assert all(torch.equal(whole[f'0.{n}'], start[f'0.{n}']) for n, _ in model()[0].named_parameters()) and row['moved'] == 0
    if name not in ('pskd', 'r3f'): assert same(whole, plain)  # these two are on the outputs of the head
    if name in AT_0: assert row[make(name, 0., model())[0].name] == 0
    part, row = run(.5, lambda e: e.conv.parameters())
    assert torch.equal(part['0.conv.weight'], start['0.conv.weight']) and row['moved'] > 0
    if name != 'r3f': assert not torch.allclose(part['0.out.weight'], run(0., lambda e: e.conv.parameters())[0]['0.out.weight'], atol=1e-7)


def test_weight_decay_warns():
    with pytest.warns(UserWarning, match='set wd=0'): learner(L2SP(1.), opt_func=Adam).fit(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner(L2SP(1.), opt_func=partial(Adam, wd=0.)).fit(1)


def test_strategies_compose_in_any_order():
    def run(cbs):
        learn = learner(cbs)
        learn.fit(2)
        return state(learn.model)
    a, b = run([SelfDistill(1.), L2SP(.1)]), run([L2SP(.1), SelfDistill(1.)])
    for u, v in zip(a.values(), b.values()): torch.testing.assert_close(u, v)
    alone = run([SelfDistill(1.)])
    assert not torch.allclose(a['0.conv.weight'], alone['0.conv.weight'])


def test_ema_teacher_moves_on_real_steps_only():
    moved = []
    class Spy(EMATeacher):
        def after_step(self):
            before = state(self.teacher)
            super().after_step()
            moved.append(not same(before, state(self.teacher)))
    learner([Spy(1., decay=.5), GradientAccumulation(24)]).fit(1)
    assert len(moved) == 2  # 48 images, a step every 24
    from fastai.callback.core import CancelStepException
    class Overflow(Callback):
        order = 10  # as `MixedPrecision` when the scaler sees an infinity
        def before_step(self): raise CancelStepException
    moved.clear()
    learner([Spy(1., decay=.5), Overflow()]).fit(1)
    assert len(moved) == 6 and not any(moved)


def test_one_student_forward_a_batch_and_no_hooks_on_the_teacher():
    calls, cb = [], SelfDistill(1.)
    learn = learner(cb)
    learn.model[0].register_forward_hook(lambda *a: calls.append(1))
    learn.fit(1)
    assert len(calls) == 6 + 2  # train and validation batches; the teacher's forward does not count
    assert len(learn.model[0]._forward_hooks) == 1


def test_a_hook_that_holds_a_graph_does_not_stop_the_copy():
    learn = learner(SelfDistill(1.))
    with hook_output(learn.model[0], detach=False): learn.fit(2)


class Stop(Callback):
    order, run_valid = 20, False
    def __init__(self, error): self.error = error
    def after_loss(self):
        if self.iter == 2: raise self.error


def test_interrupts_leave_nothing_behind(tmp_path):
    for error in (KeyboardInterrupt(), CancelFitException()):
        cb = SelfDistill(1.)
        learn = learner(cb, path=tmp_path)
        try: learn.fit(1, cbs=Stop(error))
        except KeyboardInterrupt: pass
        learn.remove_cbs([c for c in learn.cbs if isinstance(c, Stop)])
        learn.export('x.pkl')  # nothing unpicklable is left either
        learn.fit(1)
        assert not learn.model[0]._forward_hooks and len(learn.metrics) == 0
        assert learn.recorder.metric_names.count('self_distill') == 1


@pytest.mark.parametrize('name', PENALTIES)
def test_export_is_no_larger_and_training_on_says_what_is_missing(name, tmp_path):
    plain, learn = learner(path=tmp_path), learner(make(name, 1., model()), path=tmp_path)
    plain.fit(1), learn.fit(1)
    plain.export('plain.pkl'), learn.export('x.pkl')
    assert (tmp_path/'x.pkl').stat().st_size < (tmp_path/'plain.pkl').stat().st_size + 1500
    loaded = load_learner(tmp_path/'x.pkl')
    def holds(v): return torch.is_tensor(v) or isinstance(v, nn.Module) or isinstance(v, dict) and any(map(holds, v.values()))
    assert not [(cb, k) for cb in loaded.cbs if isinstance(cb, Penalty) for k, v in vars(cb).items() if holds(v)]
    loaded.dls, loaded.logger = data(), lambda *a: None
    assert same(state(loaded.model), state(learn.model))
    if name in TAKES:
        with pytest.raises(ValueError, match='does not carry'): loaded.fit(1)
    elif name in ('self_distill', 'pskd', 'byot', 'bss'): loaded.fit(1)  # what they teach with is made anew anyway


@pytest.mark.parametrize('name', PENALTIES)
def test_saved_models_hold_no_teacher(name, tmp_path):
    "After a fit, and in the middle of one"
    class Saver(Callback):
        def after_batch(self):
            if self.training and self.iter == 3: self.learn.save('inside')
    saved = []
    for cbs in ([], make(name, .3, model())):
        learn = learner([*cbs, Saver()], path=tmp_path)
        learn.fit(1)
        learn.save('after')
        saved.append([torch.load(tmp_path/f'models/{n}.pth', weights_only=False) for n in ('inside', 'after')])
    for plain, ours in zip(*saved):
        assert plain.keys() == ours.keys() == {'model', 'opt'} and ours['model'].keys() == plain['model'].keys()
        assert len(plain['opt']['state']) == len(ours['opt']['state']) and plain['opt']['hypers'] == ours['opt']['hypers']


# --- the encoder --------------------------------------------------------------------------------------------------------

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.top = model()

    def forward(self, x): return self.top(self.encoder(2*x))


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.top = model()

    def forward(self, x): return self.top(self.body(x))


def test_the_encoder_is_found_or_the_children_are_listed():
    net = model()
    assert find_encoder(net) is net[0]
    assert find_encoder(w := Wrapped()) is w.encoder
    o = Other()
    assert find_encoder(o, 'body') is o.body and find_encoder(o, lambda m: m.body) is o.body
    with pytest.raises(ValueError, match=r'body \(Net\), top \(Linear\)'): find_encoder(o)
    with pytest.raises(ValueError, match='no submodule'): find_encoder(o, 'nose')
    with pytest.raises(ValueError): find_encoder(nn.Sequential(*[nn.Linear(2, 2)]*3))


@pytest.mark.parametrize('net,encoder', [(Wrapped, None), (Other, 'body')])
def test_any_model_works_and_the_teacher_sees_what_the_encoder_saw(net, encoder):
    torch.manual_seed(0)
    learn = learner(SelfDistill(1., encoder=encoder), net=net(), lr=0.)
    learn.fit(1)
    assert learn.recorder.values[0][-1] == 0  # not so if the teacher were fed x instead of 2x


def test_an_image_model_of_fastai():
    from fastai.vision.learner import create_body, create_head
    from torchvision.models import resnet18
    net = nn.Sequential(create_body(resnet18(), pretrained=False, n_in=1), create_head(512, 3))
    learn = learner(SelfDistill(100), net=net, lr=.01)
    learn.fit(2)
    assert learn.recorder.values[1][-1] > 0


def test_encoders_without_a_tensor_or_a_call_say_so():
    class Two(Net):
        def forward(self, x): return (super().forward(x), x)
    class First(nn.Module):
        def __init__(self): super().__init__(); self.encoder, self.head, self.unused = Two(), nn.Linear(6, 3), nn.Linear(2, 2)
        def forward(self, x): return self.head(self.encoder(x)[0])
    with pytest.raises(TypeError, match='returned tuple'): learner(SelfDistill(1.), net=First()).fit(1)
    with pytest.raises(RuntimeError, match='not called'): learner(SelfDistill(1., encoder='unused'), net=First()).fit(1)


def test_a_new_penalty_is_a_few_lines():
    class Small(FeaturePenalty):
        "Features near zero"
        def term(self): return sum(out.pow(2).mean() for *_, out in self.calls())
    def norm(lam):
        learn = learner(Small(lam))
        learn.fit(3)
        assert learn.recorder.metric_names[-2] == 'small'
        return learn.recorder.values[-1][-1]
    assert norm(1.) < norm(0.)


@pytest.mark.parametrize('bad', [-1, float('nan')])
def test_nonsense_is_refused(bad):
    for cls in (SelfDistill, FixedTeacher, EMATeacher, L2SP):
        with pytest.raises(ValueError, match='at least 0'): cls(bad)


def test_nonsense_options_are_refused():
    for call, word in [(lambda: SelfDistill(1, reduction='max'), 'batchmean'), (lambda: SelfDistill(1, teacher_bn='x'), 'running'),
                       (lambda: L2SP(1, which='x'), 'weights'), (lambda: EMATeacher(1, decay=2), 'between')]:
        with pytest.raises(ValueError, match=word): call()
    with pytest.raises(InputError, match='no samples'): empirical_fisher(model(), [])
    with pytest.raises(ValueError, match='another encoder'): learner(EWC(1., empirical_fisher(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data().valid, encoder=lambda m: m[1]))).fit(1)


# --- what is left behind, and what is told of it -----------------------------------------------------------------------

class Boom(Callback):
    order, run_valid = 20, False
    def after_pred(self):
        if self.iter == 2: raise RuntimeError('boom')


@pytest.mark.parametrize('name', PENALTIES)
def test_an_exception_leaves_no_hook_no_column_and_no_graph(name):
    learn = learner([*make(name, .5, model()), Telemetry(), Boom()], metrics=accuracy)
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1)
    assert not any(m._forward_hooks for m in learn.model.modules()) and len(learn.metrics) == 1 and '_do_epoch' not in learn.__dict__
    assert all(getattr(cb, 'pull', None) is None for cb in learn.cbs)
    learn.remove_cb(next(cb for cb in learn.cbs if isinstance(cb, Boom)))
    learn.fit(1)
    assert len(learn.recorder.values[0]) == len(learn.recorder.metric_names) - 2 and len(learn.metrics) == 1


@pytest.mark.parametrize('name', PENALTIES + ['stoch_norm'])
def test_a_fit_that_fails_before_its_first_epoch_leaves_nothing_either(name):
    class Late(Callback):
        order = 90
        def before_fit(self): raise RuntimeError('boom')
    for attached in (True, False):
        cbs = [*make(name, .5, model()), Telemetry()]
        learn = learner(cbs if attached else (), metrics=accuracy)
        with pytest.raises(RuntimeError, match='boom'): learn.fit(1, cbs=[Late()] if attached else [*cbs, Late()])
        assert len(learn.validate()) == 2 and len(learn.metrics) == 1 and '_do_epoch' not in learn.__dict__
        learn.fit(1)
        assert len(learn.metrics) == 1 and len(learn.recorder.values[0]) == len(learn.recorder.metric_names) - 2


def test_telemetry_by_hand():
    ratios, cosines, ages, cb = [], [], [], SelfDistill(2.)
    class Spy(Callback):
        order, run_valid = 8, False
        def after_loss(self):
            ratios.append((cb.pull.item(), self.learn.loss.item()))
            ages.append(self.iter)
            if self.iter in (1, 3, 5):
                ws = list(self.learn.model[0].parameters())
                a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(t, ws, retain_graph=True)]) for t in (self.learn.loss, cb.pull))
                cosines.append(F.cosine_similarity(a.double(), b.double(), 0).item())
    net = model()
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    learn = learner([cb, Telemetry(every=2), Spy()], net=net)
    learn.fit(2)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[1]))
    assert row['self_distill_ratio'] == pytest.approx(sum(p for p, _ in ratios[6:])/sum(l for _, l in ratios[6:]), rel=1e-5)
    assert row['self_distill_cos'] == pytest.approx(sum(cosines[3:])/3, rel=1e-4) and -1 <= row['self_distill_cos'] <= 1
    assert row['self_distill_age'] == pytest.approx(2.5)  # 0 to 5 batches, from 0 anew in each epoch
    far = sum(((p - start[n])**2).sum() for n, p in net[0].named_parameters())**.5/sum((w**2).sum() for w in start.values())**.5
    assert row['moved'] == pytest.approx(far.item(), rel=1e-4)


def test_the_cosine_is_sampled_by_the_batches_of_the_fit():
    "Short epochs do not each pay for it: of 4 epochs of 6 batches every 10th batch, which are the 2nd, the 12th and the 22nd"
    learn = learner([L2SP(.1), Telemetry(every=10)])
    learn.fit(4)
    at = list(learn.recorder.metric_names[1:]).index('l2sp_cos')
    assert [math.isnan(row[at]) for row in learn.recorder.values] == [False, False, True, False]


@pytest.mark.parametrize('name', ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'pskd', 'l2sp', 'ewc'])
def test_telemetry_changes_nothing(name):
    plain, watched = learner(make(name, .5, model()), net=model(dropout=.3)), learner([*make(name, .5, model()), Telemetry(every=1)], net=model(dropout=.3))
    for learn in (plain, watched):
        torch.manual_seed(3)
        learn.fit(2)
    assert same(state(plain.model), state(watched.model)) and len(watched.metrics) == 0
    ages = dict(zip(watched.recorder.metric_names[1:], watched.recorder.values[1]))
    if name in ('fixed_teacher', 'ema_teacher'): assert ages[f'{name}_age'] == (8.5 if name == 'fixed_teacher' else 0)
    assert ages['moved'] > 0


def row(learn): return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))


def far(now, start): return (sum(((now[n] - w)**2).sum() for n, w in start.items())/sum((w**2).sum() for w in start.values())).sqrt().item()


def test_moved_is_since_before_training_and_age_since_the_teacher_was_made(tmp_path):
    net = model()
    def weights(): return {n:p.detach().clone() for n, p in net[0].named_parameters()}
    learn, start = learner([FixedTeacher(.1), Telemetry()], net=net, path=tmp_path), weights()
    learn.lr_find(num_it=8, show_plot=False)
    for epochs, age in ((2, 8.5), (1, 14.5)):  # 6 batches an epoch
        learn.fit(epochs)
        assert row(learn)['moved'] == pytest.approx(far(weights(), start), rel=1e-4) and row(learn)['fixed_teacher_age'] == age
        learn.validate(), learn.get_preds()
    learn.fit(1, lr=0.)
    assert row(learn)['moved'] == pytest.approx(far(weights(), start), rel=1e-4)
    # without a penalty too; from weights that are given; not known where it is too late
    plain = learner(Telemetry(anchor={f'{n}':w + 1 for n, w in start.items()}), net=net)
    plain.fit(2, start_epoch=1)
    assert row(plain)['moved'] == pytest.approx(far(weights(), {n:w + 1 for n, w in start.items()}), rel=1e-4)
    late = learner([SelfDistill(1.), Telemetry()])
    late.fit(2, start_epoch=1)
    assert math.isnan(row(late)['moved'])
    with pytest.raises(InputError, match='bn.bias are not in this one|bn.weight, conv.bias'): learner(Telemetry(anchor={'conv.weight': start['conv.weight']})).fit(1)
    with pytest.raises(InputError, match='not from str'): learner(Telemetry(anchor='x.pth')).fit(1)
    other = learner(Telemetry(encoder='body'), net=Other())
    other.fit(1)
    assert row(other)['moved'] > 0


def test_moved_sees_what_adapters_add():
    pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[peers]'")
    net = model()
    learn, start = learner([LoRA(2, 2), Telemetry()], net=net), {n:p.detach().clone() for n, p in net[0].named_parameters()}
    for _ in range(2):  # they are merged when a fit ends
        learn.fit(1)
        assert row(learn)['moved'] == pytest.approx(far(dict(net[0].named_parameters()), start), rel=1e-4)
