"""Checkpoints of the Hugging Face hub, or folders in its layout, as encoders: `hf:FOLDER` or `hf:OWNER/NAME`.

transformers and huggingface_hub are imported only here, when such a name is used."""
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .checkpoints import IN_FOLDER
from .clip_spec import ClipSpec
from .video_transformers import (
    DROPOUT,
    VideoTransformer,
    as_encoder,
    clip_spec_of,
    family_of,
    transformer_class,
)

__all__ = ['load_transformer']

PROCESSORS = ('video_preprocessor_config.json', 'preprocessor_config.json')


def library(
    name:str, # Of a module
)->Any: # The module
    "An optional library, or an `InputError` that says how to install it"
    try: return import_module(name)
    except ImportError as e:
        raise InputError(f"this needs {name}, which cannot be imported ({e}): pip install 'sdfast[hf]'") from None


def local_folder(
    name:str, # A folder, or OWNER/NAME on the hub
    revision:str|None=None, # Branch, tag or commit on the hub
)->Path: # With the files of the checkpoint
    "The folder of a checkpoint; one on the hub is downloaded to the hub's cache, or read from there"
    folder = Path(name).expanduser()
    if folder.is_dir(): return folder
    if name.count('/') != 1 or name.startswith(('.', '/', '~')):
        raise InputError(f'hf:{name} is neither a folder that exists nor OWNER/NAME on the hub')
    hub = library('huggingface_hub')
    for kinds in (['*.json', '*.safetensors'], ['*.json', '*.bin']):
        try: folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=kinds))
        except Exception as e:  # errors of the network, the hub, its cache and the file system
            why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise InputError(f'hf:{name} cannot be downloaded: {why}; give a folder if you have the files') from None
        if has_weights(folder): break
    return folder


def has_weights(
    folder:Path, # Of a checkpoint
)->bool:
    "Whether a folder has a file of weights under one of the usual names"
    return any((folder/n).is_file() for n in IN_FOLDER)


def load_transformer(
    name:str, # A folder, or OWNER/NAME on the hub
    pretrained:bool=True, # Load the checkpoint's weights
    revision:str|None=None, # Branch, tag or commit on the hub
    **options, # Settings of the model's configuration to change
)->VideoTransformer: # In float32
    "A video transformer of a checkpoint as an encoder, without dropout unless an option is about it"
    folder, source = local_folder(name, revision), f'hf:{name}'
    config = read_config(folder, source, options)
    cls, kwargs = transformer_class(config, source)
    if not pretrained: model = cls(config, **kwargs)
    else: model = _load_weights(cls, kwargs, config, folder, source)
    return as_encoder(model.train(), read_stats(folder))


def transformer_spec(
    name:str, # A folder, or OWNER/NAME on the hub
    revision:str|None=None, # Branch, tag or commit on the hub
    **options, # Settings of the model's configuration to change
)->ClipSpec: # From its configuration alone
    "What clips a checkpoint expects"
    folder = local_folder(name, revision)
    return clip_spec_of(read_config(folder, f'hf:{name}', options), read_stats(folder))


def read_config(
    folder:Path, # Of a checkpoint
    source:str, # What it is called in messages
    options:dict, # Settings to change
)->Any: # A configuration of transformers
    "Read a checkpoint's configuration, and switch off dropout unless an option is about it"
    if not (folder/'config.json').is_file():
        raise InputError(f'{source} has no config.json: it is not a folder that save_pretrained of transformers wrote; '
                         'for a file of weights name the model, and give the file as init')
    transformers = library('transformers')
    with _quiet():
        try: config = transformers.AutoConfig.from_pretrained(folder)
        except Exception as e: raise InputError(f'{source}: config.json cannot be read: {_first_line(e)}') from None
    family_of(config, source)
    unknown = [k for k in options if not hasattr(config, k)]
    if unknown: raise TypeError(f'the configuration of a {config.model_type} has no {", ".join(unknown)}')
    if not any('drop' in k for k in options):
        for k in DROPOUT:
            if getattr(config, k, 0): setattr(config, k, 0.)
    for k, v in options.items(): setattr(config, k, v)
    return config


def _first_line(e): return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__


def _load_weights(cls, kwargs, config, folder, source):
    if not has_weights(folder):
        raise InputError(f"{source} has no weights ({IN_FOLDER[0]} or {IN_FOLDER[2]}); for random ones pass "
                         "init='random'")
    with _quiet():
        try: model, info = cls.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True,
                                               **kwargs)
        except Exception as e:  # many kinds for broken files and other shapes
            raise InputError(f'the weights of {source} cannot be loaded: {_first_line(e)}') from None
    missing = sorted(info['missing_keys'])
    if missing:
        raise InputError(f'the weights of {source} lack {len(missing)} entries: {", ".join(missing[:3])}; expected '
                         f'those of a {cls.__name__}, which its config.json names')
    return model


@contextmanager
def _quiet()->Iterator[None]:
    "Without the progress bars and reports of transformers"
    logging = library('transformers').utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try: yield
    finally:
        logging.set_verbosity(level)
        if bars: logging.enable_progress_bar()


def read_stats(
    folder:Path, # Of a checkpoint
)->dict: # `mean` and `std`; {} if the folder does not say
    """The normalisation that a checkpoint's processor applies, for frames in 0 to 1.

    A processor scales the bytes, may subtract 1 (ViViT's `offset`), and normalises; it may leave out any of these."""
    file = next((folder/n for n in PROCESSORS if (folder/n).is_file()), None)
    if file is None: return {}
    try: p = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as e: raise InputError(f'{file} is not JSON: {e}') from None
    scale = 255*p.get('rescale_factor', 1/255) if p.get('do_rescale', True) else 255.
    offset = 1. if p.get('offset') and p.get('do_rescale', True) else 0.
    normalises = p.get('do_normalize', True)
    if normalises and not (p.get('image_mean') and p.get('image_std')): return {}
    mean, std = (p['image_mean'], p['image_std']) if normalises else ([0.]*3, [1.]*3)
    return dict(mean=tuple(_round((offset + m)/scale) for m in mean), std=tuple(_round(s/scale) for s in std))


def _round(x): return float(f'{x:.12g}')  # 255/255 is not exactly 1


def encoder_from_config(
    config:dict, # Of a model of transformers, as in its config.json
    stats:dict, # `mean` and `std`
)->nn.Module: # A `VideoTransformer` with random weights
    "A video transformer as an encoder from its configuration"
    transformers = library('transformers')
    made = transformers.AutoConfig.for_model(**config)
    cls, kwargs = transformer_class(made, 'config.json')
    return as_encoder(cls(made, **kwargs), {k:tuple(v) for k, v in stats.items()})
