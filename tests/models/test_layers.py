"Which layer the weights and buffers of an encoder belong to."
import pytest
import torch
from helpers import Net, state
from torch import nn

from sdfast.models.encoders import create_encoder, tiny
from sdfast.models.layers import encoder_layers, layer_depths


def test_every_entry_has_the_depth_of_its_layer():
    depths = layer_depths(Net())
    assert list(depths) == list(state(Net()))
    assert {d for k, d in depths.items() if k.startswith(('conv', 'bn'))} == {2}
    assert {d for k, d in depths.items() if k.startswith('out')} == {1}


@pytest.mark.parametrize('make', [tiny, lambda: create_encoder('r2plus1d'), lambda: create_encoder('mvit_v2_s'),
                                  lambda: create_encoder('resnet18'), lambda: create_encoder('vit_tiny_patch16_224'),
                                  lambda: create_encoder('lrcn:resnet18'),
                                  lambda: create_encoder('two_stream:resnet18'),
                                  lambda: create_encoder('ip_csn_152', depths=(1, 1, 2, 1))])
def test_depths_agree_with_the_layers(make):
    with torch.device('meta'): net = make()
    layers, depths = encoder_layers(net), layer_depths(net)
    assert list(depths) == list(net.state_dict())
    by_id = {id(p):len(layers) - i for i, layer in enumerate(layers) for p in layer}
    for n, p in net.named_parameters(): assert depths[n] == by_id.get(id(p), 0)
    for name, layer in net.named_modules():
        weights = {depths[f'{name}.{n}'] for n, _ in layer.named_parameters(recurse=False)}
        buffers = {depths[f'{name}.{n}'] for n, _ in layer.named_buffers(recurse=False) if f'{name}.{n}' in depths}
        if weights and buffers: assert buffers == weights, name


class Plain(nn.Module):
    "Statistics without weights, a buffer of the encoder's own, tied weights"
    def __init__(self):
        super().__init__()
        self.register_buffer('scale', torch.ones(1))
        self.one = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False))
        self.two = nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 2, 1))
        self.three = nn.Linear(2, 2)
        self.four = self.three

    def forward(self, x): return self.four(self.three(self.two(self.one(x)).mean((2, 3))))


def test_buffers_without_weights_of_their_own_have_the_depth_of_their_block():
    depths = layer_depths(Plain())
    assert depths['scale'] == 3
    assert depths['one.1.running_mean'] == depths['one.0.weight'] == 3
    assert depths['two.0.running_var'] == depths['two.1.weight'] == 2
    assert depths['three.weight'] == depths['four.weight'] == 1


def test_buffers_between_flat_layers_have_the_depth_of_the_layer_before():
    flat = [m for _ in range(6) for m in (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, affine=False), nn.ReLU())]
    net = nn.Sequential(nn.Sequential(*flat), nn.Flatten())
    depths = layer_depths(net)
    assert [depths[f'0.{3*i}.weight'] for i in range(6)] == [6, 5, 4, 3, 2, 1]
    assert [depths[f'0.{3*i + 1}.running_mean'] for i in range(6)] == [6, 5, 4, 3, 2, 1]


class Parts(nn.Module):
    "Two parts side by side, one of them deeper, then another part; and a token of the encoder's own"
    encoder_parts = (('short', 'long'), ('last',))

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(2))
        self.long = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
        self.short = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        self.last = nn.LSTM(2, 2)


def test_parts_side_by_side_have_depths_from_the_output_on():
    net = Parts()
    depths = layer_depths(net)
    assert [depths[f'long.{i}.weight'] for i in range(3)] == [4, 3, 2]
    assert [depths[f'short.{i}.bias'] for i in range(2)] == [3, 2]
    assert {depths[f'last.{n}'] for n, _ in net.last.named_parameters()} == {1} and depths['token'] == 4
    assert layer_depths(nn.Sequential(net, nn.Flatten())) == {f'0.{k}':d for k, d in depths.items()}
    assert [len(layer) for layer in encoder_layers(net)] == [3, 4, 4, 4]


def test_tied_weights_have_one_depth():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)) for _ in range(3)))
    net[2][2].weight = net[0][0].weight
    depths = layer_depths(net)
    assert depths['2.2.weight'] == depths['0.0.weight'] == 3
    assert depths['2.2.bias'] == 1


def test_compiled_nets_have_the_depths_of_the_net():
    net = Net()
    compiled = torch.compile(net)
    assert list(layer_depths(compiled).values()) == list(layer_depths(net).values())
    assert list(layer_depths(compiled)) == list(compiled.state_dict())
