"How the user has called this program, for messages that name a command."
import shlex
import sys

__all__ = ['program', 'invocation', 'whole_command']

SCRIPTS = {'report': 'make_report'}  # commands whose script in experiments/ has another name


def _is_installed(): return sys.argv[0].startswith('sdfast ')  # see `commands.cli`


def _script(command): return SCRIPTS.get(command, command).replace('-', '_') + '.py'


def program(
    command:str, # Such as 'compare'
)->str: # Such as 'sdfast compare' or 'compare.py'
    "Name of a command of sdfast, with which its errors begin"
    return f'sdfast {command}' if _is_installed() else _script(command)


def invocation(
    command:str, # Such as 'report'
)->str: # Such as 'sdfast report' or 'python experiments/make_report.py'
    "How to call a command of sdfast from where this one was called"
    return f'sdfast {command}' if _is_installed() else f'python experiments/{_script(command)}'


def whole_command()->str: # For a shell
    "The command of this process"
    first = sys.argv[0].split() if _is_installed() else ['python', sys.argv[0]]
    return shlex.join([*first, *sys.argv[1:]])
