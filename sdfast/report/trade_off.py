"What keeping costs: each strategy's path of strengths, compared at the target accuracy of plain fine-tuning."
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..stats import adjust, judge, mean_interval, p_value, paired_difference, paired_test
from .clips import clip_counts
from .paths import hypervolume, matched_difference, matched_kept, pareto_front
from .rows import final_runs, frame_of, has_strength, insert_after, setting_name, settings_of

__all__ = ['trade_off']

MARGIN = .01  # a setting may have this much less target accuracy than plain fine-tuning and still count
MARGINS = 0., .0025, .005, MARGIN, .02  # to show whether results depend on the margin


@dataclass(frozen=True)
class StrengthPath:
    "A strategy's settings from weak to strong, with what was learned and kept at each"
    settings: list  # `(lam, lr)`; the first one of a strategy that has a strength is the reference, as λ 0
    learned: np.ndarray  # target accuracies `(seeds, settings)`; nan where a run failed
    kept: np.ndarray  # the same of a measure of the source


def strength_paths(
    rows:pd.DataFrame, # From `compare` with all strengths run to the end
    kept:str, # A measure of the source
    reference:str='finetune', # Strategy whose run at the same learning rate is λ 0 of all others
)->dict: # Strategy -> `StrengthPath`
    "Collect each strategy's path of strengths; runs that failed are missing values"
    final = final_runs(rows, chosen=False)
    final = final[final.strategy != 'untouched']
    seeds = sorted(final.seed.unique())
    paths = {}
    for strategy, runs in final.groupby('strategy', sort=False):
        settings = settings_of(runs)
        if has_strength(str(strategy)):
            runs = pd.concat([final[final.strategy == reference], runs])
            settings = [(0., settings[0][1]), *settings]
        paths[strategy] = _path(runs, settings, seeds, kept)
    return paths


def _path(runs, settings, seeds, kept):
    "A path, without settings that never ran, such as λ 0 where the reference did not run at this learning rate"
    ok = runs.loc[runs.status == 'ok', ['seed', 'lam', 'lr', 'acc1', kept]].astype(float)
    measured = {(seed, lam, lr): values for seed, lam, lr, *values in ok.itertuples(index=False)}
    missing = (np.nan, np.nan)
    values = np.array([[measured.get((seed, *setting), missing) for setting in settings] for seed in seeds])
    there = ~np.isnan(values).all((0, 2))
    return StrengthPath([s for s, known in zip(settings, there) if known], values[:, there, 0], values[:, there, 1])


def trade_off(
    rows:pd.DataFrame, # From `compare` with all strengths run to the end
    kept:str='source_probe', # What counts as kept: a measure of the source
    against:str='finetune', # Strategy whose path the others are compared with
    reference:str='finetune', # Strategy whose target accuracy, less the margin, is the level to compare at
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
    margin:float=MARGIN, # Target accuracy that may be lost
)->pd.DataFrame: # A row for each strategy
    """Compute what keeping costs, from each strategy's path of strengths.

    - `matched`: what it keeps at the target accuracy of the reference minus `margin`, interpolated (`stats.kept_at`)
    - `cost`: the untouched encoder's value minus `matched`, which is forgetting at equal target accuracy
    - `diff`: how much more it keeps there than the path of `against`; plain fine-tuning's is one of learning rates
    - `volume`: the area in points² that the path dominates beyond the reference less `margin`, mean over seeds
    - `volume_diff`: its paired difference to that of `against`, with the paired t test
    - `front`: the settings that no other setting of any strategy beats in both means

    The last columns, as far as they were recorded, are `CLIP_COLUMNS`.

    The first three have jackknife t intervals, the volumes t intervals. All accuracies are of test; the learning rate
    of the reference is the best on valid. Raises `ValueError` where there is nothing to compare with."""
    paths = strength_paths(rows, kept, reference)
    for name in (reference, against):
        if name not in paths: raise ValueError(f'there are no final runs of {name}, which the others are compared with')
    base = _reference_runs(rows, reference)
    learned, base_kept = base.acc1.astype(float).values, base[kept].astype(float).values
    untouched = _untouched(rows, kept)
    front = _front(paths)
    volumes = {s: _volumes(path, learned - margin, base_kept) for s, path in paths.items()}

    def level(seeds): return learned[seeds].mean() - margin

    out = []
    for strategy, path in paths.items():
        row = dict(strategy=strategy) | _matched_columns(path, level, untouched)
        compared = strategy != against
        if compared: row |= _difference_columns(path, paths[against], level)
        row |= _volume_columns(volumes[strategy], volumes[against] if compared else None)
        out.append(row | dict(front=' '.join(front[strategy])))
    table = frame_of(out)
    table = table[[c for c in table if c != 'front'] + ['front']]  # the row of `against` has fewer columns
    for column, n in clip_counts(final_runs(rows, chosen=False)).items(): table[column] = n
    if 'p' in table:
        for prefix in ('', 'volume_'): _add_verdicts(table, prefix, against, method)
    return table


