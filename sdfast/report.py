"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .stats import mean_interval, paired_difference
from .strategies import STRATEGIES
from .study import Watch

__all__ = ['summary', 'rich_table', 'markdown', 'figure', 'write_report', 'LiveWatch']

METRICS = ['acc1', 'acc5', 'source_acc', 'source_probe', 'source_knn', 'cka', 'drift', 'weight_distance']
TITLES = dict(acc1='target acc@1', source_acc='source, old head', source_probe='source, new probe', source_knn='source, kNN', cka='CKA', drift='drift')
SHARES = {'acc1', 'acc5', 'source_acc', 'source_probe', 'source_knn'}  # shown in %, differences in points


def summary(
    rows:pd.DataFrame, # From `compare`
    reference:str='finetune', # Strategy that the others are compared with, seed by seed
)->pd.DataFrame: # A row a strategy: `lam`, `lr`, `runs`, `failed`, and for each metric its mean, difference to the reference and interval
    "Means over seeds of final runs, and paired differences with 95 % t intervals"
    final, out = rows[rows.final.astype(bool)], []
    for strategy, g in final.groupby('strategy', sort=False):
        ok, row = g[g.status == 'ok'], dict(strategy=strategy, lam=g.lam.iloc[0], lr=g.lr.iloc[0], runs=int((g.status == 'ok').sum()), failed=int((g.status != 'ok').sum()))
        base = final[(final.strategy == reference) & (final.status == 'ok')].set_index('seed')
        for m in METRICS:
            mean = mean_interval(ok[m])
            row |= {m: mean.mean, f'{m}_low': mean.low, f'{m}_high': mean.high}
            if strategy in (reference, 'untouched'): continue
            mine = ok.set_index('seed')[m].astype(float)
            seeds = mine.index.intersection(base.index)
            d = paired_difference(mine[seeds], base.loc[seeds, m])
            row |= {f'{m}_diff': d.mean, f'{m}_diff_low': d.low, f'{m}_diff_high': d.high, f'{m}_verdict': d.verdict}
        row['seconds'] = ok.seconds.astype(float).mean()
        out.append(row)
    table = pd.DataFrame(out)
    return table.reindex(columns=list(dict.fromkeys(c for r in out for c in r)))


def _cells(row, m):
    "Text of a metric: its mean, and its paired difference with interval where there is one"
    scale, digits = (100, 1) if m in SHARES else (1, 3)
    def f(x, sign=''): return f'{scale*x:{sign}.{digits}f}'
    if pd.isna(row[m]): return '–', ''
    if pd.isna(row.get(f'{m}_diff')): return f(row[m]), ''
    if pd.isna(row[f'{m}_diff_low']): return f(row[m]), f'{f(row[f"{m}_diff"], "+")} (no interval)'
    star = '' if row[f'{m}_verdict'] == 'not distinguishable' else '*'
    return f(row[m]), f'{f(row[f"{m}_diff"], "+")}{star} [{f(row[f"{m}_diff_low"], "+")}, {f(row[f"{m}_diff_high"], "+")}]'


def _strength(row):
    if row.strategy == 'untouched': return ''
    return (f'λ {row.lam:g}' if STRATEGIES[row.strategy].lams else f'lr {row.lr:g}') + (f', {row.failed} failed' if row.failed else '')


CAPTION = ('Accuracies in %, means over {n} seeds; {where} the paired difference to finetune with its 95 % t interval, * where it excludes 0, '
           'else not distinguishable. Strengths chosen on the valid part, test read once.')


def _caption(table, where): return CAPTION.format(where=where, n=table.runs[table.strategy != 'untouched'].max())


def rich_table(table:pd.DataFrame, title:str='', width:int=80, notes=())->Table:
    "The summary for a terminal of `width` columns; a narrow one leaves out kNN, CKA and drift. `notes` of its tasks stand below"
    metrics = [m for m in TITLES if width >= 125 or m in ('acc1', 'source_acc', 'source_probe')]
    t = Table(title=title, caption='\n'.join([_caption(table, 'below'), *notes]), show_lines=True)
    t.add_column('strategy', no_wrap=True)
    for m in metrics: t.add_column(TITLES[m], justify='right', no_wrap=True)
    for _, row in table.iterrows():
        t.add_row(f'{row.strategy}\n{_strength(row)}', *('\n'.join(filter(None, _cells(row, m))).replace(' [', '\n[') for m in metrics))
    return t


def markdown(table:pd.DataFrame, notes=())->str:
    "The summary as a Markdown table with its caption and the notes of its tasks"
    lines = ['| ' + ' | '.join(['strategy', 'strength', *TITLES.values()]) + ' |', '|' + '---|'*2 + '--:|'*len(TITLES)]
    for _, row in table.iterrows():
        lines.append('| ' + ' | '.join([row.strategy, _strength(row), *(' '.join(filter(None, _cells(row, m))) for m in TITLES)]) + ' |')
    return '\n'.join([*lines, '', _caption(table, "behind"), *(f'\n- {n}' for n in notes[:1]), *(f'- {n}' for n in notes[1:]), ''])


