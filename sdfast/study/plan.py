"The runs of a study: trials of each setting, and the final runs that follow from them."
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..runtime.progress import Progress
from ..strategies.registry import STRATEGIES
from .choose import choose
from .config import Study
from .values import check_value

__all__ = ['Plan']


@dataclass(frozen=True)
class Plan:
    """The runs of a study. Called with the results of all trials, it returns the final runs.

    It is picklable, so that workers can compute the final runs themselves."""
    base: Any  # what all runs share: a `Run`
    grids: dict  # strategy -> its `strength_grid`; all have the same length
    seeds: int  # final runs of each strategy
    trial_seeds: int  # trials of each setting
    all_strengths: bool = False  # all runs are final and have every seed; no others follow
    rule: str = 'accuracy'  # see `choose`
    kept: str = 'source_probe'  # see `compare`
    by = 'on valid'  # what settings are chosen by, for the reader

    def __post_init__(self):
        limits = {f.name:f for f in fields(Study)}
        for name in ('seeds', 'trial_seeds'): check_value(limits[name], getattr(self, name))
        check_grids(self.grids)

    def first(self)->list:
        "All trials"
        return [run for settings in self.trials().values() for runs in settings for run in runs]

    def trials(self)->dict[str, list]:
        "Strategy -> a list of runs for each setting; empty if there is only one setting"
        if self.all_strengths: return self._grid_runs(self.seeds, final=True)
        n_settings = len(next(iter(self.grids.values())))
        if n_settings < 2: return {s:[] for s in self.grids}
        return self._grid_runs(self.trial_seeds, final=False)

    def _grid_runs(self, n, final):
        return {s:[self.runs(s, setting, n, final) for setting in grid] for s, grid in self.grids.items()}

    def runs(self, strategy:str, setting:dict, n:int, final:bool)->list:
        "Runs of a strategy with one setting, for seeds 0 to n-1"
        return [replace(self.base, strategy=strategy, seed=seed, final=final, **setting) for seed in range(n)]

    def every(self)->list:
        "All runs that the study may come to, whatever it chooses"
        grids = (self._grid_runs(self.trial_seeds, final=False), self._grid_runs(self.seeds, final=True))
        return [run for grid in grids for settings in grid.values() for runs in settings for run in runs]

    def __call__(self, found:list, progress:Progress=Progress())->list:
        "The final runs, chosen by the results of all trials"
        return self.last(self.best(found, progress))

    def last(self, best:dict)->list:
        "The final runs with setting number `best[strategy]` of each strategy"
        return [run for s, i in best.items() for run in self.runs(s, self.grids[s][i], self.seeds, final=True)]

    def best(self, found:list, progress:Progress=Progress())->dict[str, int]:
        "Strategy -> number of the setting that the results of all trials choose"
        results = iter(found)
        best: dict[str, int] = {}
        for s, settings in self.trials().items():
            best[s] = 0
            scores = [np.mean([self.scores(next(results)) for _ in runs], 0).tolist() for runs in settings]
            if len(scores) < 2: continue
            valid, kept = zip(*scores)
            best[s] = choose(valid, kept, self.rule)
            progress.say(self._choice(s, valid, kept, best[s]))
        return best

    def scores(self, row:dict)->tuple[float, float]:
        "A trial's accuracies on the valid parts of target and source; nan where not measured"
        valid, kept = row['valid_acc1'], row[f'valid_{self.kept}']
        return np.nan if valid is None else valid, np.nan if kept is None else kept

    def _choice(self, strategy, valid, kept, best):
        "A line for the reader: each setting with its scores, and the chosen one"
        names = [setting_name(strategy, setting) for setting in self.grids[strategy]]
        tried = ', '.join(f'{name} {_scores_text(v, k)}' for name, v, k in zip(names, valid, kept))
        return f'{strategy}: {tried} {self.by}; takes {names[best]}'


def _scores_text(valid, kept):
    text = 'failed' if np.isnan(valid) else f'{valid:.1%}'
    return text if np.isnan(kept) else f'{text} ({kept:.1%} kept)'


def setting_name(strategy:str, setting:dict)->str:
    has_strength = STRATEGIES[setting.get('strategy', strategy)].lams
    return f'lam {setting["lam"]:g}' if has_strength else f'lr {setting["lr"]:g}'


def check_grids(grids:dict)->None:
    "Raise `InputError` unless all strategies get the same number of trials, and each tries different settings"
    if len({len(g) for g in grids.values()}) > 1:
        given = ', '.join(f'{s} {len(g)}' for s, g in grids.items())
        raise InputError(f'each strategy must get the same number of trials, not {given}')
    for strategy, grid in grids.items():
        for i, setting in enumerate(grid):
            if setting in grid[:i]: raise InputError(f'{strategy} tries {setting_name(strategy, setting)} twice')
