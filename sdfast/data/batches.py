"What of a batch are the clips and what the labels: one answer for strategies, measures and trainers."
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from ..errors import InputError

__all__ = ['split_batch', 'Batches']

# names under which a dict may have its clips and labels: of transformers, pytorchvideo, torchvision and plain loops
CLIPS = ('pixel_values', 'pixel_values_videos', 'x', 'clip', 'clips', 'video', 'videos', 'frames', 'image', 'images',
         'input', 'inputs')
LABELS = ('labels', 'label', 'y', 'target', 'targets')
GIVE_FUNCTION = 'pass split=FUNCTION of the batch that returns (clips, labels)'


def split_batch(
    batch:Any, # What a loader yields: a tensor of clips, `(clips, labels)`, `(clips,)`, or a dict of both by name
    split:Callable|None=None, # Function of the batch that returns clips or `(clips, labels)`; `None`: see above
    who:str='the loader', # Whose batch it is, for the error
)->tuple[torch.Tensor, Any]: # Clips, and labels or `None`
    """Tell clips from labels.

    Of a dict, the clips are under `pixel_values`, `x`, `video` or a similar name, the labels under `labels`, `label`,
    `y` or `targets`. A longer tuple must have one label for each clip in its second place. Raises `InputError` where
    it is not clear what is meant."""
    if split is not None: batch = split(batch)
    if torch.is_tensor(batch): return batch, None
    if isinstance(batch, Mapping): return _clips_of(batch, who), _labels_of(batch, who)
    if not isinstance(batch, (tuple, list)) or not batch:
        raise InputError(f'{who} must yield (clips, labels) or clips as tensors, not {type(batch).__name__}: '
                         f'{GIVE_FUNCTION}')
    x, *rest = batch
    if isinstance(x, Mapping): x = _clips_of(x, who)
    if not torch.is_tensor(x):
        raise InputError(f'{who} must yield (clips, labels) or clips as tensors, not {type(x).__name__} first: '
                         f'{GIVE_FUNCTION}')
    if len(rest) > 1: _check_second(x, rest[0], len(batch), who)
    y = rest[0] if rest else None
    return x, _labels_of(y, who) if isinstance(y, Mapping) else y


def _check_second(x, y, n, who):
    "Raise `InputError` unless the second of several things in a batch is a label for each clip"
    if torch.is_tensor(y) and y.shape[:1] == x.shape[:1] and y.numel() == len(x): return
    given = f'of shape {tuple(y.shape)}' if torch.is_tensor(y) else type(y).__name__
    raise InputError(f'{who} yields {n} things, of which the second, {given}, is not a label for each clip: '
                     f'{GIVE_FUNCTION}')


def _clips_of(batch, who):
    found = [k for k in CLIPS if torch.is_tensor(batch.get(k))]
    if len(found) == 1: return batch[found[0]]
    if found: raise InputError(f'{who} yields clips under several names, {", ".join(found)}: {GIVE_FUNCTION}')
    names = ', '.join(map(str, batch)) or 'nothing'
    raise InputError(f'{who} yields a dict with {names}, none of which is known as clips ({", ".join(CLIPS[:4])}...): '
                     f'{GIVE_FUNCTION}')


def _labels_of(batch, who):
    found = [k for k in LABELS if batch.get(k) is not None]
    if len(found) > 1: raise InputError(f'{who} yields labels under several names, {", ".join(found)}: {GIVE_FUNCTION}')
    return batch[found[0]] if found else None


class Batches:
    "A loader whose batches are given as `(clips, labels)`; in all else it is the loader"
    def __init__(self,
        dl:Iterable, # Yields batches that `split_batch` can tell apart
        split:Callable|None=None, # As for `split_batch`
        who:str='the loader of the training data', # For errors
    ): self.dl, self.split, self.who = dl, split, who

    def __iter__(self)->Iterator: return (split_batch(batch, self.split, self.who) for batch in self.dl)

    def __len__(self)->int:
        dl: Any = self.dl
        return len(dl)

    def __getattr__(self, name:str)->Any:
        if name.startswith('__') or 'dl' not in vars(self): raise AttributeError(name)
        return getattr(self.dl, name)
