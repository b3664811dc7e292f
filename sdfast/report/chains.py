"""Chains of tasks, source → A → B → ...: from rows of stages to what was learned and what was forgotten.

`R[i, j]` is the accuracy on task j after stage i. Task 0 is the source, and row 0 is the model before fine-tuning.
There are two such matrices. One is measured with the **old heads**, each from the end of its stage, or with one head
for all classes so far, and is nan above the diagonal. The other is measured with new linear **probes** on the encoder's
features, and is complete.
"""
import numpy as np
import pandas as pd

from ..errors import InputError
from ..metrics.continual import (
    average_accuracy,
    backward_transfer,
    forward_transfer,
    learning_accuracy,
    task_forgetting,
)
from ..stats import adjust, judge, mean_interval, paired_difference, paired_test
from .rows import frame_of, insert_after

__all__ = ['accuracy_matrices', 'sequence_summary']

NOT_TRAINED = ('untouched', 'random')  # rows of encoders before any stage


def task_names(
    rows:pd.DataFrame, # From `compare_sequences`
)->list[str]: # The source first
    "Names of the tasks of a chain"
    return [c.removeprefix('probe.') for c in rows.columns if c.startswith('probe.')]


def accuracy_matrices(
    rows:pd.DataFrame, # From `compare_sequences`
    kind:str='head', # 'head' for old heads, 'probe' for new probes
)->dict: # (strategy, seed) -> `R`
    "Accuracy matrices of all complete final chains"
    final = rows[rows.final.astype(bool) & (rows.status == 'ok')]
    columns = [c for c in rows.columns if c.startswith(f'{kind}.')]
    start = final[final.strategy == 'untouched']
    trained = final[~final.strategy.isin(NOT_TRAINED)]
    matrices = {}
    for at, stages in trained.groupby(['strategy', 'seed'], sort=False):
        R = pd.concat([start, stages.sort_values('stage')])[columns].to_numpy(float)
        if len(R) == len(columns): matrices[at] = R
    return matrices


def sequence_summary(
    rows:pd.DataFrame, # From `compare_sequences`
    reference:str='finetune', # Strategy that the others are compared with, seed by seed
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
)->pd.DataFrame: # A row for each strategy
    """Summarise chains: means over seeds and paired differences to the reference, for each metric.

    The columns of a metric m are its mean with a 95 % t interval (m, m_low, m_high) and its difference with interval
    and test (m_diff, m_diff_low, m_diff_high, m_p, m_p_adj, m_verdict). Metrics with old heads: `average`, `learned`,
    `bwt`, `forgetting.TASK`, and `forgetting_best`, the mean over tasks of how far each is below its best. With probes:
    the same with the prefix `probe_`, and `fwt`. `clips.TASK` is the number of test clips. Raises
    `InputError` if no chain is complete."""
    values = _chain_metrics(rows)
    final = rows[rows.final.astype(bool)]
    base = _of_strategy(values, reference)
    out = []
    for strategy, runs in final[~final.strategy.isin(NOT_TRAINED)].groupby('strategy', sort=False):
        mine = _of_strategy(values, strategy)
        row = dict(strategy=strategy, lam=runs.lam.iloc[0], lr=runs.lr.iloc[0])
        row |= dict(runs=len(mine), failed=runs.seed.nunique() - len(mine))
        for m in values:
            row |= _mean_columns(mine, m)
            if strategy != reference: row |= _difference_columns(mine, base, m)
        row['seconds'] = runs.groupby('seed').seconds.sum().mean()
        out.append(row)
    table = frame_of(out)
    for m in values:
        if f'{m}_p' in table: _add_verdicts(table, m, reference, method)
    return table.assign(**_test_clips(rows))


def _test_clips(rows):
    "`clips.TASK` -> number of test clips of each task, as far as they were recorded"
    counts = {c: rows[c].dropna() for c in rows if c.startswith('clips.')}
    return {c: int(n.iloc[0]) for c, n in counts.items() if len(n)}


