"Settings that all run with every seed."
from dataclasses import replace

import pytest

from sdfast.data.datasets import create_task
from sdfast.study.paired import final_run, run_settings


@pytest.fixture
def spec(clips): return f'folder:{clips},group=(p\\d)_'


def test_a_final_run_has_the_fingerprints_of_its_tasks(spec, fresh):
    run = final_run(spec, spec, epochs=3)
    fingerprint = create_task(spec).fingerprint
    assert run.data == f'{fingerprint}-{fingerprint}'
    assert (run.task, run.source, run.epochs, run.source_epochs) == (spec, spec, 3, 6)
    assert run.final


def test_a_quick_run_has_fewer_clips(spec, fresh):
    run = final_run(spec, spec, quick=True)
    assert run.quick
    assert run.source_epochs == 5
    assert final_run(spec, spec, quick=True, source_epochs=1).source_epochs == 1


def test_every_setting_is_run_with_every_seed(spec, tmp_path, fresh):
    base = final_run(spec, spec, epochs=1, source_epochs=1, frames=4, size=24, bs=4, source_bs=4, model_args='width=8')
    settings = [base, replace(base, strategy='lower_lr', lam=1.)]
    rows = run_settings(settings, 2, tmp_path)
    found = list(zip(rows.strategy, rows.seed))
    assert found[:4] == [('finetune', 0), ('finetune', 1), ('lower_lr', 0), ('lower_lr', 1)]
    assert rows.strategy.iloc[4] == 'untouched'
    assert len(rows) == 5
    assert rows.anchor.nunique() == 1
