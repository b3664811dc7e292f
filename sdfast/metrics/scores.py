"The result of `Retention`: what an encoder kept."
from dataclasses import dataclass, field

import torch

from .columns import MEASURES

__all__ = ['RetentionScores']

MEASURED = [c for c, m in MEASURES.items() if not m.target]  # what `Retention` can measure


@dataclass(frozen=True, repr=False)
class RetentionScores:
    """What an encoder kept. Each measure of `MEASURES` is also an attribute, such as `scores.source_acc`.

    An attribute is `None` if the measure was not requested or the data for it were not given. Raises `ValueError` for
    a value whose name is not in `MEASURES`."""
    values: dict = field(default_factory=dict)  # column of `MEASURES` -> value
    others: dict = field(default_factory=dict)  # other task -> probe accuracy
    layers: dict = field(default_factory=dict)  # layer -> cka_unbiased, procrustes, drift, weight_distance
    # numbers of clips, `source_clips`, `compared_clips`, `other_clips` and so on, and `source_chance`, the share of the
    # source's most frequent class
    about: dict = field(default_factory=dict, compare=False)
    # class probabilities of each source test video by the old head (N, classes)
    answers: torch.Tensor|None = field(default=None, compare=False)

    def __post_init__(self):
        unknown = [name for name in self.values if name not in MEASURED]
        if unknown: raise ValueError(f'{unknown[0]!r} is no measure: add its row to MEASURES in metrics/columns.py')

    def __getattr__(self, name:str)->float|None:
        if name not in MEASURED: raise AttributeError(f'{type(self).__name__} has no measure {name!r}')
        return self.values.get(name)

    def __repr__(self):
        shown = {c:self.values.get(c) for c in MEASURED} | dict(others=self.others, layers=self.layers)
        return f'{type(self).__name__}({", ".join(f"{k}={v!r}" for k, v in shown.items())})'

    @property
    def recorded(self)->dict[str, float]:
        "What studies store: `flat()` and `about`"
        return self.flat() | self.about

    def flat(self)->dict[str, float]:
        "All values by unique names: `drift`, `others.NAME`, `layers.NAME.drift`"
        numbers = {c:self.values[c] for c in MEASURED if c in self.values}
        for task, accuracy in self.others.items(): numbers[f'others.{task}'] = accuracy
        for layer, values in self.layers.items():
            for name, value in values.items(): numbers[f'layers.{layer}.{name}'] = value
        return numbers
