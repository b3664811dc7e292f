"""What does lambda do to self-distillation: what is learned and what is kept, for three readings of the loss and two of the teacher?

    python experiments/lambda_sweep.py             # the embedded task, 6 seeds: see experiments/README.md for the time
    python experiments/lambda_sweep.py --quick     # the same at a reduced size

The paper sweeps lambda from .1 to 1000 and leaves open whether the squared distance of features is averaged over all its
elements, summed over the features or summed over the batch too, and whether the frozen teacher normalises with the batch's or
with its running statistics. This sweep runs all of it. It chooses nothing: every row is shown. Writes runs.csv, table.csv,
table.md and figure.png to --out."""
import sys
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)  # of the libraries about each other
warnings.filterwarnings('ignore', category=DeprecationWarning)

import pandas as pd
from fastcore.script import call_parse, store_true
from matplotlib.figure import Figure

from sdfast.data.datasets import create_task
from sdfast.errors import InputError, StoreError
from sdfast.report.summary import summary
from sdfast.report.tables import number
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.strategies.distill import REDUCTIONS
from sdfast.study.compare import compare_rows
from sdfast.study.config import QUICK, Run
from sdfast.study.execute import RunJob
from sdfast.study.progress import LiveProgress
from sdfast.study.source import untouched

LAMS, BN = (.1, 1., 10., 100., 1000.), ('batch', 'running')
SHOWN = dict(acc1='target acc@1', source_acc='source, old head', source_probe='source, new probe')


def pressure(out, row):
    "Mean over the epochs of lambda times the distance, relative to the cross-entropy"
    log = pd.read_csv(out/'runs'/row.key/'epochs.csv')
    return (row.lam*log.self_distill/log.train_loss).mean() if 'self_distill' in log else 0.


def table(rows, out):
    "A row for each reduction, teacher and lambda: means, paired differences to lambda = 0, and how hard the term pulled"
    t = summary(rows.assign(strategy=[name(r) for r in rows.itertuples()])).set_index('strategy')
    pull = {n:sum(pressure(out, r) for r in g.itertuples())/len(g) for n, g in rows.assign(n=[name(r) for r in rows.itertuples()])[rows.status == 'ok'].groupby('n') if n != 'untouched'}
    return t.assign(pull=pd.Series(pull))


def name(r): return r.strategy if r.strategy != 'self_distill' else f'{r.strategy_args.replace("reduction=", "").replace(",teacher_bn=", " ")} {r.lam:g}'


def markdown(t):
    lines = ['| reduction | teacher | λ | ' + ' | '.join(SHOWN.values()) + ' | λ·distance / CE | diverged |', '|---|---|--:|' + '--:|'*(len(SHOWN) + 2)]
    for n, r in t.iterrows():
        what = n.split(' ') if n not in ('finetune', 'untouched') else [n, '', '0' if n == 'finetune' else '']
        cells = []
        for m in SHOWN:
            if pd.isna(r[m]): cells.append('–')
            elif pd.isna(r.get(f'{m}_diff')): cells.append(f'{100*r[m]:.1f}')
            else:
                low, high = (100*r[f'{m}_diff_{end}'] for end in ('low', 'high'))
                star, where = '*' if low > 0 or high < 0 else '', f' [{number(low, "+")}, {number(high, "+")}]' if pd.notna(low) else ' (no interval)'
                cells.append(f'{100*r[m]:.1f} {number(100*r[f"{m}_diff"], "+")}{star}{where}')
        lines.append('| ' + ' | '.join([*what, *cells, '' if pd.isna(r.pull) or n == 'finetune' else f'{r.pull:.2g}', f'{r.failed} of {r.failed + r.runs}' if r.failed else '']) + ' |')
    return '\n'.join(lines)


