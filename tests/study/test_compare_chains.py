"A study of chains chooses on valid, skips what is done, and survives kills and company."
import numpy as np
import pandas as pd
import pytest
from fastai.torch_core import set_seed
from helpers import Log, forget
from processes import exit_codes, fork, kill_until_done

from sdfast.errors import InputError
from sdfast.metrics.continual import average_accuracy, backward_transfer, forward_transfer, task_forgetting
from sdfast.models.encoders import create_model
from sdfast.report.chains import accuracy_matrices, sequence_summary
from sdfast.report.tables import chain_table
from sdfast.study import stage as stage_module
from sdfast.study.accuracies import Accuracies
from sdfast.study.choose import strength_grid
from sdfast.study.compare_chains import compare_sequences

pytestmark = pytest.mark.usefixtures('fresh')

SEEDS = range(2)


def mean(f): return pytest.approx(np.mean([f(seed) for seed in SEEDS]))


@pytest.fixture
def study(bases, tmp_path):
    "Grids and rows of a study of two strategies with two strengths and two seeds"
    grids = {s:strength_grid(s, .05, None, 3)[:2] for s in ('finetune', 'l2sp')}
    rows = compare_sequences(bases, grids, tmp_path, seeds=2, progress=(log := Log()))
    assert log.planned == len(log.rows) == 8
    return grids, rows


def check_choice(rows):
    "The strength is the best on valid after the last stage, the strongest of equals"
    valid = [c for c in rows if c.startswith('valid.')]
    for s, g in rows[~rows.final & (rows.stage == 2)].groupby('strategy'):
        strength = 'lr' if s == 'finetune' else 'lam'
        g = g.assign(score=g[valid].mean(axis=1)).sort_values(strength, ascending=s != 'finetune')
        best = g[g.score == g.score.max()].iloc[-1]
        assert set(rows[rows.final & (rows.strategy == s)][strength]) == {best[strength]}


def check_summary(rows, grids):
    "The summary is made of the metrics of the matrices"
    heads, probes = accuracy_matrices(rows), accuracy_matrices(rows, 'probe')
    assert list(heads) == [(s, i) for s in grids for i in SEEDS]
    unknown = np.triu(np.ones((3, 3), bool), 1)  # an old head does not exist before its stage
    for at in heads:
        assert np.isnan(heads[at]).tolist() == unknown.tolist()
        assert not np.isnan(probes[at]).any()
    table = sequence_summary(rows).set_index('strategy')
    for s in grids:
        assert table.average[s] == mean(lambda i: average_accuracy(heads[s, i]))
        assert table.bwt[s] == mean(lambda i: backward_transfer(heads[s, i]))
        assert table['forgetting.source'][s] == mean(lambda i: task_forgetting(heads[s, i])[0])
    initial = rows[rows.strategy == 'random'][[c for c in rows if c.startswith('probe.')]].to_numpy(float)[0]
    assert table.fwt['l2sp'] == mean(lambda i: forward_transfer(probes['l2sp', i], initial))
    difference = mean(lambda i: average_accuracy(heads['l2sp', i]) - average_accuracy(heads['finetune', i]))
    assert table.average_diff['l2sp'] == difference
    assert np.isnan(table.average_diff['finetune'])
    assert (table['clips.source'] == 4).all()
    assert '4 test clips of the source and 4 of each task' in chain_table(table.reset_index()).caption


def check_random_encoder(rows, bases):
    set_seed(0)
    encoder = create_model('tiny', 1, width=8)[0]
    row = rows[rows.strategy == 'random'].iloc[0]
    found = {c:v for c, v in row.items() if c.startswith(('probe.', 'clips.'))}
    assert Accuracies(bases)(encoder, []) == found
    assert [v for c, v in found.items() if c.startswith('clips.')] == [4, 4, 4]


def test_a_study_of_chains(study, bases, tmp_path, monkeypatch):
    grids, rows = study
    assert len(rows) == 2*8 + 2
    assert set(rows.status) == {'ok'}
    check_choice(rows)
    check_summary(rows, grids)
    check_random_encoder(rows, bases)
    monkeypatch.setattr(stage_module, 'train_run', lambda *a: 1/0)  # nothing is trained again
    again = compare_sequences(bases, grids, tmp_path, seeds=2, progress=(log := Log()))
    assert all(skipped for _, skipped in log.rows)
    pd.testing.assert_frame_equal(again, rows)


def test_all_strategies_get_the_same_number_of_trials(bases, tmp_path):
    with pytest.raises(InputError, match='same number of trials'):
        compare_sequences(bases, {'finetune': [{}], 'ewc': [{}, {}]}, tmp_path)


def test_failures_are_counted(bases, tmp_path):
    rows = compare_sequences(bases, {'finetune': [dict(lr=.05)], 'l2sp': [dict(lam=1e38)]}, tmp_path, seeds=2)
    table = sequence_summary(rows).set_index('strategy')
    assert table.failed.to_dict() == dict(finetune=0, l2sp=2)
    assert table.runs.to_dict() == dict(finetune=2, l2sp=0)
    assert np.isnan(table.average['l2sp'])
    with pytest.raises(InputError, match='no chain reached its end.*diverged'):
        sequence_summary(rows[rows.strategy != 'finetune'])


def test_chains_that_are_killed_or_shared_end_the_same(bases, tmp_path):
    "Real processes, killed after a number of batches; then two at once"
    grids = dict(finetune=[dict(lr=.05)], si=[dict(lam=.1)])
    def rows(out, **kwargs):
        return compare_sequences(bases, grids, tmp_path/out, seeds=1, **kwargs).drop(columns='seconds')
    whole = rows('whole')
    forget()
    def work(progress): rows('killed', progress=progress)
    kills = kill_until_done(work, lambda kills: 3 + 2*kills)
    assert kills >= 3
    pd.testing.assert_frame_equal(rows('killed'), whole)
    forget()
    assert exit_codes([fork(lambda: rows('two')) for _ in range(2)]) == [0, 0]
    forget()
    pd.testing.assert_frame_equal(rows('two'), whole)
