"""Files that survive whatever happens to the process that writes them: whole or not at all, known to be what was written, and
with one owner at a time.

Locks are the kernel's (flock): they end with their process, however it ends."""
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import Busy, Damaged, StoreError

__all__ = ['home', 'write', 'write_json', 'read_json', 'digest', 'put', 'find', 'seal', 'verify', 'claim', 'owner']

LOCK, OWNER = '.lock', '.owner'


def home()->Path: # A folder, which need not be there yet
    "Where sdfast keeps what it makes once for all studies: `$SDFAST_HOME`, by default ~/.cache/sdfast"
    return Path(os.environ.get('SDFAST_HOME') or '~/.cache/sdfast').expanduser()


def write(
    path:str|Path, # File; its folder is there
    data:bytes|str, # Its content; text as UTF-8
)->None:
    "Replace a file whole or not at all, through a power cut too. Raises `StoreError` if the disk is full or cannot be written to"
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(tmp, 'wb') as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try: os.fsync(folder)  # the new name
        finally: os.close(folder)
    except OSError as e:
        with suppress(OSError): tmp.unlink()
        raise StoreError(f'{path} cannot be written: {e.strerror or e}. What was finished is kept; the same command goes on from there') from None


def _checksum(d): return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()


def write_json(
    path:str|Path, # File; its folder is there
    d:dict, # What JSON can hold
)->None:
    "`write` with a checksum of the content in it"
    write(path, json.dumps(d | dict(sha256=_checksum(json.loads(json.dumps(d)))), indent=1))


def read_json(
    path:str|Path, # File
)->dict: # Without the checksum
    "What `write_json` wrote. Raises `Damaged` for anything else, `FileNotFoundError` if there is nothing"
    try: d = json.loads(Path(path).read_bytes())
    except ValueError: d = None
    if not isinstance(d, dict) or d.pop('sha256', None) != _checksum(d): raise _damaged(path)
    return d


def _damaged(path): return Damaged(f'{path} is damaged: its content is not what its checksum was made of')


def digest(
    path:str|Path, # File
)->str: # Of SHA-256
    "Sixteen hex digits of a file's content"
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(2**20): h.update(block)
    return h.hexdigest()[:16]


def put(
    folder:str|Path, # Where
    name:str, # Begin of the file's name
    data:bytes, # Content
    suffix:str, # Of the file's name, without a dot
)->Path: # The file
    "`write` data under a name that ends in its digest, `NAME-DIGEST.SUFFIX`"
    file = Path(folder)/f'{name}-{hashlib.sha256(data).hexdigest()[:16]}.{suffix}'
    write(file, data)
    return file


def find(
    folder:str|Path, # Where
    name:str, # As given to `put`, or a pattern such as `epoch-*`
    suffix:str, # As given to `put`
    check:bool=True, # Compare the first file with its digest
)->list[Path]: # Files
    "Files that `put` wrote, by a pattern of their name, the last name first. With `check` raises `Damaged` for the first that is not what it was"
    files = sorted((f for f in Path(folder).glob(f'{name}-*.{suffix}') if re.fullmatch(r'.+-[0-9a-f]{16}', f.stem)), reverse=True)
    if check and files and digest(files[0]) != files[0].stem[-16:]: raise _damaged(files[0])
    return files


def seal(
    folder:str|Path, # What is sealed
    leave:Sequence[str]=(), # Names of files that may change
)->dict[str, str]: # File name -> digest
    "Digests of all files in a folder but `leave` and hidden ones, to be written down with what they belong to"
    return {f.name:digest(f) for f in sorted(Path(folder).iterdir()) if f.is_file() and f.name not in leave and not f.name.startswith('.')}


def verify(
    folder:str|Path, # What was sealed
    files:dict, # From `seal`
)->None:
    "Raises `Damaged` naming the first of `seal`'s files that is not what it was"
    for name, want in files.items():
        file = Path(folder)/name
        if not file.is_file(): raise Damaged(f'{file} is missing')
        if digest(file) != want: raise _damaged(file)


@contextmanager
def claim(
    folder:str|Path, # Made if it is not there
    wait:bool=True, # Until it is free, or raise `Busy`
    told:Callable|None=None, # Called with a text once, if there is something to wait for
    every:float=.2, # Seconds between two looks
)->Iterator[Path]: # A context manager that gives `folder`
    "Be the only process that works in `folder`; a process that dies lets go of it"
    folder = Path(folder)
    try: folder.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise StoreError(f'{folder} cannot be made: {e.strerror or e}') from None
    lock = FileLock(folder/LOCK, timeout=0, thread_local=False)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            if not wait: raise Busy(f'{folder} is being worked on by {owner(folder) or "another process"}') from None
        except OSError as e: raise StoreError(f'{folder} cannot be locked: {e.strerror or e}') from None
        if told is not None:
            told(f'waiting for {owner(folder) or "another process"}, which works on {folder}')
            told = None
        time.sleep(every)
    try:
        try: (folder/OWNER).write_text(f'process {os.getpid()} on {socket.gethostname()}')
        except OSError as e: raise StoreError(f'{folder} cannot be written to: {e.strerror or e}') from None
        yield folder
    finally:
        with suppress(OSError): (folder/OWNER).unlink()
        lock.release()


def owner(
    folder:str|Path, # As given to `claim`
)->str: # Host and process
    "Who works in `folder`; '' if nobody does"
    file = Path(folder)/LOCK
    if not file.exists(): return ''
    lock = FileLock(file, timeout=0, thread_local=False)
    try: lock.acquire()
    except Timeout:
        try: return (Path(folder)/OWNER).read_text() or 'another process'
        except OSError: return 'another process'
    except OSError: return ''
    lock.release()
    return ''
