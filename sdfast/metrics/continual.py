"""Measures of a chain of tasks, source → A → B → ..., from its matrix of accuracies.

`R[i, j]` is the accuracy on task j after stage i. Task 0 is the source, row 0 the model before fine-tuning. If measured
with the old head of task j from the end of stage j, the matrix is nan above the diagonal; if measured with a new linear
probe on the encoder's features, it is complete."""
import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError

__all__ = ['average_accuracy', 'learning_accuracy', 'backward_transfer', 'task_forgetting', 'forward_transfer']


def _matrix(R:ArrayLike, least:int=1)->np.ndarray:
    "`R` as a square array with at least `least` rows"
    accuracies = np.asarray(R, float)
    if accuracies.ndim != 2 or accuracies.shape[0] != accuracies.shape[1] or len(accuracies) < least:
        raise InputError(f'an accuracy matrix has a row for each stage and a column for each task, at least {least} '
                         f'of each; stage i learns task i. This one is {accuracies.shape}; for an unfinished '
                         'chain of k stages pass R[:k, :k]')
    return accuracies


def average_accuracy(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From 0 to 1
    "Mean over all tasks after the last stage (Lopez-Paz & Ranzato, NeurIPS 2017)"
    return float(_matrix(R)[-1].mean())


def learning_accuracy(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From 0 to 1
    "Mean over all tasks of the accuracy right after the task was learned (Riemer et al., ICLR 2019)"
    return float(np.diag(_matrix(R)).mean())


def backward_transfer(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From -1 to 1
    """Backward transfer (BWT): mean accuracy after the last stage minus that right after learning; negative is
    forgetting.

    The mean is over all tasks but the last (Lopez-Paz & Ranzato, NeurIPS 2017)."""
    return float(-task_forgetting(R).mean())


def task_forgetting(
    R:ArrayLike, # Accuracies `(stages, tasks)`
    best:bool=False, # Compare with the best accuracy in any earlier stage (Chaudhry et al., ECCV 2018)
)->np.ndarray: # For each task but the last; without `best`, their mean is -BWT
    """Loss of accuracy on each task between its own and the last stage (as in avalanche-lib); negative is a gain.

    The mean over tasks is the forgetting of the chain."""
    accuracies = _matrix(R, 2)
    past = accuracies[:-1, :-1]
    before = np.where(np.isnan(past), -np.inf, past).max(0) if best else np.diag(past)
    return before - accuracies[-1, :-1]


def forward_transfer(
    R:ArrayLike, # Accuracies of probes `(stages, tasks)`; a task has no old head before it is learned
    initial:ArrayLike, # Accuracy on each task with a random encoder `(tasks,)`
)->float: # From -1 to 1
    """Forward transfer (FWT): mean accuracy right before a task is learned minus that of a random encoder.

    The mean is over all tasks but the first (Lopez-Paz & Ranzato, NeurIPS 2017)."""
    accuracies, start = _matrix(R, 2), np.asarray(initial, float)
    if start.shape != accuracies.shape[1:]:
        raise InputError(f'initial needs an accuracy for each of {accuracies.shape[1]} tasks, not {start.shape}')
    return float((np.diag(accuracies, 1) - start[1:]).mean())
