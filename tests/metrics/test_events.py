"Forgetting events, counted clip by clip in loops that are written out."
from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import load_learner
from fastai.optimizer import SGD
from helpers import data, learner, model, same, state
from torch import nn
from torch.utils.data import DataLoader
from trainers import Output, Stateful, hf_trainer, in_two, lightning, lightning_module, lightning_trainer

from sdfast.errors import InputError
from sdfast.metrics import EventCounts, ForgettingEvents
from sdfast.runtime.distributed import join_processes
from sdfast.runtime.resume import Resume
from sdfast.study.fit import train_together

needs_accelerate = pytest.mark.skipif(find_spec('accelerate') is None, reason="pip install -e '.[ddp]'")


def events_of(answers):
    "From `(n, right)` in time: seen, right, forgotten, time at which it was first right"
    rights = [right for _, right in answers]
    lost = sum(a and not b for a, b in zip(rights, rights[1:]))
    first = next((when for when, right in answers if right), np.nan)
    return [len(rights), sum(rights), lost, first]


def by_hand(seen):
    "The table of `clip -> [(epoch, right)]`"
    rows = {clip:events_of(answers) for clip, answers in sorted(seen.items())}
    return pd.DataFrame.from_dict(rows, orient='index', columns=['seen', 'right', 'forgotten', 'learned'])


def check(table, seen):
    want = by_hand(seen)
    assert table.index.tolist() == want.index.tolist()
    for c in want: np.testing.assert_array_equal(table[c].to_numpy(float), want[c].to_numpy(float), c)
    assert want.forgotten.sum() > 3, 'nothing to see'


def test_counts_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    counts, seen = EventCounts(), {}
    for epoch in range(9):
        numbers = rng.choice(30, 20)  # some are seen twice in an epoch
        right = rng.random(20) < .5
        found = counts.add(torch.tensor(numbers), torch.tensor(right), epoch)
        before = by_hand(seen).forgotten.sum() if seen else 0
        for n, r in zip(numbers, right): seen.setdefault(int(n), []).append((epoch, bool(r)))
        assert found == by_hand(seen).forgotten.sum() - before
    check(counts.table(), seen)


# ---- while training

class See(Callback):
    "What the model answers to each training clip before the step"
    run_valid = False
    def __init__(self): self.seen = {}

    def after_pred(self):
        items = torch.stack([x for x, _ in self.learn.dls.train_ds]).flatten(1)
        rows = (self.learn.xb[0].flatten(1)[:, None] == items[None]).all(2).nonzero()[:, 1]
        for row, right in zip(rows.tolist(), (self.learn.pred.argmax(1) == self.learn.yb[0]).tolist()):
            self.seen.setdefault(row, []).append((self.epoch, right))


def shuffled():
    dls = data()
    return DataLoaders(TfmdDL(dls.train_ds, bs=8, shuffle=True, drop_last=True, num_workers=0), dls.valid, device='cpu')


def fast(cbs, net=None, dls=None, lr=.3): return learner(cbs, net=net, dls=dls, lr=lr, opt_func=partial(SGD, mom=.9))


def test_training_clips_are_counted_without_another_pass():
    events, see = ForgettingEvents(), See()
    learn = fast([events, see], dls=shuffled())
    learn.fit(6)
    check(events.table(), see.seen)
    column = list(learn.recorder.metric_names).index('forgotten') - 1
    assert sum(row[column] for row in learn.recorder.values) == events.table().forgotten.sum()
    assert learn.recorder.values[0][column] == 0


def test_nothing_changes_in_training():
    def fit(cbs):
        net = model(dropout=.3)
        learn = fast(cbs, net)
        learn.fit(3)
        return state(learn.model), torch.get_rng_state()
    plain, rng = fit([])
    batches = list(data(seed=5).valid)
    counted, after = fit([ForgettingEvents(), ForgettingEvents(batches), ForgettingEvents(batches, nn.Linear(6, 3))])
    assert same(plain, counted) and torch.equal(rng, after)


