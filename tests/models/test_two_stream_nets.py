"Two streams: a net on frames and a net on stacks of flow, whose scores are averaged."
import sys

import numpy as np
import pytest
import torch
from pretraining import needs_opencv
from scipy.ndimage import gaussian_filter

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder, create_model, is_model
from sdfast.models.fits import check_fits
from sdfast.models.layers import encoder_layers, layer_depths
from sdfast.models.two_stream_nets import TwoStream, stream_heads

SIZE = 64


def make(n_classes=5, **kwargs):
    torch.manual_seed(0)
    return create_model('two_stream:test_resnet', n_classes, **kwargs).eval()


def moving(dx, dy, frames=12, part=False, seed=0):
    "A clip `(1, T, 3, H, W)` of a texture that moves by whole pixels, all of it or its right half"
    wide = gaussian_filter(np.random.default_rng(seed).random((160, 160)), 2, mode='wrap')
    wide = (wide - wide.min())/(wide.max() - wide.min())
    video = np.stack([np.roll(wide, (t*dy, t*dx), (0, 1))[20:20 + SIZE, 20:20 + SIZE] for t in range(frames)])
    if part: video[:, :, :SIZE//2] = video[0, :, :SIZE//2]
    x = torch.from_numpy(video).float()[None, :, None].expand(-1, -1, 3, -1, -1)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((.485, .456, .406), (.229, .224, .225)))
    return (x - mean)/std


def test_scores_are_the_mean_of_the_streams_scores():
    needs_opencv()
    model, x = make(), torch.cat([moving(1, 0), moving(-2, 1, seed=1)])
    encoder = model[0]
    spatial, temporal = stream_heads(model)
    with torch.no_grad():
        of_frames = spatial(encoder.spatial(x[:, 0]))
        of_flow = temporal(encoder.temporal(encoder.flow(x, [0])[:, 0]))
        torch.testing.assert_close(model(x), (of_frames + of_flow)/2, rtol=1e-5, atol=1e-6)
    assert torch.equal(spatial.weight, 2*model[1].weight[:, :encoder.num_features//2])
    assert torch.equal(temporal.bias, model[1].bias)
    assert (of_frames - of_flow).abs().max() > .01


def test_flow_input_has_twenty_channels_by_turns_horizontal_and_vertical():
    needs_opencv()
    encoder = make()[0]
    assert encoder.temporal.conv1[0].in_channels == 20 and encoder.spatial.conv1[0].in_channels == 3
    flow = encoder.flow(moving(3, -1, part=True), [0])
    assert flow.shape == (1, 1, 20, SIZE, SIZE)
    right, left = flow[0, 0, :, 16:48, 44:56], flow[0, 0, :, 16:48, 8:20]
    difference = right.flatten(1).median(1).values - left.flatten(1).median(1).values
    torch.testing.assert_close(difference, torch.tensor([3., -1.]*10), rtol=0, atol=.4)


def test_the_motion_of_a_camera_is_removed():
    needs_opencv()
    flow = make()[0].flow(moving(2, 1), [0])
    torch.testing.assert_close(flow.mean((3, 4)), torch.zeros(1, 1, 20), rtol=0, atol=1e-4)
    assert flow[..., 16:48, 16:48].abs().median() < .25  # less than the 2 pixels that all of it moves


def test_what_the_flow_net_sees_does_not_depend_on_the_other_clips_of_a_batch():
    needs_opencv()
    encoder, a, b = make()[0], moving(1, 0), moving(-2, 1, seed=1)
    both = encoder.flow(torch.cat([a, b]), [0, 1])
    assert torch.equal(both[:1], encoder.flow(a, [0, 1])) and torch.equal(both[1:], encoder.flow(b, [0, 1]))
    assert torch.equal(both[:, 0, 2:], both[:, 1, :18])  # a stack that starts a frame later


@pytest.mark.parametrize('frames, starts', [(11, [0]), (13, [1]), (20, [4]), (21, [0, 10]), (25, [0, 14]),
                                            (31, [0, 10, 20])])
def test_where_stacks_start(frames, starts): assert make()[0].starts(frames) == starts


def test_features_of_several_stacks_are_averaged():
    needs_opencv()
    encoder, x = make()[0], moving(1, 0, 21)
    with torch.no_grad():
        both = (encoder(x[:, :11]) + encoder(x[:, 10:]))/2
        torch.testing.assert_close(encoder(x), both, rtol=1e-4, atol=1e-5)


def test_motion_changes_only_the_features_of_flow():
    needs_opencv()
    encoder = make()[0]
    n = encoder.num_features//2
    with torch.no_grad(): still, moved = encoder(moving(0, 0, 11)), encoder(moving(2, 0, 11, part=True))
    assert torch.equal(still[:, :n], moved[:, :n])  # of the first frame, which is the same
    assert (still[:, n:] - moved[:, n:]).abs().max() > 1e-3


def test_layers_of_both_streams_are_side_by_side():
    encoder = make()[0]
    layers, depths = encoder_layers(encoder), layer_depths(encoder)
    assert len(layers) == len(encoder_layers(encoder.spatial))
    for name, depth in depths.items():
        if name.startswith('spatial.'): assert depths[name.replace('spatial.', 'temporal.', 1)] == depth, name
    assert {id(p) for layer in layers for p in layer} == {id(p) for p in encoder.parameters()}


def test_clips_that_are_too_short_are_refused():
    encoder = make()[0]
    text = r'at least 11 frames, not 8: pass frames=11 where the clips are made, or a smaller stack to the model'
    with pytest.raises(InputError, match=text) as e: encoder(torch.zeros(1, 8, 3, 32, 32))
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='at least 11 frames'): check_fits(encoder, 8, 32)
    check_fits(encoder, 16, 32)


def test_any_image_net_of_timm_by_name():
    assert is_model('two_stream:resnet18') and not is_model('two_stream:no_such_net')
    with torch.device('meta'): encoder = create_encoder('two_stream:resnet18', stack=5)
    assert isinstance(encoder, TwoStream) and encoder.num_features == 1024
    assert encoder.temporal.conv1.in_channels == 10
    with pytest.raises(InputError, match='at least 1, not 0'): create_encoder('two_stream:resnet18', stack=0)


def test_heads_of_other_models_are_refused():
    model = create_model('tiny', 2)
    with pytest.raises(InputError, match='Sequential of SpaceTimeEncoder, Linear'): stream_heads(model)


def test_without_opencv_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(InputError, match=r"TwoStream computes .* pip install 'sdfast\[pretext\]'"):
        make()(torch.zeros(1, 11, 3, 32, 32))
