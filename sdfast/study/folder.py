"""The folder of a study: claiming its subfolders, reading sealed results, writing tables.

    plan.json      the command, and the folders of all known runs, see `run_all`
    source/KEY/    the model before fine-tuning, see `load_source`
    runs/KEY/      one run, see `execute`
    stages/KEY/    one stage of a chain of tasks, see `train_chain`
    data/          lists of the tasks' videos, see `check_data`
    workers/       logs of worker processes

The folder of a source, run or stage is complete when it has its sealed file (source.json or result.json), which is
written last and lists the digests of the others. Without it, or with damaged files, the work is repeated."""
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
from ..metrics.columns import ABOUT_COLUMNS, COLUMNS, RETENTION_COLUMNS
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.progress import Progress
from .config import Run

__all__ = ['finished']

LASTING = ('ok', 'diverged')  # a run with such a status would end in the same way again


# ---- reading

def run_folder(run:Run, out:str|Path)->Path: return Path(out)/'runs'/run.key


def finished(
    run:Run, # The run
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener, for lines about damaged files
    call:str='', # Id of a call of `run_all`: failures in this call count; '': none counts
)->dict|None: # A row with the fields of `COLUMNS`, and `anchor`
    """Read the result of a run; `None` if it is not finished or its files are damaged.

    An earlier failure counts as not finished, because its cause may be gone. Raises `StoreError` if the folder has
    another run."""
    folder = run_folder(run, out)
    result = read_sealed(folder, 'result.json', progress, 'done again')
    if result is None: return None
    # of a failure the settings need not be sealed
    try: settings = store.read_json(folder/'run.json')
    except (Damaged, FileNotFoundError) as e:
        progress.say(f'{e}; it is done again')
        return None
    recorded = asdict(Run()) | settings  # settings added since then had their defaults
    if recorded != json.loads(json.dumps(asdict(run))):
        raise StoreError(f'{folder} is of another run; use another folder for this study')
    return {c:result.get(c) for c in [*COLUMNS, 'anchor']} if is_settled(result, call) else None


def read_sealed(folder:Path, name:str, progress:Progress, remedy:str)->dict|None:
    "Read a sealed file; reports damage and returns `None` if it or a file that it lists is missing or damaged"
    try:
        sealed = store.read_json(folder/name)
        if not isinstance(sealed.get('files'), dict): raise Damaged(f'{folder/name} is damaged: it lists no files')
        store.verify(folder, sealed['files'])
        return sealed
    except FileNotFoundError: return None
    except Damaged as e:
        progress.say(f'{e}; it is {remedy}')
        return None


def is_settled(result:dict, call:str)->bool:
    "Whether a result is final: a success, a divergence, or a failure in this call"
    return result['status'] in LASTING or bool(call) and call in result.get('calls', ())


def failed_calls(folder:Path)->list[str]:
    "Ids of the calls in which a run has failed so far"
    try: return store.read_json(folder/'result.json').get('calls', [])
    except (FileNotFoundError, Damaged): return []


# ---- working

@contextmanager
def claim_folder(folder:Path, progress:Progress=Progress(), wait:bool=True)->Iterator[Path]:
    "Claim a folder by `store.claim` in the first of the processes that train together; all raise its error"
    claim = nullcontext() if rank_distrib() else store.claim(folder, wait, progress.say)
    from_rank0(claim.__enter__)
    try: yield folder
    finally: claim.__exit__(None, None, None)


# ---- writing

def versions()->dict:
    "Versions and number of threads, which a result depends on in addition to settings and data"
    packages = {n:version(n) for n in ('sdfast', 'torch', 'fastai', 'av')}
    return dict(versions=packages, python=sys.version.split()[0], threads=torch.get_num_threads())


def write_epochs(learn:Learner, folder:Path, names:dict|None=None)->None:
    "Write the recorder's values of each epoch to `epochs.csv`, except times; `names` renames columns"
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
    "What runs.csv has of the scores, and of the numbers of clips they are based on"
    return {k:v for k, v in kept.items() if k in (*RETENTION_COLUMNS, *ABOUT_COLUMNS)}
