"Replay: source clips in every training batch. It is an upper bound for the other strategies."
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from fastai.torch_core import get_random_states, set_random_states
from torch import nn

from ..data.batches import split_batch
from ..errors import InputError
from ..models.features import check_logits, head_input, to_feature
from ..models.surgery import frozen_copy
from ..runtime.resume import as_states
from .base import Penalty
from .second_pass import SecondPass
from .targets import check_kind, check_numbers, check_same, class_numbers, task_loss

__all__ = ['Replay']


def _cycle(dl):
    while True:
        batch = None
        for batch in dl: yield batch
        if batch is None:
            raise InputError('Replay: the loader of source clips has no batches (left): '
                             'pass one that can be iterated over repeatedly')


class Replay(Penalty):
    """`lam` times the loss of the frozen source head on a batch of source clips, one for each training batch.

    With `shared_head` it is the loss of the head that is being trained, whose first outputs are the source's classes.

    It is an upper bound, not a competitor: it needs the source data, unlike the other strategies. In train mode, the
    encoder's batch norm uses the source batch's statistics and leaves its running statistics unchanged. Loader and
    dropout draw from a separate random state.

    The loss is cross-entropy for labels that are class numbers or class probabilities, else `loss_func`. Raises
    `InputError` for a loader without batches, and for labels that do not fit the head."""
    kinds = ('classes', 'soft')
    order = 5.5  # after the other penalties, which have then read their hooks' records
    source: Any = None  # a loader
    source_head: nn.Module|None = None
    _batches: Iterator|None = None  # endless iterator over `source`, during a fit
    _random: dict|None = None  # the random state of loader and dropout
    _read = 0  # number of batches that this fit has read
    _order: tuple|None = None  # the state of the loader's generator before the first batch
    _again: SecondPass|None = None
    _stateattrs = Penalty._stateattrs + ('source', 'source_head', '_batches', '_random', '_order', '_again')
    _state = ('_random', '_read', '_order')
    _argument_attrs = Penalty._argument_attrs | dict(dl='source', head='source_head')

    def __init__(self,
        lam:float, # Weight of the source task's loss
        dl:Iterable, # Loader of source clips and labels `(x, y)`
        head:nn.Module|None, # From features to the logits of the source task; a frozen copy is used
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
        loss_func:Callable|None=None, # The source task's loss `(logits, labels)`; `None`: cross-entropy
        shared_head:bool=False, # Use the second part of the model that is trained, `Sequential(encoder, head)`, as head
    ):
        super().__init__(lam, encoder)
        self.shared_head = shared_head
        if dl is None:
            raise InputError('Replay needs clips of the source task: pass a loader of its (x, y), not None; '
                             'without them take a strategy that does not see the source')
        if not isinstance(head, nn.Module) and not shared_head:
            raise InputError('Replay needs the head of the source task, a module from features to logits, '
                             f'not {type(head).__name__}; for an encoder without one fit a probe: '
                             'probe_head(features, labels, n_classes)')
        self.source, self.loss_func = dl, loss_func
        self.source_head = None if head is None or shared_head else frozen_copy(head)

    def begin(self)->None:
        if self.source is None:
            raise ValueError('Replay lacks its source clips: an exported learner does not carry them; '
                             'pass a new Replay(lam, dl, head)')
        self.warn_if_frozen()
        if not self.shared_head: self.source_head.to(next(self.module().parameters()).device)
        elif not isinstance(self.loop.model, nn.Sequential) or len(self.loop.model) != 2:
            raise InputError(f'Replay with shared_head needs a Sequential(encoder, head), not a '
                             f'{type(self.loop.model).__name__}; pass the head of the source instead')
        self._again = SecondPass(self.module(), self.loop.model)
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
        assert self._batches is not None and self._again is not None  # see `begin`
        model: Any = self.loop.model
        head: Any = model[1] if self.shared_head else self.source_head
        device = next(self.module().parameters()).device
        with self._own_random():
            x, y = self._next_batch()
            self._read += 1
            x = x.to(device, copy=True)  # an encoder may change its input in place, and a loader yield it again
            # call `forward` directly, as hooks of other callbacks must record the target's features only
            try: out = self._again(lambda encoder: encoder.forward(x))
            except ValueError as e:
                if len(x) > 1 or isinstance(e, InputError): raise
                raise InputError(f'Replay: batch norm cannot use a batch of one source clip ({e}): pass a loader with '
                                 'drop_last=True') from None
        logits = head(head_input(head, out, to_feature(self.module(), out, (x,))))
        check_logits(logits, 'Replay')
        return self._loss_of(logits.float(), y)

    def _next_batch(self):
        batch = next(self._batches)
        if isinstance(batch, Mapping): batch = split_batch(batch, who='the loader of source clips')
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(map(torch.is_tensor, batch)):
            return [t.as_subclass(torch.Tensor) for t in batch]
        raise InputError('Replay needs a loader of source clips and labels, which yields (x, y) of two tensors; this '
                         f'one yielded {type(batch).__name__}')

    def _loss_of(self, logits, y):
        if self.loss_func is not None: return self.loss_func(logits, y.to(logits.device))
        advice = "pass Replay(..., loss_func=LOSS), the source task's loss"
        if self._kind is None:
            self._kind = check_kind('Replay', self.kinds, logits, y, advice=advice, instead=advice)
            self._check_vocabulary(logits.shape[1])
        check_same('Replay', self._kind, y, advice)
        if self._kind == 'classes': check_numbers('Replay', class_numbers(y), logits.shape[1])
        return task_loss(logits, y.to(logits.device), self._kind)

    def _check_vocabulary(self, outputs):
        classes = getattr(self.source, 'c', None)
        if not isinstance(classes, int) or classes == outputs or self.shared_head and classes < outputs: return
        raise InputError(f'Replay: the head has {outputs} outputs, the loader of source clips {classes} classes, so '
                         "that its labels may mean others than the head's: pass a loader with the head's vocabulary")

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
