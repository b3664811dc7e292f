"""Channel-separated networks (Tran et al., ICCV 2019): ResNets in which only 1x1x1 convolutions mix channels.

The nets are torchvision's `VideoResNet` with bottleneck blocks, whose 3x3x3 convolutions are depthwise. Weights have
the names of the authors' PyTorch code (VMZ), so that its checkpoints load."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torchvision.models.video.resnet import Bottleneck, VideoResNet

from ..errors import InputError
from .clip_spec import ClipSpec
from .nets import SpaceTimeEncoder

__all__ = ['csn']

# normalisation with which VMZ trains
KINETICS: dict[str, Any] = dict(mean=(.43216, .394666, .37645), std=(.22803, .22145, .216989))
DEPTHS = (3, 8, 36, 3)  # blocks of the four stages of a ResNet-152


class _Depthwise(nn.Conv3d):
    "A 3x3x3 convolution in which each channel is by itself, with the signature that `VideoResNet` calls"
    def __init__(self, ni, no, midplanes=None, stride=1, padding=1):
        super().__init__(ni, no, 3, stride, padding, groups=ni, bias=False)

    @staticmethod
    def get_downsample_stride(stride): return stride, stride, stride


class _Preserved(nn.Sequential):
    "The same after a 1x1x1 convolution that lets channels interact, and batch norm without activation"
    def __init__(self, ni, no, midplanes=None, stride=1, padding=1):
        super().__init__(nn.Conv3d(ni, no, 1, bias=False), nn.BatchNorm3d(no), _Depthwise(no, no, stride=stride))

    get_downsample_stride = staticmethod(_Depthwise.get_downsample_stride)


class _Stem(nn.Sequential):
    "A 3x7x7 convolution, batch norm, and max pooling over space"
    def __init__(self):
        super().__init__(
            nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            nn.BatchNorm3d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))


BLOCKS = dict(ir=_Depthwise, ip=_Preserved)


def csn(
    kind:str='ir', # 'ir', interaction-reduced, or 'ip', interaction-preserved: one more 1x1x1 convolution in each block
    depths:Sequence[int]=DEPTHS, # Blocks of the four stages
)->SpaceTimeEncoder: # Randomly initialised
    """The CSN of VMZ, by default with 152 layers, as `ir_csn_152` and `ip_csn_152`: 29.70 and 33.02 million parameters
    with 400 classes, 2,048 non-negative features of a 32x224x224 clip, normalised as for Kinetics.

    As in VMZ, batch norm has `eps=1e-3` and `momentum=.9`. Caffe2, in which its checkpoints were trained, calls .9 what
    PyTorch calls .1: running statistics follow the last few batches more closely here than in the paper. Differences
    from VMZ: no classifier, and channels-last memory."""
    if kind not in BLOCKS: raise InputError(f'kind must be one of {", ".join(BLOCKS)}, not {kind!r}')
    if len(depths) != 4 or not all(isinstance(n, int) and n > 0 for n in depths):
        raise InputError(f'depths must be four numbers of blocks, such as {DEPTHS}, not {depths!r}')
    net = VideoResNet(Bottleneck, [BLOCKS[kind]]*4, list(depths), _Stem)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm3d): m.eps, m.momentum = 1e-3, .9
    width = net.fc.in_features
    net.fc = nn.Identity()  # type: ignore[assignment]
    return SpaceTimeEncoder(net, width, ClipSpec(frames=32, size=224, **KINETICS, layout='BCTHW', pooling='net'))


NAMED: dict[str, Callable] = dict(ir_csn_152=partial(csn, 'ir'), ip_csn_152=partial(csn, 'ip'))
