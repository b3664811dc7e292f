"Curves over strengths and epochs, and changes by class and by layer, drawn on axes."
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..metrics.columns import MEASURES, measure_title
from ..stats import mean_interval
from .clips import clip_counts, clips_of
from .looks import look, marks_of
from .plots import draw_untouched
from .rows import PANELS, has_strength
from .trade_off import strength_paths

HEAT = 'cividis'  # a colour map that looks the same with every kind of colour vision
N_CLASSES = 20  # largest number of classes to draw; if there are more, the first and the last ones
N_FIRST = 15  # number of first ones among these


def _draw_curve(ax, x, intervals, strategy, scale=100, shift=0.):
    "Draw means with error bars; returns a dict of the drawn numbers for each"
    colour, marker = look(strategy)
    means = [scale*i.mean for i in intervals]
    errors = [scale*np.nan_to_num([abs(getattr(i, end) - i.mean) for i in intervals]) for end in ('low', 'high')]
    with marks_of(ax, strategy):
        ax.errorbar(np.add(x, shift), means, yerr=errors, color=colour, marker=marker, ms=5, lw=1.2, elinewidth=.8,
                    capsize=2, label=strategy)
    return [dict(strategy=strategy, at=at, mean=i.mean, low=i.low, high=i.high, seeds=i.n)
            for at, i in zip(x, intervals)]


def _draw_band(ax, mean, low, high, strategy):
    "Draw a mean as a line and its interval as a band"
    with marks_of(ax, strategy):
        if pd.notna(low): ax.axhspan(100*low, 100*high, color='#808080', alpha=.22, lw=0)
        ax.axhline(100*mean, color='#000000', lw=1)


def _label_strengths(ax, label):
    ax.set(xscale='log', xlabel='λ', ylabel=label)
    ax.xaxis.set(major_formatter='{x:g}', minor_formatter='')
    ax.grid(alpha=.3)


def draw_strengths(
    ax:Axes, # Axes
    rows:pd.DataFrame, # From `compare` with all strengths run to the end
    table:pd.DataFrame, # Its `summary`
    m:str, # A measure
    reference:str='finetune', # Drawn as a band
)->pd.DataFrame: # The numbers that are drawn
    "Draw a measure against λ"
    by, drawn = table.set_index('strategy'), []
    base = by.loc[reference]
    _draw_band(ax, base[m], base[f'{m}_low'], base[f'{m}_high'], reference)
    is_target = m == 'acc1'
    for strategy, path in strength_paths(rows, PANELS[1] if is_target else m, reference).items():
        if not has_strength(strategy): continue
        values = path.learned if is_target else path.kept
        graded = [i for i, (lam, _) in enumerate(path.settings) if lam > 0]
        lams = [path.settings[i][0] for i in graded]
        drawn += _draw_curve(ax, lams, [mean_interval(values[:, i]) for i in graded], strategy)
    if not is_target and 'untouched' in by.index: draw_untouched(ax, 100*by[m]['untouched'])
    _label_strengths(ax, f'{MEASURES[m].title} in %{clips_of(rows, m)}')
    return pd.DataFrame(drawn).rename(columns=dict(at='λ', mean=m))


def draw_trials(
    ax:Axes, # Axes
    rows:pd.DataFrame, # From `compare`
    table:pd.DataFrame, # Its `summary`
    reference:str='finetune', # Drawn as a band, at its chosen learning rate
)->pd.DataFrame: # The numbers that are drawn
    "Draw accuracy on valid against λ, for studies in which only the chosen strengths were run to the end"
    trials = rows[~rows.final & (rows.status == 'ok')].astype(dict(valid_acc1=float))
    lr = table.set_index('strategy').lr[reference]
    base = mean_interval(trials[(trials.strategy == reference) & (trials.lr == lr)].valid_acc1)
    _draw_band(ax, base.mean, base.low, base.high, reference)
    drawn = []
    for strategy, runs in trials.groupby('strategy', sort=False):
        if not has_strength(str(strategy)): continue
        by_lam = runs.groupby('lam').valid_acc1
        drawn += _draw_curve(ax, sorted(runs.lam.unique()), [mean_interval(v) for _, v in by_lam], strategy)
    n = clip_counts(rows).get('valid_clips')
    _label_strengths(ax, 'target accuracy on valid in %' + (f' of {n} clips' if n else ''))
    return pd.DataFrame(drawn).rename(columns=dict(at='λ', mean='valid_acc1'))


