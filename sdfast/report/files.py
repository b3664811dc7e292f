"Reading a study's folder for a report: damaged files are left out, so that one of them does not cost the page."
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import Damaged
from ..runtime import store

__all__ = ['find_file']

# what reading a file raises that was cut off or overwritten
READ_ERRORS = (Damaged, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


def find_file(
    folders:Iterable, # Of one or more studies
    *parts, # Of the file's path in such a folder
    left_out:Callable[[Path], Any]=lambda file: None, # Called with each damaged file
)->Path|None: # In the first folder that has it undamaged
    """Find a file of a study.

    A file is damaged if it does not match the digest in the sealed file of its folder, or if that file is damaged."""
    for folder in folders:
        file = Path(folder).joinpath(*map(str, parts))
        if not file.exists(): continue
        if not is_damaged(file): return file
        left_out(file)
    return None


def is_damaged(file:Path)->bool:
    "Whether a file of a run, stage or source model is not as it was sealed"
    try: digests = _sealed_digests(file.parent)
    except Damaged: return True
    if file.name not in digests: return not file.is_file()
    try: return store.digest(file) != digests[file.name]
    except OSError: return True


def _sealed_digests(folder):
    "Digests of the files in a folder; none if it is not sealed. Raises `Damaged` if the sealed file is"
    digests: dict[str, str] = {}
    for file in [folder/'result.json', *folder.glob('reference-*.json')]:
        if file.exists(): digests |= store.read_json(file, checked=False).get('files') or {}
    return digests


def try_read(
    read:Callable[[Path], Any], # Reads a file
    file:Path|None, # `None`: there is none
    left_out:Callable[[Path], Any], # Called with the file if it cannot be read
    default:Any=None, # In place of its content
)->Any: # What `read` returns
    "Read a file, or leave it out"
    if file is None: return default
    try: return read(file)
    except READ_ERRORS:
        left_out(file)
        return default
