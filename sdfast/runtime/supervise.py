"Supervising workers: collecting their results, replacing dead workers."
import time
from pathlib import Path

from . import store
from .jobs import Job, WorkList
from .launcher import Launcher
from .progress import Progress
from .workers import Worker, cancel_workers, is_alive, last_words, returned_error, start_workers

__all__ = ['Supervisor']

MAX_IDLE = 2  # give up when so many generations of workers in a row end without finishing an epoch


class Supervisor:
    "Starts workers, replaces dead ones, collects their results and reports their progress"
    def __init__(self,
        todo:WorkList, # What is to be done
        job:Job, # How a piece is done, and where
        out:Path, # The study's folder; the workers' logs are in `out/workers`
        launcher:Launcher, # Where to start workers, and how many
        progress:Progress=Progress(), # Progress listener
        since:float=0., # Failures before this time are tried again, in seconds since the epoch
        total:int=0, # As in `run_all`
    ):
        self.todo, self.job, self.out, self.launcher, self.progress = todo, job, out, launcher, progress
        self.since, self.total = since, total
        self.workers: list = []
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
            result = self.job.read(self.todo.pieces[i], self.since, self.progress)
            if result is None: continue
            self.todo.done(i, result)
            self.job.report(result, skipped, self.progress)

    def pieces_left(self)->list: return [self.todo.pieces[i] for i in self.todo.left]

    def report_running(self)->None:
        running = [p for p in self.pieces_left() if (self.job.folder(p)/store.OWNER).exists()]
        self.progress.running([self.job.at(p) for p in running])

    def replace_workers(self)->None:
        """Start new workers after all have ended.

        Raises an error that every worker would meet; marks pieces that kill every worker as failed."""
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
        "Record pieces that killed every worker as failed"
        words = last_words(self.workers)
        if not begun: raise RuntimeError(f'workers cannot start: {words}; their logs are in {self.out/"workers"}')
        for p in begun: self.job.fail(p, f'every process that tried it was killed, perhaps out of memory ({words})')
        self.state, self.idle = None, 0
        self.collect()

    def start(self)->None:
        "Start the requested number of workers, but no more than there will be pieces"
        # workers that call `then` need all results, so they get the finished pieces, too
        pieces = self.pieces_left() if self.todo.then is None else list(self.todo.pieces)
        n = min(self.launcher.jobs, max(len(pieces), self.total - len(self.todo.results)))
        worker = Worker(self.job, pieces, self.todo.then, self.since)
        self.workers = start_workers(worker, n, self.out/'workers', self.launcher)

    def end_workers(self)->None:
        "End local workers; say how to end Slurm jobs"
        if self.launcher.cluster == 'local': cancel_workers(self.workers)
        elif self.workers:
            ids = sorted({w.job_id.split('_')[0] for w in self.workers})
            self.progress.say(f'jobs {", ".join(ids)} continue in the cluster; the same command reads their results, '
                              'and scancel ends them')
