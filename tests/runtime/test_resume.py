"A fit that died and went on is, to the bit, the fit that did not."
import io
import pickle
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from helpers import data, learner, make, model, same, state

from sdfast.errors import InputError
from sdfast.runtime import store
from sdfast.runtime.resume import Resume, Stateful, epochs_done
from sdfast.strategies import STRATEGIES, EMATeacher, FixedTeacher, PathIntegral, SelfDistill, Telemetry
from sdfast.study.fit import KeepBest


class Die(Callback):
    "An exception in the middle of an epoch, or at its end, before or after `Resume` wrote it down"
    run_valid = False
    def __init__(self, epoch, where): self.at, self.where = epoch, where
    @property
    def order(self): return 96 if self.where == 'after' else 94
    def _die(self): raise RuntimeError('dead')
    def after_batch(self):
        if self.where == 'batch' and (self.learn.epoch, self.learn.iter) == (self.at, 2): self._die()
    def after_epoch(self):
        if self.where != 'batch' and self.learn.epoch == self.at: self._die()


def fit(cbs, folder=None, die=(), epochs=4, dropout=.2, say=None, **kwargs):
    "Train, with dropout and shuffled batches, and die where told: `(weights, values, smoothed losses)`, or `None` if dead"
    net = model(dropout=dropout)
    own = cbs(net)
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    dls = data()
    dls.train.shuffle = True
    learn = learner([*own, ParamScheduler(dict(lr=SchedCos(.1, 0.))), *([Resume(folder, say)] if folder else []), *([Die(*die)] if die else [])], dls=dls, net=net, **kwargs)
    dls.train.rng = random.Random(3)
    if die:
        with pytest.raises(RuntimeError, match='dead'): learn.fit(epochs)
        return None
    learn.fit(epochs)
    return state(learn.model), [list(v) for v in learn.recorder.values], [float(l) for l in learn.recorder.losses], learn


def assert_same(a, b):
    assert same(a[0], b[0]) and a[2] == b[2] and len(a[1]) == len(b[1])
    for x, y in zip(a[1], b[1]): np.testing.assert_array_equal(np.array(x, float), np.array(y, float))


@pytest.mark.parametrize('name', STRATEGIES)
def test_every_strategy_goes_on_to_the_bit(name, tmp_path):
    def cbs(net): return [*make(name, .3, net), Telemetry(every=3)]
    whole = fit(cbs)
    for die in ((0, 'batch'), (0, 'after'), (1, 'batch'), (3, 'before'), (3, 'after')): fit(cbs, tmp_path, die)
    assert epochs_done(tmp_path) == 4
    assert_same(whole, fit(cbs, tmp_path))


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
def test_a_teacher_in_half_precision_goes_on_to_the_bit(cls, tmp_path):
    def cbs(net): return [cls(.3, teacher_dtype='bfloat16')]
    whole = fit(cbs)
    for die in ((1, 'batch'), (2, 'after')): fit(cbs, tmp_path, die)
    assert_same(whole, fit(cbs, tmp_path))
    assert not same(whole[0], fit(lambda net: [cls(.3)])[0])


def test_adam_and_what_is_learned_beside(tmp_path):
    paths = []
    def cbs(net):
        paths.append(PathIntegral())
        return [paths[-1], KeepBest()]
    kw = dict(opt_func=Adam, metrics=accuracy)
    whole = fit(cbs, **kw)
    for die in ((1, 'batch'), (2, 'after')): fit(cbs, tmp_path, die, **kw)
    assert_same(whole, fit(cbs, tmp_path, **kw))
    a, b = paths[0].importance(), paths[-1].importance()
    assert same(a.diag, b.diag) and a.n == b.n


def test_what_it_depends_on(tmp_path):
    "Each thing that is kept counts: left out, the fit ends elsewhere"
    def cbs(net): return make('ema_teacher', 3., net)
    whole = fit(cbs)
    fit(cbs, tmp_path, (1, 'after'))
    file = next(tmp_path.glob('epoch-*.pt'))
    saved = torch.load(file, weights_only=True)
    for part in ('model', 'opt', 'random', 'loaders', 'callbacks'):
        other = dict(saved)
        if part == 'model': other[part] = {k:v + .01 if v.is_floating_point() else v for k, v in saved[part].items()}
        elif part == 'opt': other[part] = dict(saved[part], state=[{k:v*0 if torch.is_tensor(v) else v for k, v in s.items()} for s in saved[part]['state']])
        elif part == 'random': other[part] = dict(saved[part], torch_state=torch.Generator().manual_seed(5).get_state())
        elif part == 'loaders': other[part] = [random.Random(9).getstate()]*len(saved[part])
        else:
            cb = dict(saved[part]['ema_teacher'])
            cb['teacher'] = {k:v + .1 if v.is_floating_point() else v for k, v in cb['teacher'].items()}
            other[part] = {'ema_teacher':cb}
        folder, out = tmp_path/part, io.BytesIO()
        folder.mkdir()
        torch.save(other, out)
        store.put(folder, 'epoch-00002', out.getvalue(), 'pt')
        assert not same(whole[0], fit(cbs, folder)[0]), part


