"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..metrics.columns import measure_title
from ..stats import pareto_front
from ..strategies.registry import STRATEGIES
from .summary import PANELS, final_runs, setting_name, strength_paths, summary

__all__ = ['figure', 'path_figure']

# Okabe & Ito's colours, told apart by every kind of colour vision; markers tell them apart without colour
COLOURS, MARKERS = ('#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7A7A00', '#46237A'), 'o^vDPX*<>hp8dH'
_FIRST = ['self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc', 'lower_lr', 'linear_probe', 'lp_ft']  # each has a colour of its own
_OTHER = (3, 4, 7, 0, 1, 6, 5, 2)  # the colour for a marker's second use, which no kind of colour vision takes for the first
LOOKS = {s:(COLOURS[i % 8 if i < len(MARKERS) else _OTHER[(i - len(MARKERS)) % 8]], MARKERS[i % len(MARKERS)]) for i, s in enumerate([*_FIRST, *(s for s in STRATEGIES if s not in _FIRST)])} | dict(finetune=('#000000', 's'))


def look(name:str)->tuple[str, str]:
    "Colour and marker of a strategy; with options behind its name, one that follows from them"
    if name in LOOKS: return LOOKS[name]
    at = sum(name.encode())
    return COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]


def _panels(ax, m, untouched):
    if untouched is not None:
        ax.axhline(100*untouched, color='grey', ls='--', lw=1)
        ax.annotate('untouched', (.01, 100*untouched), xycoords=('axes fraction', 'data'), va='bottom', color='grey', fontsize=8, annotation_clip=True)
    ax.set(xlabel='learned: target accuracy in %', ylabel=f'kept: {measure_title(m)} in %')
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
    final, table = final_runs(rows), (summary(rows) if table is None else table).set_index('strategy')
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
    chosen, paths = final_runs(rows).drop_duplicates('strategy').set_index('strategy'), strength_paths(rows, m, reference)
    drawn = pd.DataFrame([dict(strategy=s, setting=setting_name(s, *at), acc1=x, **{m:y}, chosen=at == (chosen.lam[s], chosen.lr[s]))
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
