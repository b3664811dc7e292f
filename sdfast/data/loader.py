"Loaders of videos: one that leaves no gap in predictions and no epoch empty, and one for videos in memory."
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from itertools import chain, islice

import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import ToTensor
from fasttransform import Pipeline

from ..errors import InputError
from .cache import MAX_TASK_BYTES
from .clips import BrokenVideo, MissingClips, SampleClips, row_lost
from .decoded import Decoded
from .pipelines import clip_batch_tfms, clip_item_tfms
from .video import VideoError

__all__ = ['VideoDL', 'CachedDL', 'unlabelled']

TRANSFORMS = dict(after_item=clip_item_tfms, after_batch=clip_batch_tfms)  # pipeline -> function that adapts it


class VideoDL(TfmdDL):
    """fastai's loader, which skips videos that break, except that it does not let this go unnoticed.

    They are skipped only if the order is random. In a fixed order, all later rows would be beside the wrong file:
    without labels, such as of files to predict, the row of a broken video is NaN, else an error names the video. An
    epoch of no batch at all, because `bs` is larger than the number of clips, is an error, too."""

    def __init__(self,
        dataset:object, # Videos, and perhaps labels, such as fastai's `Datasets`
        **kwargs, # Other arguments of fastai's `TfmdDL`
    ):
        labels = _label_types(dataset)
        kwargs |= {name:_adapt(name, kwargs.get(name), labels) for name in TRANSFORMS}
        super().__init__(dataset, **kwargs)

    def before_iter(self)->None:
        for name in TRANSFORMS:  # some may have been added by `add_tfms`
            setattr(self, name, _adapt(name, getattr(self, name), _label_types(self.dataset)))
        super().before_iter()

    def do_item(self, s:int)->object:
        if s is None: return super().do_item(s)
        item = self.create_item(s)
        return self.make_item(item, lambda: self.after_item(item))

    def make_item(self,
        item:tuple, # The video, and perhaps a label
        make:Callable, # Function without arguments that makes the clips
    )->object: # `None` for one to skip
        "Make an item. Raises `VideoError` for a labelled video that breaks, if the order is fixed"
        try: return make()
        except BrokenVideo as e:
            if self.shuffle: return None
            return self._blank(item, row_lost(e))
        except VideoError as e: return self._blank(item, e)
        except SkipItemException: return None

    def _blank(self, item, error):
        "An item for a row of NaN, if there are no labels and other rows"
        transforms = [f for f in self.after_item.fs if not isinstance(f, ToTensor)]
        clips = transforms[0] if len(transforms) == 1 and isinstance(transforms[0], SampleClips) else None
        if len(item) > 1 or self.n == 1 or clips is None or clips.size is None: raise error from None
        warnings.warn(f'{str(error).partition("; leave")[0]}; its row is NaN')
        return (clips.blank(),)

    def create_batch(self, b:list)->object:
        shapes = list(dict.fromkeys(tuple(item[0].shape) for item in b if isinstance(item, tuple)))
        if len(shapes) > 1:
            raise InputError(f'the clips of a batch differ in shape, {shapes[0]} and {shapes[1]}: give VideoBlock a '
                             'size, or item_tfms=Resize(SIDE)')
        batch = super().create_batch(b)
        missing = [isinstance(item, tuple) and isinstance(item[0], MissingClips) for item in b]
        if not any(missing): return batch
        x = batch[0].as_subclass(torch.Tensor).float()
        x[missing] = torch.nan
        return (MissingClips(x), *batch[1:])

    def __iter__(self)->Iterator:
        if self.n and not len(self):
            raise InputError(f'{self.n} clips make no batch of {self.bs}, so nothing would be trained: '
                             f'take a batch size (bs) of at most {self.n}')
        try: yield from super().__iter__()
        except (InputError, VideoError) as e:
            # PyTorch puts the traceback of a loading process before the message
            kind = VideoError if isinstance(e, VideoError) else InputError
            raise kind(str(e).splitlines()[-1].removeprefix(f'{kind.__module__}.{kind.__name__}: ')) from None


def _adapt(name, tfms, labels):
    "A pipeline of transforms that act on clips; the same one if nothing has to change, as loaders share theirs"
    found = TRANSFORMS[name](tfms, labels)
    if isinstance(tfms, Pipeline) and [*map(id, found)] == [*map(id, tfms.fs)]: return tfms
    return Pipeline(found)


def _label_types(dataset):
    "The types of the parts of an item after the first; `None` without any"
    try: item = dataset[0]
    except Exception: return None  # no item, as in an exported learner; or reading it will raise the error
    return tuple(map(type, item[1:])) if isinstance(item, tuple) and len(item) > 1 else None


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
        item = video, *label = self._items[s]
        clips.before_call(video, self.after_item.split_idx)
        return self.make_item(item, lambda: (clips.encodes(video), *label))


def unlabelled(
    dls:DataLoaders, # From `Task.dls`
    paths:Iterable, # Video files
)->TfmdDL: # Yields `(x,)`
    """An unshuffled loader of videos without labels, with the transforms that `dls` uses for validation.

    It can be passed to `Retention` as `clips`. Predictions are those of `paths`, one by one; of a video that cannot be
    decoded they are NaN, with a warning."""
    files = [str(p) for p in paths]
    if not files: raise InputError('there are no videos; pass the paths of some')
    return dls.test_dl([(path, None) for path in files])


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
