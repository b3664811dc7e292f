"""UCF101 and HMDB51, videos and official lists, from their official hosts.

    python experiments/get_data.py ucf101 --to data    # 6.9 GB, and 14 GB of disk until the archive is deleted
    python experiments/get_data.py hmdb51 --to data    # 2.1 GB and 4.5 GB
    python experiments/compare.py --task ucf101:data ...

What is there already is not done again: after a break, a Ctrl-C or a kill the same command goes on from there. An archive that
you put into --to under its own name is used instead of downloading it. rar archives need unrar, unar, 7z or bsdtar."""
import hashlib
import os
import shutil
import ssl
import stat
import subprocess
import sys
import time
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fastcore.script import call_parse, store_true
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .. import __version__
from ..errors import InputError

TIMEOUT = 30  # seconds without a byte
WAITS = (1, 3, 10, 30)  # seconds before a further attempt
SEVEN = ['x', '-y', '-bd']
UNPACKERS = {'unrar': ['x', '-y', '-idq'], 'unar': ['-quiet', '-force-overwrite', '-no-directory'], '7z': SEVEN, '7zz': SEVEN, 'bsdtar': ['-xf']}
GO_ON = 'the same command goes on from there'
HELP = 'name another host with --url-base, or put the file into --to yourself'
console = Console()


@dataclass(frozen=True)
class Archive:
    "A file on the host and the folder that it becomes"
    name:str
    folder:str
    size:int # Bytes, about
    room:int # Bytes on disk while it is unpacked, about
    sha256:str|None


@dataclass(frozen=True)
class DataSet:
    "Two archives and what must be in them"
    base:str # Address of both
    lists:Archive
    videos:Archive
    counts:tuple # Classes, videos, and fold 1's train and test videos


# The sums are those of torchvision's prototype datasets (pytorch/vision, torchvision/prototype/datasets/_builtin/ucf101.py and
# hmdb51.py); tensorflow/datasets' url_checksums/ucf101.txt has the same one for UCF101's lists. HMDB51's former host,
# serre-lab.clps.brown.edu, is gone (voxel51/fiftyone#6528); the lab's own site names this one.
DATASETS = dict(
    ucf101=DataSet('https://www.crcv.ucf.edu/data/UCF101',
        Archive('UCF101TrainTestSplits-RecognitionTask.zip', 'ucfTrainTestlist', 113_943, 3_000_000,
                '5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27'),
        Archive('UCF101.rar', 'UCF-101', 6_932_971_618, 7_100_000_000, 'ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55'),
        (101, 13320, 9537, 3783)),
    hmdb51=DataSet('https://huggingface.co/datasets/Serrelab/hmdb51/resolve/main',
        Archive('test_train_splits.rar', 'testTrainMulti_7030_splits', 200_000, 3_000_000, '229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7'),
        Archive('hmdb51_org.rar', 'hmdb51', 2_130_000_000, 2_300_000_000, '9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e'),
        (51, 6766, 3570, 1530)))


def say(text): console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress(name, done, total):
    "A function to call with the bytes so far: a bar on a terminal, else a line every tenth"
    if console.is_terminal:
        columns = TextColumn(name, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(name, completed=done, total=total)
            yield lambda n: bar.update(task, completed=n)
    else:
        tenth = 10*done // total if total else 0
        def show(n):
            nonlocal tenth
            if total and 10*n // total > tenth:
                tenth = 10*n // total
                say(f'{name}: {10*tenth}% of {decimal(total)}')
        yield show


@contextmanager
def disk(path):
    "An error here is the disk's, not the network's"
    try: yield
    except OSError as e: raise InputError(f'{path} cannot be written: {e.strerror}') from None


def size(path): return path.stat().st_size if path.exists() else 0


def fetch(url, part, context=None):
    "Add to `part` what it lacks; begin anew where the host ignores ranges or has another file by now"
    stamp = part.with_name(f'{part.name}.stamp')  # length and version of the file of which `part` is the beginning
    length, _, version = stamp.read_text().partition(' ') if stamp.exists() else ('', '', '')
    done = size(part) if length else 0
    if length == str(done): return
    headers = {'User-Agent': f'sdfast/{__version__}'}  # some hosts turn urllib's own away
    if done: headers |= {'Range': f'bytes={done}-'} | ({'If-Range': version} if version else {})
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT, context=context) as answer:
        got = answer.headers
        if got.get_content_type() == 'text/html': raise InputError(f'{url} is a web page here: log in to the network, or {HELP}')
        etag, span = got.get('ETag', ''), got.get('Content-Range', '')
        now = etag if etag.startswith('"') else got.get('Last-Modified', '')  # a weak ETag is none for If-Range
        if answer.status == 206 and not (span.startswith(f'bytes {done}-') and span.endswith(f'/{length}') and now in ('', version)):
            part.unlink()
            raise ConnectionError('the file on the host has changed')
        if answer.status != 206: done, length = 0, got.get('Content-Length', '')
        total = int(length) if length.isdigit() else None
        with progress(part.stem, done, total) as show:
            with disk(part):
                out = open(part, 'ab' if done else 'wb')
                if not done: stamp.write_text(f'{total} {now}')  # after the old bytes are gone, before new ones come
            with out:
                while done != total and (block := answer.read1(1 << 18)):
                    with disk(part):
                        out.write(block)
                        out.flush()
                    done += len(block)
                    show(done)
    if total and done < total: raise ConnectionError(f'the connection broke off at {decimal(done)} of {decimal(total)}')


