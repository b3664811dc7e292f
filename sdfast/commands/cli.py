"The program `sdfast`, which has all commands: `sdfast compare`, `sdfast status` and so on."
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from .start import run_command, start

__all__ = ['COMMANDS', 'main']

# name -> what it does; each is a module of this package
COMMANDS = {
    'compare': 'compare ways to fine-tune on a target task: what they learn, and what they forget of the source',
    'sequence': 'compare ways to fine-tune in a chain of tasks',
    'pretrain': 'pre-train an encoder without labels',
    'status': 'show the progress of a study, from another terminal',
    'report': 'write the page and the figures of finished studies again',
    'audit': 'report what a fine-tuning forgot, from the checkpoints before and after it',
    'gate': 'fail if an audit breaks rules, for continuous integration',
    'get-data': 'download UCF101 or HMDB51',
    'prepare': 'make small copies of videos, which decode several times faster',
    'about': 'print versions, devices and codecs, for a bug report',
    'completion': 'print the completion of commands and options for bash, zsh or fish'}


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status; commands may end the process themselves
    "Run a command: 0 if it has done its work, 2 for wrong use, 130 if it was stopped"
    start()
    command, *rest = (sys.argv[1:] if argv is None else argv) or ['']
    if command in ('', '-h', '--help', 'help'):
        print(overview())
        return 0 if command else 2
    if command == '--version':
        from .. import __version__
        print(f'sdfast {__version__}')
        return 0
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, 1, .5)
        hint = f'did you mean {near[0]}?' if near else f'it has {", ".join(COMMANDS)}'
        print(f'sdfast: there is no command {command!r}; {hint}', file=sys.stderr)
        return 2
    sys.argv = [f'sdfast {command}', *rest]
    run_command(command.replace('-', '_'))
    return 0


def overview()->str:
    "All commands, one a line"
    width = max(map(len, COMMANDS))
    lines = [f'  {name:{width}}  {what}' for name, what in COMMANDS.items()]
    return '\n'.join(['usage: sdfast COMMAND [ARGUMENTS]', '', *lines, '', 'sdfast COMMAND --help says more.'])

