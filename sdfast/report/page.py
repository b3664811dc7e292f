"""The page of a study, one HTML file that opens offline: tables, plots, what was forgotten, and how to repeat it.

This module only lays out the results of `summary`, `trade_off` and `results`. The template escapes all text, and the
page's Content Security Policy forbids all requests and all scripts but its own.
"""
import base64
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex

from ..data.text import from_markdown
from ..metrics.columns import REPORTED, measure_title
from ..runtime import store
from .curves import HEAT
from .figures import write_figures
from .film import film_strip
from .load import load_results
from .panels import plots
from .prose import SIGNS, facts, findings, lead, missing_answers, page_title, study_title
from .rows import PANELS, has_all_strengths, retain_text, setting_name
from .summary import summary
from .svg import svg, swatch
from .tables import MAIN, frame_table, strategy_caption, strategy_table, trade_off_table
from .trade_off import trade_off

__all__ = ['write_page', 'html_page']

# section -> its name in the list of contents
CONTENTS = dict(
    table='Results', trade='Learning against keeping', strengths='Strength', course='Epochs',
    classes='What was forgotten', drift='Where it moved', failed='Failed runs', repeat='Repeat it')
# section -> names of its plots
PLOTS_OF = dict(
    trade=('paths', 'means'), strengths=('strengths',), course=('course',),
    classes=('classes_source', 'classes_target'), drift=('drift',))
OF_ONE_RUN = ('strategy', 'strategy_args', 'lam', 'lr', 'seed', 'final')  # settings that runs of a study do not share


def write_page(
    folders:str|Path|Sequence, # Folders of one or more studies; those with the same set-up are merged
    out:str|Path|None=None, # File to write, by default `report.html` in the first folder
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
    figures:bool=True, # Also write each plot as PDF and PNG to `figures/` next to the page
)->Path: # The page
    "Write a study's page from its files alone. Raises `InputError` for a folder that holds no finished comparison"
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    out = Path(out or Path(folders[0])/'report.html')
    studies = load_results(*folders)
    tables = [_summary(r, method) for r in studies]
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write(out, html_page(studies, tables, method))
    if figures:
        for i, (r, table) in enumerate(zip(studies, tables)):
            suffix = f'_{i + 1}' if len(studies) > 1 else ''
            write_figures(r, out.parent/'figures', table, study_title(r), suffix)
    return out


def _summary(r, method):
    "The summary, without McNemar's test where there are no scores"
    table = summary(r.rows, method=method, folder=r.folders)
    has_test = 'mcnemar' in table and table.mcnemar.notna().any()
    return table if has_test else table.drop(columns='mcnemar', errors='ignore')


def html_page(
    studies:list, # Of `Results`
    tables:list, # The `summary` of each
    method:str='holm', # How p values were adjusted
)->str: # HTML that needs no other file
    "Make the page as text"
    script = _asset('page.js').replace('</', '<\\/')
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    env.filters |= dict(breakable=_breakable, sort_value=_sort_value, sign=lambda verdict: SIGNS.get(verdict, ''))
    parts = [_study(r, table, method, f's{i + 1}') for i, (r, table) in enumerate(zip(studies, tables))]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return env.from_string(_asset('page.html.jinja')).render(
        title=page_title(studies), studies=parts, css=Markup(_asset('page.css')), js=Markup(script), hash=script_hash,
        version=version('sdfast'))


def _asset(name): return files('sdfast.report').joinpath(name).read_text(encoding='utf-8')


def _breakable(name):
    "Allow line breaks after the underscores of a name"
    return Markup('_<wbr>').join(name.split('_'))


def _sort_value(cell):
    "The text by which the page sorts a cell"
    return '' if cell.value is None else f'{cell.value:.10g}'


