"""Labelled videos with an official split: UCF101, HMDB51, class folders, a csv file, or the embedded `moving_digits`.

Rows have a `split` ('train', 'valid', 'test') and a `group` (one person, scene or recording). Whatever sdfast
splits itself, it splits by group, so that no group stands on both sides.
"""
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from fastai.data.core import TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import ToTensor

from .clips import SampleClips
from .decoded import Decoded

CACHE_BYTES = 2**31  # decoded videos of a task are kept in memory if all of them fit into this


class CachedDL(TfmdDL):
    """For sets that fit into memory: keeps its batches, before batch transforms, if they are the same each time.

    Items whose only transform is `SampleClips` are made without asking for the type of each again, which takes longer than
    cutting a clip from a video in memory."""
    _batches, _rows = None, None

    def create_batches(self, samps:Iterable)->Iterator:
        for f in self.after_item.fs:  # not for the one item that fastai looks at when a loader is made
            if isinstance(getattr(f, 'cache', None), Decoded): f.cache.open()
        if self.shuffle or self.fake_l.num_workers: return super().create_batches(samps)
        if self._batches is None:
            batches = super().create_batches(samps)
            first = list(islice(batches, 1))
            if first and first[0][0].nbytes*len(self) > CACHE_BYTES: return chain(first, batches)  # many clips of each video
            self._batches = [*first, *batches]
        return iter(self._batches)

    def do_item(self, s:int)->object:
        clips, *more = [f for f in self.after_item.fs if not isinstance(f, ToTensor)] or [None]
        if more or type(clips) is not SampleClips or s is None: return super().do_item(s)
        if self._rows is None: self._rows = {}
        if s not in self._rows: self._rows[s] = self.create_item(s)
        video, *label = self._rows[s]
        clips.before_call(video, self.after_item.split_idx)
        try: return clips.encodes(video), *label
        except SkipItemException: return None
