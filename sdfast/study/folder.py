"""The folder of a study: claiming parts of it, reading sealed results, writing tables.

    plan.json      the command, and the folders of all known runs, see `run_all`
    source/KEY/    the model before fine-tuning, see `load_source`
    runs/KEY/      one run, see `execute`
    stages/KEY/    one stage of a chain of tasks, see `train_chain`
    workers/       logs of worker processes

A folder of a source, run or stage is complete when its sealed file is there, which is written last and has the digests
of the others. A folder without it, or with damaged files, is done again."""
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from fastai.learner import Learner
from fastai.torch_core import rank_distrib

from ..data.task import Task
from ..errors import Damaged, StoreError
from ..metrics.columns import COLUMNS, RETENTION_COLUMNS
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.progress import Progress
from .config import Run

__all__ = ['finished']

LASTING = ('ok', 'diverged')  # results that another try would not change


# ---- reading

def run_folder(run:Run, out:str|Path)->Path: return Path(out)/'runs'/run.key


def finished(
    run:Run, # The run
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener, for lines about damaged files
    since:float|None=None, # Time in seconds since the epoch: earlier failures do not count. `None`: no failure counts
)->dict|None: # A row with the fields of `COLUMNS`, and `anchor`
    """The result of a run if it is finished and its files are undamaged.

    Failures are tried again because their cause may be gone. Raises `StoreError` if the folder has another run."""
    folder = run_folder(run, out)
    result = read_sealed(folder, 'result.json', progress, 'done again')
    if result is None: return None
    recorded = asdict(Run()) | store.read_json(folder/'run.json')  # a setting added since then was at its default
    if recorded != json.loads(json.dumps(asdict(run))):
        raise StoreError(f'{folder} is of another run; use another folder for this study')
    return {c:result.get(c) for c in [*COLUMNS, 'anchor']} if is_settled(result, since) else None


def read_sealed(folder:Path, name:str, progress:Progress, remedy:str)->dict|None:
    "Content of a sealed file, or `None` if it or a file that it names is missing or damaged; damage is reported"
    try:
        sealed = store.read_json(folder/name)
        store.verify(folder, sealed['files'])
        return sealed
    except FileNotFoundError: return None
    except Damaged as e: progress.say(f'{e}; it is {remedy}')


def is_settled(result:dict, since:float|None)->bool:
    "Whether a result stands: another try would not change it, or it is a failure of after `since`"
    return result['status'] in LASTING or (since is not None and result['ended'] >= since)


# ---- working

@contextmanager
def claim_folder(folder:Path, progress:Progress=Progress(), wait:bool=True)->Iterator[Path]:
    "`store.claim` by the first of the processes that train together; all raise what it raises"
    claim = nullcontext() if rank_distrib() else store.claim(folder, wait, progress.say)
    from_rank0(claim.__enter__)
    try: yield folder
    finally: claim.__exit__(None, None, None)


# ---- writing

def versions()->dict:
    "What a result depends on besides its settings and data"
    packages = {n:version(n) for n in ('sdfast', 'torch', 'fastai', 'av')}
    return dict(versions=packages, python=sys.version.split()[0], threads=torch.get_num_threads())


def write_epochs(learn:Learner, folder:Path, names:dict|None=None)->None:
    "Write what the recorder has of each epoch to `epochs.csv`, except times; `names` renames columns"
    columns = [(names or {}).get(n, n) for n in learn.recorder.metric_names[1:] if n != 'time']
    log = pd.DataFrame(list(learn.recorder.values), columns=columns)
    store.write(folder/'epochs.csv', log.rename_axis('epoch').to_csv())


def write_answers(probs:torch.Tensor, task:Task, file:Path)->None:
    "Write path, label and class probabilities of each test video"
    scores = pd.DataFrame(probs.numpy(), columns=task.vocab)
    paths, labels = zip(*task.items('test'))
    scores.insert(0, 'path', paths)
    scores.insert(1, 'label', labels)
    store.write(file, scores.to_csv(index=False, float_format='%.6g'))


def retention_columns(kept:dict)->dict:
    "The columns of runs.csv among retention scores"
    return {k:v for k, v in kept.items() if k in RETENTION_COLUMNS}
