"""Work that several processes share.

The processes share only a folder. One of them claims a piece of work (`store.claim`), does or resumes it, and all read
its result. So any number of commands, workers and machines can take part, and any of them may die."""
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..errors import Busy
from .progress import Progress

__all__ = ['Job', 'WorkList', 'do_all']

RETRY = .2  # seconds until pieces of other processes are tried again


class Job(Protocol):
    """Interface: how pieces of work are done, and where their results are stored.

    Subclasses must be picklable, because workers receive them. A piece may be any picklable object; processes identify
    it by its folder alone. `call` is the id of a call of `run_all`: pieces that failed in other calls are tried again,
    once in each. So no process compares its clock with that of another one."""
    def folder(self, piece:object)->Path: "The folder of a piece"
    def read(self, piece:object, call:str, progress:Progress)->object:
        "The result of a finished piece, else `None`"
    def do(self, piece:object, call:str, progress:Progress)->object:
        "Do a piece, or read its result if it is finished. Raises `Busy` if another process works on it"
    def fail(self, piece:object, call:str, error:str)->None: "Record that every process that tried a piece has died"
    def at(self, piece:object)->tuple: "`(run, epochs done)` of an unfinished piece"
    def report(self, result:object, skipped:bool, progress:Progress)->None: "Report a result to `progress`"
    def listener(self)->AbstractContextManager[Progress]: "The progress listener of a worker process"


class WorkList:
    "Pieces of work, their results, and the pieces that follow from all results"
    def __init__(self,
        pieces:list, # What is to be done
        progress:Progress=Progress(), # Passed to `then`
        then:Callable|None=None, # Function of all results and `progress` that returns the pieces to do next
        record:Callable|None=None, # Called with all known pieces, at the start and when `then` has added some
    ):
        self.pieces, self.progress, self.then, self.record = list(pieces), progress, then, record
        self.left = list(range(len(self.pieces)))  # indices of pieces without a result
        self.results: dict[int, object] = {}  # index of a piece -> its result
        self._record()

    def _record(self):
        if self.record is not None: self.record(self.pieces)

    def more(self)->bool:
        "Whether any piece is left; once all are done, adds the pieces that `then` returns"
        if not self.left and self.then is not None:
            pieces = self.then(self.found(), self.progress)
            self.then = None
            self.left = list(range(len(self.pieces), len(self.pieces) + len(pieces)))
            self.pieces += pieces
            self._record()
        return bool(self.left)

    def done(self, i:int, result:object)->None:
        "Store the result of piece number `i`"
        self.results[i] = result
        self.left.remove(i)

    def found(self)->list:
        "All results, in the order of the pieces"
        return [self.results[i] for i in range(len(self.pieces))]


def do_all(
    todo:WorkList, # What is to be done
    job:Job, # How a piece is done
    call:str, # Id of the call of `run_all`; failures of other calls are tried again
    progress:Progress=Progress(), # Progress listener
)->None:
    "Do all pieces in this process; retry pieces of other processes until they are done"
    while todo.more():
        for i in list(todo.left):
            try: todo.done(i, job.do(todo.pieces[i], call, progress))
            except Busy: continue
        if todo.left: time.sleep(RETRY)
