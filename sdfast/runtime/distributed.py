"""Getting many pieces of work done once each: in this process, in several, on a cluster, or by several processes for each piece.

Whoever takes part shares a folder and nothing else. A piece is claimed (`store.claim`), done or gone on with, and its result read
by all; so it does not matter how many invocations, workers or machines there are, nor which of them die. Workers are submitit's,
on this machine and on Slurm alike; the processes of one piece are torchrun's."""
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from fastai.distributed import DistributedDL
from fastai.torch_core import num_distrib, rank_distrib

__all__ = ['join_processes', 'from_rank0', 'single_process', 'ShardedDL']



def join_processes()->int: # How many take part, 1 outside of it
    "Take part in what torchrun started"
    n = int(os.environ.get('WORLD_SIZE', 1))
    if n > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda: torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        dist.init_process_group('nccl' if cuda else 'gloo', timeout=timedelta(hours=12))  # the first measures while the others wait
    return n


def from_rank0(
    f:Callable, # Called without arguments, by the first process only
)->object: # The same in all processes
    "What `f()` returns or raises in the first process, in all"
    if num_distrib() < 2: return f()
    box = [None, None]
    if not rank_distrib():
        try: box[0] = f()
        except Exception as e: box[1] = e
    dist.broadcast_object_list(box, 0)
    if box[1] is not None: raise box[1]
    return box[0]


@contextmanager
def single_process()->Iterator[None]: # A context manager
    "Inside, fastai takes this process for the only one: for what the first measures while the others wait"
    world = os.environ.get('WORLD_SIZE')
    if world is not None: os.environ['WORLD_SIZE'] = '1'
    try: yield
    finally:
        if world is not None: os.environ['WORLD_SIZE'] = world


class ShardedDL(DistributedDL):
    """A loader that drops a last incomplete batch, and whose batches, those of all processes put together, are those of one process.

    fastai's deals out parts of the data instead, and counts some samples twice to make them even."""
    def _broadcast(self, t, rank):
        box = [t]
        dist.broadcast_object_list(box, rank)  # fastai's needs a GPU
        return box[0]

    def __len__(self): return self.dl.n//(self.bs*self.world_size)

    def get_idxs(self)->list:
        idxs = self._broadcast(list(self.dl.get_idxs()), 0)
        self.n = self.n_padded = len(self)*self.bs*self.world_size
        return idxs[:self.n][self.rank::self.world_size]
