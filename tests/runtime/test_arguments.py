"The `repr` of callbacks shows their arguments."
import copy
import pickle

import pytest
import torch
from fastai.learner import load_learner
from helpers import data, learner, model
from torch import nn

from sdfast.metrics import Retention, RetentionCurve
from sdfast.pretext import Pace
from sdfast.runtime.arguments import ShowArguments
from sdfast.runtime.resume import Resume
from sdfast.strategies import (
    EWC,
    L2SP,
    LPFT,
    EMATeacher,
    FrozenBN,
    LinearProbe,
    LwF,
    PathIntegral,
    Replay,
    SelfDistill,
    StochNorm,
    Telemetry,
    empirical_fisher,
)
from sdfast.study.fit import KeepBest, Seeded


class Example(ShowArguments):
    _argument_attrs = dict(renamed='other')
    def __init__(self, a, b=2, c=None, lost=3, renamed='x'): self.a, self.b, self.c, self.other = a, b, c, renamed


@pytest.mark.parametrize('made,want', [
    (Example(1), 'Example(a=1)'),
    (Example(1, 2), 'Example(a=1)'),
    (Example(1, 2., lost=4), 'Example(a=1, b=2.0)'),
    (Example('y', renamed='z'), "Example(a='y', renamed='z')"),
    (Example(torch.zeros(2, 3)), 'Example(a=Tensor(2, 3))'),
    (Example(nn.Linear(2, 2)), 'Example(a=Linear)'),
    (Example(dict(w=torch.zeros(2), v=torch.zeros(3))), "Example(a={'v': Tensor(3,), ...})"),
    (Example(pickle.dumps), 'Example(a=dumps)'),
    (SelfDistill(100.), 'SelfDistill(lam=100.0)'),
    (SelfDistill(1, encoder='body', layers=['conv']), "SelfDistill(lam=1, encoder='body', layers=['conv'])"),
    (EMATeacher(2., decay=.9), 'EMATeacher(lam=2.0, decay=0.9)'),
    (L2SP(.1, decoupled=True), 'L2SP(lam=0.1, decoupled=True)'),
    (LwF(1., nn.Linear(2, 2)), 'LwF(lam=1.0, head=Linear)'),
    (LinearProbe(), 'LinearProbe()'),
    (LPFT(2, encoder='body'), "LPFT(probe_epochs=2, encoder='body')"),
    (FrozenBN(affine=True), 'FrozenBN(affine=True)'),
    (StochNorm(.25), 'StochNorm(p=0.25)'),
    (Telemetry(every=7), 'Telemetry(every=7)'),
    (PathIntegral(), 'PathIntegral()'),
    (Replay(1., [], nn.Linear(2, 2)), 'Replay(lam=1.0, dl=[], head=Linear)'),
], ids=lambda x: x if isinstance(x, str) else '')
def test_what_differs_from_the_defaults_is_shown(made, want): assert repr(made) == want


def test_an_importance_is_shown_in_short():
    importance = empirical_fisher(model(), data().valid)
    assert repr(EWC(.1, importance, normalize=True)) == (
        'EWC(lam=0.1, importance=Importance(6 parameters, n=16), normalize=True)')


@pytest.mark.parametrize('cb', [SelfDistill(100.), LPFT(2), L2SP(1., which='all')], ids=repr)
def test_copies_and_pickles_show_the_same(cb):
    assert repr(copy.deepcopy(cb)) == repr(cb)
    assert repr(pickle.loads(pickle.dumps(cb))) == repr(cb)


def test_it_is_the_same_in_a_fit_and_after_export(tmp_path):
    cb = EMATeacher(2., decay=.9)
    learn = learner(cb, path=tmp_path)
    learn.fit(1)
    assert repr(cb) == 'EMATeacher(lam=2.0, decay=0.9)'
    learn.export('x.pkl')
    loaded = load_learner(tmp_path/'x.pkl')
    assert 'EMATeacher(lam=2.0, decay=0.9)' in map(repr, loaded.cbs)


def test_the_current_value_is_shown():
    cb = SelfDistill(1.)
    cb.lam = 5.
    assert repr(cb) == 'SelfDistill(lam=5.0)'


def test_callbacks_of_studies_measures_and_pre_training_show_theirs(tmp_path):
    net = model()
    retention = Retention(net, clips=[data().valid.one_batch()[0]])
    assert repr(RetentionCurve(retention, clips=4, every=2)) == 'RetentionCurve(retention=Retention, clips=4, every=2)'
    assert repr(Pace(paces=(1, 2), restart=False)) == 'Pace(paces=(1, 2), restart=False)'
    assert repr(Resume(tmp_path)) == f'Resume(folder={tmp_path!r})'
    assert repr(KeepBest(patience=3)) == 'KeepBest(patience=3)'
    assert repr(Seeded(7)) == 'Seeded(seed=7)'
