"A loader for videos that fit into memory."
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from fastai.data.core import TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import ToTensor

from .cache import MAX_TASK_BYTES
from .clips import SampleClips
from .decoded import Decoded

__all__ = ['CachedDL']


class CachedDL(TfmdDL):
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
        try: return clips.encodes(video), *label
        except SkipItemException: return None
