"Calling a model on clips."
import inspect
from inspect import Parameter
from typing import Any

import torch
from torch import nn

from ..errors import InputError

__all__ = ['call_on']

BY_POSITION = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL


def call_on(
    module:nn.Module, # A model or an encoder
    x:torch.Tensor, # Its clips
)->Any: # What it returns
    "Call a module on clips: by position or, if its `forward` takes keywords only, by the first of these"
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind in BY_POSITION for p in parameters): return module(x)
    names = [p.name for p in parameters if p.kind == Parameter.KEYWORD_ONLY]
    if names: return module(**{names[0]:x})
    raise InputError(f'{type(module).__name__}.forward names no argument for clips: wrap it in a module whose '
                     'forward(x) calls it')
