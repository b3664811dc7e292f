"Source clips beside the target's: what the other strategies are measured against, as an upper bound."
import random
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import get_random_states, set_random_states
from torch import nn

from ..errors import InputError
from .penalty import Lasting, Penalty, frozen_copy, keep_buffers

__all__ = ['Replay']


class Replay(Lasting, Penalty):
    """`lam` times the cross-entropy of the source task on one batch of source clips per training batch, by its frozen head.

    An upper bound, not a competitor: it needs the source data, which the other strategies do without. The source batch is
    normalised with its own statistics where the encoder is in train mode, and leaves the running ones alone; loader and dropout
    draw from a random state of their own. Raises `InputError` for a loader without batches."""
    order = 5.5  # behind the other penalties, which have by then read what their hooks saw
    source, source_head, _batches, _random, _place, _past = None, None, None, None, None, None
    _stateattrs = Penalty._stateattrs + ('source', 'source_head', '_batches', '_random', '_place', '_past')

    def __init__(self,
        lam:float, # Weight of the source task
        dl, # Loader of source clips and labels `(x, y)`
        head:nn.Module, # From features to the logits of the source task; a frozen copy is used
        encoder=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if dl is None: raise InputError('Replay needs clips of the source task: pass a loader of its (x, y), not None; without them take a strategy that does not see the source')
        if not isinstance(head, nn.Module):
            raise InputError(f'Replay needs the head of the source task, a module from features to logits, not {type(head).__name__}; for an encoder without one '
                             'fit a probe: sdfast.forgetting.probe_head(features, labels, n_classes)')
        self.source, self.source_head = dl, frozen_copy(head)

    def begin(self):
        if self.source is None:
            raise ValueError('Replay has lost its source clips: an exported learner does not carry them; pass a new Replay(lam, dl, head)')
        self.source_head.to(next(self.module().parameters()).device)
        if self._batches is None:
            self._batches = self._cycle()
            if self._past is not None: self._wind()

    def _cycle(self):
        while True:
            batch, rng = None, vars(self.source).get('rng') if hasattr(self.source, '__dict__') else None  # fastai's loaders shuffle by one of their own
            self._place = dict(read=0, random=get_random_states(), rng=rng and rng.getstate())
            for batch in self.source:
                self._place['read'] += 1
                yield batch
            if batch is None: raise InputError('Replay: the loader of source clips has no batches (left): pass one that can be read again and again')

    def _wind(self):
        "To the batch that comes next according to `remember`"
        place, random_state = self._past['place'], self._past['random']
        self._past, self._random = None, place['random']
        if place['rng'] is not None: self.source.rng.setstate(place['rng'])
        with self._own_random():
            for _ in range(place['read']): next(self._batches)
        self._random = random_state

    def memory(self): return dict(place=dict(self._place), random=self._random) if self._place is not None else {}
    def remember(self, memory): self._past, self._batches = memory, None

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

    def term(self):
        encoder = self.module()
        device = next(encoder.parameters()).device
        with self._own_random(), keep_buffers(encoder):
            x, y = (t.as_subclass(torch.Tensor).to(device) for t in next(self._batches))
            logits = self.source_head(encoder.forward(x))  # not a call: the hooks of other callbacks wait for the target's features
        return F.cross_entropy(logits.float(), y)

    def after_fit(self):
        super().after_fit()
        if not self.learn.lock.locked(): self._batches = None  # ends the workers of its loader
