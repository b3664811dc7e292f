"The model during a fit of pre-training, the callback that restores the user's model after it, and its batch norm."
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.callback.core import Callback
from torch import nn

from ..models.statistics import keep_buffers, statistics_layers

__all__ = ['PretextNet']


class PretextNet(nn.Module):
    "Encoder and heads as one model during a fit, so that optimizer, DDP, precision and checkpoints treat them alike"

    def __init__(self,
        encoder:nn.Module, # To be pre-trained
        heads:nn.Module, # Added by the method
        method:Callback, # A `Pretext`, which provides the net's `forward`
    ):
        super().__init__()
        self.encoder, self.heads = encoder, heads
        self._method = weakref.ref(method)  # copies of the net share the method

    def forward(self, *x)->torch.Tensor|tuple: return self._method().forward(self.encoder, self.heads, *x)


class Leave(Callback):
    "Restores the user's model after all other callbacks have ended the fit"
    order = 1000
    def __init__(self, method): self.method = method
    def after_fit(self): self.method.finish()


@contextmanager
def batch_statistics(encoder:nn.Module)->Iterator[None]:
    "Normalise with the statistics of the batch, without changing running statistics"
    norms = statistics_layers(encoder)
    modes = [m.training for m in norms]
    for m in norms: m.training = True
    try:
        with keep_buffers(encoder): yield
    finally:
        for m, training in zip(norms, modes): m.training = training
