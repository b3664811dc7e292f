"Errors of commands in one line; it imports nothing that takes time."
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, StoreError
from .start import stop

__all__ = ['one_line_errors', 'check_path']

CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')  # control characters, and bytes that are not UTF-8


@contextmanager
def one_line_errors(
    name:str, # Name of the command or script, with which the message begins
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
    print(f'{name}: {message}', file=sys.stderr)
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
