"""SlowFast (Feichtenhofer et al., ICCV 2019) and X3D (Feichtenhofer, CVPR 2020), as pytorchvideo builds them.

pytorchvideo is imported only here, and only its `models`: its `transforms` need an older torchvision."""
import math
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from .clip_spec import ClipSpec, check_clips
from .nets import SpaceTimeEncoder

__all__ = ['SlowFast', 'slowfast', 'x3d']

# normalisation that pytorchvideo's checkpoints expect
KINETICS: dict[str, Any] = dict(mean=(.45, .45, .45), std=(.225, .225, .225))
ALPHA = 4  # frames of the fast pathway for one of the slow pathway
# settings of pytorchvideo's hub, without which its checkpoints do not load
R50: dict[str, Any] = dict(model_depth=50, slowfast_fusion_conv_kernel_size=(7, 1, 1))
R101: dict[str, Any] = dict(model_depth=101, slowfast_fusion_conv_kernel_size=(5, 1, 1))
IN_TIME, IN_PLACE = (3, 1, 1), (1, 1, 1)
STAGE4 = (IN_TIME,)*6 + (IN_PLACE,)*17
LONG_R101: dict[str, Any] = R101 | dict(
    frames=64,
    stage_conv_a_kernel_sizes=((IN_PLACE, IN_PLACE, STAGE4, IN_TIME), (IN_TIME, IN_TIME, STAGE4, IN_TIME)))


class SlowFast(nn.Module):
    """Wraps pytorchvideo's two pathways, so that they take clips `(B, T, 3, H, W)` and return pooled features.

    The fast pathway gets all frames and the slow one a quarter of them, which pytorchvideo and the authors' code spread
    evenly from the first to the last (of 32: 0, 4, 8, 13, 17, 22, 26 and 31), where the paper says every fourth."""

    def __init__(self,
        body:Any, # pytorchvideo's `Net`, whose head returns features
        num_features:int, # Width of the feature
        clips:ClipSpec, # What clips the net expects
    ):
        super().__init__()
        self.body, self.num_features, self.clips = body.to(memory_format=torch.channels_last_3d), num_features, clips
        stages = [i for i, block in enumerate(body.blocks) if hasattr(block, 'multipathway_blocks')]
        for i in stages: body.blocks[i].inplace = False  # else a stage overwrites what the one before returned
        pathways, fusion = 'body.blocks.{}.multipathway_blocks.{}', 'body.blocks.{}.multipathway_fusion'
        parts: list[tuple[str, ...]] = []
        for i in stages:
            parts.append((pathways.format(i, 0), pathways.format(i, 1)))
            if i < stages[-1]: parts.append((fusion.format(i),))
        self.encoder_parts = tuple(parts)

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        fast = x.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        slow = fast[:, :, slow_frames(x.shape[1])].contiguous(memory_format=torch.channels_last_3d)
        return self.body([slow, fast])


