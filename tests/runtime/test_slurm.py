"A study on a real Slurm of one node: an array of workers, one of them requeued, ends with the numbers of one process."
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from processes import ENV, compare_command, wait_for
from slurm import one_node

OPTIONS = ('--launcher', 'slurm', '--jobs', '2', '--slurm', 'partition=p,time=30,cpus=1')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with one_node(tmp_path_factory.mktemp('slurm')) as env: yield env


def handles_usr2(job):
    "Whether the Python of a job handles the signal USR2, which would end it before submitit's handler is in place"
    array, task = job.split('_')
    variables = f'SLURM_ARRAY_JOB_ID={array}', f'SLURM_ARRAY_TASK_ID={task}'
    for process in Path('/proc').glob('[0-9]*'):
        try:
            if not (process/'comm').read_text().startswith('python'): continue
            environment = (process/'environ').read_bytes().decode(errors='replace').split('\0')
            status = (process/'status').read_text()
        except OSError: continue  # it has ended
        handled = int(status.split('SigCgt:')[1].split()[0], 16)
        if set(variables) <= set(environment) and handled >> signal.SIGUSR2 - 1 & 1: return True
    return False


@pytest.mark.nightly
def test_a_study_in_jobs_that_are_requeued(cluster, alone, spec, tmp_path):
    out, env = tmp_path/'slurm', ENV | cluster
    def call(*args): return subprocess.run(args, capture_output=True, text=True, env=env).stdout.split()
    def requeued(): return any('Requeued' in (text := f.read_text()) or 'preempted' in text for f in logs())
    def logs(): return out.glob('workers/*/*_log.out')
    p = subprocess.Popen(compare_command(out, spec, *OPTIONS), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, env=env)
    def pending_or_over():
        states = call('squeue', '-h', '-r', '-o', '%T')
        return 'PENDING' in states or not states or p.poll() is not None
    try:
        wait_for(lambda: list(out.glob('runs/*/epoch-*.pt')))
        running = wait_for(lambda: call('squeue', '-h', '-t', 'R', '-r', '-o', '%i'))
        job = wait_for(lambda: next(filter(handles_usr2, running), None))
        # the signal before a preemption or a time limit: submitit queues the job again
        call('scancel', '--signal=USR2', job)
        wait_for(requeued, 120)
        wait_for(pending_or_over, 60)
        # a requeued job waits two minutes before it starts again
        for j in call('squeue', '-h', '-t', 'PD', '-r', '-o', '%A'):
            call('scontrol', 'update', f'JobId={j}', 'StartTime=now')
        stdout, stderr = p.communicate(timeout=500)
    finally: p.kill()
    assert p.returncode == 0, stderr
    pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
    assert list(out.glob('workers/*/*_submission.sh'))
    assert '10/10' in stdout
