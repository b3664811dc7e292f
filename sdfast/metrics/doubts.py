"Warnings of measurements that are possible, but say little."
import warnings

import torch

from ..stats import above_chance
from .features import MIN_CKA_CLIPS
from .reading import ClipFeatures

__all__ = ['warn_of_chance']


def warn_of_few_clips(
    clips:ClipFeatures, # On which features are compared
)->None:
    "Warn if there are too few clips for CKA"
    if len(clips) >= MIN_CKA_CLIPS: return
    warnings.warn(f'CKA is left out: it needs at least {MIN_CKA_CLIPS} clips, and there are {len(clips)}')


def warn_of_wide_head(
    labels:torch.Tensor, # Class numbers of the train clips
    test:ClipFeatures, # Of a loader that does not name its classes, with logits
)->None:
    "Warn if labels are 0, 1, ... without gaps, and the head has more outputs"
    assert test.logits is not None
    width, n = test.logits.shape[1], len(labels.unique())
    if width == n or labels.max() + 1 > n: return
    warnings.warn(f'the head has {width} outputs, but labels are 0 to {n - 1} only: if the loaders number their '
                  'classes themselves, pass a head with these outputs, in this order')


def warn_of_chance(
    who:str, # What has the accuracy
    accuracy:float, # On `test`
    test:ClipFeatures, # With labels
    so:str, # What follows
)->None:
    "Warn if an accuracy is not above that of always answering the most frequent class, by the binomial test"
    if above_chance(accuracy, len(test), test.chance): return
    warnings.warn(f'{who} is at chance on the source ({100*accuracy:.1f} % of {len(test)} clips; always answering '
                  f'the most frequent class: {100*test.chance:.1f} %): {so}')
