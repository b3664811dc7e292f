"""Complete commands and options of `sdfast` in a shell.

    sdfast completion bash > ~/.local/share/bash-completion/completions/sdfast
    sdfast completion zsh > ~/.zfunc/_sdfast    # a folder in fpath
    sdfast completion fish > ~/.config/fish/completions/sdfast.fish"""
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature

from ..errors import InputError
from ..runtime.program import program
from ..study.settings import all_options
from .cli import COMMANDS
from .one_line import one_line_errors

__all__ = ['SHELLS', 'main']

BASH = '''_sdfast() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words
    case $COMP_CWORD:${{COMP_WORDS[1]}} in
        1:*) words='{commands}';;
{cases}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    if [[ $word != -* && $COMP_CWORD != 1 ]]; then mapfile -t COMPREPLY < <(compgen -f -- "$word"); fi
}}
complete -o filenames -F _sdfast sdfast
'''
ZSH = '#compdef sdfast\nautoload -U +X bashcompinit && bashcompinit\n{bash}'
FISH = '''complete -c sdfast -n __fish_use_subcommand -f -a '{commands}'
{cases}
'''


def options_of(
    command:str, # One of `COMMANDS`
)->list[str]: # Such as '--seeds'
    "The options of a command"
    if command in ('compare', 'sequence'):
        return ['--config', '--help', '--help-all', *(o.flag for o in all_options(command).values() if o.given)]
    if command in ('about', 'completion'): return []
    module = import_module(f'{__package__}.{command.replace("-", "_")}')
    if hasattr(module, 'make_parser'): return [f for f in module.make_parser()._option_string_actions if f[:2] == '--']
    main = module.main
    optional = [p.name for p in signature(main).parameters.values() if p.default is not p.empty]
    return ['--help', *(f'--{name}' for name in optional)]


def _bash():
    cases = '\n'.join(f"        *:{c}) words='{' '.join(options_of(c))}';;" for c in COMMANDS)
    return BASH.format(commands=' '.join(COMMANDS), cases=cases)


def _zsh(): return ZSH.format(bash=_bash())


def _fish():
    lines = [f"complete -c sdfast -n '__fish_seen_subcommand_from {c}' -l {flag[2:]}"
             for c in COMMANDS for flag in options_of(c)]
    return FISH.format(commands=' '.join(COMMANDS), cases='\n'.join(lines))


SHELLS = dict(bash=_bash, zsh=_zsh, fish=_fish)


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status
    "Print the completion for a shell"
    with one_line_errors(program('completion')):
        words = sys.argv[1:] if argv is None else argv
        if words in (['-h'], ['--help']): print(__doc__)
        elif len(words) == 1 and words[0] in SHELLS: print(SHELLS[words[0]](), end='')
        else: raise InputError(f'name a shell, one of {", ".join(SHELLS)}, not {" ".join(words) or "none"}')
    return 0


if __name__ == '__main__': sys.exit(main())
