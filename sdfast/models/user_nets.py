"""Encoders that functions of the user's make: `MODULE:FUNCTION`."""
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .clip_spec import ClipSpec
from .features import to_feature
from .modes import eval_mode

__all__ = ['from_function']

TRIALS = ((8, 64), (16, 112), (8, 224), (16, 224), (32, 224))  # frames and size of clips to try


class UserEncoder(nn.Module):
    "A net whose output becomes a feature as everywhere in sdfast, see `to_feature`"
    def __init__(self,
        body:nn.Module, # Maps clips `(B, T, 3, H, W)` to features, tokens or maps
        num_features:int, # Width of the feature
    ):
        super().__init__()
        self.body, self.num_features = body, num_features

    def forward(self, x:torch.Tensor)->torch.Tensor: return to_feature(self.body, self.body(x), (x,))


def find_function(
    name:str, # MODULE:FUNCTION
)->Any: # The function
    "Import a function; the current folder is searched last"
    module, _, attribute = name.partition(':')
    here = str(Path.cwd())
    if not {'', here} & set(sys.path): sys.path.append(here)
    try: found = import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or not f'{module}.'.startswith(f'{e.name}.'): raise  # one that the module imports
        raise InputError(f'{name}: there is no module {module!r} to import; expected MODULE:FUNCTION, the module '
                         'installed, on PYTHONPATH or in the current folder') from None
    function = getattr(found, attribute, None)
    if callable(function): return function
    known = [n for n, o in vars(found).items() if callable(o) and getattr(o, '__module__', '') == module]
    raise InputError(f'{name}: {module} has no function {attribute!r}; it has {", ".join(known) or "none"}')


def from_function(
    name:str, # MODULE:FUNCTION
    pretrained:bool=False, # Pass on `pretrained=True`, if the function takes it
    **kwargs, # For the function
)->nn.Module: # With `num_features`
    """The encoder that a function makes: a module that maps clips `(B, T, 3, H, W)` to features.

    If it has no `num_features`, one forward pass finds their number, and tokens or maps are averaged."""
    function = find_function(name)
    if pretrained:
        if 'pretrained' not in inspect.signature(function).parameters:
            raise InputError(f'{name} does not take pretrained=True; give a file, or leave init out')
        kwargs = kwargs | dict(pretrained=True)
    net = function(**kwargs)
    if not isinstance(net, nn.Module):
        raise InputError(f'{name} must return a torch.nn.Module, not {type(net).__name__}')
    return net if isinstance(getattr(net, 'num_features', None), int) else _measured(net, name)


def _measured(net, name):
    spec = getattr(net, 'clips', None)
    own = ((spec.frames, spec.size),) if isinstance(spec, ClipSpec) and spec.frames and spec.size else ()
    device = next((p.device for p in net.parameters()), torch.device('cpu'))
    why = ''
    for frames, size in own or TRIALS:
        x = torch.zeros(1, frames, 3, size, size, device=device)
        try:
            with eval_mode(net), torch.no_grad(): out = net(x)
            feature = to_feature(net, out, (x,))
        except Exception as e: why = why or (str(e).strip().splitlines() or [type(e).__name__])[0]
        else: return UserEncoder(net, feature.shape[1])
    raise InputError(f'{name}: the width of the features cannot be found with clips of {TRIALS[0][0]}x3x{TRIALS[0][1]}x'
                     f'{TRIALS[0][1]} and larger ones ({why}); give the module the attribute num_features')


def function_file(
    name:str, # MODULE:FUNCTION
)->str|None: # Of its source
    "The file that defines a function"
    try: return inspect.getsourcefile(inspect.unwrap(find_function(name)))
    except TypeError: return None
