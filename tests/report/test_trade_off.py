"What keeping costs, by hand."
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdfast.report.summary import summary
from sdfast.report.tables import margins_table, trade_off_table
from sdfast.report.trade_off import MARGINS, strength_paths, trade_off

NOISE = np.array([.001, -.001]*3)  # l2sp's own, by seed


@pytest.fixture
def base(path):
    "Runs of finetune at its best learning rate"
    return path[(path.strategy == 'finetune') & (path.lr == .05)]


@pytest.fixture
def table(path): return trade_off(path).set_index('strategy')


@pytest.fixture
def shift(base):
    "Seeds shift target and source alike for all settings, this much in the mean"
    return base.source_probe.mean() - .80


# finetune's own path crosses .89, a point below its best, between its second and third learning rate
OWN = .81 + .01*(.895 - .89)/(.895 - .86)


def test_what_is_kept_at_equal_learning(table, shift):
    # l2sp's line crosses .89 at .80 + 2 x .01
    assert table.matched['l2sp'] == pytest.approx(.82 + shift)
    assert table.cost['l2sp'] == pytest.approx(.9 - .82 - shift)
    assert table.matched['finetune'] == pytest.approx(OWN + shift)
    # on the line from plain fine-tuning to its first strength
    assert table.matched['lwf'] == pytest.approx(.80 + shift + .05*.01/.2)


def test_differences_are_paired(table):
    r = table.loc['l2sp']
    # the seeds' shifts cancel, l2sp's own noise is left
    half = stats.t.ppf(.975, 5)*np.std(NOISE, ddof=1)/6**.5
    assert r['diff'] == pytest.approx(.82 - OWN)
    assert r.verdict == 'better'
    assert r['diff'] - r.diff_low == pytest.approx(half, rel=1e-4)
    assert r.p == pytest.approx(2*stats.t.sf(r['diff']/half*stats.t.ppf(.975, 5), 5), rel=1e-3)


def test_volumes(table):
    # beyond (finetune less 1 point, what it keeps): a staircase over l2sp's points within the margin
    r = table.loc['l2sp']
    assert r.volume == pytest.approx(1e4*(.004*.012 + .004*.004), rel=1e-6)
    assert r.volume_low < r.volume < r.volume_high
    # finetune's second learning rate lies within the margin, .005 of target and .01 of source; both shift with the seed
    own = np.array([.005*.01]*6)
    mine = .004*(.012 + NOISE) + .004*(.004 + NOISE)
    want = stats.ttest_rel(1e4*mine, 1e4*own)
    assert r.volume_diff == pytest.approx(1e4*(mine - own).mean())
    assert r.volume_p == pytest.approx(want.pvalue)
    assert (r.volume_diff_low, r.volume_diff_high) == pytest.approx(want.confidence_interval(.95))
    assert r.volume_verdict == ('better' if r.volume_p_adj < .05 else 'not distinguishable')
    assert np.isnan(table.volume_diff['finetune'])


def test_front(table):
    assert 'lr0.05' in table.front['finetune']
    assert table.front['l2sp'].split() == ['λ1', 'λ2', 'λ3', 'λ4']


def test_table_has_these_numbers(path, table):
    text = trade_off_table(trade_off(path)).to_markdown()
    r = table.loc['l2sp']
    interval = f'[{r.volume_diff_low:+.1f}, {r.volume_diff_high:+.1f}]'
    assert f'| {r.volume:.1f} {r.volume_diff:+.1f} {interval} {r.volume_verdict} |' in text
    assert f'| l2sp | {100*r.matched:.1f} |' in text
    assert 'better' in text
    assert 'Holm' in text


def test_caption_says_what_was_selected_on_which_data(path):
    caption = trade_off_table(trade_off(path)).caption
    assert 'selected on test' in caption
    assert "only finetune's learning rate is selected on valid" in caption
    assert 'never on test' not in caption


def test_the_level_does_not_depend_on_which_setting_was_chosen(path):
    is_other = [lr == .025 if s == 'finetune' else c for c, s, lr in zip(path.chosen, path.strategy, path.lr)]
    pd.testing.assert_frame_equal(trade_off(path.assign(chosen=is_other)), trade_off(path))


def test_the_summary_is_of_chosen_settings_alone(path, base):
    only = summary(path).set_index('strategy')
    assert only.lam['l2sp'] == 2.
    assert only.acc1['l2sp'] == pytest.approx(.894 + base.acc1.mean() - .9)


def test_without_all_seeds_of_the_reference_there_is_no_level(path):
    failed = path.assign(status=['diverged', *path.status[1:]])
    with pytest.raises(ValueError, match='failed with some seeds'): trade_off(failed)


def test_a_path_begins_with_the_reference(path):
    paths = strength_paths(path, 'source_acc')
    assert paths['l2sp'].settings == [(0., .05), (1., .05), (2., .05), (3., .05), (4., .05)]
    assert paths['finetune'].settings == [(0., .05), (0., .025), (0., .0125)]
    assert (paths['l2sp'].learned[:, 0] == paths['finetune'].learned[:, 0]).all()
    assert np.isnan(paths['lwf'].kept[3, 2]), 'a run that failed is missing'


def test_what_is_found_at_other_margins(path, base):
    """Without a margin a path begins where it equals the reference, whose setting it has in common; l2sp trades 2 for
    1, so each point of margin is 2 of source more"""
    lines = margins_table(path).to_markdown().split('\n')
    assert lines[0] == '| strategy | less 0 | less 0.25 | less 0.5 | less 1 | less 2 |'
    assert [line.split(' | ')[0] for line in lines[2:4]] == ['| l2sp', '| lwf']
    cells = lines[2].strip('| ').split(' | ')[1:]
    for margin, cell in zip(MARGINS, cells):
        r = trade_off(path, margin=margin).set_index('strategy').loc['l2sp']
        assert r.matched == pytest.approx(base.source_probe.mean() + 2*margin)
        assert cell.startswith(f'{100*r["diff"]:+.1f} [')
        assert cell.endswith(r.verdict)
    without = trade_off(path, margin=0.).set_index('strategy')
    assert without['diff']['lwf'] == pytest.approx(0, abs=1e-9)
