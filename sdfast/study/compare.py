"The comparison of strategies: trials choose a strength for each strategy, then final runs with every seed read test."
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.torch_core import rank_distrib

from ..errors import InputError
from ..metrics.columns import COLUMNS, RETENTION_COLUMNS
from ..runtime.distributed import from_rank0
from ..runtime.launch import run_all
from ..runtime.launcher import Launcher
from ..runtime.memory import hand_back_memory
from ..runtime.progress import Progress
from .choose import choose
from .config import Run
from .execute import RunJob
from .folder import retention_columns, run_folder
from .loaders import load_data
from .plan import Plan
from .reuse import clear_once, end_fresh
from .source import SourceModel, Untouched, forget_sources, load_source, source_weights, untouched
from .source_files import source_folder

__all__ = ['compare', 'compare_rows', 'prepare_source']


def compare(
    base:Run, # What all runs share
    grids:dict, # Strategy -> its `strength_grid`; all have the same length
    out:str|Path, # Folder of the study
    seeds:int=6, # Final runs of each strategy
    trial_seeds:int=1, # Trials of each strength
    progress:Progress=Progress(), # Progress listener
    all_strengths:bool=False, # Run all strengths with all seeds to the end, also in place of trials
    rule:str='accuracy', # How to choose a strength, see `choose`
    kept:str='source_probe', # What 'equal_learning' compares on the source's valid part, or 'source_acc'
    launcher:Launcher|None=None, # Where to run; `None`: in this process
    log:Sequence[str]=(), # See `execute`
    fresh:bool=False, # Do all runs and the source model again, see `clear_once`
)->pd.DataFrame: # A row for each run, trials included, and one `untouched`; columns `COLUMNS`
    "Choose each strategy's strength on valid parts, then run it with every seed and read test"
    if f'valid_{kept}' not in RETENTION_COLUMNS:
        raise InputError(f'equal learning can keep source_probe or source_acc, not {kept!r}')
    choose([0.], [0.], rule)  # raises for an unknown rule
    if rule == 'equal_learning': base = replace(base, source_valid=True)
    plan = Plan(base, grids, seeds, trial_seeds, all_strengths, rule, kept)
    trials = plan.first()
    to_come = [] if all_strengths else plan.last(dict.fromkeys(grids, 0))  # only their number matters, so any setting
    progress.plan(trials + to_come)
    if fresh: from_rank0(lambda: redo([run_folder(r, out) for r in plan.every()], base, out, progress))
    prepare_source(base, out, progress, launcher)
    found = run_all(trials, RunJob(str(out), log), out, progress, launcher, total=len(trials) + len(to_come),
                    then=None if all_strengths else plan)
    rows = _mark_chosen(plan, found, progress)
    table = compare_rows(rows, untouched(base, out, progress), base)
    if not rank_distrib(): end_fresh(out)
    return table


def redo(
    folders:Sequence, # Of all runs, or stages, that the study may have
    base:Run, # Any run of the study
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
)->None:
    "Remove what a study has in its folder, the source model included, as `clear_once` does"
    clear_once([*folders, source_folder(base, out)], out, progress)
    forget_sources()


def prepare_source(
    run:Run, # Any run of the study
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to run; `None`: in this process
)->None:
    """Train the source model before the runs start, except for Slurm, where the first worker trains it.

    It is trained with all threads of this machine; local workers read it from the study's folder."""
    if launcher is None or launcher.inside: load_source(run, out, progress)
    elif launcher.cluster == 'local' and run.source:
        source_weights(run, out, progress)
        load_data.cache_clear()
        hand_back_memory()


def _mark_chosen(plan, found, progress):
    "Order results by strategy, trials before final runs, and mark those of the chosen strength as `chosen`"
    # where final runs follow trials, the choice was reported when they were planned
    best = plan.best(found, progress if plan.all_strengths else Progress())
    found = iter(found)
    rows = {s:[] for s in plan.grids}
    for s, settings in plan.trials().items():
        for i, runs in enumerate(settings):
            chosen = plan.all_strengths and i == best[s]
            rows[s] += [next(found) | dict(chosen=chosen) for _ in runs]
    if not plan.all_strengths:
        for s in plan.grids: rows[s] += [next(found) | dict(chosen=True) for _ in range(plan.seeds)]
    return [row for s in plan.grids for row in rows[s]]


def compare_rows(
    rows:list, # From `execute`
    source:SourceModel|Untouched, # From `load_source` or `untouched`
    base:Run, # What the runs share
)->pd.DataFrame: # A row for each run, and one `untouched`; columns `COLUMNS`, and `anchor`, the source weights' hash
    "A table of runs, with a row for the untouched encoder. Raises `InputError` without a source task"
    if not base.source: raise InputError('a comparison needs a source task, on which to measure what was kept')
    start: dict[str, Any] = {c:None for c in COLUMNS}
    start |= dict(key=base.source_key, task=base.task, source=base.source, model=base.model, strategy='untouched',
                  status='ok', error='', final=True, chosen=True, anchor=source.id)
    start |= retention_columns(source.reference)
    rows = [r | dict(chosen=r['final']) if r['chosen'] is None else r for r in rows]
    return pd.DataFrame([*rows, start], columns=[*COLUMNS, 'anchor'])
