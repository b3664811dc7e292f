"""Getting many pieces of work done once each: in this process, in several, on a cluster, or by several processes for each piece.

Whoever takes part shares a folder and nothing else. A piece is claimed (`store.claim`), done or gone on with, and its result read
by all; so it does not matter how many invocations, workers or machines there are, nor which of them die. Workers are submitit's,
on this machine and on Slurm alike; the processes of one piece are torchrun's."""
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from fastai.torch_core import num_distrib, rank_distrib
from submitit import AutoExecutor, LocalExecutor
from submitit.helpers import Checkpointable

from ..errors import Busy, InputError, StoreError
from . import store
from .progress import Progress

__all__ = ['Job', 'Launcher', 'run_all']

LAUNCHERS = ('local', 'slurm')
# what --slurm may say, and the name that submitit has for it
SLURM = dict(partition='slurm_partition', time='timeout_min', gpus='gpus_per_node', cpus='cpus_per_task', mem='mem_gb', account='slurm_account', qos='slurm_qos',
             constraint='slurm_constraint', exclude='slurm_exclude', nodelist='slurm_nodelist')


class Job:
    "A kind of work, known to those who share it by its folder alone. Must be picklable; pieces are anything that is"
    def folder(self, piece:object)->Path: "Where a piece is done"
    def read(self, piece:object, since:float, progress:Progress)->object: "The result of a piece, or `None`. A failure from before the time `since` is none: its cause may be gone"
    def do(self, piece:object, since:float, progress:Progress)->object: "Do or read a piece. Raises `Busy` if another process is at it"
    def fail(self, piece:object, error:str)->None: "Write down that every process that tried a piece was killed"
    def at(self, piece:object)->tuple: "`(run, epochs done)` of a piece that is being done"
    def report(self, result:object, skipped:bool, progress:Progress)->None: "Tell of a result"
    def listener(self)->Progress: "A context manager, the progress listener of a worker process"


class Launcher:
    "How many workers there are, and where"
    def __init__(self,
        jobs:int=1, # Worker processes
        cluster:str='', # 'local', 'slurm', or '' for this process if there is one job, else local ones
        options:str='', # For Slurm, `name=value,...`: partition, time (minutes), gpus, cpus, mem (GB), account, qos, ...
        poll:float=.5, # Seconds between two looks at what the workers have done
    ):
        if jobs < 1: raise InputError(f'--jobs must be at least 1, not {jobs}')
        if cluster and cluster not in LAUNCHERS: raise InputError(f'--launcher must be {" or ".join(LAUNCHERS)}, not {cluster!r}')
        pairs = [p.partition('=') for p in filter(None, (p.strip() for p in options.split(',')))]
        if pairs and cluster != 'slurm': raise InputError('--slurm is for --launcher slurm')
        if bad := [k for k, eq, v in pairs if k not in SLURM or not v]: raise InputError(f'--slurm must be name=value,... of {", ".join(SLURM)}, not {bad[0]!r}')
        if cluster == 'slurm' and not shutil.which('sbatch'): raise InputError('--launcher slurm needs Slurm: there is no sbatch on this machine')
        if num_distrib() > 1 and not dist.is_initialized(): raise InputError('this script does not take part in what torchrun starts; compare.py and sequence.py do')
        if num_distrib() > 1 and (jobs > 1 or cluster): raise InputError('under torchrun all processes do one run together: --jobs and --launcher cannot be set')
        self.jobs, self.cluster, self.poll = jobs, cluster or ('local' if jobs > 1 else ''), max(poll, 2.) if cluster == 'slurm' else poll
        number = dict(time=int, gpus=int, cpus=int, mem=float)
        try: self.options = {SLURM[k]:number.get(k, str)(v) for k, _, v in pairs}
        except ValueError: raise InputError(f'--slurm: {", ".join(number)} must be numbers, not {options!r}') from None

    @property
    def inside(self)->bool: return not self.cluster


