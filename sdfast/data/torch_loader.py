"Loaders of plain tensors for training loops without fastai."
import random
import warnings
from collections.abc import Iterator, Sequence, Sized

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import InputError
from .clips import BrokenVideo, SampleClips
from .images import drawing_from
from .video import VideoFile

__all__ = ['ClipDataset', 'EpochSampler', 'torch_loader']


class ClipDataset(Dataset):
    """Clips of videos, as bytes, and class numbers.

    An index is that of a video, or a pair of it and a seed, on which then alone depends which random clip is cut out.
    A video that cannot be decoded raises `VideoError`; in training the item is `None`, with a warning."""

    def __init__(self,
        items:Sequence[tuple[str, int]], # Path and class number of each video
        clips:SampleClips, # Cuts out clips
        train:bool, # Cut out random clips
    ): self.items, self.clips, self.train = items, clips, train

    def __len__(self)->int: return len(self.items)

    def __getitem__(self, index:int|tuple[int, int])->tuple[torch.Tensor, int]|None:
        i, seed = index if isinstance(index, tuple) else (index, None)
        path, label = self.items[i]
        if seed is None: return self._cut(path, label)
        with drawing_from(seed): return self._cut(path, label)

    def _cut(self, path, label):
        try: return self.clips(VideoFile(path), split_idx=0 if self.train else 1).as_subclass(torch.Tensor), label
        except BrokenVideo: return None  # `SampleClips` has warned


class EpochSampler(Sampler):
    "Indices of videos, each with a seed for its random clip; both depend on the seed and on the epoch only"

    def __init__(self,
        data:Sized, # Only its length matters
        shuffle:bool, # Change the order in each epoch
        seed:int=0, # Of order and clips
    ): self.n, self.shuffle, self.seed, self.epoch = len(data), shuffle, seed, 0

    def __len__(self)->int: return self.n

    def set_epoch(self,
        epoch:int, # Of the next reading, such as after a resume; each reading adds one
    )->None:
        "Choose the epoch whose order and clips come next"
        self.epoch = epoch

    def __iter__(self)->Iterator[tuple[int, int]]:
        rng = random.Random(f'{self.seed} {self.epoch}')
        self.epoch += 1
        indices = list(range(self.n))
        if self.shuffle: rng.shuffle(indices)
        yield from ((i, rng.getrandbits(63)) for i in indices)


class Collate:
    "Makes a batch of items, without those of broken videos"
    def __init__(self,
        stats:tuple|None, # Mean and standard deviation of each channel; `()`: none; `None`: bytes
    ): self.stats = stats

    def __call__(self, items:list)->tuple[torch.Tensor, torch.Tensor]:
        found = [item for item in items if item is not None]
        if not found: raise InputError('no video of a batch can be decoded; the warnings name them')
        shapes = list(dict.fromkeys(tuple(x.shape) for x, _ in found))
        if len(shapes) > 1:
            raise InputError(f'the clips of a batch differ in shape, {shapes[0]} and {shapes[1]}: give a size')
        x, y = torch.stack([x for x, _ in found]), torch.tensor([y for _, y in found])
        if self.stats is None: return x, y
        x = x.float().div_(255)
        if not self.stats: return x, y
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in self.stats)
        return x.sub_(mean).div_(std), y


def torch_loader(
    items:Sequence[tuple[str, int]], # Path and class number of each video
    clips:SampleClips, # Cuts out clips
    train:bool, # Cut out random clips
    bs:int, # Batch size
    shuffle:bool, # Change the order in each epoch
    seed:int, # Of order and clips
    workers:int, # Loading processes
    stats:tuple|None, # Mean and standard deviation of each channel; `()`: floats in [0, 1]; `None`: bytes
    drop_last:bool, # Leave out the last batch if it is smaller
)->DataLoader: # Yields clips and class numbers
    "A `DataLoader` of PyTorch whose batches do not depend on the number of loading processes"
    if not isinstance(bs, int) or bs < 1: raise InputError(f'bs must be a whole number of at least 1, not {bs!r}')
    if drop_last and bs > len(items):
        raise InputError(f'{len(items)} clips make no batch of {bs}: take a batch size (bs) of at most {len(items)}')
    if clips.cache and workers: warnings.warn('loading processes do not share the videos that each of them keeps')
    data = ClipDataset(items, clips, train)
    return DataLoader(data, bs, sampler=EpochSampler(data, shuffle, seed), num_workers=workers,
                      collate_fn=Collate(stats), drop_last=drop_last)
