"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.basics import listify
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import store
from .launch import Watch
from .stats import adjust, bca_interval, hypervolume, judge, matched_difference, matched_kept, mcnemar, mean_interval, p_value, paired_difference, paired_test, pareto_front, sign_flip
from .status import run_cost, run_name
from .strategies import STRATEGIES

__all__ = ['summary', 'trade_off', 'rich_table', 'markdown', 'trade_off_markdown', 'margins_markdown', 'figure', 'path_figure', 'write_report', 'LiveWatch']

METRICS = ['acc1', 'acc5', 'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50', 'other_probe', 'cka', 'procrustes', 'drift',
           'weight_distance', 'barrier']
TITLES = dict(acc1='target acc@1', source_acc='source, old head', source_acc_bn='old head, BN anew', source_probe='source, new probe', source_knn='source, kNN',
              other_probe='other tasks, new probe', cka='CKA', drift='drift', barrier='barrier')
SHARES = {'acc1', 'acc5', 'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50', 'other_probe'}  # shown in %, differences in points
LESS = {'procrustes', 'drift', 'weight_distance', 'barrier'}  # less is better
MARGIN = .01  # of target accuracy, that a setting may lie below plain fine-tuning and still count
MARGINS = 0., .0025, .005, MARGIN, .02  # does what is found depend on it?


def _final(rows, chosen=True):
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
    final, out, right = _final(rows), [], lru_cache(maxsize=None)(partial(_right, folder))
    base = final[(final.strategy == reference) & (final.status == 'ok')].set_index('seed')
    metrics = [m for m in METRICS if m in final and final[m].notna().any()]
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
        if folder is not None and strategy not in (reference, 'untouched'): row['mcnemar'] = _mcnemar(right, ok, base)
        row['seconds'] = ok.seconds.astype(float).mean()
        out.append(row)
    table = pd.DataFrame(out).reindex(columns=list(dict.fromkeys(c for r in out for c in r)))
    for m in metrics:
        if f'{m}_p' not in table: continue
        table.insert(table.columns.get_loc(f'{m}_p') + 1, f'{m}_p_adj', adjust(table[f'{m}_p'], method))
        verdict = [judge(d, p, m not in LESS) for d, p in zip(table[f'{m}_diff'], table[f'{m}_p_adj'])]
        table.insert(table.columns.get_loc(f'{m}_p_flip') + 1, f'{m}_verdict', pd.Series(verdict).where(table[f'{m}_diff'].notna(), None))
    return table


def _right(folder, keys):
    "Which videos the runs `keys` get right together, by the mean of their probabilities; `None` where scores are not there"
    files = [next((f for d in listify(folder) if (f := Path(d)/'runs'/k/'scores.csv').exists()), None) for k in keys]
    if not files or not all(files): return None
    scores = [pd.read_csv(f, dtype=dict(label=str), keep_default_na=False) for f in files]  # a class may be called NA
    probs = sum(s.drop(columns=['path', 'label']) for s in scores)
    return (probs.idxmax(axis=1) == scores[0].label).values


def _mcnemar(right, runs, reference):
    "p of McNemar's test per video by the function `right` of runs' keys; nan where scores are not there"
    both = set(runs.seed) & set(reference.index)  # a seed that failed for one is left out for both
    a, b = right(tuple(runs.key[runs.seed.isin(both)])), right(tuple(reference.key[reference.index.isin(both)]))
    return float('nan') if a is None or b is None else mcnemar(a, b)


def _paths(rows, kept, reference):
    "Strategy -> accuracies and what was kept, `(seeds, settings)` each, and the settings from weak to strong; lam 0 is the reference at the same lr"
    final = _final(rows, chosen=False)
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
    rows:pd.DataFrame, # From `compare` with `path=True`
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
    final, paths, out = _final(rows), _paths(rows, kept, reference), []
    for name in (reference, against):
        if name not in paths: raise ValueError(f'there are no final runs of {name}, which the others are compared with')
    base = _final(rows, chosen=False)
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
        out.append(row | dict(front=' '.join(f'{_setting(s, *at)}' for (s, at, *_), f in zip(points, front) if f and s == strategy)))
    table = pd.DataFrame(out)
    table = table[[c for c in table if c != 'front'] + ['front']]  # the row of `against` has fewer columns
    for m in ('', 'volume_') if 'p' in table else ():
        at = table.columns.get_loc(f'{m}p') + 1
        table.insert(at, f'{m}p_adj', adjust(table[f'{m}p'], method))
        table.insert(at + 1, f'{m}verdict', [None if s == against else judge(d, p) for s, d, p in zip(table.strategy, table[f'{m}diff'], table[f'{m}p_adj'])])
    return table


