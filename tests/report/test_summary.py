"Numbers of the summary by hand."
import csv
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tables import ODD_CLASSES

from sdfast.data.text import FORMULA
from sdfast.metrics.columns import COLUMNS
from sdfast.report.paper import right_answers
from sdfast.report.summary import answered_right, mcnemar_of_runs, summary
from sdfast.report.tables import strategy_table
from sdfast.study.config import Run
from sdfast.study.execute import execute


def final_row(strategy, seed, **values):
    run = dict(strategy=strategy, seed=seed, lam=1., lr=.05, status='ok', final=True, seconds=1.)
    return dict.fromkeys(COLUMNS) | run | values


def test_summary_by_hand(rows):
    table = summary(rows).set_index('strategy')
    a, b = (rows[(rows.strategy == s) & rows.final].acc1.to_numpy(float) for s in ('self_distill', 'finetune'))
    want = stats.ttest_rel(a, b).confidence_interval(.95)
    r = table.loc['self_distill']
    assert r.acc1 == pytest.approx(a.mean())
    assert r.acc1_diff == pytest.approx((a - b).mean())
    assert (r.acc1_diff_low, r.acc1_diff_high) == pytest.approx((want.low, want.high))
    assert (r.acc1_verdict, r.drift_verdict) == ('better', 'worse')
    assert (r.runs, r.failed) == (4, 0)
    assert pd.isna(table.loc['finetune', 'acc1_diff'])


@pytest.fixture
def five():
    "Five strategies with six seeds: ewc and mas are a little better"
    rng, out = np.random.default_rng(1), []
    for strategy in ('finetune', 'l2sp', 'ewc', 'lwf', 'mas'):
        shift = dict(ewc=.03, mas=.012).get(strategy, 0.)
        for seed in range(6):
            out.append(final_row(strategy, seed, chosen=True, acc1=.8 + shift + rng.normal(0, .006)))
    return pd.DataFrame(out)


def test_verdicts_are_adjusted_for_the_number_of_strategies(five):
    table = summary(five).set_index('strategy')
    def acc(strategy): return five[five.strategy == strategy].acc1.to_numpy(float)
    p = {s: stats.ttest_rel(acc(s), acc('finetune')).pvalue for s in ('l2sp', 'ewc', 'lwf', 'mas')}
    low = 0.
    for i, s in enumerate(sorted(p, key=p.get)):
        low = max(low, min(1, p[s]*(4 - i)))
        flip = stats.permutation_test((acc(s) - acc('finetune'),), np.mean, permutation_type='samples').pvalue
        assert table.acc1_p[s] == pytest.approx(p[s])
        assert table.acc1_p_adj[s] == pytest.approx(low)
        assert table.acc1_verdict[s] == ('better' if low < .05 else 'not distinguishable')
        assert table.acc1_p_flip[s] == pytest.approx(flip)
        assert table.acc1_bca_low[s] < table.acc1_diff[s] < table.acc1_bca_high[s]
    assert table.acc1_verdict['ewc'] == 'better'
    assert pd.isna(table.acc1_verdict['finetune'])


def test_other_adjustments_are_named_in_the_caption(five):
    plain = summary(five, method='none')
    assert plain.acc1_p_adj.equals(plain.acc1_p.rename('acc1_p_adj'))
    assert 'not adjusted' in strategy_table(plain, method='none').caption
    assert 'Benjamini' in strategy_table(summary(five, method='bh'), method='bh').caption