def slow_frames(
    frames:int, # Of a clip
)->list[int]: # A quarter of them
    "Which frames the slow pathway gets"
    return torch.linspace(0, frames - 1, frames//ALPHA).long().tolist()


class _WindowPool(nn.Module):
    """Average over windows of the size of the training clips' maps, as pytorchvideo's pooling does; a map that is
    smaller is averaged as a whole."""
    def __init__(self, window):
        super().__init__()
        self.window = window

    def forward(self, x):
        window = [min(w, n) for w, n in zip(self.window, x.shape[2:])]
        return F.avg_pool3d(x, window, 1)

    def extra_repr(self): return f'window={self.window}'


class _ConcatPathways(nn.Module):
    "The pathways' mean over all windows, side by side"
    def __init__(self, slow, fast):
        super().__init__()
        self.pools = nn.ModuleList([_WindowPool(slow), _WindowPool(fast)])

    def forward(self, maps):
        pooled = [pool(m).mean((2, 3, 4), keepdim=True) for pool, m in zip(self.pools, maps)]
        return torch.cat(pooled, 1)


def slowfast(
    frames:int=32, # Of the clips in training, a multiple of 4
    size:int=224, # Their height and width
    **kwargs, # For pytorchvideo's `create_slowfast`, such as `model_depth=18`
)->SlowFast: # Randomly initialised
    """A SlowFast of pytorchvideo, as `slowfast_r50` (34.57 million parameters with 400 classes), `slowfast_r101` and
    `slowfast_16x8_r101`: 2,048 features of the slow and 256 of the fast pathway. Clips have a multiple of 4 frames.

    Of clips as in training and of larger frames, features are what pytorchvideo's classifier gets, averaged over its
    windows. Longer clips, which pytorchvideo refuses, are averaged in the same way, shorter and smaller ones as a
    whole. Dropout before the classifier is off unless `dropout_rate` is given. Files `.pyth` of pytorchvideo's model
    zoo load with strict names."""
    if frames < ALPHA or frames % ALPHA:
        raise InputError(f'SlowFast needs clips whose number of frames is a multiple of {ALPHA}, not {frames}')
    net: Any = _build('slowfast', kwargs, lambda f: f(**kwargs))
    side = math.ceil(size/32)
    net.blocks[-2] = _ConcatPathways((frames//ALPHA, side, side), (frames, side, side))
    width = _without_classifier(net, kwargs)
    spec = ClipSpec(frames=frames, size=size, **KINETICS, frames_step=ALPHA, layout='BCTHW', pooling='net')
    return _with_head_name(SlowFast(net, width, spec))


def x3d(
    frames:int=16, # Of the clips in training
    size:int=224, # Their height and width
    **kwargs, # For pytorchvideo's `create_x3d`, such as `depth_factor=5.`
)->SpaceTimeEncoder: # Randomly initialised
    """An X3D of pytorchvideo, as `x3d_xs`, `x3d_s`, `x3d_m` (3.79 million parameters with 400 classes) and `x3d_l`:
    2,048 non-negative features.

    At the size of the training clips, features are what pytorchvideo's classifier gets. Of larger clips they are
    averaged over its windows, while pytorchvideo averages the probabilities of the windows; smaller clips, which it
    refuses, are averaged as a whole. Dropout before the classifier is off unless `dropout_rate` is given. Files `.pyth`
    of pytorchvideo's model zoo load with strict names."""
    net: Any = _build('x3d', kwargs, lambda f: f(input_clip_length=frames, input_crop_size=size, **kwargs))
    pool = net.blocks[-1].pool
    pool.pool = _WindowPool(tuple(pool.pool.kernel_size))
    width = _without_classifier(net, kwargs)
    spec = ClipSpec(frames=frames, size=size, **KINETICS, layout='BCTHW', pooling='net')
    return _with_head_name(SpaceTimeEncoder(net, width, spec))


def _build(kind:str, given:dict, make:Callable)->Any:
    "What `make` returns when called with pytorchvideo's function for a kind of net"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # pytorchvideo scripts functions, which PyTorch calls outdated
            module = import_module(f'pytorchvideo.models.{kind}')
    except ImportError as e:
        raise InputError(f"{kind} needs pytorchvideo, which cannot be imported ({e}): pip install 'sdfast[encoders]'"
                         ) from None
    try: return make(getattr(module, f'create_{kind}'))
    except AssertionError as e:
        listed = ', '.join(f'{k}={v!r}' for k, v in given.items())
        raise InputError(f'pytorchvideo makes no {kind} with {listed or "these frames and this size"}: {e}') from None


def _without_classifier(net, given):
    "Take the last layer out of a net's head, in place; return the number of its inputs"
    head = net.blocks[-1]
    width = head.proj.in_features
    head.proj, head.activation = nn.Identity(), None
    if 'dropout_rate' not in given: head.dropout = None
    return width


def _with_head_name(encoder:Any)->Any:
    "Say what the classifier that was taken out is called in checkpoints"
    encoder.head_name = f'body.blocks.{len(encoder.body.blocks) - 1}.proj'
    return encoder


# name -> function that makes the net, with the settings of pytorchvideo's hub
NAMED: dict[str, Callable] = dict(
    slowfast_r50=partial(slowfast, **R50),
    slowfast_r101=partial(slowfast, **R101),
    slowfast_16x8_r101=partial(slowfast, **LONG_R101),
    x3d_xs=partial(x3d, frames=4, size=160),
    x3d_s=partial(x3d, frames=13, size=160),
    x3d_m=partial(x3d, frames=16, size=224),
    x3d_l=partial(x3d, frames=16, size=312, depth_factor=5.))
