"A run that fails is a row with a status and an error, and the study continues."
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import timeless

from sdfast.data.video import VideoError
from sdfast.report.summary import summary
from sdfast.report.write import write_report
from sdfast.study import execute as execute_module
from sdfast.study.compare import compare
from sdfast.study.execute import execute
from sdfast.study.folder import finished
from sdfast.study.record import failure_status

pytestmark = pytest.mark.usefixtures('fresh')


KINDS = {
    'out of memory': torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB'),
    'bad data': VideoError('x.mp4: no frame can be decoded'),
    'failed': OSError('the cable was pulled')}


@pytest.mark.parametrize('kind', KINDS)
def test_failures_are_rows_with_their_kind(longer, tmp_path, monkeypatch, kind):
    error = KINDS[kind]
    def fail(*a, **k): raise error
    monkeypatch.setattr(execute_module, 'train_run', fail)
    row = execute(longer, tmp_path, call='this')
    assert row['status'] == kind
    assert str(error) in row['error']
    log = (tmp_path/'runs'/longer.key/'log.txt').read_text()
    assert 'Traceback' in log
    assert type(error).__name__ in log
    assert finished(longer, tmp_path, call='this')['status'] == kind
    assert finished(longer, tmp_path, call='another') is None
    assert finished(longer, tmp_path) is None
    execute(longer, tmp_path, call='another')
    assert finished(longer, tmp_path, call='this')  # each call tries it once, however many there are
    assert finished(longer, tmp_path, call='another')
    execute(longer, tmp_path)
    assert finished(longer, tmp_path) is None


def test_memory_that_is_not_there():
    with pytest.raises(RuntimeError) as e: torch.empty(2**60)
    assert failure_status(e.value) == 'out of memory'
    assert failure_status(MemoryError()) == 'out of memory'


def test_a_failed_run_is_tried_again(base, tmp_path, monkeypatch):
    run = replace(base, strategy='self_distill', lam=1.)
    with monkeypatch.context() as m:
        m.setattr(execute_module, 'create_model', lambda *a, **k: 1/0)
        row = execute(run, tmp_path)
    assert row['status'] == 'failed'
    assert 'ZeroDivisionError' in row['error']
    assert 'Traceback' in (tmp_path/'runs'/run.key/'log.txt').read_text()
    assert execute(run, tmp_path)['status'] == 'ok'  # the cause may be gone


def test_a_diverged_run_is_not_tried_again(base, tmp_path):
    run = replace(base, lr=1e30)
    row = execute(run, tmp_path)
    assert row['status'] == 'diverged'
    assert 'not finite' in row['error']
    assert row['valid_acc1'] is None
    assert execute(run, tmp_path) == row


def test_a_penalty_that_is_not_finite_is_a_row(longer, tmp_path):
    row = execute(replace(longer, strategy='self_distill', lam=1e38, lr=10.), tmp_path)
    assert row['status'] == 'diverged'
    assert 'not finite' in row['error']


def test_a_strategy_that_always_fails_is_counted(base, tmp_path):
    rows = compare(base, {'finetune': [dict(lr=.05)], 'l2sp': [dict(lam=1e38)]}, tmp_path, seeds=2)
    table = summary(rows).set_index('strategy')
    assert table.loc['l2sp', 'failed'] == 2
    assert table.loc['finetune', 'runs'] == 2
    assert pd.isna(table.loc['l2sp', 'acc1'])
    write_report(rows, tmp_path)


def test_the_study_continues_and_its_table_says_so(longer, tmp_path, monkeypatch):
    grids, train = dict(finetune=[dict(lr=.05)], l2sp=[dict(lam=.1)]), execute_module.train_run
    def sometimes(run, *a, **k):
        if run.strategy == 'l2sp' and run.seed == 1: raise torch.OutOfMemoryError('CUDA out of memory')
        return train(run, *a, **k)
    with monkeypatch.context() as m:
        m.setattr(execute_module, 'train_run', sometimes)
        rows = compare(longer, grids, tmp_path, seeds=3)
    assert rows.status.value_counts().to_dict() == {'ok': 6, 'out of memory': 1}
    table = write_report(rows, tmp_path)
    assert table.set_index('strategy').failed['l2sp'] == 1
    assert '1 failed' in (tmp_path/'table.md').read_text()
    assert set(compare(longer, grids, tmp_path, seeds=3).status) == {'ok'}  # the cause is gone


def test_half_written_runs_are_done_again(base, tmp_path):
    row = execute(base, tmp_path)
    result = tmp_path/'runs'/base.key/'result.json'
    result.unlink()
    (result.parent/'epochs.csv').write_text('half')
    assert timeless(execute(base, tmp_path)) == timeless(row)
