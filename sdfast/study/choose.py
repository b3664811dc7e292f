"Choosing a strategy's strength on held-out data."
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import InputError
from ..strategies.registry import STRATEGIES
from .config import RULES

__all__ = ['RULES', 'strength_grid', 'choose']

ROUNDING = 1e-9  # tolerance, so that floating-point rounding does not decide which accuracies are within the margin


def strength_grid(
    strategy:str, # One of `STRATEGIES`
    lr:float, # Learning rate of the study
    lams:Sequence[float]|None=None, # Strengths to try; `None`: the registry's
    n:int=3, # Number of learning rates for a strategy without strengths
)->list[dict]: # Fields of `Run` to replace, from weak to strong protection
    """The settings that a strategy's trials try.

    They are strengths or, for plain fine-tuning and others without strengths, learning rates: lr, lr/2, lr/4..."""
    if not STRATEGIES[strategy].lams: return [dict(lam=0., lr=lr/2**i) for i in range(n)]
    return [dict(lam=lam, lr=lr) for lam in check_strengths(lams or STRATEGIES[strategy].lams)]


def check_strengths(
    lams:Iterable, # Strengths
    what:str='strengths', # What to call them in the message
)->list[float]: # From weak to strong
    "Raise `InputError` unless strengths are finite, at least 0 and different"
    values = sorted(map(float, lams))
    for v in values:
        if not 0 <= v < float('inf'): raise InputError(f'{what}: strengths must be finite and at least 0, not {v:g}')
        if values.count(v) > 1: raise InputError(f'{what}: strength {v:g} is given twice; each trial needs its own')
    return values


def choose(
    valid:Sequence[float], # Accuracy of each setting on the target's valid part, in the order of the grid; nan: failed
    kept:Sequence[float]|None=None, # Accuracy on the source's valid part after fine-tuning with each setting
    rule:str='accuracy', # 'accuracy': the best on valid; 'equal_learning': of those within `margin`, what keeps most
    margin:float=.01, # Largest loss of accuracy on valid, as a fraction
    best:float|None=None, # Accuracy from which `margin` counts; `None`: the best of `valid`
)->int: # Index of the setting; if several are equal, of the strongest
    """Choose a setting on held-out data.

    If no setting reaches `best` less `margin`, it is the one with the best accuracy."""
    if rule == 'test':
        raise InputError('strengths cannot be chosen on test, which is read once, at the end; '
                         f'choose by {" or ".join(RULES)}')
    if rule not in RULES: raise InputError(f'unknown rule {rule!r} to choose by; known are {" and ".join(RULES)}')
    accuracy = _scores(valid)
    score = accuracy
    if rule == 'equal_learning':
        if kept is None:
            raise InputError('equal_learning chooses by what was kept on a held-out part of the source, '
                             'which a Run with source_valid measures')
        needed = (accuracy.max() if best is None else best) - margin
        within = accuracy >= min(needed, accuracy.max()) - ROUNDING
        score = np.where(within, _scores(kept), -2.)
    return int(max(range(len(score)), key=lambda i: (score[i], i)))


def _scores(x):
    "Accuracies, with -1 for failed runs"
    return np.nan_to_num(np.asarray(x, float), nan=-1.)
