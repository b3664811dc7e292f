"Encoders from what a user calls them on a command line: files, folders and names."
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastai.torch_core import set_seed
from torch import nn

from ..errors import InputError
from ..models.encoders import ENCODERS, OF_IMAGE_NETS, PREFIXES, create_model, has_weights, is_model
from ..models.heads import read_head
from ..models.hub import local_folder
from ..models.weights import state_hash

__all__ = ['load_checkpoint']

IN_PLACE_OF_FILE = 'pretrained', 'random'


@dataclass(frozen=True, eq=False)
class Checkpoint:
    "An encoder with its weights, and where they are from"
    name: str  # as the user wrote it
    model: str  # name of the net, see `create_model`
    encoder: nn.Module
    file: Path|None = None  # file or folder of the weights; `None` for those of a library

    @property
    def id(self)->str:
        "Hash of the encoder's weights"
        return state_hash(self.encoder.state_dict())

    def head(self,
        n_classes:int|None=None, # Number of its outputs; `None`: any
    )->nn.Linear|None: # `None` if there is none that fits
        "The head that the weights come with"
        return None if self.file is None else read_head(self.file, self.encoder, n_classes)


def load_checkpoint(
    text:str, # A file or folder of weights, `hf:...`, `pretrained`, or another name or weight of `create_model`
    model:str='', # Net of files, see `create_model`; '': the name itself says it, as do folders with a config.json
    **kwargs, # For the model's constructor
)->Checkpoint: # With `name`, `model`, `encoder`, `id`, and a method `head`
    "Make an encoder with its weights. Raises `InputError` for weights that do not exist or are of another net"
    path = Path(text).expanduser()
    if not path.exists() and text not in IN_PLACE_OF_FILE:
        if not _is_name(text):
            raise InputError(f'{text} is neither a file or folder that exists nor a model: expected weights, or a name '
                             'such as hf:FOLDER, torchvision:r2plus1d_18 or timm:resnet18')
        return _named(text, kwargs)
    if path.is_dir() and not model:
        kind = _kind_of_folder(path)
        if kind: return _named(f'{kind}:{path}', kwargs, text)
    if not model:
        raise InputError(f'{text} does not say which net its weights are of: add --model, such as r2plus1d_18')
    set_seed(0)
    init = text if text in IN_PLACE_OF_FILE else path
    net: Any = create_model(model, 2, init, **kwargs)
    return Checkpoint(text, model, net[0], None if text in IN_PLACE_OF_FILE else path)


def _is_name(text):
    try: return is_model(text)
    except InputError: return False


def _kind_of_folder(folder):
    "Prefix of a folder's name, by its config.json; '' without one"
    try: config = json.loads((folder/'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError): return ''
    if not isinstance(config, dict): return ''
    if config.get('library_name') == 'sdfast': return 'sdfast'
    return 'hf' if 'model_type' in config else ''


def _named(name, kwargs, text=''):
    "A checkpoint whose name says which net it is"
    prefix, _, rest = name.partition(':')
    if name in ENCODERS or prefix in OF_IMAGE_NETS:
        raise InputError(f'{name} has no weights to download: give a file of weights, and the net by --model {name}')
    init = None if has_weights(name, None, **kwargs) or _is_function(name) else 'pretrained'
    net: Any = create_model(name, 2, init, **kwargs)
    file = local_folder(rest, kwargs.get('revision')) if prefix in ('hf', 'sdfast') else None
    return Checkpoint(text or name, name, net[0], file)


def _is_function(name): return ':' in name and name.partition(':')[0] not in PREFIXES
