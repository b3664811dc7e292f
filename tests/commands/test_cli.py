"The program `sdfast`: all commands under one name, quick to answer, wrong use in one line."
import subprocess
import sys

import pytest

from sdfast.commands import cli, completion
from sdfast.commands.cli import COMMANDS
from sdfast.runtime.program import invocation, program, whole_command
from sdfast.study.settings import make_parser, make_settings


@pytest.fixture(autouse=True)
def no_start(monkeypatch):
    "The process of the tests keeps its output and its handler of Ctrl-C"
    monkeypatch.setattr(cli, 'start', lambda: None)
    monkeypatch.setattr(sys, 'argv', ['pytest'])


def python(*args): return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['help'], []], ids=str)
def test_all_commands_are_listed(words, capsys):
    assert cli.main(words) == (0 if words else 2)
    out = capsys.readouterr().out
    assert all(f'\n  {name} ' in out for name in COMMANDS)


def test_the_version(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out.startswith('sdfast 0.')


@pytest.mark.parametrize('given, hint', [('compar', 'did you mean compare?'), ('get_data', 'did you mean get-data?'),
                                         ('zzz', 'it has compare, ')])
def test_an_unknown_command(given, hint, capsys):
    assert cli.main([given]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f'sdfast: there is no command {given!r}; {hint}') and err.count('\n') == 1


def test_a_command_is_run_with_its_arguments(monkeypatch):
    called = []
    monkeypatch.setattr(cli, 'run_command', lambda name: called.append((name, sys.argv[:])))
    assert cli.main(['get-data', 'ucf101', '--to', 'x y']) == 0
    assert called == [('get_data', ['sdfast get-data', 'ucf101', '--to', 'x y'])]
    assert whole_command() == "sdfast get-data ucf101 --to 'x y'"


def test_messages_name_what_the_user_has_called(monkeypatch):
    assert [program(c) for c in ('compare', 'report', 'get-data')] == ['compare.py', 'make_report.py', 'get_data.py']
    assert invocation('report') == 'python experiments/make_report.py'
    monkeypatch.setattr(sys, 'argv', ['sdfast compare'])
    assert (program('compare'), invocation('report')) == ('sdfast compare', 'sdfast report')


# in processes of their own, as they end them
WRONG = [('compare', '--sedes', '3'), ('sequence', '--epochs', 'x'), ('report',), ('status',), ('prepare',),
         ('get-data', 'ucf'), ('pretrain', '--epochs', 'x'), ('completion', 'tcsh')]


@pytest.mark.parametrize('words', WRONG, ids=lambda words: words[0])
def test_wrong_use_is_one_line(words):
    p = python('-m', 'sdfast', *words)
    assert (p.returncode, p.stdout) == (2, '')
    assert p.stderr.startswith(f'sdfast {words[0]}: ') and p.stderr.count('\n') == 1


def test_wrong_use_of_a_study_is_told_before_anything_slow_is_imported():
    code = ("import sys; from sdfast.commands.cli import main; sys.argv = ['sdfast', 'compare', '--sedes', '3']\n"
            "try: main()\nexcept SystemExit: print('torch' in sys.modules, 'scipy' in sys.modules)")
    p = python('-c', code)
    assert p.stdout == 'False False\n' and 'did you mean --seeds?' in p.stderr


def test_help_is_short_by_groups_or_complete(capsys):
    parser = make_parser('compare', 'What it does.')
    for word in ('--help', '--help-all'):
        with pytest.raises(SystemExit) as e: parser.parse_args([word])
        assert e.value.code == 0
    text = capsys.readouterr().out
    short, complete = text.split('--help-all explains them all.')
    options = [f'--{name.replace("_", "-")}' for name in vars(make_settings('compare')) if name != 'command']
    assert len(short.splitlines()) < 30 < len(complete.splitlines())
    for option in ('--seeds', '--lams', '--task', '--jobs', '--barrier'):
        assert option in options and option in short and option in complete
    assert 'What it does.' in short and 'Final runs of each strategy' not in short
    assert 'Final runs of each strategy' in complete


@pytest.mark.parametrize('shell', completion.SHELLS)
def test_completion_names_all_commands_and_options(shell, capsys):
    assert completion.main([shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    dashes = '' if shell == 'fish' else '--'
    assert all(f'{dashes}{name}' in text for name in ('seeds', 'every', 'keep_archives', 'gop', 'method'))


def test_bash_completes(tmp_path):
    (tmp_path/'c').write_text(completion.SHELLS['bash']())
    line = (f'source {tmp_path}/c; COMP_WORDS=(sdfast compare --see); COMP_CWORD=2; _sdfast; echo "${{COMPREPLY[*]}}"; '
            'COMP_WORDS=(sdfast sta); COMP_CWORD=1; _sdfast; echo "${COMPREPLY[*]}"')
    p = subprocess.run(['bash', '-c', line], capture_output=True, text=True)
    assert (p.stdout, p.stderr) == ('--seeds\nstatus\n', '')
