"Names from the user's files: escaping them for Markdown, and rejecting those that are not safe in CSV files or titles."
import re
from collections.abc import Callable, Iterable
from functools import wraps

import pandas as pd

from ..errors import InputError

__all__ = ['as_markdown', 'from_markdown']

# Control characters of ASCII and Latin-1, the line and paragraph separators of Unicode, and lone surrogates, which
# stand for bytes of a file name that are not text.
CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
# Characters without a shape of their own: the soft hyphen, zero-width space, word joiner and byte order mark, and the
# marks that change the direction of writing (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069).
INVISIBLE = re.compile('[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]')
# Text that a spreadsheet runs as a formula: = + - @, or one of their full-width forms, at the start of a cell. Some
# spreadsheets start a new cell at a semicolon, so it also matches there, except for the smiley ;-) in HMDB51's names.
FORMULA = re.compile(r'(?:^|;)\s*[=+\-@\uff1d\uff0b\uff0d\uff20](?!\))')
NUMBER = re.compile(r'[+-]?\d+(\.\d+)?')  # may start like a formula, but a spreadsheet shows it unchanged
# Characters that Markdown or TeX interprets anywhere, and underscores at the edge of a word, where they start or end
# emphasis; within a word, as in brush_hair, they do not.
SPECIAL = re.compile(r'[\\`*<>\[\]|&$~]|(?<![^\W_])_|_(?![^\W_])')
ESCAPED = re.compile(r'\\([\\`*<>\[\]|&$~_])')  # what `as_markdown` makes of them


def python_strings(
    function:Callable, # Makes a table
)->Callable:
    """Let pandas keep text as Python's strings while the function runs, which is what it does without PyArrow.

    PyArrow's strings cannot hold a file name that is not UTF-8, and take more memory for many paths."""
    @wraps(function)
    def with_option(*args, **kwargs):
        with pd.option_context('mode.string_storage', 'python'): return function(*args, **kwargs)
    return with_option


def as_markdown(
    text:str, # Name of a class, path, or the like
)->str: # On one line
    "Escape a name for Markdown, so that it is shown literally"
    printable = ''.join(_visible(c) for c in text)
    return SPECIAL.sub(r'\\\g<0>', printable)


def _visible(character):
    "The character, or its escape sequence if it cannot be seen"
    hidden = CONTROL.match(character) or INVISIBLE.match(character)
    return repr(character)[1:-1] if hidden else character


def list_names(names:Iterable[str])->str:
    "Join names by commas, each escaped by `as_markdown`"
    return ', '.join(map(as_markdown, names))


def from_markdown(
    text:str, # From `as_markdown`
)->str: # For plain text and LaTeX
    "Remove the escapes that `as_markdown` added"
    return ESCAPED.sub(r'\1', text)


def check_class_name(task:str, label:str)->None:
    "Raise `InputError` for a class name that is not safe as a cell or column of a csv file, in a note or in a title"
    why = _why_not(label)
    if why is not None: raise InputError(f'{task}: class {label!r} {why}; rename it')


def _why_not(label):
    "Why a class name is not safe, or `None`"
    if not label.strip(): return 'is empty'
    if label in ('path', 'label'): return 'is the name of another column of scores.csv'
    if CONTROL.search(label): return 'contains a control character'
    if INVISIBLE.search(label): return 'contains a character that is invisible or changes the direction of writing'
    if FORMULA.search(label) and not NUMBER.fullmatch(label):
        return ('starts like a formula, with one of = + - @, or has one of them after a semicolon: '
                'a spreadsheet that opens scores.csv would run it')
    return None
