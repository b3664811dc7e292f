"The plots of a study, each made of panels that the page and the figures draw."
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from ..metrics.columns import MEASURES
from .clips import clip_counts, clips_sentence
from .curves import (
    N_CLASSES,
    draw_classes,
    draw_course,
    draw_drift,
    draw_strengths,
    draw_trials,
    layer_drift,
)
from .plots import MANY, draw_means, draw_paths
from .results import Results
from .rows import PANELS, has_all_strengths, has_strength

__all__ = ['Plot', 'plots']


@dataclass
class Plot:
    "Panels that belong together"
    name: str  # name of its files
    title: str  # above the panels
    about: str  # how to read it
    panels: dict[str, Callable]  # title -> function that draws on axes and returns the numbers it drew
    series: list = field(default_factory=list)  # strategies, for a legend
    size: tuple = (4.6, 3.7)  # of a panel, inches
    columns: int = 2  # panels next to each other
    heat: float|None = None  # largest value of a heat map


def plots(
    r:Results, # From `load_results`
    table:pd.DataFrame, # Its `summary`
    reference:str='finetune', # Strategy that the others are compared with
)->list[Plot]: # Without plots whose data the study has not recorded
    "List all plots of a study"
    strategies = [s for s in table.strategy if s != 'untouched']
    found = [
        _paths(r, table, strategies, reference),
        _means(r, table, strategies),
        _strengths(r, table, strategies, reference),
        _course(r, strategies),
        _classes(r, 'source', reference),
        _classes(r, 'target', reference),
        _drift(r, strategies)]
    return [plot for plot in found if plot is not None]


def _kept(table): return [m for m in PANELS if m in table and table[m].notna().any()]


def _paths(r, table, strategies, reference):
    if not has_all_strengths(r.rows): return None
    about = ('Up is more kept, right is more learned. A path leads from plain fine-tuning or the weakest strength '
             '(hollow) over the chosen one (large) to the strongest; means over seeds, on test. The grey steps are the '
             f'Pareto front of these means: what lies below and left of it is beaten in both. {_measured_on(r)}')
    panels = {MEASURES[m].title: partial(draw_paths, rows=r.rows, m=m, reference=reference) for m in _kept(table)}
    return Plot('paths', 'Every strength of every strategy', about, panels, strategies)


def _means(r, table, strategies):
    what = 'Means over seeds' if len(table) > MANY else 'Each seed (faint) and the mean over seeds'
    about = (f'{what} with 95 % intervals in both directions. Up is more kept, right is more learned. '
             f'{_measured_on(r)}')
    panels = {MEASURES[m].title: partial(draw_means, rows=r.rows, m=m, table=table) for m in _kept(table)}
    return Plot('means', 'Chosen strengths', about, panels, strategies)


def _strengths(r, table, strategies, reference):
    def is_graded(strategy): return has_strength(strategy) and r.rows[r.rows.strategy == strategy].lam.nunique() > 1
    graded = [s for s in strategies if is_graded(s)]
    if not graded: return None
    shared = dict(rows=r.rows, table=table, reference=reference)
    if has_all_strengths(r.rows):
        about = (f'Means over seeds with 95 % intervals; the band is {reference} with its own. '
                 f'{_measured_on(r)}')
        panels = {MEASURES[m].title: partial(draw_strengths, m=m, **shared) for m in ('acc1', *_kept(table))}
    else:
        n = clip_counts(r.rows).get('valid_clips')
        on = f'on {n} valid clips of the target' if n else 'on the valid part of the target (size not recorded)'
        about = (f'The trials from which strengths were chosen, {on}; the line is {reference} at its chosen learning '
                 'rate.')
        panels = {'target accuracy on valid, trials': partial(draw_trials, **shared)}
    return Plot('strengths', 'What λ does', about, panels, [*graded, reference], columns=len(panels))


def _course(r, strategies):
    if not len(r.course): return None
    titles = dict(source_acc='source, old head', cka_unbiased='CKA with the untouched encoder')
    panels = {title: partial(draw_course, course=r.course, m=m) for m, title in titles.items() if m in r.course}
    if not panels: return None
    about = f'What the encoder keeps after each epoch, {_sample(r)}; means over seeds with 95 % intervals.'
    return Plot('course', 'Epoch by epoch', about, panels, _recorded(r, strategies))


def _measured_on(r): return clips_sentence(clip_counts(r.rows), ['acc1', *PANELS])


def _sample(r):
    "The clips that courses are measured on"
    sizes = sorted(set(r.course.clips.dropna().astype(int))) if 'clips' in r.course else []
    if not sizes: return "on a sample of the source's test clips (its size was not recorded)"
    n = str(sizes[0]) if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'
    return f"on {n} of the source's test clips"


def _recorded(r, strategies): return [s for s in strategies if s in set(r.course.strategy)]


def _classes(r, of, reference):
    change = r.classes(of)
    if not change.shape[1]: return None
    against = dict(source='the untouched encoder', target=reference)[of]
    about = f"Change of each class's accuracy against {against}, means over seeds"
    if len(change) > N_CLASSES:
        extremes = dict(source='forgot most and least', target='is furthest from')[of]
        about += f'; the {N_CLASSES} that {reference} {extremes}'
    height = .9 + .22*min(len(change), N_CLASSES + 1)
    panels = {f'{of} accuracy by class': partial(draw_classes, change=change)}
    about += f'; on {r.class_sizes(of)}. Left of the line is lost.'
    return Plot(f'classes_{of}', f'{of.capitalize()} classes', about, panels,
                series=list(change), size=(4.6, height), columns=1)


def _drift(r, strategies):
    if not len(r.course): return None
    overall = layer_drift(r.course)
    if not len(overall): return None
    top = float(overall.max().max())
    panels = {s: partial(draw_drift, drift=layer_drift(r.course[r.course.strategy == s]), top=top)
              for s in _recorded(r, strategies)}
    about = ("Drift ‖f − f₀‖ / ‖f₀‖ of each layer's output (rows, first layer on top) after each epoch (columns), "
             f'mean over seeds, {_sample(r)}.')
    return Plot('drift', 'Where features moved', about, panels, size=(2.5, 2.3), columns=3, heat=top)
