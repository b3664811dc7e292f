"""What does a teacher that computes in bfloat16 change: in what is learned, and in what is kept?

    python experiments/teacher_precision.py             # the embedded task, 6 seeds, two strengths: 24 runs
    python experiments/teacher_precision.py --quick     # the same at a reduced size

The same runs with an exact teacher and with `teacher_dtype='bfloat16'`, paired by seed; every row is shown. Writes
runs.csv, table.csv and table.md to --out."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse, store_true

from sdfast.commands.common import pick_strengths, study_session
from sdfast.metrics.columns import MEASURES, TABLE_COLUMNS
from sdfast.report.clips import clip_counts
from sdfast.report.table import MISSING, Cell, Column, Table
from sdfast.runtime import store
from sdfast.stats import mean_interval, paired_difference
from sdfast.study.paired import final_run, run_settings

DATA = dict(task='moving_digits', source='moving_digits')
OPTIONS = dict(exact='', bfloat16='teacher_dtype=bfloat16')  # of the strategy
SHOWN = [m for m in TABLE_COLUMNS if m not in ('other_probe', 'barrier')]


def make_table(rows):
    "A row for each strength and measure: means over seeds, and the paired difference with its 95 % t interval"
    found, counts = [], clip_counts(rows)
    runs = rows[(rows.status == 'ok') & (rows.strategy != 'untouched')].fillna(dict(strategy_args=''))
    for lam, group in runs.groupby('lam'):
        exact, low = (group[group.strategy_args == args].set_index('seed') for args in OPTIONS.values())
        seeds = exact.index.intersection(low.index)
        for m in [m for m in SHOWN if m in rows]:  # CKA is not in older runs
            a = exact.loc[seeds, m].to_numpy(float)
            b = low.loc[seeds, m].to_numpy(float)
            d = paired_difference(b, a)
            clips = counts.get(MEASURES[m].clips)
            means = dict(exact=mean_interval(a).mean, bfloat16=mean_interval(b).mean)
            difference = dict(diff=d.mean, low=d.low, high=d.high, seeds=d.n)
            found.append(dict(lam=lam, measure=m, clips=clips) | means | difference)
    return pd.DataFrame(found)


def table_row(row):
    measure = MEASURES[row.measure]
    style = dict(scale=measure.scale, digits=measure.digits)
    means = Cell.of(row.exact, **style), Cell.of(row.bfloat16, **style)
    difference = Cell.of(row.diff, row.low, row.high, sign='+', **style)
    clips = Cell(MISSING if pd.isna(row.clips) else f'{row.clips:.0f}')
    return [f'{row.lam:g}', measure.title, clips, *means, difference]


def render_table(table):
    columns = [Column('λ'), Column('measure', numeric=False), Column('test clips'), Column('exact teacher'),
               Column('bfloat16 teacher'), Column('difference')]
    caption = (f'Accuracies in %, means over {table.seeds.max()} seeds; paired differences, bfloat16 less exact, with '
               '95 % t intervals, not corrected for the number of rows.')
    return Table(columns, [table_row(r) for r in table.itertuples()], caption)


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    seeds:int=6, # Runs of each setting
    epochs:int=12, # Epochs of fine-tuning
    lams:str='10,100', # Strengths, separated by commas
    strategy:str='self_distill', # Or fixed_teacher, ema_teacher
    out:str='runs/teacher_precision', # Folder to write to; finished runs in it are not done again
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they run: local, or slurm
    slurm:str='', # Of Slurm's jobs, see compare.py
):
    "Compare exact and bfloat16 teachers on the embedded task"
    with study_session('teacher_precision.py', out, jobs, launcher, slurm) as (progress, where):
        if quick: seeds, epochs = min(seeds, 2), min(epochs, 2)
        base = final_run(**DATA, quick=quick, epochs=epochs, strategy=strategy)
        settings = [replace(base, lam=lam, strategy_args=args)
                    for lam in pick_strengths(lams, '--lams') for args in OPTIONS.values()]
        rows = run_settings(settings, seeds, out, progress, where)
        folder = Path(out)
        table = make_table(rows)
        text = render_table(table).to_markdown()
        store.write(folder/'runs.csv', rows.to_csv(index=False))
        store.write(folder/'table.csv', table.to_csv(index=False, float_format='%.6g'))
        store.write(folder/'table.md', text)
        print(text)
