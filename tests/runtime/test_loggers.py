"Loggers write what they see and do not change a run."
from dataclasses import replace

import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from helpers import timeless

from sdfast.data.task import Task
from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.runtime import loggers as loggers_module
from sdfast.runtime.loggers import Wandb, check_loggers
from sdfast.strategies.distill import SelfDistill
from sdfast.study.execute import execute

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def run(base): return replace(base, strategy='self_distill', lam=3.)


def test_tensorboard(run, tmp_path):
    pytest.importorskip('tensorboard', reason="pip install -e '.[log]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    plain = execute(run, tmp_path/'plain')
    row = execute(run, tmp_path, log=('tensorboard',))
    assert timeless(row) == timeless(plain)
    events = EventAccumulator(str(tmp_path/'tensorboard'/run.key)).Reload()
    assert {'train_loss', 'valid_loss', 'accuracy', 'self_distill'} <= set(events.Tags()['scalars'])
    assert len(events.Scalars('accuracy')) == 4
    term = pd.read_csv(tmp_path/'runs'/run.key/'epochs.csv').self_distill.iloc[-1]
    assert events.Scalars('self_distill')[-1].value == pytest.approx(term, rel=1e-5)


def test_wandb_offline(run, tmp_path, monkeypatch):
    pytest.importorskip('wandb', reason="pip install -e '.[log]'")
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    plain = execute(run, tmp_path/'plain')
    row = execute(run, tmp_path, log=('wandb',))
    assert row['status'] == 'ok', row['error']
    assert timeless(row) == timeless(plain)
    file, = tmp_path.glob('wandb/offline-run-*/run-*.wandb')
    assert run.key in file.name
    assert file.stat().st_size > 1000


def test_unknown_loggers_are_refused():
    with pytest.raises(InputError, match='known are tensorboard, wandb'): check_loggers('comet')
    assert check_loggers('') == ()


# ---- in a Learner of one's own

@pytest.fixture
def offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason="pip install -e '.[log]'")
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    return wandb


def fitted(clips, *cbs):
    "A learner that was fitted for an epoch, the same each time"
    set_seed(0)
    dls = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3).dls(frames=4, size=24, bs=4)
    learn = Learner(dls, create_model('tiny', 2, width=8), metrics=accuracy, cbs=[SelfDistill(2.), *cbs])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    return learn


@pytest.mark.parametrize('log_preds', [False, True])
def test_wandb_in_any_learner(clips, offline, log_preds, monkeypatch, tmp_path):
    "fastai's own callback fails before the fit begins (fastai#4173)"
    plain, logged = fitted(clips), []
    with offline.init(project='sdfast', dir=tmp_path) as run:
        monkeypatch.setattr(offline, 'log', lambda values, **kwargs: (logged.append(values), run.log(values, **kwargs)))
        learn = fitted(clips, Wandb(log_preds=log_preds))
        config = dict(run.config)
    names = {name for values in logged for name in values}
    assert {'epoch', 'train_loss', 'valid_loss', 'accuracy', 'self_distill', 'lr_0'} <= names
    assert ('Prediction_Samples' in names) == log_preds
    if log_preds:
        table, = [values['Prediction_Samples'] for values in logged if 'Prediction_Samples' in values]
        assert len(table.data) == len(learn.dls.valid_ds)
        assert {row[1] for row in table.data} == {'down', 'right'}
    assert config['epochs'] == 2
    assert config['bs'] == 4
    assert config['callback self_distill'] == 'SelfDistill(lam=2.0)'
    if not log_preds:
        for a, b in zip(plain.model.parameters(), learn.model.parameters()): assert torch.equal(a, b)


def test_wandb_without_a_run(clips, offline):
    with pytest.raises(InputError, match='there is no run; call wandb.init'): fitted(clips, Wandb())


def test_wandb_is_not_installed(monkeypatch):
    monkeypatch.setattr(loggers_module, 'find_spec', lambda name: None)
    loggers_module._wandb_class.cache_clear()
    with pytest.raises(InputError, match=r"Wandb needs the package wandb: pip install 'sdfast\[log\]'"): Wandb()
