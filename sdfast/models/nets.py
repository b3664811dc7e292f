"""The nets of sdfast: the paper's C3D and R(2+1)D, a small R(2+1)D for CPUs, and wrappers for the nets of torchvision
and timm.

Every encoder takes a normalised batch of clips `(B, T, 3, H, W)` and returns features `(B, num_features)`."""
from collections import OrderedDict

import torch
from torch import nn

from .clip_spec import ClipSpec, check_clips

__all__ = ['SpaceTimeEncoder', 'FrameEncoder', 'tiny', 'c3d', 'r2plus1d']

# of nets that take clips of any length and size
VIDEO, FRAMES = ClipSpec(layout='BCTHW', pooling='net'), ClipSpec(layout='BCHW', pooling='net')


class SpaceTimeEncoder(nn.Module):
    "Wraps a net for `(B, C, T, H, W)`, so that it takes clips `(B, T, C, H, W)` and runs channels-last"

    def __init__(self,
        body:nn.Module, # Maps `(B, C, T, H, W)` to `(B, num_features)`
        num_features:int, # Width of the feature
        clips:ClipSpec=VIDEO, # What clips the net expects
    ):
        super().__init__()
        self.body, self.num_features = body.to(memory_format=torch.channels_last_3d), num_features
        self.clips = clips

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        return self.body(x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))


class FrameEncoder(nn.Module):
    "Applies an image net to every frame; a clip's feature is the mean of its frames' features"

    def __init__(self,
        body:nn.Module, # Maps `(B, C, H, W)` to `(B, num_features)`
        num_features:int, # Width of the feature
        clips:ClipSpec=FRAMES, # What clips the net expects
    ):
        super().__init__()
        self.body, self.num_features, self.clips = body, num_features, clips

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def tiny(
    width:int=8, # Channels of the first layer
)->SpaceTimeEncoder: # Randomly initialised
    "A net of four R(2+1)D layers with `12*width` features, which trains in seconds on two CPU cores at 8x40x40"
    w = width
    widths = [(3, w, 2, 1), (w, 2*w, 2, 2), (2*w, 6*w, 2, 2), (6*w, 12*w, 1, 1)]
    layers = [_conv2plus1(*sizes) for sizes in widths]
    return SpaceTimeEncoder(nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten()), 12*w)


def _conv2plus1(ni, no, stride, temporal_stride):
    """A 3x3x3 convolution, factored into one over space and one over time (Tran et al., CVPR 2018).

    The width between them keeps the number of weights, but is rounded to a multiple of 8: other widths take 1.5 times
    as long on CPUs."""
    mid = max(8, round((ni*no*27)/(ni*9 + 3*no)/8)*8)
    return nn.Sequential(
        nn.Conv3d(ni, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(mid),
        nn.ReLU(inplace=True),
        nn.Conv3d(mid, no, (3, 1, 1), (temporal_stride, 1, 1), (1, 0, 0), bias=False),
        nn.BatchNorm3d(no),
        nn.ReLU(inplace=True))


# C3D by stage: names of its convolutions, their channels, the max pooling after them
C3D_STAGES = (
    (('1',), 64, (1, 2, 2)),
    (('2',), 128, 2),
    (('3a', '3b'), 256, 2),
    (('4a', '4b'), 512, 2),
    (('5a', '5b'), 512, None),  # global average pooling
)


def c3d()->SpaceTimeEncoder: # Randomly initialised
    """The C3D of RSPNet and VCOP: batch norm after each of eight convolutions, global average pooling, no fully
    connected layers. 27,661,440 parameters; 512 non-negative features of a 16x112x112 clip, ImageNet-normalised RGB."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    ni = 3
    for names, no, pool in C3D_STAGES:
        for name in names:
            layers[f'conv{name}'] = nn.Conv3d(ni, no, 3, padding=1)
            layers[f'bn{name}'] = nn.BatchNorm3d(no)
            layers[f'relu{name}'] = nn.ReLU(inplace=True)
            ni = no
        layers[f'pool{names[0][0]}'] = nn.MaxPool3d(pool) if pool else nn.AdaptiveAvgPool3d(1)
    layers['flat'] = nn.Flatten()
    return SpaceTimeEncoder(nn.Sequential(layers), 512)


class _SpaceTimeConv(nn.Module):
    "A t x k x k convolution, factored into space, batch norm, ReLU and time, without biases (Tran et al., CVPR 2018)"

    def __init__(self, ni, no, kernel, stride=1):
        super().__init__()
        t, k = kernel
        time_stride, space_stride = stride if isinstance(stride, tuple) else (stride, stride)
        mid = t*k*k*ni*no//(k*k*ni + t*no)
        self.spatial_conv = nn.Conv3d(
            ni, mid, (1, k, k), (1, space_stride, space_stride), (0, k//2, k//2), bias=False)
        self.bn = nn.BatchNorm3d(mid)
        self.temporal_conv = nn.Conv3d(mid, no, (t, 1, 1), (time_stride, 1, 1), (t//2, 0, 0), bias=False)

    def forward(self, x): return self.temporal_conv(self.bn(self.spatial_conv(x)).relu_())


class _Block(nn.Module):
    "Two convolutions and a shortcut; if the size changes, the shortcut is a factored convolution"

    def __init__(self, ni, no):
        super().__init__()
        self.down = ni != no
        self.conv1, self.bn1 = _SpaceTimeConv(ni, no, (3, 3), 1 + self.down), nn.BatchNorm3d(no)
        self.conv2, self.bn2 = _SpaceTimeConv(no, no, (3, 3)), nn.BatchNorm3d(no)
        if self.down:
            self.downsampleconv, self.downsamplebn = _SpaceTimeConv(ni, no, (1, 1), 2), nn.BatchNorm3d(no)

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y))
        shortcut = self.downsamplebn(self.downsampleconv(x)) if self.down else x
        return (y + shortcut).relu_()


class _Stage(nn.Module):
    "One block, under its name in published checkpoints"
    def __init__(self, ni, no):
        super().__init__()
        self.block1 = _Block(ni, no)

    def forward(self, x): return self.block1(x)


def r2plus1d()->SpaceTimeEncoder: # Randomly initialised
    """The R(2+1)D of RSPNet and VCOP, `r2plus1d-vcop`: one block a stage, not torchvision's `r2plus1d_18`.

    14,365,303 parameters; 512 non-negative features of a 16x112x112 clip, ImageNet-normalised RGB."""
    widths = [(64, 64), (64, 128), (128, 256), (256, 512)]
    # create the stages first: the random initial weights depend on the order
    stages = {f'conv{i}': _Stage(ni, no) for i, (ni, no) in enumerate(widths, 2)}
    body = OrderedDict(
        conv1=_SpaceTimeConv(3, 64, (3, 7), (1, 2)),
        bn1=nn.BatchNorm3d(64),
        relu1=nn.ReLU(inplace=True),
        **stages,
        pool=nn.AdaptiveAvgPool3d(1),
        flat=nn.Flatten())
    return SpaceTimeEncoder(nn.Sequential(body), 512)
