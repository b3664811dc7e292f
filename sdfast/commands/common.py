"Shared by the commands and the studies in `experiments/`: one-line errors, output folders, lists of names."
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..data.text import CONTROL
from ..errors import InputError, StoreError
from ..runtime.launcher import Launcher
from ..study.progress import LiveProgress
from .start import stop

__all__ = ['one_line_errors', 'check_path', 'make_folder', 'study_session', 'report_errors', 'pick_names',
           'pick_strengths']


@contextmanager
def one_line_errors(
    script:str, # Name of the script, with which the message begins
    out:str|Path='', # Folder of finished runs, checked by `check_path`, for the message after Ctrl-C
    then:str='', # Without `out`: what the message after Ctrl-C says in addition
)->Iterator[None]: # Context manager
    """End the process with one line on standard error: status 2 for wrong input or a file that cannot be read or
    written, 130 for Ctrl-C"""
    try:
        with _interruptible():
            check_path(out, '--out')
            yield
        return
    except (InputError, StoreError) as e:
        message = str(e).split(':\n\t')[-1]  # without the event's name, which fastai puts in front
        status = 2
    except (OSError, MemoryError) as e:
        message, status = ' '.join(str(e).split()) or 'out of memory', 2
    except KeyboardInterrupt:
        if out: then = f'finished runs are in {out}, the same command resumes'
        message, status = '; '.join(filter(None, ['stopped', then])), 130
    print(f'{script}: {message}', file=sys.stderr)
    sys.exit(status)


@contextmanager
def _interruptible():
    "Let Ctrl-C raise `KeyboardInterrupt`, where `start` has made it end the process"
    started = signal.getsignal(signal.SIGINT) is stop
    if started: signal.signal(signal.SIGINT, signal.default_int_handler)
    try: yield
    finally:
        if started: signal.signal(signal.SIGINT, stop)


def check_path(
    path:str|Path, # A folder or file to write to
    option:str, # Option that it comes from, for the message
)->None:
    "Raise `InputError` for a name that is not text: tables, pages and study files could not hold it"
    if CONTROL.search(str(path)):
        raise InputError(f'{option} must be a name in UTF-8 without control characters, not {ascii(str(path))}')


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
