"From runs to a row for each strategy: means over seeds, paired differences to plain fine-tuning, and verdicts."
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.basics import listify

from ..metrics.columns import MEASURES, REPORTED
from ..stats import adjust, bca_interval, judge, mcnemar, mean_interval, paired_difference, paired_test, sign_flip
from .clips import clip_counts
from .files import find_file, try_read
from .rows import final_runs, frame_of, insert_after, retain_text

__all__ = ['summary']


def summary(
    rows:pd.DataFrame, # From `compare`
    reference:str='finetune', # Strategy that the others are compared with, seed by seed
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
    folder:str|Path|Sequence|None=None, # Of the study, or several: adds McNemar's test on `scores.csv`
)->pd.DataFrame: # A row for each strategy: `lam`, `lr`, `runs`, `failed`, and columns of each measure
    """Means over seeds of final runs with 95 % t intervals, and paired differences to the reference.

    The columns of a measure m are m with m_low and m_high; the difference m_diff with its t interval (m_diff_low,
    m_diff_high) and BCa interval (m_bca_low, m_bca_high); the p values of the paired t test (m_p), the same
    adjusted (m_p_adj), and of the exact sign-flip test (m_p_flip); and m_verdict, which depends on the adjusted p
    value. If some of a strategy's runs lack a measure, m_runs is the number of those that have it. The last columns,
    as far as they were recorded, are `CLIP_COLUMNS` and `source_chance`. Raises `InputError` for runs that were not
    measured on the same number of clips."""
    final = final_runs(rows)
    base = final[(final.strategy == reference) & (final.status == 'ok')].set_index('seed')
    measures = [m for m in REPORTED if m in final and final[m].notna().any()]
    right = lru_cache(maxsize=None)(partial(answered_right, folder))
    out = []
    for strategy, group in final.groupby('strategy', sort=False):
        ok = group[group.status == 'ok']
        compared = strategy not in (reference, 'untouched')
        row = dict(strategy=strategy, lam=group.lam.iloc[0], lr=group.lr.iloc[0])
        row |= _budget(group) | dict(runs=len(ok), failed=len(group) - len(ok))
        for m in measures:
            row |= _mean(ok, m)
            if compared: row |= _difference(ok, base, m)
        if compared and folder is not None: row['mcnemar'] = mcnemar_of_runs(right, ok, base)
        row['seconds'] = ok.seconds.astype(float).mean()
        out.append(row)
    table = frame_of(out).assign(**_about(final))
    for m in measures:
        if f'{m}_p' in table: _add_verdicts(table, m, method)
    return table


def _budget(runs):
    "The column `budget` of a strategy that has adapted its strength"
    text = retain_text(runs.strategy_args.iloc[0]) if 'strategy_args' in runs else ''
    return dict(budget=text) if text else {}


def _mean(runs, m):
    "Columns of the mean of measure `m`"
    mean = mean_interval(runs[m])
    columns = {m: mean.mean, f'{m}_low': mean.low, f'{m}_high': mean.high}
    return columns | {f'{m}_runs': mean.n} if 0 < mean.n < len(runs) else columns


def _about(final):
    "Numbers of clips, and the source's chance, which all runs share"
    chance = final.source_chance.dropna() if 'source_chance' in final else []
    return clip_counts(final) | (dict(source_chance=float(chance.iloc[0])) if len(chance) else {})


def _difference(runs, base, m):
    "Columns of the paired differences of measure `m` between runs and those of the reference, whose index is the seed"
    mine = runs.set_index('seed')[m].astype(float)
    seeds = mine.index.intersection(base.index)
    a, b = mine[seeds], base.loc[seeds, m].astype(float)
    d = paired_difference(a, b)
    bca_low, bca_high = bca_interval(a - b)
    columns = dict(diff=d.mean, diff_low=d.low, diff_high=d.high, bca_low=bca_low, bca_high=bca_high)
    columns |= dict(p=paired_test(a, b), p_flip=sign_flip(a - b))
    return {f'{m}_{name}': value for name, value in columns.items()}


def _add_verdicts(table, m, method):
    "Insert the adjusted p values of measure `m` and the verdicts"
    adjusted = adjust(table[f'{m}_p'], method)
    verdicts = [judge(d, p, MEASURES[m].more_is_better) for d, p in zip(table[f'{m}_diff'], adjusted)]
    insert_after(table, f'{m}_p', f'{m}_p_adj', adjusted)
    insert_after(table, f'{m}_p_flip', f'{m}_verdict', pd.Series(verdicts).where(table[f'{m}_diff'].notna(), None))


def answered_right(
    folder:str|Path|Sequence|None, # Of a study, or several; `None` has no scores
    keys:Sequence, # Of runs
)->np.ndarray|None: # Of bools, one for each video; `None` where a run has no scores
    "Read which videos the mean probabilities of several runs classify correctly"
    folders = listify(folder)
    read = partial(pd.read_csv, dtype=dict(label=str), keep_default_na=False)  # a class may be called NA
    damaged: list[Path] = []
    scores = [try_read(read, find_file(folders, 'runs', key, 'scores.csv'), damaged.append) for key in keys]
    if not scores or any(s is None or 'label' not in s for s in scores): return None
    total = sum(s.drop(columns=['path', 'label']) for s in scores)
    if total.isna().any(axis=None): return None  # a file without a digest was cut off
    return (total.idxmax(axis=1) == scores[0].label).to_numpy()


def mcnemar_of_runs(
    right:Callable, # Function of keys of runs, see `answered_right`
    runs:pd.DataFrame, # Of a strategy
    reference:pd.DataFrame, # Of the reference; its index is the seed
)->float: # nan if scores are missing
    "p value of McNemar's test over videos; a seed that failed for one of the two is left out for both"
    both = set(runs.seed) & set(reference.index)
    a = right(tuple(runs.key[runs.seed.isin(both)]))
    b = right(tuple(reference.key[reference.index.isin(both)]))
    return float('nan') if a is None or b is None else mcnemar(a, b)
