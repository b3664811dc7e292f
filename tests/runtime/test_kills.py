"A study whose processes are killed at random moments, again and again, ends with the rows of one that was left alone."
import os
import random
import signal
import subprocess
import time

import pandas as pd
import pytest
from processes import ENV, compare_command, linux, wait_for, worker_pids

KILLS = 20


@linux
@pytest.mark.nightly
def test_twenty_kills_of_coordinators_and_workers(alone, spec, tmp_path):
    "With real workers of submitit. A study that ends before all kills is followed by another one"
    rng, killed, studies = random.Random(7), [], 0
    while len(killed) < KILLS:
        studies += 1
        out = tmp_path/str(studies)
        while run_with_kills(compare_command(out, spec, '--jobs', '2'), out, rng, killed) != 0:
            wait_for(lambda: not worker_pids(out), 60)  # workers end with their coordinator
        pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
    print(f'{killed.count("coordinator")} coordinators and {killed.count("worker")} workers in {studies} studies')
    assert set(killed) == {'coordinator', 'worker'}


def run_with_kills(command, out, rng, killed):
    "Run a command and kill one of its processes again and again, mostly while it has workers; returns its status"
    p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV)
    try:
        while p.poll() is None:
            with_workers = rng.random() < .7
            while with_workers and p.poll() is None and not worker_pids(out): time.sleep(.2)
            time.sleep(rng.uniform(0, 14))
            if len(killed) >= KILLS: break
            workers = worker_pids(out)
            # not the last worker: runs on which all workers die twice without an epoch are given up
            pid = rng.choice([p.pid, *workers] if len(workers) > 1 else [p.pid])
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: continue  # it has just ended
            killed.append('coordinator' if pid == p.pid else 'worker')
        stderr = p.communicate(timeout=600)[1]
        assert p.returncode in (0, -signal.SIGKILL), stderr
        return p.returncode
    finally: p.kill()
