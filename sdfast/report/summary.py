"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.basics import listify

from ..metrics.columns import MEASURES, REPORTED
from ..stats import (
    adjust,
    bca_interval,
    hypervolume,
    judge,
    matched_difference,
    matched_kept,
    mcnemar,
    mean_interval,
    p_value,
    paired_difference,
    paired_test,
    pareto_front,
    sign_flip,
)
from ..strategies.registry import STRATEGIES

__all__ = ['summary', 'trade_off']

MARGIN = .01  # of target accuracy, that a setting may lie below plain fine-tuning and still count
MARGINS = 0., .0025, .005, MARGIN, .02  # does what is found depend on it?


def final_runs(rows, chosen=True):
    "Final runs, of the chosen strengths only or of all of them; a file from before there were paths has only the former"
    final = rows[rows.final.astype(bool)]
    return final[[pd.isna(c) or bool(c) for c in final.chosen]] if chosen and 'chosen' in final else final


def summary(
    rows:pd.DataFrame, # From `compare`
    reference:str='finetune', # Strategy that the others are compared with, seed by seed
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
    folder:str|Path|Sequence|None=None, # Of the study, or several: adds McNemar's test on `scores.csv`
)->pd.DataFrame: # A row a strategy: `lam`, `lr`, `runs`, `failed`, and for each metric m the columns m, m_low, m_high, m_diff...
    """Means over seeds of final runs with 95 % t intervals, and paired differences to the reference: m_diff with its t interval
    (m_diff_low, m_diff_high) and BCa interval (m_bca_low, m_bca_high), the p values of the paired t test (m_p), the same adjusted
    (m_p_adj) and of the exact sign-flip test (m_p_flip), and m_verdict, by the adjusted one"""
    final, out, right = final_runs(rows), [], lru_cache(maxsize=None)(partial(answered_right, folder))
    base = final[(final.strategy == reference) & (final.status == 'ok')].set_index('seed')
    metrics = [m for m in REPORTED if m in final and final[m].notna().any()]
    for strategy, g in final.groupby('strategy', sort=False):
        ok, row = g[g.status == 'ok'], dict(strategy=strategy, lam=g.lam.iloc[0], lr=g.lr.iloc[0], runs=int((g.status == 'ok').sum()), failed=int((g.status != 'ok').sum()))
        for m in metrics:
            mean = mean_interval(ok[m])
            row |= {m: mean.mean, f'{m}_low': mean.low, f'{m}_high': mean.high}
            if strategy in (reference, 'untouched'): continue
            mine = ok.set_index('seed')[m].astype(float)
            seeds = mine.index.intersection(base.index)
            a, b = mine[seeds], base.loc[seeds, m].astype(float)
            d, (low, high) = paired_difference(a, b), bca_interval(a - b)
            row |= {f'{m}_diff': d.mean, f'{m}_diff_low': d.low, f'{m}_diff_high': d.high, f'{m}_bca_low': low, f'{m}_bca_high': high,
                    f'{m}_p': paired_test(a, b), f'{m}_p_flip': sign_flip(a - b)}
        if folder is not None and strategy not in (reference, 'untouched'): row['mcnemar'] = mcnemar_of_runs(right, ok, base)
        row['seconds'] = ok.seconds.astype(float).mean()
        out.append(row)
    table = pd.DataFrame(out).reindex(columns=list(dict.fromkeys(c for r in out for c in r)))
    for m in metrics:
        if f'{m}_p' not in table: continue
        table.insert(table.columns.get_loc(f'{m}_p') + 1, f'{m}_p_adj', adjust(table[f'{m}_p'], method))
        verdict = [judge(d, p, MEASURES[m].more_is_better) for d, p in zip(table[f'{m}_diff'], table[f'{m}_p_adj'])]
        table.insert(table.columns.get_loc(f'{m}_p_flip') + 1, f'{m}_verdict', pd.Series(verdict).where(table[f'{m}_diff'].notna(), None))
    return table


def answered_right(folder, keys):
    "Which videos the runs `keys` get right together, by the mean of their probabilities; `None` where scores are not there"
    files = [next((f for d in listify(folder) if (f := Path(d)/'runs'/k/'scores.csv').exists()), None) for k in keys]
    if not files or not all(files): return None
    scores = [pd.read_csv(f, dtype=dict(label=str), keep_default_na=False) for f in files]  # a class may be called NA
    probs = sum(s.drop(columns=['path', 'label']) for s in scores)
    return (probs.idxmax(axis=1) == scores[0].label).values


def mcnemar_of_runs(right, runs, reference):
    "p of McNemar's test per video by the function `right` of runs' keys; nan where scores are not there"
    both = set(runs.seed) & set(reference.index)  # a seed that failed for one is left out for both
    a, b = right(tuple(runs.key[runs.seed.isin(both)])), right(tuple(reference.key[reference.index.isin(both)]))
    return float('nan') if a is None or b is None else mcnemar(a, b)


