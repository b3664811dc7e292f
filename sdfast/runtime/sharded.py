"A loader for several processes. Importing this module needs accelerate: `pip install 'sdfast[ddp]'`."
import torch.distributed as dist
from fastai.distributed import DistributedDL

__all__ = ['ShardedDL']


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
