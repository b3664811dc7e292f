"""Video models as `nn.Sequential(encoder, head)`: the paper's C3D and R(2+1)D, a small R(2+1)D for CPUs, torchvision's video
nets, timm nets over frames.

Every encoder takes a normalised batch of clips `(B, T, 3, H, W)` and returns features `(B, num_features)`.
"""
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from fastai.vision.core import imagenet_stats
from safetensors.torch import load_file, save
from torch import nn

from .errors import InputError
from .store import write

__all__ = ['create_model', 'create_encoder', 'load_encoder', 'model_stats', 'encoder_head_split', 'tiny', 'c3d', 'r2plus1d', 'SpaceTimeEncoder',
           'FrameEncoder', 'is_model', 'eval_mode', 'encode', 'extract', 'save_weights']


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


OWN = dict(tiny=tiny, c3d=c3d, r2plus1d=r2plus1d)
# the last layer of each of torchvision's families, and of common image nets in checkpoints; RSPNet's has one output, never used
HEADS = ('fc', 'head', 'classifier', 'head.fc', 'last_linear', 'linear')


def _torchvision_names(): return torchvision.models.list_models(module=torchvision.models.video)


def is_model(
    name:str, # Of a net of sdfast, torchvision or timm
)->bool: # No net is built
    "Whether `create_model` knows `name`"
    return name in OWN or name in _torchvision_names() or timm.is_model(name)