def download(archive, to, base, context=None):
    "The whole archive in `to`, checked against its published sum"
    file, part, url = to/archive.name, to/f'{archive.name}.part', f'{base}/{archive.name}'
    if not file.exists():
        say(f'downloading {url}' + (f', {decimal(size(part))} are here' if size(part) else ''))
        failed, best = 0, size(part)
        while True:
            try:
                fetch(url, part, context)
                break
            except HTTPError as e:
                if e.code == 416: part.unlink(missing_ok=True)  # longer than what the host has
                elif e.code < 500 and e.code not in (408, 429): raise InputError(f'{url}: {e.code} {e.reason}; {HELP}') from None
                why = f'{e.code} {e.reason}'
            except (OSError, HTTPException) as e:
                why = getattr(e, 'reason', e)
                if isinstance(why, ssl.SSLCertVerificationError):
                    check = 'the file is still checked against its published sum' if archive.sha256 else 'but nothing then checks the file'
                    raise InputError(f'{url}: the certificate cannot be verified ({why.verify_message}); go on with --insecure ({check}), {HELP}') from None
            failed, best = (failed + 1, best) if size(part) <= best else (1, size(part))
            if failed > len(WAITS): raise InputError(f'{url}: {why}; ' + (f'{decimal(size(part))} are here, {GO_ON}' if size(part) else f'try again later, or {HELP}'))
            say(f'{archive.name}: {why}; again in {WAITS[failed - 1]} s')
            time.sleep(WAITS[failed - 1])
    whole, place, found = file if file.exists() else part, file, archive.sha256
    if archive.sha256:
        say(f'checking {archive.name}')
        if (found := sha256(whole)) != archive.sha256: place = to/f'{archive.name}.bad'
    whole.replace(place)
    part.with_name(f'{part.name}.stamp').unlink(missing_ok=True)
    if place != file: raise InputError(f'{archive.name} is not the published file (sha256 {found[:8]}…, not {archive.sha256[:8]}…) and is now {place}: '
                                       'the same command downloads it anew; to use it as it is, rename it back and add --no-checksum')
    return file


def sha256(file):
    found = hashlib.sha256()
    with open(file, 'rb') as f:
        while block := f.read(1 << 20): found.update(block)
    return found.hexdigest()


def unzip(file, folder):
    try:
        with zipfile.ZipFile(file) as z:
            for name in z.namelist():
                if not (folder/name).resolve().is_relative_to(folder.resolve()): raise InputError(f'{file} would write outside its folder: {name}')
            need, free = sum(i.file_size for i in z.infolist()), shutil.disk_usage(folder).free
            if need > free: raise InputError(f'{file} would become {decimal(need)}, and {folder.parent} has {decimal(free)} free')
            z.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as e:  # RuntimeError: encrypted, or of an unknown kind
        raise InputError(f'{file} cannot be unpacked ({e}): delete it, and the same command downloads it anew') from None


def unpackers():
    "Those installed, with where they are"
    found = {tool:path for tool in UNPACKERS if (path := shutil.which(tool))}
    if not found: raise InputError(f'rar archives need one of {", ".join(UNPACKERS)}, and none is installed: for example `apt install unar` or '
                                   f'`brew install unar`; what is downloaded is kept, {GO_ON}')
    return found


def only_files(folder, file):
    "Links and devices are no part of these sets: the next archive, unpacked over a link, would write where it leads"
    for d, dirs, names in os.walk(folder):
        for path in (Path(d, name) for name in (*dirs, *names)):
            s = path.lstat()
            if not (stat.S_ISDIR(s.st_mode) or stat.S_ISREG(s.st_mode) and s.st_nlink == 1):
                raise InputError(f'{file} has a link or a device in it, {path.relative_to(folder)}, and is not one of these data sets')


def unrar(file, folder):
    "By the first unpacker that can: not every one knows every kind of rar"
    said = []
    for tool, path in unpackers().items():
        # in its folder, with a relative name: to some of them [ ] * in a path are wildcards
        command = [path, *UNPACKERS[tool], os.path.relpath(file, folder)]
        p = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace')
        only_files(folder, file)  # of one that failed, too: the next would unpack over what it left
        if not p.returncode: return
        said.append(f'{tool}: {[f"status {p.returncode}", *filter(str.strip, (p.stdout + p.stderr).splitlines())][-1].strip()}')
    raise InputError(f'{file} cannot be unpacked ({"; ".join(said)}): install another of {", ".join(UNPACKERS)}; {GO_ON}')


