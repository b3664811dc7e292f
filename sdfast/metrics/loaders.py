"The loaders of a measurement: each time they are read they must give the same clips."
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from ..data.batches import split_batch
from ..data.order import check_order, check_trace, trace
from ..errors import InputError
from ..models.features import outputs_of
from ..models.labels import clip_labels
from .reading import ClipFeatures, read_clips

__all__ = ['FixedLoaders']


class FixedLoaders:
    """Loaders by name, whose clips and their order are compared with those of the first reading.

    Raises `InputError` for loaders that shuffle, draw or augment, that can be read only once, and for those of labelled
    clips that have no labels."""
    def __init__(self,
        loaders:dict[str, Iterable], # Name -> loader
        unlabelled:Sequence[str]=(), # Names of those whose labels are not read
        split:Callable|None=None, # Tells clips from labels, as for `split_batch`
    ):
        self.loaders, self.unlabelled, self.split = loaders, unlabelled, split
        self.first: dict[str, ClipFeatures] = {}  # name -> what was read first
        for name, dl in loaders.items(): check_order(name, dl)

    def __iter__(self): return iter(self.loaders)

    def read(self,
        encoder:nn.Module, # In eval mode
        name:str, # Of a loader
        head:nn.Module|None=None, # Maps features to logits
        layers:Sequence[str]=(), # Submodules whose outputs to return
        outputs_of:Callable=outputs_of, # As for `read_clips`
    )->ClipFeatures: # Of all clips
        "Read a loader, see `read_clips`; raises `InputError` if its clips or labels are not those of the first reading"
        labelled = name not in self.unlabelled
        reading = read_clips(encoder, self.loaders[name], head, layers, outputs_of, name, labelled, self.split)
        if labelled and reading.y is None: raise InputError(f'{name} has no labels: it must yield (clips, labels)')
        if name not in self.first:
            self.first[name] = reading
            self._read_again(name)
        _compare(name, self.first[name], reading.trace, reading.y)
        return reading

    def _read_again(self, name):
        "Read the first batch a second time, so that a loader that shuffles is refused before training, not after it"
        dl = self.loaders[name]
        x, y = split_batch(_first_batch(dl), self.split, name)
        y = None if y is None or name in self.unlabelled else clip_labels(y, f'labels of {name}', len(x)).cpu()
        _compare(name, self.first[name], trace(x), y, len(x))


def _first_batch(dl):
    "The first batch, without starting the processes of a fastai loader"
    return dl.one_batch() if hasattr(dl, 'one_batch') else next(iter(dl), ())


def _compare(name:str, first:ClipFeatures, clips:torch.Tensor, y:torch.Tensor|None, n:int|None=None)->None:
    "Raise `InputError` unless these are the traces and labels of the first `n` clips"
    check_trace(name, first.trace[:n], clips)
    if y is None or first.y is None or torch.equal(y, first.y[:n]): return
    raise InputError(f'{name} gives the same clips other labels each time it is read: pass a loader with fixed labels')


def spaced_sample(
    dl:Iterable, # Of clips
    traces:torch.Tensor, # By which its clips are recognised
    n:int, # Number of videos; at least two are taken
    size:int|None=None, # Largest size in bytes; if given, `n` counts each of several clips of a video
    split:Callable|None=None, # Tells clips from labels, as for `split_batch`
)->tuple[torch.Tensor, torch.Tensor]: # Indices and clips
    "Read an evenly spaced sample of the clips of a loader"
    def inputs(): return (split_batch(b, split, 'clips')[0] for b in dl)
    if size is not None:
        first = next(inputs())[0]
        clips_each = len(first) if first.ndim == 5 else 1
        n = min(max(2, n//clips_each), max(2, size//(first.numel()*first.element_size())))
    rows = torch.linspace(0, len(traces) - 1, min(n, len(traces))).round().long().unique()
    clips, start = [], 0
    for x in inputs():
        mine = rows[(rows >= start) & (rows < start + len(x))] - start
        clips.append(x.as_subclass(torch.Tensor)[mine.to(x.device)].clone())
        start += len(x)
    check_trace('clips', traces[rows], trace(torch.cat(clips)))
    return rows, torch.cat(clips)
