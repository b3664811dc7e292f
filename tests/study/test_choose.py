"Settings are chosen on held-out data only, and all strategies get the same number of trials."
import numpy as np
import pytest

from sdfast.errors import InputError
from sdfast.strategies import STRATEGIES
from sdfast.study.choose import choose, strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import Run

VALID, KEPT = [.95, .945, .94, .93], [.5, .7, .7, .9]


def test_the_best_on_valid_is_chosen_of_equals_the_strongest():
    assert choose([.8, .9, .9]) == 2
    assert choose([.9, np.nan, .8]) == 0
    assert choose([np.nan, np.nan]) == 1
    assert choose(VALID, KEPT) == 0


def test_equal_learning_keeps_most_within_the_margin():
    assert choose(VALID, KEPT, 'equal_learning') == 2
    assert choose(VALID, KEPT, 'equal_learning', margin=.02) == 3
    assert choose(VALID, [.5, np.nan, np.nan, np.nan], 'equal_learning') == 0
    assert choose([.95, .95 - .01, .9], [0, 1, 2], 'equal_learning') == 1  # just within, whatever the rounding


def test_nothing_is_chosen_on_test():
    with pytest.raises(InputError, match='cannot be chosen on test'): choose(VALID, KEPT, 'test')
    with pytest.raises(InputError, match='unknown rule'): choose(VALID, KEPT, 'best')
    with pytest.raises(InputError, match='source_valid'): choose(VALID, None, 'equal_learning')


def test_a_study_refuses_a_bad_choice_before_it_starts():
    def study(**options): return compare(Run(), {'finetune': [{}]}, '.', **options)
    with pytest.raises(InputError, match='cannot be chosen on test'): study(rule='test')
    with pytest.raises(InputError, match='source_probe or source_acc'): study(kept='cka')


def test_epochs_are_not_chosen_on_test():
    with pytest.raises(InputError, match='test is not honest'): Run(select='test')
    with pytest.raises(InputError, match='last, valid or paper'): Run(select='best')


def test_grids():
    assert [g['lr'] for g in strength_grid('finetune', .1, n=3)] == [.1, .05, .025]
    assert [g['lr'] for g in strength_grid('linear_probe', .1, n=2)] == [.1, .05]
    assert [g['lam'] for g in strength_grid('ewc', .1, [3, 1])] == [1, 3]
    assert {len(s.lams) for s in STRATEGIES.values()} == {0, 3}


def test_all_strategies_get_the_same_number_of_trials():
    with pytest.raises(InputError, match='same number of trials'):
        compare(Run(), {'finetune': [{}], 'ewc': [{}, {}]}, '.')
