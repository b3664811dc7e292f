"""Small copies of a task's videos, from which a clip is decoded several times as fast.

    python experiments/prepare.py folder:videos             # to videos.prepared
    python experiments/prepare.py ucf101:data --jobs 16
    python experiments/compare.py --task ucf101:data ...    # uses them

H.264, upright, the short side scaled to --size, a key frame at least every --gop frames. Each copy is decoded again and compared with its original,
frame by frame, before it gets its name. Copies that are there already stay: after a break the same command goes on. Whatever reads the task by the same
name then uses the copies, says so, and has other keys for its runs; with `SDFAST_PREPARED=` set to nothing it uses the originals. A video that
cannot be copied is named, and is used as it is."""
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from unittest.mock import patch

import numpy as np
from fastcore.script import call_parse
from rich.progress import track

from ..data.datasets import create_task
from ..data.prepared import prepared_copies, read_manifest, try_copy, write_manifest
from ..errors import InputError


def prepare(spec, to, size, gop, quality, jobs):
    "The manifest, bad files with the reason, and the folder"
    if spec.partition(':')[0] == 'moving_digits': raise InputError('moving_digits is small already: there is nothing to prepare')
    with patch.dict(os.environ, SDFAST_PREPARED=''): task = create_task.__wrapped__(spec)  # of the originals
    df = task.df
    root = os.path.commonpath([os.path.dirname(p) for p in df.path])
    place = Path(to or f'{root}.prepared')
    if place.resolve() == Path(root).resolve(): raise InputError(f'--to {place} is where the originals are; choose another folder')
    made = dict(size=size, gop=gop, quality=quality, files={})
    if was := read_manifest(place):
        if other := [k for k in ('size', 'gop', 'quality') if was[k] != made[k]]:
            raise InputError(f'{place} has copies made with --{other[0]} {was[other[0]]}, not {made[other[0]]}; delete it or choose another folder with --to')
        made = was
    place.mkdir(parents=True, exist_ok=True)
    with patch.dict(os.environ, SDFAST_PREPARED=str(place)): there = prepared_copies(df.path)[0]
    todo = [p for p in dict.fromkeys(df.path) if p not in there]
    bad, since = {os.path.relpath(p, root):why for p, why in task.skipped.items()}, time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context('spawn')) if jobs > 1 else ThreadPoolExecutor(1) as pool:
        waiting = {pool.submit(try_copy, p, place/f'{os.path.relpath(p, root)}.mp4', size, gop, quality):os.path.relpath(p, root) for p in todo}
        try:
            for job in track(as_completed(waiting), f'{len(todo)} of {len(df)} videos', len(todo), disable=not sys.stdout.isatty()):
                found, why = job.result()
                if why: bad[waiting[job]] = why
                else: made['files'][waiting[job]] = found
                if time.monotonic() - since > 5:
                    write_manifest(place, made)
                    since = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            write_manifest(place, made)
    return made, bad, place


@call_parse
def main(
    task:str, # ucf101:PATH, hmdb51:PATH, folder:PATH or csv:PATH, as for compare.py
    to:str=None, # Folder for the copies; by default the videos' with .prepared behind its name, where they are found again. Elsewhere: set SDFAST_PREPARED to it
    size:int=128, # Short side of the copies in pixels; smaller videos keep theirs
    gop:int=12, # Frames from one key frame to the next
    quality:int=18, # x264's constant rate factor: less is better and larger
    jobs:int=os.cpu_count(), # Processes
):
    "Make small, quickly decoded copies of a task's videos; after a break the same command goes on"
    start = time.time()
    try:
        if min(size, gop, jobs) < 1 or size % 2 or not 0 <= quality <= 51: raise InputError(f'size must be even, size, gop and jobs at least 1 and quality 0 to 51, not {size}, {gop}, {jobs} and {quality}')
        made, bad, place = prepare(task, to, size, gop, quality, jobs)
    except (InputError, OSError) as e: sys.exit(f'prepare.py: {e}')
    except KeyboardInterrupt: sys.exit('prepare.py: stopped; the same command goes on from there')
    files = made['files'].values()
    for name, why in sorted(bad.items()): print(f'no copy of {name}: {why}')
    if files: print(f'{len(files)} copies in {place}, {sum(f["copy_bytes"] for f in files)/1e6:.1f} MB instead of {sum(f["bytes"] for f in files)/1e6:.1f}; '
                    f'off by {np.mean([f["error"] for f in files]):.2f} grey levels on average, {max(f["worst"] for f in files):.2f} in the worst frame; {time.time() - start:.0f} s')
    if bad: sys.exit(f'prepare.py: {len(bad)} videos have no copy and are used as they are')
