"""Video models as `nn.Sequential(encoder, head)`: the paper's C3D and R(2+1)D, a small R(2+1)D for CPUs, torchvision's video
nets, timm nets over frames.

Every encoder takes a normalised batch of clips `(B, T, 3, H, W)` and returns features `(B, num_features)`.
"""
from collections import OrderedDict
from pathlib import Path

import timm
import torch
import torchvision
from fastai.vision.core import imagenet_stats
from torch import nn

from ..errors import InputError
from .weights import HEADS, load_encoder

__all__ = ['SpaceTimeEncoder', 'FrameEncoder', 'tiny', 'c3d', 'r2plus1d', 'is_model', 'create_encoder', 'model_stats', 'create_model', 'encoder_head_split']



class SpaceTimeEncoder(nn.Module):
    "A net over `(B, C, T, H, W)`, run channels-last, behind the clip layout of sdfast"

    def __init__(self,
        body:nn.Module, # From `(B, C, T, H, W)` to `(B, num_features)`
        num_features:int, # Width of the feature
    ):
        super().__init__()
        self.body, self.num_features = body.to(memory_format=torch.channels_last_3d), num_features

    def forward(self, x:torch.Tensor)->torch.Tensor: return self.body(x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d))


class FrameEncoder(nn.Module):
    "An image net over every frame; the clip's feature is the mean of its frames'"

    def __init__(self,
        body:nn.Module, # From `(B, C, H, W)` to `(B, num_features)`
        num_features:int, # Width of the feature
    ):
        super().__init__()
        self.body, self.num_features = body, num_features

    def forward(self, x:torch.Tensor)->torch.Tensor: return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)


def _conv2plus1(ni, no, stride, temporal_stride):
    """A 3x3x3 convolution as space, then time (Tran et al., CVPR 2018). The width between keeps the number of weights,
    rounded to a multiple of 8: on CPUs odd widths cost half as much again."""
    mid = max(8, round((ni*no*27)/(ni*9 + 3*no)/8)*8)
    return nn.Sequential(
        nn.Conv3d(ni, mid, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False), nn.BatchNorm3d(mid), nn.ReLU(inplace=True),
        nn.Conv3d(mid, no, (3, 1, 1), (temporal_stride, 1, 1), (1, 0, 0), bias=False), nn.BatchNorm3d(no), nn.ReLU(inplace=True))


def tiny(
    width:int=8, # Channels of the first layer
)->SpaceTimeEncoder: # Randomly initialised
    "Four R(2+1)D layers, `12*width` features: trains in seconds on two CPU cores at 8x40x40"
    w = width
    return SpaceTimeEncoder(nn.Sequential(
        _conv2plus1(3, w, 2, 1), _conv2plus1(w, 2*w, 2, 2), _conv2plus1(2*w, 6*w, 2, 2), _conv2plus1(6*w, 12*w, 1, 1),
        nn.AdaptiveAvgPool3d(1), nn.Flatten()), 12*w)


def c3d()->SpaceTimeEncoder: # Randomly initialised
    """The C3D of RSPNet and VCOP: batch norm behind each of eight convolutions, global average pooling, no fully connected
    layers. 27,661,440 parameters; 512 non-negative features of a 16x112x112 clip, ImageNet-normalised RGB."""
    layers, ni = OrderedDict(), 3
    for names, no, pool in ((['1'], 64, (1, 2, 2)), (['2'], 128, 2), (['3a', '3b'], 256, 2), (['4a', '4b'], 512, 2), (['5a', '5b'], 512, None)):
        for name in names:
            layers |= {f'conv{name}': nn.Conv3d(ni, no, 3, padding=1), f'bn{name}': nn.BatchNorm3d(no), f'relu{name}': nn.ReLU(inplace=True)}
            ni = no
        layers[f'pool{names[0][0]}'] = nn.MaxPool3d(pool) if pool else nn.AdaptiveAvgPool3d(1)
    return SpaceTimeEncoder(nn.Sequential(layers | dict(flat=nn.Flatten())), 512)


