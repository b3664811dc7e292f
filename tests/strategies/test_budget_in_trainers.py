"Budgets in Lightning and in `transformers.Trainer`: those of a plain loop, also after resuming in an epoch."
import pytest
import torch
from helpers import model
from torch.utils.data import DataLoader
from trainers import (
    Output,
    assert_same,
    hf_trainer,
    lightning,
    lightning_module,
    lightning_trainer,
    loader,
    plainly,
    rows,
)

from sdfast.strategies import L2SP, Budget, KeptByDrift, LowerLR, SelfDistill

CURVE = [(0., 1.), (1., .5)]
pytestmark = pytest.mark.filterwarnings('ignore:.*cannot hold its floor')


def moved(encoder):
    "A measure by formula: less is left the further the weights are from those of `model()`"
    start = model()[0].parameters()
    far = sum((p - w).square().sum() for p, w in zip(encoder.parameters(), start))
    return 1 - far.sqrt().item()/10


def strategies():
    return [SelfDistill(.3, retain=Budget(.95, moved, every=1)), LowerLR(1., retain=Budget(.97, moved, every=2)),
            L2SP(.01, retain=Budget(.9, KeptByDrift(CURVE, 16), every=3))]


def alike(ours, theirs):
    for a, b in zip(ours, theirs):
        assert [h['step'] for h in a.kept_history] == [h['step'] for h in b.kept_history]
        assert len(a.kept_history) > 3
        for h, g in zip(a.kept_history, b.kept_history): assert h == pytest.approx(g, rel=1e-3)


def by_lightning(net, made, dl=None, ckpt_path=None, **options):
    lightning()
    from sdfast.lightning import StrategyCallback
    trainer = lightning_trainer(StrategyCallback(*made), *options.pop('callbacks', ()), **options)
    trainer.fit(lightning_module(net), dl or loader(), ckpt_path=ckpt_path)
    return trainer


def test_in_lightning_as_in_a_plain_loop():
    net, other, made, plain = model(), model(), strategies(), strategies()
    trainer = by_lightning(net, made)
    plainly(other, plain)
    alike(made, plain)
    assert_same(net, other, 1e-4)
    logged = trainer.logged_metrics
    assert logged['self_distill_lam'] == pytest.approx(made[0].kept_history[-1]['lam'])
    assert logged['self_distill_kept'] == pytest.approx(made[0].kept_history[-1]['kept'])
    assert 'lower_lr_lam' in logged


def test_in_transformers_as_in_a_plain_loop(tmp_path):
    made, plain, net, other = strategies(), strategies(), Output(*model()), model()
    hf_trainer(tmp_path, net, made).train()
    plainly(other, plain)
    alike(made, plain)
    assert_same(net, other, 1e-4)


class Stateful(DataLoader):
    "A loader that Lightning can resume in an epoch"
    done = 0
    def __iter__(self):
        batches, start = list(super().__iter__()), self.done
        self.done = 0
        for i, batch in enumerate(batches[start:], start + 1):
            self.done = i % len(batches)
            yield batch
    def state_dict(self): return dict(done=self.done)
    def load_state_dict(self, state): self.done = state['done']


@pytest.mark.parametrize('step', [2, 8])
def test_a_fit_of_lightning_resumes_in_the_middle(tmp_path, step):
    lightning()
    from lightning.pytorch.callbacks import ModelCheckpoint
    saver = ModelCheckpoint(tmp_path, '{step}', save_top_k=-1, every_n_train_steps=2)
    net, whole, other, rest = model(), strategies(), model(), strategies()
    options = dict(max_epochs=3, enable_checkpointing=True)
    by_lightning(net, whole, Stateful(rows(), batch_size=8), callbacks=[saver], **options)
    with torch.no_grad():
        for p in other.parameters(): p.mul_(.5)  # another start: all comes from the checkpoint
    by_lightning(other, rest, Stateful(rows(), batch_size=8), ckpt_path=tmp_path/f'step={step}.ckpt', **options)
    assert_same(net, other)
    for a, b in zip(whole, rest): assert a.kept_history == b.kept_history


@pytest.mark.parametrize('step', [2, 8])
def test_a_fit_of_transformers_resumes_in_the_middle(tmp_path, step):
    options = dict(num_train_epochs=3, save_strategy='steps', save_steps=2)
    net, whole, other, rest = Output(*model()), strategies(), Output(*model()), strategies()
    hf_trainer(tmp_path, net, whole, **options).train()
    with torch.no_grad():
        for p in other.parameters(): p.mul_(.5)
    hf_trainer(tmp_path/'again', other, rest, **options).train(str(tmp_path/f'checkpoint-{step}'))
    assert_same(net, other)
    for a, b in zip(whole, rest): assert a.kept_history == b.kept_history
