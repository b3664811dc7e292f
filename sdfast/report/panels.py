"The plots of a study, each made of panels that the page and the figures draw."
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from ..metrics.columns import MEASURES
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
             'Pareto front: what lies below and left of it is beaten in both.')
    panels = {MEASURES[m].title: partial(draw_paths, rows=r.rows, m=m, reference=reference) for m in _kept(table)}
    return Plot('paths', 'Every strength of every strategy', about, panels, strategies)


def _means(r, table, strategies):
    what = 'Means over seeds' if len(table) > MANY else 'Each seed (faint) and the mean over seeds'
    about = f'{what} with 95 % intervals in both directions. Up is more kept, right is more learned.'
    panels = {MEASURES[m].title: partial(draw_means, rows=r.rows, m=m, table=table) for m in _kept(table)}
    return Plot('means', 'Chosen strengths', about, panels, strategies)


def _strengths(r, table, strategies, reference):
    def is_graded(strategy): return has_strength(strategy) and r.rows[r.rows.strategy == strategy].lam.nunique() > 1
    graded = [s for s in strategies if is_graded(s)]
    if not graded: return None
    shared = dict(rows=r.rows, table=table, reference=reference)
    if has_all_strengths(r.rows):
        about = f'Means over seeds with 95 % intervals; the band is {reference} with its own.'
        panels = {MEASURES[m].title: partial(draw_strengths, m=m, **shared) for m in ('acc1', *_kept(table))}
    else:
        about = f'The trials from which strengths were chosen; the line is {reference} at its chosen learning rate.'
        panels = {'target accuracy on valid, trials': partial(draw_trials, **shared)}
    return Plot('strengths', 'What λ does', about, panels, [*graded, reference], columns=len(panels))


def _course(r, strategies):
    if not len(r.course): return None
    titles = dict(source_acc='source, old head', cka='CKA with the untouched encoder')
    panels = {title: partial(draw_course, course=r.course, m=m) for m, title in titles.items() if m in r.course}
    about = ("What the encoder keeps after each epoch, on a sample of the source's test videos; means over seeds with "
             '95 % intervals.')
    return Plot('course', 'Epoch by epoch', about, panels, _recorded(r, strategies))


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
    return Plot(f'classes_{of}', f'{of.capitalize()} classes', f'{about}. Left of the line is lost.', panels,
                series=list(change), size=(4.6, height), columns=1)


def _drift(r, strategies):
    if not len(r.course): return None
    overall = layer_drift(r.course)
    if not len(overall): return None
    top = float(overall.max().max())
    panels = {s: partial(draw_drift, drift=layer_drift(r.course[r.course.strategy == s]), top=top)
              for s in _recorded(r, strategies)}
    about = ("Drift ‖f − f₀‖ / ‖f₀‖ of each layer's output (rows, first layer on top) after each epoch (columns), "
             'mean over seeds.')
    return Plot('drift', 'Where features moved', about, panels, size=(2.5, 2.3), columns=3, heat=top)
