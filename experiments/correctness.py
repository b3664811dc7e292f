"""Is each strategy what it says it is? The outcome of its tests as two tables: strategy by check and by situation.

    python experiments/correctness.py --out runs/correctness.md      # needs pip install -e '.[dev]'

A cell is the outcome of a check's tests for a strategy: ✓ all passed, ✗ one failed, a dash where the check has no
meaning (a spectrum and the statistics of a batch are others for micro-batches and for a process's part), `skipped`
where something that it needs is not installed. experiments/peers.py asks the same of other libraries.

A situation is something that users bring, such as an encoder that returns tokens, or one-hot targets. The cell is
`right` if training ends with the same weights as in the ordinary way to compute the same, or `refused` if the strategy
raises an error of one line; see tests/support/situations.py."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import os
import sys
from pathlib import Path

import pytest
from fastcore.script import call_parse
from rich.console import Console

from sdfast.report.table import Column, Table
from sdfast.runtime import store
from sdfast.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
TESTS = ('tests/strategies', 'tests/models/test_surgery.py', 'tests/models/test_statistics.py',
         'tests/study/test_protocol.py', 'tests/runtime/test_resume.py')
# check -> what the names of its tests begin with; these have the strategy among their parameters
CHECKS = {
    'λ=0 is plain': ['test_lam_0_is_plain', 'test_so_is_lam_0', 'test_the_end_of_the_scale'],
    'losses, BN untouched': ['test_reported_losses_are_the_task_loss', 'test_batch_norm_of_a_recipe'],
    'accumulation': ['test_accumulation_equals_one_big_batch'],
    'bf16': ['test_bf16_autocast', 'test_composes_with_penalties'],
    'loss scaling': ['test_loss_scaling', 'test_a_step_that_the_scaler_skips'],
    '2 processes': ['test_two_processes_equal_one'],
    'freezing': ['test_freezing'],
    'resume': ['test_every_strategy'],
    'validate, lr_find, 2nd fit': ['test_validate_get_preds_and_lr_find', 'test_the_anchor_survives'],
    'exception': ['test_an_exception_leaves', 'test_interrupts_leave', 'test_a_fit_that_fails_before_its_first_epoch'],
    'save, export': ['test_saved_models_hold_no_teacher', 'test_export'],
}
# strategy -> what the names of tests of its formula begin with, in addition to `test_STRATEGY`
FORMULA = dict(
    self_distill=['test_self_distill', 'test_several_layers'], ldifs=['test_several_layers'],
    lwf=['test_soft_divergence'], feature_maps=['test_map_distance'],
    delta=['test_feature_maps', 'test_channel_attention'], l2sp=['test_implicit_step_of_adam'],
    ewc=['test_exact_fisher', 'test_sampled_fisher', 'test_empirical', 'test_fisher_equals', 'test_weighted_penalties',
         'test_implicit', 'test_the_bound', 'test_avalanche'],
    mas=['test_weighted_penalties'], si=['test_path_integral', 'test_weighted_penalties'], lp_ft=['test_lpft'],
    wise_ft=['test_reestimate'], layer_decay=['test_schedules'], lower_lr=['test_schedules'])


SITUATION_TEST = 'test_right_or_refused'


class Outcomes:
    "A pytest plugin that records the outcome of each test, and what tests of situations have found"
    def __init__(self): self.found, self.situations = {}, {}

    def pytest_runtest_logreport(self, report):
        if report.when != 'call' and report.outcome == 'passed': return
        self.found[report.nodeid] = report.outcome
        name, parameters = split_id(report.nodeid)
        if name != SITUATION_TEST: return
        outcome = 'WRONG' if report.outcome == 'failed' else report.outcome
        strategy, *situation = parameters
        self.situations[strategy, '-'.join(situation)] = dict(report.user_properties).get('outcome', outcome)


def split_id(node):
    "`(name of the test, its parameters)` of a test's id: 'a.py::test_x[ewc-1]' gives ('test_x', ['ewc', '1'])"
    name, _, parameters = node.rpartition('::')[2].partition('[')
    return name, parameters.rstrip(']').split('-')


def mark(outcomes):
    if not outcomes: return '–'
    if 'failed' in outcomes: return '✗'
    return '✓' if 'passed' in outcomes else 'skipped'


def outcomes_of_formula(outcomes, strategy):
    "Outcomes of the tests that are named after a strategy, or listed for it"
    prefixes = tuple(FORMULA.get(strategy, ()))
    found = []
    for node, outcome in outcomes.items():
        name, _ = split_id(node)
        own = name == f'test_{strategy}' or name.startswith(f'test_{strategy}_')
        if own or (prefixes and name.startswith(prefixes)): found.append(outcome)
    return found


def outcomes_of_check(outcomes, check, strategy):
    "Outcomes of a check's tests that have a strategy among their parameters"
    found = []
    for node, outcome in outcomes.items():
        name, parameters = split_id(node)
        if name.startswith(tuple(CHECKS[check])) and strategy in parameters: found.append(outcome)
    return found


def make_table(outcomes):
    "Strategy by check"
    columns = [Column(title, numeric=False) for title in ('strategy', 'formula', *CHECKS)]
    rows = []
    for strategy in STRATEGIES:
        formula = mark(outcomes_of_formula(outcomes, strategy))
        rows.append([strategy, formula, *(mark(outcomes_of_check(outcomes, check, strategy)) for check in CHECKS)])
    return Table(columns, rows, f'{len(outcomes)} tests.', title='strategy by check')


def make_situations(found):
    "Strategy by situation"
    names = list(dict.fromkeys(situation for _, situation in found))
    columns = [Column(title, numeric=False) for title in ('strategy', *names)]
    rows = [[strategy, *(found.get((strategy, name), '–') for name in names)] for strategy in STRATEGIES]
    refused = sum(outcome == 'refused' for outcome in found.values())
    return Table(columns, rows, f'{refused} of {len(found)} refused.', title='strategy by situation')


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    out:str='runs/correctness.md', # Markdown file to write
):
    "Run the tests of the strategies; print strategy by check and strategy by situation"
    out = Path(out).absolute()
    os.chdir(ROOT)
    outcomes = Outcomes()
    status = pytest.main(['-q', '--no-header', '--durations=0', '-p', 'no:cacheprovider', *TESTS], plugins=[outcomes])
    tables = make_table(outcomes.found), make_situations(outcomes.situations)
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write(out, '\n'.join(table.to_markdown() for table in tables))
    console = Console(width=160)
    for table in tables: console.print(table.to_rich(console.width))
    console.print(f'written to {out}')
    sys.exit(int(status))