def _setting(strategy, lam, lr): return f'λ{lam:g}' if has_strength(strategy) else f'lr{lr:g}'


def number(
    x:float,
    sign:str='', # '+': also of what is not negative
    digits:int=1, # Behind the point
)->str:
    "Text of a number; what rounds to 0 has no minus"
    return f'{round(float(x), digits) + 0.:{sign}.{digits}f}'


def _cells(row, m):
    "Text of a metric: its mean, and its paired difference with interval and verdict where there is one"
    scale, digits = (100, 1) if m in SHARES else (1, 3)
    def f(x, sign=''): return number(scale*x, sign, digits)
    if pd.isna(row[m]): return '–', ''
    if pd.isna(row.get(f'{m}_diff')): return f(row[m]), ''
    if pd.isna(row[f'{m}_diff_low']): return f(row[m]), f'{f(row[f"{m}_diff"], "+")} (no interval)'
    return f(row[m]), f'{f(row[f"{m}_diff"], "+")} [{f(row[f"{m}_diff_low"], "+")}, {f(row[f"{m}_diff_high"], "+")}] {row[f"{m}_verdict"]}'


def _strength(row):
    if row.strategy == 'untouched': return ''
    return (f'λ {row.lam:g}' if has_strength(row.strategy) else f'lr {row.lr:g}') + (f', {row.failed} failed' if row.failed else '')


CAPTION = ('Accuracies in %, means over {n} seeds; {where} the paired difference to finetune with its 95 % t interval. Better, worse or not distinguishable: '
           'by the paired t test, {adjusted}. {mcnemar}Strengths chosen on valid parts, never on test.')
MCNEMAR = "McNemar's test compares the means over seeds of two strategies' answers video by video, unadjusted. "
ADJUSTED = dict(holm='adjusted for the number of strategies (Holm)', bh='with the false discovery rate over strategies held at 5 % (Benjamini-Hochberg)', none='not adjusted for the number of strategies')


def _caption(table, where, method):
    return CAPTION.format(where=where, n=table.runs[table.strategy != 'untouched'].max(), adjusted=ADJUSTED[method], mcnemar=MCNEMAR if 'mcnemar' in table else '')


def rich_table(
    table:pd.DataFrame, # From `summary`
    title:str='', # Above it
    width:int=80, # Columns of the terminal
    notes:Sequence[str]=(), # What a reader must know of the tasks, below it
    method:str='holm', # How p values were adjusted
)->Table: # For rich's `print`
    "The summary for a terminal of `width` columns; a narrow one leaves out all but target, old head and probe. `notes` of its tasks stand below"
    metrics = [m for m in TITLES if m in table and (width >= 30 + 22*sum(m in table for m in TITLES) or m in ('acc1', 'source_acc', 'source_probe'))]
    t = Table(title=title, caption='\n'.join([_caption(table, 'below', method), *notes]), show_lines=True)
    t.add_column('strategy', no_wrap=True)
    for m in metrics: t.add_column(TITLES[m], justify='right', no_wrap=True)
    for _, row in table.iterrows():
        t.add_row(f'{row.strategy}\n{_strength(row)}', *('\n'.join(filter(None, _cells(row, m))).replace(' [', '\n[').replace('] ', ']\n').replace('not dis', 'not\ndis') for m in metrics))
    return t


