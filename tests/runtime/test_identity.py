"Callbacks of one class are told apart, and so are fits with other settings in one folder."
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.optimizer import SGD, Adam
from helpers import data, learner, model, same, state
from strategy_helpers import seeded_head
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import Retention, RetentionCurve
from sdfast.runtime.identity import describe, differences, numbered
from sdfast.runtime.resume import Resume
from sdfast.strategies import L2SP, CoTuning, EMATeacher, FixedTeacher, LwF, Replay, SelfDistill, Telemetry


def test_callbacks_of_one_name_are_numbered_in_their_order():
    cbs = [SelfDistill(1.), L2SP(1.), SelfDistill(2.), SelfDistill(3.)]
    assert list(numbered(cbs)) == ['self_distill', 'l2sp', 'self_distill_2', 'self_distill_3']
    assert list(numbered(cbs).values()) == cbs


class Two(nn.Module):
    "Two encoders"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (nn.Sequential(nn.Flatten(), nn.Linear(36, 6)) for _ in range(2))
        self.head = nn.Linear(12, 3)

    def forward(self, x): return self.head(torch.cat([self.one(x), self.two(x)], 1))


def both(): return [FixedTeacher(1., encoder='one'), FixedTeacher(5., encoder='two')]


def test_two_callbacks_of_a_class_have_their_own_columns():
    def row(cbs):
        learn = learner(cbs, net=Two())
        learn.fit(2)
        return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    def alone(cb): return row([cb, Telemetry()])
    a, together = both()[0], row([*both(), Telemetry(), Telemetry(encoder='two')])
    for name in ('fixed_teacher', 'fixed_teacher_2'):
        assert {name, f'{name}_ratio', f'{name}_cos', f'{name}_age', f'{name}_ratio_2'} <= together.keys()
    assert together['fixed_teacher'] != together['fixed_teacher_2'] and together['moved'] != together['moved_2']
    assert together['fixed_teacher_age'] == together['fixed_teacher_2_age'] == alone(a)['fixed_teacher_age']
    assert together['fixed_teacher_ratio'] != pytest.approx(together['fixed_teacher_2_ratio'])


def test_two_curves_have_their_own_columns():
    net, clips = model(), list(data().valid)
    curves = [RetentionCurve(Retention(net, clips=clips, layers=None)) for _ in range(2)]
    learn = learner(curves, net=net)
    learn.fit(1)
    assert {'kept_drift', 'kept_drift_2', 'kept_weights', 'kept_weights_2'} <= {*learn.recorder.metric_names}


def test_a_plain_loop_numbers_them_too():
    net = Two()
    a, b = (p.attach(net) for p in both())
    assert [*a.columns(), *b.columns()] == ['fixed_teacher', 'fixed_teacher_2']
    a.detach()
    assert list(b.columns()) == ['fixed_teacher']


class Die(Callback):
    order = 96
    def after_epoch(self):
        if self.epoch == 0: raise RuntimeError('dead')


def test_a_fit_with_two_callbacks_of_a_class_resumes(tmp_path):
    def fit(*more):
        learn = learner([*both(), Telemetry(), *more], net=Two())
        try: learn.fit(3)
        except RuntimeError: return None
        return state(learn.model), [list(v)[:2] for v in learn.recorder.values]
    whole = fit()
    fit(Resume(tmp_path), Die())
    again = fit(Resume(tmp_path))
    assert same(whole[0], again[0]) and whole[1] == again[1]


# ---- another fit in the same folder

def run(folder, cbs=(), epochs=2, lr=.1, bs=8, seed=0, loss=None, opt_func=SGD, one_cycle=None, **kw):
    learn = learner([*cbs, Resume(folder, lines.append)], dls=data(bs=bs, seed=seed), net=model(), lr=lr,
                    opt_func=opt_func, **kw)
    if loss is not None: learn.loss_func = loss
    if one_cycle: learn.fit_one_cycle(epochs, **one_cycle)
    else: learn.fit(epochs)
    return learn


