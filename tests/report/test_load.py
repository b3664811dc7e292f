"Folders of studies: which are read, which are merged."
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_study import EVIL

from sdfast.errors import InputError
from sdfast.report.load import load_results
from sdfast.report.page import write_page
from sdfast.report.summary import summary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rows(study): return pd.read_csv(study/'runs.csv')


@pytest.fixture
def a(study, tmp_path): return shutil.copytree(study, tmp_path/'a')


@pytest.fixture
def b(study, tmp_path): return shutil.copytree(study, tmp_path/'b')


def put(rows, folder): rows.to_csv(folder/'runs.csv', index=False)


def test_parts_of_a_study_are_merged(study, rows, a, b):
    put(rows[rows.strategy != 'self_distill'], a)
    put(rows[rows.strategy != 'l2sp'], b)
    merged, (whole,) = load_results(a, b), load_results(study)
    assert len(merged) == 1
    got, want = (summary(r.rows).set_index('strategy').sort_index() for r in (merged[0], whole))
    pd.testing.assert_frame_equal(got, want, check_dtype=False)


def test_a_run_that_failed_in_one_folder_only_did_not_fail(rows, a, b):
    good = rows.copy()
    columns = ['status', 'error', 'acc1', 'source_acc', 'source_probe']
    good.loc[good.status == 'failed', columns] = ['ok', '', .9, .5, .6]
    put(good, b)
    r, = load_results(a, b)
    assert len(r.failed) == 0


def test_of_two_chosen_settings_the_better_one_on_valid_is_taken(rows, a, b):
    is_distilled = rows.strategy == 'self_distill'
    rows = rows.assign(valid_acc1=rows.valid_acc1.mask(is_distilled & (rows.lam == 1), .95))
    put(rows, a)
    put(rows.assign(chosen=rows.chosen.mask(is_distilled, ~rows.chosen.astype(bool))), b)
    r, = load_results(a, b)
    assert set(r.tuned[r.tuned.strategy == 'self_distill'].lam) == {1.}
    assert 'λ 1, the best on valid' in r.notes[0]


def test_another_encoder_is_another_study(rows, a, b, tmp_path):
    put(rows.assign(anchor='other'), b)
    assert len(load_results(a, b)) == 2
    page = write_page([a, b], tmp_path/'two.html', figures=False)
    assert page.read_text().count('<article') == 2


def test_runs_that_contradict_each_other_are_refused(rows, a, b):
    put(rows.assign(key=rows.key + 'x', acc1=rows.acc1 + .1), b)
    with pytest.raises(InputError, match='cannot be merged: two runs of finetune with seed 0 differ'):
        load_results(a, b)


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match='has no runs.csv'): load_results(tmp_path)


def test_a_chain_is_refused():
    with pytest.raises(InputError, match='a chain of tasks'): load_results(ROOT/'experiments/results/sequence')


def test_an_unknown_strategy_is_refused(rows, a):
    put(rows.assign(strategy=rows.strategy.replace('l2sp', EVIL)), a)
    with pytest.raises(InputError, match='unknown strategy'): load_results(a)


def test_a_study_without_plain_fine_tuning_is_refused(rows, a):
    put(rows[rows.strategy != 'finetune'], a)
    with pytest.raises(InputError, match='no runs of finetune'): load_results(a)
