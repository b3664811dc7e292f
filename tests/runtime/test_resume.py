"A fit that died and was resumed is, bit for bit, the fit that did not die."
import io
import pickle
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fasttransform import Transform
from helpers import data, learner, make, model, same, state

from sdfast.errors import InputError
from sdfast.runtime import store
from sdfast.runtime.resume import Resumable, Resume, epochs_done
from sdfast.strategies import STRATEGIES, EMATeacher, FixedTeacher, PathIntegral, SelfDistill, Telemetry
from sdfast.study.fit import KeepBest


class Die(Callback):
    "Raises an exception in the middle of an epoch ('batch'), or at its end 'before' or 'after' `Resume` saves it"
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
    """Train with dropout and shuffled batches, and die at `die`, the arguments of `Die`.

    Returns weights, values of the epochs, smoothed losses and the learner, or `None` if the fit died."""
    net = model(dropout=dropout)
    cbs = [*cbs(net), ParamScheduler(dict(lr=SchedCos(.1, 0.)))]
    if folder: cbs.append(Resume(folder, say))
    if die: cbs.append(Die(*die))
    seed_all(1)
    dls = data()
    dls.train.shuffle = True
    learn = learner(cbs, dls=dls, net=net, **kwargs)
    dls.train.rng = random.Random(3)
    if die:
        with pytest.raises(RuntimeError, match='dead'): learn.fit(epochs)
        return None
    learn.fit(epochs)
    values, losses = [list(v) for v in learn.recorder.values], [float(l) for l in learn.recorder.losses]
    return state(learn.model), values, losses, learn


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def assert_same(a, b):
    assert same(a[0], b[0])
    assert a[2] == b[2]
    np.testing.assert_array_equal(np.array(a[1], float), np.array(b[1], float))


@pytest.mark.parametrize('name', STRATEGIES)
def test_every_strategy_resumes_bit_for_bit(name, tmp_path):
    def cbs(net): return [*make(name, .3, net), Telemetry(every=3)]
    whole = fit(cbs)
    for die in ((0, 'batch'), (0, 'after'), (1, 'batch'), (3, 'before'), (3, 'after')): fit(cbs, tmp_path, die)
    assert epochs_done(tmp_path) == 4
    assert_same(whole, fit(cbs, tmp_path))


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
def test_a_teacher_in_half_precision_resumes_bit_for_bit(cls, tmp_path):
    def cbs(net): return [cls(.3, teacher_dtype='bfloat16')]
    whole = fit(cbs)
    for die in ((1, 'batch'), (2, 'after')): fit(cbs, tmp_path, die)
    assert_same(whole, fit(cbs, tmp_path))
    assert not same(whole[0], fit(lambda net: [cls(.3)])[0])


def test_adam_and_callbacks_with_state(tmp_path):
    paths = []
    def cbs(net):
        paths.append(PathIntegral())
        return [paths[-1], KeepBest()]
    kw = dict(opt_func=Adam, metrics=accuracy)
    whole = fit(cbs, **kw)
    for die in ((1, 'batch'), (2, 'after')): fit(cbs, tmp_path, die, **kw)
    assert_same(whole, fit(cbs, tmp_path, **kw))
    a, b = paths[0].importance(), paths[-1].importance()
    assert same(a.diag, b.diag)
    assert a.n == b.n


def test_each_saved_part_counts(tmp_path):
    "With another value the fit ends elsewhere"
    def cbs(net): return make('ema_teacher', 3., net)
    whole = fit(cbs)
    fit(cbs, tmp_path, (1, 'after'))
    file = next(tmp_path.glob('epoch-*.pt'))
    saved = torch.load(file, weights_only=True)
    for part, other in changed_parts(saved).items():
        folder, out = tmp_path/part, io.BytesIO()
        folder.mkdir()
        torch.save(saved | {part:other}, out)
        store.put(folder, 'epoch-00002', out.getvalue(), 'pt')
        assert not same(whole[0], fit(cbs, folder)[0]), part


