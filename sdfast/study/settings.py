"""The settings of a study as users give them: on a command line, in a study file, or by name in Python.

A study file is YAML with one setting a line: `epochs: 4`. Lists and mappings may be YAML or text:
`strategies: [ewc, l2sp]`, `lams: {ewc: [.1, 1]}`. Every study's folder holds the `study.yaml` that repeats it."""
import argparse
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import Field, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import yaml
from fastcore.docments import docments

from ..errors import Damaged, InputError
from ..runtime import store
from ..runtime.program import invocation, program
from .config import GROUPS, SEQUENCE, Run, Study
from .values import TYPES, beyond_limits, type_of

__all__ = ['Settings', 'make_settings', 'parse_command_line', 'read_study_file', 'write_study_file', 'command_line',
           'recorded_command']

COMMANDS = ('compare', 'sequence')
STUDY_FILE = 'study.yaml'


class Settings(SimpleNamespace):
    "The `command` of a study, and each setting as an attribute; `None` if it is derived from other settings"

    def replace(self,
        **changes, # Name -> value
    )->'Settings':
        "A copy with other values"
        return Settings(**vars(self) | changes)


class Option:
    "A setting as the user sees it: a field of `Run` or `Study`, with its name and default for one command"

    def __init__(self, field:Field, command:str, help:str):
        self.field, self.setting = field, field.metadata['setting']
        self.name = self.setting.option or field.name
        self.flag = '--' + self.name.replace('_', '-')
        self.type = type_of(field)
        self.default = None if self.setting.automatic else field.default
        if command == 'sequence': self.default = SEQUENCE.get(self.name, self.default)
        self.given = self.setting.command in ('', command)  # whether this command has it; else it stays at its default
        self.help = help

    def read(self, value:object)->object:
        "Convert text or YAML to the setting's type; `None` gives the default. Raises `InputError` for a wrong value"
        if value is None: return self.default
        if isinstance(value, dict) and self.setting.from_mapping: value = self.setting.from_mapping(value)
        if isinstance(value, list) and self.setting.separator: value = self.setting.separator.join(map(str, value))
        result = self._convert(value)
        wanted = beyond_limits(self.field, result)
        if wanted: self._refuse(wanted, result)
        return result

    def _convert(self, value):
        expected = TYPES[self.type]
        if isinstance(value, (dict, list)): self._refuse(expected, value)
        if isinstance(value, bool) != (self.type is bool): self._refuse(expected, value)
        try: result = self.type(value)
        except (ValueError, OverflowError): self._refuse(expected, value)
        if self.type is int and isinstance(value, float) and result != value: self._refuse(expected, value)
        return result

    def _refuse(self, wanted, value):
        hint = ': test is read once, at the end, and never to choose' if value == 'test' else ''
        raise InputError(f'{self.flag} must be {wanted}, not {value!r}{hint}')


@lru_cache
def all_options(
    command:str, # 'compare' or 'sequence'
)->dict: # Name -> `Option`; includes settings that this command keeps at their defaults
    "The settings of a command"
    made = {}
    for owner in (Run, Study):
        help = docments(owner)
        for f in fields(owner):
            option = Option(f, command, help[f.name])
            if option.setting.group: made[option.name] = option
    return made


def make_settings(
    command:str, # 'compare' or 'sequence'
    **given, # Name -> value, as on the command line or in a study file
)->Settings: # All settings; those not given have their defaults
    "Check settings and add the defaults of all others. Raises `InputError` for unknown names and impossible values"
    options = all_options(command)
    values = {name:o.default for name, o in options.items()}
    for name, value in given.items():
        if name not in options or not options[name].given:
            known = [n for n, o in options.items() if o.given]
            raise InputError(f'{program(command)} has no setting {name!r}' + _nearest(name, known))
        values[name] = options[name].read(value)
    return Settings(command=command, **values)


def _nearest(name, known):
    "The end of an error about an unknown name"
    near = get_close_matches(name, known, 1, .5)
    return f'; did you mean {near[0]}?' if near else ''


class _Parser(argparse.ArgumentParser):
    def error(self, message): raise InputError(message)


class _ShortHelp(argparse.Action):
    "Print what the command does and the names of its options by group"

    def __call__(self, parser, *_):
        groups = [(g.title, [a.option_strings[0] for a in g._group_actions]) for g in parser._action_groups[2:]]
        lines = [textwrap.fill(f'{title}: {" ".join(flags)}', 100, subsequent_indent='    ', break_on_hyphens=False)
                 for title, flags in groups]
        about = f'\n{parser.description}\n' if parser.description else ''
        parser._print_message('\n'.join([f'usage: {parser.usage}', about, 'Options:', *lines, '',
                                          '--help-all explains them all.', '']), sys.stdout)
        parser.exit()


