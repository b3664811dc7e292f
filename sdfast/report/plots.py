"Learning against keeping, drawn on axes: the chosen strengths with their seeds, and each strategy's path of strengths."
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..metrics.columns import measure_title
from .clips import clips_of
from .looks import look, marks_of
from .paths import pareto_front
from .rows import final_runs, setting_name
from .summary import summary
from .trade_off import strength_paths

MANY = 14  # with more strategies than this, single seeds are not drawn
SHOWN_LOSS = .03  # settings whose target accuracy is more than this below the reference's best are not shown


def draw_untouched(
    ax:Axes, # Axes
    value:float|None, # In %; nothing is drawn without one
)->None:
    "Draw a dashed line at the untouched encoder's value"
    if value is None: return
    ax.axhline(value, color='grey', ls='--', lw=1)
    ax.annotate('untouched', (.01, value), xycoords=('axes fraction', 'data'), va='bottom', color='grey', fontsize=8,
                annotation_clip=True)


def _label_axes(ax, m, untouched, rows):
    draw_untouched(ax, None if untouched is None else 100*untouched)
    ax.set(xlabel=f'learned: target accuracy in %{clips_of(rows, "acc1")}',
           ylabel=f'kept: {measure_title(m)} in %{clips_of(rows, m)}')
    ax.grid(alpha=.3)


# ---- chosen strengths

def draw_means(
    ax:Axes, # Axes
    rows:pd.DataFrame, # From `compare`
    m:str, # A measure of the source
    table:pd.DataFrame|None=None, # The `summary` of the rows
    named:bool=False, # Whether names stand next to the points instead of in a legend, which is no help with many
)->pd.DataFrame: # The numbers that are drawn
    "Draw target accuracy against a measure: each seed, and the means with 95 % intervals"
    table = (summary(rows) if table is None else table).set_index('strategy')
    final = final_runs(rows)
    final = final[(final.status == 'ok') & (final.strategy != 'untouched')]
    many = len(table) > MANY
    for strategy, runs in final.groupby('strategy', sort=False):
        with marks_of(ax, str(strategy)):
            if not many: _draw_seeds(ax, runs, m, strategy)
            elif named: _draw_name(ax, table.loc[strategy], m, strategy)
            _draw_mean(ax, table.loc[strategy], m, strategy, small=many)
    means = table[table.index != 'untouched']
    if not named: _leave_out_far_points(ax, 100*means[['acc1', m]].dropna())
    _label_axes(ax, m, table.loc['untouched', m] if 'untouched' in table.index else None, rows)
    return means[[f'{c}{end}' for c in ('acc1', m) for end in ('', '_low', '_high')]].reset_index()


def _draw_seeds(ax, runs, m, strategy):
    colour, marker = look(strategy)
    ax.plot(100*runs.acc1.astype(float), 100*runs[m].astype(float), marker, ms=4, color=colour, alpha=.3, lw=0)


def _draw_name(ax, row, m, strategy):
    colour, _ = look(strategy)
    ax.annotate(strategy, (100*row.acc1, 100*row[m]), xytext=(5, 4), textcoords='offset points', fontsize=7,
                color=colour)


def _draw_mean(ax, row, m, strategy, small):
    colour, marker = look(strategy)
    size = dict(ms=5, lw=.6, capsize=0) if small else dict(ms=8, capsize=3)
    ax.errorbar(100*row.acc1, 100*row[m], xerr=_error(row, 'acc1'), yerr=_error(row, m), fmt=marker, color=colour,
                label=strategy, **size)


def _error(row, m):
    "Lengths of an error bar in points, in matplotlib's form; `None` if there is no interval"
    if pd.isna(row[f'{m}_low']): return None
    return [[100*(row[m] - row[f'{m}_low'])], [100*(row[f'{m}_high'] - row[m])]]


