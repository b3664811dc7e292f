"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
import re

from ..errors import InputError

CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')  # and what of a file's name is not text
UNSEEN = re.compile('[\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]')  # among them what turns the direction of writing
# spreadsheets run a cell that begins so, with full width signs too, and some begin a cell at a semicolon; hmdb51 has a smiley there, ;-)
FORMULA = re.compile(r'(?:^|;)\s*[=+\-@\uff1d\uff0b\uff0d\uff20](?!\))')


def as_markdown(text:str)->str:
    "A name from a file as Markdown that shows it and does nothing else"
    text = ''.join(repr(c)[1:-1] if CONTROL.match(c) or UNSEEN.match(c) else c for c in text)
    return re.sub(r'[\\`*<>\[\]|&$~]|(?<![^\W_])_|_(?![^\W_])', r'\\\g<0>', text)


def from_markdown(text:str)->str:
    "What `as_markdown`'s text shows"
    return re.sub(r'\\([\\`*<>\[\]|&$~_])', r'\1', text)


def check_class_name(name, label):
    "Class names become cells and columns of csv files, notes and titles: `InputError` for one that would do more there than name a class"
    if not label.strip(): why = 'is empty'
    elif label in ('path', 'label'): why = 'is the name of another column of scores.csv'
    elif CONTROL.search(label): why = 'holds a character that is no text'
    elif UNSEEN.search(label): why = 'holds a mark that cannot be seen, or turns the direction of writing'
    elif FORMULA.search(label) and not re.fullmatch(r'[+-]?\d+(\.\d+)?', label):
        why = 'begins as a formula does, with one of = + - @, or goes on so after a semicolon: a spreadsheet that opens scores.csv would run it'
    else: return
    raise InputError(f'{name}: class {label!r} {why}; rename it')
