"Forgetting events: how often each clip goes from right to wrong while a model is trained."
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import torch
from fastai.torch_core import get_model
from torch import nn

from ..errors import InputError
from ..models.calls import call_on
from ..models.surgery import frozen_copy
from ..runtime.arguments import ShowArguments
from ..runtime.resume import Resumable
from ..strategies.clip_numbers import ClipNumbers, gathered
from ..strategies.columns import Columns
from ..strategies.driver import Driver
from ..strategies.targets import check_kind, class_numbers, logits_of
from .loaders import FixedLoaders
from .reading import preserve_rng

__all__ = ['EventCounts', 'ForgettingEvents']

NEVER, BEFORE = -2, -1  # times at which a clip was first right: not yet, and before training


class EventCounts:
    "How often each of some clips was seen, was right, and went from right to wrong"
    def __init__(self):
        self.seen, self.right, self.forgotten = (torch.zeros(0, dtype=torch.long) for _ in range(3))
        self.learned = torch.zeros(0, dtype=torch.long)  # the first epoch in which a clip was right
        self.last = torch.zeros(0, dtype=torch.bool)  # whether it was right when it was last seen

    def add(self,
        numbers:torch.Tensor, # Of the clips, in the order in which they were seen; a clip may be seen again
        right:torch.Tensor, # Whether each was right
        epoch:int, # When
    )->int: # Number of forgetting events
        "Count answers"
        self._grow(int(numbers.max()) + 1 if len(numbers) else 0)
        seen, rights, forgotten, learned, last = (v.numpy() for v in self.state_dict().values())  # share their memory
        before = int(forgotten.sum())
        for n, is_right in zip(numbers.tolist(), right.tolist()):
            if last[n] and not is_right: forgotten[n] += 1
            if is_right and learned[n] == NEVER: learned[n] = epoch
            seen[n] += 1
            rights[n] += is_right
            last[n] = is_right
        return int(forgotten.sum()) - before

    def _grow(self, n):
        more = n - len(self.seen)
        if more <= 0: return
        for name, value in self.state_dict().items():
            added = value.new_full((more,), NEVER if name == 'learned' else 0)
            setattr(self, name, torch.cat([value, added]))

    def table(self)->pd.DataFrame: # Indexed by the number of a clip
        "A row for each clip that was seen: `seen`, `right`, `forgotten`, `learned` (nan: never)"
        columns = {name:self.state_dict()[name].numpy() for name in ('seen', 'right', 'forgotten', 'learned')}
        table = pd.DataFrame(columns).rename_axis('clip')
        table['learned'] = table.learned.where(table.learned != NEVER)
        return table[table.seen > 0]

    def state_dict(self)->dict[str, torch.Tensor]:
        return {name:getattr(self, name) for name in ('seen', 'right', 'forgotten', 'learned', 'last')}

    def load_state_dict(self, state:dict)->None:
        for name, value in state.items(): setattr(self, name, value.cpu())