def create_encoder(
    name:str, # `tiny`, `c3d`, `r2plus1d`, a video net of torchvision, or any image model of timm
    pretrained:bool=False, # The library's own weights, which it downloads
    **kwargs, # For the model's constructor, such as `pad_type='same'`
)->nn.Module: # From clips `(B, T, 3, H, W)` to features `(B, num_features)`; has `num_features`
    "An encoder by name"
    try:
        if name in OWN:
            if pretrained: raise InputError(f'{name} has no weights that can be downloaded; give a file, or leave init away')
            return OWN[name](**kwargs)
        if name in _torchvision_names():
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
    raise InputError(f'unknown model {name!r}; known are {", ".join([*OWN, *_torchvision_names()])} and every model of timm'
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
    if name in _torchvision_names():
        t = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return tuple(t.mean), tuple(t.std)
    if name not in OWN and timm.is_model(name):
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


@contextmanager
def eval_mode(
    model:nn.Module, # Changed in place
)->Iterator[nn.Module]: # A context manager that gives the model
    "Every module in eval mode inside, in the mode it was in after"
    modes = {m:m.training for m in model.modules()}
    model.eval()
    try: yield model
    finally:
        for m, training in modes.items(): m.training = training


def _pooled(
    module, # What put it out: its own channels tell which dimension they are
    m, # `(B, C, ...)`, or with channels last
)->torch.Tensor: # `(B, C)`
    "Mean over time and space"
    if m.ndim < 3: return m
    channels = {c for sub in module.modules() for n in ('out_channels', 'num_features', 'out_features', 'normalized_shape')
                for c in ([getattr(sub, n)] if isinstance(getattr(sub, n, None), int) else getattr(sub, n, ()))}
    first, last = m.shape[1] in channels, m.shape[-1] in channels
    tokens = last and not first or m.ndim == 3 and first == last  # (B, N, C), and what video and image transformers make of (B, ..., C)
    return m.flatten(1, -2).mean(1) if tokens else m.flatten(2).mean(2)


def encode(
    encoder:nn.Module, # From clips `(B, T, C, H, W)` to features `(B, F)`
    x:torch.Tensor, # One batch; several clips of a video `(B, K, T, C, H, W)` are encoded apart and averaged
    layers:Sequence[str]=(), # Names of submodules whose outputs to keep as well
)->tuple[torch.Tensor, dict]: # The encoder's output, and of each layer `(B, C)` float32: the mean over time and space
    """One batch through the encoder, in the mode that it is in.

    A layer's output `(B, C, ...)`, tokens `(B, N, C)` or a map with channels last is averaged over all but B and C; frames that a layer
    sees one by one, `(B*T, ...)`, over T as well; of a tuple the first is taken. Raises `InputError` for a layer that is not called
    or returns no tensor."""
    x = x.as_subclass(torch.Tensor).to(next(encoder.parameters()).device)
    n, maps = len(x), {}
    def keep(name):
        def hook(module, args, out):
            out = out[0] if isinstance(out, (tuple, list)) and out else out
            if not torch.is_tensor(out): raise InputError(f'layer {name!r} returns {type(out).__name__}, not a tensor; name other layers')
            maps[name] = _pooled(module, out.detach().float()).unflatten(0, (n, -1)).mean(1)
        return hook
    handles = [encoder.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try: f = encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1) if x.ndim == 6 else encoder(x)
    finally:
        for h in handles: h.remove()
    if missing := [name for name in layers if name not in maps]: raise InputError(f'layer {missing[0]!r} was not called; name other layers')
    return f, maps


@torch.no_grad()
def extract(
    encoder:nn.Module, # From clips `(B, T, C, H, W)` to features `(B, F)`
    dl:Iterable, # Yields `(x, y)`; see `encode` for several clips of a video
)->tuple[torch.Tensor, torch.Tensor]: # Features `(N, F)` float32 and labels `(N,)`, on the CPU
    "Features in eval mode"
    feats, labels = [], []
    with eval_mode(encoder):
        for x, y in dl:
            feats.append(encode(encoder, x)[0].float().flatten(1).cpu())
            labels.append(y.as_subclass(torch.Tensor).cpu())
    return torch.cat(feats), torch.cat(labels)


def save_weights(
    module:nn.Module, # An encoder, a head or both
    path:str|Path, # File, replaced whole
)->None:
    "A module's weights and buffers as safetensors"
    write(path, save({k:v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))


# what numpy's numbers in a checkpoint (an accuracy, a loss) are made of, beside what torch takes for tensors
_scalar = np.float64(0).__reduce__()[0]
_NUMPY = [(_scalar, 'numpy.core.multiarray.scalar'), (_scalar, 'numpy._core.multiarray.scalar'), np.dtype, *(type(np.dtype(t)) for t in 'fdilq')]


def _read_weights(path):
    path = Path(path)
    if not path.is_file(): raise InputError(f'weights {path} do not exist')
    try:
        if path.suffix == '.safetensors': state = load_file(path)
        else:
            with torch.serialization.safe_globals(_NUMPY): state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # torch and safetensors raise many kinds for a broken file, one for pickled code
        raise InputError(f'weights {path} cannot be read as tensors: {str(e).splitlines()[0] if str(e) else type(e).__name__}') from None
    for wrapper in ('state_dict', 'model', 'model_state_dict'):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict): state = state[wrapper]
    if not isinstance(state, dict) or not any(torch.is_tensor(v) for v in state.values()): raise InputError(f'weights {path} hold no state dict')
    return {k.removeprefix('module.'):v for k, v in state.items() if torch.is_tensor(v)}


# our own `Sequential(encoder, head)`; RSPNet before fine-tuning (its query net) and after; VCOP
PREFIXES = ('', '0.', 'encoder_q.encoder.', 'encoder.', 'base_network.')


def load_encoder(
    encoder:nn.Module, # Receives the weights
    path:str|Path, # safetensors or a torch file; of the encoder, of the same net with its head, of RSPNet or VCOP, see `PREFIXES`
)->nn.Module: # `encoder`
    """Load an encoder strictly: every weight must be there with its shape, and nothing else but a head may be.

    Only tensors are read, so a file cannot run code. Raises `InputError`, which names what is missing."""
    state, want = _read_weights(path), encoder.state_dict()
    inside = [{k[len(p):]:v for k, v in state.items() if k.startswith(p)} for p in PREFIXES]
    s = max([*inside, *({f'body.{k}':v for k, v in t.items()} for t in inside)], key=lambda t: len(want.keys() & t.keys()))
    # counters of batches seen do not change what a net computes, and old files lack them
    missing = [k for k in want if k not in s and not k.endswith('num_batches_tracked')]
    wrong = [k for k in want if k in s and s[k].shape != want[k].shape]
    extra = [k for k in s if k not in want and not k.removeprefix('body.').startswith(tuple(f'{h}.' for h in HEADS))]
    for what, keys in (('lack', missing), ('have other shapes for', wrong), ('also have', extra)):
        if keys:
            listed = keys if len(keys) < 25 or what == 'lack' and len(keys) < len(want)/2 else [*keys[:3], '...']
            raise InputError(f'weights {path} are not of this encoder: they {what} {len(keys)} of {len(want)} entries: {", ".join(listed)}')
    encoder.load_state_dict({k:s.get(k, v) for k, v in want.items()})
    return encoder
