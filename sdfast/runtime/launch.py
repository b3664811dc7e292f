"Doing each piece of a study's work once, in this process or in workers."
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastai.torch_core import rank_distrib

from . import store
from .jobs import Job, WorkList, do_all
from .launcher import Launcher
from .program import whole_command
from .progress import Progress

__all__ = ['run_all']


def run_all(
    pieces:list, # What is to be done
    job:Job, # How a piece is done, and where
    out:str|Path, # The study's folder; the workers' logs are in `out/workers`
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to do it; `None`: in this process
    total:int=0, # Number of pieces with those of `then`, for `snapshot`; 0: `pieces` are all
    then:Callable|None=None, # Picklable function of all results and a `Progress` that returns the pieces to do next
)->list: # The results in the order of the pieces, those of `then` last
    """Do all unfinished pieces, and read the results of the finished ones.

    When all results are there, workers call `then` themselves and do the pieces that it returns. Pieces that failed
    in other calls are tried again, once."""
    out = Path(out)
    record = None if rank_distrib() else partial(_write_plan, job, out, total)
    todo, call = WorkList(pieces, progress, then, record), uuid.uuid4().hex[:12]
    if launcher is None or launcher.inside:
        do_all(todo, job, call, progress)
    else:
        from .supervise import Supervisor  # here, since submitit is an extra
        Supervisor(todo, job, out, launcher, call, progress, total).run()
    return todo.found()


def _write_plan(job, out, total, pieces):
    "Write the command and the folders of all known pieces to `plan.json`, which `snapshot` reads"
    out.mkdir(parents=True, exist_ok=True)
    folders = [os.path.relpath(job.folder(p), out) for p in pieces]
    store.write_json(out/'plan.json', dict(command=whole_command(), total=max(total, len(pieces)), folders=folders))
