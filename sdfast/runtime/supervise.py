"Supervising workers: collecting their results, replacing dead workers."
import time
from pathlib import Path

from . import store
from .jobs import Job, WorkList
from .launcher import Launcher
from .progress import Progress
from .workers import Worker, cancel_workers, is_alive, last_words, raised_error, returned_error, start_workers

__all__ = ['Supervisor']

MAX_IDLE = 2  # give up when so many generations of workers in a row end without finishing an epoch


class Supervisor:
    "Starts workers, replaces dead ones, collects their results and reports their progress"
    def __init__(self,
        todo:WorkList, # What is to be done
        job:Job, # How a piece is done, and where
        out:Path, # The study's folder; the workers' logs are in `out/workers`
        launcher:Launcher, # Where to start workers, and how many
        call:str, # Id of the call of `run_all`; failures of other calls are tried again
        progress:Progress=Progress(), # Progress listener
        total:int=0, # As in `run_all`
    ):
        self.todo, self.job, self.out, self.launcher, self.progress = todo, job, out, launcher, progress
        self.call, self.total = call, total
        self.workers: list = []
        self.n_starts = 0  # generations of workers so far
        # counts of finished work when workers were last started, and how many times they have not changed since
        self.state: tuple|None = None
        self.idle = 0

    def run(self)->None:
        "Return when all pieces have a result. An exception or Ctrl-C ends local workers; Slurm jobs continue"
        try:
            self.collect(skipped=True)
            while self.todo.more():
                if not any(is_alive(w, self.launcher.cluster) for w in self.workers): self.replace_workers()
                time.sleep(self.launcher.poll)
                self.collect()
                self.report_running()
        except BaseException:
            self.end_workers()
            raise

    def collect(self, skipped:bool=False)->None:
        "Read and report new results"
        for i in list(self.todo.left):
            result = self.job.read(self.todo.pieces[i], self.call, self.progress)
            if result is None: continue
            self.todo.done(i, result)
            self.job.report(result, skipped, self.progress)

    def pieces_left(self)->list: return [self.todo.pieces[i] for i in self.todo.left]

    def report_running(self)->None:
        running = [p for p in self.pieces_left() if (self.job.folder(p)/store.OWNER).exists()]
        self.progress.running([self.job.at(p) for p in running])

    def replace_workers(self)->None:
        """Start new workers after all have ended.

        Raises an error that every worker would meet; marks pieces on which every worker dies as failed."""
        self.collect()
        begun = [p for p in self.pieces_left() if self.job.folder(p).exists()]
        self.count_idle(begun)
        if self.todo.left:
            for error in map(returned_error, self.workers):
                if error: raise error
        if self.workers and self.todo.left:
            what = 'new ones continue' if self.idle < MAX_IDLE else 'they made no progress'
            self.progress.say(f'the workers ended before all work was done ({last_words(self.workers)}); {what}')
        if self.idle >= MAX_IDLE: self.give_up(begun)
        if self.todo.left: self.start()

    def count_idle(self, begun:list)->None:
        "Count successive generations of workers that finished neither a piece nor an epoch"
        state = len(self.todo.pieces), len(self.todo.left), sum(self.job.at(p)[1] for p in begun)
        self.idle = self.idle + 1 if state == self.state else 0
        self.state = state

    def give_up(self, begun:list)->None:
        "Record pieces on which every worker died as failed"
        words, errors = last_words(self.workers), [e for e in map(raised_error, self.workers) if e]
        if not begun: raise RuntimeError(f'workers cannot start: {words}; their logs are in {self.logs()}')
        why = f'was killed, perhaps out of memory ({words})'
        if errors: why = f'ended with {errors[0]}; its log is in {self.logs()}'
        for p in begun: self.job.fail(p, self.call, f'every process that tried it {why}')
        self.state, self.idle = None, 0
        self.collect()

    def start(self)->None:
        "Start the requested number of workers, but no more than there will be pieces"
        # workers that call `then` need all results, so they get the finished pieces, too
        pieces = self.pieces_left() if self.todo.then is None else list(self.todo.pieces)
        n = min(self.launcher.jobs, max(len(pieces), self.total - len(self.todo.results)))
        worker = Worker(self.job, pieces, self.todo.then, self.call)
        self.n_starts += 1
        self.workers = start_workers(worker, n, self.logs(), self.launcher)

    def logs(self)->Path:
        """The folder of the present workers' files. Submitit names these by the number of a process or job, which may
        repeat, such as in another container; so each generation has a folder of its own."""
        return self.out/'workers'/f'{self.call}-{self.n_starts}'

    def end_workers(self)->None:
        "End local workers; say how to end Slurm jobs"
        if self.launcher.cluster == 'local': cancel_workers(self.workers)
        elif self.workers:
            ids = sorted({w.job_id.split('_')[0] for w in self.workers})
            self.progress.say(f'jobs {", ".join(ids)} continue in the cluster; the same command reads their results, '
                              'and scancel ends them')