class ForgettingEvents(ShowArguments, Resumable, Columns, Driver):
    """Count for each clip how often it goes from right to wrong while a model is trained (Toneva et al., ICLR 2019).

    Without `dl` it counts training clips, each when it is trained on, by what the model answers before that step; this
    takes no other pass. It must know which clips a batch has: a `Learner` with fastai's loaders does, other loops say
    so, see `ClipNumbers`. With `dl` it counts the clips of a loader, before training and after each epoch: with `head`
    by the old head on the encoder, which are the clips of the source that are forgotten and remembered, else by the
    model itself. It changes nothing in training.

    `table()` has `seen`, `right`, `forgotten` and `learned` of each clip. Those with `forgotten` 0 and `right` above 0
    are unforgettable; those with `right` 0 were never learned. The recorder's column `forgotten` is the epoch's number
    of events. It works in every loop that strategies work in; in one of your own, without `dl`, add `loss(targets,
    numbers)`, which is 0, to the loss."""
    order, run_valid = 8, False
    counts: EventCounts|None = None  # of the last fit
    loaders: Any = None
    old_head: nn.Module|None = None
    _numbers: ClipNumbers|None = None
    _seen: Any = ()  # numbers of clips and whether they were right, of the batches of this epoch
    _events = float('nan')  # in the last epoch
    _continued = False  # whether a state was loaded, which `attach` must not drop
    _stateattrs = Driver._stateattrs + ('counts', 'loaders', 'old_head', '_numbers', '_seen', '_columns')
    _argument_attrs = dict(dl='loaders', head='old_head', encoder='protected')

    def __init__(self,
        dl:Iterable|None=None, # Clips with labels, in a fixed order; `None`: the clips that are trained on
        head:nn.Module|None=None, # With `dl`: maps the encoder's features to logits; `None`: the model's own answers
        encoder:str|Callable|None=None, # With `head`: which part of the model, see `find_encoder`
        split:Callable|None=None, # With `dl`: function of a batch that returns `(clips, labels)`; see `split_batch`
    ):
        if head is not None and dl is None: raise InputError('ForgettingEvents with a head needs dl, clips of its task')
        self.trained, self.protected = dl is None, encoder
        self.loaders = None if dl is None else FixedLoaders(dict(dl=dl), split=split)
        self.old_head = None if head is None else frozen_copy(head)

    def table(self)->pd.DataFrame: # A row for each clip, by its number in the training data or in `dl`
        "The counts of the last fit"
        return (self.counts or EventCounts()).table()

    # ---- a fit

    def before_fit(self):
        if self.learn.lock.locked() or self.loop.trial: return  # `validate`, `get_preds`, `lr_find`
        self._start()
        self.show(self.columns())

    def attached(self)->None:
        if not self._continued: self._start()
        self._continued = False

    def detached(self)->None: self.leave()

    def columns(self)->dict[str, Callable]: return {f'forgotten{self.mark()}':lambda: self._events}

    def _start(self):
        if not self.trained and self.loaders is None:
            raise InputError('ForgettingEvents lacks its loader: an exported learner does not carry it; pass a new '
                             'ForgettingEvents(dl)')
        self.counts, self._seen, self._events = EventCounts(), [], float('nan')
        self._numbers = ClipNumbers('ForgettingEvents()') if self.trained else None
        if not self.trained: self.counts.add(*self._measured(), BEFORE)

    def before_train(self): self._seen = []

    def after_loss(self): self._see()

    def loss(self,
        targets:torch.Tensor|None=None, # The batch's targets
        numbers:torch.Tensor|None=None, # Those of its clips in the training data
    )->torch.Tensor: # 0
        "Count the batch that the model has just seen, in a loop of your own; to be added to the loss, see `attach`"
        loop = self._attached_loop('loss')
        loop.targets, loop.numbers = targets, numbers
        try: self._see()
        finally: loop.end_batch()
        return torch.zeros((), device=next(loop.model.parameters()).device)

    def _see(self):
        if self._numbers is None: return
        loop = self.loop
        check_kind('ForgettingEvents()', ('classes',), loop.outputs, loop.targets, loop.criterion,
                   instead='pass dl, clips with class numbers')
        numbers = self._numbers(loop)
        right = logits_of(loop.outputs).detach().argmax(1) == class_numbers(loop.targets)
        self._seen.append((numbers, right.cpu()))

    def after_train(self):
        if self.counts is None or self.loop.trial: return
        if not self.trained: self._events = self.counts.add(*self._measured(), self.loop.epoch)
        elif self._seen:
            seen = gathered(*(torch.cat(part) for part in zip(*self._seen)))
            self._seen, self._events = [], self.counts.add(*seen, self.loop.epoch)

    def _measured(self):
        "The numbers of the clips of the loader, and whether each is right"
        with preserve_rng():
            copy = frozen_copy(get_model(self.loop.model) if self.old_head is None else self.module())
            if self.old_head is not None:
                reading = self.loaders.read(copy, 'dl', self.old_head)
                answers = reading.logits.argmax(1)
            else:
                reading = self.loaders.read(_Logits(copy), 'dl')
                answers = reading.x.argmax(1)
        return torch.arange(len(reading)), answers == reading.y

    # ---- state

    def state_dict(self)->dict:
        return dict(counts=(self.counts or EventCounts()).state_dict(), events=self._events)

    def load_state_dict(self, state:dict)->None:
        self.counts, self._events, self._continued = EventCounts(), state['events'], True
        self.counts.load_state_dict(state['counts'])
        if self.trained: self._numbers = ClipNumbers('ForgettingEvents()')

    def epoch_state(self)->dict: return super().epoch_state() | dict(seen=list(self._seen))

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        self._seen = [(numbers.cpu(), right.cpu()) for numbers, right in state['seen']]

    def leave(self)->None:
        self._continued = False
        super().leave()


class _Logits(nn.Module):
    "A model that returns its logits alone"
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x): return logits_of(call_on(self.model, x), 'ForgettingEvents')