class _Todo:
    "Pieces of work, which of them are left, and the results of the others"
    def __init__(self, pieces, then, progress, plan):
        self.pieces, self.left, self.results = list(pieces), list(range(len(pieces))), {}
        self.then, self.progress, self.plan = then, progress, plan
        plan(self.pieces)

    def more(self):
        "Whether there is anything left, or follows from what was found"
        if not self.left and self.then is not None:
            more, self.then = self.then(self.found(), self.progress), None
            self.left = list(range(len(self.pieces), len(self.pieces) + len(more)))
            self.pieces += more
            self.plan(self.pieces)
        return bool(self.left)

    def done(self, i, result):
        self.results[i] = result
        self.left.remove(i)

    def found(self): return [self.results[i] for i in range(len(self.pieces))]


def run_all(
    pieces:list, # What is to be done
    work:Job, # How a piece is done, and where
    out:str|Path, # The study's folder: workers' logs are in `out/workers`
    progress:Progress=Progress(), # Is told what happens
    launcher:Launcher|None=None, # `None`: this process
    since:float|None=None, # Failures from before are tried again; by default those from before now
    total:int|None=None, # For `status.snapshot`: how many pieces there are in all, where more are to come
    then:Callable|None=None, # Picklable function of all results and a `Progress`, to the pieces that follow from them; workers go on with those by themselves
)->list: # A result a piece, of those that follow, too
    "Do all pieces that nobody has done, and read the others'"
    def plan(known):
        Path(out).mkdir(parents=True, exist_ok=True)
        store.write_json(Path(out)/'plan.json', dict(command=shlex.join(['python', *sys.argv]), total=max(total or 0, len(known)), folders=[os.path.relpath(work.folder(p), out) for p in known]))
    todo = _Todo(pieces, then, progress, plan if since is None and not rank_distrib() else lambda known: None)
    since = time.time() if since is None else since
    if launcher is None or launcher.inside:
        while todo.more():
            for i in list(todo.left):
                try: todo.done(i, work.do(todo.pieces[i], since, progress))
                except Busy: continue
            if todo.left: time.sleep(.2)
    else: _supervise(todo, work, Path(out), progress, launcher, since, total)
    return todo.found()


