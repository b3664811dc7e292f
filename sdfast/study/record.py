"Recording a run: its results, or its failure, are written to its folder and sealed."
import gc
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from fastai.torch_core import num_distrib, rank_distrib

from ..errors import StoreError
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.progress import Progress
from ..runtime.resume import Resume
from .config import Run
from .failures import failure_reason, failure_status
from .folder import failed_calls, versions

__all__ = ['Outcome']


@dataclass
class Outcome:
    "The result of training and measuring"
    numbers: dict = field(default_factory=dict)  # columns of the result
    status: str = 'ok'  # or 'diverged', 'out of memory', 'bad data', 'failed'
    error: str = ''  # in one line
    trace: str = ''  # traceback of an exception


def write_run(
    run:Run, # Its settings
    folder:Path, # Claimed
    measure:Callable, # Takes callbacks for the learner; trains, measures, writes files and returns an `Outcome`
    row:dict, # Columns of the result that are known before training
    progress:Progress=Progress(), # Progress listener
    call:str='', # Id of the call of `run_all` that this try belongs to
    **more, # Also written to `run.json`
)->dict: # `row` with numbers, status, error and seconds
    "Train and measure a run in its folder, and seal its results or its failure"
    calls = [*failed_calls(folder), call]
    if not rank_distrib(): _begin(run, folder, more)
    start, resume = time.time(), Resume(folder, progress.say)
    progress.start(run, run.epochs)
    outcome, notes = _attempt(measure, resume)
    seconds = round(time.time() - start + resume.seconds, 2)
    row = row | outcome.numbers | dict(seconds=seconds, status=outcome.status, error=outcome.error)
    failed = bool(outcome.trace)
    if not rank_distrib() or failed:
        log = [time.strftime('%F %T'), run, versions(), '\n'.join(notes), outcome.trace]
        store.write(folder/'log.txt', '\n'.join(map(str, log)))
        seal_run(folder, row, calls if failed else [])
        resume.remove()
    # the processes of this run are no longer in step, so exit: torchrun ends the others, the next start reads the row
    if failed and num_distrib() > 1: raise SystemExit(f'{outcome.error}; start torchrun again to resume')
    return from_rank0(lambda: row)


def _begin(run, folder, more):
    "Remove files of an earlier attempt, except the checkpoint of its last finished epoch, and write the settings"
    folder.mkdir(parents=True, exist_ok=True)
    leave = [store.LOCK, store.OWNER, *_checkpoints(folder)]
    for f in folder.iterdir():
        if f.is_file() and f.name not in leave: f.unlink()
    store.write_json(folder/'run.json', asdict(run) | more)


def _checkpoints(folder): return [f.name for f in store.find(folder, 'epoch-*', 'pt', check=False)]


def _attempt(measure, resume):
    "Return the outcome, an exception's included, and warnings. Only a `StoreError` is raised: the run is not its cause"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: outcome = measure([resume])
        except StoreError: raise
        except Exception as e:
            outcome = Outcome(status=failure_status(e), error=failure_reason(e), trace=traceback.format_exc())
    if outcome.trace: _free_memory()
    caught = [w for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    return outcome, dict.fromkeys(f'{w.category.__name__}: {w.message}' for w in caught)


def _free_memory():
    "Free the memory that a failed run's exception held"
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()


def seal_run(folder:Path, row:dict, calls:Sequence[str]=())->None:
    "Write `result.json`: the row, the calls in which the run failed, the digests of all other files, and versions"
    files = store.seal(folder, leave=['result.json', *_checkpoints(folder)])
    store.write_json(folder/'result.json', row | dict(ended=time.time(), calls=calls, files=files, **versions()))


def write_failure(folder:Path, row:dict, call:str, error:str)->None:
    "Write the `result.json` of a run whose processes were all killed"
    row = row | dict(seconds=0., status='failed', error=error)
    calls = [*failed_calls(folder), call]
    store.write_json(folder/'result.json', row | dict(ended=time.time(), calls=calls, files={}, **versions()))
