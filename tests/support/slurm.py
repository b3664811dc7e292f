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


def _command(name):
    "Path of a program, or `None`"
    system = Path(f'/usr/sbin/{name}')
    return shutil.which(name) or (str(system) if system.exists() else None)


@contextmanager
def one_node(folder):
    "Start a cluster of this machine alone; gives its environment variables, and skips the test where there can be none"
    if getpass.getuser() != 'root': pytest.skip('a Slurm of our own needs root')
    for c in ('munged', 'slurmctld', 'slurmd', 'sbatch', 'mungekey'):
        if not _command(c): pytest.skip(f'no {c}: apt-get install slurm-wlm munge')
    host, dir, running = socket.gethostname().split('.')[0], Path(folder), []
    try: socket.gethostbyname(host)
    except OSError: pytest.skip(f'the name of this machine, {host}, has no address')
    dir.mkdir(parents=True, exist_ok=True)
    os.chmod(dir, 0o755)
    for d in ('state', 'spool'): (dir/d).mkdir()
    conf = dir/'slurm.conf'
    conf.write_text(CONF.format(host=host, dir=dir, port=_free_port(), port1=_free_port(), cpus=os.cpu_count()))
    env = dict(SLURM_CONF=str(conf))

    def start(name, *args):
        log = open(dir/f'{name}.out', 'wb')
        p = subprocess.Popen([_command(name), *args], stdout=log, stderr=log, env=os.environ | env)
        running.append(p)
        time.sleep(.5)
        if p.poll() is not None:
            text = (dir/f'{name}.out').read_text()[-300:]
            pytest.skip(f'{name} does not start here: {text}')

    def call(*args): return subprocess.run(args, capture_output=True, text=True, env=os.environ | env)
    try:
        key = dir/'munge.key'
        subprocess.run([_command('mungekey'), '-c', '-k', str(key)], check=True)
        start('munged', '-F', '-f', '--key-file', str(key), '--socket', f'{dir}/munge.socket',
              '--pid-file', f'{dir}/munged.pid', '--seed-file', f'{dir}/munged.seed', '--log-file', f'{dir}/munged.log')
        start('slurmctld', '-D', '-f', str(conf))
        start('slurmd', '-D', '-f', str(conf), '-N', host)
        for _ in range(60):
            seen = call('sinfo', '-h', '-o', '%T')
            if 'idle' in seen.stdout: break
            time.sleep(.5)
        else:
            log = (dir/'slurmctld.log').read_text()[-300:]
            pytest.skip(f'the node does not become idle: {seen.stdout or seen.stderr} {log}')
        yield env
        # without this, processes of a job outlive the cluster
        for _ in range(40):
            call('scancel', '--signal=KILL', '--full', '--me')
            call('scancel', '--me')
            if not call('squeue', '-h').stdout: break
            time.sleep(.5)
    finally:
        for p in reversed(running): p.terminate()
        for p in running:
            try: p.wait(15)
            except subprocess.TimeoutExpired: p.kill()