def _reference_runs(rows, reference):
    "Runs of the reference at its best learning rate on valid, one for each seed"
    final = final_runs(rows, chosen=False)
    runs = final[(final.strategy == reference) & (final.status == 'ok')].astype(dict(valid_acc1=float))
    best_lr = runs.groupby('lr').valid_acc1.mean().idxmax()
    runs = runs[runs.lr == best_lr].sort_values('seed')
    chosen = final_runs(rows)
    seeds = sorted(chosen.seed[chosen.strategy != 'untouched'].unique())
    if list(runs.seed) != seeds:
        raise ValueError(f'{reference} failed with some seeds: there is no equal accuracy to compare at')
    return runs


def _untouched(rows, kept):
    "What the encoder knew before fine-tuning; `None` where it was not measured"
    final = final_runs(rows)
    values = final[kept][final.strategy == 'untouched']
    return float(values.iloc[0]) if len(values) else None


def _front(paths):
    "Strategy -> names of its settings on the Pareto front of the means; λ 0 is a setting of the reference alone"
    owners, learned, kept = [], [], []
    for strategy, path in paths.items():
        for i, (lam, lr) in enumerate(path.settings):
            if has_strength(strategy) and lam == 0: continue
            owners.append((strategy, setting_name(strategy, lam, lr)))
            learned.append(path.learned.mean(0)[i])
            kept.append(path.kept.mean(0)[i])
    front = {strategy: [] for strategy in paths}
    for (strategy, name), is_on_front in zip(owners, pareto_front(learned, kept)):
        if is_on_front: front[strategy].append(name)
    return front


def _volumes(path, least_learned, least_kept):
    "Area in points² that a path dominates beyond a point, one for each seed"
    corners = zip(least_learned, least_kept)
    return [1e4*hypervolume(x, y, corner) for x, y, corner in zip(path.learned, path.kept, corners)]


def _matched_columns(path, level, untouched):
    m = matched_kept(path.learned, path.kept, level)
    columns = dict(matched=m.mean, matched_low=m.low, matched_high=m.high)
    if untouched is not None:
        columns |= dict(cost=untouched - m.mean, cost_low=untouched - m.high, cost_high=untouched - m.low)
    return columns


def _difference_columns(path, other, level):
    d = matched_difference(path.learned, path.kept, other.learned, other.kept, level)
    return dict(diff=d.mean, diff_low=d.low, diff_high=d.high, p=p_value(d))


def _volume_columns(mine, other):
    mean = mean_interval(mine)
    columns = dict(volume=mean.mean, volume_low=mean.low, volume_high=mean.high)
    if other is None: return columns
    d = paired_difference(mine, other)
    return columns | dict(volume_diff=d.mean, volume_diff_low=d.low, volume_diff_high=d.high,
                          volume_p=paired_test(mine, other))


def _add_verdicts(table, prefix, against, method):
    "Insert adjusted p values and verdicts after the p values of what is kept, or of the volume"
    adjusted = adjust(table[f'{prefix}p'], method)
    verdicts = [judge(d, p) for d, p in zip(table[f'{prefix}diff'], adjusted)]
    insert_after(table, f'{prefix}p', f'{prefix}p_adj', adjusted)
    verdicts = [None if strategy == against else v for strategy, v in zip(table.strategy, verdicts)]
    insert_after(table, f'{prefix}p_adj', f'{prefix}verdict', verdicts)
