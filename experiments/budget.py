"""Does a budget hold its floor, and what does it cost against choosing the best λ of a whole path?

    python experiments/budget.py             # the embedded task, 10 seeds: see experiments/README.md for the time
    python experiments/budget.py --lr .15    # the same where plain fine-tuning forgets more
    python experiments/budget.py --quick     # the same at a reduced size

Self-distillation with `retain=.98` adapts λ while it trains, by the old head with recomputed batch-norm statistics on
the source's valid part. It is compared with plain fine-tuning and with the path of fixed λ. What decides, set before
these seeds ran (rate and number of measurements were chosen on seeds 100 and 101 at lr .05):

1. on the source's test part, which no budget sees, at least 9 of 10 seeds keep the floor less 1 point or more;
2. target accuracy is not distinguishable from that of the best λ of the path whose mean keeps as much;
3. the cost is that of one run.

Writes runs.csv, budget.csv (a row for each seed) and budget.json to --results, by default --out."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import json
import platform
from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse, store_true

from sdfast.commands.common import make_folder, study_session
from sdfast.runtime import store
from sdfast.stats import paired_difference, paired_test
from sdfast.study.compare import compare_rows
from sdfast.study.folder import finished
from sdfast.study.paired import final_run, run_settings
from sdfast.study.source import untouched

DATA = dict(task='moving_digits', source='moving_digits', source_valid=True)
FLOOR, POINT = .98, .01
BY, MEASURE = 'old_head_bn', 'source_acc_bn'  # what a budget measures on valid, and the same on test
START = 30.  # where λ starts


def make_settings(base, lams):
    "Self-distillation with a budget, plain fine-tuning, and the path of self-distillation"
    budget = replace(base, strategy='self_distill', lam=START, strategy_args=f'retain={FLOOR}', retain_by=BY)
    return [budget, *(replace(base, strategy='self_distill', lam=lam) for lam in lams), base]


def read_finished(settings, seeds, out):
    "The rows of `run_settings` that are there already"
    runs = [replace(setting, seed=i) for setting in settings for i in range(seeds)]
    rows = [row for run in runs if (row := finished(run, out)) is not None]
    return compare_rows(rows, untouched(settings[0], out), settings[0])


def has_budget(rows): return rows.strategy_args.fillna('').str.contains('retain')


def seeds_of(rows, out):
    "For each run with a budget: what was kept, as a share of the untouched encoder, and the last strength"
    before = rows.loc[rows.strategy == 'untouched', MEASURE].iloc[0]
    table = []
    for row in rows[has_budget(rows) & (rows.status == 'ok')].itertuples():
        steps = pd.read_csv(out/'runs'/row.key/'budget.csv')
        kept = getattr(row, MEASURE)/before
        table.append(dict(seed=row.seed, acc1=row.acc1, kept_on_test=kept, held=kept >= FLOOR - POINT,
                          kept_on_valid=steps.kept.iloc[-1], least_on_valid=steps.kept.min(),
                          last_lam=steps.lam.iloc[-1], largest_lam=steps.lam.max(), measurements=len(steps),
                          seconds=row.seconds))
    return pd.DataFrame(table)


def path_of(rows):
    "Means of plain fine-tuning, λ 0, and of fixed strengths"
    before = rows.loc[rows.strategy == 'untouched', MEASURE].iloc[0]
    fixed = rows[(rows.strategy != 'untouched') & ~has_budget(rows) & (rows.status == 'ok')]
    fixed = fixed.assign(kept_on_test=fixed[MEASURE]/before)
    fixed['held'] = fixed.kept_on_test >= FLOOR - POINT
    means = fixed.groupby('lam')[['acc1', 'kept_on_test', 'held', 'seconds']].mean()
    return fixed, means.assign(runs=fixed.groupby('lam').size())


def compare_with_path(table, rows):
    "Seeds that held the floor, and the paired difference on the target to the best λ whose mean holds it"
    fixed, means = path_of(rows)
    enough = means[(means.kept_on_test >= FLOOR - POINT) & (means.index > 0)]
    best = None if enough.empty else enough.acc1.idxmax()
    budget = dict(seeds=len(table), held=int(table.held.sum()), kept_on_test=table.kept_on_test.mean(),
                  kept_on_valid=table.kept_on_valid.mean(), acc1=table.acc1.mean(), seconds=table.seconds.mean())
    return dict(floor=FLOOR, budget=budget, path={f'{lam:g}':row.to_dict() for lam, row in means.iterrows()},
                best_lam=best, acc1_less_best=None if best is None else difference(table, fixed[fixed.lam == best]))


def difference(table, fixed):
    "The paired difference of target accuracy, by seed"
    a, b = (t.set_index('seed').acc1.astype(float) for t in (table, fixed))
    seeds = a.index.intersection(b.index)
    d = paired_difference(a[seeds], b[seeds])
    return dict(seeds=len(seeds), mean=d.mean, low=d.low, high=d.high, p=paired_test(a[seeds], b[seeds]))


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    seeds:int=10, # Runs of each setting
    lr:float=.05, # Of fine-tuning: SGD, momentum .9, cosine to 0
    lams:str='30,10,3', # Strengths of the path
    out:str='runs/budget', # Folder of the runs; finished runs in it are not done again
    results:str='', # Folder for the tables; by default --out
    read:store_true=False, # Only read the runs that are finished, and write the tables
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
):
    "Compare self-distillation with a budget with its path of fixed strengths on the embedded task"
    with study_session('budget.py', out) as (progress, where):
        base = final_run(**DATA, quick=quick, epochs=2 if quick else 12, lr=lr)
        settings = make_settings(base, [float(lam) for lam in lams.split(',') if lam])
        if quick: seeds = min(seeds, 2)
        rows = read_finished(settings, seeds, out) if read else run_settings(settings, seeds, out, progress, where)
        folder, table = make_folder(results or out), seeds_of(rows, Path(out))
        command = f'python experiments/budget.py --lr {lr:g} --lams {lams} --seeds {seeds}'
        found = dict(command=command, seconds=float(rows.seconds.sum()),
                     machine=f'{platform.machine()}, one CPU thread') | compare_with_path(table, rows)
        store.write(folder/'runs.csv', rows.to_csv(index=False))
        store.write(folder/'budget.csv', table.to_csv(index=False, float_format='%.6g'))
        store.write_json(folder/'budget.json', found)
        print(table.to_string())
        print(json.dumps(found, indent=1))
