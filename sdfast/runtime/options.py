"""Options as text, `name=value,...`: the format in which a command line passes options to models, strategies and Slurm.

A value is a number (`3`, `.9`, `1e-3`), a word (`true`, `false`, `none`), a list (`[1,2]`, `["a","b"]`), or text, bare
or quoted. Commas inside brackets or quotes do not separate. In quotes, a backslash escapes a quote or a backslash."""
import re

from ..errors import InputError

__all__ = ['parse_options', 'format_options', 'split_list']

WORDS = {'true': True, 'True': True, 'false': False, 'False': False, 'none': None, 'None': None, 'null': None}
INTEGER = re.compile(r'[+-]?(0|[1-9]\d*)')
FLOAT = re.compile(r'[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?')
QUOTED = re.compile(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'', re.DOTALL)
# quoted text, or one character; quotes open only where a value may start, so an apostrophe in a word is no quote
TOKEN = re.compile(rf'(?<![^\s=\[,])(?:{QUOTED.pattern})|.', re.DOTALL)
BARE = re.compile(r'[A-Za-z_/][\w./:-]*')  # text that needs no quotes


def parse_options(
    text:str, # `name=value,...`
    what:str='options', # What they are, for errors
)->dict: # Name -> value
    "Read options from text"
    options = {}
    for part in split_list(text):
        name, equals, value = (t.strip() for t in part.partition('='))
        if not equals or not name.isidentifier():
            raise InputError(f'{what} must be name=value,..., not {part!r}')
        if name in options: raise InputError(f'{what} name {name} twice: {text!r}')
        options[name] = _parse_value(value)
    return options


def format_options(
    options:dict, # Name -> value: numbers, booleans, `None`, text, or lists of them
)->str: # What `parse_options` reads
    "Write options as text"
    return ','.join(f'{name}={_format_value(value)}' for name, value in options.items())


def split_list(
    text:str, # Items joined by the separator
    separator:str=',', # One character
)->list[str]: # Without surrounding blanks; empty parts are left out
    "Split text at separators that are not inside brackets or quotes"
    parts, start, depth = [], 0, 0
    for token in TOKEN.finditer(text):
        if token[0] == '[': depth += 1
        if token[0] == ']': depth -= 1
        if depth < 0: break
        if token[0] == separator and depth == 0:
            parts.append(text[start:token.start()])
            start = token.end()
    if depth: raise InputError(f'brackets do not match in {text!r}')
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def _parse_value(text):
    if text in WORDS: return WORDS[text]
    if INTEGER.fullmatch(text): return int(text)
    if FLOAT.fullmatch(text): return float(text)
    if text.startswith('['):
        if not text.endswith(']'): raise InputError(f'brackets do not match in {text!r}')
        return [_parse_value(t) for t in split_list(text[1:-1])]
    if text.startswith(('"', "'")):
        if not QUOTED.fullmatch(text): raise InputError(f'quotes do not match in {text}')
        return re.sub(r'\\(["\'\\])', r'\1', text[1:-1])
    return text


def _format_value(value):
    if value is None: return 'none'
    if isinstance(value, bool): return str(value).lower()
    if isinstance(value, (int, float)): return repr(value)
    if isinstance(value, (list, tuple)): return f'[{",".join(map(_format_value, value))}]'
    if not isinstance(value, str): raise InputError(f'an option is a number, a word, text or a list, not {value!r}')
    if BARE.fullmatch(value) and value not in WORDS: return value
    escaped = re.sub(r'(["\\])', r'\\\1', value)
    return f'"{escaped}"'
