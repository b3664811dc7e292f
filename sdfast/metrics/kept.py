"What is left of an encoder's accuracy on its source, as a share, for a `Budget`: measured on held-out source clips."
from collections.abc import Callable, Iterable

import torch
from fastai.torch_core import get_model
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..models.statistics import reestimate_bn
from ..models.surgery import find_encoder, frozen_copy
from .doubts import warn_of_chance
from .features import fit_probe, probe_accuracy
from .reading import preserve_rng, read_clips

__all__ = ['KeptAccuracy']

BY = 'old_head', 'old_head_bn', 'probe'
MEMORY = 2**28  # bytes up to which clips stay in memory between two measurements


class KeptAccuracy:
    """The accuracy of an encoder on source clips, divided by that of the untouched encoder, for a `Budget`.

    By 'old_head' it is that of the source's head; by 'old_head_bn' the same with batch-norm statistics recomputed on
    `train_dl`; by 'probe' that of a new linear probe, fitted on `train_dl` each time. Clips of up to 256 MiB stay in
    memory. λ is adapted by these clips, so final measures must be of others: the valid part of the source, not its
    test part."""
    def __init__(self,
        model:nn.Module, # Untouched `Sequential(encoder, head)` of the source task, or see `find_encoder`
        valid_dl:Iterable, # Held-out source clips with labels, in a fixed order
        train_dl:Iterable|None=None, # Source clips for the probe, or for batch-norm statistics
        by:str='old_head', # 'old_head', 'old_head_bn' or 'probe'
        head:nn.Module|None=None, # Maps features to source logits; by default that of `Sequential(encoder, head)`
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
        split:Callable|None=None, # Function of a batch that returns `(clips, labels)`; `None`: see `split_batch`
    ):
        if by not in BY: raise InputError(f'by of KeptAccuracy must be one of {", ".join(BY)}, not {by!r}')
        if by != 'old_head' and train_dl is None:
            raise InputError(f'KeptAccuracy by {by!r} needs train_dl, a loader of source clips')
        model = get_model(model)
        untouched = frozen_copy(find_encoder(model, encoder))
        if head is None and encoder is None and isinstance(model, nn.Sequential): head = model[1]
        if head is None and by != 'probe':
            raise InputError(f'KeptAccuracy by {by!r} needs the head of the source task: pass head=, or by=\'probe\'')
        self.by, self.head = by, None if head is None or by == 'probe' else frozen_copy(head)
        self.valid, self.train = _in_memory(valid_dl, split), None if by == 'old_head' else _in_memory(train_dl, split)
        with preserve_rng(): reading, self.untouched = self._read(untouched)
        if not self.untouched > 0: raise InputError('the untouched encoder has no clip of valid_dl right: there is '
                                                    'nothing that could be kept')
        warn_of_chance('the untouched encoder', self.untouched, reading, 'what it keeps of that says nothing')

    def _read(self, encoder):
        "The outputs for the held-out clips, and the accuracy"
        if self.by == 'old_head_bn': reestimate_bn(encoder, self._for_statistics())
        reading = read_clips(encoder, self.valid, self.head, name='valid_dl')
        if reading.y is None: raise InputError('valid_dl has no labels: it must yield (clips, labels)')
        if self.by != 'probe': return reading, reading.accuracy()
        train = read_clips(encoder, self.train, name='train_dl')
        if train.y is None: raise InputError('train_dl has no labels: it must yield (clips, labels)')
        return reading, probe_accuracy(fit_probe(train.x, train.y), reading.x, reading.y)

    def _for_statistics(self):
        "About sixteen batches of train clips, evenly spaced"
        if isinstance(self.train, list): return [(x, None) for x, _ in self.train[::max(1, len(self.train)//16)]]
        return ((x, None) for x, _ in self.train)

    def __call__(self,
        encoder:nn.Module, # A frozen copy in eval mode, whose batch-norm statistics may change
    )->float: # 1 for the untouched encoder
        "Measure the share that is left"
        with preserve_rng(): return self._read(encoder)[1]/self.untouched


class _Split:
    "A loader as pairs `(clips, labels)`"
    def __init__(self, dl, split): self.dl, self.split = dl, split
    def __iter__(self): return (split_batch(b, self.split) for b in self.dl)


def _in_memory(dl, split):
    "The batches of a loader as a list, or a loader where they are too large"
    batches, size = [], 0
    with preserve_rng():
        for x, y in _Split(dl, split):
            x = x.as_subclass(torch.Tensor)
            batches.append((x, y))
            size += x.numel()*x.element_size()
            if size > MEMORY: return _Split(dl, split)
    return batches
