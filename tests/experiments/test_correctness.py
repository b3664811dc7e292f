"The tests of strategies as a table: which outcomes belong to which cell."
import re

import pytest
from scripts import ROOT, load_script
from situations import SITUATIONS

from sdfast.strategies import STRATEGIES

OUTCOMES = {
    'tests/strategies/test_anchor.py::test_ewc_equals_a_loop': 'passed',
    'tests/strategies/test_anchor.py::test_exact_fisher[4]': 'failed',
    'tests/strategies/test_anchor.py::test_l2sp': 'passed',
    'tests/strategies/test_strategies.py::test_accumulation_equals_one_big_batch[ewc-2]': 'passed',
    'tests/strategies/test_strategies.py::test_accumulation_equals_one_big_batch[l2sp-2]': 'skipped',
    'tests/strategies/test_strategies.py::test_freezing_keeps_the_meaning[self_distill]': 'passed'}


@pytest.fixture(scope='module')
def script(): return load_script('correctness')


@pytest.fixture
def table(script):
    "Strategy -> check -> mark"
    made = script.make_table(OUTCOMES)
    titles = [c.title for c in made.columns]
    return {row[0]:dict(zip(titles, row)) for row in made.rows}


def test_a_failed_test_fails_its_cell(table): assert table['ewc']['formula'] == '✗'


def test_tests_count_for_the_strategy_among_their_parameters(table):
    assert table['ewc']['accumulation'] == '✓'
    assert table['l2sp']['accumulation'] == 'skipped'
    assert table['self_distill']['freezing'] == '✓'


def test_a_dash_where_there_is_no_test(table):
    assert table['self_distill']['formula'] == '–'
    assert table['ewc']['freezing'] == '–'


def test_tests_of_the_formula_have_the_strategys_name(table):
    assert table['l2sp']['formula'] == '✓'
    assert table['mas']['formula'] == '–'


def test_every_check_has_tests(script):
    "Names in the script are names of tests"
    found = []
    for place in script.TESTS:
        path = ROOT/place
        files = [path] if path.is_file() else path.rglob('test_*.py')
        for file in files: found += re.findall(r'def (test_\w+)', file.read_text())
    prefixes = [p for group in (script.CHECKS, script.FORMULA) for names in group.values() for p in names]
    missing = [p for p in prefixes if not any(name.startswith(p) for name in found)]
    assert not missing


def test_situations_are_right_refused_or_wrong(script):
    outcomes, node = script.Outcomes(), 'tests/strategies/test_situations.py::test_right_or_refused'
    class Report:
        def __init__(self, name, outcome, found=None, when='call'):
            self.nodeid, self.outcome, self.when = f'{node}[{name}]', outcome, when
            self.user_properties = [] if found is None else [('outcome', found)]
    for report in (Report('ewc-one-hot targets', 'passed', 'refused'), Report('ewc-tokens', 'passed', 'right'),
                   Report('ewc-tokens', 'passed', when='teardown'), Report('l2sp-tokens', 'failed')):
        outcomes.pytest_runtest_logreport(report)
    table = script.make_situations(outcomes.situations)
    assert [c.title for c in table.columns] == ['strategy', 'one-hot targets', 'tokens']
    rows = {row[0]:row[1:] for row in table.rows}
    assert rows['ewc'] == ['refused', 'right'] and rows['l2sp'] == ['–', 'WRONG']
    assert table.caption == '1 of 3 refused.'


def test_the_committed_tables_are_whole():
    "Of the present strategies and situations, without a failure"
    checks, situations = (ROOT/'experiments/results/correctness.md').read_text().split(' tests.\n')
    for table in (checks, situations):
        rows = [line.split(' | ') for line in table.splitlines() if line.startswith('| ')]
        assert [row[0].removeprefix('| ') for row in rows[1:]] == list(STRATEGIES)
    assert '✗' not in checks
    header, *rows = rows
    assert [title.removesuffix(' |') for title in header[1:]] == list(SITUATIONS)
    assert {cell.removesuffix(' |') for row in rows for cell in row[1:]} == {'right', 'refused'}