def markdown(
    table:pd.DataFrame, # From `summary`
    notes:Sequence[str]=(), # What a reader must know of the tasks
    metrics:Sequence[str]|None=None, # Which columns; by default all of `TITLES` that were measured
    method:str='holm', # How p values were adjusted
)->str: # Markdown
    "The summary as a Markdown table with its caption"
    metrics, test = [m for m in metrics or TITLES if m in table], 'mcnemar' in table
    lines = ['| ' + ' | '.join(['strategy', 'strength', *(TITLES[m] for m in metrics)] + ['McNemar p']*test) + ' |', '|' + '---|'*2 + '--:|'*(len(metrics) + test)]
    for _, row in table.iterrows():
        cells = [row.strategy, _strength(row), *(' '.join(filter(None, _cells(row, m))) for m in metrics)] + (['' if pd.isna(row.mcnemar) else f'{row.mcnemar:.2g}'] if test else [])
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, '', _caption(table, "behind", method), *(f'\n- {n}' for n in notes[:1]), *(f'- {n}' for n in notes[1:]), ''])


def _ci(r, m, sign='', scale=100):
    "Text of a number of `trade_off` with its interval"
    if pd.isna(r[m]): return '–'
    def f(x): return number(scale*x, sign)
    return f(r[m]) + (' (no interval)' if pd.isna(r[f'{m}_low']) else f' [{f(r[f"{m}_low"])}, {f(r[f"{m}_high"])}]')


def _against(r, m='', scale=100):
    "Text of a difference of `trade_off` with interval and verdict"
    verdict = r[f'{m}verdict']
    return _ci(r, f'{m}diff', '+', scale) + ('' if verdict == 'no interval' else f' {verdict}')


def trade_off_markdown(
    table:pd.DataFrame, # From `trade_off`
    kept:str='source_probe', # As there
    against:str='finetune', # As there
    method:str='holm', # As there
)->str: # Markdown
    "What keeping costs, as a Markdown table with its caption"
    lines = [f'| strategy | kept at equal learning | forgotten | against {against}\'s path | volume, against {against}\'s | on the front |', '|---|--:|--:|--:|--:|---|']
    for _, r in table.iterrows():
        diff, volume = ('', _ci(r, 'volume', scale=1)) if r.strategy == against else (_against(r), f'{r.volume:.1f} {_against(r, "volume_", 1)}')
        lines.append(f'| {r.strategy} | {"–" if pd.isna(r.matched) else f"{100*r.matched:.1f}"} | {_ci(r, "cost") if "cost" in table else ""} | {diff} | {volume} | {r.front} |')
    return '\n'.join([*lines, '', f'{TITLES[kept][0].upper()}{TITLES[kept][1:]}, in %. Equal learning: the target accuracy of finetune, at its best learning rate on valid, less {100*MARGIN:g} point, on the path of a strategy\'s strengths; – if it nowhere '
                      f'learns that much. Forgotten: what the untouched encoder has more. 95 % t intervals of the jackknife over seeds, verdicts {ADJUSTED[method]}. Volume: '
                      'points² that a path dominates beyond finetune (less the same margin), paired by seed. A maximum over a path is optimistic, a little more over more settings.', ''])


def margins_markdown(
    rows:pd.DataFrame, # As for `trade_off`
    kept:str='source_probe', # As there
    against:str='finetune', # As there
    method:str='holm', # As there
)->str: # Markdown
    "Whether the differences of `trade_off` hang on its margin, as a Markdown table with its caption"
    tables = [trade_off(rows, kept, against, method=method, margin=m).set_index('strategy') for m in MARGINS]
    lines = ['| strategy | ' + ' | '.join(f'less {100*m:g}' for m in MARGINS) + ' |', '|---|' + '--:|'*len(MARGINS)]
    lines += [f'| {s} | ' + ' | '.join(_against(t.loc[s]) for t in tables) + ' |' for s in tables[0].index if s != against]
    return '\n'.join([*lines, '', f'{TITLES[kept][0].upper()}{TITLES[kept][1:]}: what each path keeps more than {against}\'s where both learn the target as well as finetune does, less so many points. '
                      f'Intervals and verdicts as above. With no margin a path counts from where it meets finetune\'s own accuracy, and chance decides whether it does: there the jackknife is rough. A dash: one of the two nowhere learns that much.', ''])


