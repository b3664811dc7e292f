"The slow encoder: its learning rates, the study end to end on few clips, and the shipped table from its runs."
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelTrainException
from helpers import learner, make, model, same, state
from scripts import ROOT, load_script

from sdfast.strategies import STRATEGIES

SHIPPED = ROOT/'experiments/results/encoder_lr'


@pytest.fixture(scope='module')
def script():
    before = dict(STRATEGIES)
    yield load_script('encoder_lr')
    STRATEGIES.clear()
    STRATEGIES.update(before)


class StopAfterBatch(Callback):
    def after_batch(self):
        if self.training: raise CancelTrainException


def one_step(cbs, net):
    "The model after a single step of SGD"
    learn = learner(cbs, net=net)
    learn.fit(1, cbs=[StopAfterBatch()])
    return learn.model


def test_the_encoder_moves_an_eighth_of_the_way(script):
    start = model()
    plain = one_step([], model())
    net = model()
    slow = one_step(make('slow_encoder', 7., net), net)
    for (name, p0), p, s in zip(start.named_parameters(), plain.parameters(), slow.parameters()):
        part = 1 if name.startswith('1.') else 1/8
        torch.testing.assert_close(s - p0, part*(p - p0), rtol=1e-3, atol=1e-6)


def test_lam_0_is_plain_fine_tuning(script):
    net = model()
    slow, plain = learner(make('slow_encoder', 0., net), net=net), learner(net=model())
    slow.fit(2)
    plain.fit(2)
    assert same(state(slow.model), state(plain.model))


def test_end_to_end(script, clips, tmp_path, monkeypatch, fresh):
    spec = f'folder:{clips},group=(p\\d)_'
    monkeypatch.setattr(script, 'DATA', dict(task=spec, source=spec, frames=4, size=24, bs=4, source_bs=4))
    script.main(seeds=1, quick=True, out=str(tmp_path/'runs'), results=str(tmp_path/'tables'))
    rows = pd.read_csv(tmp_path/'tables/runs.csv')
    assert list(zip(rows.strategy, rows.lam))[:-1] == script.SETTINGS
    assert (rows.status == 'ok').all()
    text = (tmp_path/'tables/table.md').read_text()
    for row in ('finetune | lr 0.05', 'slow_encoder 7 | λ 7', 'self_distill 100 | λ 100', 'untouched |'):
        assert f'| {row}' in text
    assert {f.name for f in (tmp_path/'tables').iterdir()} == {'runs.csv', 'table.csv', 'table.md'}


@pytest.mark.skipif(not SHIPPED.exists(), reason='the study has not been run')
def test_the_shipped_runs_are_complete(script):
    rows = pd.read_csv(SHIPPED/'runs.csv')
    final = rows[rows.strategy != 'untouched']
    assert set(zip(final.strategy, final.lam)) == set(script.SETTINGS)
    assert (final.groupby(['strategy', 'lam']).seed.nunique() == 6).all()
