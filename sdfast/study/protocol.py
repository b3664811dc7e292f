"""A comparison that repeats the whole procedure for several source models.

For each source model, each arm tries its settings; a setting is chosen on held-out parts of both tasks, and final runs
with other seeds read test. So what varies between source models includes the choice. `report.crossed` compares the
arms. experiments/PROTOCOL.md says why."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import Damaged, InputError
from ..metrics.columns import COLUMNS
from ..runtime import store
from ..runtime.launch import run_all
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress, begin_phase
from ..strategies.registry import STRATEGIES
from .choose import choose
from .compare import compare_rows, prepare_source
from .config import Run
from .execute import RunJob
from .folder import run_folder
from .merge import OF_SEEDS, merge_seeds
from .plan import check_grids
from .source import untouched

__all__ = ['ProtocolPlan', 'make_arm', 'run_protocol']

# What a final run was chosen by: of the settings within the margin of plain fine-tuning's best accuracy on the target,
# the one that keeps most; or the best accuracy on the target, for users who have no source data
RULE_NAMES = 'kept', 'accuracy'
# What the choice and the endpoint average: the accuracies of the old head and of a new probe
KEPT = 'source_acc', 'source_probe'
PLAIN = 'finetune'


def make_arm(
    strategy:str, # One of `STRATEGIES`, or 'early_stopping', plain fine-tuning that stops by the target's valid part
    lrs:Sequence[float], # Learning rates to combine with each strength
    plain_lrs:Sequence[float], # Learning rates of a strategy without strengths, as many as the others have settings
    lams:Sequence[float]|None=None, # Strengths; `None`: the registry's
)->list[dict]: # Fields of `Run` to replace, for each trial, from weak to strong protection
    "Make the settings that the trials of an arm try"
    if strategy == 'early_stopping':
        return [dict(strategy=PLAIN, select='valid', patience=n, lr=lr) for n in (3, 2, 1) for lr in _falling(lrs)]
    if strategy not in STRATEGIES: raise InputError(f'unknown strategy {strategy!r}; known are {", ".join(STRATEGIES)}')
    if not STRATEGIES[strategy].lams: return [dict(strategy=strategy, lr=lr) for lr in _falling(plain_lrs)]
    strengths = sorted(lams or STRATEGIES[strategy].lams)
    return [dict(strategy=strategy, lam=lam, lr=lr) for lam in strengths for lr in _falling(lrs)]


def _falling(values): return sorted(values, reverse=True)


@dataclass(frozen=True)
class ProtocolPlan:
    """The runs of a comparison over source models and seeds. Called with the results of all trials, it returns the
    final runs.

    It is picklable, so that workers can compute the final runs themselves."""
    base: Run  # what all runs share
    arms: Mapping[str, list]  # name -> fields of `Run` to replace, for each trial; see `make_arm`
    nets: Sequence[int] = range(5)  # the `source_seed` of each source model
    seeds: int = 6  # final runs of each arm and source model, with seeds 0, 1, 2...
    trial_seeds: int = 1  # trials of each setting, with the seeds that follow those
    margin: float = .01  # accuracy on the target that may be lost against plain fine-tuning, as a fraction

    def __post_init__(self):
        if PLAIN not in self.arms: raise InputError(f'a protocol needs {PLAIN}, whose accuracy is the reference')
        check_grids(self.arms)

    def runs(self, net:int, setting:dict, final:bool)->list[Run]:
        "The runs of a setting on a source model, as trials or as final runs"
        seeds = range(self.seeds) if final else range(self.seeds, self.seeds + self.trial_seeds)
        base = replace(self.base, source_seed=net, source_valid=True, final=final, **setting)
        # the barrier takes a third of a run, so only one seed has it
        def with_barrier(seed): return base.with_barrier and final and seed == 0
        return [replace(base, seed=seed, with_barrier=with_barrier(seed)) for seed in seeds]

    def cells(self)->list[tuple]:
        "Source model, arm and settings of each choice"
        return [(net, arm, settings) for net in self.nets for arm, settings in self.arms.items()]

    def first(self)->list[Run]:
        "All trials"
        return [r for net, _, settings in self.cells() for s in settings for r in self.runs(net, s, final=False)]

    def __call__(self, found:list, progress:Progress=Progress())->list[Run]:
        "The final runs; a run that both rules choose is one"
        chosen = self.choices(found, progress)
        return list(dict.fromkeys(run for runs in self.finals(chosen).values() for run in runs))

    def finals(self, chosen:dict)->dict[tuple, list[Run]]:
        "Source model, arm and rule -> the final runs with the chosen setting"
        return {(net, arm, rule):self.runs(net, self.arms[arm][i], final=True)
                for (net, arm, rule), i in chosen.items()}

    def choices(self, found:list, progress:Progress=Progress())->dict[tuple, int]:
        "Source model, arm and rule -> number of the setting that is chosen by the results of all trials"
        rows = iter(found)
        scores = {(net, arm):[self._scores(rows) for _ in settings] for net, arm, settings in self.cells()}
        chosen = {}
        for (net, arm), of_settings in scores.items():
            valid, kept = zip(*of_settings)
            plain = np.nanmax([v for v, _ in scores[net, PLAIN]])
            chosen[net, arm, 'kept'] = choose(valid, kept, 'equal_learning', self.margin, plain)
            chosen[net, arm, 'accuracy'] = choose(valid)
            progress.say(self._line(net, arm, valid, kept, chosen[net, arm, 'kept']))
        return chosen

    def _scores(self, rows):
        "Mean accuracies of a setting's trials on the valid parts of target and source; nan if one failed"
        trials = [next(rows) for _ in range(self.trial_seeds)]
        if any(row['valid_acc1'] is None for row in trials): return np.nan, np.nan
        kept = [row[f'valid_{m}'] for row in trials for m in KEPT]
        return float(np.mean([row['valid_acc1'] for row in trials])), float(np.mean(kept))

    def _line(self, net, arm, valid, kept, i):
        setting = ' '.join(f'{k}={v:g}' for k, v in self.arms[arm][i].items() if isinstance(v, (int, float)))
        return f'source model {net}, {arm}: {setting}, {valid[i]:.1%} on valid, {kept[i]:.1%} kept'


def run_protocol(
    protocol:ProtocolPlan, # What to run
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to run; `None`: in this process
    merges:Sequence[str]=OF_SEEDS, # Methods of `merge_seeds` for the models of plain fine-tuning, two seeds at a time
)->pd.DataFrame: # A row for each run, with `COLUMNS`, `arm`, `rule` and `kl`; '' is the rule of trials
    """Run a protocol. Finished runs are read; a final run that both rules choose has a row for each.

    Each source model has a row of the arm 'untouched' for each rule. Merged models have arms such as
    'finetune+soup'. `kl` is the divergence of the old head's answers on the source's test clips, see `Retention`."""
    trials = protocol.first()
    # as if the two rules never chose the same
    most = [r for net, _, settings in protocol.cells() for s in settings[:2] for r in protocol.runs(net, s, final=True)]
    progress.plan(trials + most)
    bases = [replace(trials[0], source_seed=net) for net in protocol.nets]
    for base in bases: prepare_source(base, out, progress, launcher)
    found = run_all(trials, RunJob(str(out), weights=bool(merges)), out, progress, launcher,
                    total=len(trials) + len(most), then=protocol)
    chosen = protocol.choices(found[:len(trials)])
    by_key = {row['key']:row for row in found}
    rows = _trial_rows(protocol, found)
    for (net, arm, rule), runs in protocol.finals(chosen).items():
        about = dict(arm=arm, rule=rule, source_seed=net)
        rows += [by_key[run.key] | about | dict(kl=_divergence(run_folder(run, out))) for run in runs]
        if arm != PLAIN: continue
        for method in merges:
            begin_phase(f'merging the models of plain fine-tuning: {method}')
            merged = merge_seeds(runs, out, method)
            about = dict(arm=f'{PLAIN}+{method}', rule=rule, source_seed=net)
            rows += [row | about | dict(kl=_divergence(Path(out)/'merged'/row['key'])) for row in merged]
    for net, base in zip(protocol.nets, bases):
        start = compare_rows([], untouched(base, out, progress), base).iloc[0].to_dict()
        rows += [start | dict(arm='untouched', rule=rule, source_seed=net) for rule in RULE_NAMES]
    return pd.DataFrame(rows, columns=['arm', 'rule', 'source_seed', *COLUMNS, 'kl', 'anchor'])


def _divergence(folder):
    "The KL of a final run, which runs.csv has no column for; `None` if the run failed"
    try: return store.read_json(folder/'kept.json', checked=False).get('kl')
    except (FileNotFoundError, Damaged): return None


def _trial_rows(protocol, found):
    rows = iter(found)
    return [next(rows) | dict(arm=arm, rule='', source_seed=net)
            for net, arm, settings in protocol.cells() for s in settings for _ in range(protocol.trial_seeds)]
