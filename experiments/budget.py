"""Does a budget hold its floor, and what does it cost against choosing the best λ of a whole path?

    python experiments/budget.py             # the embedded task, 10 seeds: see experiments/README.md for the time
    python experiments/budget.py --quick     # the same at a reduced size

Self-distillation and L2-SP with `retain=.98` adapt λ while they train, by the old head with recomputed batch-norm
statistics on the source's valid part. Self-distillation with fixed λ is the path that they are compared with. What
decides, set before these seeds ran (rate and number of measurements were chosen on seeds 100 and 101):

1. on the source's test part, which no budget sees, at least 9 of 10 seeds keep the floor less 1 point or more;
2. target accuracy is not distinguishable from that of the best λ of the path whose mean keeps as much;
3. the cost is that of one run.

Writes runs.csv, budget.csv (a row for each seed) and budget.json to --results, by default --out."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import platform
from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse, store_true

from sdfast.commands.common import make_folder, study_session
from sdfast.runtime import store
from sdfast.stats import paired_difference, paired_test
from sdfast.study.paired import final_run, run_settings

DATA = dict(task='moving_digits', source='moving_digits', source_valid=True)
FLOOR, POINT = .98, .01
BY, MEASURE = 'old_head_bn', 'source_acc_bn'  # what a budget measures on valid, and the same on test
BUDGETS = dict(self_distill=30., l2sp=.1)  # strategy -> the strength that it starts with
LAMS = 3., 10., 30.


def make_settings(base):
    "Self-distillation with a budget, its path, and the other strategies with a budget"
    budgets = [replace(base, strategy=s, lam=lam, strategy_args=f'retain={FLOOR}', retain_by=BY)
               for s, lam in BUDGETS.items()]
    path = [replace(base, strategy='self_distill', lam=lam) for lam in LAMS]
    return [budgets[0], *path, *budgets[1:]]


def seeds_of(rows, out):
    "For each run with a budget: what was kept, as a share of the untouched encoder, and the last strength"
    untouched = rows.loc[rows.strategy == 'untouched', MEASURE].iloc[0]
    table = []
    for row in rows[rows.strategy_args.fillna('').str.contains('retain') & (rows.status == 'ok')].itertuples():
        steps = pd.read_csv(out/'runs'/row.key/'budget.csv')
        kept = getattr(row, MEASURE)/untouched
        table.append(dict(strategy=row.strategy, seed=row.seed, acc1=row.acc1, kept_on_test=kept, held=kept >= FLOOR - POINT,
                          kept_on_valid=steps.kept.iloc[-1], least_on_valid=steps.kept.min(), last_lam=steps.lam.iloc[-1],
                          largest_lam=steps.lam.max(), measurements=len(steps), seconds=row.seconds))
    return pd.DataFrame(table)


def path_of(rows):
    "Means of the path's strengths, and the best on the target among those that keep the floor in the mean"
    untouched = rows.loc[rows.strategy == 'untouched', MEASURE].iloc[0]
    fixed = rows[(rows.strategy == 'self_distill') & ~rows.strategy_args.fillna('').str.contains('retain')]
    means = fixed.groupby('lam')[['acc1', MEASURE, 'seconds']].mean()
    means['kept_on_test'] = means.pop(MEASURE)/untouched
    enough = means[means.kept_on_test >= FLOOR - POINT]
    best = None if enough.empty else enough.acc1.idxmax()
    return fixed, means, best


def compare_with_path(table, rows):
    "For each strategy with a budget: seeds that held the floor, and the paired difference on the target to the best λ"
    fixed, means, best = path_of(rows)
    chosen = fixed[fixed.lam == best].set_index('seed')
    found = {}
    for strategy, mine in table.groupby('strategy', sort=False):
        mine = mine.set_index('seed')
        seeds = mine.index.intersection(chosen.index)
        a, b = mine.acc1[seeds].astype(float), chosen.acc1[seeds].astype(float)
        d = paired_difference(a, b)
        found[strategy] = dict(seeds=len(mine), held=int(mine.held.sum()), kept_on_test=mine.kept_on_test.mean(),
                               acc1=mine.acc1.mean(), difference=d.mean, low=d.low, high=d.high, p=paired_test(a, b),
                               seconds=mine.seconds.mean())
    return dict(floor=FLOOR, best_lam=best, path={f'{lam:g}':row.to_dict() for lam, row in means.iterrows()},
                budgets=found)


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    seeds:int=10, # Runs of each setting
    out:str='runs/budget', # Folder of the runs; finished runs in it are not done again
    results:str='', # Folder for the tables; by default --out
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
):
    "Compare strategies with a budget with the path of self-distillation on the embedded task"
    with study_session('budget.py', out) as (progress, where):
        base = final_run(**DATA, quick=quick, epochs=2 if quick else 12)
        rows = run_settings(make_settings(base), min(seeds, 2) if quick else seeds, out, progress, where)
        folder, table = make_folder(results or out), seeds_of(rows, Path(out))
        found = dict(command='python experiments/budget.py', machine=f'{platform.machine()}, one CPU thread',
                     seconds=float(rows.seconds.sum())) | compare_with_path(table, rows)
        store.write(folder/'runs.csv', rows.to_csv(index=False))
        store.write(folder/'budget.csv', table.to_csv(index=False, float_format='%.6g'))
        store.write_json(folder/'budget.json', found)
        print(pd.DataFrame(found['budgets']).T.to_string())