def _chain_metrics(rows):
    "A row for each chain, with index (strategy, seed), and a column for each metric"
    heads, probes = accuracy_matrices(rows), accuracy_matrices(rows, 'probe')
    if not heads:
        first_error = next((e for e in rows.error if e), 'none')
        raise InputError(f'no chain reached its end, so there is nothing to show; the first error: {first_error}')
    names = task_names(rows)
    random = rows[rows.final.astype(bool) & (rows.strategy == 'random')]
    initial = random[[f'probe.{n}' for n in names]].to_numpy(float)[0]
    metrics = {at: _matrix_metrics(heads[at], names)
                   | _matrix_metrics(probes[at], names, 'probe_')
                   | dict(fwt=forward_transfer(probes[at], initial))
               for at in heads}
    return pd.DataFrame(metrics).T.rename_axis(['strategy', 'seed'])


def _matrix_metrics(R, names, prefix=''):
    "Metrics of one accuracy matrix"
    metrics = dict(average=average_accuracy(R), learned=learning_accuracy(R), bwt=backward_transfer(R))
    metrics |= {f'forgetting.{name}': lost for name, lost in zip(names, task_forgetting(R))}
    metrics['forgetting_best'] = float(task_forgetting(R, best=True).mean())
    return {prefix + name: value for name, value in metrics.items()}


def _of_strategy(values, strategy):
    "The chains of a strategy, with the seed as index; empty if all failed"
    return values[values.index.get_level_values(0) == strategy].droplevel(0)


def _mean_columns(chains, m):
    mean = mean_interval(chains[m])
    return {m: mean.mean, f'{m}_low': mean.low, f'{m}_high': mean.high}


def _difference_columns(chains, base, m):
    seeds = chains.index.intersection(base.index)
    a, b = chains.loc[seeds, m], base.loc[seeds, m]
    d = paired_difference(a, b)
    return {f'{m}_diff': d.mean, f'{m}_diff_low': d.low, f'{m}_diff_high': d.high, f'{m}_p': paired_test(a, b)}


def _add_verdicts(table, m, reference, method):
    "Insert the adjusted p values of a metric and the verdicts"
    adjusted = adjust(table[f'{m}_p'], method)
    more_is_better = 'forgetting' not in m
    verdicts = [judge(d, p, more_is_better) for d, p in zip(table[f'{m}_diff'], adjusted)]
    insert_after(table, f'{m}_p', f'{m}_p_adj', adjusted)
    insert_after(table, f'{m}_p_adj', f'{m}_verdict', pd.Series(verdicts).where(table.strategy != reference, None))


def matrix_table(
    rows:pd.DataFrame, # From `compare_sequences`
)->pd.DataFrame: # strategy, kind ('head' or 'probe'), after, task, accuracy, low, high, seeds
    "Mean accuracies on each task after each stage, a row for each"
    names, out = task_names(rows), []
    for kind in ('head', 'probe'):
        matrices = accuracy_matrices(rows, kind)
        for strategy in dict.fromkeys(strategy for strategy, _ in matrices):
            R = np.stack([matrix for (s, _), matrix in matrices.items() if s == strategy])
            out += _mean_entries(R, names, dict(strategy=strategy, kind=kind))
    random = rows[rows.strategy == 'random'].iloc[0]
    out += [dict(strategy='random', kind='probe', task=n, accuracy=random[f'probe.{n}'], seeds=1) for n in names]
    return pd.DataFrame(out)


def _mean_entries(R, names, row):
    "Means over seeds of the entries of matrices `(seeds, stages, tasks)` that every seed has"
    out = []
    for i, j in zip(*np.nonzero(~np.isnan(R).any(0))):
        m = mean_interval(R[:, i, j])
        out.append(row | dict(after=names[i], task=names[j], accuracy=m.mean, low=m.low, high=m.high, seeds=m.n))
    return out