# Okabe & Ito's colours, told apart by every kind of colour vision; markers tell them apart without colour
COLOURS, MARKERS = ('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7A7A00', '#46237A'), 'o^vDPX*<>hp8dH'
_FIRST = ['self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc', 'lower_lr', 'linear_probe', 'lp_ft']  # each has a colour of its own
_OTHER = (3, 4, 7, 0, 1, 6, 5, 2)  # the colour for a marker's second use, which no kind of colour vision takes for the first
LOOKS = {s:(COLOURS[i % 8 if i < len(MARKERS) else _OTHER[(i - len(MARKERS)) % 8]], MARKERS[i % len(MARKERS)]) for i, s in enumerate([*_FIRST, *(s for s in STRATEGIES if s not in _FIRST)])} | dict(finetune=('#000000', 's'))
PANELS = ('source_acc', 'source_probe')


def look(name:str)->tuple[str, str]:
    "Colour and marker of a strategy; with options behind its name, one that follows from them"
    if name in LOOKS: return LOOKS[name]
    at = sum(name.encode())
    return COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]


def has_strength(name:str)->bool: return bool(STRATEGIES[name.split()[0]].lams)  # behind its name there may be options


def _panels(ax, m, untouched):
    if untouched is not None:
        ax.axhline(100*untouched, color='grey', ls='--', lw=1)
        ax.annotate('untouched', (.01, 100*untouched), xycoords=('axes fraction', 'data'), va='bottom', color='grey', fontsize=8, annotation_clip=True)
    ax.set(xlabel='learned: target accuracy in %', ylabel=f'kept: {TITLES[m]} in %')
    ax.grid(alpha=.3)


@contextmanager
def marks_of(ax:Axes, strategy:str)->Iterator[None]:
    "What is drawn meanwhile gets the group id `series-STRATEGY`, by which an SVG can be styled"
    before = set(ax.get_children())
    yield
    for a in set(ax.get_children()) - before: a.set_gid(f'series-{strategy}')


def _focus(ax, points):
    "Limits of the axes without means far too low (beyond Tukey's fence of 3 quartile ranges), which would squeeze the rest into a corner; says who is left out"
    low, high = points.quantile(.25), points.quantile(.75)
    out = (points < low - 3*(high - low)).any(axis=1)
    if len(points) < 8 or not out.any(): return
    near = points[~out]
    pad = .12*(near.max() - near.min() + .2)
    ax.set_xlim(near.iloc[:, 0].min() - pad.iloc[0], near.iloc[:, 0].max() + pad.iloc[0])
    ax.set_ylim(near.iloc[:, 1].min() - pad.iloc[1], near.iloc[:, 1].max() + pad.iloc[1])
    ax.annotate(f'outside: {", ".join(points.index[out])}', (.01, .01), xycoords='axes fraction', fontsize=7, color='grey')


def draw_means(
    ax:Axes, # Axes
    rows:pd.DataFrame, # From `compare`
    m:str, # A metric of the source
    table:pd.DataFrame|None=None, # The `summary` of the rows
    named:bool=False, # Names on the points instead of single seeds: a legend of many is none
)->pd.DataFrame: # The numbers that are drawn
    "Target accuracy against a metric: each seed, and the means with 95 % intervals"
    final, table = _final(rows), (summary(rows) if table is None else table).set_index('strategy')
    final, many = final[final.status == 'ok'], len(table) > 14
    for strategy, g in final[final.strategy != 'untouched'].groupby('strategy', sort=False):
        r, (colour, marker) = table.loc[strategy], look(strategy)
        with marks_of(ax, strategy):
            if not many: ax.plot(100*g.acc1.astype(float), 100*g[m].astype(float), marker, ms=4, color=colour, alpha=.3, lw=0)
            elif named: ax.annotate(strategy, (100*r.acc1, 100*r[m]), xytext=(5, 4), textcoords='offset points', fontsize=7, color=colour)
            err = [None if pd.isna(r[f'{c}_low']) else [[100*(r[c] - r[f'{c}_low'])], [100*(r[f'{c}_high'] - r[c])]] for c in ('acc1', m)]
            ax.errorbar(100*r.acc1, 100*r[m], xerr=err[0], yerr=err[1], fmt=marker, ms=5 if many else 8, lw=.6 if many else None, color=colour, capsize=0 if many else 3, label=strategy)
    if not named: _focus(ax, 100*table.loc[table.index != 'untouched', ['acc1', m]].dropna())
    _panels(ax, m, table.loc['untouched', m] if 'untouched' in table.index else None)
    return table.loc[table.index != 'untouched', [f'{c}{end}' for c in ('acc1', m) for end in ('', '_low', '_high')]].reset_index()


