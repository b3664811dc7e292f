"The committed results of experiments/sequence.py are complete, and its tables are made of them."
from pathlib import Path

import pandas as pd
import pytest

from sdfast.report.chains import matrix_table, sequence_summary
from sdfast.report.tables import chain_table

ROOT = Path(__file__).parents[2]
FOLDER = ROOT/'experiments/results/sequence'


@pytest.fixture(scope='module')
def rows(): return pd.read_csv(FOLDER/'runs.csv')


@pytest.fixture(scope='module')
def chains(rows): return rows[~rows.strategy.isin(['untouched', 'random'])]


def test_seeds_are_paired_and_no_stage_is_missing(chains):
    seeds = chains[chains.final].groupby('strategy').seed
    assert seeds.apply(lambda s: tuple(sorted(s))).nunique() == 1


def test_each_strategy_has_the_same_number_of_trials(chains):
    assert chains[~chains.final].groupby('strategy').size().nunique() == 1


def test_trials_do_not_read_test(chains):
    on_test = [c for c in chains if c.startswith(('head.', 'probe.'))]
    assert chains[~chains.final][on_test].isna().all(axis=None)


def test_tables_are_made_of_the_rows(rows):
    table = chain_table(sequence_summary(rows)).to_markdown()
    assert (FOLDER/'table.md').read_text() == table
    assert table in (ROOT/'experiments/README.md').read_text()
    pd.testing.assert_frame_equal(pd.read_csv(FOLDER/'matrix.csv'), matrix_table(rows), rtol=1e-5)
