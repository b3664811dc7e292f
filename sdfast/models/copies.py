"Copying what `deepcopy` refuses to copy: tensors with a graph, locks, random generators, open files."
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import partial
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import InputError

__all__ = ['copy_all']

# kinds of lock -> how to make a new one
LOCKS = {type(threading.Lock()):threading.Lock, type(threading.RLock()):threading.RLock}
ATOMS = type, FunctionType, BuiltinFunctionType, ModuleType, str, bytes, int, float, complex, type(None)
CONTAINERS = list, tuple, set, frozenset, deque


class _Unread:
    "In place of a Python generator: one cannot be copied, and reading the original would take its values away"
    def __iter__(self): return self
    def __next__(self): raise InputError('a module reads a Python generator, which a copy of the module does not have: '
                                         'keep a list instead')


def copy_all(
    x:Any, # An object, such as a module; is not changed
    memo:dict, # As for `deepcopy`
)->Any: # The copy
    """`deepcopy`, also of objects that it refuses to copy.

    Tensors with a graph lose it, locks are new, random generators continue from the same state, and what nobody can
    copy, such as open files, is shared. Without such objects the copy is that of `deepcopy`."""
    known = dict(memo)
    try: return deepcopy(x, memo)
    except Exception:
        memo.clear()  # `deepcopy` has filled it with parts of a copy
        memo.update(known)
    for part in reversed(list(reachable(x, known))): _replace(part, memo)  # parts before what holds them
    try: return deepcopy(x, memo)
    except Exception as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f'{type(x).__name__} cannot be copied, which this strategy or measurement needs: {why}; '
                         'remove what cannot be copied from the module') from None


def reachable(
    x:Any, # An object
    skip:Iterable[int]=(), # `id`s of objects to leave out
)->Iterator: # Of objects
    "`x` and all objects in its attributes, containers and bound methods, each once"
    seen, waiting = set(skip), [x]
    while waiting:
        x = waiting.pop()
        if id(x) in seen or isinstance(x, ATOMS): continue
        seen.add(id(x))
        yield x
        waiting += _parts(x)


def _parts(x)->list:
    if isinstance(x, torch.Tensor): return []
    if isinstance(x, dict): return [*x.keys(), *x.values()]
    if isinstance(x, CONTAINERS): return list(x)
    if isinstance(x, MethodType): return [x.__self__]
    if isinstance(x, partial): return [x.func, x.args, x.keywords]
    return list(getattr(x, '__dict__', {}).values())


def _replace(x, memo)->None:
    "Put into `memo` what shall be in the copy instead of `x`, if `deepcopy` cannot copy it"
    if isinstance(x, torch.Tensor):
        if not x.is_leaf: memo[id(x)] = x.detach().clone()
    elif type(x) in LOCKS: memo[id(x)] = LOCKS[type(x)]()
    elif isinstance(x, torch.Generator): memo[id(x)] = x.clone_state()
    elif isinstance(x, GeneratorType): memo[id(x)] = _Unread()
    elif not isinstance(x, (nn.Module, dict, *CONTAINERS)) and not _can_copy(x, memo): memo[id(x)] = x


def _can_copy(x, memo):
    try: deepcopy(x, dict(memo))
    except Exception: return False
    return True


class Hook:
    "A hook that calls `f`; copies and pickles of it do nothing"
    def __init__(self,
        f:Callable|None=None, # Called with the arguments of the hook
    ): self.f = f
    def __call__(self, *args:Any)->Any: return self.f and self.f(*args)
    def __reduce__(self): return Hook, ()
