"Output that cannot be written ends nothing: neither a stream, nor a console, nor a process."
import io
import subprocess
import sys

import pytest
from rich.console import Console

from sdfast.runtime.output import Unfailing, make_console
from sdfast.study.progress import LiveProgress

FULL = "import sys\nfrom sdfast.commands.start import start\nstart()\n"
CODE = FULL + """
import warnings
from sdfast.runtime.output import make_console
for i in range(2000): print('λ → 漢字', i)
print('\\udcff')
make_console().print('λ → 漢字', style='red')
warnings.warn('λ')
print('to the reader: λ', file=sys.stderr)
sys.exit(0)
"""
# with a closed stream the next file must not get its number
CLOSED = FULL + """
import os
f = open(sys.argv[1], 'w')
assert f.fileno() > 2
os.system('echo from a child')
print('hello')
"""


class Failing(io.StringIO):
    "A stream whose every write raises an error"
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text): raise self.error
    def flush(self): raise self.error


ERRORS = [OSError(28, 'No space left on device'), BrokenPipeError(32, 'Broken pipe'), OSError(5, 'Input/output error'),
          ValueError('I/O operation on closed file'), UnicodeEncodeError('latin-1', 'λ', 0, 1, 'ordinal not in range')]


@pytest.mark.parametrize('error', ERRORS, ids=repr)
def test_no_error_of_a_stream_reaches_a_study(error):
    stream = Unfailing(Failing(error))
    assert stream.write('λ') == 1
    stream.flush()
    print('λ', file=stream, flush=True)
    with LiveProgress(Console(file=Failing(error), force_terminal=True)) as progress:  # with bars
        progress.plan([])
        progress.start('source task', 2)
        progress.epoch(0, .5)
        progress.say('λ')


def test_letters_that_the_encoding_lacks_are_question_marks():
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding='latin-1')
    make_console(Console(file=stream)).print('λ é', soft_wrap=True)
    stream.flush()
    assert data.getvalue().decode('latin-1') == '? é\n'


def test_a_console_writes_where_standard_output_is_at_the_time(capsys):
    console = make_console()
    console.print('hello')
    assert capsys.readouterr().out == 'hello\n'
    closed = io.StringIO()
    closed.close()
    with pytest.MonkeyPatch.context() as m:
        for stream in (closed, None):
            m.setattr(sys, 'stdout', stream)
            console.print('lost')


@pytest.fixture
def run(tmp_path):
    "A function that runs code in a process of its own, with its streams redirected"
    def run(code, redirect, env='', *args):
        (tmp_path/'code.py').write_text(code, encoding='utf-8')
        line = f'{env} {sys.executable} {tmp_path}/code.py {" ".join(args)} {redirect}'
        bash = ['bash', '-c', f'set -o pipefail; {line}']
        return subprocess.run(bash, env=dict(PATH='/usr/bin:/bin', PYTHONPATH=':'.join(sys.path)),
                              capture_output=True, text=True, errors='replace', timeout=120)
    return run


@pytest.mark.parametrize('redirect', ['> /dev/full', '2> /dev/full', '> /dev/full 2>&1', '>&-', '2>&-', '>&- 2>&- <&-',
                                      '| head -1', '2>&1 | true'])
def test_a_process_ends_with_status_0_and_without_complaint(run, redirect):
    p = run(CODE, redirect)
    assert p.returncode == 0, p.stderr
    for word in ('Exception ignored', 'Traceback', 'Error'): assert word not in p.stderr + p.stdout


@pytest.mark.parametrize('env', ['PYTHONIOENCODING=latin-1', 'PYTHONIOENCODING=ascii', 'LC_ALL=C PYTHONUTF8=0',
                                 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0'])
def test_every_encoding_will_do(run, env):
    p = run(CODE, '', env)
    assert p.returncode == 0, p.stderr
    assert len(p.stdout.splitlines()) == 2002


def test_files_do_not_get_the_numbers_of_closed_streams(run, tmp_path):
    file = tmp_path/'weights'
    p = run(CLOSED, '>&- 2>&- <&-', '', str(file))
    assert p.returncode == 0
    assert file.read_bytes() == b''
