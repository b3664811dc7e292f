"Each setting is declared once; keys hash what differs from the defaults."
from dataclasses import dataclass, fields, replace

import pytest

from sdfast import stats
from sdfast.errors import InputError
from sdfast.strategies import STRATEGIES
from sdfast.study.config import ADJUSTMENTS, GROUPS, Run, Study, changed_fields, hash_fields, setting
from sdfast.study.settings import all_options, make_settings


@pytest.mark.parametrize('command', ['compare', 'sequence'])
def test_every_setting_has_help_and_a_group(command):
    for name, o in all_options(command).items():
        assert o.help and o.help[0].isalnum() and not o.help.endswith('.'), name
        assert o.setting.group in GROUPS, name
        assert o.read(o.default) == o.default, name


def test_names_are_those_of_one_setting():
    names = [f.metadata['setting'].option or f.name for f in [*fields(Run), *fields(Study)]]
    names = [n for n in names if n != 'strategy_args'] + ['strategy_args']  # of a study, and of one of its runs
    assert len(names) == len(set(names))


def test_what_users_cannot_set():
    hidden = {f.name for f in fields(Run) if not f.metadata['setting'].group}
    assert hidden == {'data', 'strategy', 'strategy_args', 'lam', 'seed', 'earlier', 'final', 'processes',
                      'source_valid'}
    for name in ('lam', 'final', 'processes', 'with_barrier'):
        with pytest.raises(InputError, match='no setting'): make_settings('compare', **{name: 1})


def test_defaults():
    compare, sequence, run = make_settings('compare'), make_settings('sequence'), Run()
    for name in ('task', 'epochs', 'lr', 'bs', 'wd', 'schedule', 'frames', 'valid_frac', 'wrap'):
        assert getattr(compare, name) == getattr(run, name), name
    for name in ('size', 'source_epochs', 'source_bs', 'jobs'): assert getattr(compare, name) is None, name
    assert (compare.epochs, compare.seeds, compare.out) == (12, 6, 'runs/compare')
    assert (sequence.epochs, sequence.seeds, sequence.out, sequence.jobs) == (8, 6, 'runs/sequence', 1)
    assert compare.strategies == 'self_distill,fixed_teacher,ema_teacher,l2sp,ewc'
    assert sequence.strategies == 'self_distill,fixed_teacher,l2sp,ewc,linear_probe'


def test_options_of_a_run():
    run = Run(model_args='width=8,flag=False', strategy_args='decay=.9,layers=["a","b"]')
    assert run.options() == dict(width=8, flag=False)
    assert run.options('strategy_args') == dict(decay=.9, layers=['a', 'b'])
    with pytest.raises(InputError, match='strategy_args must be name=value'):
        Run(strategy_args='x').options('strategy_args')


def test_keys_hash_what_differs_from_the_defaults():
    run = Run(epochs=3, lam=1, size=24, final=True)
    assert changed_fields(run) == dict(lam=1., epochs=3, size=24, final=True)
    assert run.key == hash_fields(dict(final=True, size=24, lam=1., epochs=3))
    assert run.source_key == hash_fields(dict(size=24))
    assert Run().key == hash_fields({})


def test_a_new_setting_changes_no_key():
    @dataclass(frozen=True)
    class Later(Run):
        new: int = setting(0, 'training')
    run = Run(epochs=3, size=24)
    later = Later(epochs=3, size=24)
    assert (later.key, later.source_key) == (run.key, run.source_key)
    assert replace(later, new=1).key != run.key


def test_runs_of_an_earlier_definition_are_not_reused(monkeypatch):
    run = Run(strategy='l2sp', lam=1.)
    before = run.key
    monkeypatch.setitem(STRATEGIES, 'l2sp', replace(STRATEGIES['l2sp'], definition=1))
    assert run.key != before
    assert run.source_key == Run().source_key
    assert Run().key == hash_fields({})


def test_equal_runs_have_equal_keys(): assert Run(lam=1) == Run(lam=1.) and Run(lam=1).key == Run(lam=1.).key


# fields that do not decide the model before fine-tuning
TARGET_FIELDS = ('strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'schedule', 'wd', 'bs', 'valid_frac',
                 'select', 'patience', 'others', 'extra', 'events', 'with_barrier', 'retain_by', 'final', 'task',
                 'earlier')


def another(field, value):
    "Another value of a field"
    choices = dict(select='valid', schedule='steps', valid_frac=.5, retain_by='probe')
    if field in choices: return choices[field]
    if isinstance(value, bool): return not value
    return value + 1 if isinstance(value, (int, float)) else f'{value}x'


@pytest.mark.parametrize('field', [f.name for f in fields(Run)])
def test_a_key_is_of_all_fields(base, field):
    other = replace(base, **{field: another(field, getattr(base, field))})
    assert len(base.key) == 12
    assert other.key != base.key
    # one source model for all strategies and seeds
    assert (other.source_key == base.source_key) == (field in TARGET_FIELDS)


def test_the_adjustments_are_those_of_stats():
    "`config` has their names only, as it is read before anything that takes long to import"
    assert ADJUSTMENTS == tuple(stats.ADJUSTMENTS)
