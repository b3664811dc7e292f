"Several processes, started by torchrun, that train one model together."
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from fastai.distributed import DistributedDL
from fastai.torch_core import num_distrib, rank_distrib

__all__ = ['join_processes', 'from_rank0', 'single_process', 'ShardedDL']

TIMEOUT = timedelta(hours=12)  # the first process measures while the others wait


def join_processes()->int: # Number of processes, 1 without torchrun
    "Join the process group that torchrun started, if any"
    n = int(os.environ.get('WORLD_SIZE', 1))
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


class ShardedDL(DistributedDL):
    """A loader that divides each batch of a single process among all processes.

    A last incomplete batch is dropped. fastai's `DistributedDL` divides the data set instead, and repeats some samples
    to make the parts equal."""
    def _broadcast(self, t, rank):
        box = [t]
        dist.broadcast_object_list(box, rank)  # fastai's own `_broadcast` needs a GPU
        return box[0]

    def __len__(self): return self.dl.n//(self.bs*self.world_size)

    def get_idxs(self)->list:
        idxs = self._broadcast(list(self.dl.get_idxs()), 0)
        self.n = self.n_padded = len(self)*self.bs*self.world_size
        return idxs[:self.n][self.rank::self.world_size]