class Worker(Checkpointable):
    "What a worker process does; it returns what nobody else could do better. Preempted, it is queued again as it is: all that it did is in the folder"
    def __call__(self, work:Job, pieces:list, then:Callable|None, out:str|Path, since:float, first:int, threads:int|None, boss:int|None)->Exception|None:
        if threads: torch.set_num_threads(threads)
        if boss: threading.Thread(target=_follow, args=(boss,), daemon=True).start()
        with work.listener() as progress:
            progress.plan([work.at(p)[0] for p in pieces])
            def turned(some, at): return some[at:] + some[:at]  # each begins elsewhere

            def follows(found, progress):
                more = then(turned(found, len(pieces) - first), progress)
                progress.plan([work.at(p)[0] for p in more])
                return turned(more, first*len(more)//len(pieces))
            try: run_all(turned(pieces, first), work, out, progress, since=since, then=then and follows)
            except (InputError, StoreError) as e:
                progress.say(str(e))
                return e


def _follow(boss):
    while True:
        time.sleep(1.)
        try: os.kill(boss, 0)
        except ProcessLookupError: os._exit(1)  # nobody waits for the results


def _start(n, pieces, then, work, out, launcher, since):
    jobs = []
    if launcher.cluster == 'local':
        ex = LocalExecutor(out/'workers')
        seen = os.environ.get('CUDA_VISIBLE_DEVICES')
        gpus = [int(g) for g in seen.split(',') if g.isdigit()] if seen is not None else list(range(torch.cuda.device_count()))
        for i in range(n):
            ex.update_parameters(timeout_min=60*24*365, **(dict(gpus_per_node=1, visible_gpus=[gpus[i % len(gpus)]]) if gpus else {}))
            with _stderr_to(out/'workers'/'controllers.err'):
                jobs.append(ex.submit(Worker(), work, pieces, then, out, since, i*len(pieces)//n, max(1, torch.get_num_threads()//n), os.getpid()))
        return jobs
    ex = AutoExecutor(out/'workers', cluster=launcher.cluster)
    ex.update_parameters(name='sdfast', slurm_array_parallelism=n, stderr_to_stdout=True, **dict(timeout_min=60) | launcher.options)
    with ex.batch():
        for i in range(n): jobs.append(ex.submit(Worker(), work, pieces, then, out, since, i*len(pieces)//n, None, None))
    return jobs


def _alive(job, cluster)->bool:
    if job.paths.result_pickle.exists(): return False
    if cluster == 'local': return job.state == 'RUNNING'
    # not sacct, which knows nothing where accounting is off
    q = subprocess.run(['squeue', '--noheader', '--jobs', str(job.job_id), '--format', '%i'], capture_output=True, text=True)
    return bool(q.stdout.strip()) or (q.returncode != 0 and 'Invalid job id' not in q.stderr)


def _supervise(todo, work, out, progress, launcher, since, total):
    "Start workers, replace those that die, and tell what they do"
    jobs, before, idle = [], None, 0

    def collect(first=False):
        for i in list(todo.left):
            if (r := work.read(todo.pieces[i], since, progress)) is not None:
                todo.done(i, r)
                work.report(r, first, progress)
    try:
        collect(first=True)
        while todo.more():
            if not any(_alive(j, launcher.cluster) for j in jobs):
                collect()
                begun = [i for i in todo.left if work.folder(todo.pieces[i]).exists()]
                now = len(todo.pieces), len(todo.left), sum(work.at(todo.pieces[i])[1] for i in begun)
                idle, before = idle + 1 if now == before else 0, now
                if todo.left and (why := next(filter(None, map(_refusal, jobs)), None)): raise why
                if jobs and todo.left: progress.say(f'the workers ended before the work did ({_last_words(jobs)}); {"new ones go on" if idle < 2 else "they got nowhere"}')
                if idle >= 2:  # two generations of workers, and not an epoch more
                    if not begun: raise RuntimeError(f'workers cannot start: {_last_words(jobs)}; their logs are in {out/"workers"}')
                    for i in begun: work.fail(todo.pieces[i], f'every process that tried it was killed, perhaps for its memory ({_last_words(jobs)})')
                    idle, before = 0, None
                    collect()
                if todo.left:  # what follows from all, follows from those that are done, too
                    some = [p for i, p in enumerate(todo.pieces) if todo.then is not None or i in todo.left]
                    jobs = _start(min(launcher.jobs, max(len(some), (total or 0) - len(todo.results))), some, todo.then, work, out, launcher, since)
            time.sleep(launcher.poll)
            collect()
            progress.running([work.at(todo.pieces[i]) for i in todo.left if (work.folder(todo.pieces[i])/store.OWNER).exists()])
    except BaseException:
        if launcher.cluster == 'local': _end(jobs)
        elif jobs: progress.say(f'jobs {", ".join(sorted({j.job_id.split("_")[0] for j in jobs}))} go on in the cluster; the same command finds what they did, scancel ends them')
        raise


def _refusal(job):
    "What a worker that ended returned"
    try: return job.result() if job.paths.result_pickle.exists() else None
    except Exception: return None  # it was killed, or is of another kind


def _end(jobs):
    "Of local workers: they let go of what they do at once, as it is safe up to its last epoch"
    for j in jobs: j.cancel(check=False)
    for j in jobs:
        try: j._process.wait(10)
        except subprocess.TimeoutExpired: j._process.kill()


@contextmanager
def _stderr_to(file):
    "For processes that are started inside: submitit's tell on ours how they were ended"
    sys.stderr.flush()
    ours = os.dup(2)
    with open(file, 'ab') as f: os.dup2(f.fileno(), 2)
    try: yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _last_words(jobs):
    for j in jobs:
        for p in (j.paths.stderr, j.paths.stdout):
            if p.exists() and (lines := [l for l in p.read_text(errors='replace').splitlines() if l.strip()]): return lines[-1][:300]
    return 'without a word'
