"Workers whose clock is wrong, that raise errors, or whose numbers repeat."
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from helpers import Log
from processes import ENV, compare_command
from submitit import LocalExecutor

from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.runtime.workers import raised_error
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')


def isolated(command):
    "The command in a container's process namespace, in which process ids begin at 1"
    return ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child', *command]


def has_namespaces():
    if not shutil.which('unshare'): return False
    return subprocess.run(isolated(['true']), capture_output=True).returncode == 0


JOBS = '''
import time
from sdfast.study import execute as execute_module
from sdfast.study.execute import RunJob


def fail(*args, **kwargs): raise ValueError('no such luck')


class Late(RunJob):
    "In workers the clock is an hour late, and every run fails"
    def listener(self):
        now = time.time
        time.time = lambda: now() - 3600
        execute_module.train_run = fail
        return super().listener()


class Broken(RunJob):
    "Has an error that is not the run's"
    def do(self, run, call, progress):
        self.folder(run).mkdir(parents=True, exist_ok=True)
        return None + 1
'''


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    "A module that this process and its workers can import"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    monkeypatch.delitem(sys.modules, 'unlucky', raising=False)
    (tmp_path/'unlucky.py').write_text(JOBS)
    import unlucky
    return unlucky


@pytest.mark.nightly
def test_clocks_need_not_agree(base, tmp_path, jobs):
    "A failure counts in the call in which it happened, whatever the clocks of its processes say"
    load_source(base, tmp_path)
    runs, job = [replace(base, seed=i, epochs=1) for i in range(2)], jobs.Late(str(tmp_path))
    rows = run_all(runs, job, tmp_path, launcher=Launcher(1, 'local'))
    assert [r['status'] for r in rows] == ['failed', 'failed']
    assert all('no such luck' in r['error'] for r in rows)
    assert len(list((tmp_path/'workers').iterdir())) == 1


@pytest.mark.nightly
def test_an_error_of_a_worker_is_named(base, tmp_path, jobs):
    "It is not taken for a lack of memory"
    rows = run_all([base], jobs.Broken(str(tmp_path)), tmp_path, Log(), Launcher(1, 'local'))
    assert 'ended with TypeError: unsupported operand' in rows[0]['error']
    assert 'killed' not in rows[0]['error']


def test_errors_are_told_from_deaths(tmp_path):
    executor = LocalExecutor(tmp_path)
    ends = [executor.submit(int, 'x'), executor.submit(int, '1'), executor.submit(os._exit, 9)]
    for job in ends: job._process.wait(60)
    assert [raised_error(job) for job in ends] == ["ValueError: invalid literal for int() with base 10: 'x'", '', '']


@pytest.mark.nightly
@pytest.mark.skipif(not has_namespaces(), reason='needs the right to make process namespaces')
def test_a_study_in_one_container_after_another(alone, spec, tmp_path):
    "Process ids repeat: results that earlier workers left are not taken for those of the present ones"
    out = tmp_path/'jobs'
    for _ in range(3):
        shutil.rmtree(out/'runs', ignore_errors=True)
        command = isolated(compare_command(out, spec, '--jobs', '2'))
        p = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=400)
        assert p.returncode == 0, p.stderr
        pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
