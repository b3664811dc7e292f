"""Encoders and models `nn.Sequential(encoder, head)` by name.

A bare name is a net of sdfast, a video net of torchvision or an image model of timm. A prefix says where a name is
looked up: `hf:FOLDER`, `hf:OWNER/NAME`, `timm:NAME`, `torchvision:NAME`, `sdfast:FOLDER`, or `MODULE:FUNCTION`.
`lrcn:NAME` and `two_stream:NAME` build a video net from an image model of timm."""
from pathlib import Path
from typing import Any

import timm
import torch
from fastai.vision.core import imagenet_stats
from torch import nn

from ..errors import InputError
from ..runtime.store import file_id
from . import csn_nets, slowfast_nets
from .checkpoints import IN_FOLDER
from .clip_spec import ClipSpec
from .hub import encoder_from_config, load_transformer, local_folder, transformer_spec
from .library_nets import from_timm, from_torchvision, image_names, timm_stats, torchvision_stats, video_names
from .lrcn_nets import lrcn
from .model_folder import read_model_config
from .nets import c3d, r2plus1d, tiny
from .surgery import find_encoder
from .two_stream_nets import two_stream
from .user_nets import from_function, function_file
from .weights import load_encoder

__all__ = ['ENCODERS', 'is_model', 'create_encoder', 'clip_spec', 'model_stats', 'model_id', 'create_model',
           'encoder_head_split']

# name -> function that makes an encoder with the attribute `num_features`; to add your own, add a row
ENCODERS = dict(tiny=tiny, c3d=c3d, r2plus1d=r2plus1d) | slowfast_nets.NAMED | csn_nets.NAMED
# prefix -> function that makes a video net from the name of an image model of timm
OF_IMAGE_NETS = dict(lrcn=lrcn, two_stream=two_stream)
# prefixes of names; those of the first kind name weights, too, not only a net
WITH_WEIGHTS, PREFIXES = ('hf', 'sdfast'), ('hf', 'sdfast', 'timm', 'torchvision', *OF_IMAGE_NETS)
# name -> normalisation that published weights expect, where it is not ImageNet's
STATS = dict.fromkeys(slowfast_nets.NAMED, slowfast_nets.KINETICS) | dict.fromkeys(csn_nets.NAMED, csn_nets.KINETICS)


def split_name(
    name:str, # As for `create_model`
)->tuple[str, str]: # Prefix, 'function' for MODULE:FUNCTION or '' for a bare name; and the rest
    "Where a name is looked up, and what is looked up there"
    prefix, colon, rest = name.partition(':')
    if not colon: return '', name
    if prefix in PREFIXES: return prefix, rest
    if all(part.isidentifier() for part in [*prefix.split('.'), rest]): return 'function', name
    raise InputError(f'unknown model {name!r}: expected {", ".join(f"{p}:..." for p in PREFIXES)}, MODULE:FUNCTION or '
                     'a name without colon')


def is_model(
    name:str, # Name of a net
)->bool: # Without building the net
    "Whether `create_model` knows `name`; of a name on the hub or a function only whether it may be one"
    where, rest = split_name(name)
    if where in ('', 'timm', *OF_IMAGE_NETS) and timm.is_model(rest): return True
    return where in ('hf', 'sdfast', 'function') or where == '' and name in ENCODERS or _is_torchvision(where, rest)


def _is_torchvision(where, name):
    return where in ('', 'torchvision') and name in video_names() or where == 'torchvision' and name in image_names()


def create_encoder(
    name:str, # `tiny`, `c3d`, `r2plus1d`, a video net of torchvision, any image model of timm, or one with a prefix
    pretrained:bool|None=None, # Load published weights; by default only of `hf:` and `sdfast:`, which name weights
    **kwargs, # For the model's constructor, such as `pad_type='same'`, `weights='KINETICS400_V1'` or `revision='v1'`
)->nn.Module: # Maps clips `(B, T, 3, H, W)` to features `(B, num_features)`; has `num_features`
    """Create an encoder by name.

    `hf:` takes a folder in the layout of transformers, or a name on the Hugging Face hub: VideoMAE, ViViT, TimeSformer
    or V-JEPA 2, with or without a classification head. `sdfast:` takes what `save_pretrained` wrote. `torchvision:`
    and `timm:` take all nets of these libraries that classify; image nets are applied to every frame.
    `lrcn:` and `two_stream:` build a video net from an image net of timm, see the functions of these names, and
    published weights are those of the image net. `MODULE:FUNCTION` calls a function of your own, see `from_function`.
    The attribute `clips` of most encoders is the `ClipSpec` that says what clips they expect.

    Some nets have dropout, or drop whole layers (stochastic depth), by default. It is off here unless an argument sets
    it, such as timm's `drop_path_rate=.1` or `stochastic_depth_prob=.1` of torchvision's MViT.

    Raises `InputError` for an unknown name, arguments that the model does not take or a failed download."""
    where, rest = split_name(name)
    if pretrained is None: pretrained = where in WITH_WEIGHTS
    try: encoder = _create(where, rest, pretrained, kwargs)
    except TypeError as e:
        given = ', '.join(f'{k}={v!r}' for k, v in kwargs.items())
        raise InputError(f'model {name} does not take {given}: {e}') from None
    except OSError as e:
        raise InputError(f'the published weights of {name} cannot be downloaded: {e}') from None
    if encoder is None: raise InputError(_unknown(name, rest))
    encoder.made_by = dict(model=name, model_args=kwargs)
    return encoder


