"What a bfloat16 teacher changes: end to end on few clips, its table by hand, and the shipped table from its runs."
import pandas as pd
import pytest
from scipy import stats
from scripts import ROOT, load_script

SHIPPED = ROOT/'experiments/results/teacher_precision'


@pytest.fixture(scope='module')
def script(): return load_script('teacher_precision')


@pytest.fixture(scope='module')
def out(script, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp('precision')
    spec = f'folder:{clips},group=(p\\d)_'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(script, 'DATA', dict(task=spec, source=spec, frames=4, size=24, bs=4, source_bs=4))
        script.main(seeds=2, epochs=2, lams='3', quick=True, out=str(out))
    return out


@pytest.fixture(scope='module')
def rows(out): return pd.read_csv(out/'runs.csv').fillna(dict(strategy_args=''))


def drift(rows, options):
    mine = rows[(rows.strategy == 'self_distill') & (rows.strategy_args == options)]
    return mine.set_index('seed').drift


def test_all_runs_end(rows):
    assert len(rows) == 4 + 1
    assert (rows.status == 'ok').all()


def test_the_option_has_an_effect(rows): assert (drift(rows, '') != drift(rows, 'teacher_dtype=bfloat16')).all()


def test_a_row_by_hand(out, rows):
    table = pd.read_csv(out/'table.csv')
    row = table[table.measure == 'drift'].iloc[0]
    exact, low = drift(rows, ''), drift(rows, 'teacher_dtype=bfloat16')
    interval = stats.ttest_rel(low, exact).confidence_interval()
    assert (row.exact, row.bfloat16) == pytest.approx((exact.mean(), low.mean()), rel=1e-4)
    assert (row['diff'], row.low, row.high) == pytest.approx(((low - exact).mean(), *interval), rel=1e-3)
    assert row.seeds == 2


def test_the_shipped_table_comes_from_its_runs(script):
    table = script.make_table(pd.read_csv(SHIPPED/'runs.csv'))
    pd.testing.assert_frame_equal(table, pd.read_csv(SHIPPED/'table.csv'), check_dtype=False, rtol=1e-4, atol=1e-9)
    text = (SHIPPED/'table.md').read_text()
    assert script.render_table(table).to_markdown() == text
    assert text in (ROOT/'experiments/README.md').read_text()