lines: list[str] = []
head = seeded_head
CHANGED = [
    (lambda: dict(cbs=[L2SP(0.)]), lambda: dict(cbs=[L2SP(10.)]), 'l2sp.lam=0.0, not 10.0'),
    (lambda: dict(cbs=[L2SP(1.)]), lambda: dict(cbs=[L2SP(1., which='all')]), 'l2sp.which=weights, not all'),
    (lambda: dict(cbs=[EMATeacher(1.)]), lambda: dict(cbs=[EMATeacher(1., decay=.5)]), 'ema_teacher.decay=0.99, not'),
    (lambda: dict(cbs=[LwF(1., head(0))]), lambda: dict(cbs=[LwF(1., head(1))]), 'other lw_f.head'),
    (lambda: dict(cbs=[FixedTeacher(1., anchor=model(1)[0])]), lambda: dict(cbs=[FixedTeacher(1., anchor=model(2)[0])]),
     'other fixed_teacher.anchor'),
    (lambda: dict(cbs=[Replay(1., data(seed=3).train, head(3))]),
     lambda: dict(cbs=[Replay(1., data(seed=4).train, head(3))]), 'other replay.dl'),
    (lambda: dict(lr=.1), lambda: dict(lr=1.), 'lr=0.1, not 1.0'),
    (lambda: dict(wd=0.), lambda: dict(wd=.1), 'wd='),
    (lambda: dict(opt_func=SGD), lambda: dict(opt_func=Adam), 'optimizer'),
    (lambda: dict(bs=8), lambda: dict(bs=4), 'training batch size=8, not 4'),
    (lambda: dict(seed=0), lambda: dict(seed=1), 'other training data'),
    (lambda: dict(), lambda: dict(loss=LabelSmoothingCrossEntropyFlat()), 'other loss'),
    (lambda: dict(), lambda: dict(loss=CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.]))), 'other loss'),
    (lambda: dict(cbs=[MixUp(.4)]), lambda: dict(cbs=[MixUp(.9)]), 'mix_up.distrib'),
    (lambda: dict(), lambda: dict(cbs=[MixUp()]), 'only this fit has'),
    (lambda: dict(cbs=[GradientAccumulation(8)]), lambda: dict(cbs=[GradientAccumulation(16)]), 'n_acc=8, not 16'),
    (lambda: dict(one_cycle=dict(lr_max=.1)), lambda: dict(one_cycle=dict(lr_max=.1, pct_start=.5)), 'other'),
    (lambda: dict(one_cycle=dict(lr_max=.1)), lambda: dict(), 'only the saved fit has')]


@pytest.mark.parametrize('one,other,text', CHANGED, ids=[c[2] for c in CHANGED])
def test_another_setting_is_refused_and_named(one, other, text, tmp_path):
    run(tmp_path, **one())
    with pytest.raises(InputError, match='holds a fit with .*use another folder') as e: run(tmp_path, **other())
    assert text in str(e.value)
    lines.clear()
    run(tmp_path, **one())  # the same again is no other fit
    assert 'holds all 2 epochs of this fit: nothing is trained' in lines[0]


def test_what_does_not_decide_the_numbers_may_differ(tmp_path):
    class Prints(Callback):
        def after_loss(self): self.count = 1
    cbs = lambda: [CoTuning(1., head(0)), Telemetry()]
    run(tmp_path/'a', cbs())
    (tmp_path/'a').rename(tmp_path/'b')
    learn = learner([*cbs(), Prints(), Resume(tmp_path/'b', lines.append)], net=model(), dls=data(), opt_func=SGD)
    learn.dls.train.num_workers = 2
    learn.fit(2)


def test_that_nothing_is_trained_is_a_warning_without_say(tmp_path):
    learner([Resume(tmp_path)]).fit(1)
    with pytest.warns(UserWarning, match='nothing is trained'): learner([Resume(tmp_path)]).fit(1)


def test_a_checkpoint_without_settings_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(Resume, '_checkpoint', lambda self, make=Resume._checkpoint: without(make(self), 'settings'))
    learner([L2SP(1.), Resume(tmp_path)]).fit(2)
    learner([L2SP(2.), Resume(tmp_path, lines.append)]).fit(2)


def without(d, key): return {k:v for k, v in d.items() if k != key}


def test_values_that_were_computed_twice_are_near_enough():
    w = torch.randn(100)
    assert not differences(dict(w=describe(w)), dict(w=describe(w + 1e-6)))
    assert differences(dict(w=describe(w)), dict(w=describe(w.flip(0)))) == ['other w']
    assert differences(dict(w=describe(w)), dict(w=describe(w.clone().requires_grad_(True)))) == []
    assert differences(dict(a=1), dict(b=1)) == ['b, which only this fit has', 'a, which only the saved fit has']


def test_paths_are_known_by_their_last_two_parts():
    assert describe(Path('/old/place/jump/v1.mp4')) == describe('/new/jump/v1.mp4') != describe('/new/run/v1.mp4')


def test_a_retention_that_has_measured_before_is_the_same_retention():
    "The third run of a process resumes in a fresh one, in which nothing was measured yet"
    net, batches = model(), list(data(seed=5).valid)
    retention = Retention(net, batches, batches)
    before = describe(retention)
    retention(net[0])
    assert 'about' in vars(retention)  # a property that is computed at first use
    assert describe(retention) == before
