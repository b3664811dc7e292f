"""Every plot of a study, drawn once: as panels for the page (SVG whose colours follow light and dark) and as figures for papers (PDF, PNG)."""
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from ..metrics.columns import MEASURES, measure_title
from ..stats import mean_interval
from .plots import COLOURS, draw_means, draw_paths, look, marks_of
from .results import Results
from .summary import PANELS, final_runs, has_strength, strength_paths, summary

__all__ = ['Plot', 'plots', 'write_figures']

# class names may hold a $; ids are the same at each drawing; fonts are the page's
RC = {'text.parse_math': False, 'svg.fonttype': 'none', 'svg.hashsalt': 'sdfast', 'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False,
      'axes.linewidth': .8, 'axes.axisbelow': True, 'legend.frameon': False, 'pdf.fonttype': 42}
SHEET = dict({c:f'c{i}' for i, c in enumerate(COLOURS)}, **{'#000000':'ink', '#808080':'muted', '#ffffff':'surface', '#b0b0b0':'grid'})  # colour -> variable of the page
HEAT = 'cividis'  # reads the same with every kind of colour vision


@dataclass
class Plot:
    "Panels that belong together"
    name: str  # of its files
    title: str  # above the panels
    about: str  # how to read it
    panels: dict[str, Callable]  # title -> function that draws on axes and returns the numbers it drew
    series: list = field(default_factory=list)  # strategies, for a legend
    size: tuple = (4.6, 3.7)  # of a panel, inches
    columns: int = 2  # panels beside each other
    heat: float|None = None  # the largest value, where colours are values


def plots(
    r:Results, # From `load_results`
    table:pd.DataFrame, # Its `summary`
    reference:str='finetune', # What strategies are compared with
)->list[Plot]: # Those for which the study recorded what they show
    "All plots of a study"
    names, out = [s for s in table.strategy if s != 'untouched'], []
    kept = [m for m in PANELS if m in table and table[m].notna().any()]
    paths = len(final_runs(r.rows, chosen=False)) > len(final_runs(r.rows))
    if paths: out.append(Plot('paths', 'Every strength of every strategy', 'Up is more kept, right is more learned. A path leads from plain fine-tuning or the weakest strength (hollow) over the chosen '
                              'one (large) to the strongest; means over seeds. The grey steps are the Pareto front: what lies below and left of it is beaten in both.',
                              {MEASURES[m].title:partial(draw_paths, rows=r.rows, m=m, reference=reference) for m in kept}, names))
    out.append(Plot('means', 'Chosen strengths', ('Means over seeds' if len(table) > 14 else 'Each seed (faint) and the mean over seeds') + ' with 95 % intervals in both directions. Up is more kept, right is more learned.',
                    {MEASURES[m].title:partial(draw_means, rows=r.rows, m=m, table=table) for m in kept}, names))
    if paths: panels = {MEASURES[m].title:partial(_strengths, rows=r.rows, table=table, m=m, reference=reference) for m in ('acc1', *kept)}
    else: panels = {'target accuracy on valid, trials':partial(_trials, rows=r.rows, table=table, reference=reference)}
    graded = [s for s in names if has_strength(s) and r.rows[r.rows.strategy == s].lam.nunique() > 1]
    what = f'Means over seeds with 95 % intervals; the band is {reference} with its own.' if paths else f'The trials from which strengths were chosen; the line is {reference} at its chosen learning rate.'
    if graded: out.append(Plot('strengths', 'What λ does', what, panels, [*graded, reference], columns=len(panels)))
    if len(r.course):
        columns = {k:t for k, t in dict(source_acc='source, old head', cka='CKA with the untouched encoder').items() if k in r.course}
        out.append(Plot('course', 'Epoch by epoch', 'What the encoder keeps after each epoch, on a sample of the source\'s test videos; means over seeds with 95 % intervals.',
                        {t:partial(_course, course=r.course, m=k) for k, t in columns.items()}, [s for s in names if s in set(r.course.strategy)]))
    for of, against in dict(source='the untouched encoder', target=reference).items():
        t = r.classes(of)
        if t.shape[1]: out.append(Plot(f'classes_{of}', f'{of.capitalize()} classes', f'Change of each class\'s accuracy against {against}, means over seeds' + (f'; the {ROWS} that {reference} '
                                       + ('forgot most and least' if of == 'source' else 'is furthest from') if len(t) > ROWS else '') + '. Left of the line is lost.',
                                       {f'{of} accuracy by class':partial(_classes, t=t)}, list(t), (4.6, .9 + .22*min(len(t), ROWS + 1)), 1))
    if len(r.course) and any(c.startswith('layers.') and c.endswith('.drift') for c in r.course):
        top = float(_drift(r.course).max().max())
        out.append(Plot('drift', 'Where features moved', 'Drift ‖f − f₀‖ / ‖f₀‖ of each layer\'s output (rows, first layer on top) after each epoch (columns), mean over seeds.',
                        {s:partial(_layers, drift=_drift(r.course[r.course.strategy == s]), top=top) for s in names if s in set(r.course.strategy)}, size=(2.5, 2.3), columns=3, heat=top))
    return out


