"Frozen copies of modules that `deepcopy` refuses to copy."
import threading
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from sdfast.errors import InputError
from sdfast.models.surgery import frozen_copy

WRAPS = dict(
    weight_norm=weight_norm,
    spectral_norm=spectral_norm,
    pruned=lambda layer: prune.l1_unstructured(layer, 'weight', .3),
    pruned_twice=lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, 'weight', .2), 'weight', .3),
    new_weight_norm=parametrizations.weight_norm,
    new_spectral_norm=parametrizations.spectral_norm,
    orthogonal=parametrizations.orthogonal)


@pytest.mark.parametrize('wrap', WRAPS)
def test_a_computed_weight_is_computed_in_the_copy_too(wrap):
    torch.manual_seed(0)
    net = nn.Sequential(WRAPS[wrap](nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8))
    x = torch.randn(4, 6)
    net(x).sum().backward()  # the weight has a graph now
    copy = frozen_copy(net)
    assert copy.state_dict().keys() == net.state_dict().keys()
    assert not any(p.requires_grad for p in copy.parameters())
    torch.testing.assert_close(copy(x), net.eval()(x), rtol=0, atol=0)
    before = copy(x).clone()
    with torch.no_grad():
        for p in net.parameters(): p.mul_(3)
    torch.testing.assert_close(copy(x), before, rtol=0, atol=0)  # nothing is shared
    again = frozen_copy(copy)
    with torch.no_grad():
        for p in again.parameters(): p.mul_(2)
    assert not torch.equal(again(x), before)  # the weight follows from the copy's parameters
    torch.testing.assert_close(copy(x), before, rtol=0, atol=0)


class Keeps(nn.Module):
    "Stores what people store: attention maps, a lock, a generator, a file"
    def __init__(self, file):
        super().__init__()
        self.layer, self.lock, self.event = nn.Linear(6, 6), threading.Lock(), threading.Event()
        self.noise, self.file = torch.Generator().manual_seed(3), file
        self.maps, self.last = [], dict(feature=None)
        self.numbers = (i for i in range(9))

    def forward(self, x):
        with self.lock: x = self.layer(x) + torch.randn(x.shape, generator=self.noise)
        self.maps.append(x)
        self.last['feature'] = x
        return x


def test_stored_tensors_lose_their_graph_and_locks_are_new(tmp_path):
    with open(tmp_path/'log', 'w') as file:
        net, x = Keeps(file), torch.randn(2, 6)
        net(x)
        with pytest.raises((RuntimeError, TypeError)): deepcopy(net)
        copy = frozen_copy(net)
        assert copy.maps[0] is copy.last['feature']  # shared as in the module
        assert not copy.maps[0].requires_grad and torch.equal(copy.maps[0], net.maps[0])
        assert copy.lock is not net.lock and copy.file is file and not copy.event.is_set()
        with net.lock: out = copy(x)  # would wait for ever
        state = net.noise.get_state()
        torch.testing.assert_close(out, net(x))  # its noise continues from the same state
        assert not torch.equal(state, net.noise.get_state()) and len(copy.maps) == 2
        with pytest.raises(InputError, match='Python generator'): next(copy.numbers)


def test_what_deepcopy_can_copy_is_copied_by_it():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].config = dict(a=[1, 2])
    net[1].weight = net[0].bias  # tied
    copy = frozen_copy(net)
    assert copy[1].weight is copy[0].bias and copy[0].config == net[0].config
    assert copy[0].config is not net[0].config and not copy.training


def test_what_cannot_be_copied_at_all_is_said_in_one_line():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo): raise OSError('no\nway')
    with pytest.raises(InputError, match='^Sequential cannot be copied.*: no; remove'):
        frozen_copy(nn.Sequential(Stubborn(2, 2)))
