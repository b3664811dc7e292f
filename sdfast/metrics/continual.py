"""Chains of tasks, source → A → B → ...: what each stage learns, and what becomes of all that was learned before.

`R[i, j]` is the accuracy on task j after stage i. Task 0 is the source, row 0 the model before fine-tuning. Each task has its own head
(task-incremental), so there are two such matrices: with the **old head** of task j, kept as stage j left it, which is nan above the
diagonal; and with a new linear **probe** on the encoder's features, which is complete.

A strategy protects the encoder as it stands when a stage begins. What it knows of the stages before: EWC, MAS and SI hold on with the
sum of all their importances, each scaled to mean 1 so that tasks count alike (online EWC with gamma 1, Schwarz et al., ICML 2018);
LwF and Replay have a term for each old head, as Li & Hoiem (2016) sum them; Co-Tuning and DELTA look at the stage before only.

A study's folder holds `stages/<key>/`: `run.json`, `encoder.safetensors`, `head.safetensors`, `epochs.csv`, `log.txt` and, written last,
`result.json` with the digests of the others. The key is of the `Run` and of the stage before: a finished stage is read, not trained again,
and one whose process died goes on from its last finished epoch."""
import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError

__all__ = ['average_accuracy', 'learning_accuracy', 'backward_transfer', 'task_forgetting', 'forward_transfer']



def _matrix(R, least=1):
    R = np.asarray(R, float)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or len(R) < least:
        raise InputError(f'an accuracy matrix has a row a stage and a column a task, at least {least} of each and as many: stage i learns task i; this one is {R.shape}. '
                         'Of an unfinished chain of k stages take R[:k, :k]')
    return R


def average_accuracy(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From 0 to 1
    "Mean over all tasks after the last stage (Lopez-Paz & Ranzato, NeurIPS 2017)"
    return float(_matrix(R)[-1].mean())


def learning_accuracy(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From 0 to 1
    "Mean over all tasks of the accuracy just after each was learned (Riemer et al., ICLR 2019)"
    return float(np.diag(_matrix(R)).mean())


def backward_transfer(
    R:ArrayLike, # Accuracies `(stages, tasks)`
)->float: # From -1 to 1
    "BWT: mean over all tasks but the last of accuracy after the last stage less accuracy when learned (Lopez-Paz & Ranzato, NeurIPS 2017); negative is forgetting"
    return float(-task_forgetting(R).mean())


def task_forgetting(
    R:ArrayLike, # Accuracies `(stages, tasks)`
    best:bool=False, # Less than its best in any stage before (Chaudhry et al., ECCV 2018) instead of less than when learned
)->np.ndarray: # One a task but the last; the mean is the forgetting of the chain, -BWT unless `best`
    "How much accuracy each task has lost: when learned (as avalanche-lib has it), or at best, less after the last stage; negative is a gain"
    R = _matrix(R, 2)
    past = R[:-1, :-1]
    return (np.where(np.isnan(past), -np.inf, past).max(0) if best else np.diag(past)) - R[-1, :-1]


def forward_transfer(
    R:ArrayLike, # Accuracies `(stages, tasks)`; with old heads there are none before a task is learned, so of probes
    initial:ArrayLike, # Of each task, with a random encoder
)->float: # From -1 to 1
    "FWT: mean over all tasks but the first of accuracy just before the task is learned less that of a random initialisation (Lopez-Paz & Ranzato, NeurIPS 2017)"
    R, initial = _matrix(R, 2), np.asarray(initial, float)
    if initial.shape != R.shape[1:]: raise InputError(f'initial needs an accuracy for each of {R.shape[1]} tasks, not {initial.shape}')
    return float((np.diag(R, 1) - initial[1:]).mean())