def draw_paths(ax:Axes, rows:pd.DataFrame, m:str, reference:str='finetune')->pd.DataFrame:
    """On axes each strategy's path of strengths, means over seeds, from hollow (weak) to its chosen strength (large) and on; the grey steps
    are the Pareto front. Returns the numbers that are drawn"""
    chosen, paths = _final(rows).drop_duplicates('strategy').set_index('strategy'), _paths(rows, m, reference)
    drawn = pd.DataFrame([dict(strategy=s, setting=_setting(s, *at), acc1=x, **{m:y}, chosen=at == (chosen.lam[s], chosen.lr[s]))
                          for s, (a, b, settings) in paths.items() for at, x, y in zip(settings, a.mean(0), b.mean(0))])
    drawn['front'] = pareto_front(drawn.acc1, drawn[m])
    points = 100*drawn[['acc1', m]].to_numpy()
    front = points[drawn.front]
    front = front[np.argsort(front[:, 0])]
    # what ruined training would squeeze the rest into a corner
    good = points[points[:, 0] >= 100*(np.nanmax(paths[reference][0].mean(0)) - .03)]
    for set_lim, i in ((ax.set_xlim, 0), (ax.set_ylim, 1)):
        low, high = np.nanmin(good[:, i]), max(np.nanmax(good[:, i]), 100*float(chosen[m]['untouched']) if i and 'untouched' in chosen.index else 0)
        set_lim(low - .08*(high - low + .1), high + .08*(high - low + .1))
    # from the left edge at the height of the first step, down to the bottom at the last: all that is below and left is beaten
    (left, _), (bottom, _) = ax.get_xlim(), ax.get_ylim()
    ax.step([min(left, front[0, 0]), *front[:, 0], front[-1, 0]], [front[0, 1], *front[:, 1], min(bottom, front[-1, 1])], where='pre', color='grey', lw=5, alpha=.25, zorder=0, label='Pareto front')
    for strategy, g in drawn.groupby('strategy', sort=False):
        x, y, (colour, marker) = 100*g.acc1, 100*g[m], look(strategy)
        with marks_of(ax, strategy):
            ax.plot(x, y, marker=marker, ms=4, color=colour, lw=1, alpha=.8, label=strategy)
            ax.plot(x[:1], y[:1], marker=marker, ms=4, color=colour, mfc='white', lw=0)
            ax.plot(x[g.chosen], y[g.chosen], marker=marker, ms=10, color=colour, lw=0)
    if n := int(((~np.isnan(points).any(1)).sum()) - len(good)): ax.annotate(f'{n} more learned too little to be shown', (.01, .01), xycoords='axes fraction', fontsize=7, color='grey')
    _panels(ax, m, chosen[m].get('untouched'))
    return drawn


def _two_panels(draw, rows, title, legend, figsize):
    "`draw` for both of `PANELS` side by side"
    fig = Figure(figsize=figsize, layout='constrained')
    axes = fig.subplots(1, 2)
    for ax, m in zip(axes, PANELS): draw(ax, rows, m)
    if legend: fig.legend(*axes[1].get_legend_handles_labels(), fontsize=8, loc='outside right center')
    if title: fig.suptitle(title, fontsize=10)
    return fig


def figure(
    rows:pd.DataFrame, # From `compare`
    title:str='', # Above it
)->Figure: # Of matplotlib
    "Target accuracy against source accuracy, by the old head and by a new probe, see `draw_means`"
    named = rows.strategy.nunique() > 14
    return _two_panels(partial(draw_means, table=summary(rows), named=named), rows, title, not named, (13, 6.4) if named else (11, 4.6))


def path_figure(
    rows:pd.DataFrame, # From `compare` with `path`
    title:str='', # Above it
    reference:str='finetune', # Strategy whose path is drawn as the one to beat
)->Figure: # Of matplotlib
    "Target accuracy against source accuracy along each strategy's path of strengths, see `draw_paths`"
    return _two_panels(partial(draw_paths, reference=reference), rows, title, True, (11, 5))


