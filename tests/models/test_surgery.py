"Finding the encoder and its blocks; statistics of batch norm."
import pytest
import torch
from helpers import data, model, same, state
from strategy_helpers import Other, Wrapped
from torch import nn

from sdfast.errors import InputError
from sdfast.models.surgery import block_names, find_encoder, reestimate_bn


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


def test_reestimate_bn_is_the_mean_over_batches():
    net = model(dropout=.5)
    net[0].bn.momentum = .3
    net.train()
    net[0].bn.num_batches_tracked.fill_(9)  # it has been trained
    net[0].bn.running_mean.fill_(5.)
    net[0].drop.eval()
    batches = list(data(n=20, bs=6).valid)  # the last one is smaller, and counts as much
    modes, weights, rng = [m.training for m in net.modules()], state(net), torch.get_rng_state()
    assert reestimate_bn(net, batches) is net
    with torch.no_grad(): maps = [net[0].conv(x).transpose(0, 1).flatten(1) for x, _ in batches]
    torch.testing.assert_close(net[0].bn.running_mean, torch.stack([m.mean(1) for m in maps]).mean(0))
    torch.testing.assert_close(net[0].bn.running_var, torch.stack([m.var(1) for m in maps]).mean(0))
    assert [m.training for m in net.modules()] == modes
    assert net[0].bn.momentum == .3
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in state(net).items() if 'running' not in k and 'num' not in k)
    # errors put back what was there; nothing to do without batch norm
    before = state(net)
    def broken():
        yield batches[0]
        raise OSError
    with pytest.raises(OSError): reestimate_bn(net, broken())
    with pytest.raises(InputError, match='no batches'): reestimate_bn(net, [])
    assert same(before, state(net)) and [m.training for m in net.modules()] == modes and net[0].bn.momentum == .3
    reestimate_bn(nn.Linear(2, 2), None)
    inside = nn.Sequential(net[0], nn.BatchNorm1d(6))
    outer = state(inside[1])
    reestimate_bn(inside, batches, inside[0])
    assert same(outer, state(inside[1]))
