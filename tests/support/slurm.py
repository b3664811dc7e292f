"A real Slurm on this machine, started by a test and ended with it."
import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

CONF = """ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
SlurmctldPort={port}
SlurmdPort={port1}
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=REQUEUE
"""


def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def one_node(folder):
    "Environment variables for a cluster of this machine alone; skips the test, and says why, where there can be none"
    if getpass.getuser() != 'root': pytest.skip('a Slurm of our own needs root')
    if missing := [c for c in ('munged', 'slurmctld', 'slurmd', 'sbatch', 'mungekey') if not shutil.which(c) and not Path(f'/usr/sbin/{c}').exists()]:
        pytest.skip(f'no {missing[0]}: apt-get install slurm-wlm munge')
    host, dir, running = socket.gethostname().split('.')[0], Path(folder), []
    try: known = socket.gethostbyname(host)
    except OSError: known = None
    if known is None: pytest.skip(f'the name of this machine, {host}, has no address')
    dir.mkdir(parents=True, exist_ok=True)
    os.chmod(dir, 0o755)
    for d in ('state', 'spool'): (dir/d).mkdir()
    conf = dir/'slurm.conf'
    conf.write_text(CONF.format(host=host, dir=dir, port=_free_port(), port1=_free_port(), cpus=os.cpu_count()))
    env = dict(SLURM_CONF=str(conf))

    def start(name, *args):
        log = open(dir/f'{name}.out', 'wb')
        p = subprocess.Popen([shutil.which(name) or f'/usr/sbin/{name}', *args], stdout=log, stderr=log, env=os.environ | env)
        running.append(p)
        time.sleep(.5)
        if p.poll() is not None: pytest.skip(f'{name} does not start here: {(dir/f"{name}.out").read_text()[-300:]}')
    try:
        key = dir/'munge.key'
        subprocess.run([shutil.which('mungekey') or '/usr/sbin/mungekey', '-c', '-k', str(key)], check=True)
        start('munged', '-F', '-f', '--key-file', str(key), '--socket', f'{dir}/munge.socket', '--pid-file', f'{dir}/munged.pid', '--seed-file', f'{dir}/munged.seed', '--log-file', f'{dir}/munged.log')
        start('slurmctld', '-D', '-f', str(conf))
        start('slurmd', '-D', '-f', str(conf), '-N', host)
        for _ in range(60):
            seen = subprocess.run(['sinfo', '-h', '-o', '%T'], capture_output=True, text=True, env=os.environ | env)
            if 'idle' in seen.stdout: break
            time.sleep(.5)
        else: pytest.skip(f'the node does not become idle: {seen.stdout or seen.stderr} {(dir/"slurmctld.log").read_text()[-300:]}')
        yield env
        # else the steps of a job outlive those who know of it
        for _ in range(40):
            subprocess.run(['scancel', '--signal=KILL', '--full', '--me'], env=os.environ | env, capture_output=True)
            subprocess.run(['scancel', '--me'], env=os.environ | env, capture_output=True)
            if not subprocess.run(['squeue', '-h'], env=os.environ | env, capture_output=True).stdout: break
            time.sleep(.5)
    finally:
        for p in reversed(running): p.terminate()
        for p in running:
            try: p.wait(15)
            except subprocess.TimeoutExpired: p.kill()
