"Output of a command while it works: lines of text and the progress of a file."
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..runtime.output import make_console

__all__ = ['console', 'say', 'show_bytes']

console = make_console()


def say(
    text:str, # One line
)->None:
    "Print a line without markup or wrapping"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def show_bytes(
    name:str, # Name of the file
    done:int, # Number of bytes at the start
    total:int|None, # Number of bytes of the whole file, if known
)->Iterator[Callable[[int], None]]: # A function to call with the number of bytes so far
    "Show the progress of a file: a bar on a terminal, else a line for each 10 %"
    if console.is_terminal:
        columns = [TextColumn(name, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   TimeRemainingColumn()]
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, completed=done, total=total)
            yield lambda n: bar.update(task, completed=n)
        return
    tenths = 10*done // total if total else 0

    def show(n):
        nonlocal tenths
        if not total or 10*n // total <= tenths: return
        tenths = 10*n // total
        say(f'{name}: {10*tenths}% of {decimal(total)}')
    yield show
