"The tables of a study: strategies, what keeping costs, how that depends on the margin, and chains of tasks."
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..metrics.columns import MEASURES, TABLE_COLUMNS
from .clips import UNKNOWN, chance_sentence, clip_counts, clips_sentence
from .rows import has_strength
from .table import MISSING, Cell, Column, Table, capitalised, count_of
from .trade_off import MARGIN, MARGINS, trade_off

__all__ = ['strategy_table', 'trade_off_table', 'margins_table', 'chain_table']

MAIN = ('acc1', 'source_acc', 'source_probe')  # measures that every layout shows
STRATEGY_COLUMNS = Column('strategy', numeric=False), Column('strength', numeric=False)  # they name a row
MAIN_OF_CHAINS = ('average', 'bwt', 'fwt')

# how p values were adjusted, by the name of the method (see `stats.adjust`)
ADJUSTED = dict(
    holm='adjusted for the number of strategies (Holm)',
    bh='with the false discovery rate over strategies held at 5 % (Benjamini-Hochberg)',
    none='not adjusted for the number of strategies',
)


def _strength_text(row):
    "A strategy's strength, or its learning rate where it has none, and how many of its runs failed"
    if row.strategy == 'untouched': return ''
    budget = row.get('budget')
    if isinstance(budget, str): text = budget
    else: text = f'λ {row.lam:g}' if has_strength(row.strategy) else f'lr {row.lr:g}'
    return f'{text}, {row.failed} failed' if row.failed else text


# ---- strategies

def strategy_table(
    table:pd.DataFrame, # From `summary`
    metrics:Sequence[str]|None=None, # Columns; by default what was measured of `TABLE_COLUMNS`, and `mcnemar`
    notes:Sequence[str]=(), # What a reader must know of the tasks, as Markdown
    method:str='holm', # How p values were adjusted, see `stats.adjust`
    title:str='', # Above it
)->Table: # To print or to write
    "Make the table of a study: for each strategy its means, and its paired differences to plain fine-tuning"
    wanted = metrics or [*TABLE_COLUMNS, 'mcnemar']
    shown = [m for m in wanted if m in table]
    columns = [*STRATEGY_COLUMNS, *map(_measure_column, shown)]
    rows = [_strategy_row(row, shown) for _, row in table.iterrows()]
    caption = strategy_caption(table, method, shown)
    return Table(columns, rows, caption, list(notes), title, headings=2)


def _measure_column(m):
    if m == 'mcnemar': return Column('McNemar p', main=False)
    measure = MEASURES[m]
    unit = f', {measure.unit}' if measure.unit else ''
    direction = '' if measure.more_is_better else ' (less is better)'
    return Column(measure.title, main=m in MAIN, hint=unit + direction)


def _strategy_row(row, metrics):
    cells = [_mcnemar_cell(row.mcnemar) if m == 'mcnemar' else strategy_cell(row, m) for m in metrics]
    return [row.strategy, _strength_text(row), *cells]


def strategy_cell(
    row:pd.Series, # Of a `summary`
    m:str, # A measure
)->Cell: # Its mean, its difference to the reference, and the verdict
    "Show a measure of a strategy"
    low, high, diff, verdict = (row.get(f'{m}_{end}') for end in ('diff_low', 'diff_high', 'diff', 'verdict'))
    measure = MEASURES[m]
    return Cell.of(row[m], low, high, diff, verdict, scale=measure.scale, digits=measure.digits)


def _mcnemar_cell(p): return Cell() if pd.isna(p) else Cell(f'{p:.2g}', value=float(p))


def strategy_caption(
    table:pd.DataFrame, # From `summary`
    method:str, # How p values were adjusted
    shown:Sequence[str], # Columns that are shown
)->str: # Sentences
    "Say how to read the table of strategies"
    seeds = count_of(int(table.runs[table.strategy != 'untouched'].max()), 'seed')
    sentences = [
        f'Accuracies in %, means over {seeds}, each followed by the paired difference to finetune',
        'with its 95 % t interval.',
        f'Better, worse or not distinguishable: by the paired t test, {ADJUSTED[method]}.',
        clips_sentence(clip_counts(table), shown), *_of_fewer_runs(table, shown)]
    if 'mcnemar' in shown:
        sentences += ["McNemar's test compares a strategy with finetune video by video, each by the mean of its",
                      'probabilities over seeds; its p values are not adjusted.']
    sentences.append('The strengths in this table were chosen on valid parts, never on test.')
    return ' '.join(filter(None, [*sentences, chance_sentence(table)]))


