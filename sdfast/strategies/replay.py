"Replay: source clips in every training batch. It is an upper bound for the other strategies."
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.torch_core import get_model, get_random_states, set_random_states
from torch import nn

from ..errors import InputError
from ..models.surgery import frozen_copy, keep_buffers
from ..runtime.resume import as_states
from .base import Penalty
from .hooks import unrecorded

__all__ = ['Replay']


def _cycle(dl):
    while True:
        batch = None
        for batch in dl: yield batch
        if batch is None:
            raise InputError('Replay: the loader of source clips has no batches (left): '
                             'pass one that can be iterated over repeatedly')


class Replay(Penalty):
    """`lam` times the cross-entropy of the frozen source head on a batch of source clips, one for each training batch.

    It is an upper bound, not a competitor: it needs the source data, unlike the other strategies. In train mode, the
    encoder's batch norm uses the source batch's statistics and leaves its running statistics unchanged. Loader and
    dropout draw from a separate random state. Raises `InputError` for a loader without batches."""
    order = 5.5  # after the other penalties, which have then read their hooks' records
    source: Any = None  # a loader
    source_head: nn.Module|None = None
    _batches: Iterator|None = None  # endless iterator over `source`, during a fit
    _random: dict|None = None  # the random state of loader and dropout
    _read = 0  # number of batches that this fit has read
    _order: tuple|None = None  # the state of the loader's generator before the first batch
    _stateattrs = Penalty._stateattrs + ('source', 'source_head', '_batches', '_random', '_order')
    _state = ('_random', '_read', '_order')
    _argument_attrs = Penalty._argument_attrs | dict(dl='source', head='source_head')

    def __init__(self,
        lam:float, # Weight of the source task's loss
        dl:Iterable, # Loader of source clips and labels `(x, y)`
        head:nn.Module, # From features to the logits of the source task; a frozen copy is used
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(lam, encoder)
        if dl is None:
            raise InputError('Replay needs clips of the source task: pass a loader of its (x, y), not None; '
                             'without them take a strategy that does not see the source')
        if not isinstance(head, nn.Module):
            raise InputError('Replay needs the head of the source task, a module from features to logits, '
                             f'not {type(head).__name__}; for an encoder without one fit a probe: '
                             'probe_head(features, labels, n_classes)')
        self.source, self.source_head = dl, frozen_copy(head)

    def begin(self)->None:
        if self.source is None:
            raise ValueError('Replay lacks its source clips: an exported learner does not carry them; '
                             'pass a new Replay(lam, dl, head)')
        self.source_head.to(next(self.module().parameters()).device)
        if self._batches is None: self._open()

    def _open(self):
        "Start reading the source; a resumed fit reads it in the same order and from the same batch"
        rng = getattr(self.source, 'rng', None)
        if self._order is not None: rng.setstate(self._order)
        elif rng is not None: self._order = rng.getstate()
        self._batches = _cycle(self.source)
        if not self._read: return
        shuffled = getattr(self.source, 'shuffle', True)
        skip = self._read if shuffled else self._read % len(self.source)
        known = self._random
        with self._own_random(): deque(islice(self._batches, skip), maxlen=0)
        self._random = known

    @contextmanager
    def _own_random(self):
        """Use a separate random state for torch, numpy and Python, which continues from its last use; the state outside
        does not change"""
        outside = get_random_states()
        try:
            if self._random is None: _seed_all(torch.randint(2**32, ()).item())
            else: set_random_states(**self._random)
            yield
            self._random = get_random_states()
        finally: set_random_states(**outside)

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        if self._random is not None: self._random = as_states(self._random)

    def term(self)->torch.Tensor:
        assert self._batches is not None and self.source_head is not None  # set in `begin`
        encoder = self.module()
        device = next(encoder.parameters()).device
        with self._own_random(), keep_buffers(encoder), unrecorded(get_model(self.loop.model)):
            x, y = (t.as_subclass(torch.Tensor).to(device) for t in next(self._batches))
            self._read += 1
            # call `forward` directly, as hooks of other callbacks must record the target's features only
            logits = self.source_head(encoder.forward(x))
        return F.cross_entropy(logits.float(), y)

    def after_fit(self):
        super().after_fit()
        if not self.learn.lock.locked(): self._close()

    def detached(self)->None:
        self._close()
        super().detached()

    def _close(self):
        self._batches = None  # so that the loader's workers end
        self._read, self._order = 0, None


def _seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
