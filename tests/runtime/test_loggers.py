"Loggers write what they see and do not change a run."
from dataclasses import replace

import pandas as pd
import pytest
from helpers import timeless

from sdfast.errors import InputError
from sdfast.runtime.loggers import check_loggers
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
