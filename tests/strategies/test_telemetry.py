"Telemetry against numbers by hand."
import math

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from helpers import learner, make, model, same, state
from strategy_helpers import Other

from sdfast.errors import InputError
from sdfast.strategies import L2SP, FixedTeacher, LoRA, SelfDistill, Telemetry


def test_telemetry_by_hand():
    ratios, cosines, ages, cb = [], [], [], SelfDistill(2.)
    class Spy(Callback):
        order, run_valid = 8, False
        def after_loss(self):
            ratios.append((cb.pull.item(), self.learn.loss.item()))
            ages.append(self.iter)
            if self.iter in (1, 3, 5):
                ws = list(self.learn.model[0].parameters())
                a, b = (torch.cat([g.flatten() for g in torch.autograd.grad(t, ws, retain_graph=True)])
                        for t in (self.learn.loss, cb.pull))
                cosines.append(F.cosine_similarity(a.double(), b.double(), 0).item())
    net = model()
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    learn = learner([cb, Telemetry(every=2), Spy()], net=net)
    learn.fit(2)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[1]))
    pulls, losses = zip(*ratios[6:])
    assert row['self_distill_ratio'] == pytest.approx(sum(pulls)/sum(losses), rel=1e-5)
    assert row['self_distill_cos'] == pytest.approx(sum(cosines[3:])/3, rel=1e-4)
    assert -1 <= row['self_distill_cos'] <= 1
    assert row['self_distill_age'] == pytest.approx(2.5)  # 0 to 5 batches, from 0 again in each epoch
    assert row['moved'] == pytest.approx(far(dict(net[0].named_parameters()), start), rel=1e-4)


def test_the_cosine_is_sampled_by_the_batches_of_the_fit():
    """Of 4 epochs of 6 batches every 10th batch is taken: the 2nd, the 12th and the 22nd. So short epochs do not each
    pay for one."""
    learn = learner([L2SP(.1), Telemetry(every=10)])
    learn.fit(4)
    at = list(learn.recorder.metric_names[1:]).index('l2sp_cos')
    assert [math.isnan(row[at]) for row in learn.recorder.values] == [False, False, True, False]


@pytest.mark.parametrize('name', ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'pskd', 'l2sp', 'ewc'])
def test_telemetry_changes_nothing(name):
    plain = learner(make(name, .5, model()), net=model(dropout=.3))
    watched = learner([*make(name, .5, model()), Telemetry(every=1)], net=model(dropout=.3))
    for learn in (plain, watched):
        torch.manual_seed(3)
        learn.fit(2)
    assert same(state(plain.model), state(watched.model)) and len(watched.metrics) == 0
    ages = dict(zip(watched.recorder.metric_names[1:], watched.recorder.values[1]))
    if name in ('fixed_teacher', 'ema_teacher'): assert ages[f'{name}_age'] == (8.5 if name == 'fixed_teacher' else 0)
    assert ages['moved'] > 0


def row(learn): return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))


def far(now, start):
    "`||now - start|| / ||start||`"
    moved = sum(((now[n] - w)**2).sum() for n, w in start.items())
    return (moved/sum((w**2).sum() for w in start.values())).sqrt().item()


def test_moved_is_since_before_training_and_age_since_the_teacher_was_made(tmp_path):
    net = model()
    def weights(): return {n:p.detach().clone() for n, p in net[0].named_parameters()}
    learn, start = learner([FixedTeacher(.1), Telemetry()], net=net, path=tmp_path), weights()
    learn.lr_find(num_it=8, show_plot=False)
    for epochs, age in ((2, 8.5), (1, 14.5)):  # 6 batches an epoch
        learn.fit(epochs)
        assert row(learn)['moved'] == pytest.approx(far(weights(), start), rel=1e-4)
        assert row(learn)['fixed_teacher_age'] == age
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
    with pytest.raises(InputError, match='bn.bias are not in this one|bn.weight, conv.bias'):
        learner(Telemetry(anchor={'conv.weight': start['conv.weight']})).fit(1)
    with pytest.raises(InputError, match='not from str'): learner(Telemetry(anchor='x.pth')).fit(1)
    other = learner(Telemetry(encoder='body'), net=Other())
    other.fit(1)
    assert row(other)['moved'] > 0


def test_moved_sees_what_adapters_add():
    pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[lora]'")
    net = model()
    learn = learner([LoRA(2, 2), Telemetry()], net=net)
    start = {n:p.detach().clone() for n, p in net[0].named_parameters()}
    for _ in range(2):  # they are merged when a fit ends
        learn.fit(1)
        assert row(learn)['moved'] == pytest.approx(far(dict(net[0].named_parameters()), start), rel=1e-4)