def strength_paths(rows, kept, reference):
    "Strategy -> accuracies and what was kept, `(seeds, settings)` each, and the settings from weak to strong; lam 0 is the reference at the same lr"
    final = final_runs(rows, chosen=False)
    final = final[final.strategy != 'untouched'].assign(ok=lambda d: d.status == 'ok')
    seeds, paths = sorted(final.seed.unique()), {}
    for strategy, g in final.groupby('strategy', sort=False):
        settings = sorted({(l, r) for l, r in zip(g.lam, g.lr)}, key=lambda s: (s[0], -s[1]))
        if has_strength(strategy): g, settings = pd.concat([final[final.strategy == reference], g]), [(0., settings[0][1]), *settings]
        cell = {(s, l, r):(a, k) for s, l, r, a, k in g.loc[g.ok, ['seed', 'lam', 'lr', 'acc1', kept]].astype(float).itertuples(index=False)}
        both = np.array([[cell.get((s, *at), (np.nan, np.nan)) for at in settings] for s in seeds])
        here = ~np.isnan(both).all((0, 2))  # the reference may not have run at this lr
        paths[strategy] = both[:, here, 0], both[:, here, 1], [s for s, h in zip(settings, here) if h]
    return paths


def trade_off(
    rows:pd.DataFrame, # From `compare` with `all_strengths=True`
    kept:str='source_probe', # What counts as kept: a metric of the source
    against:str='finetune', # Strategy whose path the others are compared with
    reference:str='finetune', # Strategy whose target accuracy, at the setting with the best on valid, is the level to compare at
    method:str='holm', # How p values are adjusted for the number of strategies
    margin:float=MARGIN, # Of target accuracy, that may be missing to the reference's
)->pd.DataFrame: # A row a strategy
    """What keeping costs, from each strategy's path of strengths: `matched`, what it keeps at the target accuracy of the reference,
    less `margin`, interpolated (`stats.kept_at`); `cost`, what the untouched encoder has more than that: forgetting at equal target
    accuracy; `diff`, how much more it keeps there than the path of `against` (finetune's is one of learning rates); all with jackknife t
    intervals.
    `volume`, the area in points^2 that the path dominates beyond the reference less `margin`, per seed, with a t interval; `volume_diff`,
    its paired difference to that of `against`, with the paired t test; `front`, which settings no other setting of any strategy beats in both means"""
    final, paths, out = final_runs(rows), strength_paths(rows, kept, reference), []
    for name in (reference, against):
        if name not in paths: raise ValueError(f'there are no final runs of {name}, which the others are compared with')
    base = final_runs(rows, chosen=False)
    base = base[(base.strategy == reference) & (base.status == 'ok')].astype(dict(valid_acc1=float))
    base = base[(base.lr == base.groupby('lr').valid_acc1.mean().idxmax())].sort_values('seed')
    acc, ref_kept = base.acc1.astype(float).values, base[kept].astype(float).values
    seeds = sorted(final.seed[final.strategy != 'untouched'].unique())
    if list(base.seed) != seeds: raise ValueError(f'{reference} failed with some seeds: there is no equal accuracy to compare at')
    level, untouched = (lambda i: acc[i].mean() - margin), final[final.strategy == 'untouched']
    points = [(s, at, x.mean(0)[i], y.mean(0)[i]) for s, (x, y, settings) in paths.items() for i, at in enumerate(settings) if at[0] or not has_strength(s)]
    front = pareto_front([p[2] for p in points], [p[3] for p in points])
    volumes = {s:[1e4*hypervolume(a, b, (a0 - margin, k0)) for a, b, a0, k0 in zip(x, y, acc, ref_kept)] for s, (x, y, _) in paths.items()}
    for strategy, (x, y, _) in paths.items():
        m = matched_kept(x, y, level)
        row = dict(strategy=strategy, matched=m.mean, matched_low=m.low, matched_high=m.high)
        if len(untouched): row |= dict(zip(('cost', 'cost_low', 'cost_high'), float(untouched[kept].iloc[0]) - np.array([m.mean, m.high, m.low])))
        if strategy != against:
            d = matched_difference(x, y, *paths[against][:2], level)
            row |= dict(diff=d.mean, diff_low=d.low, diff_high=d.high, p=p_value(d))
        v = mean_interval(volumes[strategy])
        row |= dict(volume=v.mean, volume_low=v.low, volume_high=v.high)
        if strategy != against:
            d = paired_difference(volumes[strategy], volumes[against])
            row |= dict(volume_diff=d.mean, volume_diff_low=d.low, volume_diff_high=d.high, volume_p=paired_test(volumes[strategy], volumes[against]))
        out.append(row | dict(front=' '.join(f'{setting_name(s, *at)}' for (s, at, *_), f in zip(points, front) if f and s == strategy)))
    table = pd.DataFrame(out)
    table = table[[c for c in table if c != 'front'] + ['front']]  # the row of `against` has fewer columns
    for m in ('', 'volume_') if 'p' in table else ():
        at = table.columns.get_loc(f'{m}p') + 1
        table.insert(at, f'{m}p_adj', adjust(table[f'{m}p'], method))
        table.insert(at + 1, f'{m}verdict', [None if s == against else judge(d, p) for s, d, p in zip(table.strategy, table[f'{m}diff'], table[f'{m}p_adj'])])
    return table


def setting_name(strategy, lam, lr): return f'λ{lam:g}' if has_strength(strategy) else f'lr{lr:g}'


PANELS = ('source_acc', 'source_probe')


def has_strength(name:str)->bool: return bool(STRATEGIES[name.split()[0]].lams)  # behind its name there may be options
