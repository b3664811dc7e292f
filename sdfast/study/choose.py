"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..runtime.progress import Progress
from ..strategies.registry import STRATEGIES
from .config import Run

__all__ = ['RULES', 'strength_grid', 'choose']

RULES = ('accuracy', 'equal_learning')  # see `choose`


def strength_grid(
    strategy:str, # One of `STRATEGIES`
    lr:float, # Of the study
    lams:Sequence[float]|None=None, # Strengths to try; by default the registry's
    n:int=3, # How many learning rates one without strengths tries
)->list[dict]: # Fields of `Run` to replace, from weak to strong protection
    "What a strategy's trials try: strengths or, for plain fine-tuning and others that have none, as many learning rates (lr, lr/2, lr/4...)"
    if not STRATEGIES[strategy].lams: return [dict(lam=0., lr=lr/2**i) for i in range(n)]
    return [dict(lam=float(lam), lr=lr) for lam in sorted(lams or STRATEGIES[strategy].lams)]


def choose(
    valid:Sequence[float], # Accuracy on the target's valid part of each setting, from weak to strong protection; nan for one that failed
    kept:Sequence[float]|None=None, # What each kept on the source's valid part
    rule:str='accuracy', # 'accuracy': the best on valid; 'equal_learning': of those within `margin` of it, the one that keeps most
    margin:float=.01, # Accuracy that may be lost
)->int: # The setting to take; of equals the strongest
    "Choose a setting by held-out data"
    if rule == 'test': raise InputError(f'strengths cannot be chosen on test: it is read once, at the end; choose by {" or ".join(RULES)}')
    if rule not in RULES: raise InputError(f'unknown rule {rule!r} to choose by; known are {" and ".join(RULES)}')
    valid = np.nan_to_num(np.asarray(valid, float), nan=-1.)
    score = valid
    if rule == 'equal_learning':
        if kept is None: raise InputError('equal_learning chooses by what was kept of a held-out part of the source: a Run with source_valid measures it')
        # accuracies are counts of clips: rounding must not decide what is within the margin
        score = np.where(valid >= valid.max() - margin - 1e-9, np.nan_to_num(np.asarray(kept, float), nan=-1.), -2.)
    return int(max(range(len(score)), key=lambda i: (score[i], i)))


@dataclass(frozen=True)
class Plan:
    "Which runs a study is made of; called with the trials' results, the final runs that follow from them. Picklable: workers know what follows"
    base: Run  # what all runs share
    grids: dict  # strategy -> its `strength_grid`; all of one length
    seeds: int  # final runs of each strategy
    trial_seeds: int  # trials of each strength
    all_strengths: bool = False  # the trials have every seed and are final, and nothing follows
    rule: str = 'accuracy'  # see `choose`
    kept: str = 'source_probe'  # see `compare`
    by = 'on valid'  # what strengths are chosen by, for the reader

    def runs(self, strategy:str, g:dict, n:int, final:bool)->list:
        "Of a strategy with a setting, those that differ in their seeds"
        return [replace(self.base, strategy=strategy, seed=i, final=final, **g) for i in range(n)]

    def trials(self)->dict[str, list]:
        "Strategy -> setting -> runs; no setting where there is nothing to choose"
        several = len(next(iter(self.grids.values()))) > 1
        return {s:[self.runs(s, g, self.seeds if self.all_strengths else self.trial_seeds, self.all_strengths) for g in grid] if several or self.all_strengths else [] for s, grid in self.grids.items()}

    def first(self)->list:
        "All trials"
        return [r for settings in self.trials().values() for same in settings for r in same]

    def last(self, best:dict)->list:
        "The final runs of the settings number `best[strategy]`"
        return [r for s, i in best.items() for r in self.runs(s, self.grids[s][i], self.seeds, True)]

    def scores(self, row:dict)->tuple[float, float]:
        "Of a trial's result: accuracy on valid, and what was kept of the source's valid part; nan for what was not measured"
        return tuple(np.nan if row[c] is None else row[c] for c in ('valid_acc1', f'valid_{self.kept}'))

    def best(self, found:list, progress:Progress)->dict[str, int]:
        "Strategy -> number of the setting to take, by the trials' results"
        rows, best = iter(found), {}
        for s, settings in self.trials().items():
            best[s], grid = 0, self.grids[s]
            done = [np.mean([self.scores(next(rows)) for _ in same], 0).tolist() for same in settings]
            if len(done) < 2: continue
            valid, keeps = zip(*done)
            best[s] = choose(valid, keeps, self.rule)
            progress.say(f'{s}: ' + ', '.join(f'{strength_name(s, g)} {"failed" if np.isnan(v) else f"{v:.1%}"}{f" ({k:.1%} kept)" if k == k else ""}' for g, v, k in zip(grid, valid, keeps))
                      + f' {self.by}; takes {strength_name(s, grid[best[s]])}')
        return best

    def __call__(self, found:list, progress:Progress)->list: return self.last(self.best(found, progress))


def strength_name(strategy, g): return f'lam {g["lam"]:g}' if STRATEGIES[strategy].lams else f'lr {g["lr"]:g}'
