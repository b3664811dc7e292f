"Ctrl-C while a command starts is one line and status 130, for every script and at every moment."
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import linux

from sdfast.commands.start import stop

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(f.stem for f in (ROOT/'experiments').glob('*.py'))
pytestmark = linux


def megabytes(pid):
    "Memory of a process, which grows as it imports"
    try: found = re.search(r'VmRSS:\s+(\d+) kB', Path(f'/proc/{pid}/status').read_text())
    except OSError: return 0
    return int(found[1])/1000 if found else 0


def stop_at(command, size):
    "Send Ctrl-C to a process as soon as it has so many megabytes; its status and what it wrote"
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while megabytes(p.pid) < size and p.poll() is None: time.sleep(.002)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=120)
    return p.returncode, out, err


@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_stops_with_one_line(script):
    command = [sys.executable, str(ROOT/f'experiments/{script}.py'), 'x']
    assert stop_at(command, 25) == (130, '', f'{script}.py: stopped\n')


LATER = [pytest.param(n, marks=pytest.mark.nightly) for n in (100, 150, 200)]


@pytest.mark.parametrize('size', [25, 30, 60, *LATER])
def test_at_every_moment(size):
    status, out, err = stop_at([sys.executable, str(ROOT/'experiments/compare.py'), '--task', 'x'], size)
    assert status == 130 and out in ('', 'loading PyTorch and fastai\n')
    assert err.startswith('compare.py: stopped') and err.count('\n') == 1


def test_the_bug_report_stops_too():
    status, _, err = stop_at([sys.executable, '-m', 'sdfast', 'about'], 100)
    assert status == 130 and err.endswith(': stopped\n') and err.count('\n') == 1


def test_where_ctrl_c_is_ignored_it_stays_so():
    code = ('import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom sdfast.commands.start import start\n'
            'start()\nprint(repr(signal.getsignal(signal.SIGINT)))')
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert 'SIG_IGN' in p.stdout


def test_a_command_takes_ctrl_c_over_while_it_works(capsys):
    from sdfast.commands.common import one_line_errors
    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(SystemExit) as e, one_line_errors('a.py', 'runs'):
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            signal.raise_signal(signal.SIGINT)
        assert e.value.code == 130
        assert signal.getsignal(signal.SIGINT) is stop
    finally: signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == 'a.py: stopped; finished runs are in runs, the same command resumes\n'
