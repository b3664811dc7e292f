"Finding the encoder and its blocks."
import warnings

import pytest
from helpers import model
from strategy_helpers import Other, Wrapped
from torch import nn

from sdfast.errors import InputError
from sdfast.models.surgery import block_names, find_encoder


def test_the_encoder_is_found_or_the_children_are_listed():
    net = model()
    assert find_encoder(net) is net[0]
    assert find_encoder(w := Wrapped()) is w.encoder
    o = Other()
    assert find_encoder(o, 'body') is o.body and find_encoder(o, lambda m: m.body) is o.body
    with pytest.raises(ValueError, match=r'body \(Net\), top \(Linear\)'): find_encoder(o)
    with pytest.raises(ValueError, match='no submodule'): find_encoder(o, 'nose')
    with pytest.raises(ValueError): find_encoder(nn.Sequential(*[nn.Linear(2, 2)]*3))


def test_model_of_the_tests_still_has_one_feature(): assert block_names(model()[0]) == ['conv', 'bn', 'out']


class Normalize(nn.Module):
    def forward(self, x): return x - .5


class Parts(nn.Module):
    "Most weights are in `body`"
    def __init__(self):
        super().__init__()
        self.pre, self.body = Normalize(), nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 8))
        self.norm, self.pool, self.head = nn.LayerNorm(8), nn.Identity(), nn.Linear(8, 3)


def warnings_of(*args):
    "The texts of the warnings of `find_encoder`"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        find_encoder(*args)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize('net,encoder,found', [
    (nn.Sequential(Normalize(), nn.Linear(4, 2)), None, 'Normalize'),
    (Parts(), 'pool', "Identity .'pool'."),
    (Parts(), lambda m: m.pre, 'Normalize')])
def test_a_part_without_weights_is_refused(net, encoder, found):
    with pytest.raises(InputError, match=f'{found}, has no weights.*children'): find_encoder(net, encoder)


@pytest.mark.parametrize('encoder', [lambda m: 3, lambda m: None, lambda m: nn.Linear(2, 2)])
def test_what_is_no_part_of_the_model_is_refused(encoder):
    with pytest.raises(InputError, match='part of Parts'): find_encoder(Parts(), encoder)


def test_weights_before_the_encoder_that_nobody_protects_are_named_once():
    net = Parts()
    text, = warnings_of(net, 'norm')
    assert "only LayerNorm ('norm') is protected" in text and 'body.0, body.2' in text
    assert not warnings_of(net, 'norm') and not warnings_of(net, 'body') and not warnings_of(model())
    frozen = Parts()
    frozen.body.requires_grad_(False)  # frozen weights forget nothing
    assert not warnings_of(frozen, 'norm')


def test_a_first_part_with_hardly_any_weights_is_doubted():
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Sequential(nn.Linear(8, 99), nn.Linear(99, 8)))
    text, = warnings_of(net)
    assert 'BatchNorm1d, has 2 of 1,' in text and '1 (Sequential)' in text
    assert not warnings_of(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(8, 99)), '0')  # asked for by name


def test_weights_that_are_not_made_yet_are_no_obstacle():
    net = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))
    assert find_encoder(net) is net[0]
