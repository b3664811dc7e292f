"The registry, its rows and the check of options."
from importlib.util import find_spec

import pytest
from fastai.callback.core import Callback
from helpers import Source, make, model
from strategy_helpers import AT_0, PENALTIES

from sdfast.errors import InputError
from sdfast.strategies import STRATEGIES, FixedTeacher, SelfDistill, Strategy, check_options


def test_the_registry_is_whole():
    assert len(STRATEGIES) == 33
    assert AT_0 <= set(PENALTIES)
    assert {'pskd', 'byot', 'flow', 'bss', 'co_tuning', 'r3f', 'replay'} == set(PENALTIES) - AT_0


@pytest.mark.parametrize('name', STRATEGIES)
def test_a_row_has_a_formula_a_paper_and_three_strengths_or_none(name):
    row = STRATEGIES[name]
    assert row.formula and row.paper
    assert len(row.lams) in (0, 3)
    assert list(row.lams) == sorted(row.lams)


@pytest.mark.parametrize('name', STRATEGIES)
def test_a_row_makes_callbacks(name):
    if name == 'lora' and not find_spec('peft'): pytest.skip('LoRA needs PEFT')
    lams = STRATEGIES[name].lams
    made = make(name, lams[0] if lams else 0., model())
    assert all(isinstance(cb, Callback) for cb in made)
    assert len(made) == (name != 'finetune')


def test_options_replace_those_of_the_row():
    default, = STRATEGIES['ldifs'].callbacks(2.)
    other, = STRATEGIES['ldifs'].callbacks(2., layers=None, reduction='sum')
    assert type(default) is type(other) is FixedTeacher
    assert (default.lam, default.layers, default.reduction) == (2., 'blocks', 'mean')
    assert (other.lam, other.layers, other.reduction) == (2., None, 'sum')


def test_lam_becomes_what_the_callback_takes():
    assert STRATEGIES['wise_ft'].callbacks(.3)[0].alpha == .7
    assert STRATEGIES['wise_ft_depth'].callbacks(.3)[0].alpha == STRATEGIES['lines'].callbacks(.3)[0].alpha == .7
    assert STRATEGIES['layer_decay'].callbacks(1.)[0].decay == .5
    assert STRATEGIES['lp_ft'].callbacks(3.)[0].probe_epochs == 3


def test_a_row_may_hold_a_function_that_makes_several_callbacks():
    def both(lam, head, T=2.): return [SelfDistill(lam), FixedTeacher(lam)]
    row = Strategy(both, (1.,), 'CE + both', 'none', needs=('head',))
    assert [type(cb) for cb in row.callbacks(1., Source(model()))] == [SelfDistill, FixedTeacher]
    assert list(row.parameters()) == ['T']


def test_plain_fine_tuning_takes_no_options():
    with pytest.raises(InputError, match='no options, not decay'): STRATEGIES['finetune'].callbacks(0., decay=.5)


GOOD = [
    ('finetune', {}),
    ('ema_teacher', dict(decay=.9, teacher_bn='running', layers='blocks', encoder='body')),
    ('ema_teacher', dict(decay=1, layers=None, anchor='weights.pth')),
    ('ewc', dict(implicit=True, normalize=0)),
    ('lora', dict(r=4, alpha=8, targets='conv1')),
    ('self_distill', dict(teacher_dtype='bfloat16')),
]
BAD = [
    ('ema_teacher', dict(decay='x'), "option decay of strategy ema_teacher must be a number, not 'x'"),
    ('ema_teacher', dict(decay=None), 'decay of strategy ema_teacher must be a number, not None'),
    ('ema_teacher', dict(decay=True), 'decay of strategy ema_teacher must be a number, not True'),
    ('ema_teacher', dict(dekay=.9), "no option 'dekay'; it takes reduction, teacher_bn, encoder, anchor, decay"),
    ('ema_teacher', dict(lam=3.), "no option 'lam'"),
    ('ewc', dict(implicit='yes'), 'implicit of strategy ewc must be true or false'),
    ('ewc', dict(implicit=2), 'implicit of strategy ewc must be true or false, not 2'),
    ('ewc', dict(importance=1.), "no option 'importance'; it takes normalize, encoder, implicit"),
    ('lora', dict(r=2.5), 'r of strategy lora must be a whole number, not 2.5'),
    ('r3f', dict(noise=3), 'noise of strategy r3f must be text, not 3'),
    ('co_tuning', dict(relation='x'), "relation of strategy co_tuning must be Tensor, not 'x'"),
    ('finetune', dict(lr=.1), "strategy finetune has no option 'lr'; it takes none"),
    ('nothing', {}, "unknown strategy 'nothing'; known are finetune, lower_lr"),
]


@pytest.mark.parametrize('name,options', GOOD)
def test_good_options_pass(name, options): check_options(name, options)


@pytest.mark.parametrize('name,options,why', BAD)
def test_bad_options_are_refused_in_one_line(name, options, why):
    with pytest.raises(InputError) as e: check_options(name, options)
    assert why in str(e.value)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', STRATEGIES)
def test_the_rows_own_options_pass(name): check_options(name, STRATEGIES[name].options)
