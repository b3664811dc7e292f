"Maps inside an encoder: of clips and of frames, with gradient; where its stages end; what has no maps."
import pytest
import torch
from pretraining import OneConv, random_clips, tiny
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.pretext.maps import layer_maps, map_stages


@pytest.fixture
def x(): return random_clips(b=2, t=4)[:, 0]


def test_the_mean_of_the_last_maps_is_the_feature(x):
    encoder = tiny().eval()
    maps = layer_maps(encoder, x, ['body.3'])['body.3']
    assert maps.shape == (2, 24, 1, 2, 2)
    torch.testing.assert_close(maps.mean((2, 3, 4)), encoder(x))
    assert maps.requires_grad


def test_maps_of_frames_become_those_of_clips(x):
    encoder = create_encoder('timm:resnet18').eval()
    maps = layer_maps(encoder, x, ['body.layer1'])['body.layer1']
    assert maps.shape == (2, 64, 4, 4, 4)
    alone = layer_maps(encoder, x[1:, 3:], ['body.layer1'])['body.layer1']
    torch.testing.assert_close(maps[1, :, 3], alone[0, :, 0], rtol=1e-4, atol=1e-5)


def test_an_operation_in_place_after_the_layer_is_included(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    frames = x[:, 0]
    maps = layer_maps(net, frames, ['0'])['0'][:, :, 0]
    assert torch.equal(maps, net[0](frames).relu())


def test_stages_end_where_maps_become_smaller():
    assert map_stages(tiny(), torch.zeros(1, 8, 3, 40, 40)) == {
        'body.0': (2, 8, 20, 20), 'body.1': (4, 4, 10, 10), 'body.3': (24, 2, 5, 5)}
    found = list(map_stages(create_encoder('r2plus1d'), torch.zeros(1, 8, 3, 64, 64)))
    assert found == ['body.conv2', 'body.conv3', 'body.conv4', 'body.conv5']
    assert map_stages(tiny(), torch.zeros(1, 1, 3, 40, 40), 'body.1') == {'body.1': (4, 1, 10, 10)}


def test_what_has_no_maps_is_refused(x):
    class Tokens(nn.Module):
        num_features = 4
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Conv3d(3, 4, 4, 4), nn.Linear(4, 4)
        def forward(self, x): return self.mix(self.embed(x.transpose(1, 2)).flatten(2).transpose(1, 2)).mean(1)
    with pytest.raises(InputError, match=r'expected maps \(B, C, T, H, W\)'): layer_maps(Tokens(), x, ['mix'])
    with pytest.raises(InputError, match="no layer 'nope'; some are body.0"): map_stages(tiny(), x[:1], 'nope')
    with pytest.raises(InputError, match='cannot read clips of 1 frames of 16x16'):
        map_stages(OneConv(4, (2, 3, 3), 1), x[:1, :1], 'conv')
