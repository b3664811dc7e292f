"Table 1 of the paper with our own pre-training: the results of each pre-training method with both ways to fine-tune."
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..stats import mean_interval, paired_difference, proportion_interval
from ..study.paper import DATA_SETS, LAMS, NAMES, PRINTED, QUOTED, RECIPES
from ..study.pretrain import score_text
from .table import Cell, Column, Table, number

__all__ = ['pretext_table', 'pretext_markdown', 'printed_results']

NONE = 'none'  # the method of the random encoder
STRATEGIES = ('finetune', 'self_distill')
# as the paper names them; MAS is motion and appearance statistics
METHOD_NAMES = dict(none='no pre-training', rspnet='RSPNet', pace='Pace', order='VCOP', puzzle='3D ST puzzles',
                    cvrl='CVRL', iic='IIC', mas='MAS')
KEPT = dict(source_probe='source, new probe', cka_unbiased='CKA')  # measures shown before and after fine-tuning
COLUMNS = ['model', 'method', 'strategy', 'strength', 'runs', 'acc1', 'acc1_low', 'acc1_high', 'acc5',
           'none_diff', 'none_diff_low', 'none_diff_high', 'plain_diff', 'plain_diff_low', 'plain_diff_high',
           'source_probe_before', 'source_probe_before_low', 'source_probe_before_high', 'source_probe',
           'cka_unbiased_before', 'cka_unbiased', 'pretext', 'printed']


# ---- numbers

def pretext_table(
    rows:pd.DataFrame, # From `compare`, with a column `method`
    results:Mapping, # (model, method) -> result of `pretrain`
    data:str|None, # Data set of the printed numbers to show; `None`: both
    n_source:int, # Test videos of the source
)->pd.DataFrame: # A row for each encoder, method and strategy
    "Accuracies with intervals, paired differences to no pre-training and to plain fine-tuning, and what was kept"
    table = []
    groups: Any = rows.groupby(['model', 'method'], sort=False)  # to pandas keys are only hashable, not strings
    for (model, method), group in groups:
        result = results.get((model, method))
        pretext = '; '.join(map(score_text, result['scores'])) if result else ''
        before = group[group.strategy == 'untouched'].iloc[0]
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


def chosen_runs(rows, strategy):
    "Successful final runs with the chosen strength, with the seed as index"
    chosen = rows.chosen == True  # noqa: E712  trials have no value there
    return rows[(rows.strategy == strategy) & rows.final & chosen & (rows.status == 'ok')].set_index('seed')


def measured(runs, strategy):
    "Strength and accuracies in %"
    acc1 = mean_interval(100*runs.acc1)
    strength = runs.lam.iloc[0] if strategy == 'self_distill' else runs.lr.iloc[0]
    return dict(strength=strength, acc1=acc1.mean, acc1_low=acc1.low, acc1_high=acc1.high, acc5=100*runs.acc5.mean())


def kept(runs, before, n_source):
    "Measures of the source before and after fine-tuning, with Wilson's interval of the probe before it"
    probe = proportion_interval(round(before.source_probe*n_source), n_source)
    row = dict(source_probe_before_low=probe.low, source_probe_before_high=probe.high)
    for m in [m for m in KEPT if m in runs]:  # CKA is not in older runs
        row[m] = runs[m].mean()
        row[f'{m}_before'] = before[m]
    return row


def difference(name, runs, others):
    "Difference of top-1 paired by seed, in points"
    seeds = runs.index.intersection(others.index)
    if not len(seeds): return {}
    d = paired_difference(100*runs.acc1[seeds].to_numpy(float), 100*others.acc1[seeds].to_numpy(float))
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
    lines = [made.to_markdown(), "Pre-training, on held-out source videos, with Wilson's 95 % intervals:", '']
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
    way = f'plain, lr {r.strength:g}' if plain else f'self-distillation, λ {r.strength:g}'
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