def write_report(
    rows:pd.DataFrame, # From `compare`
    out:str|Path, # Folder of the study, to write `runs.csv`, `table.csv`, `table.md`, `notes.json` and `figure.png` to, with paths also `trade_off_*` and `paths.png`
    title:str='', # Of the figures
    notes:Sequence[str]=(), # What a reader must know of the tasks
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
)->pd.DataFrame: # The summary
    "Write what a study found"
    out, table = Path(out), summary(rows, method=method, folder=out)
    store.write(out/'runs.csv', rows.to_csv(index=False))
    store.write(out/'table.csv', table.to_csv(index=False, float_format='%.6g'))
    store.write(out/'table.md', markdown(table, notes, method=method))
    store.write(out/'notes.json', json.dumps(list(notes), indent=1))
    figure(rows, title).savefig(out/'figure.png', dpi=130)
    if len(_final(rows, chosen=False)) > len(_final(rows)):
        path_figure(rows, title).savefig(out/'paths.png', dpi=130)
        for m in PANELS:
            t = trade_off(rows, m, method=method)
            store.write(out/f'trade_off_{m}.csv', t.to_csv(index=False, float_format='%.6g'))
            texts, against = [trade_off_markdown(t, m, method=method)], 'self_distill' if 'self_distill' in set(t.strategy) else 'finetune'
            if against != 'finetune': texts.append(trade_off_markdown(trade_off(rows, m, against, method=method), m, against, method))
            texts += [margins_markdown(rows, m, against, method), *(['\n'.join([*(f'- {n}' for n in notes), ''])] if notes else [])]
            store.write(out/f'trade_off_{m}.md', '\n'.join(texts))
    return table


class LiveWatch(Watch):
    "A progress bar over the study and one over the run at work; a line a run where the output is no terminal"

    def __init__(self,
        console:Console|None=None, # Of rich; standard output by default
    ):
        self.console = console or Console()
        self.bars = Progress(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(20), TextColumn('{task.fields[where]}'),
                             TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *_): self.bars.stop()

    def plan(self, runs:list)->None:
        self.n, self.ended, self.failed, self.best = len(runs), 0, 0, None
        self.study = self.bars.add_task('study', total=sum(run_cost(asdict(r)) for r in runs), where=f'0/{self.n} runs')
        self.now = self.bars.add_task('', total=1, where='')

    def start(self, what:object, epochs:int)->None:
        self.epochs = max(1, epochs)
        self.bars.reset(self.now, description=what if isinstance(what, str) else run_name(asdict(what)), total=self.epochs, where='')
        if not self.console.is_terminal and isinstance(what, str): self.say(f'{what}: {epochs} epochs')

    def epoch(self, epoch:int, done:float)->None: self.bars.update(self.now, completed=epoch + done, where=f'epoch {epoch + 1}/{self.epochs}')

    def running(self, pieces:list)->None:
        if not self.console.is_terminal: return
        text = '; '.join(f'{run_name(asdict(run))}: {n}/{run.epochs}' for run, n in pieces[:3]) + (f' and {len(pieces) - 3} more' if len(pieces) > 3 else '')
        self.bars.reset(self.now, description=f'{len(pieces)} running' if pieces else 'workers begin', total=max(1, sum(run.epochs for run, _ in pieces)), completed=sum(n for _, n in pieces), where=text)

    def done(self, row:dict, skipped:bool=False)->None:
        self.ended, self.failed = self.ended + 1, self.failed + (row['status'] != 'ok')
        if row['status'] == 'ok' and row['valid_acc1'] is not None: self.best = max(self.best or 0., row['valid_acc1'])
        where = f'{self.ended}/{self.n} runs' + (f', {self.failed} failed' if self.failed else '') + (f', best on valid {self.best:.1%}' if self.best is not None else '')
        self.bars.update(self.study, advance=run_cost(row), where=where)
        line = f'{self.ended}/{self.n} {run_name(row)}: '
        if row['status'] != 'ok': self.say(f'{line}{row["status"]}: {row["error"]}')
        elif not self.console.is_terminal:
            found = ', '.join(f'{name} {row[k]:.1%}' for name, k in dict(valid='valid_acc1', test='acc1', source='source_acc').items() if row[k] is not None)
            self.say(line + found + (' (finished before)' if skipped else f', {row["seconds"]:.1f} s'))

    def say(self, text:str)->None: self.console.print(text, highlight=False, markup=False, soft_wrap=True)
