"Co-Tuning against an independent logistic regression and a loop by hand."
import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fasttransform import Transform
from helpers import data, learner, model, same, state
from strategy_helpers import assert_close_nets, relate, seeded_head, term_by_hand

from sdfast.errors import InputError
from sdfast.strategies import CoTuning, category_relation


def test_the_relation_by_hand():
    probs = torch.tensor([[.8, .2, 0], [.4, .4, .2], [.1, .1, .8], [.3, .3, .4]])
    got = category_relation(probs, torch.tensor([1, 0, 1, 0]), 2)
    torch.testing.assert_close(got, torch.tensor([[.35, .35, .3], [.45, .15, .4]]))


@pytest.mark.parametrize('n_target', [2, 3])
def test_the_reverse_relation_is_bayes_of_a_logistic_regression(n_target):
    "Newton's method on the same penalised likelihood, over the strengths that cross-validation chooses from"
    g = torch.Generator().manual_seed(0)
    probs = (3*torch.randn(60, 4, generator=g)).softmax(1)
    y = probs.argmax(1) % n_target
    got = category_relation(probs, y, n_target, 'reverse')
    assert torch.allclose(got.sum(1), torch.ones(n_target)) and (got >= 0).all()
    fits = []
    for c in np.logspace(-2, 4, 7):
        k = 1 if n_target == 2 else n_target
        w = torch.zeros(4, k, dtype=torch.double, requires_grad=True)
        opt = torch.optim.LBFGS([w], max_iter=2000, tolerance_grad=1e-9, tolerance_change=1e-14,
                                line_search_fn='strong_wolfe')
        def logits(x): return torch.cat([torch.zeros(len(x), 1).double(), x @ w], 1) if k == 1 else x @ w
        def loss():
            opt.zero_grad()
            l = c*F.cross_entropy(logits(probs.double()), y, reduction='sum') + w.square().sum()/2
            l.backward()
            return l
        opt.step(loss)
        joint = logits(torch.eye(4).double()).softmax(1).T*probs.double().mean(0)
        fits.append((joint/joint.sum(1, keepdim=True)).float().detach())
    assert min((got - f).abs().max() for f in fits) < 1e-2
    # one clip a class: nothing to cross-validate with
    few = category_relation(probs[:n_target], torch.arange(n_target), n_target, 'reverse')
    assert torch.allclose(few.sum(1), torch.ones(n_target)) and few.shape == (n_target, 4)


def test_co_tuning_equals_a_hand_written_loop():
    net, head = model(), seeded_head()
    relation, hand = relate(net, head, data().train), copy.deepcopy(head)
    def term(net, x, y, f, pred): return -(relation[y]*hand(f).log_softmax(1)).sum(1).mean()
    want = term_by_hand(copy.deepcopy(net), term, .5, params=hand.parameters())
    cb, before = CoTuning(.5, head), state(head)
    learn = learner(cb, net=net)
    learn.fit(2)
    assert_close_nets(learn.model, want)
    assert_close_nets(cb.aux, hand)
    torch.testing.assert_close(cb.relation, relation)
    assert same(before, state(head))  # the caller's own head is a copy's source only
    given = learner(CoTuning(.5, head, relation=relation.numpy()), net=model())
    given.fit(2)
    assert_close_nets(given.model, want)


def test_the_term_is_torchs_cross_entropy_with_probabilities():
    cb, terms = CoTuning(2., seeded_head()), []
    class Spy(Callback):
        order, run_valid = 6, False
        def after_loss(self):
            f = self.learn.model[0](self.x)
            terms.append((((self.learn.loss_grad - self.learn.loss)/2).item(),
                          F.cross_entropy(cb.aux(f), cb.relation[self.y]).item()))
    learner([cb, Spy()], lr=0.).fit(1)
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in terms)


