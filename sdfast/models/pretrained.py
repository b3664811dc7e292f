"Models from folders of `save_pretrained`, or from the Hugging Face hub."
from pathlib import Path
from typing import Any

from torch import nn

from .checkpoints import IN_FOLDER
from .encoders import create_encoder
from .hub import local_folder
from .model_folder import read_model_config
from .weights import load_encoder

__all__ = ['from_pretrained']


def from_pretrained(
    name:str|Path, # A folder of `save_pretrained`, or OWNER/NAME on the hub
    revision:str|None=None, # Branch, tag or commit on the hub
)->nn.Module: # `Sequential(encoder, head)`, or the encoder if it was saved without a head
    "Make a model again, with its weights"
    folder = local_folder(str(name), revision)
    config = read_model_config(folder)
    encoder: Any = create_encoder(f'sdfast:{folder}', 'n_classes' not in config)
    if 'n_classes' not in config: return encoder
    model = nn.Sequential(encoder, nn.Linear(encoder.num_features, config['n_classes']))
    load_encoder(model, folder/IN_FOLDER[0])
    return model
