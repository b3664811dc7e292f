"Recipes at the end of their scale, where nothing is left of them."
import pytest
import torch
from helpers import learner, model, same, state
from strategy_helpers import source, source_head

from sdfast.strategies import LPFT, SPD, DiGraP, EncoderLR, LayerDecay, LiNeS, LowerLR, Replay, WiSEFT

PLAIN = dict(
    layer_decay=LayerDecay(1.), lower_lr=LowerLR(0), encoder_lr=EncoderLR(0), lp_ft=LPFT(0), wise_ft=WiSEFT(1.),
    wise_ft_depth=WiSEFT(1., by_depth=True), lines=LiNeS(1.), spd=SPD(0), digrap=DiGraP(0),
    replay=Replay(0, source(), source_head()))


@pytest.mark.parametrize('name', PLAIN)
def test_the_end_of_the_scale_is_plain_fine_tuning_to_the_bit(name):
    none = PLAIN[name]
    plain, zero = (learner(cbs, net=model(dropout=.3)) for cbs in ([], [none]))
    for learn in (plain, zero):
        torch.manual_seed(3)  # of dropout
        learn.fit(3)
    assert same(state(plain.model), state(zero.model))
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in zero.recorder.values]
