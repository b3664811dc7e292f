"`BYOT(official=True)` and `PSKD(stored=True)` against loops that are written after the authors' code."
import copy
from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from fastai.optimizer import SGD
from helpers import data, learner, model, same, state
from strategy_helpers import deep, maps, pooled
from torch import nn
from torch.utils.data import DataLoader
from trainers import Output, Stateful, hf_trainer, in_two, lightning, lightning_module, lightning_trainer, smooth_net

from sdfast.errors import InputError
from sdfast.runtime.distributed import join_processes
from sdfast.runtime.resume import Resume
from sdfast.strategies import BYOT, PSKD
from sdfast.study.fit import Seeded, train_together

needs_accelerate = pytest.mark.skipif(find_spec('accelerate') is None, reason="pip install -e '.[ddp]'")
LR = .05


# ---- BYOT

def heads(widths, adapted):
    "The heads that BYOT makes, by the same draws"
    torch.manual_seed(0)
    made = []
    for i, width in enumerate(widths):
        layers = [nn.Linear(width, 6), nn.Linear(6, 3)]
        made.append([*layers, nn.Linear(6, 6)] if i in adapted else layers)
    return made


def byot_by_hand(net, lam, alpha, beta, T, epochs=2):
    """The loss of the authors' code: CE of the deepest classifier, and for each shallow one alpha CE with its softened
    outputs, (1 - alpha) CE with the labels and, but for the deepest shallow one, beta times a norm of features"""
    made = heads([4, 6], (0,) if beta else ())
    own = torch.optim.SGD([p for layers in made for m in layers for p in m.parameters()], lr=LR, momentum=.9)
    opt = torch.optim.SGD(net.parameters(), lr=LR, momentum=.9)
    for _ in range(epochs):
        net.train()
        for x, y in data().train:
            *blocks, feature = maps(net[0], x)
            deepest = net[1](feature)
            loss = F.cross_entropy(deepest, y)
            for i, (block, layers) in enumerate(zip(blocks, made)):
                f = F.relu(layers[0](pooled(block)))
                q = layers[1](f)
                soft = -((deepest.detach()/T).softmax(1)*(q/T).log_softmax(1)).sum(1).mean()
                extra = alpha*soft + (1 - alpha)*F.cross_entropy(q, y)
                if beta and i == 0: extra = extra + beta*((layers[2](f) - feature.detach())**2).sum().sqrt()
                loss = loss + lam*extra
            opt.zero_grad(), own.zero_grad()
            loss.backward()
            opt.step(), own.step()
    return net, made