def test_loading_workers_draw_the_same(tmp_path):
    from fastai.data.core import DataLoaders, Datasets, TfmdDL
    from fasttransform import Transform

    class Noise(Transform):
        def encodes(self, x): return x + torch.randn(()) + random.random() + np.random.rand()
    def dls():
        d = data()
        sets = Datasets(list(range(48)), tfms=[[lambda i: d.train_ds[i][0], Noise()], [lambda i: d.train_ds[i][1]]], splits=[range(48), range(8)])
        return DataLoaders(TfmdDL(sets.train, bs=8, num_workers=2, shuffle=True), TfmdDL(sets.valid, bs=8, num_workers=0), device='cpu')
    def go(folder=None, die=()):
        torch.manual_seed(4), random.seed(4), np.random.seed(4)
        d, net = dls(), model()
        d.train.rng = random.Random(3)
        learn = learner([*([Resume(folder)] if folder else []), *([Die(*die)] if die else [])], dls=d, net=net)
        if die:
            with pytest.raises(RuntimeError, match='dead'): learn.fit(3)
            return
        learn.fit(3)
        return state(learn.model)
    whole = go()
    go(tmp_path, (1, 'batch'))
    assert epochs_done(tmp_path) == 1 and same(whole, go(tmp_path))


def test_a_damaged_file_is_named_and_the_fit_begins_anew(tmp_path):
    def cbs(net): return [SelfDistill(1.)]
    whole, told = fit(cbs), []
    for damage in (lambda f: f.write_bytes(f.read_bytes()[:-100]), lambda f: f.write_bytes(b''), lambda f: f.write_bytes(f.read_bytes()[:500] + b'x' + f.read_bytes()[501:])):
        fit(cbs, tmp_path, (2, 'batch'))
        file = next(tmp_path.glob('epoch-*.pt'))
        damage(file)
        assert_same(whole, fit(cbs, tmp_path, say=told.append))
        assert file.name in told[-1] and 'damaged' in told[-1] and 'starts from its first epoch' in told[-1]
        Resume(tmp_path).remove()
    assert len(told) == 3


def test_a_pickle_in_its_place_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'), 'w'))
    store.put(tmp_path, 'epoch-00001', pickle.dumps(Evil()), 'pt')
    told = []
    assert_same(fit(lambda net: [], tmp_path, say=told.append), fit(lambda net: []))
    assert not (tmp_path/'ran').exists() and 'not what Resume writes' in told[0] and 'starts from its first epoch' in told[0]


def test_another_fit_is_refused(tmp_path):
    fit(lambda net: [SelfDistill(1.)], tmp_path, (1, 'after'))
    with pytest.raises(InputError, match='other callbacks'): fit(lambda net: make('ema_teacher', 1., net), tmp_path)
    with pytest.raises(InputError, match='other epochs'): fit(lambda net: [SelfDistill(1.)], tmp_path, epochs=5)
    learn = fit(lambda net: [SelfDistill(1.)], tmp_path)[3]
    with pytest.raises(InputError, match='use another folder'): learn.fit(4)
    Resume(tmp_path).remove()
    assert epochs_done(tmp_path) == 0


def test_validate_and_lr_find_write_nothing(tmp_path):
    learn = learner([SelfDistill(1.), Resume(tmp_path/'r')])
    learn.validate()
    learn.get_preds()
    assert not (tmp_path/'r').exists()
    learn.fit(1)
    assert epochs_done(tmp_path/'r') == 1
    before = list((tmp_path/'r').iterdir())
    learn.validate()
    assert list((tmp_path/'r').iterdir()) == before


def test_all_that_has_a_state_says_so():
    "A new strategy whose attributes change in training must be `Stateful`, or be renewed when an epoch begins"
    for name in STRATEGIES:
        for cb in make(name, .5, model()):
            if getattr(type(cb), '_stateattrs', ()) and name not in ('linear_probe', 'lp_ft', 'layer_decay', 'lower_lr', 'frozen_bn', 'lora', 'stoch_norm'): assert isinstance(cb, Stateful), name
