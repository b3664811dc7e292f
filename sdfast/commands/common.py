"Shared by the commands and the studies in `experiments/`: one-line errors, output folders, lists of names."
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, StoreError
from ..runtime.launcher import Launcher
from ..study.progress import LiveProgress
from .one_line import check_path, one_line_errors

__all__ = ['one_line_errors', 'make_folder', 'study_session', 'report_errors', 'pick_names',
           'pick_strengths']


def make_folder(
    out:str|Path, # Folder to create, the value of --out
)->Path: # The folder
    "Create the folder of a study; raises `InputError` if this fails"
    check_path(out, '--out')
    out = Path(out)
    try: out.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
    return out


@contextmanager
def study_session(
    script:str, # Name of the script, with which error messages begin
    out:str|Path, # Folder of the study, created if needed
    jobs:int=1, # Worker processes
    launcher:str='', # Where workers run: local, or slurm
    slurm:str='', # Options of Slurm's jobs, see `Launcher`
)->Iterator[tuple[LiveProgress, Launcher]]: # Context manager
    "Open a study's folder and its progress display; errors and Ctrl-C end the process with one line"
    with one_line_errors(script, out):
        where = Launcher(jobs, launcher, slurm)
        make_folder(out)
        with LiveProgress() as progress: yield progress, where


@contextmanager
def report_errors(
    out:str|Path, # Folder of the study
    redo:str='', # Command that writes a part of the report, for the message
)->Iterator[None]: # Context manager
    "Say in one line, where a report cannot be written, that all runs are finished, and how to write it again"
    try: yield
    except (StoreError, OSError, MemoryError) as e:
        reason = str(e).partition('. Finished work')[0] or 'out of memory'
        more = f', and {redo}' if redo else ''
        raise StoreError(f'all runs are finished and kept in {out}, but their report is not complete: {reason}. '
                         f'The same command writes it without training{more}') from None


def pick_names(
    text:str, # Names separated by commas
    known:Sequence[str], # The names that may occur
    option:str, # Option that `text` comes from, for the message
)->list[str]: # In the order of `known`
    "Read a list of known names; raises `InputError` for an unknown name or an empty list"
    names = [n.strip() for n in text.split(',') if n.strip()]
    unknown = [n for n in names if n not in known]
    if unknown: raise InputError(f'{option}: unknown {unknown[0]!r}; known are {", ".join(known)}')
    if not names: raise InputError(f'{option} must name at least one of {", ".join(known)}')
    return [k for k in known if k in names]


def pick_strengths(
    text:str, # Numbers separated by commas
    option:str, # Option that `text` comes from, for the message
)->list[float]: # Without repeats, from weak to strong
    "Read a list of strengths above 0; raises `InputError` for anything else"
    try: values = [float(x) for x in text.split(',') if x.strip()]
    except ValueError: raise InputError(f'{option}: {text!r} are not numbers separated by commas') from None
    for v in values:
        if not 0 < v < float('inf'): raise InputError(f'{option}: strengths must be finite and above 0, not {v:g}')
    return sorted(set(values))
