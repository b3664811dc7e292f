"Studies without a choice of settings: every setting is run with every seed, and all results are shown."
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd

from ..data.datasets import create_task
from ..runtime.launch import run_all
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress
from .compare import compare_rows
from .config import QUICK, Run, Study
from .execute import RunJob
from .source import untouched
from .values import check_value

__all__ = ['final_run', 'run_settings']


def final_run(
    task:str='moving_digits', # Target task, see `create_task`
    source:str='moving_digits', # Source task
    quick:bool=False, # Use only a few clips of each class
    **fields, # Other fields of `Run`
)->Run: # With the fingerprints of both tasks
    "Make a final run on two tasks; `dataclasses.replace` makes its variants"
    parts = [create_task(source, 'source'), create_task(task, 'target')]
    if quick: parts = [part.subset(**QUICK) for part in parts]
    data = '-'.join(part.fingerprint for part in parts)
    defaults = dict(source_epochs=5 if quick else 6)
    return Run(task=task, source=source, data=data, quick=quick, final=True, **defaults | fields)


def run_settings(
    settings:Sequence[Run], # Final runs of one source model that differ in what is compared
    seeds:int, # Runs of each setting
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to run; `None`: in this process
)->pd.DataFrame: # A row for each run, and one for the untouched encoder; columns as in `compare`
    "Run every setting with every seed"
    check_value(next(f for f in fields(Study) if f.name == 'seeds'), seeds)
    runs = [replace(setting, seed=i) for setting in settings for i in range(seeds)]
    progress.plan(runs)
    rows = run_all(runs, RunJob(str(out)), out, progress, launcher)
    return compare_rows(rows, untouched(settings[0], out, progress), settings[0])
