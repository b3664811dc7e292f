"""Chains of tasks, source → A → B → ...: each stage fine-tunes the previous stage's model and is measured on all tasks.

Each task has its own head (task-incremental learning). So there are two accuracies on task j after stage i: with the
**old head** from the end of stage j, which exists from stage j on, and with a new linear **probe** on the encoder's
features, which always exists.

If runs have `earlier` tasks, there is one head for all classes so far (class-incremental learning). It is trained in
each stage, and takes the place of the old heads: its answers are among all classes so far.

The key of a stage hashes its `Run` and the previous stage's key. A finished stage is read, not trained again, and one
whose process died resumes from its last finished epoch."""
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..runtime.distributed import from_rank0
from ..runtime.progress import Progress
from .accuracies import Accuracies
from .config import Run
from .folder import claim_folder
from .source import SourceModel
from .stage import load_stage, read_stage, stage_folder, stage_keys, train_stage

__all__ = ['finished_chain', 'train_chain']


def finished_chain(
    runs:Sequence[Run], # A `Run` for each task in order
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener, for lines about damaged files
    call:str='', # As in `finished`
)->list[dict]|None: # A row for each stage, up to the first that failed or diverged
    "Read the result of a chain; `None` if it has not ended or its files are damaged"
    rows = []
    for _, key, _ in stage_keys(runs):
        row = read_stage(stage_folder(key, out), progress, call)
        if row is None: return None
        rows.append(row)
        if row['status'] != 'ok': break
    return rows


def train_chain(
    runs:Sequence[Run], # A `Run` for each task in order, which differ in `task` and `bs` only
    source:SourceModel, # From `load_source`
    out:str|Path, # Folder of the study
    accuracies:Accuracies, # Measures all tasks after each stage
    progress:Progress=Progress(), # Progress listener
    wait:bool=True, # Wait for another process that works on the chain; else raise `Busy`
    call:str='', # As in `finished`
)->list[dict]: # A row for each stage, up to the first that failed or diverged
    "Fine-tune on one task after another with one strategy; finished stages are read"
    past, rows, skipped = [source], [], True
    with claim_folder(stage_folder(chain_key(runs), out), progress, wait):
        for i, (run, key, before) in enumerate(stage_keys(runs), 1):
            folder = stage_folder(key, out)
            row = from_rank0(lambda: read_stage(folder, progress, call))
            if row is None:
                skipped = False
                row = dict(key=key, before=before, stage=i, task=accuracies.names[i])
                row = train_stage(run, past, folder, accuracies, row, progress, call)
            rows.append(row)
            if row['status'] != 'ok': break
            if i < len(runs): past.append(load_stage(run, folder))
    report_chain(rows, runs, skipped, progress)
    return rows


def chain_key(runs:Sequence[Run])->str:
    "The key of a chain's first stage, whose folder is claimed for the whole chain"
    _, key, _ = next(stage_keys(runs))
    return key


def report_chain(rows:list, runs:Sequence[Run], skipped:bool, progress:Progress=Progress())->None:
    "Report a chain to a progress listener, as a run with mean accuracies"
    run, last = runs[len(rows) - 1], rows[-1]
    heads = [v for k, v in last.items() if k.startswith('head.')]
    row = asdict(run) | {k:last[k] for k in ('strategy', 'lam', 'lr', 'seed', 'final', 'status')}
    row |= dict(error=f'{last["task"]}: {last["error"]}',
                seconds=sum(r['seconds'] for r in rows),
                source_acc=last.get('head.source'),
                valid_acc1=chain_score(rows, runs) if last['status'] == 'ok' else None,
                acc1=float(np.mean(heads)) if heads else None)
    progress.done(row, skipped=skipped)


def chain_score(rows:list, runs:Sequence[Run])->float:
    """Mean accuracy over source and tasks on valid, with old heads, after the last stage; strengths are chosen by it.

    It is nan if the last stage was not reached."""
    valid = [v for k, v in rows[-1].items() if k.startswith('valid.')]
    return float(np.mean(valid)) if len(valid) == len(runs) + 1 else float('nan')