# Okabe & Ito's colours, told apart by every kind of colour vision; markers tell them apart without colour
LOOKS = dict(finetune=('#000000', 's'), self_distill=('#D55E00', 'o'), fixed_teacher=('#0072B2', '^'), ema_teacher=('#009E73', 'v'),
             l2sp=('#CC79A7', 'D'), ewc=('#E69F00', 'P'))


def figure(rows:pd.DataFrame, title:str='')->Figure:
    "Target accuracy against source accuracy, by the old head and by a new probe: each seed, and the means with 95 % intervals"
    final = rows[rows.final.astype(bool) & (rows.status == 'ok')]
    table = summary(rows).set_index('strategy')
    named = len(table) > 9  # on the points: a legend of so many is none
    fig = Figure(figsize=(13, 6.4) if named else (10, 4.4), layout='constrained')
    axes = fig.subplots(1, 2)
    for ax, m in zip(axes, ('source_acc', 'source_probe')):
        for strategy, g in final[final.strategy != 'untouched'].groupby('strategy', sort=False):
            r, (colour, marker) = table.loc[strategy], LOOKS.get(strategy, ('#0072B2', 'X'))
            if not named: ax.plot(100*g.acc1.astype(float), 100*g[m].astype(float), marker, ms=4, color=colour, alpha=.3, lw=0)
            else: ax.annotate(strategy, (100*r.acc1, 100*r[m]), xytext=(5, 4), textcoords='offset points', fontsize=7, color=colour)
            err = [None if pd.isna(r[f'{c}_low']) else [[100*(r[c] - r[f'{c}_low'])], [100*(r[f'{c}_high'] - r[c])]] for c in ('acc1', m)]
            ax.errorbar(100*r.acc1, 100*r[m], xerr=err[0], yerr=err[1], fmt=marker, ms=5 if named else 8, lw=.6 if named else None, color=colour, capsize=0 if named else 3, label=strategy)
        if 'untouched' in table.index:
            ax.axhline(100*table.loc['untouched', m], color='grey', ls='--', lw=1)
            ax.annotate('untouched', (.01, 100*table.loc['untouched', m]), xycoords=('axes fraction', 'data'), va='bottom', color='grey', fontsize=8)
        ax.set(xlabel='learned: target accuracy in %', ylabel=f'kept: {TITLES[m]} in %')
        ax.grid(alpha=.3)
    if not named: axes[1].legend(fontsize=8)
    if title: fig.suptitle(title, fontsize=10)
    return fig


def write_report(
    rows:pd.DataFrame, # From `compare`
    out, # Folder to write `runs.csv`, `table.csv`, `table.md` and `figure.png` to
    title:str='',
    notes=(), # What a reader must know of the tasks
)->pd.DataFrame: # The summary
    "Write what a study found"
    out, table = Path(out), summary(rows)
    rows.to_csv(out/'runs.csv', index=False)
    table.to_csv(out/'table.csv', index=False, float_format='%.6g')
    (out/'table.md').write_text(markdown(table, notes))
    figure(rows, title).savefig(out/'figure.png', dpi=130)
    return table


class LiveWatch(Watch):
    "A progress bar over the study and one over the run at work; a line a run where the output is no terminal"

    def __init__(self, console:Console|None=None):
        self.console = console or Console()
        self.bars = Progress(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(20), TextColumn('{task.fields[where]}'),
                             TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *_): self.bars.stop()

    def plan(self, runs):
        self.n, self.ended = len(runs), 0
        self.study = self.bars.add_task('study', total=sum(self._cost(asdict(r)) for r in runs), where=f'0/{self.n} runs')
        self.now = self.bars.add_task('', total=1, where='')

    @staticmethod
    def _cost(run): return run['epochs'] + 4*run['final']  # in epochs: reading test and measuring retention takes about four

    @staticmethod
    def _name(run):
        strength = f'λ {run["lam"]:g}' if STRATEGIES[run['strategy']].lams else f'lr {run["lr"]:g}'
        return f'{run["strategy"]} {strength}, seed {run["seed"]}, {"final" if run["final"] else "trial"}'

    def start(self, what, epochs):
        self.epochs = max(1, epochs)
        self.bars.reset(self.now, description=what if isinstance(what, str) else self._name(asdict(what)), total=self.epochs, where='')
        if not self.console.is_terminal and isinstance(what, str): self.say(f'{what}: {epochs} epochs')

    def epoch(self, epoch, done): self.bars.update(self.now, completed=epoch + done, where=f'epoch {epoch + 1}/{self.epochs}')

    def done(self, row, skipped=False):
        self.ended += 1
        self.bars.update(self.study, advance=self._cost(row), where=f'{self.ended}/{self.n} runs')
        line = f'{self.ended}/{self.n} {self._name(row)}: '
        if row['status'] != 'ok': self.say(f'{line}{row["status"]}: {row["error"]}')
        elif not self.console.is_terminal:
            found = ', '.join(f'{name} {row[k]:.1%}' for name, k in dict(valid='valid_acc1', test='acc1', source='source_acc').items() if row[k] is not None)
            self.say(line + found + (' (finished before)' if skipped else f', {row["seconds"]:.1f} s'))

    def say(self, text): self.console.print(text, highlight=False, markup=False, soft_wrap=True)