def _errors(ax, x, ivs, strategy, scale=100, shift=0.):
    colour, marker = look(strategy)
    low, high = (np.nan_to_num([abs(getattr(i, end) - i.mean) for i in ivs])*scale for end in ('low', 'high'))
    with marks_of(ax, strategy): ax.errorbar(np.add(x, shift), [scale*i.mean for i in ivs], yerr=[low, high], color=colour, marker=marker, ms=5, lw=1.2, elinewidth=.8, capsize=2, label=strategy)
    return [dict(strategy=strategy, at=a, mean=i.mean, low=i.low, high=i.high, seeds=i.n) for a, i in zip(x, ivs)]


def _band(ax, row, m, reference):
    with marks_of(ax, reference):
        if pd.notna(row[f'{m}_low']): ax.axhspan(100*row[f'{m}_low'], 100*row[f'{m}_high'], color='#808080', alpha=.22, lw=0)
        ax.axhline(100*row[m], color='#000000', lw=1)


def _log(ax, label):
    ax.set(xscale='log', xlabel='λ', ylabel=label)
    ax.xaxis.set(major_formatter='{x:g}', minor_formatter='')
    ax.grid(alpha=.3)


def _strengths(ax, rows, table, m, reference):
    "A metric against lambda; the band is the reference"
    by, drawn, other = table.set_index('strategy'), [], m if m != 'acc1' else PANELS[1]
    _band(ax, by.loc[reference], m, reference)
    for s, (x, y, settings) in strength_paths(rows, other, reference).items():
        if not has_strength(s): continue
        at = [i for i, (lam, _) in enumerate(settings) if lam > 0]
        drawn += _errors(ax, [settings[i][0] for i in at], [mean_interval((x if m == 'acc1' else y)[:, i]) for i in at], s)
    if m != 'acc1' and 'untouched' in by.index:
        ax.axhline(100*by.loc['untouched', m], color='grey', ls='--', lw=1)
        ax.annotate('untouched', (.01, 100*by.loc['untouched', m]), xycoords=('axes fraction', 'data'), va='bottom', color='grey', fontsize=8, annotation_clip=True)
    _log(ax, f'{MEASURES[m].title} in %')
    return pd.DataFrame(drawn).rename(columns=dict(at='λ', mean=m))


def _trials(ax, rows, table, reference):
    "Accuracy on valid against lambda, where only the chosen strength was run to the end"
    trials, drawn, chosen = rows[~rows.final & (rows.status == 'ok')], [], table.set_index('strategy')
    base = mean_interval(trials[(trials.strategy == reference) & (trials.lr == chosen.lr[reference])].valid_acc1.astype(float))
    _band(ax, dict(v=base.mean, v_low=base.low, v_high=base.high), 'v', reference)
    for s, g in trials.groupby('strategy', sort=False):
        if has_strength(s): drawn += _errors(ax, sorted(g.lam.unique()), [mean_interval(v.astype(float)) for _, v in g.groupby('lam').valid_acc1], s)
    _log(ax, 'target accuracy on valid in %')
    return pd.DataFrame(drawn).rename(columns=dict(at='λ', mean='valid_acc1'))


