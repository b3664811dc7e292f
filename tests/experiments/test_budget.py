"The study of budgets: what it counts, from rows by hand, and the shipped numbers from the shipped runs."
import json

import pandas as pd
import pytest
from scipy import stats
from scripts import ROOT, load_script

SHIPPED = sorted((ROOT/'experiments/results').glob('budget*'))


@pytest.fixture(scope='module')
def script(): return load_script('budget')


def rows_of(budget, path, untouched=.9):
    "Rows of runs: seed -> (target accuracy, what is kept) with a budget, and λ -> the same"
    def row(strategy, args, lam, seed, acc, kept):
        return dict(key=f'{strategy}{args}{lam}{seed}', strategy=strategy, strategy_args=args, lam=lam, seed=seed,
                    acc1=acc, source_acc_bn=kept, status='ok', seconds=2.)
    rows = [row('self_distill', 'retain=0.98', 30., seed, *values) for seed, values in enumerate(budget)]
    for lam, runs in path.items():
        rows += [row('self_distill' if lam else 'finetune', '', lam, s, *values) for s, values in enumerate(runs)]
    return pd.DataFrame([*rows, row('untouched', None, None, None, None, untouched)])


def test_it_counts_seeds_and_compares_with_the_best_strength_that_holds(script, tmp_path):
    rows = rows_of([(.8, .9), (.7, .874), (.75, .872)],
                   {0.: [(.9, .5)]*3, 3.: [(.9, .86)]*3, 10.: [(.79, .9), (.72, .88), (.71, .88)], 30.: [(.6, .9)]*3})
    for row in rows[rows.strategy_args == 'retain=0.98'].itertuples():
        (tmp_path/'runs'/row.key).mkdir(parents=True)
        log = pd.DataFrame(dict(step=[1, 2], lam=[30., 7.], kept=[.97, .99], aim=[.99, .98]))
        log.to_csv(tmp_path/'runs'/row.key/'budget.csv', index=False)
    table = script.seeds_of(rows, tmp_path)
    assert table.held.tolist() == [True, True, False]  # .97 of .9 is .873
    assert (table.last_lam.iloc[0], table.largest_lam.iloc[0], table.least_on_valid.iloc[0]) == (7., 30., .97)
    found = script.compare_with_path(table, rows)
    assert found['budget']['held'] == 2
    assert found['best_lam'] == 10.  # 3 learns more and keeps too little, 30 keeps enough and learns less
    assert found['path']['0']['held'] == 0
    less = found['acc1_less_best']
    assert less['mean'] == pytest.approx(.01)
    assert less['p'] == pytest.approx(stats.ttest_rel([.8, .7, .75], [.79, .72, .71]).pvalue)


def test_no_strength_may_hold_the_floor(script):
    rows = rows_of([(.8, .9)], {3.: [(.9, .5)]})
    table = pd.DataFrame([dict(seed=0, acc1=.8, held=True, kept_on_test=1., kept_on_valid=1., seconds=1.)])
    assert script.compare_with_path(table, rows)['best_lam'] is None


def test_there_are_shipped_numbers(): assert SHIPPED


@pytest.mark.parametrize('folder', SHIPPED, ids=lambda f: f.name)
def test_shipped_numbers_are_those_of_the_shipped_runs(folder, script):
    rows, table = (pd.read_csv(folder/f'{name}.csv') for name in ('runs', 'budget'))
    stored = json.loads((folder/'budget.json').read_text())
    again = json.loads(json.dumps(script.compare_with_path(table, rows)))
    def close(a, b):
        if isinstance(a, dict): return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
        return a == b or a == pytest.approx(b, rel=1e-4)
    assert close(again, {k:stored[k] for k in again})
