"A budget as a setting of a study."
from dataclasses import replace

import pandas as pd
import pytest
from helpers import forget, timeless

from sdfast.errors import InputError
from sdfast.report.summary import summary
from sdfast.report.tables import strategy_table
from sdfast.strategies import STRATEGIES
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import Run
from sdfast.study.execute import execute
from sdfast.study.retain import add_retain, can_adapt
from sdfast.study.settings import make_settings
from sdfast.study.setup import build, strength_grids

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def held(base):
    "A run with a budget"
    return replace(base, source_valid=True, strategy='self_distill', lam=3., strategy_args='retain=0.9', final=True)


def test_every_strategy_with_a_strength_but_lp_ft_can_adapt_it():
    assert {n for n, s in STRATEGIES.items() if s.lams and not can_adapt(n)} == {'lp_ft'}
    assert not [n for n, s in STRATEGIES.items() if not s.lams and can_adapt(n)]


def test_runs_without_a_budget_keep_their_keys():
    assert Run().key == Run(retain_by='old_head').key != Run(retain_by='probe').key


def test_a_run_with_a_budget_writes_how_lam_changed(held, tmp_path):
    row = execute(held, tmp_path)
    assert row['status'] == 'ok', row['error']
    log = pd.read_csv(tmp_path/'runs'/row['key']/'budget.csv')
    epochs = pd.read_csv(tmp_path/'runs'/row['key']/'epochs.csv')
    assert log.columns.tolist() == ['step', 'lam', 'kept', 'aim']
    assert log.lam.iloc[0] == 3.
    assert log.aim.iloc[-1] == pytest.approx(.9)
    assert epochs.self_distill_kept.iloc[-1] == log.kept.iloc[-1]
    forget()
    assert timeless(execute(held, tmp_path/'again')) == timeless(row)


@pytest.mark.parametrize('by', ['old_head_bn', 'probe', 'drift'])
@pytest.mark.filterwarnings('ignore:retain without source clips')
def test_the_other_measures(by, held, tmp_path):
    row = execute(replace(held, retain_by=by, final=False), tmp_path)
    assert row['status'] == 'ok', row['error']


def test_a_budget_needs_a_held_out_part_of_the_source(held, tmp_path):
    row = execute(replace(held, source_valid=False), tmp_path)
    assert 'take a Run with source_valid=True' in row['error']


def test_tables_name_the_budget(held, tmp_path):
    base = replace(held, strategy='finetune', lam=0., strategy_args='')
    grids = dict(finetune=strength_grid('finetune', .01, n=1), self_distill=[dict(lam=3., strategy_args='retain=0.98')])
    rows = compare(base, grids, tmp_path, seeds=2)
    text = strategy_table(summary(rows)).to_markdown()
    assert '| self_distill | retain 98 % |' in text
    assert '| finetune | lr 0.01 |' in text


# ---- settings

def test_the_setting_gives_every_strategy_the_budget_and_one_setting():
    settings = make_settings('compare', retain=.98, strategy_args='ewc:implicit=true;l2sp:retain=.9')
    grids = strength_grids(settings, ['finetune', 'self_distill', 'ewc', 'l2sp', 'linear_probe'])
    assert grids['self_distill'] == [dict(lam=30., lr=.05, strategy_args='retain=0.98')]
    assert grids['ewc'][0]['strategy_args'] == 'retain=0.98,implicit=true'
    assert grids['l2sp'][0]['strategy_args'] == 'retain=0.9'
    assert grids['finetune'] == [dict(lam=0., lr=.05, strategy_args='')]
    assert len(grids['linear_probe']) == 1


def test_lams_say_where_the_strength_starts():
    settings = make_settings('compare', retain=.98, lams='self_distill=1,7')
    assert [g['lam'] for g in strength_grids(settings, ['finetune', 'self_distill'])['self_distill']] == [7.]


def test_a_budget_holds_out_a_part_of_the_source():
    def held_out(**given):
        small = dict(task='moving_digits', quick=True, strategies='self_distill')
        return build(make_settings('compare', **small | given)).runs[0].source_valid
    assert not held_out()
    assert held_out(retain=.9)
    assert held_out(strategy_args='self_distill:retain=.9')


@pytest.mark.parametrize('given,why', [
    (dict(retain=98), '--retain must be'),
    (dict(retain='x'), '--retain must be'),
    (dict(retain_by='cka'), '--retain-by must be'),
])
def test_wrong_settings_are_one_line(given, why):
    with pytest.raises(InputError, match=why) as e: make_settings('compare', **given)
    assert '\n' not in str(e.value)


def test_wrong_shares_and_strategies_are_one_line():
    with pytest.raises(InputError, match='retain must be a share'):
        strength_grids(make_settings('compare', strategy_args='self_distill:retain=2.5'), ['finetune', 'self_distill'])
    with pytest.raises(InputError, match="no option 'retain'"):
        strength_grids(make_settings('compare', strategy_args='lp_ft:retain=.9'), ['finetune', 'lp_ft'])
    with pytest.raises(InputError, match='none of the strategies'): add_retain(.9, ['finetune', 'lp_ft'], {})