def _of_fewer_runs(table, shown):
    "A sentence for each measure that some runs lack"
    for m in shown:
        if f'{m}_runs' not in table: continue
        fewer = table.dropna(subset=f'{m}_runs')
        counts = zip(fewer.strategy, fewer[f'{m}_runs'], fewer.runs)
        names = ', '.join(f'{n:.0f} of {runs} of {strategy}' for strategy, n, runs in counts)
        yield f'{MEASURES[m].title} was measured in some runs only: {names}.'


# ---- what keeping costs

def trade_off_table(
    table:pd.DataFrame, # From `trade_off`
    kept:str='source_probe', # The measure that it was made for
    against:str='finetune', # The strategy whose path the others were compared with
    method:str='holm', # How p values were adjusted, see `stats.adjust`
)->Table: # To print or to write
    "Make the table of what keeping costs: what each strategy keeps where it learns as much as plain fine-tuning"
    columns = [
        Column('strategy', numeric=False), Column('kept at equal learning'), Column('forgotten'),
        Column(f"against {against}'s path"), Column(f"volume, against {against}'s"),
        Column('on the front', numeric=False)]
    rows = [_trade_off_row(row, row.strategy == against) for _, row in table.iterrows()]
    title = f'What keeping costs: {MEASURES[kept].title}'
    return Table(columns, rows, _trade_off_caption(table, kept, method), title=title)


def _trade_off_row(row, is_reference):
    matched, cost, diff = Cell.of(row.matched, scale=100), Cell(), Cell()
    if 'cost' in row: cost = Cell.of(row.cost, row.cost_low, row.cost_high, scale=100)
    if is_reference: volume = Cell.of(row.volume, row.volume_low, row.volume_high)
    else:
        diff = _difference_cell(row)
        volume = Cell.of(row.volume, row.volume_diff_low, row.volume_diff_high, row.volume_diff, row.volume_verdict)
    return [row.strategy, matched, cost, diff, volume, row.front]


def _difference_cell(row):
    "What a path keeps more than another, a row of `trade_off`"
    return Cell.of(row['diff'], row.diff_low, row.diff_high, verdict=row.verdict, scale=100, sign='+')


def _trade_off_caption(table, kept, method):
    "How to read the table of what keeping costs, and what was selected on which data"
    sentences = [
        f'{capitalised(MEASURES[kept].title)}, in %, on test.',
        clips_sentence(clip_counts(table), ['acc1', kept]),
        "Kept at equal learning: the most that a strategy's path of strengths keeps among its places whose target",
        f'accuracy on test is at least that of finetune less {100*MARGIN:g} point; – where it never learns that much.',
        "The place on a path is thus selected on test; only finetune's learning rate is selected on valid.",
        'The maximum over a path is therefore optimistic, slightly more so with more strengths.',
        'Forgotten: what the untouched encoder has more.',
        f'Intervals are 95 % t intervals of the jackknife over seeds, verdicts {ADJUSTED[method]}.',
        'Volume: points² that a path dominates beyond finetune (less the same margin), paired by seed.',
        'On the front: settings that no other setting beats in both means on test.']
    return ' '.join(sentences)


def margins_table(
    rows:pd.DataFrame, # As for `trade_off`
    kept:str='source_probe', # A measure of the source
    against:str='finetune', # The strategy whose path the others are compared with
    method:str='holm', # How p values are adjusted, see `stats.adjust`
)->Table: # To print or to write
    "Make the table that shows how the differences of `trade_off` depend on its margin"
    tables = [trade_off(rows, kept, against, method=method, margin=m).set_index('strategy') for m in MARGINS]
    columns = [Column('strategy', numeric=False), *(Column(f'less {100*m:g}') for m in MARGINS)]
    others = [s for s in tables[0].index if s != against]
    cells = [[s, *(_difference_cell(t.loc[s]) for t in tables)] for s in others]
    sentences = [
        f"{capitalised(MEASURES[kept].title)}, on test: what each path keeps more than {against}'s where both reach",
        "finetune's target accuracy on test less so many points.",
        clips_sentence(clip_counts(rows), ['acc1', kept]),
        'The place on each path is selected on test.',
        'Intervals and verdicts as above.',
        "Without a margin a path counts from where it reaches finetune's own accuracy, and chance decides whether",
        'it does: the jackknife is rough there.',
        'A dash: one of the two paths never learns that much.']
    return Table(columns, cells, ' '.join(sentences), title=f'Other margins: {MEASURES[kept].title}')


