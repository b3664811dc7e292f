"Worker processes, started by submitit on this machine or as Slurm jobs."
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from submitit import AutoExecutor, LocalExecutor
from submitit import Job as SubmittedJob
from submitit.helpers import Checkpointable

from ..errors import InputError, StoreError
from .jobs import Job, WorkList, do_all
from .launcher import Launcher

__all__ = ['Worker', 'start_workers']

LOCAL_MINUTES = 60*24*365  # submitit requires a time limit; a year is as good as none for a local worker
SLURM_MINUTES = 60  # default time limit of a Slurm job
RULE = '-'*22  # line around the traceback in submitit's message
CANCEL_SECONDS = 10  # until a cancelled worker that still runs is killed


@dataclass
class Worker(Checkpointable):
    """The function that a worker process calls: it does all pieces that no other process does.

    A worker that Slurm preempts is queued again unchanged, because its finished work is in the study's folder. Returns
    an error that every other worker would meet, too, or `None`."""
    job: Job  # how a piece is done
    pieces: list  # the same for all workers
    then: Callable|None  # see `run_all`
    call: str  # id of the call of `run_all`; failures of other calls are tried again

    def __call__(self,
        first:int, # Index of the piece to start with
        threads:int|None=None, # Threads of PyTorch; `None`: its default
        parent:int|None=None, # Process ID of the parent; the worker ends when it ends
    )->Exception|None:
        if threads: torch.set_num_threads(threads)
        if parent: threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        then = None if self.then is None else partial(self._follow, first)
        with self.job.listener() as progress:
            self._plan(self.pieces, progress)
            todo = WorkList(rotate(self.pieces, first), progress, then)
            try: do_all(todo, self.job, self.call, progress)
            except (InputError, StoreError) as e:
                progress.say(str(e))
                return e
        return None

    def _plan(self, pieces, progress): progress.plan([self.job.at(p)[0] for p in pieces])

    def _follow(self, first, found, progress):
        "Call `then` with the results in their original order; each worker starts at a different one of its pieces"
        pieces = self.then(rotate(found, len(self.pieces) - first), progress)
        self._plan(pieces, progress)
        return rotate(pieces, first*len(pieces)//len(self.pieces))


def rotate(x:list, n:int)->list:
    "Rotate a list to the left by `n`"
    return x[n:] + x[:n]


def _end_with(pid):
    "End this process when process `pid` has ended, as nobody waits for the results"
    while True:
        time.sleep(1.)
        try: os.kill(pid, 0)
        except ProcessLookupError: os._exit(1)


def start_workers(
    worker:Worker, # Function that each of them calls
    n:int, # How many
    folder:Path, # For their logs
    launcher:Launcher, # Where to start them
)->list: # Submitit's jobs
    "Start workers, with their first pieces spread evenly over all pieces"
    firsts = [i*len(worker.pieces)//n for i in range(n)]
    if launcher.cluster == 'local': return _start_local(worker, firsts, folder)
    return _start_slurm(worker, firsts, folder, launcher.options)


def _start_local(worker, firsts, folder):
    executor, gpus, jobs = LocalExecutor(folder), _visible_gpus(), []
    threads = max(1, torch.get_num_threads()//len(firsts))
    for i, first in enumerate(firsts):
        options = dict(timeout_min=LOCAL_MINUTES)
        if gpus: options |= dict(gpus_per_node=1, visible_gpus=[gpus[i % len(gpus)]])
        executor.update_parameters(**options)
        with _stderr_to(folder/'controllers.err'): jobs.append(executor.submit(worker, first, threads, os.getpid()))
    return jobs


def _visible_gpus():
    "Indices of the GPUs that this process may use"
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is None: return list(range(torch.cuda.device_count()))
    return [int(g) for g in visible.split(',') if g.isdigit()]


@contextmanager
def _stderr_to(file):
    "Redirect standard error to a file: submitit's processes would print to ours"
    sys.stderr.flush()
    ours = os.dup(2)
    with open(file, 'ab') as f: os.dup2(f.fileno(), 2)
    try: yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _start_slurm(worker, firsts, folder, options):
    executor = AutoExecutor(folder, cluster='slurm')
    options = dict(timeout_min=SLURM_MINUTES) | options
    executor.update_parameters(name='sdfast', slurm_array_parallelism=len(firsts), stderr_to_stdout=True, **options)
    with executor.batch(): jobs = [executor.submit(worker, first) for first in firsts]
    return jobs


def is_alive(job:SubmittedJob, cluster:str)->bool:
    "Whether a worker runs or waits in the queue"
    if job.paths.result_pickle.exists(): return False
    if cluster == 'local': return job.state == 'RUNNING'
    # not sacct, which lists nothing where accounting is off
    command = ['squeue', '--noheader', '--jobs', str(job.job_id), '--format', '%i']
    q = subprocess.run(command, capture_output=True, text=True)
    return bool(q.stdout.strip()) or (q.returncode != 0 and 'Invalid job id' not in q.stderr)


def returned_error(job:SubmittedJob)->Exception|None:
    "The error that a worker returned; `None` if there is none, or if it was killed"
    if not job.paths.result_pickle.exists(): return None
    try: return job.result()
    except Exception: return None


def raised_error(job:SubmittedJob)->str:
    "The last line of the exception with which a worker ended; '' if it returned or was killed"
    try: error = job.exception() if job.paths.result_pickle.exists() else None
    except Exception: return ''  # an unreadable file
    trace = str(error or '').partition(RULE)[2].rpartition(RULE)[0].strip()  # submitit adds lines before and after it
    return trace.splitlines()[-1] if trace else ''


def last_words(jobs:list)->str:
    "The last line of output of the first worker that wrote any"
    for job in jobs:
        for file in (job.paths.stderr, job.paths.stdout):
            if not file.exists(): continue
            lines = [l for l in file.read_text(errors='replace').splitlines() if l.strip()]
            if lines: return lines[-1][:300]
    return 'no output'


def cancel_workers(jobs:list)->None:
    "Cancel local workers; each run is checkpointed to its last epoch"
    for job in jobs: job.cancel(check=False)
    for job in jobs:
        try: job._process.wait(CANCEL_SECONDS)
        except subprocess.TimeoutExpired: job._process.kill()
