"""Chains of tasks, source → A → B → ...: what each stage learns, and what becomes of all that was learned before.

`R[i, j]` is the accuracy on task j after stage i. Task 0 is the source, row 0 the model before fine-tuning. Each task has its own head
(task-incremental), so there are two such matrices: with the **old head** of task j, kept as stage j left it, which is nan above the
diagonal; and with a new linear **probe** on the encoder's features, which is complete.

A strategy protects the encoder as it stands when a stage begins. What it knows of the stages before: EWC, MAS and SI hold on with the
sum of all their importances, each scaled to mean 1 so that tasks count alike (online EWC with gamma 1, Schwarz et al., ICML 2018);
LwF and Replay have a term for each old head, as Li & Hoiem (2016) sum them; Co-Tuning and DELTA look at the stage before only.

A study's folder holds `stages/<key>/`: `run.json`, `encoder.safetensors`, `head.safetensors`, `epochs.csv`, `log.txt` and, written last,
`result.json` with the digests of the others. The key is of the `Run` and of the stage before: a finished stage is read, not trained again,
and one whose process died goes on from its last finished epoch."""
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
from .tables import chain_table

__all__ = ['accuracy_matrices', 'sequence_summary']



def accuracy_matrices(
    rows:pd.DataFrame, # From `compare_sequences`
    kind:str='head', # With old heads, or of a 'probe'
)->dict: # (strategy, seed) -> `R`
    "Accuracy matrices of the final chains that reached their end"
    final = rows[rows.final.astype(bool) & (rows.status == 'ok')]
    columns = [c for c in rows if c.startswith(f'{kind}.')]
    start, runs = final[final.strategy == 'untouched'], final[~final.strategy.isin(['untouched', 'random'])]
    whole = {at:pd.concat([start, g.sort_values('stage')])[columns].to_numpy(float) for at, g in runs.groupby(['strategy', 'seed'], sort=False)}
    return {at:R for at, R in whole.items() if len(R) == len(columns)}


def sequence_summary(
    rows:pd.DataFrame, # From `compare_sequences`
    reference:str='finetune', # Strategy that the others are compared with, seed by seed
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
)->pd.DataFrame: # A row a strategy
    """Means over seeds with 95 % t intervals (m, m_low, m_high) and paired differences to the reference (m_diff with m_diff_low and m_diff_high,
    m_p, m_p_adj, m_verdict) of each metric m: with old heads `average`, `learned`, `bwt`, `task_forgetting.TASK` and `forgetting_best`, the mean
    over tasks of how far each is below its best; of probes the same under `probe_` and `fwt`"""
    heads, probes, final = accuracy_matrices(rows), accuracy_matrices(rows, 'probe'), rows[rows.final.astype(bool)]
    if not heads: raise InputError('no chain reached its end, so there is nothing to show; the first error: ' + next((e for e in rows.error if e), 'none'))
    names = [c.removeprefix('probe.') for c in rows if c.startswith('probe.')]
    initial = final.loc[final.strategy == 'random', [f'probe.{n}' for n in names]].to_numpy(float)[0]
    def measure(at):
        found = {}
        for kind, R in (('', heads[at]), ('probe_', probes[at])):
            lost = task_forgetting(R)
            found |= {f'{kind}average': average_accuracy(R), f'{kind}learned': learning_accuracy(R), f'{kind}bwt': backward_transfer(R)}
            found |= {f'{kind}forgetting.{n}':f for n, f in zip(names, lost)} | {f'{kind}forgetting_best': float(task_forgetting(R, best=True).mean())}
        return found | dict(fwt=forward_transfer(probes[at], initial))
    values = pd.DataFrame({at:measure(at) for at in heads}).T.rename_axis(['strategy', 'seed'])
    out, chains = [], final[~final.strategy.isin(['untouched', 'random'])]
    for strategy, g in chains.groupby('strategy', sort=False):
        mine = values.loc[[strategy]].droplevel(0) if strategy in values.index.get_level_values(0) else values.iloc[:0].droplevel(0)
        base = values.loc[[reference]].droplevel(0) if reference in values.index.get_level_values(0) else values.iloc[:0].droplevel(0)
        seeds, row = mine.index.intersection(base.index), dict(strategy=strategy, lam=g.lam.iloc[0], lr=g.lr.iloc[0], runs=len(mine), failed=g.seed.nunique() - len(mine))
        for m in values:
            mean = mean_interval(mine[m])
            row |= {m: mean.mean, f'{m}_low': mean.low, f'{m}_high': mean.high}
            if strategy == reference: continue
            d = paired_difference(mine.loc[seeds, m], base.loc[seeds, m])
            row |= {f'{m}_diff': d.mean, f'{m}_diff_low': d.low, f'{m}_diff_high': d.high, f'{m}_p': paired_test(mine.loc[seeds, m], base.loc[seeds, m])}
        row['seconds'] = g.groupby('seed').seconds.sum().mean()
        out.append(row)
    table = pd.DataFrame(out).reindex(columns=list(dict.fromkeys(c for r in out for c in r)))
    for m in values:
        if f'{m}_p' not in table: continue
        at = table.columns.get_loc(f'{m}_p') + 1
        table.insert(at, f'{m}_p_adj', adjust(table[f'{m}_p'], method))
        verdict = [judge(d, p, 'forgetting' not in m) for d, p in zip(table[f'{m}_diff'], table[f'{m}_p_adj'])]
        table.insert(at + 1, f'{m}_verdict', pd.Series(verdict).where(table.strategy != reference, None))
    return table


def task_names(rows): return [c.removeprefix('probe.') for c in rows if c.startswith('probe.')]


def matrix_table(rows):
    "Mean accuracies after each stage, long: strategy, kind ('head' or 'probe'), after, task, accuracy, low, high, seeds"
    tasks, out = task_names(rows), []
    for kind in ('head', 'probe'):
        found = accuracy_matrices(rows, kind)
        for strategy in dict.fromkeys(s for s, _ in found):
            R = np.stack([m for (s, _), m in found.items() if s == strategy])
            for i, j in zip(*np.nonzero(~np.isnan(R).any(0))):
                m = mean_interval(R[:, i, j])
                out.append(dict(strategy=strategy, kind=kind, after=tasks[i], task=tasks[j], accuracy=m.mean, low=m.low, high=m.high, seeds=m.n))
    random = rows[rows.strategy == 'random'].iloc[0]
    return pd.DataFrame([*out, *(dict(strategy='random', kind='probe', task=n, accuracy=random[f'probe.{n}'], seeds=1) for n in tasks)])


# TODO remove: the names of before, until nothing uses them
def chain_markdown(table, notes=()): return chain_table(table, notes).to_markdown()
def chain_rich_table(table, title, width, notes=()): return chain_table(table, notes, title).to_rich(width)
