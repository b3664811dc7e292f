"What holds for every penalty of the registry."
import copy
import random
import warnings
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from helpers import Net, Source, data, learner, make, model, same, state
from strategy_helpers import AT_0, PENALTIES, TAKES, CPUAutocast, Stop
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import (
    EWC,
    L2SP,
    STRATEGIES,
    EMATeacher,
    FeaturePenalty,
    FixedTeacher,
    Penalty,
    SelfDistill,
    Telemetry,
    empirical_fisher,
)


@pytest.mark.parametrize('name', [n for n, s in STRATEGIES.items() if s.lams])
def test_lam_0_is_plain_fine_tuning_to_the_bit(name):
    plain, zero = learner(net=model(dropout=.3)), learner(make(name, 0., model(dropout=.3)), net=model(dropout=.3))
    for learn in (plain, zero):
        torch.manual_seed(3)  # of dropout
        learn.fit(3)
    assert same(state(plain.model), state(zero.model))
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in zero.recorder.values]


OPTIONS = [
    ('l2sp', dict(decoupled=True)),
    ('l2sp', dict(which='all')),
    ('ewc', dict(implicit=True)),
    ('si', dict(normalize=False)),
    ('self_distill', dict(layers='blocks', reduction='sum')),
    ('ema_teacher', dict(teacher_bn='running', decay=.5)),
    ('lwf', dict(T=4.)),
    ('co_tuning', dict(how='reverse')),
    ('r3f', dict(noise='normal', eps=.1)),
    ('bss', dict(k=3)),
]


@pytest.mark.parametrize('name,options', OPTIONS)
def test_so_is_lam_0_with_options(name, options):
    plain = learner(net=model(dropout=.3))
    zero = learner(STRATEGIES[name].callbacks(0., Source(model(dropout=.3)), **options), net=model(dropout=.3))
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
    assert learn.recorder.values[1][-1] == pytest.approx(sum(seen[6:])/6, rel=1e-3, abs=2e-7)
    if name != 'r3f': assert seen[-1] != 0  # the term of R3F is 1e-10 of the loss


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
    power, grows = 10, 3

    def before_fit(self):
        self.autocast = torch.autocast('cpu', enabled=False)
        self.learn.scaler = torch.amp.GradScaler('cpu', init_scale=2.**self.power, growth_interval=self.grows)
        self.scales = []


