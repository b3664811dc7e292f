"Strategies under gradient checkpointing: the same weights and statistics as without."
import pytest
import torch
from helpers import learner, state
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdfast.errors import InputError
from sdfast.strategies import R3F, Replay, StochNorm
from sdfast.strategies.second_pass import SecondPass


class Encoder(nn.Module):
    "Two convolutions, of which the second is checkpointed: `mode` is `use_reentrant`, `None` for no checkpointing"
    def __init__(self, mode, calls=1):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.2))
        self.out, self.mode, self.times = nn.Linear(4*36, 6), mode, calls

    def forward(self, x):
        x = self.a(x)
        for _ in range(self.times):
            free = self.mode is None or not self.training
            x = self.b(x) if free else checkpoint(self.b, x, use_reentrant=self.mode)
        return self.out(x.flatten(1))


def fit(mode, cbs, lr=.1, calls=1):
    torch.manual_seed(0)
    net = nn.Sequential(Encoder(mode, calls), nn.Linear(6, 3))
    learn = learner(cbs, net=net, lr=lr)
    learn.fit(2)
    return {k:v for k, v in state(net).items() if 'tracked' not in k}


def source():
    torch.manual_seed(3)
    return [(torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,)))]


MAKERS = dict(r3f=lambda: R3F(5., eps=.3), replay=lambda: Replay(1., source(), nn.Linear(6, 3)),
              stoch_norm=lambda: StochNorm(.5), both=lambda: [StochNorm(.5), R3F(5., eps=.3)])


@pytest.mark.parametrize('mode', [False, True])
@pytest.mark.parametrize('name', MAKERS)
def test_checkpointing_changes_no_weight(name, mode):
    want, got, plain = fit(None, MAKERS[name]()), fit(mode, MAKERS[name]()), fit(None, [])
    weights = [k for k in want if 'running' not in k]
    for k in weights: torch.testing.assert_close(got[k], want[k], rtol=1e-4, atol=1e-5)
    assert max((plain[k] - want[k]).abs().max() for k in weights) > 1e-3


@pytest.mark.parametrize('mode', [None, False, True])
@pytest.mark.parametrize('name', ['r3f', 'replay'])
def test_statistics_move_as_in_plain_training(name, mode):
    "With learning rate 0, so that only statistics can move; checkpointing itself moves them twice a batch"
    want, got = fit(mode, [], 0.), fit(mode, MAKERS[name](), 0.)
    for k in want: torch.testing.assert_close(got[k], want[k], rtol=1e-5, atol=1e-6)


def test_stoch_norm_refuses_a_checkpointed_layer_that_is_called_twice():
    with pytest.raises(InputError, match='called 2 times in a batch'): fit(False, StochNorm(.5), calls=2)


def test_a_twin_is_made_only_for_checkpointed_layers_with_buffers():
    x = torch.randn(4, 1, 6, 6)
    for mode in (None, False, True):
        again = SecondPass(Encoder(mode).train())
        again(lambda m: m(x.requires_grad_())).sum().backward()
        assert (again.twin is None) == (mode is None)
    assert again.twin.b[0].weight is again.module.b[0].weight
    assert again.twin.b[1].running_mean is not again.module.b[1].running_mean


def test_a_model_that_cannot_be_copied_is_refused():
    net = Encoder(False).train()
    class Stubborn:
        def __deepcopy__(self, memo): raise TypeError('no')
    net.b[1].register_module('odd', nn.Identity())
    net.b[1].odd.__class__ = type('Odd', (nn.Identity,), dict(__deepcopy__=Stubborn.__deepcopy__))
    x = torch.randn(4, 1, 6, 6)
    with pytest.raises(InputError, match='cannot be copied'): SecondPass(net)(lambda m: m(x))


def test_one_source_clip_and_batch_norm_over_it():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6))
        def forward(self, x): return self.out(x)
    one = [(torch.randn(1, 1, 6, 6), torch.zeros(1).long())]
    learn = learner(Replay(1., one, nn.Linear(6, 3)), net=nn.Sequential(Flat(), nn.Linear(6, 3)))
    with pytest.raises(InputError, match='one source clip.*drop_last'): learn.fit(1)
