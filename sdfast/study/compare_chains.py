"The comparison of strategies on a chain of tasks."
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
from fastai.torch_core import rank_distrib, set_seed

from ..models.encoders import create_model
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.jobs import Job
from ..runtime.launch import run_all
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress
from ..runtime.resume import epochs_done
from .accuracies import Accuracies
from .chain import chain_key, chain_score, finished_chain, report_chain, train_chain
from .check_data import check_data
from .compare import prepare_source, redo
from .config import Run, changed_fields, hash_fields
from .folder import claim_folder, read_sealed
from .plan import Plan
from .progress import LiveProgress
from .record import write_failure
from .reuse import end_fresh
from .source import load_source
from .stage import RUN_COLUMNS, read_stage, stage_folder, stage_keys

__all__ = ['compare_sequences', 'ChainJob']

# the piece of work that measures the models before fine-tuning; all other pieces are chains, lists of `Run`s
UNTRAINED = ()


def compare_sequences(
    bases:list, # A `Run` for each task in order: what all strategies share
    grids:dict, # Strategy -> its `strength_grid`; all have the same length
    out:str|Path, # Folder of the study
    seeds:int=6, # Final chains of each strategy
    trial_seeds:int=1, # Trials of each strength
    progress:Progress=Progress(), # Progress listener
    launcher:Launcher|None=None, # Where to run; `None`: in this process
    fresh:bool=False, # Train all chains and the source model again, see `clear_once`
    merge:Callable|None=None, # `merge_chains` with its methods, to add merged models
)->pd.DataFrame: # A row for each stage, trials included, and the rows 'untouched' and 'random'
    """Fine-tune with every strategy through a chain of tasks.

    For each strategy, trials choose the strength with the best mean accuracy on the valid parts of source and tasks,
    with old heads, after the last stage. Then the chain is trained with this strength and every seed, and test is read.
    The row 'untouched' is the source model's, 'random' that of a random encoder."""
    plan = ChainPlan(bases, grids, seeds, trial_seeds)
    trials, final = plan.first(), plan.last(dict.fromkeys(grids, 0))  # only the number of final chains matters
    progress.plan([chain[-1] for chain in trials + final])
    job = ChainJob(str(out), tuple(bases))
    if fresh: from_rank0(lambda: redo(_stage_folders(plan, job), bases[0], out, progress))
    prepare_source(bases[0], out, progress, launcher)
    total = len(trials) + len(final) + 1  # with `UNTRAINED`
    found = run_all(trials, job, out, progress, launcher, total, then=plan)
    rows = list(_rows(plan, found))
    if merge is not None:
        setting = grids['finetune'][plan.best(found[:len(trials)])['finetune']]
        accuracies, source = _shared(job.bases, job.out)
        untrained = sum(row['strategy'] in ('untouched', 'random') for row in rows)
        merged = merge(bases, setting, out, source, accuracies, seeds, trial_seeds, progress, launcher)
        rows[len(rows) - untrained:len(rows) - untrained] = merged
    if not rank_distrib(): end_fresh(out)
    return pd.DataFrame(rows)


def _stage_folders(plan, job):
    "Folders of all stages that a study may have, and of the models before fine-tuning"
    _shared.cache_clear()
    keys = [key for chain in plan.every() for _, key, _ in stage_keys(chain)]
    return [*(stage_folder(key, job.out) for key in keys), job.folder(UNTRAINED)]


def _rows(plan, found)->Iterator[dict]:
    "Rows of stages, ordered by strategy, trials before final chains; those of `UNTRAINED` come last"
    found = iter(found)
    rows: dict[str, list] = {s:[] for s in plan.grids}
    for s, settings in plan.trials().items():
        for chains in settings:
            for _ in chains: rows[s] += next(found)
    for s in plan.grids:
        for _ in range(plan.seeds): rows[s] += next(found)
    for s in plan.grids: yield from rows[s]
    yield from next(found)


class ChainPlan(Plan):
    "A `Plan` of chains: `base` is a list of `Run`s, one for each task; `UNTRAINED` follows the final chains"
    by = 'on valid, mean of all tasks'

    def runs(self, strategy:str, setting:dict, n:int, final:bool)->list:
        def chain(seed): return [replace(r, strategy=strategy, seed=seed, final=final, **setting) for r in self.base]
        return [chain(seed) for seed in range(n)]

    def scores(self, row:list)->tuple[float, float]: return chain_score(row, self.base), float('nan')

    def __call__(self, found:list, progress:Progress=Progress())->list:
        return [*super().__call__(found, progress), UNTRAINED]


@dataclass(frozen=True)
class ChainJob(Job):
    "The chains of a study as pieces of work for `run_all`: lists of `Run`s, and `UNTRAINED`"
    out: str # Folder of the study
    bases: tuple # A `Run` for each task

    def folder(self, chain:Sequence[Run])->Path:
        key = chain_key(chain) if chain else hash_fields([changed_fields(r) for r in self.bases])
        return stage_folder(key, self.out)

    def read(self, chain:Sequence[Run], call:str, progress:Progress=Progress())->list|None:
        if chain: return finished_chain(chain, self.out, progress, call)
        sealed = read_sealed(self.folder(chain), 'result.json', progress, 'measured again')
        return None if sealed is None else sealed['rows']

    def do(self, chain:Sequence[Run], call:str, progress:Progress=Progress())->list:
        rows = from_rank0(lambda: self.read(chain, call, progress))
        if rows is not None:
            self.report(rows, True, progress)
            return rows
        accuracies, source = _shared(self.bases, self.out)
        if chain: return train_chain(chain, source, self.out, accuracies, progress, wait=False, call=call)
        with claim_folder(self.folder(chain), progress, wait=False) as folder:
            rows = _untrained_rows(self.bases[0], source, accuracies)
            if not rank_distrib(): store.write_json(folder/'result.json', dict(rows=rows, files={}))
        return rows

    def fail(self, chain:Sequence[Run], call:str, error:str)->None:
        if not chain: raise RuntimeError(f'the models before training cannot be measured: {error}')
        for run, key, before in stage_keys(chain):
            folder = stage_folder(key, self.out)
            if read_stage(folder) is not None: continue
            row = {k:getattr(run, k) for k in RUN_COLUMNS} | dict(key=key, before=before)
            with store.claim(folder): write_failure(folder, row, call, error)
            return

    def at(self, chain:Sequence[Run])->tuple: return (chain or self.bases)[-1], epochs_done(self.folder(chain))

    def report(self, rows:list, skipped:bool, progress:Progress=Progress())->None:
        if rows[0]['strategy'] != 'untouched': report_chain(rows, self.bases, skipped, progress)

    def listener(self)->Progress: return LiveProgress()


@lru_cache(maxsize=1)
def _shared(bases, out):
    "The accuracies and the source model that all chains of a process share"
    for run in bases: check_data(run, out)
    return Accuracies(list(bases)), replace(load_source(bases[0], out), retention=None)


def _untrained_rows(base, source, accuracies):
    "Rows of the source model and of a random encoder"
    set_seed(0)
    encoder = create_model(base.model, 1, **base.options())[0].to(next(source.model.parameters()).device)
    shared = dict(status='ok', error='', final=True)
    untouched = dict(strategy='untouched', key=base.source_key, stage=0, task='source', anchor=source.id)
    return [untouched | shared | accuracies(source.model[0], [source.head]),
            dict(strategy='random') | shared | accuracies(encoder, [])]
