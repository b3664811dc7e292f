"""One HTML file per study that opens offline: tables, plots, what was forgotten, and how to repeat it.

All numbers come from `report`, `stats` and `results`; here they are only laid out. All text is escaped, and the page's Content Security
Policy forbids every request and every script but its own."""
import base64
import hashlib
import io
import warnings
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
from PIL import Image

from ..data.text import from_markdown
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from ..metrics.columns import REPORTED, measure_title
from .panels import HEAT, plots, svg, swatch, write_figures
from .results import load_results
from .summary import PANELS, final_runs, setting_name, summary, trade_off
from .table import MISSING
from .tables import frame_table, strategy_caption, strategy_cell, strategy_table, trade_off_table

__all__ = ['write_page', 'html_page', 'film_strip']

MAIN = ('acc1', 'source_acc', 'source_probe')
SIGNS = {'better':'▲ ', 'worse':'▼ ', 'not distinguishable':'≈ '}  # told apart without colour
CONTENTS = dict(table='Results', trade='Learning against keeping', strengths='Strength', course='Epochs', classes='What was forgotten', drift='Where it moved',
                failed='Failed runs', repeat='Repeat it')
PARTS = dict(trade=('paths', 'means'), strengths=('strengths',), course=('course',), classes=('classes_source', 'classes_target'), drift=('drift',))


def write_page(
    folders:str|Path|Sequence, # Of one or more studies; those of one set-up are merged
    out:str|Path|None=None, # File to write, by default `report.html` in the first folder
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
    figures:bool=True, # Also write each plot as PDF and PNG to `figures/` beside the page
)->Path: # The page
    "Write a study's page from its files alone. Raises `InputError` for a folder that holds no finished comparison"
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    out, studies = Path(out or Path(folders[0])/'report.html'), load_results(*folders)
    tables = [summary(r.rows, method=method, folder=r.folders) for r in studies]
    tables = [t.drop(columns='mcnemar') if t.get('mcnemar', pd.Series([0])).isna().all() else t for t in tables]  # without scores there is no such test
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html_page(studies, tables, method), encoding='utf-8')
    if figures:
        for i, (r, t) in enumerate(zip(studies, tables)): write_figures(r, out.parent/'figures', t, _title(r), f'_{i + 1}' if len(studies) > 1 else '')
    return out


def html_page(
    studies:list, # Of `Results`
    tables:list, # The `summary` of each
    method:str='holm', # As there
)->str: # HTML that needs no other file
    "The page as text"
    def asset(name): return files('sdfast.report').joinpath(name).read_text(encoding='utf-8')
    js = asset('page.js').replace('</', '<\\/')
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    parts = [_study(r, t, method, f's{i + 1}') for i, (r, t) in enumerate(zip(studies, tables))]
    first = studies[0].rows
    title = f'What does {first.model.iloc[0]} forget of {first.source.iloc[0]} when it learns {_target_name(studies[0])}?' if len(studies) == 1 else f'What was learned and what was forgotten: {len(studies)} studies'
    env.filters |= dict(breakable=breakable, sort_value=sort_value, sign=lambda verdict: SIGNS.get(verdict, ''))
    return env.from_string(asset('page.html.jinja')).render(title=title, studies=parts, css=Markup(asset('page.css')), js=Markup(js), version=version('sdfast'),
                                                            hash=base64.b64encode(hashlib.sha256(js.encode()).digest()).decode())


def _target_name(r):
    task, source = (r.rows[c].iloc[0] for c in ('task', 'source'))
    return task if task != source else 'its target task'  # moving_digits is both


def _title(r): return '{} → {}, {}'.format(*(r.rows[c].dropna().iloc[0] for c in ('source', 'task', 'model')))


