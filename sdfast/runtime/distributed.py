"Several processes, started by torchrun, that train one model together."
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from fastai.torch_core import num_distrib, rank_distrib

from ..errors import InputError

__all__ = ['join_processes', 'from_rank0', 'single_process', 'is_distributed']

TIMEOUT = timedelta(hours=12)  # the first process measures while the others wait


def join_processes()->int: # Number of processes, 1 without torchrun
    "Join the process group that torchrun started, if any"
    n = int(os.environ.get('WORLD_SIZE', 1))
    if n > 1 and find_spec('accelerate') is None:
        raise InputError("torchrun's processes need the package accelerate: pip install 'sdfast[ddp]'")
    if n > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda: torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group('nccl' if cuda else 'gloo', timeout=TIMEOUT)
    return n


def from_rank0(
    f:Callable, # Called without arguments, in the first process only
)->Any: # The same in all processes
    "Return in all processes what `f()` returns in the first one, or raise what it raises there"
    if num_distrib() < 2: return f()
    result, error = None, None
    if not rank_distrib():
        try: result = f()
        except Exception as e: error = e
    box = [result, error]
    dist.broadcast_object_list(box, 0)
    result, error = box
    if error is not None: raise error
    return result


@contextmanager
def single_process()->Iterator[None]: # A context manager
    "Make fastai treat this process as the only one, for measurements by the first process while the others wait"
    world = os.environ.get('WORLD_SIZE')
    if world is not None: os.environ['WORLD_SIZE'] = '1'
    try: yield
    finally:
        if world is not None: os.environ['WORLD_SIZE'] = world


def is_distributed(
    dl:object, # A loader
)->bool: # Its module needs accelerate, and is not imported for this
    "Whether a loader is fastai's `DistributedDL`"
    module = sys.modules.get('fastai.distributed')
    return module is not None and isinstance(dl, module.DistributedDL)
