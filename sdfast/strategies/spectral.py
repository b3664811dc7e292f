"Batch spectral shrinkage (BSS): a penalty on the smallest singular values of a batch's features."
from collections.abc import Callable
from typing import Any

import torch

from ..errors import InputError
from .base import FeaturePenalty

__all__ = ['bss', 'BSS']


def bss(
    features:torch.Tensor, # `(B, F)`; maps `(B, F, ...)` are averaged over the trailing dimensions
    k:int=1, # Number of singular values
)->torch.Tensor: # Scalar, float32
    """Sum of the squares of the `k` smallest singular values of the batch's feature matrix (Chen et al., NeurIPS 2019).

    The matrix has min(B, F) singular values, so B of them if there are fewer samples than features."""
    if features.ndim < 2:
        raise InputError(f'features must be (B, F) or maps (B, F, ...), not of shape {tuple(features.shape)}')
    f = features.float()
    if f.ndim > 2: f = f.flatten(2).mean(2)
    # LAPACK raises an error for infinities and nan; the task loss is not finite then either, and is checked elsewhere
    f = f.nan_to_num(0., 0., 0.)
    return torch.linalg.svdvals(f)[-k:].square().sum()


class BSS(FeaturePenalty):
    """`lam` times `bss` of the encoder's features: shrinks the weakest directions, which transfer badly (Chen et al.,
    NeurIPS 2019).

    It is a property of the batch, not a mean over samples: it changes with the batch size, and each micro-batch of
    `GradientAccumulation` is a batch. The original has lam=.001 and k=1 for batches of 48 images and 2048 features."""
    name, first_lam = 'bss', .01

    def __init__(self,
        lam:float, # Weight of the term
        k:int=1, # Number of singular values
        encoder:str|Callable|None=None, # Which part of the model gives the features, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if not isinstance(k, int) or k < 1:
            raise InputError(f'k must be a whole number of singular values, at least 1, not {k!r}')
        self.k = k

    def term(self)->torch.Tensor:
        features = self.features()
        total: Any = sum(bss(f, self.k) for f in features)
        return total/len(features)