def make_parser(
    command:str, # 'compare' or 'sequence'
    about:str='', # First lines of --help
)->argparse.ArgumentParser: # Its namespace has only the options that were given
    "Make the parser of a study's command line from the settings"
    usage = f'{invocation(command)} [--config FILE] [--OPTION VALUE]...'
    parser = _Parser(program(command), usage, about, allow_abbrev=False, add_help=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    parser.add_argument('-h', '--help', action=_ShortHelp, nargs=0, help='list the options')
    parser.add_argument('--help-all', action='help', help='explain all options')
    parser.add_argument('--config', metavar='FILE', help=f'study file to start from, such as a study\'s {STUDY_FILE}')
    for group in GROUPS:
        section = parser.add_argument_group(group)
        for o in all_options(command).values():
            if o.setting.group == group and o.given: section.add_argument(o.flag, **_argument(o))
    return parser


def _argument(option):
    "Keyword arguments for argparse's `add_argument`; values stay text, which `Option.read` converts"
    help = option.help.replace('%', '%%')
    if option.type is bool: return dict(dest=option.name, help=help, action=argparse.BooleanOptionalAction)
    if option.default not in (None, ''): help += f' (default {option.default})'
    metavar = {int: 'N', float: 'X', str: 'TEXT'}[option.type]
    return dict(dest=option.name, help=help, metavar='|'.join(option.setting.choices) or metavar)


def parse_command_line(
    command:str, # 'compare' or 'sequence'
    argv:Sequence[str]|None=None, # By default the arguments of this process
    about:str='', # First lines of --help
)->Settings: # Of the command
    "Read settings from a command line; options override the file of `--config`. Raises `InputError` for bad input"
    given, rest = make_parser(command, about).parse_known_args(argv)
    if rest:
        flag = rest[0].partition('=')[0]
        if not flag.startswith('--'): raise InputError(f'unexpected {flag!r}: write --OPTION VALUE')
        flags = [o.flag for o in all_options(command).values() if o.given]
        raise InputError(f'{program(command)} has no option {flag}' + _nearest(flag, flags))
    values = vars(given)
    file = values.pop('config', None)
    return read_study_file(file, command, **values) if file else make_settings(command, **values)


def read_study_file(
    file:str|Path, # YAML
    command:str='', # 'compare' or 'sequence'; '': as the file says
    **given, # Name -> value, override the file's
)->Settings: # Of the file's command
    "Read settings from a study file. Raises `InputError` if it is not a study file, or one for another command"
    try: values = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
    except OSError as e: raise InputError(f'study file {file} cannot be read: {e.strerror}') from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise InputError(f'study file {file} is not YAML: {" ".join(str(e).split())}') from None
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise InputError(f'study file {file} must have a line "name: value" for each setting')
    made_for = values.pop('command', command)
    if made_for not in COMMANDS: raise InputError(f'study file {file} must name its command: {" or ".join(COMMANDS)}')
    if command not in ('', made_for):
        raise InputError(f'study file {file} is for {program(made_for)}, not for {program(command)}')
    return make_settings(made_for, **values | given)


def changed_settings(
    settings:Settings,
)->dict: # Name -> value
    "The settings to record that differ from their command's defaults"
    options = all_options(settings.command)
    recorded = [name for name, o in options.items() if o.setting.recorded]
    return {name:getattr(settings, name) for name in recorded if getattr(settings, name) != options[name].default}


def write_study_file(
    settings:Settings, # Of the study
    folder:str|Path, # The study's
)->Path: # Its study.yaml
    "Write the study file that repeats a study: its command, and the settings that differ from the defaults"
    values = dict(command=settings.command) | changed_settings(settings)
    file = Path(folder)/STUDY_FILE
    store.write(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))
    return file


def command_line(
    settings:Settings, # Of a study
)->str: # For a shell
    "The command that repeats a study"
    options = all_options(settings.command)
    words = invocation(settings.command).split()
    for name, value in changed_settings(settings).items():
        flag, text = options[name].flag, str(value)
        if isinstance(value, bool): words.append(flag if value else f'--no-{flag[2:]}')
        elif text.startswith('-'): words.append(f'{flag}={text}')  # argparse would take a separate word for an option
        else: words += [flag, text]
    return shlex.join(words)


def recorded_command(
    folder:str|Path, # Of a study
)->str: # '' if none was recorded
    "The command that repeats a study, from its study.yaml or else from its plan.json"
    folder = Path(folder)
    with suppress(InputError): return command_line(read_study_file(folder/STUDY_FILE))
    with suppress(FileNotFoundError, Damaged):
        return str(store.read_json(folder/'plan.json', checked=False).get('command', ''))
    return ''
