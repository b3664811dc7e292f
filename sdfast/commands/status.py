"""Show the progress of a study, in another terminal.

    sdfast status runs/compare              # once
    sdfast status runs/compare --every 5    # every 5 seconds, until Ctrl-C"""
import time

from fastcore.script import call_parse
from rich.console import Console
from rich.live import Live

from ..runtime.output import make_console
from ..runtime.program import program
from ..study.status import show_status
from .common import one_line_errors

__all__ = ['main']

SHORTEST_PAUSE = .2  # minimum seconds between two updates


def watch(
    out:str, # Folder of the study
    every:float, # Seconds between two updates
    console:Console,
)->None:
    "Show a study's status and update it until Ctrl-C"
    try:
        with Live(show_status(out), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(max(SHORTEST_PAUSE, every))
                live.update(show_status(out), refresh=True)
    except KeyboardInterrupt: pass


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    out:str, # Folder of the study, its --out
    every:float=0., # Seconds between two updates; 0: show the status once
):
    "Show what a study has done and what it is doing"
    console = make_console()
    with one_line_errors(program('status'), out):
        if every: watch(out, every, console)
        else: console.print(show_status(out), highlight=False)
