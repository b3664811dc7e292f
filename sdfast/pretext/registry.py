"The registry of pre-training methods, and reading their checkpoints."
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ..errors import InputError
from .base import Pretext
from .cvrl import CVRL
from .cycle import TimeCycle
from .dogo import DoGo
from .hdc import HDC
from .iic import InterIntra
from .memdpc import MemDPC
from .order import ClipOrder
from .pace import Pace
from .puzzle import CubicPuzzle
from .rspnet import RSPNet
from .statistics import MotionStatistics

__all__ = ['METHODS', 'read_checkpoint']

METHODS = dict(rspnet=RSPNet, pace=Pace, order=ClipOrder, puzzle=CubicPuzzle, cvrl=CVRL, iic=InterIntra,
               mas=MotionStatistics, memdpc=MemDPC, hdc=HDC, cycle=TimeCycle, dogo=DoGo)


def read_checkpoint(
    path:str|Path, # Written by `Pretext.save`
    encoder:nn.Module, # Receives the weights
)->Pretext: # With its heads, for more training or `held_out`
    "Read a saved method and its encoder's weights; raises `InputError` for another kind of file or encoder"
    try:
        with safe_open(str(path), 'pt') as f: meta = f.metadata() or {}
    except Exception as e: raise InputError(f'{path} cannot be read as a checkpoint of pre-training: {e}') from None
    if meta.get('method') == 'supervised':
        raise InputError(f'{path} was trained with labels, so it has no pretext task: read its encoder with '
                         'load_encoder')
    known = {cls.__name__:cls for cls in METHODS.values()}
    if meta.get('method') not in known:
        raise InputError(f'{path} is not a checkpoint of pre-training: it names none of the methods {", ".join(known)}')
    method = known[meta['method']](**json.loads(meta['config']))
    with torch.random.fork_rng(): net = method.build(encoder)
    try: net.load_state_dict(load_file(str(path), device='cpu'))
    except RuntimeError as e:
        raise InputError(f'{path} is not of this encoder: {str(e).splitlines()[-1].strip()}') from None
    return method
