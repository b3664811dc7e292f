"What a command shows while it works: lines of text and the progress of a file."
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

__all__ = ['console', 'say', 'show_bytes']

console = Console()


def say(
    text:str, # One line
)->None:
    "Print a line as it is"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def show_bytes(
    name:str, # Of the file
    done:int, # Bytes that were there before
    total:int|None, # Bytes of the whole file, if known
)->Iterator[Callable[[int], None]]: # A function to call with the number of bytes so far
    "Show the progress of a file: a bar on a terminal, else a line for each tenth"
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