def _study(r, table, method, id):
    "All that the template shows of a study"
    main = [m for m in MAIN if m in table]
    more = [m for m in REPORTED if m in table and m not in MAIN]
    shown = [m for m in (*main, *more, 'mcnemar') if m in table]
    to_copy = strategy_table(table, [*main, 'mcnemar'], r.notes, method)
    return dict(
        id=id, title=study_title(r), contents=list(CONTENTS.items()), lead=lead(r, table), found=findings(table, main),
        caption=strategy_caption(table, method, shown),
        main=strategy_table(table, main, title='What was learned and what was kept'),
        more=strategy_table(table, [*more, 'mcnemar'], title='All other measures'),
        swatches={s: Markup(swatch(s)) for s in table.strategy if s != 'untouched'},
        texts=_texts(to_copy) | dict(CSV=_csv(table)), notes=[from_markdown(n) for n in r.notes],
        trades=_trades(r, method, id), plots=_plots(r, table, id),
        missing=missing_answers(r), strips=_strips(r),
        n_runs=int((r.rows.strategy != 'untouched').sum()), failed=[_failure(r, run) for run in r.failed.itertuples()],
        command=_command(r), facts=facts(r),
        settings=[(name, value) for name, value in r.run.items() if name not in OF_ONE_RUN])


def _texts(table): return dict(Markdown=table.to_markdown(), LaTeX=table.to_latex())


def _csv(table): return table.to_csv(index=False, float_format='%.6g', lineterminator='\n')


def _plots(r, table, id):
    "Section -> its plots"
    shown = {plot.name: _plot(plot, f'{id}-{plot.name}') for plot in plots(r, table)}
    return {section: [shown[name] for name in names if name in shown] for section, names in PLOTS_OF.items()}


def _plot(plot, id):
    panels = []
    for i, name in enumerate(plot.panels):
        title = f'{plot.title}: {name}'
        image, numbers = svg(plot, name, f'{id}-{i + 1}', f'{title}. {plot.about}')
        panels.append(dict(title=name, svg=Markup(image), numbers=frame_table(numbers, title)))
    series = [dict(name=s, swatch=Markup(swatch(s))) for s in plot.series]
    return dict(name=plot.name, id=id, title=plot.title, about=plot.about, panels=panels, series=series,
                heat=_heat_scale(plot))


def _heat_scale(plot):
    "The legend of a heat map: its largest value and its colours; `None` for other plots"
    if not plot.heat: return None
    colours = matplotlib.colormaps[HEAT](np.linspace(0, 1, 9))
    return dict(top=f'{plot.heat:.3g}', colours=', '.join(map(to_hex, colours)))


def _trades(r, method, id):
    "Tables of what keeping costs, if all strengths were run to the end"
    if not has_all_strengths(r.rows): return []
    measured = [m for m in PANELS if m in r.rows and r.rows[m].notna().any()]
    return [_trade(r, m, method, f'{id}-trade-{i + 1}') for i, m in enumerate(measured)]


def _trade(r, m, method, id):
    "One of these tables, or why there is none"
    part = dict(name=measure_title(m), id=id, problem='')
    try: table = trade_off_table(trade_off(r.rows, m, method=method), m, method=method)
    except ValueError as e: return part | dict(problem=f'It cannot be computed: {e}.')
    return part | dict(table=table, texts=_texts(table))


def _strips(r):
    "Clips that plain fine-tuning forgot most and least"
    n_seeds = r.tuned.groupby('strategy').seed.nunique()
    out = []
    for name, clips in zip(('Most forgotten', 'Least forgotten'), r.clips()):
        if len(clips): out.append(dict(name=name, clips=[_strip(clip, n_seeds) for clip in clips.to_dict('records')]))
    return out


def _strip(clip, n_seeds):
    "A clip's frames, and how it was classified before and after fine-tuning"
    src, width, height = film_strip(clip['path']) or ('', 0, 0)
    right = []
    for column, n in clip.items():
        if not column.startswith('right.') or np.isnan(n): continue
        strategy = column.removeprefix('right.')
        right.append(f'{strategy} {int(n)}/{n_seeds[strategy]}')
    return dict(
        src=src, width=width, height=height, alt=f'Frames of a video of class {clip["label"]}', label=clip['label'],
        answer=clip['answer'], right=', '.join(right), before=f'{clip["before"]:.2f}', after=f'{clip["after"]:.2f}')


def _failure(r, run):
    "A row of the table of failed runs"
    return dict(
        strategy=run.strategy, setting=retain_text(run.strategy_args) or setting_name(run.strategy, run.lam, run.lr),
        seed=int(run.seed),
        stage='final' if run.final else 'trial', status=run.status, error='' if pd.isna(run.error) else run.error,
        log=r.text('runs', run.key, 'log.txt'))


def _command(r):
    "How to repeat the studies; '' if none recorded its command"
    return r.commands and dict(about='With another --out it starts from nothing.', text='\n'.join(r.commands))
