"What targets are, and which strategies take them."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.losses import (
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLossFlat,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from helpers import data, learner, model
from strategy_helpers import seeded_head
from timm import loss as timm_loss
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import (
    BYOT,
    PSKD,
    R3F,
    CoTuning,
    LwF,
    Replay,
    class_numbers,
    logits_of,
    loss_family,
    target_kind,
    task_loss,
)

Z = torch.tensor([[1., -2., .5], [0., 3., 1.], [2., 2., -1.], [-1., 0., 1.]])
LABELS, HOT = torch.tensor([0, 1, 2, 2]), torch.tensor([[1., 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
ONE_HOT = F.one_hot(LABELS, 3).float()


class Focal(nn.Module):
    "A loss of one's own"
    def forward(self, z, y):
        ce = F.cross_entropy(z, y, reduction='none')
        return ((1 - (-ce).exp())**2*ce).mean()


class OneVersusAll:
    "A loss of class numbers that is no softmax's"
    def __call__(self, z, y): return F.binary_cross_entropy_with_logits(z, F.one_hot(y, z.shape[1]).float())


class Sigmoid(OneVersusAll):
    def activation(self, z): return z.sigmoid()


@pytest.mark.parametrize('kind,outputs,targets,loss', [
    ('classes', Z, LABELS, None), ('classes', Z, LABELS[:, None], None), ('classes', Z, LABELS.int(), F.cross_entropy),
    ('classes', Z, LABELS, CrossEntropyLossFlat(weight=torch.ones(3))), ('classes', Z, LABELS, FocalLossFlat()),
    ('classes', Z, LABELS, LabelSmoothingCrossEntropyFlat()), ('classes', Z, LABELS, nn.NLLLoss()),
    ('classes', Z, LABELS, partial(F.cross_entropy, label_smoothing=.1)), ('classes', Z, LABELS, Focal()),
    ('classes', Z, None, nn.CrossEntropyLoss()), ('classes', Z, LABELS, nn.CrossEntropyLoss().forward),
    ('soft', Z, ONE_HOT, None), ('soft', Z, HOT/HOT.sum(1, keepdim=True).clamp(1), nn.CrossEntropyLoss()),
    ('soft', Z, Z.softmax(1), None), ('soft', Z, ONE_HOT, timm_loss.SoftTargetCrossEntropy()),
    ('multi-label', Z, HOT, None), ('multi-label', Z, HOT.bool(), None), ('multi-label', Z, HOT.long(), None),
    ('multi-label', Z, ONE_HOT, BCEWithLogitsLossFlat()), ('multi-label', Z, LABELS, timm_loss.BinaryCrossEntropy()),
    ('multi-label', Z, LABELS, Sigmoid()), ('multi-label', Z, None, nn.BCEWithLogitsLoss()),
    ('binary', Z[:, :1], HOT[:, :1], None), ('binary', Z[:, :1], HOT[:, 0].long(), None),
    ('binary', Z[:, 0], HOT[:, 0], None), ('binary', Z[:, 0], HOT[:, 0], nn.BCEWithLogitsLoss()),
    ('regression', Z, Z, None), ('regression', Z[:, :1], Z[:, 0], None), ('regression', Z, HOT, MSELossFlat()),
    ('dense', Z[..., None], LABELS[:, None], nn.CrossEntropyLoss()),
    ('dense', torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).long(), None)])
def test_the_loss_tells_the_kind_or_else_the_targets(kind, outputs, targets, loss):
    assert target_kind(outputs, targets, loss) == kind


@pytest.mark.parametrize('message,outputs,targets,loss', [
    ('probabilities, where logits are needed', Z, HOT, BCELossFlat()),
    ('one logit is always 0', Z[:, :1], LABELS, nn.CrossEntropyLoss()),
    ('no function of the softmax', Z, LABELS, OneVersusAll()),
    ('can mean several things.*attach', Z, HOT*.5, None), ('can mean several things', Z, HOT.long()*2, None),
    ('do not fit outputs', Z, Z[:, :2], None), ('do not fit outputs', Z, LABELS.float(), None),
    ('other than 0 and 1', Z[:, :1], LABELS, None), ('targets are needed', Z, None, None),
    ('one tensor of targets, not tuple', Z, (LABELS, LABELS), None)])
def test_what_leaves_open_what_is_meant_is_refused(message, outputs, targets, loss):
    with pytest.raises(InputError, match=message): target_kind(outputs, targets, loss)


def test_families_of_losses_by_what_they_do():
    "A softmax does not change if a number is added to all logits, a sigmoid does"
    for loss, y in ((nn.CrossEntropyLoss(), LABELS), (LabelSmoothingCrossEntropyFlat(), LABELS),
                    (nn.BCEWithLogitsLoss(), HOT), (nn.MultiLabelSoftMarginLoss(), HOT)):
        same = torch.allclose(loss(Z, y), loss(Z + 1, y), atol=1e-5)
        assert loss_family(loss) == ('softmax' if same else 'sigmoid')
    assert loss_family(Focal()) is None and loss_family(None) is None and loss_family(nn.L1Loss()) == 'distance'


class Output(dict):
    "Like transformers' `ModelOutput`"
    __getattr__ = dict.__getitem__


def test_logits_class_numbers_and_the_plain_loss():
    assert logits_of(Output(logits=Z)) is Z and logits_of(Z) is Z and logits_of(type('Out', (), dict(logits=Z))()) is Z
    for other in ((Z, Z), dict(features=Z), None):
        with pytest.raises(InputError, match='R3F needs a model that returns logits.*wrap it'): logits_of(other, 'R3F')
    assert class_numbers(LABELS[:, None].int()).equal(LABELS)
    assert task_loss(Z, LABELS[:, None], 'classes') == F.cross_entropy(Z, LABELS)
    assert task_loss(Z, HOT.long(), 'multi-label') == F.binary_cross_entropy_with_logits(Z, HOT)
    assert task_loss(Z, LABELS, 'classes', Focal()) == Focal()(Z, LABELS)


# ---- what strategies make of it

class Turn(Callback):
    "Turns class numbers into other targets"
    def __init__(self, f): self.f = f
    def before_batch(self): self.learn.yb = tuple(self.f(y) for y in self.yb)


def hot(y): return torch.stack([y != 0, y > 1, y == 1], 1).float()


MAKERS = dict(byot=lambda: BYOT(1., layers=['conv']), pskd=lambda: PSKD(.5), r3f=lambda: R3F(1., eps=.1),
              lwf=lambda: LwF(1., seeded_head()), co_tuning=lambda: CoTuning(1., seeded_head(), torch.ones(3, 5)/5))
# targets, number of outputs, loss, and the strategies that take them
SITUATIONS = dict(
    column=(lambda y: y[:, None], 3, CrossEntropyLossFlat(), {*MAKERS}),
    soft=(lambda y: F.one_hot(y, 3).float(), 3, nn.CrossEntropyLoss(), {'byot', 'pskd', 'r3f', 'lwf'}),
    multi_label=(hot, 3, BCEWithLogitsLossFlat(), {'r3f', 'lwf'}),
    one_logit=(lambda y: (y > 0).float()[:, None], 1, BCEWithLogitsLossFlat(), {'r3f'}),
    one_flat_logit=(lambda y: (y > 0).float(), 1, lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y),
                    {'r3f'}),
    regression=(lambda y: y.float()[:, None] - .5, 1, MSELossFlat(), set()),
    summed=(lambda y: y, 3, nn.CrossEntropyLoss(reduction='sum'), {'r3f', 'lwf', 'co_tuning'}),
    one_versus_all=(lambda y: y, 3, OneVersusAll(), set()))


@pytest.mark.parametrize('situation', SITUATIONS)
@pytest.mark.parametrize('name', MAKERS)
def test_a_strategy_acts_on_what_it_is_defined_for_and_refuses_the_rest(name, situation):
    f, n, loss, taken = SITUATIONS[situation]
    net = nn.Sequential(model()[0], nn.Linear(6, n))
    learn = learner([MAKERS[name](), Turn(f)], net=net, lr=.01)
    learn.loss_func = loss
    if name not in taken:
        why = 'is defined for|no function of the softmax|mean over the batch|says nothing about the 5'
        with pytest.raises(InputError, match=why): learn.fit(2)
        return
    learn.fit(2)
    assert learn.recorder.values[-1][2] != 0


@pytest.mark.parametrize('name', ['byot', 'pskd'])
def test_losses_of_ones_own_must_be_means(name):
    "A function does not say how it reduces"
    def fit(loss):
        learn = learner([MAKERS[name]()], lr=.01)
        learn.loss_func = loss
        learn.fit(2)
    fit(lambda z, y: F.cross_entropy(z, y, label_smoothing=.1))
    with pytest.raises(InputError, match="a mean over the batch, not reduction='sum'"):
        fit(lambda z, y: F.cross_entropy(z, y, reduction='sum'))


def test_the_wrong_output_is_refused_in_words():
    class Unet(nn.Sequential):
        def forward(self, x): return super().forward(x)[:, :, None, None].expand(-1, -1, 4, 4)
    for name in ('byot', 'pskd', 'r3f'):
        learn = learner([MAKERS[name](), Turn(lambda y: y[:, None, None].expand(-1, 4, 4))], net=Unet(*model()))
        learn.loss_func = CrossEntropyLossFlat(axis=1)
        with pytest.raises(InputError, match='not for a target for each place'): learn.fit(1)
    several = learner([PSKD(.5), Turn(lambda y: y)])
    several.add_cb(type('Two', (Callback,), dict(before_batch=lambda self: setattr(self.learn, 'yb', self.yb*2)))())
    several.loss_func = lambda z, a, b: F.cross_entropy(z, a)
    with pytest.raises(InputError, match='PSKD: expected one tensor of targets, not tuple'): several.fit(1)


def test_a_callback_that_mixes_labels_in_its_own_way_is_refused():
    class Mine(MixUp):
        def before_train(self): self.old, self.learn.loss_func = self.learn.loss_func, self.mine
        def after_train(self): self.learn.loss_func = self.old
        def before_batch(self): pass
        def mine(self, z, y): return self.old(z, y)
    class Other(Callback):
        before_train, after_train, mine = Mine.before_train, Mine.after_train, Mine.mine
    with pytest.raises(InputError, match='Other replaces the loss'):
        learner([CoTuning(1., seeded_head(), torch.ones(3, 5)/5), Other()]).fit(1)


def test_targets_that_change_their_kind_are_refused():
    "In a loop whose loss is not known"
    net = model()
    cb = R3F(1., eps=.1).attach(net)
    cb.start_epoch()
    x, _ = next(iter(data().train))
    net(x[:4])
    cb.loss(ONE_HOT)
    net(x[:4])
    with pytest.raises(InputError, match='R3F: first targets looked like class probabilities.*criterion'): cb.loss(HOT)
    cb.detach()
    with R3F(1., eps=.1).attach(net, criterion=nn.BCEWithLogitsLoss()) as known:
        known.start_epoch()
        for y in (ONE_HOT, HOT, None):
            net(x[:4])
            assert known.loss(y) > 0


class Transformer(nn.Module):
    "Computes its loss itself, as models of transformers do"
    def __init__(self, problem):
        super().__init__()
        self.encoder, self.head = model()
        self.config = type('Config', (), dict(problem_type=problem))()

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.encoder(pixel_values))
        loss = F.cross_entropy if self.config.problem_type.startswith('single') else F.binary_cross_entropy_with_logits
        return Output(loss=loss(logits, labels), logits=logits)


def test_labels_given_to_the_model_count_as_targets():
    x, y = next(iter(data().train))
    def term(cb, problem, labels):
        net = Transformer(problem)
        with cb.attach(net, torch.optim.SGD(net.parameters(), .1), epochs=2) as cb:
            for _ in range(2):
                cb.start_epoch()
                loss = net(pixel_values=x, labels=labels).loss + cb.loss()
                loss.backward()
                cb.after_step()
        return cb.mean_term()
    single, multi = 'single_label_classification', 'multi_label_classification'
    assert term(R3F(1., eps=.1), single, y) > 0 and term(R3F(1., eps=.1), multi, F.one_hot(y, 3).float()) > 0
    assert term(BYOT(1., layers=['conv']), single, y) > 0 and abs(term(PSKD(.5), single, y)) > 0
    with pytest.raises(InputError, match='PSKD is defined for .*, not for multi-label targets'):
        term(PSKD(.5), multi, F.one_hot(y, 3).float())


def test_the_loss_of_a_learner_takes_what_the_model_returns():
    class Returns(nn.Sequential):
        def forward(self, x): return Output(logits=super().forward(x))
    def weights(net, loss):
        torch.manual_seed(0)
        learn = learner([BYOT(1., layers=['conv']), PSKD(.5), R3F(1., eps=.1)], net=net)
        learn.loss_func = loss
        learn.fit(2)
        return torch.cat([p.detach().flatten() for p in net.parameters()])
    assert weights(Returns(*model()), lambda out, y: Focal()(out.logits, y)).equal(weights(model(), Focal()))


def test_replay_goes_by_its_own_labels():
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 2, (8,))
    def fit(y, head=None, **kwargs):
        cb = Replay(1., [(x, y)], head or nn.Linear(6, 2), **kwargs)
        learner(cb).fit(1)
        return cb.mean_term()
    head = nn.Linear(6, 2)
    assert fit(y[:, None], head) == fit(y, head)
    many = torch.stack([y, 1 - y, y], 1).float()
    with pytest.raises(InputError, match='not for multi-label targets.*loss_func'):
        fit(torch.cat([many[:1]*0, many[1:]]), nn.Linear(6, 3))
    assert fit(many, nn.Linear(6, 3), loss_func=nn.BCEWithLogitsLoss()) > 0
    with pytest.raises(InputError, match='not for one logit'): fit(y.float()[:, None], nn.Linear(6, 1))
    with pytest.raises(InputError, match='label 2 is not one of the 2 classes, 0 to 1: number the classes'): fit(y + 1)
    with pytest.raises(InputError, match='yields a dict with a, b, none of which is known as clips'):
        learner(Replay(1., [dict(a=x, b=y)], head)).fit(1)


def test_replay_compares_the_loaders_vocabulary_with_the_head():
    class Loader(list): c = 3
    batches = Loader([(torch.randn(8, 1, 6, 6), torch.zeros(8).long())])
    with pytest.raises(InputError, match='head has 5 outputs, the loader of source clips 3 classes'):
        learner(Replay(1., batches, nn.Linear(6, 5))).fit(1)
    learner(Replay(1., batches, nn.Linear(6, 3))).fit(1)