def _leave_out_far_points(ax, points):
    "Leave out means far below the others (Tukey's fence of 3 quartile ranges), which would squeeze them; name these"
    low, high = points.quantile(.25), points.quantile(.75)
    far = (points < low - 3*(high - low)).any(axis=1)
    if len(points) < 8 or not far.any(): return
    near = points[~far]
    pad = .12*(near.max() - near.min() + .2)
    ax.set_xlim(near.iloc[:, 0].min() - pad.iloc[0], near.iloc[:, 0].max() + pad.iloc[0])
    ax.set_ylim(near.iloc[:, 1].min() - pad.iloc[1], near.iloc[:, 1].max() + pad.iloc[1])
    _note(ax, f'outside: {", ".join(points.index[far])}')


def _note(ax, text): ax.annotate(text, (.01, .01), xycoords='axes fraction', fontsize=7, color='grey')


# ---- paths of strengths

def draw_paths(
    ax:Axes, # Axes
    rows:pd.DataFrame, # From `compare` with all strengths run to the end
    m:str, # A measure of the source
    reference:str='finetune', # Strategy that is λ 0 of the others
)->pd.DataFrame: # The numbers that are drawn
    """Draw each strategy's path of strengths, means over seeds, from hollow (weak) over its chosen strength (large)
    to the strongest.

    The grey steps are the Pareto front."""
    chosen = final_runs(rows).drop_duplicates('strategy').set_index('strategy')
    paths = strength_paths(rows, m, reference)
    drawn = _path_points(paths, chosen, m)
    points = 100*drawn[['acc1', m]].to_numpy()
    # settings that hardly learned would squeeze all others into a corner
    least = 100*(np.nanmax(paths[reference].learned.mean(0)) - SHOWN_LOSS)
    good = points[points[:, 0] >= least]
    untouched = chosen[m].get('untouched')
    _limit(ax.set_xlim, good[:, 0])
    _limit(ax.set_ylim, good[:, 1], 0 if untouched is None else 100*float(untouched))
    _draw_front(ax, points[drawn.front])
    for strategy, path in drawn.groupby('strategy', sort=False): _draw_path(ax, path, m, strategy)
    n_hidden = int((~np.isnan(points).any(1)).sum()) - len(good)
    if n_hidden: _note(ax, f'{n_hidden} more learned too little to be shown')
    _label_axes(ax, m, untouched, rows)
    return drawn


def _path_points(paths, chosen, m):
    "A row for each setting: its mean target accuracy and measure, whether it was chosen, whether it is on the front"
    out = []
    for strategy, path in paths.items():
        choice = chosen.lam[strategy], chosen.lr[strategy]
        for setting, learned, kept in zip(path.settings, path.learned.mean(0), path.kept.mean(0)):
            point = {'acc1': learned, m: kept, 'chosen': setting == choice}
            out.append(dict(strategy=strategy, setting=setting_name(strategy, *setting)) | point)
    points = pd.DataFrame(out)
    points['front'] = pareto_front(points.acc1, points[m])
    return points


def _limit(set_limits, values, at_least=0):
    low, high = np.nanmin(values), max(np.nanmax(values), at_least)
    pad = .08*(high - low + .1)
    set_limits(low - pad, high + pad)


def _draw_front(ax, front):
    "Draw steps from the left edge, at the height of the first point, to the bottom edge below the last one"
    front = front[np.argsort(front[:, 0])]
    (left, _), (bottom, _) = ax.get_xlim(), ax.get_ylim()
    x = [min(left, front[0, 0]), *front[:, 0], front[-1, 0]]
    y = [front[0, 1], *front[:, 1], min(bottom, front[-1, 1])]
    ax.step(x, y, where='pre', color='grey', lw=5, alpha=.25, zorder=0, label='Pareto front')


def _draw_path(ax, path, m, strategy):
    x, y = 100*path.acc1, 100*path[m]
    colour, marker = look(strategy)
    style = dict(marker=marker, color=colour)
    with marks_of(ax, strategy):
        ax.plot(x, y, ms=4, lw=1, alpha=.8, label=strategy, **style)
        ax.plot(x[:1], y[:1], ms=4, mfc='white', lw=0, **style)
        ax.plot(x[path.chosen], y[path.chosen], ms=10, lw=0, **style)
