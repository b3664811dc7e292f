"Checks of the values of settings: their types and their limits, the same for command lines, study files and Python."
import math
import os
import sys
from dataclasses import Field
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import numpy as np

from ..errors import InputError

__all__ = ['check_value']

TYPES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}


def type_of(field:Field)->Any:
    "The type of a setting, without `None`"
    return next(t for t in get_args(field.type) or [field.type] if t is not NoneType)


def beyond_limits(field:Field, value:object)->str:
    "The requirement of a field's `setting` that a value does not meet, such as 'at least 1'; '' if it meets all"
    s, kind = field.metadata['setting'], type_of(field)
    if s.choices and value not in (*s.choices, field.default):
        return ' or '.join(s.choices) if len(s.choices) == 2 else f'one of {", ".join(s.choices)}'
    if isinstance(value, str): return '' if is_text(value) else 'text in UTF-8'
    if kind not in (int, float) or not isinstance(value, (int, float)): return ''
    if isinstance(value, float) and not math.isfinite(value): return 'finite'
    if kind is float and abs(value) > sys.float_info.max: return 'finite'  # a whole number may be larger
    if s.minimum is not None and value < s.minimum: return f'at least {s.minimum}'
    if s.above is not None and value <= s.above: return 'positive' if s.above == 0 else f'more than {s.above}'
    if s.maximum is not None and value > s.maximum: return f'at most {s.maximum}'
    if s.below is not None and value >= s.below: return f'less than {s.below}'
    return ''


def is_text(value:str)->bool:
    "Whether text can be written to files: it has no lone surrogates, which stand for bytes that are not UTF-8, or NUL"
    return '\0' not in value and not any('\ud800' <= c <= '\udfff' for c in value)


def check_value(
    field:Field, # Of `Run` or `Study`
    value:Any, # Its value
    name:str='', # What to call it in the message, by default as the field
)->Any: # The value, with numbers as Python has them
    "Raise `InputError` for a value of another type than the field's, or beyond its limits"
    kind, given = type_of(field), value
    if isinstance(value, np.generic): value = value.item()
    if isinstance(value, os.PathLike): value = os.fspath(value)
    if value is None and NoneType in get_args(field.type): return None
    if kind is int and isinstance(value, float) and value.is_integer(): value = int(value)
    accepted: Any = {int: Integral, float: Real}.get(kind, kind)
    fits = isinstance(value, accepted)
    if not fits or isinstance(value, bool) != (kind is bool): wanted = TYPES[kind]
    else: wanted = beyond_limits(field, value)
    if wanted: raise InputError(f'{name or field.name} must be {wanted}, not {given!r}')
    return value
