"Options as text: numbers, words, lists and text, bare or quoted."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdfast.errors import InputError
from sdfast.runtime.options import format_options, parse_options, split_list


@pytest.mark.parametrize('text,value', [
    ('3', 3),
    ('-3', -3),
    ('.9', .9),
    ('1.', 1.),
    ('1e-3', 1e-3),
    ('-2.5E2', -250.),
    ('0', 0),
    ('true', True),
    ('True', True),
    ('false', False),
    ('False', False),
    ('none', None),
    ('None', None),
    ('[1,2]', [1, 2]),
    ('["a","b"]', ['a', 'b']),
    ('[a, b]', ['a', 'b']),
    ('[]', []),
    ('[.4,[1,true],none]', [.4, [1, True], None]),
    ('same', 'same'),
    ('"a,b"', 'a,b'),
    ("'[x'", '[x'),
    ('"1"', '1'),
    (r'"a \"b\" \\ \d"', r'a "b" \ \d'),
    ("it's", "it's"),
    ('', ''),
    ('/a/b c.pth', '/a/b c.pth'),
    ('007', '007'),
    ('node[1-3,5]', 'node[1-3,5]'),
    ('a=b', 'a=b'),
])
def test_a_value(text, value):
    options = parse_options(f'first=1,x={text},last=2')
    assert options == dict(first=1, x=value, last=2)
    assert type(options['x']) is type(value)


def test_blanks_and_empty_parts_do_not_count():
    assert parse_options(' a = 1 , ,b=x y,') == dict(a=1, b='x y')
    assert parse_options('') == {}


@pytest.mark.parametrize('text,error', [
    ('width', "--model-args must be name=value,..., not 'width'"),
    ('1=2', 'name=value'),
    ('a=1,a=2', 'name a twice'),
    ('a=[1,2', 'brackets do not match'),
    ('a=1]', 'brackets do not match'),
    ('a="x', 'quotes do not match'),
    ('a="x"y', 'quotes do not match'),
])
def test_text_that_is_no_options(text, error):
    with pytest.raises(InputError) as e: parse_options(text, '--model-args')
    assert error in str(e.value) and '\n' not in str(e.value)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SIMPLE = st.none() | st.booleans() | st.integers() | FLOATS | st.text()
VALUES = st.recursive(SIMPLE, lambda v: st.lists(v, max_size=3), max_leaves=5)
NAMES = st.from_regex(r'[a-z_][a-z0-9_]{0,6}', fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_options_survive_text(options): assert parse_options(format_options(options)) == options


@given(VALUES)
def test_what_is_written_is_one_part_of_a_list(value):
    text = format_options(dict(a=value))
    for separator in ',;': assert split_list(f'{text}{separator}b=1', separator) == [text, 'b=1']


def test_what_cannot_be_written():
    with pytest.raises(InputError, match='not {}'): format_options(dict(a={}))
