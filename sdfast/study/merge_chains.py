"Merged models in the comparison of chains: each task is learned by itself, from the source's model."
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..runtime.launch import run_all
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress, begin_phase
from .accuracies import Accuracies
from .chain import chain_score
from .choose import choose
from .compare_chains import ChainJob
from .config import Run
from .merge import OF_TASKS, merge_tasks
from .source import SourceModel

__all__ = ['merge_chains']

# weights of what was learned, from weak to strong protection of the source
LAMS = dict(task_arithmetic=(.7, .4, .2), ties=(1.5, 1., .5))


def check_merges(
    text:str, # Names of methods, joined by `,`
)->list[str]: # Each once
    "Read the names of methods that merge the models of tasks"
    names = list(dict.fromkeys(filter(None, (s.strip() for s in text.split(',')))))
    for name in names:
        if name not in OF_TASKS: raise InputError(f'--merges: unknown method {name!r}; known are {", ".join(OF_TASKS)}')
    return names


def merge_chains(
    methods:Sequence[str], # From `check_merges`
    bases:Sequence[Run], # A `Run` for each task in order
    setting:dict, # Fields of `Run` of plain fine-tuning, such as its learning rate
    out:str|Path, # Folder of the study
    source:SourceModel, # From `load_source`
    accuracies:Accuracies, # Measures all tasks
    seeds:int=6, # Merges of each method that are measured on test
    trial_seeds:int=1, # Merges of each weight that it is chosen by
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to train; `None`: in this process
)->list[dict]: # A row for each number of tasks, as of the stages of a chain, trials included
    """Fine-tune the source's model on each task by itself; merge the models of the first task, of the first two, and so
    on. The weight is chosen as strengths are: by mean accuracy on the valid parts of source and tasks at the end."""
    def runs(seed, final):
        return [replace(r, strategy='finetune', seed=seed, final=final, **setting) for r in bases]
    trials = [runs(seed, False) for seed in range(trial_seeds)]
    last = [runs(seed, True) for seed in range(seeds)]
    for i, base in enumerate(bases):
        alone = [[chain[i]] for chain in trials + last]
        run_all(alone, ChainJob(str(out), (base,)), out, progress, launcher, len(alone))
    rows = []
    for method in methods:
        begin_phase(f'merging the models of tasks: {method}')
        found = {lam:[merge_tasks(chain, source, out, accuracies, method, lam, progress) for chain in trials]
                 for lam in LAMS[method]}
        scores = [float(np.mean([chain_score(merged, bases) for merged in merges])) for merges in found.values()]
        lam = LAMS[method][choose(scores)]
        tried = ', '.join(f'{x:g} {score:.1%}' for x, score in zip(LAMS[method], scores))
        progress.say(f'finetune+{method}: weight {tried} on valid, mean of all tasks; takes {lam:g}')
        rows += [row for merges in found.values() for merged in merges for row in merged]
        for chain in last: rows += merge_tasks(chain, source, out, accuracies, method, lam, progress)
    return rows