def _study(r, table, method, id):
    main, more = [m for m in MAIN if m in table], [m for m in REPORTED if m in table and m not in MAIN]
    shown = {p.name:_plot(p, f'{id}-{p.name}') for p in plots(r, table)}
    n_runs = int((r.rows.strategy != 'untouched').sum())
    to_copy = strategy_table(table, [*main, 'mcnemar'], r.notes, method)
    return dict(
        id=id, title=_title(r), lead=_lead(r, table), found=_found(table, main), contents=list(CONTENTS.items()), caption=strategy_caption(table, method, 'mcnemar' in table), n_runs=n_runs,
        main=strategy_table(table, main, title='What was learned and what was kept'), more=strategy_table(table, [*more, 'mcnemar'], title='All other measures'),
        swatches={s:Markup(swatch(s)) for s in table.strategy if s != 'untouched'},
        texts=_texts(to_copy), notes=[from_markdown(n) for n in r.notes], trades=_trades(r, method, id),
        plots={k:[shown[n] for n in names if n in shown] for k, names in PARTS.items()}, missing=_missing(r), strips=_strips(r), failed=[_failure(r, f) for f in r.failed.itertuples()],
        command=_command(r), facts=_facts(r), settings=[(k, v) for k, v in r.run.items() if k not in ('strategy', 'strategy_args', 'lam', 'lr', 'seed', 'final')])


def _lead(r, table):
    "Question and set-up"
    rows, run, tried = r.rows, r.run, final_runs(r.rows, chosen=False)
    others, seeds = int((~table.strategy.isin(['finetune', 'untouched'])).sum()), int(tried.seed.nunique())
    before = ('' if not run else f', trained on it for {run["source_epochs"]} epochs' if run['source_epochs'] else ', as its weights came') + (f' ({Path(run["init"]).name})' if run.get('init') else '')
    return (f'An encoder ({rows.model.iloc[0]}) that knows {rows.source.iloc[0]}{before}, is fine-tuned on {_target_name(r)} for {int(rows.epochs.dropna().iloc[0])} epochs: by plain fine-tuning, and '
            f'by {others} other {"strategy" if others == 1 else "strategies"}. How much of the source is left afterwards, and at what price in target accuracy? Each was run with {seeds} seed{"s"*(seeds != 1)}, '
            'the same for all; strengths were chosen on held-out data, never on test.')


def _found(table, main):
    "What the verdicts of the table say, a line for each metric"
    out, by = [], table.set_index('strategy')
    for m in main:
        mean = {s:strategy_cell(by.loc[s], m).mean for s in ('finetune', 'untouched') if s in by.index}
        text = f'{mean["finetune"]} % with plain fine-tuning' + (f', {mean["untouched"]} % before' if mean.get('untouched', MISSING) != MISSING else '')
        parts = [dict(verdict='', sign='', text=text)]
        for v in ('better', 'worse', 'not distinguishable', 'no interval'):
            names = [s for s in by.index if by.get(f'{m}_verdict', {}).get(s) == v]
            if v in ('better', 'worse'): text = ', '.join(f'{n} {strategy_cell(by.loc[n], m).diff}' for n in names)
            else: text = f'all {len(names)} others' if 1 < len(names) == len(by) - len(mean) else ', '.join(names)
            if names: parts.append(dict(verdict=v, sign=SIGNS.get(v, ''), text=text))
        out.append(dict(what=measure_title(m)[0].upper() + measure_title(m)[1:], parts=parts))
    return out


def _texts(table): return dict(Markdown=table.to_markdown(), LaTeX=table.to_latex())


def breakable(name):
    "A name that may be broken after an underscore"
    return Markup('_<wbr>').join(name.split('_'))


def sort_value(cell):
    "What the page sorts a cell by"
    return '' if cell.value is None else f'{cell.value:.10g}'


def _plot(p, id):
    panels = []
    for i, name in enumerate(p.panels):
        image, numbers = svg(p, name, f'{id}-{i + 1}', f'{p.title}: {name}. {p.about}')
        panels.append(dict(title=name, svg=Markup(image), numbers=frame_table(numbers, f'{p.title}: {name}')))
    heat = p.heat and dict(top=f'{p.heat:.3g}', colours=', '.join(to_hex(c) for c in matplotlib.colormaps[HEAT](np.linspace(0, 1, 9))))
    return dict(name=p.name, id=id, title=p.title, about=p.about, panels=panels, heat=heat, series=[dict(name=s, swatch=Markup(swatch(s))) for s in p.series])


