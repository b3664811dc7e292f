"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..metrics.columns import COLUMNS, RETENTION_COLUMNS
from ..runtime.launch import Launcher, run_all
from ..runtime.memory import hand_back_memory
from ..runtime.progress import Progress
from .choose import Plan, choose
from .config import Run
from .execute import RunJob
from .folder import retention_columns
from .loaders import load_data
from .source import SourceModel, Untouched, load_source, source_weights, untouched

__all__ = ['compare', 'compare_rows']



def compare(
    base:Run, # What all runs share
    grids:dict, # Strategy -> its `strength_grid`; all of one length
    out:str|Path, # Folder of the study
    seeds:int=6, # Final runs of each strategy
    trial_seeds:int=1, # Trials of each strength
    progress:Progress=Progress(), # Is told what happens
    all_strengths:bool=False, # Run every strength with every seed to the end; these are the trials then
    rule:str='accuracy', # How to choose a strength, see `choose`
    kept:str='source_probe', # What equal learning keeps: 'source_probe' or 'source_acc', on the source's valid part
    launcher:Launcher|None=None, # Where to run; `None`: in this process
    log:Sequence[str]=(), # See `execute`
)->pd.DataFrame: # A row a run, trials too, and one `untouched`; columns `COLUMNS`. `chosen` are those of the chosen strengths
    "Choose each strategy's strength on valid parts, then run it with every seed and read test"
    if len({len(g) for g in grids.values()}) > 1:
        raise InputError('each strategy must get the same number of trials, not ' + ', '.join(f'{s} {len(g)}' for s, g in grids.items()))
    if f'valid_{kept}' not in RETENTION_COLUMNS: raise InputError(f'equal learning can keep source_probe or source_acc, not {kept!r}')
    choose([0.], [0.], rule)  # raises for what cannot be chosen by
    if rule == 'equal_learning': base = replace(base, source_valid=True)
    study = Plan(base, grids, seeds, trial_seeds, all_strengths, rule, kept)
    first, last = study.first(), [] if all_strengths else study.last(dict.fromkeys(grids, 0))
    progress.plan(first + last)
    prepare_source(base, out, progress, launcher)
    found = run_all(first, RunJob(str(out), log), out, progress, launcher, total=len(first + last), then=None if all_strengths else study)
    best, rows = study.best(found, progress if all_strengths else Progress()), iter(found)
    trials = {s:[next(rows) | dict(chosen=all_strengths and i == best[s]) for i, same in enumerate(settings) for _ in same] for s, settings in study.trials().items()}
    final = {s:[next(rows) | dict(chosen=True) for _ in range(0 if all_strengths else seeds)] for s in grids}
    return compare_rows([r for s in grids for r in trials[s] + final[s]], untouched(base, out, progress), base)


def prepare_source(
    run:Run, # One of the study
    out:str|Path, # Folder of the study
    progress:Progress, # Is told what happens
    launcher:Launcher|None, # Whoever does the runs; on a cluster the first of them trains the source
)->None:
    "The source stage, trained with all of this machine's threads before workers share them; they read it from the folder"
    if launcher is None or launcher.inside: load_source(run, out, progress)
    elif launcher.cluster == 'local' and run.source:
        source_weights(run, out, progress)
        load_data.cache_clear()
        hand_back_memory()


def compare_rows(
    rows:list, # From `execute`
    source:SourceModel|Untouched, # From `load_source` or `untouched`
    base:Run, # What the runs share
)->pd.DataFrame: # A row a run, and one `untouched`; columns `COLUMNS` and the hash of the weights before fine-tuning
    "Rows of runs beside what the untouched encoder scores; raises `InputError` without a source task"
    if not base.source: raise InputError('a comparison needs a source task, on which to measure what was kept')
    start = {c:None for c in COLUMNS} | dict(key=base.source_key, task=base.task, source=base.source, model=base.model, strategy='untouched',
                 status='ok', error='', final=True, chosen=True, anchor=source.id) | retention_columns(source.reference)
    return pd.DataFrame([*({**r, 'chosen': r['final'] if r['chosen'] is None else r['chosen']} for r in rows), start], columns=[*COLUMNS, 'anchor'])
