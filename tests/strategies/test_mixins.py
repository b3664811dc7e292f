"Weights from before training are taken once."
import pytest
import torch
from fastai.callback.core import CancelFitException
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from helpers import Net, Source, learner, model, same, state
from strategy_helpers import TAKES, Stop

from sdfast.models.weights import save_weights
from sdfast.strategies import L2SP, STRATEGIES, EMATeacher, FixedTeacher


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
