"""Make small copies of a task's videos, which are decoded several times as fast.

    sdfast prepare folder:videos             # to videos.prepared
    sdfast prepare ucf101:data --jobs 16
    sdfast compare --task ucf101:data ...    # uses the copies

Copies are H.264, upright, with the short side scaled to --size and a key frame at least every --gop frames. Each copy
is decoded again and compared with its original, frame by frame, before it gets its name. Existing copies are kept:
after an interruption the same command resumes. Commands that read the same task then use the copies and say so, and
their runs have other keys; with an empty `SDFAST_PREPARED=` they use the originals. If a video cannot be copied, it is
listed, and the original is used."""
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fastcore.script import call_parse
from rich.progress import track

from ..data.datasets import create_task
from ..data.prepared import copy_path, prepared_copies, read_manifest, try_copy, write_manifest
from ..errors import InputError
from ..runtime.program import program
from .console import console, say
from .download import RESUMES
from .one_line import check_path, one_line_errors

__all__ = ['main']

SAVE_SECONDS = 5  # between two writes of the manifest while copies are made
SETTINGS = 'size', 'gop', 'quality'  # settings that all copies in a folder share


def prepare(
    spec:str, # Spec of a task, see `create_task`
    to:str|Path|None, # Folder of the copies, by default that of `prepared_copies`
    size:int, # Short side in pixels
    gop:int, # Frames from one key frame to the next
    quality:int, # x264's constant rate factor
    jobs:int, # Number of processes
)->tuple[dict, dict, Path]: # The manifest; path -> reason for videos without a copy; the folder
    "Make the copies that do not exist yet"
    if spec.partition(':')[0] == 'moving_digits':
        raise InputError('moving_digits is small already: there is nothing to prepare')
    with patch.dict(os.environ, SDFAST_PREPARED=''): task = create_task.__wrapped__(spec)  # the task with its originals
    videos = list(dict.fromkeys(task.df.path))
    root = os.path.commonpath([os.path.dirname(p) for p in videos])
    folder = Path(to or f'{root}.prepared')
    if folder.resolve() == Path(root).resolve():
        raise InputError(f'--to {folder} is where the originals are; choose another folder')
    manifest = _manifest(folder, dict(size=size, gop=gop, quality=quality, files={}))
    folder.mkdir(parents=True, exist_ok=True)
    with patch.dict(os.environ, SDFAST_PREPARED=str(folder)): copies = prepared_copies(videos)[0]
    todo = [p for p in videos if p not in copies]
    bad = {os.path.relpath(p, root):why for p, why in task.skipped.items()}
    with _pool(jobs) as pool: bad |= _make_copies(pool, todo, root, folder, manifest)
    return manifest, bad, folder


def _manifest(folder, new):
    "The folder's manifest, or the new one if it has none. Raises `InputError` if their settings differ"
    old = read_manifest(folder)
    if not old: return new
    for name in SETTINGS:
        if old.get(name) == new[name]: continue
        raise InputError(f'{folder} has copies made with --{name} {old.get(name)}, not {new[name]}; '
                         'delete it or choose another folder with --to')
    return old


def _pool(jobs)->Executor:
    if jobs == 1: return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context('spawn'))


@contextmanager
def _ctrl_c_is_ours():
    "Start processes here that never see Ctrl-C, as this process ends them; it sees it afterwards"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try: yield
    finally: signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_copies(pool:Executor, paths:Iterable, root:str, folder:Path, manifest:dict):
    "Make the copies and add them to the manifest; returns name -> reason for those that fail"
    settings = [manifest[name] for name in SETTINGS]
    name_of = {}
    with _ctrl_c_is_ours():
        for path in paths:
            name = os.path.relpath(path, root)
            job = pool.submit(try_copy, path, copy_path(folder, name), *settings)
            name_of[job] = name
    bad = {}
    saved = time.monotonic()
    show = track(as_completed(name_of), f'{len(name_of)} videos', len(name_of), console=console,
                 disable=not console.is_terminal)
    try:
        for job in show:
            made, why = job.result()
            if why: bad[name_of[job]] = why
            else: manifest['files'][name_of[job]] = made
            if time.monotonic() - saved > SAVE_SECONDS:
                write_manifest(folder, manifest)
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)
        write_manifest(folder, manifest)
    return bad


def _summary(copies, folder):
    small, large = (sum(c[key] for c in copies)/1e6 for key in ('copy_bytes', 'bytes'))
    mean, worst = np.mean([c['error'] for c in copies]), max(c['worst'] for c in copies)
    return (f'{len(copies)} copies in {folder}, {small:.1f} MB instead of {large:.1f}; '
            f'off by {mean:.2f} grey levels on average, {worst:.2f} in the worst frame')


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    task:str, # Such as ucf101:PATH, kinetics:PATH, folder:PATH or csv:PATH, as for sdfast compare
    to:str=None, # Folder for the copies, by default the videos' with .prepared added; else also set SDFAST_PREPARED
    size:int=128, # Short side of the copies in pixels; smaller videos keep theirs
    gop:int=12, # Frames from one key frame to the next
    quality:int=18, # x264's constant rate factor: lower values give better and larger copies
    jobs:int=os.cpu_count() or 1, # Number of processes
)->None:
    "Make small, quickly decoded copies of a task's videos; if it is stopped, the same command resumes"
    start = time.time()
    with one_line_errors(program('prepare'), then=RESUMES):
        check_path(to or '', '--to')
        if min(size, gop, jobs) < 1 or size % 2 or not 0 <= quality <= 51:
            raise InputError('size must be even, size, gop and jobs at least 1 and quality 0 to 51, '
                             f'not {size}, {gop}, {jobs} and {quality}')
        manifest, bad, folder = prepare(task, to, size, gop, quality, jobs)
        for name, why in sorted(bad.items()): say(f'no copy of {name}: {why}')
        if manifest['files']: say(f'{_summary(manifest["files"].values(), folder)}; {time.time() - start:.0f} s')
    if bad: sys.exit(f'{program("prepare")}: {len(bad)} videos have no copy and are used as they are')
