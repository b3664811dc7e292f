"The paper's encoders, layer by layer."

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdfast.errors import InputError
from sdfast.models.encoders import c3d, create_encoder, is_model, r2plus1d


def test_frame_encoder_is_the_mean_over_frames():
    net = create_encoder('resnet18').eval()
    x = torch.rand(2, 3, 3, 64, 64)
    with torch.no_grad():
        frames = torch.stack([net.body(x[:, t]) for t in range(3)])
        torch.testing.assert_close(net(x), frames.mean(0), rtol=1e-4, atol=1e-5)


def test_space_time_encoders_see_time_and_channels_where_they_are():
    from torchvision.models.video import r3d_18
    torch.manual_seed(0)
    ours = create_encoder('r3d_18').eval()
    theirs = r3d_18().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.body.state_dict())
    x = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)), rtol=1e-4, atol=1e-4)


NETS = dict(c3d=(c3d, 27_661_440, 56), r2plus1d=(r2plus1d, 14_365_303, 144))


def documented_names(arch):
    "State entries as the reference documents them, written out"
    bn = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    if arch == 'c3d':
        layers = ['1', '2', '3a', '3b', '4a', '4b', '5a', '5b']
        return {f'conv{l}.{p}' for l in layers for p in ('weight', 'bias')} | {f'bn{l}.{p}' for l in layers for p in bn}
    def unit(name):
        return {f'{name}.spatial_conv.weight', f'{name}.temporal_conv.weight'} | {f'{name}.bn.{p}' for p in bn}
    names = unit('conv1') | {f'bn1.{p}' for p in bn}
    for n in (2, 3, 4, 5):
        block = f'conv{n}.block1'
        for i in (1, 2): names |= unit(f'{block}.conv{i}') | {f'{block}.bn{i}.{p}' for p in bn}
        if n > 2: names |= unit(f'{block}.downsampleconv') | {f'{block}.downsamplebn.{p}' for p in bn}
    return names


@pytest.mark.parametrize('arch', NETS)
def test_sizes_and_names(arch):
    make, n, entries = NETS[arch]
    encoder = make()
    assert sum(p.numel() for p in encoder.parameters()) == n
    assert len(encoder.state_dict()) == entries == len(documented_names(arch))
    assert {k.removeprefix('body.') for k in encoder.state_dict()} == documented_names(arch)
    assert is_model(arch) and is_model('r2plus1d_18') and encoder.num_features == 512


# of a clip of 16x112x112: layer -> (channels, frames, height, width)
SHAPES = dict(
    c3d=dict(
        pool1=(64, 16, 56, 56), pool2=(128, 8, 28, 28), pool3=(256, 4, 14, 14), pool4=(512, 2, 7, 7),
        relu5b=(512, 2, 7, 7)),
    r2plus1d=dict(
        relu1=(64, 16, 56, 56), conv2=(64, 16, 56, 56), conv3=(128, 8, 28, 28), conv4=(256, 4, 14, 14),
        conv5=(512, 2, 7, 7)))


@pytest.mark.parametrize('arch,shapes', SHAPES.items())
def test_feature_maps(arch, shapes):
    encoder, seen = NETS[arch][0]().eval(), {}
    for name, m in encoder.body.named_children():
        m.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])}))
    with torch.no_grad(): f = encoder(torch.randn(1, 16, 3, 112, 112))
    assert f.shape == (1, 512) and f.min() >= 0
    assert {k:seen[k] for k in shapes} == shapes


def features_by_hand(arch, x, s):
    "The features of clips `(B, T, 3, H, W)` from documented state entries, operation by operation"
    def bn(x, p): return F.batch_norm(x, *(s[f'{p}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')))
    def unit(x, p, t, k, stride=1, time=1):  # space, batch norm, ReLU, time
        x = F.conv3d(x, s[f'{p}.spatial_conv.weight'], stride=(1, stride, stride), padding=(0, k//2, k//2))
        return F.conv3d(bn(x, f'{p}.bn').relu(), s[f'{p}.temporal_conv.weight'], stride=(time, 1, 1),
                        padding=(t//2, 0, 0))
    x = x.transpose(1, 2)
    if arch == 'c3d':
        for stage, pool in zip((['1'], ['2'], ['3a', '3b'], ['4a', '4b'], ['5a', '5b']), ((1, 2, 2), 2, 2, 2, None)):
            for n in stage: x = bn(F.conv3d(x, s[f'conv{n}.weight'], s[f'conv{n}.bias'], padding=1), f'bn{n}').relu()
            if pool: x = F.max_pool3d(x, pool)
    else:
        x = bn(unit(x, 'conv1', 3, 7, 2), 'bn1').relu()
        for n in (2, 3, 4, 5):
            p, stride = f'conv{n}.block1', 1 if n == 2 else 2
            y = bn(unit(x, f'{p}.conv1', 3, 3, stride, stride), f'{p}.bn1').relu()
            y = bn(unit(y, f'{p}.conv2', 3, 3), f'{p}.bn2')
            if n > 2: x = bn(unit(x, f'{p}.downsampleconv', 1, 1, 2, 2), f'{p}.downsamplebn')
            x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.mark.parametrize('arch', NETS)
def test_features_by_hand(arch):
    torch.manual_seed(0)
    encoder = NETS[arch][0]().eval()
    for m in encoder.modules():
        # with PyTorch's own initial weights clips hardly differ after eight layers
        if isinstance(m, nn.Conv3d): nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm3d):
            for t in (m.running_mean, m.bias): nn.init.normal_(t, 0, .1)
            for t in (m.running_var, m.weight): nn.init.uniform_(t, .5, 1.5)
    x = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        f = features_by_hand(arch, x, {k.removeprefix('body.'):v for k, v in encoder.state_dict().items()})
        torch.testing.assert_close(encoder(x), f, rtol=1e-4, atol=1e-5)
    assert (f > 0).float().mean() > .3 and f.std(0).mean() > .01


def test_middle_widths_and_the_factored_shortcut():
    net = r2plus1d().body
    stages = [net.conv2, net.conv3, net.conv4, net.conv5]
    mids = [net.conv1]
    for s in stages: mids += [s.block1.conv1, s.block1.conv2]
    mids += [s.block1.downsampleconv for s in stages[1:]]
    assert [m.spatial_conv.out_channels for m in mids] == [83, 144, 144, 230, 288, 460, 576, 921, 1152, 42, 85, 170]
    down = net.conv3.block1.downsampleconv
    assert down.spatial_conv.stride == (1, 2, 2)
    assert down.temporal_conv.stride == (2, 1, 1)
    assert isinstance(down.bn, nn.BatchNorm3d)
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv3d))


@pytest.mark.parametrize('name', ['tiny', 'resnet18'])
def test_what_is_no_batch_of_clips_is_refused(name):
    net = create_encoder(name)
    with pytest.raises(InputError, match=r'not \(2, 3, 4, 3, 32, 32\): for several clips .* pass cbs=MultiClip'):
        net(torch.zeros(2, 3, 4, 3, 32, 32))
    with pytest.raises(InputError, match=r'takes clips \(B, T, 3, H, W\), not \(2, 3, 32, 32\)$'):
        net(torch.zeros(2, 3, 32, 32))
