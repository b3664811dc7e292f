"How many workers are started, and where their files are."
from dataclasses import replace

import pytest

from sdfast.runtime import supervise as supervise_module
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.study.execute import RunJob


@pytest.mark.parametrize('jobs, trials, started', [(16, 3, 9), (4, 3, 4), (2, 12, 2)])
def test_no_more_workers_than_runs_to_come(base, tmp_path, monkeypatch, jobs, trials, started):
    "Workers that did the trials continue with the final runs, which may be more"
    asked, runs = [], [replace(base, seed=i) for i in range(trials)]
    monkeypatch.setattr(supervise_module, 'start_workers', lambda worker, n, *a: asked.append(n) or 1/0)
    with pytest.raises(ZeroDivisionError):
        run_all(runs, RunJob(str(tmp_path)), tmp_path, launcher=Launcher(jobs, 'local'), total=9, then=lambda *a: [])
    assert asked == [started]


def test_each_generation_of_workers_has_a_folder(base, tmp_path, monkeypatch):
    "Submitit names files by process ids, which repeat in containers: an old result could be taken for a new one"
    folders = []
    def start(worker, n, folder, launcher):
        folders.append(folder)
        return []
    monkeypatch.setattr(supervise_module, 'start_workers', start)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='workers cannot start'):
            run_all([base], RunJob(str(tmp_path)), tmp_path, launcher=Launcher(1, 'local', poll=.01))
    assert len(folders) == len(set(folders)) == 4