def test_relating_leaves_everything_as_it_was():
    "Random states, buffers, modes, gradients; no shuffling, no augmentation, no item left out"
    class Augment(Transform):
        split_idx = 0
        def encodes(self, x:torch.Tensor):
            if x.ndim > 0: return x + 100*torch.randn(1) + random.random() + np.random.rand()
    d = data()
    sets = Datasets(d.train.dataset.items, tfms=[[*d.train.dataset.tls[0].tfms.fs, Augment()],
                                                 [*d.train.dataset.tls[1].tfms.fs]], splits=[range(44), range(44, 48)])
    dls = DataLoaders(TfmdDL(sets.train, bs=8, num_workers=0, shuffle=True, drop_last=True),
                      TfmdDL(sets.valid, bs=8, num_workers=0), device='cpu')
    cb, found = CoTuning(1., seeded_head()), []
    class Spy(Callback):
        def __init__(self, order): self.order = order
        def before_train(self):
            net = self.learn.model
            found.append((state(net), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(),
                          [m.training for m in net.modules()],
                          [p.grad for p in net.parameters()], self.dls.train.rng.getstate()))
    net = model(dropout=.3)
    net[0].drop.eval()
    learn = learner([Spy(4), cb, Spy(6)], dls=dls, net=net)
    learn.fit(1)
    a, b = found
    assert same(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
    items = [(i[0][None], torch.as_tensor(i[1])[None]) for i in d.train.dataset.items[:44]]
    torch.testing.assert_close(cb.relation, relate(model(), seeded_head(), items))


def test_lr_find_does_not_count_for_co_tuning(tmp_path):
    cb = CoTuning(1., seeded_head())
    learn = learner(cb, path=tmp_path)
    learn.lr_find(num_it=8, show_plot=False)
    assert cb.relation is None and cb.aux is None
    learn.fit(1)
    relation, head = cb.relation, state(cb.aux)
    learn.lr_find(num_it=8, show_plot=False)
    assert torch.equal(cb.relation, relation) and same(head, state(cb.aux))
    learn.fit(1)
    assert torch.equal(cb.relation, relation) and not same(head, state(cb.aux))


def test_co_tuning_says_what_it_needs(tmp_path):
    for head in (None, 'resnet'):
        with pytest.raises(InputError, match='probe_head'): CoTuning(head=head)
    with pytest.raises(InputError, match='too late.*Pass relation='):
        learner(CoTuning(1., seeded_head())).fit(2, start_epoch=1)
    learner(CoTuning(1., seeded_head(), relation=torch.full((3, 5), .2))).fit(2, start_epoch=1)
    with pytest.raises(InputError, match='2 target classes, the data have 3'):
        dls = data()
        dls.train.dataset.c = 3  # as `Categorize` says
        learner(CoTuning(1., seeded_head(), relation=torch.full((2, 5), .2)), dls=dls).fit(1)
    with pytest.raises(InputError, match='same source classes'):
        learner(CoTuning(1., seeded_head(), relation=torch.full((3, 4), .25))).fit(1)
    with pytest.raises(InputError, match='rows sum to 1'): CoTuning(1., seeded_head(), relation=torch.ones(3, 5))
    with pytest.raises(InputError, match="'direct' or 'reverse'"): CoTuning(1., seeded_head(), how='x')
    p, y = torch.full((4, 2), .5), torch.tensor([0, 0, 1, 1])
    for args, word in [((p, y, 3), r'classes \[2\] have no clip'), ((p, y, 1), 'class number 1 is not'),
                       ((3*p, y, 2), 'softmax'), ((p, y.float(), 2), 'a class number for each'),
                       ((p, y, 2, 'x'), "'direct' or 'reverse'")]:
        with pytest.raises(InputError, match=word): category_relation(*args)


@pytest.mark.parametrize('lam', [-1, float('nan')])
def test_strength_out_of_range_is_refused(lam):
    with pytest.raises(ValueError, match='at least 0'): CoTuning(lam, seeded_head())


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_clips_have_mixed_soft_labels(mix):
    cb, mixer, seen = CoTuning(1., seeded_head()), mix(.4), []
    class See(Callback):
        order, run_valid = 6, False
        def after_loss(self):
            target = [cb.relation[y] for y in (self.learn.yb[0], mixer.yb1[0])]
            share = mixer.lam.expand(len(self.x))[:, None]
            want = F.cross_entropy(cb.aux(self.learn.model[0](self.x)), share*target[0] + (1 - share)*target[1])
            seen.append((cb.pull - want).abs().item() < 1e-5)
    learner([cb, mixer, See()], lr=0.).fit(1)
    assert len(seen) == 6 and all(seen)


def test_labels_of_co_tuning_are_class_numbers_from_0():
    relation = torch.full((3, 5), .2)
    for given, message in ((None, 'at least 0'), (relation, r'label -\d+ is not one of the 3 classes')):
        for ignored in (-1, -100):
            class Ignored(Transform):
                def encodes(self, y:torch.Tensor): return torch.where(y == 2, ignored, y) if y.ndim == 0 else None
            d = data()
            sets = d.train.dataset
            sets.tls[1].tfms.add(Ignored())
            learn = learner(CoTuning(1., seeded_head(), given), dls=d)
            learn.loss_func = torch.nn.CrossEntropyLoss(ignore_index=ignored)
            with pytest.raises(InputError, match=message): learn.fit(1)
    dls = data()
    dls.train.dataset.c = 2
    with pytest.raises(InputError, match='3 target classes, the data have 2'):
        learner(CoTuning(1., seeded_head(), relation), dls=dls).fit(1)
    with pytest.raises(InputError, match='one output, whose softmax is always 1'):
        learner(CoTuning(1., seeded_head(n=1), relation=torch.ones(3, 1))).fit(1)


def test_labels_in_a_column_are_related_alike():
    def relation(y_of):
        d = data()
        items = [(x, y_of(torch.as_tensor(y))) for x, y in d.train.dataset.items[:48]]
        loader = torch.utils.data.DataLoader(items, batch_size=8)
        cb = CoTuning(1., seeded_head())
        learner(cb, dls=DataLoaders(loader, loader)).fit(1)
        return cb.relation
    assert torch.equal(relation(lambda y: y[None]), relation(lambda y: y))


def test_another_head_is_another_task():
    cb = CoTuning(1., seeded_head())
    learn = learner(cb)
    learn.fit(1)
    relation, head = cb.relation, cb.aux
    learn.fit(1)
    assert cb.relation is relation and cb.aux is head
    learn.model[1], learn.opt = torch.nn.Linear(6, 3), None
    learn.fit(1)
    assert not torch.equal(cb.relation, relation) and cb.aux is not head