def _trades(r, method, id):
    "Tables of what keeping costs, where strengths were run to the end"
    if len(final_runs(r.rows, chosen=False)) == len(final_runs(r.rows)): return []
    measured = [m for m in PANELS if m in r.rows and r.rows[m].notna().any()]
    return [_trade(r, m, method) | dict(name=measure_title(m), id=f'{id}-trade-{i + 1}') for i, m in enumerate(measured)]


def _trade(r, m, method):
    "One of these tables, or why there is none"
    try: table = trade_off_table(trade_off(r.rows, m, method=method), m, method=method)
    except ValueError as e: return dict(problem=f'It cannot be computed: {e}.')
    return dict(problem='', table=table, texts=_texts(table))


def _missing(r):
    out = []
    if not len(r.source): out.append('What was forgotten class by class, and clip by clip, cannot be told: this folder has no answers of the old head on the source\'s test videos '
                                     '(runs/…/source_scores.csv, and source/…/scores.csv for the untouched encoder).')
    if not len(r.target): out.append('Nor has it answers on the target\'s test videos (runs/…/scores.csv).')
    return out


def film_strip(
    path:str|Path, # Of a video
    n:int=6, # Frames, evenly spaced
    height:int=72, # Of the strip, pixels
)->tuple[str, int, int]|None: # A JPEG as data URI, its width and height; `None` if the video is not there or cannot be decoded
    "A video as a row of frames"
    if not Path(path).is_file(): return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of frames that stand in for broken ones
            video = VideoFile(str(path))
            x = video.read(np.linspace(0, video.index.n - 1, min(n, video.index.n)).round().astype(int))
    except (VideoError, InputError, OSError): return None
    frames = [Image.fromarray(f) for f in x.permute(0, 2, 3, 1).numpy()]
    width = max(1, min(4*height, round(frames[0].width*height/frames[0].height)))
    strip = Image.new('RGB', (len(frames)*width + 2*(len(frames) - 1), height), 'white')
    for i, f in enumerate(frames): strip.paste(f.resize((width, height)), (i*(width + 2), 0))
    file = io.BytesIO()
    strip.save(file, 'JPEG', quality=82)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}', *strip.size


def _strips(r):
    out, seeds = [], r.tuned.groupby('strategy').seed.nunique()
    for name, t in zip(('Most forgotten', 'Least forgotten'), r.clips()):
        clips = []
        for c in t.to_dict('records'):
            strip = film_strip(c['path'])
            src, w, h = strip or ('', 0, 0)
            right = ', '.join(f'{s} {int(v)}/{seeds[s]}' for k, v in c.items() if k.startswith('right.') and v == v for s in [k.removeprefix('right.')])
            clips.append(dict(src=src, width=w, height=h, alt=f'Frames of a video of class {c["label"]}', label=c['label'], answer=c['answer'], right=right, **{k:f'{c[k]:.2f}' for k in ('before', 'after')}))
        if clips: out.append(dict(name=name, clips=clips))
    return out


def _failure(r, f):
    return dict(strategy=f.strategy, setting=setting_name(f.strategy, f.lam, f.lr), seed=int(f.seed), stage='final' if f.final else 'trial', status=f.status, error='' if pd.isna(f.error) else f.error,
                log=r.text('runs', f.key, 'log.txt'))


def _command(r):
    "How to repeat the studies; '' if none recorded its command"
    return r.commands and dict(about='With another --out it starts from nothing.', text='\n'.join(r.commands))


def _facts(r):
    "Versions, seconds, weights: `(name, text)`"
    done = r.rows[r.rows.strategy != 'untouched']
    out = [(f'Versions of {v["runs"]} runs' if len(r.versions) > 1 else 'Versions', ', '.join(f'{k} {x}' for k, x in v.items() if k != 'runs')) for v in r.versions] or [('Versions', 'not recorded in this folder')]
    hours = done.seconds.astype(float).sum()/3600
    out.append(('Time', f'{len(done)} runs, {hours:.1f} hours' if hours >= 1 else f'{len(done)} runs, {60*hours:.0f} minutes'))
    out.append(('Encoder before fine-tuning', f'weights {r.rows.anchor.dropna().iloc[0]}'))
    if r.run.get('data'): out.append(('Fingerprint of the data', r.run['data']))
    return out + [('Read from', ', '.join(Path(f).resolve().name for f in r.folders))]