def _course(ax, course, m):
    "A metric after each epoch"
    drawn, scale = [], 100 if m == 'source_acc' else 1
    for i, (s, g) in enumerate(course.groupby('strategy', sort=False)):
        by = g.groupby('epoch')[m]
        shift = .3*((i + .5)/course.strategy.nunique() - .5)  # intervals beside each other
        drawn += _errors(ax, [int(e) + 1 for e in by.groups], [mean_interval(v) for _, v in by], s, scale, shift)
    ax.set(xlabel='epoch', ylabel=f'{measure_title(m)}' + (' in %' if scale == 100 else ''))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=.3)
    return pd.DataFrame(drawn).rename(columns=dict(at='epoch', mean=m))


ROWS = 20  # classes to draw


def _classes(ax, t):
    "Change of each class, a row a class, a marker a strategy"
    shown = t if len(t) <= ROWS else pd.concat([t.head(ROWS*3//4), t.tail(ROWS - ROWS*3//4)])
    y = np.arange(len(shown), dtype=float)
    if len(t) > ROWS: y[ROWS*3//4:] += 1  # a gap for those left out
    for at in y: ax.axhline(at, color='#808080', alpha=.2, lw=.6)
    ax.axvline(0, color='#000000', lw=1)
    for i, s in enumerate(shown):
        colour, marker = look(s)
        with marks_of(ax, s): ax.plot(100*shown[s], y + .36*((i + .5)/shown.shape[1] - .5), marker, ms=5, color=colour, alpha=.85, lw=0, label=s)
    ax.set_yticks(y, [n if len(n) < 26 else n[:24] + '…' for n in map(str, shown.index)])
    if len(t) > ROWS: ax.annotate(f'{len(t) - ROWS} more', (0, ROWS*3//4), textcoords='offset points', xytext=(-4, 0), xycoords=('axes fraction', 'data'), ha='right', va='center', color='grey', fontsize=8)
    ax.set(xlabel='change in points', ylim=(y[-1] + .7, -.7))
    ax.tick_params(axis='y', length=0)
    ax.spines['left'].set_visible(False)
    return t.rename_axis('class').reset_index()


def _drift(course):
    "Layers (rows, in order) by epochs"
    d = course[[c for c in course if c.startswith('layers.') and c.endswith('.drift')]].rename(columns=lambda c: c.removeprefix('layers.').removesuffix('.drift'))
    return d.groupby(course.epoch + 1).mean().T


def _layers(ax, drift, top):
    "Drift of layers by epochs as a heat map"
    ax.pcolormesh(np.arange(drift.shape[1] + 1) + .5, np.arange(len(drift) + 1) - .5, drift, cmap=HEAT, vmin=0, vmax=top or 1, edgecolors='#ffffff', lw=.5)
    step = -(-len(drift)//12)
    ax.set_yticks(range(0, len(drift), step), [n if len(n) < 15 else '…' + n[-13:] for n in drift.index[::step]])
    ax.set(xlabel='epoch', ylim=(len(drift) - .5, -.5), xlim=(.5, drift.shape[1] + .5))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.tick_params(length=0)
    for s in ax.spines.values(): s.set_visible(False)
    return drift.rename_axis('layer').rename(columns=lambda e: f'epoch {e}').reset_index()


def svg(
    plot:Plot,
    panel:str, # Its title
    prefix:str, # Makes ids unique on a page
    alt:str, # What a screen reader says
)->tuple[str, pd.DataFrame]: # A panel as inline SVG, and the numbers it shows
    """Draw a panel with the page's own fonts and colours: `currentColor` and CSS variables `--c0`... stand for those of `SHEET`. Marks of a
    strategy are groups with `data-s`. All text is escaped by matplotlib"""
    with rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph')  # the browser has the letters that matplotlib's font lacks
        fig = Figure(figsize=plot.size, layout='constrained')
        numbers = plot.panels[panel](fig.subplots())
        fig.patch.set_alpha(0)
        fig.axes[0].patch.set_alpha(0)
        file = io.StringIO()
        FigureCanvasSVG(fig).print_svg(file, metadata=dict(Date=None, Creator=None, Format=None, Type=None))
    s = file.getvalue()
    s = s[s.index('<svg'):]
    s = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', s, flags=re.S)
    s = re.sub(r'<g id="series-([^"]*)"', r'<g data-s="\1"', s)
    s = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', s)
    names = {x.lower():n for x, n in SHEET.items()}
    def style(m): return re.sub(r'#[0-9a-f]{6}\b', lambda c: f'var(--{names[c[0]]})' if c[0] in names else c[0], re.sub(r"font-family: [^;\"]*;? ?", '', m[0]))
    s = re.sub(r'style="[^"]*"', style, s)
    w, h = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', s).groups()
    head = f'<svg class="plot" role="img" aria-labelledby="{prefix}-t" viewBox="0 0 {w} {h}" style="--w: {float(w):.0f}" xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{prefix}-t">{_escape(alt)}</title>'
    return head + s[s.index('>') + 1:].strip(), numbers


def _escape(t): return t.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def static(plot:Plot, title:str='')->Figure:
    "All panels of a plot as one figure, with a legend"
    rows = -(-len(plot.panels)//(cols := min(plot.columns, len(plot.panels))))
    fig = Figure(figsize=(cols*plot.size[0] + 1.6, max(rows*plot.size[1], .17*len(plot.series)) + .3*bool(title)), layout='constrained')
    axes = list(fig.subplots(rows, cols, squeeze=False).flat)
    for ax, (name, draw) in zip(axes, plot.panels.items()):
        draw(ax)
        if len(plot.panels) > 1: ax.set_title(name, fontsize=10)
    for ax in axes[len(plot.panels):]: ax.set_axis_off()
    if plot.series:
        lines = [Line2D([], [], color=c, marker=m, lw=1, ms=6, label=s) for s in plot.series for c, m in [look(s)]]
        if plot.name == 'paths': lines.append(Line2D([], [], color='grey', lw=5, alpha=.25, label='Pareto front'))
        fig.legend(handles=lines, fontsize=8, loc='outside right center')
    if plot.heat is not None: fig.colorbar(ScalarMappable(Normalize(0, plot.heat), HEAT), ax=fig.axes, label='drift', shrink=.7)
    if title: fig.suptitle(title, fontsize=10)
    return fig


def write_figures(
    r:Results, # From `load_results`
    out:str|Path, # Folder, made if it is not there
    table:pd.DataFrame|None=None, # Its `summary`
    title:str='', # Above each plot
    suffix:str='', # Behind the files' names
)->list[Path]: # The files
    "Each plot as PDF (vector, fonts embedded) and PNG (200 dots per inch)"
    out, files = Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    for plot in plots(r, summary(r.rows) if table is None else table):
        with rc_context(RC), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Glyph')
            fig = static(plot, title)
            for end, kw in dict(pdf=dict(metadata=dict(CreationDate=None)), png=dict(dpi=200)).items():
                files.append(out/f'{plot.name}{suffix}.{end}')
                fig.savefig(files[-1], **kw)
    return files


def swatch(strategy:str)->str:
    "A strategy's marker as inline SVG, as legends have it"
    colour, marker = look(strategy)
    style = MarkerStyle(marker)
    (polygon, *_) = style.get_path().transformed(style.get_transform()).to_polygons()
    polygon = polygon/np.abs(polygon).max()*5
    points = ' '.join(f'{x:.1f},{-y:.1f}' for x, y in polygon)
    return f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true"><polygon points="{points}" style="fill: var(--{SHEET[colour]})"/></svg>'
