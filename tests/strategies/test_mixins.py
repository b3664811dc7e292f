"Weights from before training are taken once."
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from helpers import Net, Source, data, learner, model, same, state
from strategy_helpers import TAKES, Stop, seeded_head
from torch import nn

from sdfast.models.weights import save_weights
from sdfast.strategies import (
    BYOT,
    L2SP,
    STRATEGIES,
    CoTuning,
    EMATeacher,
    FeatureMaps,
    FixedTeacher,
    PathIntegral,
    SelfDistill,
    Telemetry,
    WiSEFT,
)


@pytest.mark.parametrize('name', sorted(TAKES))
def test_the_anchor_survives_whatever_a_learner_does(name, tmp_path):
    (cb,) = STRATEGIES[name].callbacks(1e-3, Source(model()), **(dict(decay=1.) if name == 'ema_teacher' else {}))
    net = model()
    learn, start = learner(cb, net=net, path=tmp_path), state(net[0])
    def held(): return dict(cb.teacher.named_parameters()) if hasattr(type(cb), 'teacher') else cb.anchors
    def fails(error):
        with pytest.raises(type(error)): learn.fit(1, cbs=Stop(error))
    learn.lr_find(num_it=8, show_plot=False)
    learn.validate()
    steps = [
        lambda: fails(KeyboardInterrupt()),
        lambda: learn.validate(),
        lambda: learn.fit(1),
        lambda: learn.get_preds(),
        lambda: learn.lr_find(num_it=8, show_plot=False),
        lambda: fails(RuntimeError('x')),
        lambda: learn.fine_tune(1),
        lambda: learn.fit(1, cbs=Stop(CancelFitException())),
        lambda: learn.fit(2, start_epoch=1),
        lambda: learn.fit(1),
    ]
    for step in steps:
        step()
        assert all(torch.equal(v, start[n]) for n, v in held().items())
        assert held().keys() >= dict(net[0].named_parameters()).keys()
    assert not same(start, state(net[0]))


@pytest.mark.parametrize('make_cb', [lambda a: FixedTeacher(1., anchor=a), lambda a: L2SP(1., anchor=a)])
def test_anchor_is_taken_once_and_never_again(make_cb, tmp_path):
    cb = make_cb(None)
    learn = learner(cb, path=tmp_path)
    start = state(learn.model[0])
    held = lambda cb: cb.anchors if isinstance(cb, L2SP) else cb.teacher.state_dict()
    for fit in (lambda: learn.lr_find(num_it=8, show_plot=False), lambda: learn.fit(1), lambda: learn.validate(),
                lambda: learn.fit(2, start_epoch=1), lambda: learn.fine_tune(1), lambda: learn.get_preds()):
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
    with pytest.raises(ValueError, match='Pass anchor='): learner(cls(1.)).fit(3, start_epoch=1)
    learn = learner(cls(1., anchor=model()[0]))
    learn.fit(3, start_epoch=1)
    assert len(learn.recorder.values) == 3


REUSED = dict(self_distill=lambda: SelfDistill(1.), fixed=lambda: FixedTeacher(1.), ema=lambda: EMATeacher(1.),
              l2sp=lambda: L2SP(1., which='all'), maps=lambda: FeatureMaps(1.))


@pytest.mark.parametrize('name', REUSED)
def test_a_callback_holds_each_model_to_its_own_weights(name):
    cb, terms = REUSED[name](), []
    class See(Callback):
        order, run_valid = 6, False
        def after_loss(self):
            if self.epoch == self.iter == 0: terms.append(cb.pull.item())
    for seed in (0, 1):
        learn = learner([cb, See()], net=model(seed))
        learn.fit(2)
        learn.remove_cb(cb)
    assert terms == [0., 0.]
    terms.clear()
    for net in (model(2), model(3)):  # by `attach`, too
        cb.attach(net.train())
        cb.start_epoch()
        net(torch.randn(2, 1, 6, 6))
        terms.append(cb.loss().item())
        cb.detach()
    assert terms == [0., 0.]


def test_reused_recipes_and_measurements_start_again_as_well():
    wise, telemetry, path = WiSEFT(0.), Telemetry(), PathIntegral()
    for seed in (0, 1):
        net = model(seed)
        start = state(net[0])
        learn = learner([wise, telemetry], net=net, lr=1e-3)
        learn.fit(1)
        assert same(start, state(net[0]))
        assert learn.recorder.values[0][learn.recorder.metric_names.index('moved') - 1] < .2
        learner(path, net=net, lr=1e-3).fit(1)
        assert all(torch.equal(v, start[n]) for n, v in path.start.items()) and path.steps == 6


def test_one_encoder_and_a_second_task():
    "The anchor is of before the first task; heads that belong to the old head are made anew"
    fixed, byot, co = FixedTeacher(1.), BYOT(1., layers=['conv']), CoTuning(1., seeded_head())
    net = model()
    start = state(net[0])
    learn = learner([fixed, byot, co], net=net, lr=.01)
    learn.fit(1)
    held, old, relation = state(fixed.teacher), byot.aux, co.relation
    learn.fit(1)  # the same task
    assert byot.aux is old and co.relation is relation
    learn.model[1], learn.dls, learn.opt = nn.Linear(6, 3), data(seed=4), None
    learn.fit(1)
    assert byot.aux is not old and co.relation is not relation
    assert all(torch.equal(v, start[k]) for k, v in state(fixed.teacher).items() if 'num' not in k)
    assert same(held, state(fixed.teacher))
    learn.model[1], learn.opt = nn.Linear(6, 5), None
    learn.fit(1)
    assert byot.aux[0][1].out_features == 5


def test_a_container_made_anew_at_each_call_is_the_same_encoder():
    net = Two()
    cb = L2SP(1., encoder=lambda m: nn.Sequential(m.a, m.b))
    learn = learner(cb, net=net)
    start = net.a.weight.detach().clone()
    learn.fit(1)
    learn.fit(1)
    assert torch.equal(cb.anchors['0.weight'], start) and not torch.equal(net.a.weight, start)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.flat, self.a, self.b, self.head = nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    def forward(self, x): return self.head(self.b(self.a(self.flat(x)).relu()))
