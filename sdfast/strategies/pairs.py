"What a student and its teacher returned, as features, maps or inputs of a head."
from typing import Any, NamedTuple

import torch
from torch import nn

from ..models.features import head_input, per_sample, to_feature, to_maps

__all__ = ['Pair']


class Pair(NamedTuple):
    "What a layer of the student and of the teacher returned in one call of the encoder"
    module: nn.Module  # the student's
    args: tuple  # what it was called with
    kwargs: dict
    student: Any  # what the student's returned
    teacher: Any  # what the teacher's returned
    layer: str  # its name, '' for the encoder
    what: str  # which module it is, for errors

    def features(self)->tuple[torch.Tensor, torch.Tensor]:
        "The student's feature and the teacher's, see `to_feature`"
        student, teacher = (to_feature(self.module, out, self.args, self.kwargs, self.what)
                            for out in (self.student, self.teacher))
        return student, teacher

    def maps(self)->list[tuple[torch.Tensor, torch.Tensor]]:
        "Maps or tokens `(B, C, ...)` of both, see `to_maps`"
        student, teacher = (to_maps(self.module, out, self.args, self.kwargs, self.what)
                            for out in (self.student, self.teacher))
        return list(zip(student, teacher, strict=True))

    def inputs(self, head:nn.Module)->list:
        "What to call a head with for the student and for the teacher, see `head_input`"
        return [head_input(head, out, f) for out, f in zip((self.student, self.teacher), self.features())]


def same_rows(
    pairs:list[tuple[torch.Tensor, torch.Tensor]], # Features of student and teacher, layer by layer
)->list[tuple[torch.Tensor, torch.Tensor]]: # With the same number of rows
    "Average the features of layers that see frames one by one over the frames, where other layers see whole clips"
    rows = {len(s) for s, _ in pairs}
    if len(rows) == 1: return pairs
    n = min(r for r in rows if r > 1)
    return [(per_sample(s, n, 'a layer'), per_sample(t, n, 'a layer')) for s, t in pairs]
