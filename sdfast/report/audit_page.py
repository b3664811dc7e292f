"""The page of an audit, one HTML file that opens offline: tables, classes, clips that flipped, layers that moved.

The template escapes all text, and the page's Content Security Policy forbids all requests and all scripts."""
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from ..data.text import from_markdown
from ..runtime import store
from .audit_file import read_audit
from .audit_summary import (
    caption_of,
    class_table,
    findings,
    measure_table,
    short_names,
    summary_table,
)
from .film import film_strip
from .panels import Plot
from .prose import SIGNS
from .svg import svg
from .table import count_of

__all__ = ['write_audit_page']

N_STRIPS = 6  # clips that are shown of each kind
N_CLASSES = 12  # classes that are shown before the others are unfolded
MOST_LETTERS = 26  # of a layer's name in a plot
N_LAYERS = 24  # layers in a plot; of more, the ones that moved most


def write_audit_page(
    folder:str|Path, # With `audit.json` and `clips.csv`
)->Path: # `audit.html`
    "Write the page of an audit from its files alone"
    folder = Path(folder)
    content = read_audit(folder)
    names, file = dict.fromkeys(('after', 'task', 'path'), str), folder/'clips.csv'
    clips = pd.read_csv(file, keep_default_na=False, dtype=names) if file.is_file() else pd.DataFrame()
    store.write(folder/'audit.html', audit_html(content, clips))
    return folder/'audit.html'


def audit_html(
    content:dict, # Of `audit.json`
    clips:pd.DataFrame, # Of `clips.csv`; empty if it is not there
)->str: # HTML that needs no other file
    "Make the page as text"
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    env.filters |= dict(sign=lambda verdict: SIGNS.get(verdict, ''))
    names = list(dict.fromkeys(short_names(content)[r['after']] for r in content['results']))
    what = names[0] if len(names) == 1 else f'{len(names)} fine-tuned encoders'
    return env.from_string(_asset('audit.html.jinja')).render(
        title=f'What did {what} forget?', lead=_lead(content), summary=summary_table(content), n_classes=N_CLASSES,
        results=[_result(r, content, clips, f'r{i + 1}') for i, r in enumerate(content['results'])],
        command=content.get('command', ''), facts=_facts(content), css=Markup(_asset('page.css')),
        version=version('sdfast'))


def _asset(name): return files('sdfast.report').joinpath(name).read_text(encoding='utf-8')


def _lead(content):
    before = short_names(content)[content['before']['name']]
    n = count_of(len({r['task'] for r in content['results']}), 'task')
    return (f'Nothing was trained: the encoder before fine-tuning ({before}) and after it see the same clips of {n}. '
            f'{caption_of(content)}')


def _result(r, content, clips, id):
    "All that the template shows of one encoder on one task"
    many = len({x['after'] for x in content['results']}) > 1
    names = short_names(content)
    title = f'{names[r["task"]]}, {names[r["after"]]}' if many else names[r['task']]
    labelled = bool(r['classes'])
    return dict(id=id, title=title, about=_about(r), found=findings(r, content['measures']),
                main=measure_table(r, content['measures']), labelled=labelled,
                classes=class_table(r, content['measures']) if labelled else None,
                strips=_flips(r) if labelled else _moved(r, clips), n_lost=len(r['flips']['lost']),
                n_gained=len(r['flips']['gained']), layers=_layers(r, id), notes=[from_markdown(n) for n in r['notes']])


def _about(r):
    on = count_of(r['clips'], 'clip')
    heads = dict(checkpoint='The old head is that of the checkpoint before.',
                 probe='The old head is a linear probe that was fitted to the features of the encoder before.')
    if r['n_classes']: on += f' of {count_of(r["n_classes"], "class", "classes")}'
    if r['grouped']: on += f', in {count_of(r["groups"], "group")} that the bootstrap draws as wholes'
    train = f' Probes and neighbours learn from {count_of(r["train_clips"], "train clip")}.' if r['train_clips'] else ''
    return f'Measured on {on}.{train} {heads.get(r["head"], "")}'.strip()


# ---- clips

def _flips(r):
    names = dict(lost='Right before, wrong after', gained='Wrong before, right after')
    return [dict(name=f'{name} ({len(r["flips"][kind])})', clips=[_flipped(c) for c in r['flips'][kind][:N_STRIPS]])
            for kind, name in names.items() if r['flips'][kind]]


def _flipped(clip):
    text = (f'answered {clip["answer.before"]} before, {clip["answer.after"]} after; probability of its class '
            f'{clip["probability.before"]:.2f} before, {clip["probability.after"]:.2f} after')
    return _strip(clip['path'], clip['label'], text)


def _moved(r, clips):
    "Clips without labels whose features moved most"
    if not len(clips): return []
    mine = clips[(clips.after == r['after']) & (clips.task == r['task'])].astype(dict(drift=float))
    most = mine.sort_values('drift', ascending=False, kind='stable')[:N_STRIPS]
    shown = [_strip(c['path'], Path(c['path']).name, f'drift {c["drift"]:.3f}') for c in most.to_dict('records')]
    return [dict(name='Whose features moved most', clips=shown)]


def _strip(path, name, text):
    src, width, height = film_strip(path) or ('', 0, 0)
    return dict(src=src, width=width, height=height, name=name, text=text)


# ---- layers

def _layers(r, id):
    "Panels of how far weights and outputs of each layer moved"
    titles = dict(weight_distance='weights, relative distance', drift='outputs, relative distance')
    panels = []
    for column, title in titles.items():
        values = {n:v[column] for n, v in r['layers'].items() if v.get(column) is not None}
        if not values: continue
        plot = Plot('layers', title, '', {title: partial(draw_layers, values=values)},
                    size=(4.6, .8 + .2*min(len(values), N_LAYERS)))
        image, _ = svg(plot, title, f'{id}-{column}', f'{title}, by layer')
        panels.append(dict(title=title, svg=Markup(image)))
    return panels


def draw_layers(
    ax:Axes, # Axes
    values:dict, # Layer -> a distance, from input to output
)->pd.DataFrame: # The numbers that are drawn
    "Draw a distance of each layer as bars, the first layer on top; of many layers, those that moved most"
    shown = sorted(values, key=lambda n: -values[n])[:N_LAYERS]
    names = [n for n in values if n in shown]
    at = np.arange(len(names))
    ax.barh(at, [values[n] for n in names], color='#0072B2', height=.7)
    ax.set_yticks(at, [n if len(n) <= MOST_LETTERS else f'…{n[-MOST_LETTERS + 1:]}' for n in names])
    ax.invert_yaxis()
    ax.grid(axis='x', alpha=.3)
    ax.set_xlim(left=0)
    if not any(values.values()): ax.set_xlim(0, 1)
    return pd.DataFrame(dict(layer=names, distance=[values[n] for n in names]))


def _facts(content):
    before = content['before']
    facts = [('before', f'{before["name"]} ({before["weights"][:16]})')]
    afters = {r['after']:r['weights'] for r in content['results']}
    facts += [('after', f'{name} ({weights[:16]})') for name, weights in afters.items()]
    facts += [('tasks', ', '.join(dict.fromkeys(r['task'] for r in content['results'])))]
    return facts + [(name, value) for name, value in content['settings'].items() if value != '']
