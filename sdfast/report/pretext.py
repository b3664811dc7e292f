"Table 1 of the paper with our own pre-training: the results of each pre-training method with both ways to fine-tune."
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..crossed import crossed_difference
from ..stats import mean_interval, paired_difference, proportion_interval
from ..study.paper import DATA_SETS, LAMS, NAMES, PRINTED, QUOTED, RECIPES
from ..study.pretrain import score_text
from .table import Cell, Column, Table, number

__all__ = ['pretext_table', 'pretext_markdown', 'printed_results']

NONE = 'none'  # the method of the random encoder
LONG = 'none_long'  # the same, fine-tuned for three times as many epochs
STRATEGIES = ('finetune', 'self_distill')
# as the paper names them; MAS is motion and appearance statistics
METHOD_NAMES = dict(none='no pre-training', rspnet='RSPNet', pace='Pace', order='VCOP', puzzle='3D ST puzzles',
                    cvrl='CVRL', iic='IIC', mas='MAS', none_long='no pre-training, three times as long',
                    memdpc='MemDPC', hdc='HDC', cycle='TimeCycle', dogo='DoGo', supervised='with labels')
KEPT = dict(source_probe='source, new probe', cka_unbiased='CKA')  # measures shown before and after fine-tuning
COLUMNS = ['model', 'method', 'strategy', 'strength', 'runs', 'acc1', 'acc1_low', 'acc1_high', 'acc5',
           'none_diff', 'none_diff_low', 'none_diff_high', 'plain_diff', 'plain_diff_low', 'plain_diff_high',
           'source_probe_before', 'source_probe_before_low', 'source_probe_before_high', 'source_probe',
           'cka_unbiased_before', 'cka_unbiased', 'pretext', 'printed']


# ---- numbers

def pretext_table(
    rows:pd.DataFrame, # From `compare`, with columns `method` and, if there are several pre-trainings of each, `draw`
    results:Mapping, # (model, method) -> result of `pretrain`, or a list with that of each draw
    data:str|None, # Data set of the printed numbers to show; `None`: both
    n_source:int, # Test videos of the source
)->pd.DataFrame: # A row for each encoder, method and strategy
    """Accuracies with intervals, paired differences to no pre-training and to plain fine-tuning, and what was kept.

    With one pre-training of each method, intervals are over seeds of fine-tuning. With several draws they are over
    draws and seeds, by `crossed_difference`: every draw is fine-tuned with every seed."""
    table = []
    if 'draw' not in rows: rows = rows.assign(draw=0)
    groups: Any = rows.groupby(['model', 'method'], sort=False)  # to pandas keys are only hashable, not strings
    for (model, method), group in groups:
        pretext = scores_text(results.get((model, method)))
        before = group[group.strategy == 'untouched']
        for strategy in STRATEGIES:
            runs = chosen_runs(group, strategy)
            row = dict(model=model, method=method, strategy=strategy, runs=len(runs), pretext=pretext,
                       printed=printed_results(method, strategy, model, data))
            if len(runs):
                row |= measured(runs, strategy) | kept(runs, before, n_source)
                if method != NONE:
                    none = rows[(rows.model == model) & (rows.method == NONE)]
                    row |= difference('none', runs, chosen_runs(none, strategy))
                if strategy != 'finetune': row |= difference('plain', runs, chosen_runs(group, 'finetune'))
            table.append(row)
    return pd.DataFrame(table).reindex(columns=COLUMNS)


def read_results(
    scores:pd.DataFrame, # The table pretext.csv
)->dict: # For `pretext_table`
    "The scores of pre-training by model and method, one entry for each draw"
    if 'draw' not in scores: scores = scores.assign(draw=0)
    results: dict[tuple, list] = {}
    groups: Any = scores.groupby(['model', 'method', 'draw'], sort=False)
    for (model, method, _), group in groups:
        results.setdefault((model, method), []).append(dict(scores=group.to_dict('records')))
    return results


def scores_text(results):
    "The scores of one pre-training with intervals, or those of several draws one after the other"
    if not results: return ''
    draws = results if isinstance(results, list) else [results]
    if len(draws) == 1: return '; '.join(map(score_text, draws[0]['scores']))
    def one(scores):
        first = scores[0]
        values = ', '.join(f'{s["value"]:.1%}' for s in scores)
        return f'{first["name"]} {values} of {first["n"]} videos, chance {first["chance"]:.1%}'
    return '; '.join(map(one, zip(*(r['scores'] for r in draws))))


def chosen_runs(rows, strategy):
    "Successful final runs with the chosen strength, with draw and seed as index"
    chosen = rows.chosen == True  # noqa: E712  trials have no value there
    return rows[(rows.strategy == strategy) & rows.final & chosen & (rows.status == 'ok')].set_index(['draw', 'seed'])


def over_draws(values):
    "Values as a table of draws by seeds, nan for failed runs; `None` with one draw"
    table = values.astype(float).unstack('seed')
    return table.to_numpy() if len(table) > 1 else None


def measured(runs, strategy):
    "Strength, nan if draws have different ones, and accuracies in %"
    table = over_draws(100*runs.acc1)
    acc1 = mean_interval(100*runs.acc1) if table is None else crossed_difference(table)
    strengths = (runs.lam if strategy == 'self_distill' else runs.lr).unique()
    strength = strengths[0] if len(strengths) == 1 else np.nan
    return dict(strength=strength, acc1=acc1.mean, acc1_low=acc1.low, acc1_high=acc1.high, acc5=100*runs.acc5.mean())