def unpack(file, folder):
    "`folder` from its archive and the archives in that; it has its name only when it is whole"
    say(f'unpacking {file.name}')
    tmp = folder.with_name(f'{folder.name}.unpacking')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        with console.status(file.name) as status:
            (unzip if file.suffix == '.zip' else unrar)(file, tmp)
            for inner in [Path(d, name) for d, _, names in os.walk(tmp) for name in names if name.endswith('.rar')]:
                status.update(inner.name)
                unrar(inner, tmp)
                inner.unlink()  # at once, so that the disk never holds all of them twice
        top = tmp/folder.name
        (top if top.is_dir() else tmp).rename(folder)
    finally: shutil.rmtree(tmp, ignore_errors=True)


def count(videos, lists):
    "Classes, videos, and train and test videos of fold 1 by either kind of official list"
    def lines(file): return [line.split() for line in file.read_text(errors='replace').splitlines() if line.strip()]
    sizes = [sum(f.name.endswith('.avi') for f in os.scandir(c)) for c in os.scandir(videos) if c.is_dir()]
    if (lists/'trainlist01.txt').exists(): fold = [len(lines(lists/f'{part}list01.txt')) for part in ('train', 'test')]
    else:
        tags = [words[-1] for file in lists.glob('*_test_split1.txt') for words in lines(file)]
        fold = [tags.count('1'), tags.count('2')]
    return sum(map(bool, sizes)), sum(sizes), *fold


def get(data, to, base=None, context=None, keep=False):
    "Download and unpack what is not there yet; what is there then, counted"
    todo = [a for a in (data.lists, data.videos) if not (to/a.folder).is_dir()]
    if any(a.name.endswith('.rar') for a in todo): unpackers()  # told now, not after hours
    need = sum(a.room + (0 if (to/a.name).exists() else max(0, a.size - size(to/f'{a.name}.part'))) for a in todo)
    if need > (free := shutil.disk_usage(to).free): raise InputError(f'{to} has {decimal(free)} free, {decimal(need)} are needed')
    for a in todo: unpack(download(a, to, base or data.base, context), to/a.folder)
    videos, lists = to/data.videos.folder, to/data.lists.folder
    found = count(videos, lists)
    for folder, what, part in ((videos, '{:,} classes and {:,} videos', slice(2)), (lists, '{:,} train and {:,} test videos in fold 1', slice(2, 4))):
        told, due = what.format(*found[part]), what.format(*data.counts[part])
        if told != due: raise InputError(f'{folder} has {told}, not {due}: delete it, and the same command unpacks or downloads it anew')
    if not keep:
        for a in (data.lists, data.videos):
            for suffix in ('', '.bad', '.part', '.part.stamp'): (to/f'{a.name}{suffix}').unlink(missing_ok=True)
    return found


def _fail(message, status=2):
    print(f'get_data.py: {message}', file=sys.stderr)
    return status


@call_parse  # runs at once in a script, so it comes last
def main(
    name:str, # ucf101 or hmdb51
    to:str=None, # Folder for the videos and the lists, made if need be; must be given
    keep_archives:store_true=False, # Do not delete the archives at the end
    url_base:str=None, # Address of another host's folder with the same files
    insecure:store_true=False, # Do not verify the host's certificate; the files are still checked against their published sums
    no_checksum:store_true=False, # Take the files as the host has them
):
    "Download UCF101 (6.9 GB) or HMDB51 (2.1 GB), videos and official lists; after a break the same command goes on. Needs unrar, unar, 7z or bsdtar"
    try:
        if name not in DATASETS: raise InputError(f'unknown dataset {name!r}; known are {", ".join(DATASETS)}')
        if not to: raise InputError('--to: the folder for the videos and the lists is missing')
        if url_base and not url_base.startswith(('http://', 'https://')): raise InputError(f'--url-base must begin with http:// or https://, not {url_base!r}')
        data, to = DATASETS[name], Path(to)
        if no_checksum: data = replace(data, lists=replace(data.lists, sha256=None), videos=replace(data.videos, sha256=None))
        if insecure and not (data.lists.sha256 and data.videos.sha256): say('warning: with neither certificate nor checksum nobody knows what arrives')
        with disk(to): to.mkdir(parents=True, exist_ok=True)
        found = get(data, to, url_base and url_base.rstrip('/'), ssl._create_unverified_context() if insecure else None, keep_archives)
    except (InputError, OSError) as e: sys.exit(_fail(e))
    except KeyboardInterrupt: sys.exit(_fail(f'stopped; {GO_ON}', 130))
    say('{}: {:,} classes, {:,} videos, {:,} train and {:,} test in fold 1; use it as {}:{}'.format(name, *found, name, to))
