"The page of guarantees names tests that exist."
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_on_the_page_exists():
    cells = json.loads((ROOT/'nbs/guarantees.ipynb').read_text())['cells']
    named = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', ''.join(''.join(cell['source']) for cell in cells))
    assert len(named) > 30
    missing = [(file, name) for file, name in named if f'def {name}(' not in (ROOT/file).read_text()]
    assert not missing
    rows = next(text for cell in cells if '|---|' in (text := ''.join(cell['source']))).splitlines()[2:]
    assert all('::test_' in row for row in rows)
