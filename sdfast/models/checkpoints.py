"""Reading the tensors of checkpoints, whatever else is in them, without running their code.

torch's `weights_only` unpickler runs nothing but what rebuilds tensors, and refuses all other objects. Checkpoints of
trainers hold many of those: settings, states of callbacks, numbers of NumPy. In place of each an inert stand-in is
made, which keeps what was stored and does nothing."""
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import InputError

__all__ = ['read_nodes', 'read_tensors']

# keys under which trainers put the state dict of a model, the usual ones first
TOP_KEYS = ('state_dict', 'model', 'model_state_dict', 'model_state', 'module')
# files of weights in a folder, in the order in which they are looked for; an index lists those of a model in parts
IN_FOLDER = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'pytorch_model.bin.index.json')
DEPTH = 6  # of nested dicts to search
ATTEMPTS = 200  # kinds of objects that are no tensors
# what no checkpoint needs: a file that names it is not read at all
RUNS = re.compile(r'(?:builtins|os|posix|nt|io|_io|sys|subprocess|shutil|socket|runpy|importlib|ctypes|pty|webbrowser|'
                  r'code)\.')
HARMLESS = {f'builtins.{n}' for n in ('getattr', 'object', 'slice', 'range', 'complex', 'type', 'list', 'dict', 'tuple',
                                      'int', 'float', 'str', 'bool', 'bytes', 'set', 'frozenset', 'bytearray')}
TO_CONVERT = 'in the program that wrote it: torch.save(model.state_dict(), FILE)'


class Unread(list):
    "In place of an object that is no tensor: keeps what was stored, and runs nothing"
    def __init__(self, *args, **kwargs): super().__init__()
    def __new__(cls, *args, **kwargs): return super().__new__(cls)
    def __setstate__(self, state): self.state = state


class _UnreadDict:
    "In place of a class of dicts: the weights-only unpickler fills only those of the standard library"
    def __new__(cls, *args, **kwargs): return OrderedDict()


def read_nodes(
    path:str|Path, # safetensors or torch file, or a folder with `model.safetensors` or `pytorch_model.bin`
)->dict[str, dict[str, torch.Tensor]]: # Keys joined by dots -> name -> tensor
    """Read all dicts of tensors in a checkpoint, by their keys joined by dots; '' is the checkpoint itself.

    Names are without `_orig_mod`, which `torch.compile` adds, and without DDP's `module.`. Raises `InputError` if there
    are no tensors."""
    path = Path(path)
    if path.is_dir(): return _nodes(_read_folder(path), path)
    if not path.is_file(): raise InputError(f'weights {path} do not exist')
    return _nodes(_read(path), path)


def read_tensors(
    path:str|Path, # As for `read_nodes`
)->dict[str, torch.Tensor]: # Name -> tensor
    "Read the state dict of a checkpoint, at the first of the usual keys. Raises `InputError` if there is none"
    nodes = read_nodes(path)
    return nodes[min(nodes, key=lambda key: (_usual(key), key.count('.'), -len(nodes[key])))]


def _usual(key):
    "How deep a dict is, counting only keys that are not usual"
    return sum(part not in TOP_KEYS for part in key.split('.') if part)


def plain_name(
    name:str, # Of a weight
)->str: # Without the parts that `torch.compile` adds
    "A weight's name in the net that is not compiled"
    return '.'.join(part for part in name.split('.') if part != '_orig_mod')


# ---- files

