"""What does λ do to self-distillation: what is learned and what is kept, for each way to read the paper's loss?

    python experiments/lambda_sweep.py             # the embedded task, 6 seeds: see experiments/README.md for the time
    python experiments/lambda_sweep.py --quick     # the same at a reduced size

The paper sweeps λ from .1 to 1000. It leaves open whether the squared distance of features is averaged over all its
elements, summed over the features or summed over the batch too, and whether the frozen teacher normalises with the
statistics of the batch or with its running ones. This study runs all of it and chooses nothing: every row is shown.
Writes runs.csv, table.csv, table.md and figure.png to --out."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from dataclasses import replace
from pathlib import Path

import pandas as pd
from fastcore.script import call_parse, store_true
from matplotlib.figure import Figure

from sdfast.commands.common import study_session
from sdfast.errors import InputError
from sdfast.report.clips import clip_counts, clips_of, clips_sentence
from sdfast.report.figures import render
from sdfast.report.summary import summary
from sdfast.report.table import Cell, Column, Table
from sdfast.runtime import store
from sdfast.strategies.distill import REDUCTIONS
from sdfast.study.paired import final_run, run_settings

DATA = dict(task='moving_digits', source='moving_digits')
LAMS = (.1, 1., 10., 100., 1000.)
TEACHER_BN = ('batch', 'running')
SHOWN = dict(acc1='target acc@1', source_acc='source, old head', source_probe='source, new probe')
COLOURS = dict(batch='#0072B2', running='#D55E00')
MARKERS = dict(batch='o', running='^')
SHIFTS = dict(batch=.95, running=1.05)  # along the axis of λ, so that points do not hide each other


def make_settings(base):
    "Plain fine-tuning, and each reduction with each teacher and strength"
    settings = [base]
    for reduction in REDUCTIONS:
        for bn in TEACHER_BN:
            options = f'reduction={reduction},teacher_bn={bn}'
            settings += [replace(base, strategy='self_distill', strategy_args=options, lam=lam) for lam in LAMS]
    return settings


# ---- table

def setting_name(row):
    "Such as 'mean batch 10'"
    if row.strategy != 'self_distill': return row.strategy
    options = dict(pair.split('=') for pair in row.strategy_args.split(','))
    return f'{options["reduction"]} {options["teacher_bn"]} {row.lam:g}'


def pressure(out, row):
    "Mean over the epochs of λ times the distance, relative to the cross-entropy"
    log = pd.read_csv(out/'runs'/row.key/'epochs.csv')
    if 'self_distill' not in log: return 0.
    return (row.lam*log.self_distill/log.train_loss).mean()


def make_table(rows, out):
    "A row for each setting: means, paired differences to λ = 0, and how hard the term pulled"
    named = rows.assign(strategy=[setting_name(r) for r in rows.itertuples()])
    pull = {}
    for name, group in rows.groupby(named.strategy):
        ok = group[group.status == 'ok']
        if name != 'untouched' and len(ok): pull[name] = sum(pressure(out, r) for r in ok.itertuples())/len(ok)
    return summary(named).set_index('strategy').assign(pull=pd.Series(pull))


def measure_cell(row, m):
    "A mean, and its difference to λ = 0, starred where the interval excludes 0"
    low, high, diff = (row.get(f'{m}_{end}') for end in ('diff_low', 'diff_high', 'diff'))
    star = diff is not None and (low > 0 or high < 0)
    return Cell.of(row[m], low, high, diff, star=star, scale=100)


def table_row(name, row):
    if name == 'finetune': what = [name, '', '0']
    elif name == 'untouched': what = [name, '', '']
    else: what = name.split(' ')
    pull = '' if pd.isna(row.pull) or name == 'finetune' else f'{row.pull:.2g}'
    failed = f'{row.failed} of {row.failed + row.runs}' if row.failed else ''
    return [*what, *(measure_cell(row, m) for m in SHOWN), Cell(pull), failed]


def render_table(table):
    numeric = ['λ', *SHOWN.values(), 'λ·distance / CE', 'diverged']
    columns = [Column('reduction', numeric=False), Column('teacher', numeric=False), *map(Column, numeric)]
    seeds = table.runs.drop('untouched').max()
    caption = (f'Accuracies in %, means over {seeds} seeds, each followed by the paired difference to λ = 0 with its '
               '95 % t interval, * where it excludes 0 (not corrected for the number of rows). λ·distance / CE is the '
               'mean over epochs and seeds. ' + clips_sentence(clip_counts(table), SHOWN))
    return Table(columns, [table_row(name, row) for name, row in table.iterrows()], caption)


# ---- figure

def draw_reduction(ax, table, m, reduction):
    "A measure against λ. The band is λ = 0; a cross at the bottom marks a setting of which some seeds diverged"
    base = table.loc['finetune']
    ax.axhspan(100*base[f'{m}_low'], 100*base[f'{m}_high'], color='#bbbbbb', alpha=.5, lw=0, label='λ = 0 (95 %)')
    ax.axhline(100*base[m], color='#555555', lw=1)
    if m == 'source_acc': ax.axhline(100*table.loc['untouched', m], color='#555555', lw=1, ls='--', label='untouched')
    for bn in TEACHER_BN:
        g = table.loc[[f'{reduction} {bn} {lam:g}' for lam in LAMS]]
        x = [lam*SHIFTS[bn] for lam in LAMS]
        error = [100*(g[m] - g[f'{m}_low']).fillna(0), 100*(g[f'{m}_high'] - g[m]).fillna(0)]
        look = dict(color=COLOURS[bn], marker=MARKERS[bn], capsize=3, label=f'teacher_bn={bn!r}')
        ax.errorbar(x, 100*g[m], yerr=error, **look)
        diverged = [xi for xi, failed in zip(x, g.failed) if failed]
        if diverged:
            bottom = [.03]*len(diverged)
            ax.plot(diverged, bottom, 'x', color=COLOURS[bn], ms=8, mew=2, transform=ax.get_xaxis_transform())
    ax.set(xscale='log')
    ax.grid(alpha=.3)


def draw(table):
    "Learned and kept against λ, a column for each reduction"
    fig = Figure(figsize=(11, 6.2), layout='constrained')
    axes = fig.subplots(2, 3, sharex=True, sharey='row')
    for column, reduction in zip(axes.T, REDUCTIONS):
        for ax, m in zip(column, ('acc1', 'source_acc')): draw_reduction(ax, table, m, reduction)
        column[0].set_title(f'reduction={reduction!r}')
        column[1].set_xlabel('λ')
    axes[0, 0].set_ylabel(f'learned: target accuracy in %{clips_of(table, "acc1")}')
    axes[1, 0].set_ylabel(f'kept: source, old head, in %{clips_of(table, "source_acc")}')
    axes[1, 0].legend(fontsize=8)
    return fig


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    seeds:int=6, # Runs of each setting
    epochs:int=12, # Epochs of fine-tuning
    lr:float=.05, # Of fine-tuning: SGD, momentum .9, cosine to 0
    out:str='runs/lambda_sweep', # Folder to write to; finished runs in it are not done again
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they run: local, or slurm
    slurm:str='', # Of Slurm's jobs, see compare.py
):
    "Sweep λ of self-distillation over reductions and teacher modes on the embedded task"
    with study_session('lambda_sweep.py', out, jobs, launcher, slurm) as (progress, where):
        if min(seeds, epochs) < 1: raise InputError('--seeds and --epochs must be at least 1')
        if not lr > 0: raise InputError(f'--lr must be positive, not {lr}')
        if quick: seeds, epochs = min(seeds, 2), min(epochs, 2)
        base = final_run(**DATA, quick=quick, epochs=epochs, lr=lr)
        rows = run_settings(make_settings(base), seeds, out, progress, where)
        folder = Path(out)
        table = make_table(rows, folder)
        text = render_table(table).to_markdown()
        store.write(folder/'runs.csv', rows.to_csv(index=False))
        store.write(folder/'table.csv', table.to_csv(float_format='%.6g'))
        store.write(folder/'table.md', text)
        store.write(folder/'figure.png', render(draw(table), dpi=130))
        print(text)
