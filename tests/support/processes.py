"Processes that tests start, wait for and kill."
import faulthandler
import gc
import json
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

from sdfast.runtime.progress import Progress

ROOT = Path(__file__).parents[2]
ENV = os.environ | dict(OMP_NUM_THREADS='1')

linux = pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='reads /proc')


def fork(f):
    "Call `f` in a process of its own, which has imported everything already; returns its number"
    if (pid := os.fork()) == 0:
        code = 1
        try:
            gc.freeze()  # see `alone`
            f()
            code = 0
        finally: os._exit(code)
    return pid


def alone(function, *args, limit=240):
    "What a function returns in a forked process, which is killed after `limit` seconds"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            # collecting garbage of the parent would wait for codec threads that a forked process does not have
            gc.freeze()
            faulthandler.register(signal.SIGALRM, chain=True)  # where it hung
            signal.alarm(limit)
            os.close(r)
            with os.fdopen(w, 'w') as out: json.dump(function(*args), out)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(99)
    os.close(w)
    with os.fdopen(r) as found: text = found.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert not code, f'{function.__name__}{args}: exit status {code}'
    return json.loads(text)


def exit_codes(pids):
    "Wait for processes"
    return [os.waitpid(pid, 0)[1] for pid in pids]


def kill_until_done(work, batches, delay=lambda: 0., killed=lambda: None):
    """Fork `work(progress)` and kill it, again and again until it ends; returns how often it was killed.

    `batches(kills)` is the number of batches before the next kill, `delay()` the seconds after them, and `killed` is
    called after each kill."""
    seen, kills = mp.Value('i', 0), 0
    class Count(Progress):
        def epoch(self, epoch, done): seen.value += 1
    while True:
        pid = fork(lambda: work(Count()))
        until, ended = seen.value + batches(kills), (0, 0)
        while seen.value < until and ended == (0, 0):
            time.sleep(.001)
            ended = os.waitpid(pid, os.WNOHANG)
        if ended != (0, 0): break
        time.sleep(delay())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        killed()
    assert ended == (pid, 0)
    return kills


def compare_command(out, spec, *args):
    "A small study with ten runs, by the command line"
    options = dict(task=spec, source=spec, frames=4, size=24, epochs=4, source_epochs=2, bs=4, strategies='ema_teacher',
                   lams='1,10', seeds=3, out=out)
    words = [w for k, v in options.items() for w in (f'--{k.replace("_", "-")}', str(v))]
    return [sys.executable, str(ROOT/'experiments/compare.py'), *words, *args]


def wait_for(what, seconds=240):
    "What `what()` returns, as soon as it is true"
    deadline = time.time() + seconds
    while not (found := what()) and time.time() < deadline: time.sleep(.05)
    assert found
    return found


def worker_pids(out):
    "Numbers of submitit's worker processes of a study"
    found = []
    for p in Path('/proc').glob('[0-9]*/cmdline'):
        try: line = p.read_text()
        except OSError: continue
        if f'{out}/workers' in line and 'submitit.core._submit' in line: found.append(int(p.parent.name))
    return found