# ---- chains of tasks

def chain_table(
    table:pd.DataFrame, # From `sequence_summary`
    notes:Sequence[str]=(), # What a reader must know of the tasks, as Markdown
    title:str='', # Above it
    growing:bool=False, # One head for all classes so far
)->Table: # To print or to write
    "Make the table of chains of tasks: accuracy, transfer and forgetting after the last stage"
    shown = _chain_titles(table)
    columns = [*STRATEGY_COLUMNS, *(Column(title, main=m in MAIN_OF_CHAINS) for m, title in shown.items())]
    rows = [[row.strategy, _strength_text(row), *(_chain_cell(row, m) for m in shown)] for _, row in table.iterrows()]
    return Table(columns, rows, _chain_caption(table, growing), list(notes), title, headings=2)


def _chain_titles(table):
    "The metrics that the table shows, and their titles"
    titles = dict(average='average accuracy', learned='when learned', bwt='BWT')
    for column in table:
        is_mean = column.startswith('forgetting.') and f'{column}_low' in table and not column.endswith('_diff')
        if is_mean: titles[column] = f'forgetting {column.removeprefix("forgetting.")}'
    return titles | dict(probe_average='average, new probes', fwt='FWT, new probes')


def _chain_cell(row, m):
    "A metric of a chain: its mean, and its difference to the reference, with * if they differ"
    low, high, diff, verdict = (row.get(f'{m}_{end}') for end in ('diff_low', 'diff_high', 'diff', 'verdict'))
    return Cell.of(row[m], low, high, diff, star=verdict in ('better', 'worse'), scale=100)


HEADS = ('Each task has its own head, as it was when the task had been learned.',
         'One head has the classes of source and tasks so far, and answers are among all of them (class-incremental).')


def _chain_caption(table, growing):
    seeds = count_of(int(table.runs.max()), 'seed')
    sentences = [
        f'In %, means over {seeds}, each followed by the paired difference to finetune with its 95 % t interval,',
        'and * where the paired t test, adjusted for the number of strategies (Holm), is below .05.',
        HEADS[growing],
        'BWT and forgetting compare the accuracy after the last stage with that when learned.',
        'FWT: a new probe just before a task is learned, compared with one on a random encoder.',
        _chain_clips(table),
        'Strengths were chosen on valid parts; only final runs read test.']
    return ' '.join(sentences)


def _chain_clips(table):
    "How many test clips; tasks have names of their users, which a caption does not escape"
    counts = [int(table[c].iloc[0]) for c in table if c.startswith('clips.')]
    if not counts: return UNKNOWN
    source, *tasks = counts
    each = f'{tasks[0]}' if len(set(tasks)) == 1 else f'{min(tasks)} to {max(tasks)}'
    return f'Measured on {count_of(source, "test clip")} of the source and {each} of each task after it.'


# ---- any data frame

def frame_table(
    frame:pd.DataFrame, # One row a line
    title:str='', # Above it
)->Table: # To print or to write
    "Make a table of a data frame, with numbers of four digits"
    columns = [Column(str(c), numeric=_is_number(frame[c])) for c in frame]
    rows = [[_plain_text(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return Table(columns, rows, title=title)


def _is_number(column): return pd.api.types.is_numeric_dtype(column) and column.dtype != bool


def _plain_text(value):
    if isinstance(value, (bool, np.bool_)): return 'yes' if value else ''
    if pd.isna(value): return MISSING
    if isinstance(value, (float, np.floating)): return f'{value:.4g}'
    return str(value)
