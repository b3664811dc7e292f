"Download a file: resume and retry when the connection breaks, and check the published checksum."
import hashlib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.filesize import decimal

from .. import __version__
from ..errors import InputError
from .console import say, show_bytes

__all__ = ['Archive', 'download']

TIMEOUT = 30  # seconds without data
WAITS = (1, 3, 10, 30)  # seconds before each further attempt
RESUMES = 'the same command resumes'
HELP = 'name another host with --url-base, or put the file into --to yourself'


@dataclass(frozen=True)
class Archive:
    "An archive on the host, and the folder to unpack it to"
    name:str # File name
    folder:str # Name of the folder
    size:int # Approximate size in bytes
    room:int # Approximate number of bytes on disk that unpacking needs
    sha256:str|None # Published checksum, 64 hex digits; `None`: the file is not checked


@contextmanager
def disk_errors(path:Path)->Iterator[None]:
    "Turn a disk error into an `InputError`, so that it is not handled as a network error"
    try: yield
    except OSError as e: raise InputError(f'{path} cannot be written: {e.strerror}') from None


def size(path:Path)->int:
    "Size of a file in bytes, 0 if it does not exist"
    return path.stat().st_size if path.exists() else 0


def download(
    archive:Archive, # What to download
    to:Path, # Folder; if it has a file of the archive's name, that is used and nothing is downloaded
    base:str, # URL of the host's folder
    context:ssl.SSLContext|None=None, # `None` verifies the host's certificate
)->Path: # The complete file
    "Download an archive and verify its published checksum. Raises `InputError`"
    file = to/archive.name
    if file.exists(): part = file
    else:
        part = to/f'{archive.name}.part'
        _fetch_until_complete(f'{base}/{archive.name}', part, archive.sha256, context)
    if archive.sha256:
        say(f'checking {archive.name}')
        found = sha256(part)
        if found != archive.sha256:
            bad = to/f'{archive.name}.bad'
            part.replace(bad)
            _stamp(to/f'{archive.name}.part').unlink(missing_ok=True)
            sums = f'sha256 {found[:8]}…, not {archive.sha256[:8]}…'
            raise InputError(f'{archive.name} is not the published file ({sums}) and is now {bad}: the same command '
                             'downloads it again; to use it as it is, rename it back and add --no-checksum')
    part.replace(file)
    _stamp(to/f'{archive.name}.part').unlink(missing_ok=True)
    return file


def sha256(file:Path)->str:
    "Checksum of a file's content"
    found = hashlib.sha256()
    with open(file, 'rb') as f:
        while block := f.read(1 << 20): found.update(block)
    return found.hexdigest()


def _fetch_until_complete(url, part, checksum, context):
    "Repeat attempts until the file is complete, or until several in a row get no further"
    here = f', {decimal(size(part))} are here' if size(part) else ''
    say(f'downloading {url}{here}')
    failed, best = 0, size(part)
    while True:
        try:
            fetch(url, part, context)
            return
        except HTTPError as e:
            if e.code == 416: part.unlink(missing_ok=True)  # the part is longer than the host's file
            elif e.code < 500 and e.code not in (408, 429):
                raise InputError(f'{url}: {e.code} {e.reason}; {HELP}') from None
            why = f'{e.code} {e.reason}'
        except (OSError, HTTPException) as e:
            why = getattr(e, 'reason', e)
            if isinstance(why, ssl.SSLCertVerificationError):
                check = 'but nothing then checks the file'
                if checksum: check = 'the file is still checked against its published sum'
                raise InputError(f'{url}: the certificate cannot be verified ({why.verify_message}); '
                                 f'continue with --insecure ({check}), {HELP}') from None
        if size(part) > best: failed, best = 1, size(part)
        else: failed += 1
        if failed > len(WAITS):
            next_step = f'{decimal(size(part))} are here, {RESUMES}' if size(part) else f'try again later, or {HELP}'
            raise InputError(f'{url}: {why}; {next_step}')
        wait = WAITS[failed - 1]
        say(f'{part.stem}: {why}; again in {wait} s')
        time.sleep(wait)


def _stamp(part):
    "The path at which the length and version of the host's file are stored while `part` is incomplete"
    return part.with_name(f'{part.name}.stamp')


def fetch(url:str, part:Path, context:ssl.SSLContext|None=None)->None:
    """Download the rest of a file and append it to `part`.

    Starts from the beginning if the host ignores ranges or its file has changed."""
    stamp = _stamp(part)
    length, _, version = stamp.read_text().partition(' ') if stamp.exists() else ('', '', '')
    done = size(part) if length else 0
    if length == str(done): return
    headers = {'User-Agent': f'sdfast/{__version__}'}  # some hosts refuse urllib's own
    if done: headers['Range'] = f'bytes={done}-'
    if done and version: headers['If-Range'] = version
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT, context=context) as answer:
        if answer.headers.get_content_type() == 'text/html':
            raise InputError(f'{url} is a web page, not a file: log in to the network, or {HELP}')
        now = _version(answer.headers)
        if answer.status == 206:
            if not _continues(answer.headers, done, length) or now not in ('', version):
                part.unlink()
                raise ConnectionError('the file on the host has changed')
        else: done, length = 0, answer.headers.get('Content-Length', '')
        total = int(length) if length.isdigit() else None
        _append(answer, part, done, total, f'{total} {now}')


def _version(headers):
    "The version of a file, if the host gives one that is valid for If-Range; a weak ETag is not"
    etag = headers.get('ETag', '')
    return etag if etag.startswith('"') else headers.get('Last-Modified', '')


def _continues(headers, done, length):
    "Whether an answer is the rest of the file whose beginning is on disk"
    span = headers.get('Content-Range', '')
    return span.startswith(f'bytes {done}-') and span.endswith(f'/{length}')


def _append(answer, part, done, total, stamp):
    "Write the answer to `part` after its first `done` bytes"
    with show_bytes(part.stem, done, total) as show:
        with disk_errors(part):
            out = open(part, 'ab' if done else 'wb')
            if not done: _stamp(part).write_text(stamp)  # after `open` removed old bytes, before new ones are written
        with out:
            while done != total and (block := answer.read1(1 << 18)):
                with disk_errors(part):
                    out.write(block)
                    out.flush()
                done += len(block)
                show(done)
    if total and done < total: raise ConnectionError(f'the connection broke off at {decimal(done)} of {decimal(total)}')
