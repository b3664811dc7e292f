"What a model answered to each training clip, from one epoch to the next."
from typing import Any

import torch

from ..errors import InputError
from .clip_numbers import ClipNumbers, gathered
from .loop import Loop

__all__ = ['StoredAnswers']


class StoredAnswers:
    """The class probabilities of each training clip, as they were when it was last trained on.

    Those of an epoch count from the next one on. In distributed training all processes have those of all clips."""
    def __init__(self,
        who:str, # Whose they are, for messages
    ):
        self.who, self.numbers = who, ClipNumbers(who)
        self.table: torch.Tensor|None = None  # (clips, classes), nan for clips that have not been seen
        self._new: list[tuple] = []  # numbers and probabilities of this epoch's batches

    def begin(self,
        epoch:int, # Its number
    )->None:
        "Begin an epoch; the first one of a fit forgets all answers"
        if not epoch: self.table, self._new = None, []
        elif self.table is None:
            raise InputError(f'{self.who}: a fit that starts at epoch {epoch} lacks the answers of the epochs before: '
                             'start at epoch 0, or take stored=False')

    def add(self,
        loop:Loop, # In a batch
        probs:torch.Tensor, # `(B, classes)`
    )->torch.Tensor: # The numbers of the batch's clips
        "Store a batch's answers for the next epoch"
        numbers = self.numbers(loop)
        self._new.append((numbers, probs.detach().float().cpu()))
        return numbers

    def of(self,
        numbers:torch.Tensor, # Of the batch's clips
        otherwise:torch.Tensor, # Probabilities `(B, classes)` of clips that have none
    )->torch.Tensor: # Like `otherwise`
        "The answers of an earlier epoch"
        n = 0 if self.table is None else len(self.table)
        known = numbers < n
        if self.table is None or not known.any(): return otherwise
        found = torch.full_like(otherwise, torch.nan)
        found[known.to(found.device)] = self.table[numbers[known]].to(found)
        return torch.where(found.isnan(), otherwise, found)

    def end_epoch(self)->None:
        "Let the answers of this epoch count"
        if not self._new: return
        numbers, probs = gathered(*(torch.cat(part) for part in zip(*self._new)))
        self._new = []
        n = int(numbers.max()) + 1
        if self.table is None: self.table = probs.new_full((n, probs.shape[1]), torch.nan)
        if n > len(self.table):
            more = self.table.new_full((n - len(self.table), self.table.shape[1]), torch.nan)
            self.table = torch.cat([self.table, more])
        self.table[numbers] = probs

    def state_dict(self)->dict[str, Any]:
        return dict(table=self.table, new=self._new)

    def load_state_dict(self, state:dict)->None:
        self.table = None if state['table'] is None else state['table'].cpu()
        self._new = [(numbers.cpu(), probs.cpu()) for numbers, probs in state['new']]
