"""Encoders of torchvision and timm by name, without their heads and, unless asked for, without dropout."""
from typing import Any

import timm
import torchvision
from fastai.vision.core import imagenet_stats
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from ..errors import InputError
from .clip_spec import ClipSpec
from .matching import HEADS
from .nets import FrameEncoder, SpaceTimeEncoder

__all__ = ['from_torchvision', 'from_timm']

AUXILIARY = ('AuxLogits', 'aux1', 'aux2')  # second heads of Inception and GoogLeNet


def video_names()->list[str]:
    "Names of torchvision's video nets"
    return torchvision.models.list_models(module=torchvision.models.video)


def image_names()->list[str]:
    "Names of torchvision's nets that classify images"
    return torchvision.models.list_models(module=torchvision.models)


def from_torchvision(
    name:str, # One of `video_names` or `image_names`
    pretrained:bool=False, # Download its default weights
    **kwargs, # `weights='KINETICS400_V1'` for others, and arguments of the net's constructor
)->nn.Module: # An encoder of clips
    "A net of torchvision; an image net is applied to every frame"
    weights = _weights(name, kwargs.pop('weights', None), pretrained)
    net = torchvision.models.get_model(name, weights=weights, **kwargs)
    stats = torchvision_stats(name, weights)
    net = without_dropout(net, kwargs)
    if name in video_names():
        spec = ClipSpec(**_expected(weights) | _fixed_size(net), **stats, layout='BCTHW', pooling='net')
        net, width = _without_head(net)
        return SpaceTimeEncoder(net, width, spec)
    spec = ClipSpec(**_expected(weights) | _fixed_size(net), **stats, layout='BCHW', pooling='net')
    net, width = _without_image_head(net, name)
    return FrameEncoder(net, width, spec)


def _weights(name, given, pretrained):
    "The member of the net's enum of weights; `None` without weights"
    known = torchvision.models.get_model_weights(name)
    if given is None: return known.DEFAULT if pretrained and len(known) else None
    if isinstance(given, known): return given
    short = str(given).rpartition('.')[2]
    if short in known.__members__: return known[short]
    raise InputError(f'torchvision:{name} has no weights {given!r}; it has {", ".join(known.__members__) or "none"}')


def torchvision_stats(
    name:str, # Of a net of torchvision
    weights:Any=None, # Member of its enum of weights
)->dict: # `mean` and `std`
    "The normalisation that the weights of a net of torchvision expect"
    known = torchvision.models.get_model_weights(name)
    if not len(known): return {}
    t = (weights or known.DEFAULT).transforms()
    return dict(mean=tuple(t.mean), std=tuple(t.std))


def _expected(weights):
    "Frames and size of the clips that weights were trained with"
    if weights is None: return {}
    return dict(frames=weights.meta.get('clip_len'), size=weights.transforms().crop_size[0])


def _fixed_size(net):
    "Fields of a `ClipSpec` for a net with positions of one size, and of one length"
    if hasattr(net, 'pos_encoding'):  # MViT
        pos, stride = net.pos_encoding, net.conv_proj.stride
        return dict(frames=pos.temporal_size*stride[0], size=pos.spatial_size[0]*stride[1], any_frames=False,
                    any_size=False)
    size = getattr(net, 'image_size', None)  # ViT
    return dict(size=size, any_size=False) if isinstance(size, int) else {}


def from_timm(
    name:str, # Of an image model
    pretrained:bool=False, # Download its weights
    **kwargs, # For its constructor, such as `img_size=112` or `dynamic_img_size=True`
)->FrameEncoder: # Applies the model to every frame
    "An image model of timm"
    net: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    size = getattr(net, 'head_hidden_size', None) or net.num_features
    return FrameEncoder(without_dropout(net, kwargs), size, _spec_of_timm(net))


def _spec_of_timm(net):
    cfg = net.pretrained_cfg
    embed = getattr(net, 'patch_embed', None)
    size = getattr(embed, 'img_size', None)
    strict = bool(size) and getattr(embed, 'strict_img_size', False)
    size = size[0] if isinstance(size, (tuple, list)) else size or cfg['input_size'][-1]
    return ClipSpec(size=size, mean=tuple(cfg['mean']), std=tuple(cfg['std']), any_size=not strict, layout='BCHW',
                    pooling='net')


def timm_stats(
    name:str, # Of a model of timm
)->tuple: # Mean and standard deviation
    "The normalisation that the weights of a model of timm expect"
    cfg = timm.get_pretrained_cfg(name)
    return imagenet_stats if cfg is None else (tuple(cfg.mean), tuple(cfg.std))


def without_dropout(
    net:nn.Module, # Changed in place
    given:dict, # Arguments of its constructor
)->nn.Module: # The net
    "The net without dropout and stochastic depth, unless an argument is about them"
    if any('drop' in name or 'stochastic' in name for name in given): return net
    modules: Any = net.modules()
    for m in modules:
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


def _without_image_head(net, name):
    "The same for an image net, of whose head only the last layer is left out"
    for aux in AUXILIARY:
        if getattr(net, aux, None) is not None: setattr(net, aux, None)
    if hasattr(net, 'aux_logits'): net.aux_logits = False
    owner, last = net, next(n for n in HEADS if hasattr(net, n))
    while isinstance(getattr(owner, last), nn.Sequential):
        owner = getattr(owner, last)
        last = list(owner._modules)[-1]
    linear = getattr(owner, last)
    if not isinstance(linear, nn.Linear):
        raise InputError(f'torchvision:{name} has no linear head: take a net of timm, such as timm:resnet18')
    setattr(owner, last, nn.Identity())
    return net, linear.in_features
