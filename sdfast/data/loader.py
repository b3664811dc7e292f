"Loaders of videos: one that leaves no gap in predictions and no epoch empty, and one for videos in memory."
import inspect
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import chain, islice

from fastai.data.core import Datasets, TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import ToTensor

from ..errors import InputError
from .cache import MAX_TASK_BYTES
from .clips import BrokenVideo, SampleClips, row_lost
from .decoded import Decoded
from .video import VideoError

__all__ = ['VideoDL', 'CachedDL']


class VideoDL(TfmdDL):
    """fastai's loader, except that it raises an error where a gap would go unnoticed.

    A video that breaks is skipped only if the order is random: in a fixed order, all later predictions would be beside
    the wrong file. An epoch of no batch at all, because `bs` is larger than the number of clips, trains nothing."""

    def do_item(self, s:int)->object:
        return self.make_item(lambda: self.after_item(self.create_item(s)))

    def make_item(self,
        make:Callable, # Function without arguments that makes the item
    )->object: # `None` for one to skip
        "Make an item. Raises `VideoError` for a video that breaks, if the order is fixed"
        try: return make()
        except BrokenVideo as e:
            if not self.shuffle: raise row_lost(e) from None
        except SkipItemException: pass
        return None

    def __iter__(self)->Iterator:
        if self.n and not len(self):
            raise InputError(f'{self.n} clips make no batch of {self.bs}, so nothing would be trained: '
                             f'take a batch size (bs) of at most {self.n}')
        try: yield from super().__iter__()
        except VideoError as e:
            # PyTorch puts the traceback of a loading process before the message
            raise VideoError(str(e).splitlines()[-1].removeprefix(f'{VideoError.__module__}.VideoError: ')) from None


class CachedDL(VideoDL):
    """A faster loader for videos whose decoded frames are in memory; the batches equal those of fastai's `TfmdDL`.

    Batches that are the same in each epoch, such as those for validation, are kept in memory (before batch transforms),
    unless they take more than `MAX_TASK_BYTES`. If `SampleClips` is the only item transform, it is called directly:
    fastai's type dispatch takes longer than cutting a clip out of a decoded video."""
    _batches: list|None = None
    _items: dict|None = None

    def create_batches(self, samps:Iterable)->Iterator:
        self._open_shared()
        if self.shuffle or self.fake_l.num_workers: return super().create_batches(samps)
        if self._batches is None:
            batches = super().create_batches(samps)
            first = list(islice(batches, 1))
            too_large = first and first[0][0].nbytes*len(self) > MAX_TASK_BYTES  # with many clips of each video
            if too_large: return chain(first, batches)
            self._batches = [*first, *batches]
        return iter(self._batches)

    def _open_shared(self):
        "Open the shared videos, only when batches are needed: fastai reads an item of every loader that it creates"
        for f in self.after_item.fs:
            shared = getattr(f, 'cache', None)
            if isinstance(shared, Decoded): shared.open()

    def do_item(self, s:int)->object:
        transforms = [f for f in self.after_item.fs if not isinstance(f, ToTensor)]
        only_clips = len(transforms) == 1 and type(transforms[0]) is SampleClips
        if not only_clips or s is None: return super().do_item(s)
        clips = transforms[0]
        if self._items is None: self._items = {}
        if s not in self._items: self._items[s] = self.create_item(s)
        video, *label = self._items[s]
        clips.before_call(video, self.after_item.split_idx)
        return self.make_item(lambda: (clips.encodes(video), *label))


def check_loader_arguments(
    name:str, # Of the function, for the message
    f:Callable, # Function that passes them to `DataBlock.dataloaders`
    kwargs:dict, # Its other arguments
)->None:
    "Raise `InputError` for an argument that no loader has: fastai would ignore it"
    fastai = [p for g in (Datasets.dataloaders, TfmdDL.__init__) for p in inspect.signature(g).parameters]
    own = list(inspect.signature(f).parameters)
    known = {*fastai, *own} - {'self', 'dataset', 'kwargs', 'after_item', 'after_batch', 'num_workers'}
    for argument in kwargs:
        if argument.removeprefix('val_') in known: continue
        near = get_close_matches(argument, sorted(known), 1)
        meant = f'; did you mean {near[0]!r}?' if near else ''
        raise InputError(f'{name} has no argument {argument!r}{meant}')
