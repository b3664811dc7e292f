"Each strategy against an independent formula, and against the ways in which fastai can bend its meaning."
import copy
import random
import warnings
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from conftest import Net, data, learner, make, model, same, state
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import hook_output
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD, Adam
from torch import nn

from sdfast.errors import InputError
from sdfast.models import save_weights
from sdfast.strategies import (EWC, L2SP, STRATEGIES, EMATeacher, FeaturePenalty, FixedTeacher, Penalty, SelfDistill, Telemetry, empirical_fisher, feature_distance, find_encoder, state_hash)


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
    for a, b in zip(big.state_dict().values(), small.state_dict().values()): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', PENALTIES)
def test_bf16_autocast_keeps_the_meaning(name):
    class CPUAutocast(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
    def run(cbs):
        learn = learner([*make(name, 3., model()), *cbs])
        learn.fit(2)
        return learn.recorder.values[-1][-1]
    # rounding changes the smallest singular value most (bss), and takes the noise away (r3f)
    if name not in ('bss', 'r3f'): assert run([CPUAutocast('bf16')]) == pytest.approx(run([]), rel=.1, abs=.01)
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


def test_frozen_layers_are_left_out():
    net = model()
    for p in net[0].parameters(): p.requires_grad_(False)
    for name in ('l2sp', 'ewc', 'fixed_teacher'):
        learn = learner(make(name, 1., net), net=copy.deepcopy(net))
        learn.fit(1)
        assert learn.recorder.values[0][-1] == 0 or name == 'fixed_teacher'


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
    loaded.dls, loaded.logger = data(), lambda *a: None
    assert same(state(loaded.model), state(learn.model))
    if name in TAKES:
        with pytest.raises(ValueError, match='does not carry'): loaded.fit(1)
    elif name in ('self_distill', 'pskd', 'byot', 'bss'): loaded.fit(1)  # what they teach with is made anew anyway


def test_saved_models_hold_no_teacher(tmp_path):
    learn = learner(FixedTeacher(1.), path=tmp_path)
    learn.fit(1)
    learn.save('m', with_opt=False)
    assert torch.load(tmp_path/'models/m.pth').keys() == model().state_dict().keys()


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


@pytest.mark.parametrize('name', ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'pskd', 'l2sp', 'ewc'])
def test_telemetry_changes_nothing(name):
    plain, watched = learner(make(name, .5, model()), net=model(dropout=.3)), learner([*make(name, .5, model()), Telemetry(every=1)], net=model(dropout=.3))
    for learn in (plain, watched):
        torch.manual_seed(3)
        learn.fit(2)
    assert same(state(plain.model), state(watched.model)) and len(watched.metrics) == 0
    ages = dict(zip(watched.recorder.metric_names[1:], watched.recorder.values[1]))
    if name in ('fixed_teacher', 'ema_teacher'): assert ages[f'{name}_age'] == (8.5 if name == 'fixed_teacher' else 0)