def test_mcnemar_is_of_the_mean_over_seeds(tmp_path):
    rng, rows, probs = np.random.default_rng(0), [], {}
    label = rng.integers(0, 3, 50)
    for strategy, known in dict(finetune=.1, l2sp=.5).items():
        for seed in range(3):
            key = f'{strategy}{seed}'
            p = rng.dirichlet([1, 1, 1], 50) + np.eye(3)[label]*known
            probs.setdefault(strategy, []).append(p)
            (tmp_path/'runs'/key).mkdir(parents=True)
            scores = pd.DataFrame(p, columns=['0', '1', '2']).assign(path='x', label=label)
            scores[['path', 'label', '0', '1', '2']].to_csv(tmp_path/'runs'/key/'scores.csv', index=False)
            rows.append(final_row(strategy, seed, key=key, acc1=.5))
    rows = pd.DataFrame(rows)
    right = {s: np.mean(p, 0).argmax(1) == label for s, p in probs.items()}
    a, b = (right['l2sp'] & ~right['finetune']).sum(), (~right['l2sp'] & right['finetune']).sum()
    table = summary(rows, folder=tmp_path).set_index('strategy')
    assert table.mcnemar['l2sp'] == pytest.approx(stats.binomtest(a, a + b).pvalue)
    assert table.mcnemar['l2sp'] < .05
    assert pd.isna(table.mcnemar['finetune'])
    lines = strategy_table(table.reset_index()).to_markdown().split('\n')
    assert '| McNemar p |' in lines[0]
    assert lines[3].endswith(f'| {table.mcnemar["l2sp"]:.2g} |')
    without_scores = summary(rows, folder=tmp_path/'x').set_index('strategy')
    assert pd.isna(without_scores.mcnemar['l2sp'])


def test_pairs_are_by_seed_and_failures_leave_the_pair_out(rows):
    mixed, ordered = (summary(r).set_index('strategy') for r in (rows.sample(frac=1, random_state=1), rows))
    assert mixed.loc['self_distill', 'acc1_diff_low'] == pytest.approx(ordered.loc['self_distill', 'acc1_diff_low'])
    failed = rows.index[(rows.strategy == 'finetune') & rows.final & (rows.seed == 2)]
    rows.loc[failed, 'status'], rows.loc[failed, 'acc1'] = 'diverged', None
    r = summary(rows).set_index('strategy').loc['self_distill']
    def rest(strategy): return rows[(rows.strategy == strategy) & rows.final & (rows.seed != 2)].acc1.to_numpy(float)
    assert r.acc1_diff == pytest.approx((rest('self_distill') - rest('finetune')).mean())


def cells(folder):
    "Every cell of every csv file below, with comma or semicolon for what divides them"
    for file in folder.rglob('*.csv'):
        for mark in ',;':
            with open(file, newline='', encoding='utf-8') as f:
                for row in csv.reader(f, delimiter=mark): yield from ((file, c) for c in row)


def test_odd_class_names_stay_names(class_csv, tmp_path, monkeypatch):
    "They come back from what is written as they went in, make no files, and no cell that is a formula"
    file = class_csv(ODD_CLASSES)
    rows = pd.read_csv(file, dtype=str)
    pd.concat([rows, rows[rows.split.eq('train')].assign(split='valid')]).to_csv(file, index=False)
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path/'set/down')
    run = Run(task=f'csv:{file}', source='', size=24, frames=4, bs=4, epochs=1, final=True)
    row = execute(run, tmp_path/'out')
    assert row['status'] == 'ok', row['error']
    assert [p for p in sorted(tmp_path.rglob('*')) if not p.is_relative_to(tmp_path/'out')] == before
    written = {p.name for p in (tmp_path/'out').rglob('*') if p.is_file()} - {'.lock'}
    assert written == {'run.json', 'epochs.csv', 'scores.csv', 'log.txt', 'result.json'}
    pd.DataFrame([row]).to_csv(tmp_path/'out/runs.csv', index=False)
    for _, cell in cells(tmp_path/'out'): assert not FORMULA.search(cell) or cell in ('-1', '+1.5')
    scores = pd.read_csv(tmp_path/'out/runs'/row['key']/'scores.csv', dtype=dict(label=str))
    assert list(scores.columns[2:]) == sorted(ODD_CLASSES)
    assert list(scores.label) == ODD_CLASSES
    assert right_answers(tmp_path/'out', row, 'last').mean() == pytest.approx(row['acc1'])
    runs = pd.DataFrame([row])
    assert mcnemar_of_runs(partial(answered_right, tmp_path/'out'), runs, runs.set_index('seed')) == 1