def draw_course(
    ax:Axes, # Axes
    course:pd.DataFrame, # `Results.course`
    m:str, # One of its columns
)->pd.DataFrame: # The numbers that are drawn
    "Draw a measure after each epoch"
    drawn, n = [], course.strategy.nunique()
    scale = 100 if m == 'source_acc' else 1
    for i, (strategy, runs) in enumerate(course.groupby('strategy', sort=False)):
        by_epoch: Any = runs.groupby('epoch')[m]
        epochs = [int(epoch) + 1 for epoch in by_epoch.groups]
        shift = .3*((i + .5)/n - .5)  # error bars next to each other
        drawn += _draw_curve(ax, epochs, [mean_interval(v) for _, v in by_epoch], strategy, scale, shift)
    unit = ' in %' if scale == 100 else ''
    ax.set(xlabel='epoch', ylabel=measure_title(m) + unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=.3)
    return pd.DataFrame(drawn).rename(columns=dict(at='epoch', mean=m))


def draw_classes(
    ax:Axes, # Axes
    change:pd.DataFrame, # From `Results.classes`
)->pd.DataFrame: # The same numbers
    "Draw the change of each class's accuracy: a row for each class, a marker for each strategy"
    shown, y = _shown_classes(change)
    for at in y: ax.axhline(at, color='#808080', alpha=.2, lw=.6)
    ax.axvline(0, color='#000000', lw=1)
    for i, strategy in enumerate(shown):
        colour, marker = look(strategy)
        shift = .36*((i + .5)/shown.shape[1] - .5)
        with marks_of(ax, strategy):
            ax.plot(100*shown[strategy], y + shift, marker, ms=5, color=colour, alpha=.85, lw=0, label=strategy)
    ax.set_yticks(y, [_cut(str(name), 25) for name in shown.index])
    n_hidden = len(change) - len(shown)
    if n_hidden:
        ax.annotate(f'{n_hidden} more', (0, N_FIRST), textcoords='offset points', xytext=(-4, 0),
                    xycoords=('axes fraction', 'data'), ha='right', va='center', color='grey', fontsize=8)
    ax.set(xlabel='change in points', ylim=(y[-1] + .7, -.7))
    ax.tick_params(axis='y', length=0)
    ax.spines['left'].set_visible(False)
    return change.rename_axis('class').reset_index()


def _shown_classes(change):
    "The first and the last classes, and their positions, with a gap for those left out"
    if len(change) <= N_CLASSES: return change, np.arange(len(change), dtype=float)
    y = np.arange(N_CLASSES, dtype=float)
    y[N_FIRST:] += 1
    return pd.concat([change.head(N_FIRST), change.tail(N_CLASSES - N_FIRST)]), y


def _cut(text, n): return text if len(text) <= n else text[:n - 1] + '…'


def layer_drift(
    course:pd.DataFrame, # `Results.course`, or its rows of one strategy
)->pd.DataFrame: # A row for each layer in order, a column for each epoch; empty if it was not recorded
    "Drift of each layer's output after each epoch, mean over runs"
    columns = [c for c in course.columns if c.startswith('layers.') and c.endswith('.drift')]
    if not columns: return pd.DataFrame()
    drift = course[columns].rename(columns=lambda c: c.removeprefix('layers.').removesuffix('.drift'))
    return drift.groupby(course.epoch + 1).mean().T


def draw_drift(
    ax:Axes, # Axes
    drift:pd.DataFrame, # From `layer_drift`
    top:float, # Value of the last colour
)->pd.DataFrame: # The same numbers
    "Draw drift as a heat map, layers by epochs"
    n_layers, n_epochs = drift.shape
    x, y = np.arange(n_epochs + 1) + .5, np.arange(n_layers + 1) - .5
    ax.pcolormesh(x, y, drift, cmap=HEAT, vmin=0, vmax=top or 1, edgecolors='#ffffff', lw=.5)
    step = -(-n_layers//12)  # at most 12 layers are named
    names = [name if len(name) < 15 else '…' + name[-13:] for name in drift.index[::step]]
    ax.set_yticks(range(0, n_layers, step), names)
    ax.set(xlabel='epoch', xlim=(.5, n_epochs + .5), ylim=(n_layers - .5, -.5))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.tick_params(length=0)
    for spine in ax.spines.values(): spine.set_visible(False)
    return drift.rename_axis('layer').rename(columns=lambda epoch: f'epoch {epoch}').reset_index()
