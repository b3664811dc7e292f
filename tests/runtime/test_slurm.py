"A study on a real Slurm, of one node: an array of workers, one of them requeued in the middle, ends with the numbers of one process."
import subprocess

import pandas as pd
import pytest
from slurm import one_node
from test_execute import ENV, alone, script, spec, wait_for

__all__ = ['alone', 'spec']  # fixtures


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with one_node(tmp_path_factory.mktemp('slurm')) as env: yield env


def test_a_study_in_jobs_that_are_requeued(cluster, alone, spec, tmp_path):
    out, env = tmp_path/'slurm', ENV | cluster
    def call(*args): return subprocess.run(args, capture_output=True, text=True, env=env).stdout.split()
    p = subprocess.Popen(script(out, spec, '--launcher', 'slurm', '--jobs', '2', '--slurm', 'partition=p,time=30,cpus=1'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        job = wait_for(lambda: list(out.glob('runs/*/epoch-*.pt')) and call('squeue', '-h', '-t', 'R', '-r', '-o', '%i'))[0]
        call('scancel', '--signal=USR2', job)  # what comes before a preemption or a time limit: submitit queues the job again
        wait_for(lambda: any('Requeued' in f.read_text() or 'preempted' in f.read_text() for f in out.glob('workers/*_log.out')), 120)
        wait_for(lambda: 'PENDING' in (state := call('squeue', '-h', '-r', '-o', '%T')) or not state or p.poll() is not None, 60)
        # a requeued job waits two minutes before it starts again; now is soon enough
        for j in call('squeue', '-h', '-t', 'PD', '-r', '-o', '%A'): call('scontrol', 'update', f'JobId={j}', 'StartTime=now')
        stdout, stderr = p.communicate(timeout=500)
    finally: p.kill()
    assert p.returncode == 0, stderr
    pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
    assert list(out.glob('workers/*_submission.sh')) and '10/10' in stdout
