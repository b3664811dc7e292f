"""Models in the layout of the Hugging Face hub: a folder with `config.json` and `model.safetensors`.

`config.json` says how the encoder is made, so that a folder is enough to make it again."""
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..errors import InputError
from ..runtime import store
from .checkpoints import IN_FOLDER
from .hub import library
from .video_transformers import VideoTransformer
from .weights import save_weights

__all__ = ['save_pretrained', 'push_to_hub']

CARD = '''---
library_name: sdfast
tags: [video, action-recognition]
---
A model of sdfast. `from sdfast.all import *; create_encoder('sdfast:OWNER/NAME')` makes its encoder, and
`from_pretrained('OWNER/NAME')` the encoder with its head.
'''


def model_config(
    encoder:Any, # From `create_encoder`
)->dict: # JSON
    "What `create_encoder` needs to make an encoder again; raises `InputError` for one that it did not make"
    made = getattr(encoder, 'made_by', None)
    if made is None:
        raise InputError(f'a {type(encoder).__name__} has no name: only encoders of create_encoder and create_model '
                         'are saved with their configuration; save_weights(encoder, FILE) saves any weights')
    spec = getattr(encoder, 'clips', None)
    config = dict(library_name='sdfast', num_features=encoder.num_features, **made)
    if spec is not None: config['stats'] = dict(mean=list(spec.mean), std=list(spec.std))
    if isinstance(encoder, VideoTransformer): config['transformers'] = encoder.body.config.to_dict()
    return config


def save_pretrained(
    model:Any, # From `create_model`, or an encoder from `create_encoder`
    folder:str|Path, # Created if need be
)->Path: # The folder
    "Write `config.json` and `model.safetensors`; `from_pretrained` and the name `sdfast:FOLDER` read them"
    folder = Path(folder)
    with_head = isinstance(model, nn.Sequential) and len(model) == 2 and hasattr(model[0], 'made_by')
    encoder = model[0] if with_head else model
    config = model_config(encoder)
    if with_head:
        if not isinstance(model[1], nn.Linear):
            raise InputError(f'the head is a {type(model[1]).__name__}, and only a linear layer can be made again: '
                             'save model[0]')
        config['n_classes'] = model[1].out_features
    try: text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError):
        raise InputError(f'the arguments of {config["model"]} are no JSON: {config["model_args"]}') from None
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder/IN_FOLDER[0])
    store.write(folder/'config.json', text + '\n')
    return folder


def read_model_config(
    folder:Path, # From `save_pretrained`
)->dict: # Its config.json
    "Read how a model is made"
    file = folder/'config.json'
    try: config = json.loads(file.read_text(encoding='utf-8'))
    except OSError: raise InputError(f'{folder} has no config.json: expected a folder of save_pretrained') from None
    except ValueError as e: raise InputError(f'{file} is not JSON: {e}') from None
    if isinstance(config, dict) and config.get('library_name') == 'sdfast' and 'model' in config: return config
    raise InputError(f'{file} is not of sdfast: for a model of transformers write hf:{folder}')


def push_to_hub(
    model:nn.Module, # As for `save_pretrained`
    repo_id:str, # OWNER/NAME on the Hugging Face hub, created if need be
    private:bool=False, # Whether a repository that is created is private
    token:str|None=None, # Of the hub; by default the one that you logged in with
    message:str='Upload a model of sdfast', # Of the commit
)->str: # Address of the commit
    "Upload the folder that `save_pretrained` writes, with a short model card unless the repository has one"
    hub = library('huggingface_hub')
    api = hub.HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if not api.file_exists(repo_id, 'README.md'):
                (Path(folder)/'README.md').write_text(CARD.replace('OWNER/NAME', repo_id), encoding='utf-8')
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))
        except Exception as e:  # of the network and the hub
            why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise InputError(f'{repo_id} cannot be uploaded: {why}') from None
