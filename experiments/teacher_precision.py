"""What does a teacher that computes in bfloat16 change: in what is learned, and in what is kept?

    python experiments/teacher_precision.py             # the embedded task, 6 seeds, two strengths: 24 runs
    python experiments/teacher_precision.py --quick     # the same at a reduced size

The same runs with an exact teacher and with `teacher_dtype='bfloat16'`, paired by seed; every row is shown. Writes runs.csv, table.csv and table.md to --out."""
import sys
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)  # of the libraries about each other
warnings.filterwarnings('ignore', category=DeprecationWarning)

import pandas as pd
from fastcore.script import call_parse, store_true

from sdfast.data.datasets import create_task
from sdfast.errors import InputError, StoreError
from sdfast.metrics.columns import MEASURES, TABLE_COLUMNS
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.stats import mean_interval, paired_difference
from sdfast.study.compare import compare_rows
from sdfast.study.config import QUICK, Run
from sdfast.study.execute import RunJob
from sdfast.study.progress import LiveProgress
from sdfast.study.source import untouched

SHOWN = [m for m in TABLE_COLUMNS if m not in ('other_probe', 'barrier')]


def table(rows)->pd.DataFrame: # A row for each strength and measure
    "Means over seeds with an exact and with a bfloat16 teacher, and their paired difference with its 95 % t interval"
    ok, out = rows[(rows.status == 'ok') & (rows.strategy != 'untouched')].fillna(dict(strategy_args='')), []
    for lam, g in ok.groupby('lam'):
        exact, low = (g[g.strategy_args.str.contains('bfloat16') == is_low].set_index('seed') for is_low in (False, True))
        seeds = exact.index.intersection(low.index)
        for m in SHOWN:
            a, b = (t.loc[seeds, m].astype(float).to_numpy() for t in (exact, low))
            d = paired_difference(b, a)
            out.append(dict(lam=lam, measure=m, exact=mean_interval(a).mean, bfloat16=mean_interval(b).mean, diff=d.mean, low=d.low, high=d.high, seeds=d.n))
    return pd.DataFrame(out)


def markdown(t):
    lines = ['| λ | measure | exact teacher | bfloat16 teacher | difference |', '|--:|---|--:|--:|--:|']
    for r in t.itertuples():
        scale, digits = MEASURES[r.measure].scale, MEASURES[r.measure].digits
        where = ' (no interval)' if pd.isna(r.low) else f' [{scale*r.low:+.{digits}f}, {scale*r.high:+.{digits}f}]'
        lines.append(f'| {r.lam:g} | {MEASURES[r.measure].title} | {scale*r.exact:.{digits}f} | {scale*r.bfloat16:.{digits}f} | {scale*r.diff:+.{digits}f}{where} |')
    return '\n'.join([*lines, '', f'Accuracies in %, means over {t.seeds.max()} seeds; paired differences, bfloat16 less exact, with 95 % t intervals, not corrected for the number of rows.', ''])


@call_parse  # runs at once in a script, so it comes last
def main(
    seeds:int=6, # Runs of each setting
    epochs:int=12, # Of fine-tuning
    lams:str='10,100', # Strengths, by commas
    strategy:str='self_distill', # Or fixed_teacher, ema_teacher
    out:str='runs/teacher_precision', # Folder to write to; finished runs in it are not done again
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
    jobs:int=1, # Worker processes, one for each GPU where there are several
):
    "Compare exact and bfloat16 teachers on the embedded task"
    target, source = create_task('moving_digits', 'target'), create_task('moving_digits', 'source')
    if quick: seeds, epochs, target, source = min(seeds, 2), min(epochs, 2), target.subset(**QUICK), source.subset(**QUICK)
    base = Run(data=f'{source.fingerprint}-{target.fingerprint}', epochs=epochs, quick=quick, source_epochs=5 if quick else 6, strategy=strategy, final=True)
    out = Path(out)
    try:
        launcher = Launcher(jobs)
        out.mkdir(parents=True, exist_ok=True)
        runs = [replace(base, lam=float(lam), strategy_args=args, seed=i) for i in range(seeds) for lam in lams.split(',') for args in ('', 'teacher_dtype=bfloat16')]
        with LiveProgress() as progress:
            progress.plan(runs)
            rows = compare_rows(run_all(runs, RunJob(str(out)), out, progress, launcher), untouched(base, out, progress), base)
    except (InputError, StoreError, OSError) as e: sys.exit(f'teacher_precision.py: {e}')
    except KeyboardInterrupt:
        print(f'teacher_precision.py: stopped; finished runs are in {out}, the same command goes on from there', file=sys.stderr)
        sys.exit(130)
    t = table(rows)
    rows.to_csv(out/'runs.csv', index=False)
    t.to_csv(out/'table.csv', index=False, float_format='%.6g')
    (out/'table.md').write_text(markdown(t))
    print(markdown(t))
