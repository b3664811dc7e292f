"What a study is made of, from its settings, and the refusal of what cannot work."
from dataclasses import replace

import pytest
from helpers import Source, model

from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.models.weights import save_weights
from sdfast.strategies import STRATEGIES
from sdfast.study.config import Run
from sdfast.study.settings import make_settings
from sdfast.study.setup import build, build_chain, parse_lams, parse_strategy_args

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def small(clips):
    "Settings of a comparison on small videos"
    spec = f'folder:{clips},group=(p\\d)_'
    return dict(task=spec, source=spec, frames=4, size=24, bs=4, model_args='width=8', source_epochs=2)


@pytest.fixture
def chain(small): return {k:v for k, v in small.items() if k != 'task'} | dict(tasks=small['task'])


def test_a_run_has_the_settings_and_what_follows_from_them(small):
    setup = build(make_settings('compare', **small, wrap=True, schedule='steps', valid_frac=.3, barrier=True, epochs=3))
    run, = setup.runs
    given = dict(task=small['task'], source=small['source'], model_args='width=8', frames=4, size=24, bs=4)
    assert run == Run(**given, data=run.data, source_bs=4, source_epochs=2, epochs=3, wrap=True, schedule='steps',
                      valid_frac=.3, with_barrier=True)
    assert (setup.seeds, setup.trial_seeds) == (6, 1)
    assert list(setup.grids) == ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']
    assert {len(g) for g in setup.grids.values()} == {3}


def test_the_part_to_hold_out_is_a_setting(small):
    lines = [build(make_settings('compare', **small, valid_frac=f)).messages for f in (.25, .5)]
    assert 'clips0: 4 of the train clips are held out' in '\n'.join(lines[0])
    assert 'clips0: 8 of the train clips are held out' in '\n'.join(lines[1])


def test_a_quick_study_is_smaller(small):
    settings = make_settings('compare', **small | dict(source_epochs=None), quick=True)
    setup = build(settings)
    run, = setup.runs
    assert (run.quick, run.epochs, run.source_epochs) == (True, 2, 5)
    assert (setup.seeds, setup.trial_seeds) == (2, 1)
    assert {len(g) for g in setup.grids.values()} == {2}
    assert settings.epochs == 12, 'what the study file says is as it was given'


@pytest.mark.parametrize('init,epochs', [(None, 6), ('WEIGHTS', 0)])
def test_the_source_is_trained_unless_there_are_weights(small, tmp_path, init, epochs):
    if init: save_weights(create_model('tiny', 2, width=8)[0], init := tmp_path/'weights.safetensors')
    setup = build(make_settings('compare', **small | dict(source_epochs=None), init=init))
    assert setup.runs[0].source_epochs == epochs
    assert any('the source head is a linear probe' in line for line in setup.messages) == bool(init)


def test_a_chain_has_a_run_for_each_task_and_one_source(chain):
    spec = chain['tasks']
    setup = build_chain(make_settings('sequence', **chain | dict(tasks=f'{spec}; {spec},seed=1 ;')))
    first, second = setup.runs
    assert (first.task, second.task) == (spec, f'{spec},seed=1')
    assert replace(second, task=spec) == first, 'they differ in their task alone'
    assert first.source_valid and first.epochs == 8
    assert len(setup.messages) == len(set(setup.messages))


@pytest.mark.parametrize('text,grids', [
    ('', {}),
    ('.1,1', dict(l2sp=[.1, 1.], ewc=[.1, 1.])),
    ('l2sp=.01,.1; ewc=1', dict(l2sp=[.01, .1], ewc=[1.])),
])
def test_strengths(text, grids): assert parse_lams(text, ['finetune', 'l2sp', 'ewc']) == grids


def options_of(strategy, text):
    "The attributes of a strategy's callback with options as on the command line"
    args = parse_strategy_args(f'{strategy}:{text}', ['finetune', strategy])
    options = Run(strategy_args=args[strategy]).options('strategy_args')
    cb, = STRATEGIES[strategy].callbacks(.1, Source(model()), **options)
    return vars(cb)


def test_false_switches_an_option_off():
    assert options_of('ewc', 'implicit=False')['direct'] is False
    assert options_of('ewc', 'implicit=True')['direct'] is True


def test_a_number_may_start_with_its_point(): assert options_of('ema_teacher', 'decay=.9')['decay'] == .9


def test_an_option_may_be_a_list_of_text():
    assert options_of('fixed_teacher', 'layers=["0.0","0.1"]')['layers'] == ['0.0', '0.1']


@pytest.mark.parametrize('text,error', [
    ('magic:a=1', "'magic' is not among the strategies"),
    ('ewc', 'name=value'),
    ('ewc:implicit', 'name=value'),
    ('ewc:decay=.9', "strategy ewc has no option 'decay'"),
    ('ema_teacher:decay=x', "must be a number, not 'x'"),
])
def test_options_of_strategies_are_checked_first(small, text, error):
    settings = make_settings('compare', **small, strategies='ewc,ema_teacher', strategy_args=text)
    with pytest.raises(InputError) as e: build(settings)
    assert error in str(e.value) and '\n' not in str(e.value)


def test_options_of_models_are_checked_first(small):
    with pytest.raises(InputError, match='does not take'):
        build(make_settings('compare', **small | dict(model_args='colour=3')))


def test_a_study_that_chooses_needs_a_valid_part(small):
    with pytest.raises(InputError, match='--valid-frac 0 leaves no valid part of folder:.*clips0 to choose'):
        build(make_settings('compare', **small, valid_frac=0))
    one = build(make_settings('compare', **small, valid_frac=0, lams='1', strategies='l2sp'))
    assert [g['lam'] for g in one.grids['l2sp']] == [1.], 'there is nothing to choose'
