"""How far is a study? For another terminal.

    python experiments/status.py runs/compare              # once
    python experiments/status.py runs/compare --every 5    # again every 5 seconds, until Ctrl-C"""
import sys
import time

from fastcore.script import call_parse
from rich.console import Console
from rich.live import Live

from ..errors import InputError
from ..study.status import show_status


@call_parse  # runs at once in a script, so it comes last
def main(
    out:str, # Folder of the study, its --out
    every:float=0., # Seconds between two looks; 0: one look
):
    "Show what a study has done and does"
    console = Console()
    try:
        if not every: return console.print(show_status(out), highlight=False)
        with Live(show_status(out), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(max(.2, every))
                live.update(show_status(out), refresh=True)
    except InputError as e:
        print(f'status.py: {e}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt: pass
