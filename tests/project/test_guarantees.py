"The pages of guarantees and of systems name tests, models and methods that exist."
import json
import re
from pathlib import Path

import pytest

import sdfast.all
from sdfast.models.encoders import create_encoder, is_model
from sdfast.pretext.registry import METHODS

ROOT = Path(__file__).parents[2]


def table(page):
    "The rows of the first table of a page"
    cells = json.loads((ROOT/'nbs'/page).read_text())['cells']
    texts = [''.join(cell['source']) for cell in cells]
    return next(text for text in texts if '|---|' in text).splitlines()[2:], ''.join(texts)


@pytest.mark.parametrize('page, least', [('guarantees.ipynb', 30), ('systems.ipynb', 24)])
def test_every_test_on_the_page_exists(page, least):
    rows, text = table(page)
    named = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', text)
    assert len(named) > least
    missing = [(file, name) for file, name in named if f'def {name}(' not in (ROOT/file).read_text()]
    assert not missing
    assert all('::test_' in row for row in rows if 'not in sdfast' not in row)


def test_every_system_on_the_page_exists():
    rows, _ = table('systems.ipynb')
    for row in rows:
        kind, _, names, *_ = (cell.strip() for cell in row.strip('|').split('|'))
        for name in re.findall(r'`([^`]+)`', names):
            if name.startswith('--method '): assert name.removeprefix('--method ') in (*METHODS, 'supervised')
            elif name.startswith('experiments/'): assert (ROOT/name).exists()
            elif kind == 'encoder': assert name.endswith(':NAME') or is_model(name), name
            else: assert hasattr(sdfast.all, name.partition('(')[0]), name
    assert not set(METHODS) - {name for row in rows for name in re.findall(r'--method (\w+)', row)}
    assert create_encoder('lrcn:test_resnet').num_features and create_encoder('two_stream:test_resnet').num_features