@pytest.mark.parametrize('beta', [None, .03])
def test_official_byot_is_the_authors_loss(beta):
    net = deep()
    want, made = byot_by_hand(copy.deepcopy(net), 1., .3, beta or 0., 3.)
    cb = BYOT(1., layers=['body.one', 'body.two'], official=True, **({} if beta is None else dict(beta=beta)))
    learn = learner(cb, net=net, lr=LR, opt_func=partial(SGD, mom=.9))
    learn.fit(2)
    for a, b in zip(state(learn.model).values(), state(want).values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(cb.aux, made, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs): torch.testing.assert_close(a.weight, b.weight, rtol=1e-4, atol=1e-6)


def test_byot_differs_by_default_as_documented():
    "alpha .1, T^2 KL, features of every layer; the official one has none of them"
    def term(**options):
        learn = learner(BYOT(1., layers=['body.one', 'body.two'], **options), net=deep(), lr=0.)
        learn.fit(1)
        return learn.byot.mean_term()
    official = term(official=True)
    assert official == term(official=True, alpha=.3, beta=0.)
    assert official != pytest.approx(term(alpha=.3, beta=0.), rel=1e-3)
    assert term() == term(alpha=.1, beta=.03)
    assert repr(BYOT(1.)) == 'BYOT(lam=1.0)' and repr(BYOT(1., official=True)) == 'BYOT(lam=1.0, official=True)'
    with pytest.raises(ValueError, match='alpha must be between 0 and 1.*not 2, 0.0 and 3'): BYOT(1., alpha=2,
                                                                                                 official=True)


# ---- PSKD

def shuffled(drop_last=False):
    dls = data()
    return DataLoaders(TfmdDL(dls.train_ds, bs=8, shuffle=True, drop_last=drop_last, num_workers=0), dls.valid,
                       device='cpu')


class Order(Callback):
    "The numbers of each batch's clips, found by their pixels"
    run_valid = False
    def __init__(self): self.batches = []

    def before_batch(self):
        items = torch.stack([x for x, _ in self.learn.dls.train_ds]).flatten(1)
        found = (self.learn.xb[0].flatten(1)[:, None] == items[None]).all(2)
        self.batches.append(found.nonzero()[:, 1])


def pskd_by_hand(net, batches, lam=.8, epochs=3, lr=LR):
    "All predictions in one matrix, as the authors keep them; one-hot labels in the first epoch"
    items, opt = data().train_ds, torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    predictions, n = torch.zeros(len(items), 3), len(batches)//epochs
    net.train()
    for epoch in range(epochs):
        alpha = lam*(epoch + 1)/epochs
        for rows in batches[n*epoch:n*(epoch + 1)]:
            x, y = (torch.stack([items[int(i)][k] for i in rows]) for k in (0, 1))
            one_hot = F.one_hot(y, 3).float()
            if epoch == 0: predictions[rows] = one_hot
            target = (1 - alpha)*one_hot + alpha*predictions[rows]
            out = net(x)
            loss = (-target*out.log_softmax(1)).mean(0).sum()
            opt.zero_grad()
            loss.backward()
            opt.step()
            predictions[rows] = out.softmax(1).detach()
    return net


def fit(cbs, net, epochs=3, dls=None):
    learn = learner(cbs, net=net, dls=dls or shuffled(), lr=LR, opt_func=partial(SGD, mom=.9))
    learn.fit(epochs)
    return learn


def close(a, b, rtol=1e-4):
    for v, w in zip(state(a).values(), state(b).values()): torch.testing.assert_close(v, w, rtol=rtol, atol=1e-6)


def test_stored_pskd_is_the_authors_training():
    net, order = deep(), Order()
    start = copy.deepcopy(net)
    learn = fit([order, PSKD(.8, stored=True)], net)
    assert len(order.batches) == 18
    close(learn.model, pskd_by_hand(copy.deepcopy(start), order.batches))
    assert learn.pskd.teacher is None and learn.recorder.values[0][2] == 0 != learn.recorder.values[1][2]
    other = fit([PSKD(.8)], copy.deepcopy(start))
    assert not torch.allclose(next(other.model.parameters()), next(learn.model.parameters()), atol=1e-4)


def test_by_default_nothing_is_stored():
    learn = fit([PSKD(.8)], deep(), 2)
    assert learn.pskd.answers is None and 'answers' not in learn.pskd.state_dict()


def test_the_first_epochs_agree():
    "As both then have the labels as targets"
    one, two = (fit(PSKD(.8, stored=stored), deep(), 1) for stored in (False, True))
    assert same(state(one.model), state(two.model))


def test_a_clip_without_an_answer_takes_its_label():
    "With drop_last, an epoch may leave out clips, which keep what they answered before"
    cb = PSKD(.8, stored=True)
    dls = data(n=20)
    dls = DataLoaders(TfmdDL(dls.train_ds, bs=8, shuffle=True, drop_last=True, num_workers=0), dls.valid, device='cpu')
    class Watch(Order):
        order = 6
        def after_loss(self):
            rows = self.batches[-1]
            if self.epoch == 0 or cb.answers.table is None: return
            table = cb.answers.table
            known = torch.tensor([int(i) < len(table) and not table[int(i)].isnan().any() for i in rows])
            y = F.one_hot(self.learn.yb[0], 3).float()
            p = torch.stack([table[int(i)] if k else y[j] for j, (i, k) in enumerate(zip(rows, known))])
            share = .8*(self.epoch + 1)/4
            out = self.learn.pred.detach()
            want = (1 - share)*F.cross_entropy(out, y) + share*F.cross_entropy(out, p)
            self.seen.append(((self.learn.loss_grad.detach() - want).abs() < 1e-5).item())
            self.unknown += int((~known).sum())
    watch = Watch()
    watch.seen, watch.unknown = [], 0
    fit([cb, watch], deep(), 4, dls)
    assert len(watch.seen) == 6 and all(watch.seen) and watch.unknown
    assert not cb.answers.table.isnan().all()


def test_an_interrupted_fit_ends_with_the_same_weights(tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    def cbs(*more): return [PSKD(.8, stored=True), Resume(tmp_path/'fit'), *more]
    with pytest.raises((KeyboardInterrupt, CancelFitException)): fit(cbs(Stop()), deep(), 4)
    resumed = fit(cbs(), deep(), 4)
    assert same(state(resumed.model), state(fit([PSKD(.8, stored=True)], deep(), 4).model))
    with pytest.raises(InputError, match='a fit that starts at epoch 1 lacks the answers of the epochs before'):
        learner(PSKD(.8, stored=True)).fit(3, start_epoch=1)


def plain(net, epochs=3, given=True):
    cb, opt = PSKD(.8, stored=True), torch.optim.SGD(net.parameters(), lr=LR, momentum=.9)
    with cb.attach(net, opt, epochs=epochs):
        for _ in range(epochs):
            cb.start_epoch()
            net.train()
            for i, (x, y) in enumerate(data().train):
                numbers = torch.arange(8*i, 8*i + 8) if given else None
                (F.cross_entropy(net(x), y) + cb.loss(y, numbers)).backward()
                opt.step()
                cb.after_step()
                opt.zero_grad()
    return net


IN_ORDER = list(torch.arange(48).split(8))*3


def test_a_loop_of_ones_own_passes_the_numbers():
    close(plain(deep()), pskd_by_hand(deep(), IN_ORDER))
    with pytest.raises(InputError, match=r'PSKD\(stored=True\) needs to know .* call loss\(targets, numbers\)'):
        plain(deep(), given=False)


def numbered(): return [(x, y, i) for i, (x, y) in enumerate(data().train_ds)]


def test_lightning_passes_the_numbers_and_resumes_within_an_epoch(tmp_path):
    lightning()
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sdfast.lightning import StrategyCallback

    def step(module, batch): return F.cross_entropy(module.net(batch[0]), batch[1])

    def trained(ckpt=None):
        net, cb = deep(), PSKD(.8, stored=True)
        saver = ModelCheckpoint(tmp_path, '{step}', save_top_k=-1, every_n_train_steps=2)
        strategies = StrategyCallback(cb, numbers=lambda batch: batch[2])
        trainer = lightning_trainer(strategies, saver, max_epochs=3, enable_checkpointing=True)
        trainer.fit(lightning_module(net, step), Stateful(DataLoader(numbered(), batch_size=8)), ckpt_path=ckpt)
        return net, cb.answers.table
    (want, table), (found, again) = trained(), trained(tmp_path/'step=8.ckpt')
    assert same(state(want), state(found)) and torch.equal(table, again)
    close(want, pskd_by_hand(deep(), IN_ORDER, lr=.1), rtol=1e-3)  # the rate of `lightning_module`


def test_transformers_passes_the_numbers(tmp_path):
    transformers = pytest.importorskip('transformers')
    class Known(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return F.cross_entropy(model(inputs['pixel_values'])['logits'], inputs['labels'])
    net = Output(*deep())
    trainer = hf_trainer(tmp_path, net, [PSKD(.8, stored=True)], base=Known, num_train_epochs=3,
                         trainer=dict(numbers=lambda batch: batch['index'], criterion=F.cross_entropy))
    trainer.train_dataset = [dict(pixel_values=x, labels=y, index=i) for x, y, i in numbered()]
    trainer.train()
    close(net, pskd_by_hand(deep(), IN_ORDER, lr=.1), rtol=1e-3)


@needs_accelerate
def test_two_processes_share_the_answers(tmp_path):
    "Each trains on other clips in each epoch"
    in_two(_half, tmp_path)
    halves = [torch.load(tmp_path/f'{rank}.pt') for rank in range(2)]
    assert torch.equal(halves[0], halves[1])
    cb = PSKD(.8, stored=True)
    learner([cb, Seeded(3)], net=smooth_net(), dls=_double(8), lr=LR).fit(3)
    torch.testing.assert_close(halves[0], cb.answers.table)


def _double(bs):
    dls = data()
    rows = [(x.double(), y) for x, y in dls.train_ds]
    sets = Datasets(rows, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(48), range(8)])
    return DataLoaders(TfmdDL(sets.train, bs=bs, shuffle=True, drop_last=True, num_workers=0),
                       TfmdDL(sets.valid, bs=4, num_workers=0), device='cpu')


def _half(rank, folder):
    join_processes()
    cb = PSKD(.8, stored=True)
    learn = learner([cb, Seeded(3)], net=smooth_net(), dls=_double(4), lr=LR)
    with train_together(learn): learn.fit(3)
    torch.save(cb.answers.table, folder/f'{rank}.pt')


def test_another_learner_stores_anew():
    cb = PSKD(.8, stored=True)
    fit(cb, deep(), 2)
    first = cb.answers.table.clone()
    learn = learner(cb, net=model(), lr=LR)
    learn.fit(1)
    assert learn.recorder.values[0][2] == 0 and not torch.equal(first, cb.answers.table)