class _SpaceTimeConv(nn.Module):
    "A k x k x k convolution as space, batch norm, ReLU, time, with as many weights (Tran et al., CVPR 2018); no biases"

    def __init__(self, ni, no, kernel, stride=1):
        super().__init__()
        (t, k), s = kernel, stride if isinstance(stride, tuple) else (stride, stride)
        mid = t*k*k*ni*no//(k*k*ni + t*no)
        self.spatial_conv = nn.Conv3d(ni, mid, (1, k, k), (1, s[1], s[1]), (0, k//2, k//2), bias=False)
        self.bn = nn.BatchNorm3d(mid)
        self.temporal_conv = nn.Conv3d(mid, no, (t, 1, 1), (s[0], 1, 1), (t//2, 0, 0), bias=False)

    def forward(self, x): return self.temporal_conv(self.bn(self.spatial_conv(x)).relu_())


class _Block(nn.Module):
    "Two convolutions and a shortcut which, where the size changes, is a factored convolution itself"

    def __init__(self, ni, no):
        super().__init__()
        self.down = ni != no
        self.conv1, self.bn1 = _SpaceTimeConv(ni, no, (3, 3), 1 + self.down), nn.BatchNorm3d(no)
        self.conv2, self.bn2 = _SpaceTimeConv(no, no, (3, 3)), nn.BatchNorm3d(no)
        if self.down: self.downsampleconv, self.downsamplebn = _SpaceTimeConv(ni, no, (1, 1), 2), nn.BatchNorm3d(no)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        return (y + (self.downsamplebn(self.downsampleconv(x)) if self.down else x)).relu_()


class _Stage(nn.Module):
    "One block, under the name that checkpoints have for it"
    def __init__(self, ni, no):
        super().__init__()
        self.block1 = _Block(ni, no)

    def forward(self, x): return self.block1(x)


def r2plus1d()->SpaceTimeEncoder: # Randomly initialised
    """The R(2+1)D of RSPNet and VCOP, `r2plus1d-vcop`: one block a stage, not torchvision's `r2plus1d_18`.

    14,365,303 parameters; 512 non-negative features of a 16x112x112 clip, ImageNet-normalised RGB."""
    stages = {f'conv{i}': _Stage(ni, no) for i, (ni, no) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 2)}
    return SpaceTimeEncoder(nn.Sequential(OrderedDict(conv1=_SpaceTimeConv(3, 64, (3, 7), (1, 2)), bn1=nn.BatchNorm3d(64), relu1=nn.ReLU(inplace=True),
                                                      **stages, pool=nn.AdaptiveAvgPool3d(1), flat=nn.Flatten())), 512)


ENCODERS = dict(tiny=tiny, c3d=c3d, r2plus1d=r2plus1d)


def torchvision_names(): return torchvision.models.list_models(module=torchvision.models.video)


def is_model(
    name:str, # Of a net of sdfast, torchvision or timm
)->bool: # No net is built
    "Whether `create_model` knows `name`"
    return name in ENCODERS or name in torchvision_names() or timm.is_model(name)


def create_encoder(
    name:str, # `tiny`, `c3d`, `r2plus1d`, a video net of torchvision, or any image model of timm
    pretrained:bool=False, # The library's own weights, which it downloads
    **kwargs, # For the model's constructor, such as `pad_type='same'`
)->nn.Module: # From clips `(B, T, 3, H, W)` to features `(B, num_features)`; has `num_features`
    "An encoder by name"
    try:
        if name in ENCODERS:
            if pretrained: raise InputError(f'{name} has no weights that can be downloaded; give a file, or leave init away')
            return ENCODERS[name](**kwargs)
        if name in torchvision_names():
            net = torchvision.models.get_model(name, weights='DEFAULT' if pretrained else None, **kwargs)
            return SpaceTimeEncoder(*_without_head(net))
        if timm.is_model(name):
            net = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
            size = getattr(net, 'head_hidden_size', None) or net.num_features
            return FrameEncoder(net, size)
    except TypeError as e:
        raise InputError(f'model {name} does not take {", ".join(f"{k}={v!r}" for k, v in kwargs.items())}: {e}') from None
    except OSError as e: raise InputError(f'the published weights of {name} cannot be downloaded: {e}') from None
    near = timm.list_models(f'*{name}*')[:3]
    raise InputError(f'unknown model {name!r}; known are {", ".join([*ENCODERS, *torchvision_names()])} and every model of timm'
                     + (f' (such as {", ".join(near)})' if near else ''))


def _without_head(net):
    "`(net that returns pooled features, their number)` for torchvision's video nets"
    if isinstance(net, torchvision.models.video.S3D):  # its head is a convolution, averaged over what is left of time and space
        n = net.classifier[-1].in_channels
        return nn.Sequential(net.features, net.avgpool, nn.AdaptiveAvgPool3d(1), nn.Flatten()), n
    name = next(n for n in HEADS if hasattr(net, n))
    head = getattr(net, name)
    linear = head if isinstance(head, nn.Linear) else head[-1]
    setattr(net, name, nn.Identity())
    return net, linear.in_features


def model_stats(
    name:str, # As for `create_model`
)->tuple: # Mean and standard deviation, each of three channels
    "Mean and standard deviation of the input's channels that the model's published weights expect, ImageNet's if none"
    if name in torchvision_names():
        t = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return tuple(t.mean), tuple(t.std)
    if name not in ENCODERS and timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None: return tuple(cfg.mean), tuple(cfg.std)
    return imagenet_stats


def create_model(
    name:str, # `tiny`, `c3d`, `r2plus1d`, a video net of torchvision, or any image model of timm
    n_classes:int, # Outputs of the head
    init:str|Path|None=None, # Weights of the encoder: a file, 'pretrained' for the library's own, or none
    **kwargs, # For the model's constructor
)->nn.Sequential: # `Sequential(encoder, head)`, the head one linear layer
    "A model whose encoder comes from `init` and whose head is new; split it with `encoder_head_split`"
    encoder = create_encoder(name, pretrained=init == 'pretrained', **kwargs)
    if init not in (None, 'pretrained'): load_encoder(encoder, init)
    return nn.Sequential(encoder, nn.Linear(encoder.num_features, n_classes))


def encoder_head_split(
    model:nn.Sequential, # A `Sequential(encoder, head)`
)->list[list[nn.Parameter]]: # Two groups
    "fastai splitter: parameters of the encoder, parameters of the rest"
    encoder = list(model[0].parameters())
    ours = {id(p) for p in encoder}
    return [encoder, [p for p in model.parameters() if id(p) not in ours]]
