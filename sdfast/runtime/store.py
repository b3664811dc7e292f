"""Files that survive the death of the process that writes them: they are whole or absent, and damage is detected.

A folder has one owner at a time. It is locked with flock, so the kernel releases the lock however the owner ends."""
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import Busy, Damaged, StoreError

__all__ = ['home', 'write', 'write_json', 'read_json', 'digest', 'put', 'find', 'seal', 'verify', 'claim', 'owner',
           'file_id']

LOCK, OWNER = '.lock', '.owner'  # files in a claimed folder: what is locked, and who locked it
DIGITS = 16  # number of hexadecimal digits of a digest
UNKNOWN = 'another process'  # an owner whose name cannot be read


def home()->Path: # A folder that need not exist
    "The folder for data that all studies share: `$SDFAST_HOME`, by default ~/.cache/sdfast"
    return Path(os.environ.get('SDFAST_HOME') or '~/.cache/sdfast').expanduser()


# ---- whole files

def write(
    path:str|Path, # File in an existing folder
    data:bytes|str, # Its content; text is encoded as UTF-8
)->None:
    "Replace a file as a whole or not at all, even if the power fails. Raises `StoreError`, e.g. if the disk is full"
    path = Path(path)
    tmp = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')  # process ids repeat in containers
    try:
        with open(tmp, 'wb') as f:
            f.write(data.encode(errors='backslashreplace') if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        _sync_folder(path.parent)
    except OSError as e:
        with suppress(OSError): tmp.unlink()
        raise StoreError(f'{path} cannot be written: {e.strerror or e}. Finished work is kept; '
                         'the same command resumes it') from None


def _sync_folder(folder):
    "Make new names in a folder survive a power failure"
    fd = os.open(folder, os.O_RDONLY)
    try: os.fsync(fd)
    finally: os.close(fd)


def write_json(
    path:str|Path, # File in an existing folder
    d:dict, # Values that JSON can hold
)->None:
    "`write` a dictionary with a checksum of its content"
    checksum = _checksum(json.loads(json.dumps(d)))  # of the dictionary as it is read back, with lists for tuples
    write(path, json.dumps(d | dict(sha256=checksum), indent=1))


def read_json(
    path:str|Path, # File
    checked:bool=True, # Take a dictionary without a checksum, of an older version or another program, for damage
)->dict: # Without the checksum
    "Read what `write_json` wrote. Raises `Damaged` for anything else, `FileNotFoundError` if there is no file"
    try: d = json.loads(_bytes_of(path))
    except (ValueError, RecursionError): d = None
    if not isinstance(d, dict): raise _damaged(path)
    checksum = d.pop('sha256', None)
    if checksum != _checksum(d) and (checked or checksum is not None): raise _damaged(path)
    return d


def _bytes_of(path):
    "The content of a file. Raises `Damaged` if it is there and cannot be read, such as a folder of this name"
    try: return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError): raise FileNotFoundError(f'{path} does not exist') from None
    except OSError as e: raise Damaged(f'{path} cannot be read: {e.strerror or e}') from None


def _checksum(d): return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()


def _damaged(path): return Damaged(f'{path} is damaged: its content does not match its checksum')


# ---- files with their digest in the name

def digest(
    path:str|Path, # File
)->str: # Hexadecimal digits of SHA-256
    "The first sixteen digits of the hash of a file's content"
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(2**20): h.update(block)
    return h.hexdigest()[:DIGITS]


def put(
    folder:str|Path, # Existing folder
    name:str, # First part of the file's name
    data:bytes, # Content
    suffix:str, # Of the file's name, without a dot
)->Path: # The file
    "`write` data to a file whose name ends in its digest, `NAME-DIGEST.SUFFIX`"
    file = Path(folder)/f'{name}-{hashlib.sha256(data).hexdigest()[:DIGITS]}.{suffix}'
    write(file, data)
    return file


