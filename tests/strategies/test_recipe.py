"What all recipes do."
import pytest
from helpers import learner
from strategy_helpers import Stop

from sdfast.strategies import SPD, DiGraP, LayerDecay


@pytest.mark.parametrize('cls', [SPD, DiGraP, LayerDecay])
def test_a_recipe_that_is_removed_after_an_interrupted_epoch_leaves_the_step_as_it_was(cls):
    cb = cls(.5)
    learn = learner(cb)
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(KeyboardInterrupt()))
    assert '_step' in vars(learn) or 'step' in vars(learn.opt)  # it is still in place, for a fit that continues
    learn.remove_cb(cb)
    assert '_step' not in vars(learn) and 'step' not in vars(learn.opt)
