"The table of a protocol"
import numpy as np
import pandas as pd
import pytest

from sdfast.crossed import crossed_difference
from sdfast.report.crossed import compare_arms, crossed_table

rng = np.random.default_rng(0)
MODEL, NOISE = rng.normal(0, .02, (5, 1)), {arm:rng.normal(0, .001, (5, 6)) for arm in 'abcdef'}


def make_rows(**arms):
    "Rows of arms that keep so much more than finetune, whose table is 0 plus what all share"
    rows = []
    for (arm, more), noise in zip(dict(finetune=0., **arms).items(), NOISE.values()):
        kept = .8 + MODEL + more + noise*(arm != 'noisy') + (noise*100 if arm == 'noisy' else 0)
        rows += [dict(arm=arm, rule='kept', source_seed=i, seed=j, status='ok', acc1=.9, source_acc=kept[i, j] - .1,
                      source_probe=kept[i, j] + .1) for i in range(5) for j in range(6)]
    return pd.DataFrame(rows)


def test_verdicts():
    table = compare_arms(make_rows(better=.02, worse=-.02, same=0., noisy=0.)).set_index('arm')
    assert table.verdict.to_dict() == dict(finetune='', better='better', worse='worse', same='equivalent',
                                           noisy='undecided')
    expected = crossed_difference(.02 + NOISE['b'] - NOISE['a'])
    assert np.isclose(table.kept_diff.better, expected.mean) and np.isclose(table.p.better, expected.p)
    assert np.isclose(table.kept_diff_low.better, expected.low)


def test_p_values_are_adjusted_for_all_arms():
    table = compare_arms(make_rows(better=.02, worse=-.02, same=0., noisy=0.))
    assert np.isclose(table.p_adj.min(), 4*table.p.min())


def test_an_arm_of_fewer_seeds_is_compared_at_those():
    rows = make_rows(merged=.01)
    rows = rows[(rows.arm != 'merged') | rows.seed.isin([0, 2, 4])]
    row = compare_arms(rows).set_index('arm').loc['merged']
    expected = crossed_difference((.01 + NOISE['b'] - NOISE['a'])[:, [0, 2, 4]])
    assert row.seeds == 3 and np.isclose(row.kept_diff, expected.mean) and np.isclose(row.p, expected.p)


def test_failed_runs_are_counted_and_said():
    rows = make_rows(better=.02)
    rows.loc[(rows.arm == 'better') & (rows.seed == 1) & (rows.source_seed == 2), 'status'] = 'diverged'
    table = compare_arms(rows)
    assert table.set_index('arm').failed.better == 1
    assert 'Failed runs: better 1.' in crossed_table(table).to_markdown()


def test_the_table_says_what_it_is_of():
    text = crossed_table(compare_arms(make_rows(better=.02)), chosen='Chosen so.').to_markdown()
    assert 'means over 5 source models and 6 seeds with each' in text and 'Chosen so.' in text
    lines = text.splitlines()
    assert lines[2].startswith('| better') and '+2.0' in lines[2] and ' better |' in lines[2]
    with pytest.raises(ValueError, match='no final runs of l2sp'): compare_arms(make_rows(), 'l2sp')