def find(
    folder:str|Path, # Folder
    name:str, # As given to `put`, or a pattern such as `epoch-*`
    suffix:str, # As given to `put`
    check:bool=True, # Compare the first file with its digest
)->list[Path]: # In reverse order of their names
    "List the files that `put` wrote. With `check`, raises `Damaged` if the first one does not match its digest"
    files = [f for f in Path(folder).glob(f'{name}-*.{suffix}') if re.fullmatch(r'.+-[0-9a-f]{16}', f.stem)]
    files.sort(reverse=True)
    if check and files and digest(files[0]) != files[0].stem[-DIGITS:]: raise _damaged(files[0])
    return files


# ---- sealed folders

def seal(
    folder:str|Path, # Folder to seal
    leave:Sequence[str]=(), # Names of files that may change
)->dict[str, str]: # File name -> digest
    "Digests of all files in a folder except `leave` and hidden ones, to be stored with the result that they belong to"
    files = [f for f in sorted(Path(folder).iterdir()) if f.is_file() and not f.name.startswith('.')]
    return {f.name:digest(f) for f in files if f.name not in leave}


def verify(
    folder:str|Path, # The sealed folder
    files:dict, # From `seal`
)->None:
    "Raises `Damaged` for the first file that is missing or does not match its digest"
    for name, want in files.items():
        file = Path(folder)/name
        if not file.is_file(): raise Damaged(f'{file} is missing')
        try: found = digest(file)
        except OSError as e: raise Damaged(f'{file} cannot be read: {e.strerror or e}') from None
        if found != want: raise _damaged(file)


# ---- one owner at a time

@contextmanager
def claim(
    folder:str|Path, # Created if it does not exist
    wait:bool=True, # Wait until it is free; else raise `Busy`
    say:Callable|None=None, # Called once, with a line for the reader, if the folder is not free
    every:float=.2, # Seconds between two attempts
)->Iterator[Path]: # A context manager that gives `folder`
    "Be the only process that works in a folder. The claim ends with the context or with the process"
    folder = Path(folder)
    try: folder.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise StoreError(f'{folder} cannot be made: {e.strerror or e}') from None
    lock = FileLock(folder/LOCK, timeout=0, thread_local=False)
    while not _acquired(lock, folder):
        who = owner(folder) or UNKNOWN
        if not wait: raise Busy(f'{folder} is being worked on by {who}')
        if say is not None: say(f'waiting for {who}, which works on {folder}')
        say = None
        time.sleep(every)
    try:
        _write_owner(folder)
        yield folder
    finally:
        with suppress(OSError): (folder/OWNER).unlink()
        lock.release()


def _acquired(lock, folder):
    try: lock.acquire()
    except Timeout: return False
    except OSError as e: raise StoreError(f'{folder} cannot be locked: {e.strerror or e}') from None
    return True


def _write_owner(folder):
    try: (folder/OWNER).write_text(f'process {os.getpid()} on {socket.gethostname()}')
    except OSError as e: raise StoreError(f'{folder} cannot be written to: {e.strerror or e}') from None


def owner(
    folder:str|Path, # As given to `claim`
)->str: # Process and host
    "The process that works in a folder; '' if there is none"
    file = Path(folder)/LOCK
    if not file.exists(): return ''
    lock = FileLock(file, timeout=0, thread_local=False)
    try: lock.acquire()
    except Timeout:
        try: return (Path(folder)/OWNER).read_text(errors='replace').strip('\0') or UNKNOWN
        except OSError: return UNKNOWN
    except OSError: return ''
    lock.release()
    return ''


def file_id(
    path:str|Path|None, # A file, a folder of a model, or `None`, 'pretrained' or 'random' for none
)->str: # Sixteen hex digits of SHA-256, or ''
    "Hash of a file's content, or of the configuration and the weights in a folder; '' without a file"
    if path in (None, 'pretrained', 'random'): return ''
    path = Path(path)
    if not path.is_dir(): return digest(path)
    files = sorted(f for f in path.iterdir() if f.suffix in ('.json', '.safetensors', '.bin') and f.is_file())
    return hashlib.sha256(repr([(f.name, digest(f)) for f in files]).encode()).hexdigest()[:DIGITS]
