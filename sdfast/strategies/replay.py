"Source clips beside the target's: what the other strategies are measured against, as an upper bound."
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import get_random_states, set_random_states
from torch import nn

from ..errors import InputError
from ..models.surgery import frozen_copy, keep_buffers
from ..runtime.resume import as_states
from .base import Penalty

__all__ = ['Replay']



def _cycle(dl):
    while True:
        batch = None
        for batch in dl: yield batch
        if batch is None: raise InputError('Replay: the loader of source clips has no batches (left): pass one that can be read again and again')


class Replay(Penalty):
    """`lam` times the cross-entropy of the source task on one batch of source clips per training batch, by its frozen head.

    An upper bound, not a competitor: it needs the source data, which the other strategies do without. The source batch is
    normalised with its own statistics where the encoder is in train mode, and leaves the running ones alone; loader and dropout
    draw from a random state of their own. Raises `InputError` for a loader without batches."""
    order = 5.5  # behind the other penalties, which have by then read what their hooks saw
    source, source_head, _batches, _random, _read, _order = None, None, None, None, 0, None
    _stateattrs, _state = Penalty._stateattrs + ('source', 'source_head', '_batches', '_random', '_order'), ('_random', '_read', '_order')

    def __init__(self,
        lam:float, # Weight of the source task
        dl:Iterable, # Loader of source clips and labels `(x, y)`
        head:nn.Module, # From features to the logits of the source task; a frozen copy is used
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if dl is None: raise InputError('Replay needs clips of the source task: pass a loader of its (x, y), not None; without them take a strategy that does not see the source')
        if not isinstance(head, nn.Module):
            raise InputError(f'Replay needs the head of the source task, a module from features to logits, not {type(head).__name__}; for an encoder without one '
                             'fit a probe: sdfast.forgetting.probe_head(features, labels, n_classes)')
        self.source, self.source_head = dl, frozen_copy(head)

    def begin(self)->None:
        if self.source is None:
            raise ValueError('Replay has lost its source clips: an exported learner does not carry them; pass a new Replay(lam, dl, head)')
        self.source_head.to(next(self.module().parameters()).device)
        if self._batches is not None: return
        # a resumed fit reads the source up to where it was, in the order in which it was read
        shuffled, rng = getattr(self.source, 'shuffle', True), getattr(self.source, 'rng', None)
        if self._order is not None: rng.setstate(self._order)
        elif rng is not None: self._order = rng.getstate()
        self._batches, known = _cycle(self.source), self._random
        if self._read:
            with self._own_random(): deque(islice(self._batches, self._read if shuffled else self._read % len(self.source)), maxlen=0)
            self._random = known

    @contextmanager
    def _own_random(self):
        "The generators of torch, numpy and Python go on from where they were when this was last left, and outside as if nothing had been drawn"
        outside = get_random_states()
        try:
            if self._random is None:
                seed = torch.randint(2**32, ()).item()
                random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            else: set_random_states(**self._random)
            yield
            self._random = get_random_states()
        finally: set_random_states(**outside)

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        if self._random is not None: self._random = as_states(self._random)

    def term(self)->torch.Tensor:
        encoder = self.module()
        device = next(encoder.parameters()).device
        with self._own_random(), keep_buffers(encoder):
            x, y = (t.as_subclass(torch.Tensor).to(device) for t in next(self._batches))
            self._read += 1
            logits = self.source_head(encoder.forward(x))  # not a call: the hooks of other callbacks wait for the target's features
        return F.cross_entropy(logits.float(), y)

    def after_fit(self):
        super().after_fit()
        if not self.learn.lock.locked(): self._batches, self._read, self._order = None, 0, None  # ends the workers of its loader