def kept(runs, before, n_source):
    """Measures of the source before and after fine-tuning, with an interval of the probe before it: Wilson's of one
    encoder, or Student's over draws"""
    if len(before) == 1: probe = proportion_interval(round(before.source_probe.iloc[0]*n_source), n_source)
    else: probe = mean_interval(before.source_probe)
    row = dict(source_probe_before_low=probe.low, source_probe_before_high=probe.high)
    for m in [m for m in KEPT if m in runs]:  # CKA is not in older runs
        row[m] = runs[m].mean()
        row[f'{m}_before'] = before[m].mean()
    return row


def difference(name, runs, others):
    "Difference of top-1 paired by draw and seed, in points"
    both = runs.index.intersection(others.index)
    if not len(both): return {}
    table = over_draws(100*(runs.acc1[both] - others.acc1[both]))
    if table is None: d = paired_difference(*(100*r.acc1[both].to_numpy(float) for r in (runs, others)))
    else: d = crossed_difference(table)
    return {f'{name}_diff':d.mean, f'{name}_diff_low':d.low, f'{name}_diff_high':d.high}


def printed_results(
    method:str, # Way of pre-training
    strategy:str, # 'finetune' or 'self_distill'
    model:str, # Encoder; for one that is not in the paper, all of the paper's encoders are shown
    data:str|None=None, # Data set; `None`: both
)->str: # Top-1 in %, '' if the paper has none
    "The paper's numbers for a row"
    found = []
    for encoder in ([model] if model in RECIPES else RECIPES):
        values = [printed_top1(method, strategy, encoder, d) for d in DATA_SETS if data in (None, d)]
        values = [f'{v:.1f}' for v in values if v is not None]
        if values: found.append(f'{NAMES[encoder]} {" / ".join(values)}')
    return '; '.join(found)


def printed_top1(method, strategy, encoder, data):
    if (method, strategy) == ('rspnet', 'self_distill'):  # the paper's own method, at its best strength
        return max(PRINTED[encoder, data, lam][0] for lam in (0., *LAMS))
    quoted = QUOTED.get((encoder, METHOD_NAMES.get(method)))
    if strategy != 'finetune' or quoted is None: return None
    return quoted[DATA_SETS.index(data)]


# ---- text

def pretext_markdown(
    table:pd.DataFrame, # From `pretext_table`
    failed:Mapping|None=None, # (model, method) -> why it could not be run
    notes:Sequence[str]=(), # What a reader must know
)->str: # Markdown
    "Write the table, the scores of pre-training and the notes"
    names = [Column(title, numeric=False) for title in ('encoder', 'pre-training', 'fine-tuning')]
    measured = [m for m in KEPT if table[m].notna().any()]
    before_after = [f'{KEPT[m]}: before → after' for m in measured]
    numbers = [Column(title) for title in ('top-1', 'top-5', 'to no pre-training', 'to plain', *before_after)]
    columns = [*names, *numbers, Column('paper: UCF101 / HMDB51', numeric=False)]
    made = Table(columns, [row_cells(r, measured) for _, r in table.iterrows()])
    several = any(' videos [' not in text for text in table.pretext if text)
    how = 'one value for each draw' if several else "with Wilson's 95 % intervals"
    lines = [made.to_markdown(), f'Pre-training, on held-out source videos, {how}:', '']
    for _, r in table.drop_duplicates(['model', 'method']).iterrows():
        if r.pretext: lines.append(f'- {encoder_name(r.model)}, {method_name(r.method)}: {r.pretext}')
    lines.append('')
    for (model, method), why in (failed or {}).items():
        lines.append(f'- {method_name(method)} on {encoder_name(model)} cannot be run: {why}')
    return '\n'.join([*lines, *(f'- {n}' for n in notes), ''])


def encoder_name(model): return NAMES.get(model, model)


def method_name(method): return METHOD_NAMES.get(method, method)


def row_cells(r, measured):
    plain = r.strategy == 'finetune'
    strength = 'chosen for each draw' if pd.isna(r.strength) else f'{r.strength:g}'
    way = f'plain, lr {strength}' if plain else f'self-distillation, λ {strength}'
    top5 = '' if pd.isna(r.acc5) else f'{r.acc5:.1f}'
    differences = [interval_text(r, m, '+') for m in ('none_diff', 'plain_diff')]
    before_after = [kept_text(r, m) for m in measured]
    names = [encoder_name(r.model), method_name(r.method), way]
    return [*names, *map(Cell, [interval_text(r, 'acc1'), top5, *differences, *before_after]), r.printed]


def interval_text(r, m, sign=''):
    if pd.isna(r[m]): return ''
    text = number(r[m], sign)
    if pd.isna(r[f'{m}_low']): return text
    return f'{text} [{number(r[f"{m}_low"], sign)}, {number(r[f"{m}_high"], sign)}]'


def kept_text(r, m):
    "Before → after in %, before with its interval where there is one"
    if pd.isna(r[m]): return ''
    before = number(100*r[f'{m}_before'])
    if m == 'source_probe': before += f' [{100*r.source_probe_before_low:.1f}, {100*r.source_probe_before_high:.1f}]'
    return f'{before} → {number(100*r[m])}'