def changed_parts(saved):
    def shifted(state, by): return {k:v + by if v.is_floating_point() else v for k, v in state.items()}
    def zeroed(state): return {k:v*0 if torch.is_tensor(v) else v for k, v in state.items()}
    teacher = saved['callbacks']['ema_teacher']
    return dict(
        model=shifted(saved['model'], .01),
        opt=saved['opt'] | dict(state=[zeroed(s) for s in saved['opt']['state']]),
        random=saved['random'] | dict(torch_state=torch.Generator().manual_seed(5).get_state()),
        loaders=[random.Random(9).getstate()]*len(saved['loaders']),
        callbacks=dict(ema_teacher=teacher | dict(teacher=shifted(teacher['teacher'], .1))))


class Noise(Transform):
    "Draws from all random number generators"
    def encodes(self, x): return x + torch.randn(()) + random.random() + np.random.rand()


def noisy_dls():
    d = data()
    tfms = [[lambda i: d.train_ds[i][0], Noise()], [lambda i: d.train_ds[i][1]]]
    sets = Datasets(list(range(48)), tfms=tfms, splits=[range(48), range(8)])
    train = TfmdDL(sets.train, bs=8, num_workers=2, shuffle=True)
    return DataLoaders(train, TfmdDL(sets.valid, bs=8, num_workers=0), device='cpu')


def test_loading_workers_draw_the_same(tmp_path):
    def weights(cbs=(), dies=False):
        seed_all(4)
        d, net = noisy_dls(), model()
        d.train.rng = random.Random(3)
        learn = learner(cbs, dls=d, net=net)
        if dies:
            with pytest.raises(RuntimeError, match='dead'): learn.fit(3)
        else: learn.fit(3)
        return state(learn.model)
    whole = weights()
    weights([Resume(tmp_path), Die(1, 'batch')], dies=True)
    assert epochs_done(tmp_path) == 1
    assert same(whole, weights([Resume(tmp_path)]))


DAMAGE = dict(cut=lambda data: data[:-100], empty=lambda data: b'', flipped=lambda data: data[:500] + b'x' + data[501:])


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_file_is_named_and_the_fit_starts_again(tmp_path, how):
    def cbs(net): return [SelfDistill(1.)]
    whole, lines = fit(cbs), []
    fit(cbs, tmp_path, (2, 'batch'))
    file = next(tmp_path.glob('epoch-*.pt'))
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    assert_same(whole, fit(cbs, tmp_path, say=lines.append))
    line, = lines
    assert file.name in line
    assert 'damaged' in line
    assert 'starts from its first epoch' in line


def test_a_pickle_in_its_place_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'ran'), 'w'))
    store.put(tmp_path, 'epoch-00001', pickle.dumps(Evil()), 'pt')
    lines = []
    assert_same(fit(lambda net: [], tmp_path, say=lines.append), fit(lambda net: []))
    assert not (tmp_path/'ran').exists()
    assert 'not a checkpoint of Resume' in lines[0]
    assert 'starts from its first epoch' in lines[0]


def test_another_fit_is_refused(tmp_path):
    def cbs(net): return [SelfDistill(1.)]
    fit(cbs, tmp_path, (1, 'after'))
    with pytest.raises(InputError, match='other callbacks'): fit(lambda net: make('ema_teacher', 1., net), tmp_path)
    with pytest.raises(InputError, match='other epochs'): fit(cbs, tmp_path, epochs=5)
    learn = fit(cbs, tmp_path)[3]
    with pytest.raises(InputError, match='use a new folder'): learn.fit(4)
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


# their attributes follow from their arguments, the epoch and the model
WITHOUT_STATE = ('linear_probe', 'lp_ft', 'layer_decay', 'lower_lr', 'encoder_lr', 'frozen_bn', 'lora', 'stoch_norm')


def test_callbacks_with_state_are_stateful():
    "A new strategy whose attributes change in training must be `Resumable`, or be renewed when an epoch starts"
    for name in STRATEGIES:
        if name in WITHOUT_STATE: continue
        for cb in make(name, .5, model()):
            if getattr(type(cb), '_stateattrs', ()): assert isinstance(cb, Resumable), name