def test_validation_and_lr_find_count_nothing():
    events = ForgettingEvents()
    learn = fast([events])
    learn.fit(2)
    before = events.table()
    learn.validate(), learn.get_preds()
    pd.testing.assert_frame_equal(events.table(), before)
    learn.lr_find(show_plot=False, num_it=14, stop_div=False)  # two epochs and a part
    pd.testing.assert_frame_equal(events.table(), before)
    assert not learn.metrics
    learn.fit(1)
    assert (events.table().seen == 1).all()


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match='with a head needs dl'): ForgettingEvents(head=nn.Linear(6, 3))
    with pytest.raises(InputError, match=r'ForgettingEvents\(\) remembers each clip, and MixUp mixes'):
        fast([ForgettingEvents(), MixUp(.4)]).fit(1)
    class Hot(Callback):
        def before_batch(self): self.learn.yb = (F.one_hot(self.yb[0], 3).float(),)
    learn = fast([ForgettingEvents(), Hot()])
    learn.loss_func = F.binary_cross_entropy_with_logits
    with pytest.raises(InputError, match='defined for class numbers, not for multi-label.*pass dl'): learn.fit(1)
    with pytest.raises(InputError, match='dl shuffles'):
        ForgettingEvents(DataLoader([(torch.zeros(1, 6, 6), 0)], shuffle=True))


# ---- of a loader

def measured(batches, head=None):
    "A callback that answers the clips of a loader after each epoch"
    class After(Callback):
        order = 60
        def __init__(self): self.seen = {}

        def note(self, epoch):
            net = self.learn.model
            was = net.training
            net.eval()
            with torch.no_grad():
                logits = torch.cat([head(net[0](x)) if head else net(x) for x, _ in batches])
            net.train(was)
            right = logits.argmax(1) == torch.cat([y for _, y in batches])
            for i, r in enumerate(right.tolist()): self.seen.setdefault(i, []).append((epoch, r))

        def before_fit(self): self.note(-1)
        def after_train(self): self.note(self.epoch)
    return After()


@pytest.mark.parametrize('old', [False, True])
def test_clips_of_a_loader_are_counted_after_each_epoch(old):
    "From before training on, by the model itself or by the old head"
    batches = list(data(seed=5, valid=48).valid)
    torch.manual_seed(3)
    head = nn.Linear(6, 3) if old else None
    events, after = ForgettingEvents(batches, head), measured(batches, head)
    fast([events, after]).fit(6)
    check(events.table(), after.seen)
    assert (events.table().seen == 7).all() and (events.table().learned == -1).any()


def test_a_part_that_has_no_name(): assert 'head=Linear' in repr(ForgettingEvents([], nn.Linear(6, 3)))


def test_an_exported_learner_carries_no_counts_and_no_loader(tmp_path):
    batches = list(data(seed=5).valid)
    learn = learner([ForgettingEvents(), ForgettingEvents(batches)], path=tmp_path)
    learn.fit(1)
    learn.export('x.pkl')
    loaded = load_learner(tmp_path/'x.pkl')
    loaded.dls, loaded.logger = data(), lambda *a: None
    first, second = (cb for cb in loaded.cbs if isinstance(cb, ForgettingEvents))
    assert not len(first.table())
    with pytest.raises(InputError, match='lacks its loader: an exported learner does not carry it'): loaded.fit(1)
    loaded.remove_cb(second)
    loaded.fit(1)
    assert len(first.table()) == 48


# ---- other loops, and interruptions

