"What a protocol found: each arm compared with another over source models and seeds, with tests of equivalence."
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..crossed import CrossedDifference, crossed_difference
from ..metrics.columns import MEASURES
from ..stats import adjust
from ..study.protocol import KEPT
from .table import Cell, Column, Table, count_of

__all__ = ['compare_arms', 'crossed_table']

SMALLEST = .005  # the smallest difference of interest, as a fraction
ALPHA = .05
ENDPOINT = 'kept'  # the mean of the accuracies in `KEPT`
SHOWN = 'acc1', ENDPOINT, *KEPT


def compare_arms(
    rows:pd.DataFrame, # From `run_protocol`
    reference:str='finetune', # Arm that the others are compared with, run by run
    rule:str='kept', # How settings were chosen, one of `RULE_NAMES`
    smallest:float=SMALLEST, # Smallest difference of interest in what is kept, as a fraction
    method:str='holm', # How p values are adjusted for the number of arms, see `stats.adjust`
)->pd.DataFrame: # A row for each arm
    """Compare arms at the same source models and seeds.

    The columns are `arm`, `nets`, `seeds`, `failed`, and of target accuracy `acc1`, of the endpoint `kept` (the mean
    accuracy of the old head and of a new probe) and of these two, m: the mean m, and the difference m_diff with its t
    interval (m_diff_low, m_diff_high) over source models and seeds, see `crossed_difference`. `p` and `p_adj` are those
    of the endpoint's difference, `p_equivalent` and `p_not_worse` of it being within `smallest` and above -`smallest`.
    `verdict` is 'better' or 'worse' by `p_adj`, else 'equivalent', 'not worse' or 'undecided'. Merged models exist for
    some seeds only: they are compared at those."""
    of_rule = rows[rows.rule == rule].assign(**{ENDPOINT: lambda r: r[list(KEPT)].astype(float).mean(axis=1)})
    base = of_rule[of_rule.arm == reference]
    if not len(base): raise ValueError(f'there are no final runs of {reference}, which the others are compared with')
    table = pd.DataFrame([_row(arm, runs, base, reference, smallest)
                          for arm, runs in of_rule.groupby('arm', sort=False)])
    table['p_adj'] = adjust(table.p, method)
    table['verdict'] = [_verdict(row) for row in table.itertuples()]
    return table


def _row(arm, runs, base, reference, smallest):
    ok = runs[runs.status == 'ok']
    row = dict(arm=arm, nets=runs.source_seed.nunique(), seeds=runs.seed.nunique(), failed=len(runs) - len(ok))
    for m in SHOWN:
        row[m] = ok[m].astype(float).mean()
        if arm in (reference, 'untouched'): continue
        d = _difference(runs, base, m)
        row |= {f'{m}_diff':d.mean, f'{m}_diff_low':d.low, f'{m}_diff_high':d.high}
        if m == ENDPOINT:
            row |= dict(p=d.p, p_equivalent=d.p_equivalent(smallest), p_not_worse=d.p_not_below(smallest))
    return dict(p=np.nan, p_equivalent=np.nan, p_not_worse=np.nan) | row


def _difference(runs, base, m)->CrossedDifference:
    "The difference of a measure, over the source models and seeds that both have"
    def table(rows): return rows[rows.status == 'ok'].pivot(index='source_seed', columns='seed', values=m).astype(float)
    mine = table(runs)
    return crossed_difference(mine - table(base).reindex(index=mine.index, columns=mine.columns))


def _verdict(row):
    if np.isnan(row.p): return ''
    if row.p_adj < ALPHA: return 'better' if row.kept_diff > 0 else 'worse'
    if row.p_equivalent < ALPHA: return 'equivalent'
    return 'not worse' if row.p_not_worse < ALPHA else 'undecided'


def crossed_table(
    table:pd.DataFrame, # From `compare_arms`
    reference:str='finetune', # As given to it
    smallest:float=SMALLEST, # As given to it
    chosen:str='', # A sentence that says what settings were chosen by
    notes:Sequence[str]=(), # What a reader must know of the tasks, as Markdown
)->Table: # To print or to write
    "Make the table of a protocol, those arms first that keep most"
    titles = dict(acc1=MEASURES['acc1'].title, kept='source, kept', **{m:MEASURES[m].title for m in KEPT})
    columns = [Column('arm', numeric=False), *(Column(titles[m], hint=', %') for m in SHOWN),
               Column('verdict', numeric=False), Column('p, adjusted'), Column('p, equivalent')]
    order = table.sort_values('kept', ascending=False, kind='stable')
    rows = [[row.arm, *(_cell(row, m) for m in SHOWN), row.verdict, _p_cell(row.p_adj), _p_cell(row.p_equivalent)]
            for _, row in order.iterrows()]
    return Table(columns, rows, _caption(table, reference, smallest, chosen), list(notes))


def _cell(row, m):
    return Cell.of(row[m], row.get(f'{m}_diff_low'), row.get(f'{m}_diff_high'), row.get(f'{m}_diff'), scale=100)


def _p_cell(p): return Cell() if pd.isna(p) else Cell(f'{p:.2g}', value=float(p))


def _caption(table, reference, smallest, chosen):
    most = table.loc[table.arm == reference].iloc[0]
    models, seeds = count_of(most.nets, 'source model'), count_of(most.seeds, 'seed')
    points = f'{100*smallest:g} points'
    sentences = [
        f'Accuracies in %, means over {models} and {seeds} with each, followed by the difference to {reference}',
        'with its 95 % t interval over both. Source, kept: the mean accuracy of the old head and of a new probe.',
        'Better or worse: by the t test, adjusted for the number of arms (Holm). Otherwise equivalent: the difference',
        f'is within {points} by two one-sided tests at 5 %; not worse: it is above -{points}; undecided: neither.',
        chosen]
    failed = [f'{row.arm} {row.failed}' for row in table.itertuples() if row.failed]
    if failed: sentences.append(f'Failed runs: {", ".join(failed)}.')
    return ' '.join(filter(None, sentences))