def _read_folder(folder):
    name = next((n for n in IN_FOLDER if (folder/n).is_file()), None)
    if name is None:
        raise InputError(f'weights {folder} are a folder; give the file in it, or a folder with {IN_FOLDER[0]} or '
                         f'{IN_FOLDER[2]}')
    if not name.endswith('.json'): return _read(folder/name)
    try: parts = sorted(set(json.loads((folder/name).read_text(encoding='utf-8'))['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f'weights {folder/name} list no files: weight_map is missing or no table') from None
    outside = [p for p in parts if Path(p).name != p]
    missing = [p for p in parts if not (folder/p).is_file()]
    if outside or missing: raise InputError(f'weights {folder/name} list {(outside + missing)[0]}, which is not there')
    tensors: dict[str, torch.Tensor] = {}
    for part in parts: tensors |= _read(folder/part)
    return tensors


def _read(path):
    try: return load_file(path) if path.suffix == '.safetensors' else _read_pickle(path)
    except InputError: raise
    except Exception as e:  # torch and safetensors raise many kinds of errors for broken files
        # torch explains its switch first
        own = [line for line in str(e).splitlines() if 'WeightsUnpickler error: ' in line]
        why = (own or str(e).splitlines() or [type(e).__name__])[0].strip().removeprefix('WeightsUnpickler error: ')
        hint = f'; write a state dict {TO_CONVERT}' if 'TorchScript' in str(e) else ''
        raise InputError(f'weights {path} cannot be read as tensors: {why}{hint}') from None


def _read_pickle(path):
    "Read a torch file, with an `Unread` in place of each object that is no tensor"
    try: unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception: unknown = []  # an old format: the names are known one by one, from the errors below
    stand_ins: dict[str, type] = {}
    for name in unknown: _add_stand_in(stand_ins, name, path)
    for _ in range(ATTEMPTS):
        try:
            with torch.serialization.safe_globals([(kind, name) for name, kind in stand_ins.items()]):
                return torch.load(path, map_location='cpu', weights_only=True)
        except UnpicklingError as e:
            found = re.search(r'Unsupported global: GLOBAL (\S+) was not', str(e))
            filled = re.search(r"Can only SETITEMS? for .* got <class '.*?Unread:([^']+)'>", str(e))
            if found: _add_stand_in(stand_ins, found[1] if '.' in found[1] else f'builtins.{found[1]}', path)
            elif filled: stand_ins[filled[1]] = type(filled[1], (_UnreadDict,), {})
            else: raise
    raise InputError(f'weights {path} cannot be read as tensors: they hold more than {ATTEMPTS} kinds of other objects;'
                     f' write a state dict {TO_CONVERT}')


def _add_stand_in(stand_ins, name, path):
    if name in stand_ins or RUNS.match(name) and name not in HARMLESS:
        raise InputError(f'weights {path} cannot be read as tensors: reading them would run {name}')
    stand_ins[name] = type(f'Unread:{name}', (Unread,), {})


# ---- what is in them

def _nodes(content, path):
    if isinstance(content, Unread): raise InputError(_of_an_object(path, content))
    nodes: dict[str, dict[str, torch.Tensor]] = {}
    refused = ''
    for key, entries in _dicts(content):
        named = {n:v for n, v in entries.items() if torch.is_tensor(v)}
        if not named: continue
        odd = next((n for n in named if not isinstance(n, str)), None)
        if odd is not None:
            refused = refused or f'weights {path}: the name {odd!r} is not text; save the state dict of a module'
            continue
        nodes[key] = _plain_names(named, path)
    if nodes: return nodes
    if refused: raise InputError(refused)
    held = [v for v in content.values() if isinstance(v, Unread)] if isinstance(content, dict) else []
    modules = [v for v in held if _is_module(v)]
    if modules: raise InputError(_of_an_object(path, modules[0]))
    raise InputError(f'weights {path} hold no state dict')


def _of_an_object(path, unread):
    kind = type(unread).__name__.removeprefix('Unread:')
    what = 'a whole module' if _is_module(unread) else 'an object'
    return (f'weights {path} cannot be read as tensors: they are {what} ({kind}), which would need its code; write a '
            f'state dict {TO_CONVERT}')


def _is_module(unread):
    return isinstance(getattr(unread, 'state', None), dict) and '_modules' in unread.state


def _dicts(content:Any, key:str='', depth:int=0)->Iterator[tuple[str, dict]]:
    "`(keys, dict)` of the nested dicts in a checkpoint, outer ones first"
    if not isinstance(content, dict) or depth > DEPTH: return
    yield key, content
    for name, value in content.items():
        if isinstance(name, str): yield from _dicts(value, f'{key}.{name}' if key else name, depth + 1)


def _plain_names(named, path):
    tensors: dict[str, torch.Tensor] = {}
    for name, value in named.items():
        plain = plain_name(name).removeprefix('module.')
        if plain in tensors: raise InputError(f'weights {path} have {plain} twice; save the state dict of one module')
        tensors[plain] = value
    return tensors