def test_an_interrupted_fit_ends_with_the_same_counts(tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    batches = list(data(seed=5, valid=48).valid)
    def cbs(*more): return [ForgettingEvents(), ForgettingEvents(batches), *more]
    whole = cbs()
    fast(whole).fit(5)
    with pytest.raises(KeyboardInterrupt): fast([*cbs(), Resume(tmp_path/'fit'), Stop()]).fit(5)
    rest = cbs()
    fast([*rest, Resume(tmp_path/'fit')]).fit(5)
    for a, b in zip(whole, rest): pd.testing.assert_frame_equal(a.table(), b.table())
    assert whole[0].table().forgotten.sum()


ITEMS = [(x, y, i) for i, (x, y) in enumerate(data().train_ds)]


def plain(net, cbs, epochs=4, lr=.1):
    "A loop of one's own; and what the model answers to each clip"
    opt, seen = torch.optim.SGD(net.parameters(), lr=lr, momentum=.9), {}
    for cb in cbs: cb.attach(net)
    for epoch in range(epochs):
        net.train()
        for cb in cbs: cb.start_epoch()
        for x, y, i in DataLoader(ITEMS, batch_size=8):
            logits = net(x)
            for row, right in zip(i.tolist(), (logits.argmax(1) == y).tolist()):
                seen.setdefault(row, []).append((epoch, right))
            (F.cross_entropy(logits, y) + sum(cb.loss(y, i) for cb in cbs)).backward()
            opt.step()
            opt.zero_grad()
    for cb in cbs: cb.detach()
    return seen


def test_a_loop_of_ones_own():
    events, loader = ForgettingEvents(), ForgettingEvents([(x[None], y[None]) for x, y, _ in ITEMS])
    seen = plain(net := model(), [events, loader], lr=.3)
    check(events.table(), seen)
    plain(other := model(), [], lr=.3)
    assert same(state(net), state(other))
    assert (loader.table().seen == 5).all() and loader.table().forgotten.sum()
    lost = ForgettingEvents().attach(model())
    lost.start_epoch()
    lost.loop.model(ITEMS[0][0][None])
    with pytest.raises(InputError, match=r'call loss\(targets, numbers\)'): lost.loss(ITEMS[0][1][None])


@pytest.mark.parametrize('step', [None, 2, 8, 12])
def test_lightning_counts_and_resumes_within_an_epoch(tmp_path, step):
    lightning()
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sdfast.lightning import StrategyCallback

    def fit(ckpt=None):
        cbs = [ForgettingEvents(), ForgettingEvents([(x[None], y[None]) for x, y, _ in ITEMS])]
        saver = ModelCheckpoint(tmp_path, '{step}', save_top_k=-1, every_n_train_steps=2)
        callback = StrategyCallback(*cbs, numbers=lambda batch: batch[2])
        trainer = lightning_trainer(callback, saver, max_epochs=4, enable_checkpointing=True)
        module = lightning_module(model(), lambda module, batch: F.cross_entropy(module.net(batch[0]), batch[1]))
        trainer.fit(module, Stateful(DataLoader(ITEMS, batch_size=8)), ckpt_path=ckpt)
        return trainer, cbs
    trainer, found = fit()
    assert {'forgotten', 'forgotten_2'} <= set(trainer.callback_metrics)
    if step is None:
        plain(model(), want := [ForgettingEvents(), ForgettingEvents([(x[None], y[None]) for x, y, _ in ITEMS])])
    else: _, want = fit(tmp_path/f'step={step}.ckpt')
    for a, b in zip(found, want): pd.testing.assert_frame_equal(a.table(), b.table())


def test_transformers_counts(tmp_path):
    transformers = pytest.importorskip('transformers')
    class Known(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return F.cross_entropy(model(inputs['pixel_values'])['logits'], inputs['labels'])
    cbs = [ForgettingEvents(), ForgettingEvents([(x[None], y[None]) for x, y, _ in ITEMS])]
    trainer = hf_trainer(tmp_path, Output(*model()), cbs, base=Known, num_train_epochs=4,
                         trainer=dict(numbers=lambda batch: batch['index'], criterion=F.cross_entropy))
    trainer.train_dataset = [dict(pixel_values=x, labels=y, index=i) for x, y, i in ITEMS]
    trainer.train()
    plain(model(), want := [ForgettingEvents(), ForgettingEvents([(x[None], y[None]) for x, y, _ in ITEMS])])
    for a, b in zip(cbs, want): pd.testing.assert_frame_equal(a.table(), b.table())


def _half(rank, folder):
    join_processes()
    dls, events = shuffled(), ForgettingEvents()
    dls.train.bs = 4
    learn = fast([events], dls=dls)
    with train_together(learn): learn.fit(4)
    events.table().to_csv(folder/f'{rank}.csv')


@needs_accelerate
def test_two_processes_count_together(tmp_path):
    in_two(_half, tmp_path)
    one, two = (pd.read_csv(tmp_path/f'{rank}.csv') for rank in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert (one.seen == 4).all() and len(one) == 48 and one.forgotten.sum()
