"Loaders for pre-training: of videos without labels, and of any videos with the clips of a method."
from collections.abc import Iterable

from fastai.callback.core import Callback
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter
from fastai.vision.core import imagenet_stats
from fasttransform import Pipeline, Transform
from torch import nn

from ..data.block import NormalizeClips, VideoBlock
from ..data.clips import SampleClips
from ..data.loader import check_loader_arguments
from ..errors import InputError
from .clips import PretextClips

__all__ = ['video_dls']


class _NoLabels(Transform):
    "Gives unlabelled videos a loss function, as `Learner` takes its default from the data"
    loss_func = nn.Identity()


def video_dls(
    train:Iterable, # Paths of video files
    valid:Iterable=(), # Paths of held-out ones
    frames:int=8, # Frames in a clip
    stride:int=1, # Frames from one of the clip to the next
    size:int=112, # Side of the square in pixels
    bs:int=32, # Batch size
    workers:int=0, # Loading processes
    cache:bool=False, # Keep decoded videos in memory
    stats:tuple|None=None, # Mean and standard deviation of each channel, by default ImageNet's
    **kwargs, # Passed to `DataBlock.dataloaders`
)->DataLoaders: # Batches of clips `(x,)`
    "`DataLoaders` of videos without labels, for pre-training"
    check_loader_arguments('video_dls', video_dls, kwargs)
    train, valid = [str(p) for p in train], [str(p) for p in valid]
    if not train: raise InputError('video_dls: there are no training videos')
    video = VideoBlock(frames, stride, size, cache=cache, stats=stats or imagenet_stats)
    block = TransformBlock([*video.type_tfms, _NoLabels()], item_tfms=video.item_tfms, batch_tfms=video.batch_tfms,
                           dl_type=video.dl_type)
    held_out = range(len(train), len(train) + len(valid))
    data = DataBlock(blocks=block, splitter=IndexSplitter(held_out))
    return data.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)


def sample_clips(
    dl:DataLoader, # Of videos
)->SampleClips|None: # `None` if it makes no clips
    "The transform that makes the loader's clips"
    return next((f for f in dl.after_item.fs if isinstance(f, SampleClips)), None)


def method_loader(
    method:Callback, # A `Pretext`; makes clips, labels and the augmentation of batches
    dl:DataLoader, # Of videos; stays as it is
)->DataLoader:
    "Copy `dl`, with the clips and labels of `method`. Raises `InputError` for a loader without `SampleClips`"
    base = sample_clips(dl)
    if base is None:
        raise InputError(f'{type(method).__name__} makes its clips in place of SampleClips, which this loader does not '
                         'have; build it with Task.dls, video_dls or a VideoBlock')
    items = Pipeline([PretextClips(method, base), *(f for f in dl.after_item.fs if f is not base)])
    batches = [*method.batch_tfms]
    for f in dl.after_batch.fs:
        # augmentation needs floats in [0, 1], between the two steps of `NormalizeClips`
        if method.batch_tfms and isinstance(f, NormalizeClips): batches += f.parts
        else: batches.append(f)
    # otherwise `new` would decode a video to find these out
    if not hasattr(dl, '_n_inp'): dl._n_inp, dl._types = 1, tuple
    return dl.new(after_item=items, after_batch=Pipeline(batches))
