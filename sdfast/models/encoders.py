"""Encoders and models `nn.Sequential(encoder, head)` by name: nets of sdfast, torchvision's video nets, timm's nets."""
from pathlib import Path
from typing import Any

import timm
import torchvision
from fastai.vision.core import imagenet_stats
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from ..errors import InputError
from .nets import FrameEncoder, SpaceTimeEncoder, c3d, r2plus1d, tiny
from .weights import HEADS, load_encoder

__all__ = ['ENCODERS', 'is_model', 'create_encoder', 'model_stats', 'create_model', 'encoder_head_split']

# name -> function that makes an encoder with the attribute `num_features`; to add your own, add a row
ENCODERS = dict(tiny=tiny, c3d=c3d, r2plus1d=r2plus1d)


def torchvision_names()->list[str]:
    "Names of torchvision's video nets"
    return torchvision.models.list_models(module=torchvision.models.video)


def is_model(
    name:str, # Name of a net
)->bool: # Without building the net
    "Whether `create_model` knows `name`"
    return name in ENCODERS or name in torchvision_names() or timm.is_model(name)


def create_encoder(
    name:str, # `tiny`, `c3d`, `r2plus1d`, a video net of torchvision, or any image model of timm
    pretrained:bool=False, # Download the library's own weights
    **kwargs, # For the model's constructor, such as `pad_type='same'`
)->nn.Module: # Maps clips `(B, T, 3, H, W)` to features `(B, num_features)`; has `num_features`
    """Create an encoder by name.

    Some nets have dropout, or drop whole layers (stochastic depth), by default. It is off here unless an argument sets
    it, such as timm's `drop_path_rate=.1` or `stochastic_depth_prob=.1` of torchvision's MViT.

    Raises `InputError` for an unknown name, arguments that the model does not take or a failed download."""
    try: encoder = _create(name, pretrained, kwargs)
    except TypeError as e:
        given = ', '.join(f'{k}={v!r}' for k, v in kwargs.items())
        raise InputError(f'model {name} does not take {given}: {e}') from None
    except OSError as e:
        raise InputError(f'the published weights of {name} cannot be downloaded: {e}') from None
    if encoder is not None: return encoder
    near = timm.list_models(f'*{name}*')[:3]
    known = ', '.join([*ENCODERS, *torchvision_names()])
    such_as = f' (such as {", ".join(near)})' if near else ''
    raise InputError(f'unknown model {name!r}; known are {known} and every model of timm{such_as}')


def _create(name, pretrained, kwargs):
    "The encoder, or `None` for an unknown name"
    if name in ENCODERS:
        if pretrained: raise InputError(f'{name} has no weights that can be downloaded; give a file, or leave init out')
        return ENCODERS[name](**kwargs)
    if name in torchvision_names():
        net = torchvision.models.get_model(name, weights='DEFAULT' if pretrained else None, **kwargs)
        return SpaceTimeEncoder(*_without_head(_without_dropout(net, kwargs)))
    if timm.is_model(name):
        net = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        size = getattr(net, 'head_hidden_size', None) or net.num_features
        return FrameEncoder(_without_dropout(net, kwargs), size)
    return None


def _without_dropout(net, given):
    "The net without dropout and stochastic depth, unless an argument is about them"
    if any('drop' in name or 'stochastic' in name for name in given): return net
    for m in net.modules():
        if isinstance(m, (_DropoutNd, StochasticDepth)): m.p = 0.
        elif isinstance(getattr(m, 'drop_prob', None), float): m.drop_prob = 0.  # DropPath, in several classes
        if getattr(m, 'drop_rate', 0): m.drop_rate = 0.  # ghostnets call the function
    return net


def _without_head(net):
    "`(net that returns pooled features, number of features)` for one of torchvision's video nets"
    if isinstance(net, torchvision.models.video.S3D):  # its head is a convolution, averaged over time and space
        n = net.classifier[-1].in_channels
        return nn.Sequential(net.features, net.avgpool, nn.AdaptiveAvgPool3d(1), nn.Flatten()), n
    name = next(n for n in HEADS if hasattr(net, n))
    head = getattr(net, name)
    linear = head if isinstance(head, nn.Linear) else head[-1]
    setattr(net, name, nn.Identity())
    return net, linear.in_features


def model_stats(
    name:str, # As for `create_model`
)->tuple: # Mean and standard deviation, each for three channels
    "The normalisation of the input that a model's published weights expect; ImageNet's if there are none"
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
    "Create a model with the encoder's weights from `init` and a new head; split it with `encoder_head_split`"
    encoder: Any = create_encoder(name, pretrained=init == 'pretrained', **kwargs)
    if init not in (None, 'pretrained'): load_encoder(encoder, init)
    return nn.Sequential(encoder, nn.Linear(encoder.num_features, n_classes))


def encoder_head_split(
    model:nn.Sequential, # A `Sequential(encoder, head)`
)->list[list[nn.Parameter]]: # Two groups
    "fastai splitter: the encoder's parameters, and all others"
    encoder = list(model[0].parameters())
    ours = {id(p) for p in encoder}
    return [encoder, [p for p in model.parameters() if id(p) not in ours]]