# bss and replay do not depend on micro-batches here: those are the same in both
@pytest.mark.parametrize('name', PENALTIES)
@pytest.mark.parametrize('accumulate', [False, True])
def test_loss_scaling_changes_nothing(name, accumulate):
    def run(cbs):
        learn = learner([*make(name, .3, model()), *cbs, *([GradientAccumulation(24)] if accumulate else [])])
        learn.fit(2)
        return learn
    plain, scaled = run([]), run([Scaler()])
    for a, b in zip(state(plain.model).values(), state(scaled.model).values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert plain.recorder.values[-1][-1] == pytest.approx(scaled.recorder.values[-1][-1], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize('name', ['ema_teacher', 'byot', 'co_tuning', 'l2sp', 'ewc', 'spd', 'digrap'])
def test_a_step_that_the_scaler_skips_is_no_step(name):
    "Scaled by 2^126, gradients overflow until the scaler has come down"
    class Huge(Scaler): power, grows = 126, 1000
    options = dict(l2sp=dict(decoupled=True), ewc=dict(implicit=True)).get(name, {})
    (cb,), moved = STRATEGIES[name].callbacks(5., Source(model()), **options), []
    class Spy(Callback):
        order, run_valid = 90, False
        def inside(self):
            own = cb.teacher if name == 'ema_teacher' else getattr(cb, 'aux', None)
            modules = [m for m in (self.learn.model, own) if isinstance(m, nn.Module)]
            return {k:v.detach().clone() for m in modules for k, v in m.named_parameters()}
        def before_backward(self):
            self.learn.loss_grad = self.loss_grad*1e3
            self.before = self.inside()
        def after_batch(self): moved.append(not same(self.before, self.inside()))
    learner([cb, Huge(), Spy()], lr=1e-5).fit(2)
    assert not moved[0] and moved[-1] and moved == sorted(moved)


@pytest.mark.parametrize('name', PENALTIES)
def test_bf16_autocast_keeps_the_meaning(name):
    def run(cbs):
        learn = learner([*make(name, .3, model()), *cbs])
        learn.fit(2)
        return learn.recorder.values[-1][-1]
    # rounding changes the smallest singular value most (bss), and takes the noise away (r3f): test_base_features has
    # settings for these
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
        if disturb:
            assert len(learn.validate()) == 2
            assert learn.get_preds()[0].shape == (16, 3)
            assert len(learn.metrics) == 1
        learn.fit(1)
        assert not learn.model[0]._forward_hooks
        return state(learn.model), [v[2:] for v in learn.recorder.values]
    a, b = run(False), run(True)
    assert same(a[0], b[0]) and a[1] == b[1]


@pytest.mark.parametrize('name', PENALTIES)
def test_freezing_keeps_the_meaning(name):
    """What is frozen stays, and the rest is pulled as before.

    If nothing of the encoder trains, a penalty on it is plain fine-tuning of the head."""
    def run(lam, frozen):
        net = model()
        for p in frozen(net[0]): p.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.* has no effect')
            learn = learner([*make(name, lam, copy.deepcopy(net)), Telemetry(every=1)], net=net)
            learn.fit(2)
        return state(net), dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    start = model().state_dict()
    plain, _ = run(0., lambda e: e.parameters())
    whole, row = run(.5, lambda e: e.parameters())
    assert all(torch.equal(whole[f'0.{n}'], start[f'0.{n}']) for n, _ in model()[0].named_parameters())
    assert row['moved'] == 0
    if name not in ('pskd', 'r3f', 'flow'): assert same(whole, plain)  # these are on the outputs of the head
    if name in AT_0: assert row[make(name, 0., model())[0].name] == 0
    part, row = run(.5, lambda e: e.conv.parameters())
    assert torch.equal(part['0.conv.weight'], start['0.conv.weight']) and row['moved'] > 0
    plain, _ = run(0., lambda e: e.conv.parameters())
    if name != 'r3f': assert not torch.allclose(part['0.out.weight'], plain['0.out.weight'], atol=1e-7)


def test_strategies_compose_in_any_order():
    def run(cbs):
        learn = learner(cbs)
        learn.fit(2)
        return state(learn.model)
    a, b = run([SelfDistill(1.), L2SP(.1)]), run([L2SP(.1), SelfDistill(1.)])
    for u, v in zip(a.values(), b.values()): torch.testing.assert_close(u, v)
    alone = run([SelfDistill(1.)])
    assert not torch.allclose(a['0.conv.weight'], alone['0.conv.weight'])


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
    def holds(v):
        if isinstance(v, dict): return any(map(holds, v.values()))
        return torch.is_tensor(v) or isinstance(v, nn.Module)
    assert not [(cb, k) for cb in loaded.cbs if isinstance(cb, Penalty) for k, v in vars(cb).items() if holds(v)]
    loaded.dls, loaded.logger = data(), lambda *a: None
    assert same(state(loaded.model), state(learn.model))
    if name in TAKES:
        with pytest.raises(ValueError, match='does not carry'): loaded.fit(1)
    elif name in ('self_distill', 'pskd', 'byot', 'bss'): loaded.fit(1)  # they make their teacher again in each epoch


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
        assert len(plain['opt']['state']) == len(ours['opt']['state'])
        assert plain['opt']['hypers'] == ours['opt']['hypers']


def test_encoders_without_a_tensor_or_a_call_say_so():
    class Two(Net):
        def forward(self, x): return {super().forward(x)}
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head, self.unused = Two(), nn.Linear(6, 3), nn.Linear(20, 20)

        def forward(self, x): return self.head(self.encoder(x).pop())
    with pytest.raises(InputError, match='returns set'): learner(SelfDistill(1.), net=First()).fit(1)
    with pytest.raises(InputError, match='not called'): learner(SelfDistill(1., encoder='unused'), net=First()).fit(1)


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
    with pytest.raises(ValueError, match='batchmean'): SelfDistill(1, reduction='max')
    with pytest.raises(ValueError, match='running'): SelfDistill(1, teacher_bn='x')
    with pytest.raises(ValueError, match='weights'): L2SP(1, which='x')
    with pytest.raises(ValueError, match='between'): EMATeacher(1, decay=2)
    with pytest.raises(InputError, match='no samples'): empirical_fisher(model(), [])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    of_another = empirical_fisher(linear, data().valid, encoder=lambda m: m[1])
    with pytest.raises(ValueError, match='another encoder'): learner(EWC(1., of_another)).fit(1)
