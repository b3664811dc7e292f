"""The transforms of a loader of clips: those of images are applied to clips, those without effect are refused.

fastai skips a transform without a word if it does not take what it gets. In a loader of videos that would be so for
all transforms of pictures: an item transform meets the path of a video, and a batch transform five axes."""
import copy
from collections.abc import Sequence
from typing import Any, get_args

from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.torch_core import TensorImage, TensorMask
from fastai.vision.augment import (
    AffineCoordTfm,
    CropPad,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
    SpaceTfm,
)
from fastai.vision.core import PILImage, TensorBBox, TensorPoint
from fasttransform import ItemTransform, Pipeline, Transform, mk_transform
from torch import Tensor, nn

from ..errors import InputError
from .clips import SampleClips, TensorVideo
from .images import ClipTransform, FrameTransform, NormalizeClips
from .video import VideoFile

__all__ = ['clip_item_tfms', 'clip_batch_tfms']

OF_BATCHES = AffineCoordTfm, RandomErasing, RandomResizedCropGPU, SpaceTfm  # of fastai's transforms of images
RESIZING = CropPad, RandomCrop, RandomResizedCrop, RatioResize, Resize
OURS = ClipTransform, FrameTransform, SampleClips, ItemTransform, ToTensor
MOVED_ALONG = TensorBBox, TensorMask, TensorPoint  # labels that change with the picture
CHANNELS, ALL_BUT_CHANNELS = (0, 2, 3), (0, 1, 3, 4)  # axes of batches of images and of clips


def clip_item_tfms(
    tfms:Sequence|Pipeline|Transform|None, # Item transforms of a loader
    labels:tuple[type, ...]|None, # Types of an item's other parts; `None` if it has none
)->list: # Transforms; the same objects where nothing had to change
    """Item transforms that act on clips: those of images on all frames of the clips that `SampleClips` has cut out.

    Raises `InputError` for one that changes neither clips nor labels."""
    found = _as_transforms(tfms)
    clips = next((f for f in found if isinstance(f, SampleClips)), None)
    if clips is None: return found
    if clips.size_is_default and any(isinstance(f, RESIZING) for f in found):
        whole = copy.copy(clips)
        whole.size, whole.size_is_default = None, False
        found, clips = [whole if f is clips else f for f in found], whole
    return [_item_tfm(f, clips, labels) for f in found]


def _item_tfm(f, clips, labels):
    if isinstance(f, OURS) or _takes(f, object) or _takes(f, VideoFile): return f
    if isinstance(f, OF_BATCHES):
        raise InputError(f'{type(f).__name__} works on batches: pass it in batch_tfms (tfms= of Task.dls), not among '
                         'the transforms of items')
    of_images, of_clips = _takes(f, PILImage) or _takes(f, TensorImage), _takes_clips(f)
    if of_images and not of_clips:
        _check_labels(f, labels)
        return FrameTransform(f, as_pil=_takes(f, PILImage), cropped=clips.size)
    if not of_clips: _check_effect(f, labels)
    if not of_clips or f.order > clips.order: return f
    later = copy.copy(f)
    later.order = clips.order + 2
    return later


def clip_batch_tfms(
    tfms:Sequence|Pipeline|Transform|None, # Batch transforms of a loader
    labels:tuple[type, ...]|None, # Types of an item's other parts; `None` if it has none
)->list: # Transforms; the same objects where nothing had to change
    """Batch transforms that act on clips: those of images with one draw for all frames of a clip.

    `NormalizeClips`, which takes bytes, becomes two steps if transforms between them need floats in [0, 1]. Raises
    `InputError` for a transform that changes neither clips nor labels, and for normalisation twice."""
    found = [_batch_tfm(f, labels) for f in _as_transforms(tfms)]
    normalising = [type(f).__name__ for f in found if isinstance(f, Normalize)]
    if len(normalising) > 1:
        raise InputError(f'clips would be normalised twice, by {" and ".join(normalising)}: leave out one of them, for '
                         'instance stats= of VideoBlock')
    bounds = IntToFloatTensor.order, Normalize.order
    if not any(bounds[0] < f.order < bounds[1] for f in found): return found
    return [part for f in found for part in (f.parts if isinstance(f, NormalizeClips) else [f])]


def _batch_tfm(f, labels):
    if isinstance(f, Normalize) and f.mean is None and tuple(f.axes) == CHANNELS:
        return type(f)(axes=ALL_BUT_CHANNELS)  # so that `setup` measures each channel, not each frame
    if isinstance(f, (*OURS, IntToFloatTensor, Normalize)) or _takes(f, object) or _takes_clips(f): return f
    if _takes(f, TensorImage):
        _check_labels(f, labels)
        return ClipTransform([f], order=f.order)
    if _takes(f, PILImage):
        raise InputError(f'{type(f).__name__} works on single videos: pass it in item_tfms, not among the transforms '
                         'of batches')
    _check_effect(f, labels)
    return f


# ---- what a transform takes

def _as_transforms(tfms):
    listed = list(tfms.fs) if isinstance(tfms, Pipeline) else list(tfms) if isinstance(tfms, Sequence) else [tfms]
    modules = [f for f in listed if isinstance(f, nn.Module)]
    if modules:
        raise InputError(f'{type(modules[0]).__name__} is a module, which would also change labels, and held-out clips '
                         'as those for training: call it in encodes(self, x:TensorVideo) of a Transform with '
                         'split_idx = 0')
    return [mk_transform(f) for f in listed if f is not None]


def _hints(f):
    "The types that the methods of a transform's `encodes` take"
    own = vars(f).get('encodes')
    function = getattr(type(f), 'encodes', None) if own is None else own
    if function is None: return []
    if not hasattr(function, 'methods'): return [Any]
    i = 1 if own is None else 0  # a method of the class takes `self` first
    types = [tuple(m.signature.types) for m in function.methods]
    return [t[i] if i < len(t) else Any for t in types]


def _takes(f, kind):
    "Whether a transform changes things of a type; `object` stands for things of any type"
    return any(_includes(hint, kind) for hint in _hints(f))


def _includes(hint, kind):
    if hint is Any: return True
    if isinstance(hint, tuple): return any(_includes(h, kind) for h in hint)
    if isinstance(hint, type): return issubclass(kind, hint)
    return any(_includes(h, kind) for h in get_args(hint))


def _takes_clips(f):
    "Whether a transform was written for clips, or for tensors in general, and not for images"
    return any(_includes(h, TensorVideo) and (_includes(h, Tensor) or not _includes(h, TensorImage)) for h in _hints(f))


# ---- errors

def _check_labels(f, labels):
    moved = [kind.__name__ for kind in labels or () if issubclass(kind, MOVED_ALONG)]
    if moved:
        raise InputError(f'{type(f).__name__} would change clips and not their labels ({moved[0]}): only labels of '
                         'whole clips are supported, such as classes')


def _check_effect(f, labels):
    hints = _hints(f)
    if not hints or labels is None or any(_takes(f, kind) for kind in labels): return
    takes = ', '.join(dict.fromkeys(getattr(h, '__name__', str(h)) for h in hints))
    raise InputError(f'{type(f).__name__} would change neither clips nor labels: it takes {takes}; write it with '
                     'encodes(self, x:TensorVideo)')
