"Why a run failed: its status, and a reason in one line that says what to do."
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..data.video import VideoError
from ..errors import InputError, StoreError

__all__ = ['failure_reason']

# what libraries say if an allocation fails: torch on CPUs and GPUs, CUDA's libraries, numpy, C++, the system, FFmpeg
NO_MEMORY = re.compile(r"can't allocate memory|cannot allocate memory|not enough memory|out of memory|out_of_memory|"
                       r'bad[_ ]alloc|unable to allocate|(failed|failure) to alloc|alloc[_ ]failed|allocation_failed|'
                       r'insufficient memory|memory allocation fail|MemoryError', re.IGNORECASE)
# what torch says if a loading process finds no room for a batch
NO_SHARED_MEMORY = re.compile(r'bus error|\(shm\)|</torch_|/dev/shm|shared memory (limit|object|file)', re.IGNORECASE)
KILLED = re.compile(r'DataLoader worker \(pid.*?\) (is killed|exited unexpectedly)')
IN_LOADER = re.compile(r'Caught \w+ in DataLoader worker process')


def error_message(e:BaseException)->str:
    "One line of an exception's message: without what fastai puts in front, and without a loading process's traceback"
    text = str(e).strip()
    lines = text.split(':\n\t')[-1].strip().splitlines()
    if not lines: return ''
    return lines[-1].strip() if IN_LOADER.search(text) else lines[0]


def is_out_of_memory(e:BaseException|None)->bool:
    "Whether an exception, or its cause, is an allocation that failed, here or in a loading process"
    if e is None or isinstance(e, InputError) and not isinstance(e, VideoError): return False
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or getattr(e, 'errno', None) == errno.ENOMEM: return True
    text = error_message(e)
    if isinstance(e, (RuntimeError, OSError, SystemError, VideoError)) and not NO_SHARED_MEMORY.search(text):
        if NO_MEMORY.search(text): return True
    return is_out_of_memory(e.__cause__)


def failure_status(e:BaseException)->str:
    "The status of a run that raised an exception"
    if isinstance(e, FloatingPointError): return 'diverged'
    if is_out_of_memory(e): return 'out of memory'
    return 'bad data' if isinstance(e, VideoError) else 'failed'


def failure_reason(
    e:BaseException, # That a run raised
)->str: # One line
    "Say what went wrong, and what to do where that is known"
    text = error_message(e)
    reason = text if text.startswith(type(e).__name__) else f'{type(e).__name__}: {text}'
    advice = _advice(e, str(e))
    return f'{reason}; {advice}' if advice else reason


def _advice(e, text):
    if NO_SHARED_MEMORY.search(text):
        return ('the loading processes have too little shared memory: load in the process itself with --workers 0, '
                'or enlarge /dev/shm')
    if KILLED.search(text):
        return ('a loading process was killed, perhaps for its memory or for a small /dev/shm: load in the process '
                'itself with --workers 0, or enlarge /dev/shm')
    if getattr(e, 'errno', None) in (errno.EMFILE, errno.ENFILE) or 'Too many open files' in text:
        return 'raise the limit of open files (ulimit -n), or load with --workers 0 or fewer'
    if is_out_of_memory(e): return 'try smaller batches, clips or fewer --workers'
    return ''


@contextmanager
def source_errors()->Iterator[None]:
    """Name in one line, by an `InputError`, what keeps the source stage from its end: memory, loading or files.

    No run can start without it, so there is no row to hold the failure. Other errors stay as they are."""
    try: yield
    except (InputError, StoreError): raise
    except Exception as e:
        text = str(e)
        expected = isinstance(e, OSError) or failure_status(e) == 'out of memory' or IN_LOADER.search(text)
        if not (expected or KILLED.search(text) or NO_SHARED_MEMORY.search(text)): raise
        raise InputError(f'the source model cannot be made: {failure_reason(e)}') from e
