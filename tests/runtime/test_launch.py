"Workers share a study's runs, die and are replaced, and do what follows from all results."
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pandas as pd
import pytest
from helpers import Log
from processes import ENV, ROOT, compare_command, wait_for, worker_pids

from sdfast.errors import InputError
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.study import loaders as loaders_module
from sdfast.study import source as source_module
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.execute import RunJob, execute
from sdfast.study.source import load_source
from sdfast.study.status import snapshot

pytestmark = pytest.mark.usefixtures('fresh')

TWO = ('finetune', 'linear_probe')


def started_workers(out): return len(list((out/'workers').glob('*/*submitted.pkl')))


@pytest.fixture
def make_module(tmp_path, monkeypatch):
    "Write a module that this process and its workers can import"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    def make(name, code):
        (tmp_path/f'{name}.py').write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return make


@pytest.mark.nightly
def test_workers_are_killed_and_the_study_ends_the_same(alone, spec, tmp_path):
    "First a worker, then the process that the user started; the same command finishes the study"
    out = tmp_path/'jobs'
    command = compare_command(out, spec, '--jobs', '2')
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    def one_is_done():
        study = snapshot(out)
        return study if any(x['state'] == 'ok' for x in study['pieces']) else None
    try:
        wait_for(lambda: list(out.glob('runs/*/epoch-*.pt')) or list(out.glob('runs/*/result.json')))
        os.kill(wait_for(lambda: worker_pids(out))[0], signal.SIGKILL)
        study = wait_for(one_is_done)
        assert study['total'] == 10
        assert '--jobs 2' in study['command']
        os.kill(p.pid, signal.SIGKILL)
        p.communicate(timeout=60)
        wait_for(lambda: not worker_pids(out), 60)  # nobody waits for their results
    finally: p.kill()
    again = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=500)
    assert again.returncode == 0, again.stderr
    assert 'finished before' in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
    status = [sys.executable, str(ROOT/'experiments/status.py'), str(out)]
    shown = subprocess.run(status, capture_output=True, text=True, timeout=200).stdout
    assert '10 of 10 done, 0 running, 0 failed' in shown
    assert 'best on valid so far' in shown


DEADLY = '''
import os, signal
from sdfast.study.execute import RunJob


class Deadly(RunJob):
    "Kills the worker that tries the run of seed 1"
    def do(self, run, call, progress):
        if run.seed == 1:
            self.folder(run).mkdir(parents=True, exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(run, call, progress)
'''


@pytest.mark.nightly
def test_a_run_that_kills_its_workers_becomes_a_row(base, tmp_path, make_module):
    load_source(base, tmp_path)
    runs = [replace(base, seed=i, epochs=1) for i in range(3)]
    make_module('deadly', DEADLY)
    from deadly import Deadly
    rows = run_all(runs, Deadly(str(tmp_path)), tmp_path, log := Log(), Launcher(1, 'local'))
    assert [r['status'] for r in rows] == ['ok', 'failed', 'ok']
    assert 'was killed' in rows[1]['error']
    assert any('ended before all work was done' in l for l in log.lines)
    assert execute(runs[1], tmp_path)['status'] == 'ok'
    assert RunJob(str(tmp_path)).read(runs[1], '', log)['status'] == 'ok'


@pytest.mark.nightly
def test_workers_measure_what_they_need_of_the_source(base, tmp_path, monkeypatch):
    "The process that starts them trains the source and measures nothing"
    grids = {s:strength_grid(s, .01, n=1)[:1] for s in TWO}
    monkeypatch.setattr(source_module, 'Retention', lambda *a, **k: 1/0)
    rows = compare(base, grids, tmp_path, seeds=1, launcher=Launcher(2, 'local'))
    assert set(rows.status) == {'ok'}
    assert rows.strategy.tolist() == ['finetune', 'linear_probe', 'untouched']
    assert rows.source_acc.notna().all()
    assert not source_module._sources
    assert not loaders_module.load_data.cache_info().currsize


@pytest.mark.nightly
def test_what_no_worker_can_do_is_raised_at_once(base, tmp_path):
    "It is neither taken for the death of a worker nor written down as the runs' failure"
    grids = {s:strength_grid(s, .01, n=1)[:1] for s in TWO}
    bad, out = tmp_path/'bad.csv', tmp_path/'out'
    bad.write_text('path,label,split,group\n')
    with pytest.raises(InputError, match='bad'):
        compare(replace(base, others=f'csv:{bad}'), grids, out, seeds=1, launcher=Launcher(2, 'local'))
    assert started_workers(out) == 2
    assert not list(out.glob('runs/*/result.json'))


FOLLOWING = '''
import json
from dataclasses import replace
from pathlib import Path
from sdfast.study.config import Run


def follow(rows, progress):
    "A run for each result, in the opposite order"
    progress.say(f'seeds {[r["seed"] for r in rows]}')
    seeds = [10 + 5*i + r["seed"] for i, r in enumerate(rows)]
    return [replace(base(), seed=int(seed), epochs=1) for seed in reversed(seeds)]


def base(): return Run(**json.loads((Path(__file__).parent/"base.json").read_text()))
'''


@pytest.mark.parametrize('jobs', [0, 2])
def test_workers_do_what_follows(base, tmp_path, make_module, jobs):
    "What follows from all results comes after them, in the order in which it was given; workers are started once"
    load_source(base, tmp_path)
    runs = [replace(base, seed=i, epochs=1) for i in range(3)]
    (tmp_path/'base.json').write_text(json.dumps(asdict(base)))
    make_module('following', FOLLOWING)
    from following import follow
    job, launcher = RunJob(str(tmp_path)), Launcher(jobs, 'local') if jobs else None
    rows = run_all(runs, job, tmp_path, log := Log(), launcher, total=6, then=follow)
    assert [r['seed'] for r in rows] == [0, 1, 2, 22, 16, 10]
    assert {r['status'] for r in rows} == {'ok'}
    assert [l for l in log.lines if l.startswith('seeds')] == ['seeds [0, 1, 2]']
    study = snapshot(tmp_path)
    assert study['total'] == len(study['pieces']) == 6
    assert started_workers(tmp_path) == jobs
    assert len(list((tmp_path/'runs').iterdir())) == 6  # and no others
    assert run_all(runs, job, tmp_path, log, then=follow) == rows
