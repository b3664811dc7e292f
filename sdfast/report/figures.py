"Figures for papers and READMEs: every plot of a study as PDF and PNG, and its two main plots side by side."
import io
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..runtime import store
from .curves import HEAT
from .looks import look
from .panels import Plot, plots
from .plots import MANY, draw_means, draw_paths
from .results import Results
from .rows import PANELS
from .summary import summary
from .svg import RC

__all__ = ['render', 'figure', 'path_figure', 'write_figures']


def render(
    fig:Figure, # Of matplotlib
    format:str='png', # Or pdf
    **options, # Of its `savefig`
)->bytes: # The content of a file
    "Render a figure in memory, so that it can be written as a whole or not at all"
    data = io.BytesIO()
    fig.savefig(data, format=format, **options)
    return data.getvalue()


def figure(
    rows:pd.DataFrame, # From `compare`
    title:str='', # Above it
)->Figure: # Of matplotlib
    "Draw target accuracy against source accuracy, by the old head and by a new probe, see `draw_means`"
    named = rows.strategy.nunique() > MANY
    draw = partial(draw_means, table=summary(rows), named=named)
    return _two_panels(draw, rows, title, not named, (13, 6.4) if named else (11, 4.6))


def path_figure(
    rows:pd.DataFrame, # From `compare` with all strengths run to the end
    title:str='', # Above it
    reference:str='finetune', # Strategy that is λ 0 of the others
)->Figure: # Of matplotlib
    "Draw target accuracy against source accuracy along each strategy's path of strengths, see `draw_paths`"
    return _two_panels(partial(draw_paths, reference=reference), rows, title, True, (11, 5))


def _two_panels(draw, rows, title, legend, size):
    "`draw` for both of `PANELS`, side by side"
    fig = Figure(figsize=size, layout='constrained')
    axes = fig.subplots(1, 2)
    for ax, m in zip(axes, PANELS): draw(ax, rows, m)
    if legend: fig.legend(*axes[1].get_legend_handles_labels(), fontsize=8, loc='outside right center')
    if title: fig.suptitle(title, fontsize=10)
    return fig


def static_figure(
    plot:Plot, # From `plots`
    title:str='', # Above it
)->Figure: # Of matplotlib
    "Draw all panels of a plot as one figure with a legend"
    n_columns = min(plot.columns, len(plot.panels))
    n_rows = -(-len(plot.panels)//n_columns)
    width = n_columns*plot.size[0] + 1.6
    height = max(n_rows*plot.size[1], .17*len(plot.series)) + (.3 if title else 0)
    fig = Figure(figsize=(width, height), layout='constrained')
    axes = list(fig.subplots(n_rows, n_columns, squeeze=False).flat)
    for ax, (name, draw) in zip(axes, plot.panels.items()):
        draw(ax)
        if len(plot.panels) > 1: ax.set_title(name, fontsize=10)
    for ax in axes[len(plot.panels):]: ax.set_axis_off()
    if plot.series: fig.legend(handles=_legend(plot), fontsize=8, loc='outside right center')
    if plot.heat is not None:
        fig.colorbar(ScalarMappable(Normalize(0, plot.heat), HEAT), ax=fig.axes, label='drift', shrink=.7)
    if title: fig.suptitle(title, fontsize=10)
    return fig


def _legend(plot):
    lines = []
    for strategy in plot.series:
        colour, marker = look(strategy)
        lines.append(Line2D([], [], color=colour, marker=marker, lw=1, ms=6, label=strategy))
    if plot.name == 'paths': lines.append(Line2D([], [], color='grey', lw=5, alpha=.25, label='Pareto front'))
    return lines


def write_figures(
    r:Results, # From `load_results`
    out:str|Path, # Folder, created if it does not exist
    table:pd.DataFrame|None=None, # Its `summary`
    title:str='', # Above each plot
    suffix:str='', # At the end of the files' names
)->list[Path]: # The files
    "Write each plot as PDF (vector, fonts embedded) and PNG (200 dots per inch)"
    out, files = Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    formats: dict[str, dict[str, Any]] = dict(pdf=dict(metadata=dict(CreationDate=None)), png=dict(dpi=200))
    for plot in plots(r, summary(r.rows) if table is None else table):
        with rc_context(RC), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Glyph')  # letters that matplotlib's font lacks
            fig = static_figure(plot, title)
            for end, options in formats.items():
                files.append(out/f'{plot.name}{suffix}.{end}')
                store.write(files[-1], render(fig, end, **options))
    return files