def _unknown(name, rest):
    near = timm.list_models(f'*{rest}*')[:3]
    known = ', '.join([*ENCODERS, *video_names()])
    such_as = f' (such as {", ".join(near)})' if near else ''
    return f'unknown model {name!r}; known are {known} and every model of timm{such_as}'


def _create(where, name, pretrained, kwargs):
    "The encoder, or `None` for an unknown name"
    if where == 'hf': return load_transformer(name, pretrained, **kwargs)
    if where == 'sdfast': return _from_folder(name, pretrained, **kwargs)
    if where == 'function': return from_function(name, pretrained, **kwargs)
    if where in OF_IMAGE_NETS: return OF_IMAGE_NETS[where](name, pretrained, **kwargs) if timm.is_model(name) else None
    if where == '' and name in ENCODERS:
        if pretrained: raise InputError(f'{name} has no weights that can be downloaded; give a file, or leave init out')
        return ENCODERS[name](**kwargs)
    if _is_torchvision(where, name): return from_torchvision(name, pretrained, **kwargs)
    if where in ('', 'timm') and timm.is_model(name): return from_timm(name, pretrained, **kwargs)
    return None


def _from_folder(name, pretrained, revision=None):
    "The encoder in a folder of `save_pretrained`"
    folder = local_folder(name, revision)
    config = read_model_config(folder)
    if 'transformers' in config: encoder = encoder_from_config(config['transformers'], config['stats'])
    else: encoder = create_encoder(config['model'], False, **config['model_args'])
    return load_encoder(encoder, folder/IN_FOLDER[0]) if pretrained else encoder


def clip_spec(
    name:str, # As for `create_model`
    **kwargs, # For the model's constructor
)->ClipSpec: # Of `tiny` and other nets that take any clip, one without frames and size
    "What clips an encoder expects, without reading its weights: frames, size, layout, normalisation and pooling"
    where, rest = split_name(name)
    if where == 'hf': return transformer_spec(rest, **kwargs)
    if where == 'function': return getattr(create_encoder(name, **kwargs), 'clips', ClipSpec())
    with torch.device('meta'): return getattr(create_encoder(name, False, **kwargs), 'clips', ClipSpec())


def model_stats(
    name:str, # As for `create_model`
    **kwargs, # For the model's constructor
)->tuple: # Mean and standard deviation, each for three channels
    "The normalisation of the input that a model's published weights expect; ImageNet's if there are none"
    where, rest = split_name(name)
    if where in ('hf', 'sdfast', 'function'):
        spec = clip_spec(name, **kwargs)
        return spec.mean, spec.std
    if where == '' and name in STATS: return STATS[name]['mean'], STATS[name]['std']
    if where == '' and name in ENCODERS: return imagenet_stats
    if _is_torchvision(where, rest):
        stats = torchvision_stats(rest, kwargs.get('weights'))
        return (stats['mean'], stats['std']) if stats else imagenet_stats
    return timm_stats(rest) if where in ('', 'timm', *OF_IMAGE_NETS) and timm.is_model(rest) else imagenet_stats


def model_id(
    name:str, # As for `create_model`
    **kwargs, # For the model's constructor
)->str: # Sixteen hex digits, '' for a name of a library or of sdfast
    "Hash of the files that a name stands for: of a checkpoint, or of the source of a user's function"
    where, rest = split_name(name)
    if where in WITH_WEIGHTS: return file_id(local_folder(rest, kwargs.get('revision')))
    return file_id(function_file(name)) if where == 'function' else ''


def has_weights(
    name:str, # As for `create_model`
    init:str|Path|None=None, # As for `create_model`
    **kwargs, # For the model's constructor
)->bool:
    "Whether `create_model` gives an encoder weights that were learned"
    if init is not None: return init != 'random'
    named = kwargs.get('pretrained') or kwargs.get('weights')
    return split_name(name)[0] in WITH_WEIGHTS if named is None else bool(named)


def create_model(
    name:str, # As for `create_encoder`
    n_classes:int, # Outputs of the head
    init:str|Path|None=None, # Weights of the encoder: a file, a folder, 'pretrained', 'random', or see `create_encoder`
    **kwargs, # For the model's constructor
)->nn.Sequential: # `Sequential(encoder, head)`, the head one linear layer
    "Create a model with the encoder's weights from `init` and a new head; split it with `encoder_head_split`"
    published = kwargs.pop('pretrained', None) if init is None else init == 'pretrained'
    encoder: Any = create_encoder(name, published, **kwargs)
    if init not in (None, 'pretrained', 'random'): load_encoder(encoder, init)
    return nn.Sequential(encoder, nn.Linear(encoder.num_features, n_classes))


def encoder_head_split(
    model:nn.Module, # With an encoder that `find_encoder` finds, such as `Sequential(encoder, head)`
)->list[list[nn.Parameter]]: # Two groups
    "fastai splitter: the encoder's parameters, and all others"
    encoder = list(find_encoder(model).parameters())
    ours = {id(p) for p in encoder}
    return [encoder, [p for p in model.parameters() if id(p) not in ours]]
