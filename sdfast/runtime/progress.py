"""Progress of long work: the interface of listeners, and `track`, by which loops report to the current one."""
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from .output import make_console

__all__ = ['Progress', 'listening', 'begin_phase', 'track']

SLOW = 2.  # seconds after which a loop that nobody listens to shows a bar

T = TypeVar('T')


class Progress:
    "Listens to the progress of a study; this base class ignores everything"
    def plan(self, runs:list)->None: "Called once with all runs of the study, finished ones included"
    def start(self, what:object, epochs:int)->None: "Called when a run or the source stage starts"
    def epoch(self, epoch:int, done:float)->None: "Called after each batch with the share of the epoch that is done"
    def phase(self, what:str, done:float=0.)->None: "Called with what is done other than training, and its share so far"
    def done(self, row:dict, skipped:bool=False)->None: "Called with a run's result; `skipped`: it was finished before"
    def running(self, pieces:list)->None: "Called with `(run, epochs done)` of each run that other processes work on"
    def say(self, text:str)->None: "Called with a line for the reader"


_listener: ContextVar[Progress|None] = ContextVar('listener', default=None)


@contextmanager
def listening(
    progress:Progress, # Hears of the loops that `track` iterates
)->Iterator[None]: # Context manager
    "Make `track` report to a listener"
    token = _listener.set(progress)
    try: yield
    finally: _listener.reset(token)


def begin_phase(
    what:str, # What is done now, such as 'reading test'
)->None:
    "Report a phase of unknown length to the listener of `listening`"
    listener = _listener.get()
    if listener is not None: listener.phase(what)


def track(
    items:Iterable[T], # What to iterate, such as a loader
    what:str, # What is done with them, such as 'measuring'
    n:int|None=None, # Number of items; `None`: their `len`, if they have one
)->Iterator[T]: # The items
    """Iterate, and report the share that is done to the listener of `listening`.

    Without a listener a bar appears in a terminal, once the loop has taken two seconds."""
    if n is None:
        try: n = len(items)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError): n = 0  # the loader of a stream has `__len__`, which raises
    listener = _listener.get()
    if listener is None: yield from _with_bar(items, what, n)
    else:
        listener.phase(what)
        for i, item in enumerate(items, 1):
            yield item
            if n: listener.phase(what, min(1., i/n))


def _with_bar(items, what, n):
    start, bars = time.monotonic(), None
    terminal = sys.stdout is not None and sys.stdout.isatty()
    try:
        for i, item in enumerate(items, 1):
            yield item
            if bars is None and terminal and time.monotonic() - start > SLOW:
                bars = _bars(make_console(Console()))
                bars.start()
                bar = bars.add_task(what, total=n or None)
            if bars is not None: bars.update(bar, completed=i)
    finally:
        if bars is not None: bars.stop()


def _bars(console):
    return Bars(TextColumn('{task.description}'), BarColumn(20), TimeRemainingColumn(), console=console, transient=True)