def figure(t):
    "Learned and kept against lambda; the band is lambda = 0, a cross at the bottom a setting of which some seeds diverged"
    fig = Figure(figsize=(11, 6.2), layout='constrained')
    axes = fig.subplots(2, 3, sharex=True, sharey='row')
    base = t.loc['finetune']
    for col, reduction in enumerate(REDUCTIONS):
        for ax, m in zip(axes[:, col], ('acc1', 'source_acc')):
            ax.axhspan(100*base[f'{m}_low'], 100*base[f'{m}_high'], color='#bbbbbb', alpha=.5, lw=0, label='λ = 0 (95 %)')
            ax.axhline(100*base[m], color='#555555', lw=1)
            if m == 'source_acc': ax.axhline(100*t.loc['untouched', m], color='#555555', lw=1, ls='--', label='untouched')
            for bn, colour, marker, shift in zip(BN, ('#0072B2', '#D55E00'), ('o', '^'), (.95, 1.05)):
                g = t.loc[[f'{reduction} {bn} {lam:g}' for lam in LAMS]]
                x = [lam*shift for lam in LAMS]
                err = [100*(g[m] - g[f'{m}_low']).fillna(0), 100*(g[f'{m}_high'] - g[m]).fillna(0)]
                ax.errorbar(x, 100*g[m], yerr=err, color=colour, marker=marker, capsize=3, label=f'teacher_bn={bn!r}')
                lost = [xi for xi, f in zip(x, g.failed) if f]
                if lost: ax.plot(lost, [.03]*len(lost), 'x', color=colour, ms=8, mew=2, transform=ax.get_xaxis_transform())
            ax.set(xscale='log')
            ax.grid(alpha=.3)
        axes[0, col].set_title(f'reduction={reduction!r}')
        axes[1, col].set_xlabel('λ')
    axes[0, 0].set_ylabel('learned: target accuracy in %')
    axes[1, 0].set_ylabel('kept: source, old head, in %')
    axes[1, 0].legend(fontsize=8)
    return fig


@call_parse  # runs at once in a script, so it comes last
def main(
    seeds:int=6, # Runs of each setting
    epochs:int=12, # Of fine-tuning
    lr:float=.05, # Of fine-tuning: SGD, momentum .9, cosine to 0
    out:str='runs/lambda_sweep', # Folder to write to; finished runs in it are not done again
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they are: local, or slurm
    slurm:str='', # Of Slurm's jobs, see compare.py
):
    "Sweep lambda of self-distillation over reductions and teacher modes on the embedded task"
    if min(seeds, epochs) < 1 or not lr > 0: sys.exit('lambda_sweep.py: --seeds and --epochs must be at least 1, --lr positive')
    target, source = create_task('moving_digits', 'target'), create_task('moving_digits', 'source')
    if quick: seeds, epochs, target, source = min(seeds, 2), min(epochs, 2), target.subset(**QUICK), source.subset(**QUICK)
    base = Run(data=f'{source.fingerprint}-{target.fingerprint}', epochs=epochs, lr=lr, quick=quick, source_epochs=5 if quick else 6, final=True)
    settings = [base, *(replace(base, strategy='self_distill', strategy_args=f'reduction={r},teacher_bn={bn}', lam=lam) for r in REDUCTIONS for bn in BN for lam in LAMS)]
    out = Path(out)
    try:
        launcher = Launcher(jobs, launcher, slurm)
        out.mkdir(parents=True, exist_ok=True)
        with LiveProgress() as progress:
            runs = [replace(s, seed=i) for s in settings for i in range(seeds)]
            progress.plan(runs)
            rows = compare_rows(run_all(runs, RunJob(str(out)), out, progress, launcher), untouched(base, out, progress), base)
    except (InputError, StoreError, OSError) as e: sys.exit(f'lambda_sweep.py: {e}')
    except KeyboardInterrupt:
        print(f'lambda_sweep.py: stopped; finished runs are in {out}, the same command goes on from there', file=sys.stderr)
        sys.exit(130)
    t = table(rows, out)
    rows.to_csv(out/'runs.csv', index=False)
    t.to_csv(out/'table.csv', float_format='%.6g')
    text = markdown(t) + (f'\n\nAccuracies in %, means over {seeds} seeds; behind the paired difference to λ = 0 with its 95 % t interval, * where it excludes 0 '
                          '(not corrected for the number of rows). λ·distance / CE is the mean over epochs and seeds.\n')
    (out/'table.md').write_text(text)
    figure(t).savefig(out/'figure.png', dpi=130)
    print(text)
