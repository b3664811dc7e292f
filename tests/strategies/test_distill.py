"Teachers of features, each against a formula written out by hand."
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import hook_output
from fastai.callback.training import GradientAccumulation
from helpers import learner, model, same, state
from strategy_helpers import Deep, Other, Wrapped, check_deep, deep, penalty_by_hand, pooled, taught
from torch import nn

from sdfast.errors import InputError
from sdfast.models.surgery import block_names
from sdfast.models.weights import state_hash
from sdfast.strategies import EMATeacher, FixedTeacher, SelfDistill, feature_distance


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
    want = penalty_by_hand(copy.deepcopy(net), teacher, 2., 3, on_epoch=teacher.copy)
    learn = learner(SelfDistill(2.), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_fixed_teacher_equals_a_hand_written_loop():
    net = model()
    want = penalty_by_hand(copy.deepcopy(net), Teach(net[0]), 2., 3)
    learn = learner(FixedTeacher(2.), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_ema_teacher_equals_a_hand_written_loop():
    net = model()
    teacher = Teach(net[0])
    @torch.no_grad()
    def move(e):
        for t, s in zip(teacher.t.parameters(), e.parameters()): t.copy_(.9*t + .1*s)
    want = penalty_by_hand(copy.deepcopy(net), teacher, 2., 3, on_step=move)
    learn = learner(EMATeacher(2., decay=.9), net=net)
    learn.fit(3)
    for a, b in zip(learn.model.state_dict().values(), want.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_feature_distance_reductions_and_shapes():
    a, b = torch.randn(4, 5, 2, 3), torch.randn(4, 5, 2, 3)
    total = sum((u - v)**2 for u, v in zip(a.flatten().tolist(), b.flatten().tolist()))
    for reduction, n in dict(sum=1, batchmean=4, mean=120).items():
        assert feature_distance(a, b, reduction).item() == pytest.approx(total/n, rel=1e-5)
    assert feature_distance(a.half(), b.half()).dtype == torch.float32


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


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_several_layers_side_by_side(cls, reduction):
    start, now = deep(), {}
    def extra(net, x, y, f, logits):
        t = taught(now['t'] if cls is SelfDistill else start[0], x)
        s, t = (torch.cat([pooled(g[0]), pooled(g[1])], 1) for g in (f, t))
        d = ((s - t)**2).sum()
        return (2. if reduction == 'mean' else .01)*(d/s.numel() if reduction == 'mean' else d)
    check_deep(cls(2. if reduction == 'mean' else .01, reduction=reduction, layers='blocks'), extra, 3,
               begin=lambda net, e: now.update(t=copy.deepcopy(net[0])))


@pytest.mark.parametrize('dtype', ['bfloat16', torch.bfloat16, 'float16'])
@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
def test_a_teacher_in_half_precision(cls, dtype):
    """Each batch's distance is that to a copy of the teacher run under autocast by hand, its weights float32; and
    within rounding of the exact one"""
    seen = []
    class Spy(Callback):
        order = 6
        def after_loss(self):
            if not self.training: return
            (args, _, out), = cb.calls()
            low = torch.bfloat16 if 'bfloat16' in str(dtype) else torch.float16
            with torch.no_grad(), torch.autocast('cpu', low): t = copy.deepcopy(cb.teacher).train()(*args)
            with torch.no_grad(): exact = copy.deepcopy(cb.teacher).train()(*args)
            assert t.dtype == low
            seen.append(((cb.pull/.5).item(), F.mse_loss(out, t.float()).item(), F.mse_loss(out, exact).item(),
                         ((t.float() - exact).norm()/exact.norm()).item()))
    cb = copy.deepcopy(cls(.5, teacher_dtype=dtype))
    learner([cb, Spy()]).fit(3)
    assert {p.dtype for p in cb.teacher.parameters()} == {torch.float32}
    got, want, exact, off = np.array(seen).T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)
    assert 0 < off.max() < (.03 if 'bfloat16' in str(dtype) else .004), 'rounding of a few layers: 8 and 11 bits'
    np.testing.assert_allclose(np.sqrt(got), np.sqrt(exact), rtol=.1, atol=.02)
    assert seen[0][0] > 0 == seen[0][2], 'before the first step the exact distance is 0, this one is not'


def test_half_precision_of_teacher_and_student_together_is_exact():
    "Under the fit's own autocast the option changes nothing: both forwards are rounded alike"
    class CPUAutocast(MixedPrecision):
        def before_fit(self):
            super().before_fit()
            self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
    def run(lr, **kw):
        learn = learner([SelfDistill(3., **kw), CPUAutocast('bf16')], lr=lr)
        learn.fit(2)
        return state(learn.model), learn.recorder.values[-1][-1]
    a, b = run(.1), run(.1, teacher_dtype='bfloat16')
    assert same(a[0], b[0]) and a[1] == b[1] > 0 and run(0., teacher_dtype='bfloat16')[1] == 0


@pytest.mark.parametrize('dtype', ['float32', 'half', 16, torch.float64, ''])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(ValueError, match="teacher_dtype must be 'bfloat16', 'float16' or None, not"):
        SelfDistill(1., teacher_dtype=dtype)


def test_blocks_and_names_of_layers():
    net = deep()
    assert block_names(net[0]) == ['body.one', 'body.two']
    learner(FixedTeacher(1., layers=['body.one.0', 'body.two']), net=deep()).fit(1)
    learner(EMATeacher(1., layers=['body.two']), net=deep()).fit(1)
    with pytest.raises(ValueError, match="no layer 'body.three'; it has .*body.two"):
        learner(SelfDistill(1., layers=['body.three']), net=deep()).fit(1)
    from sdfast.models.encoders import c3d, tiny
    assert block_names(c3d())[:3] == ['body.conv1', 'body.bn1', 'body.conv2'] and len(block_names(tiny())) == 4


def test_a_layer_that_is_called_twice_is_told():
    class Twice(Deep):
        def forward(self, x): return self.body.pool(self.body.two(self.body.one(x)) + self.body.two(self.body.one(x)))
    torch.manual_seed(0)
    net = nn.Sequential(Twice(), nn.Linear(6, 3))
    with pytest.raises(InputError, match="layer 'body.two' is called 2 times where the encoder is called 1"):
        learner(SelfDistill(1., layers=['body.two']), net=net).fit(1)


def test_a_teacher_is_compiled_as_its_student_is(monkeypatch):
    "And trains as an eager one does, epoch after epoch"
    compiled = []
    def compile_(self):
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend='eager')
    monkeypatch.setattr(nn.Module, 'compile', compile_)
    def train(fast):
        net = model()
        if fast: net[0].compile()
        learn = learner([SelfDistill(3.)], net=net)
        learn.fit(3)
        return state(learn.model), [float(l) for l in learn.recorder.losses]
    (a, la), (b, lb) = train(False), train(True)
    assert len(compiled) == 4 and all(m.training is False for m in compiled[1:]) and la == pytest.approx(lb, abs=1e-6)
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-5, atol=1e-6)
