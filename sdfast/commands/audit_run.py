"The work of `sdfast audit`: from arguments to the page, tables and what is printed."
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..report.audit_page import write_audit_page
from ..report.audit_summary import summary_table
from ..report.audit_tables import audit_content, write_audit
from ..runtime.output import make_console
from ..runtime.progress import Progress, listening
from ..study.audit import AuditSettings, audit_checkpoints
from .common import make_folder

__all__ = ['run_audit']


def run_audit(
    out:str|Path, # Folder to write to
    given:dict, # before, after, task, and fields of `AuditSettings`
    command:str, # To repeat it
    say:Callable[[str], Any], # Called with what is being done
)->str: # What to print at the end
    "Audit checkpoints and write what came out"
    before, after, tasks = (given.pop(name) for name in ('before', 'after', 'task'))
    settings = AuditSettings(**given)
    folder = make_folder(out)
    # `say` names each step, so the bars of single loops are not needed
    with warnings.catch_warnings(), listening(Progress()):
        warnings.simplefilter('ignore', FutureWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        base, results = audit_checkpoints(before, after, tasks, settings, say)
    for note in dict.fromkeys(n for r in results for n in r.notes): say(f'note: {note}')
    say('writing the page')
    content = audit_content(base, results, settings, command)
    write_audit(folder, content, results)
    page = write_audit_page(folder)
    console: Console = make_console()
    with console.capture() as text: console.print(summary_table(content).to_rich(console.width))
    return f'{text.get()}written: {page}, to open in a browser; next to it audit.json, audit.csv, layers.csv, clips.csv'
