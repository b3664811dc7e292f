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
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, reduce
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import rank_distrib, set_seed
from safetensors.torch import load_file
from torch import nn

from ..data.text import FORMULA
from ..errors import InputError
from ..metrics.features import linear_probe
from ..models.encoders import create_model
from ..models.features import extract
from ..models.surgery import frozen_copy
from ..models.weights import load_encoder, save_weights, state_hash
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.launch import Job, Launcher, run_all
from ..runtime.progress import Progress
from ..runtime.resume import epochs_done
from ..strategies.importance import Importance, PathIntegral
from ..strategies.registry import STRATEGIES
from .choose import Plan
from .compare import prepare_source
from .config import hash_fields
from .execute import train_run, write_run
from .folder import LASTING, claim_folder, dump_importance, load_path_integral, read_sealed, write_epochs
from .loaders import FISHER_CLIPS, PROBE_CLIPS, balanced_loader, source_data, target_data
from .progress import LiveProgress
from .source import SourceModel, load_source

__all__ = ['TaskPath', 'Carried', 'Accuracies', 'finished_chain', 'train_chain', 'compare_sequences', 'ChainJob']



class TaskPath(PathIntegral):
    "A `PathIntegral` beside penalties: it follows the gradient of the task alone, taken before they add theirs, at the price of a second backward pass"
    _task = None

    def before_train(self):
        if self.integral is not None: return
        self.start = {n:p.detach().clone() for n, p in self._weights().items()}
        self.integral = {n:torch.zeros_like(p, dtype=torch.float32) for n, p in self._weights().items()}

    def after_loss(self):  # at order 4, the penalties' is 5 and more
        self._task = {n:p for n, p in self._weights().items() if p.requires_grad}
        if self._task: self._task = dict(zip(self._task, torch.autograd.grad(self.learn.loss_grad, list(self._task.values()), retain_graph=True, allow_unused=True)))

    def before_step(self):
        weights, self._skipped = self._weights(), False
        self._before = {n:(weights[n].detach().clone(), g.float()) for n, g in self._task.items() if g is not None}


class Carried(SourceModel):
    "What a stage protects: the model that the last of `past` left, with the importance of them all"
    def __init__(self,
        past:list, # A `SourceModel` for the source and each stage since
    ):
        last = past[-1]
        super().__init__(last.model, None, last.batches, last.id, last.path_integral)
        self.past = list(past)

    def _sum(self, name): return getattr(self.past[0], name) if len(self.past) == 1 else reduce(Importance.then, (getattr(s, name).normalized() for s in self.past))
    @property
    def fisher(self)->Importance: return self._sum('fisher')
    @property
    def mas(self)->Importance: return self._sum('mas')
    @property
    def si(self)->Importance: return self._sum('si')


def _beside(run, past):
    "Callbacks that a stage needs beside the strategy's own: LwF and Replay for each older head, what SI learns of this stage"
    older = past[:-1] if run.strategy in ('lwf', 'replay') else []
    return [cb for s in older for cb in STRATEGIES[run.strategy].callbacks(run.lam, s, **run.options('strategy_args'))] + ([TaskPath()] if run.strategy == 'si' else [])


class Accuracies:
    """Measures an encoder on the source and all tasks of a chain: `Accuracies(runs)(encoder, heads)`.

    Its `names` are 'source' and the tasks'. Raises `InputError` if a task has no valid part, as strengths are chosen on it."""
    def __init__(self,
        runs:list, # A `Run` for each task, of one source
    ):
        if not runs: raise InputError('a chain needs at least one task after the source')
        if not runs[0].source or len({r.source_key for r in runs}) > 1:
            raise InputError('the runs of a chain need one source, the same for all, with the same `data`, model and clips')
        parts = [source_data(runs[0]), *map(target_data, runs)]
        # names are cells and columns of csv files
        short = ['source', *(FORMULA.sub('_', re.split('[:/]', task.name.rstrip('/'))[-1]) for task, _, _ in parts[1:])]
        self.names = [n if short.index(n) == i else f'{n}-{i}' for i, n in enumerate(short)]
        for task, _, _ in parts:
            if not task.count('valid'):
                raise InputError(f'{task.name} has no valid part to choose strengths on: set source_valid=True for the source, valid_frac above 0 for the others')
        self.tasks = [task for task, _, _ in parts]
        self.train = [balanced_loader(task, dls, PROBE_CLIPS) for task, dls, _ in parts]
        self.valid = [task.dl(dls, 'valid') for task, dls, _ in parts]
        self.test = [test for _, _, test in parts]

    def __call__(self,
        encoder:nn.Module,
        heads:Sequence[nn.Module], # Of the tasks learned so far, as each was left
        final:bool=True, # Read test, with old heads and probes, and not only valid
    )->dict: # `valid.NAME` and `head.NAME` of the tasks that have a head, `probe.NAME` of all
        "Accuracies on valid and test"
        def right(head, x, y):
            with torch.no_grad(): return (frozen_copy(head).cpu()(x).argmax(1) == y).double().mean().item()
        found = {f'valid.{n}':right(h, *extract(encoder, dl)) for n, h, dl in zip(self.names, heads, self.valid)}
        if not final: return found
        test = [extract(encoder, dl) for dl in self.test]
        found |= {f'head.{n}':right(h, *xy) for n, h, xy in zip(self.names, heads, test)}
        return found | {f'probe.{n}':linear_probe(*extract(encoder, dl), *xy) for n, dl, xy in zip(self.names, self.train, test)}


def _stages(runs):
    "`(run, key, key of the stage before)` of each stage"
    before = runs[0].source_key
    for run in runs:
        yield run, (key := hash_fields(asdict(run) | dict(before=before))), before
        before = key


def finished_chain(
    runs:list, # A `Run` for each task in order
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what is damaged
    since:float|None=None, # As in `study.finished`
)->list[dict]|None: # A row a stage, up to the first that failed or diverged
    "What a chain found, if it has ended and its files are what they were"
    rows = []
    for _, key, _ in _stages(runs):
        if (row := _stage(Path(out)/'stages'/key, progress, since)) is None: return None
        rows.append(row)
        if row['status'] != 'ok': break
    return rows


def _stage(folder, progress, since):
    d = read_sealed(folder, 'result.json', progress, 'trained again')
    if d is None or not (d['status'] in LASTING or since is not None and d['ended'] >= since): return None
    return {k:v for k, v in d.items() if k not in ('files', 'ended', 'versions', 'python', 'threads')}


def train_chain(
    runs:list, # A `Run` for each task in order; all but `task` and `bs` the same
    source:SourceModel, # From `load_source`
    out:str|Path, # Folder of the study
    accuracies:Accuracies, # Measures all tasks after each stage
    progress:Progress=Progress(), # Is told what happens
    wait:bool=True, # For another process that is at it; else raise `Busy`
    since:float|None=None, # As in `study.finished`
)->list[dict]: # A row a stage, up to the first that failed or diverged
    "Fine-tune on one task after another with one strategy, go on with it, or read what is finished"
    past, rows, skipped = [source], [], True
    first = next(iter(_stages(runs)))[1]
    with claim_folder(Path(out)/'stages'/first, progress, wait):
        for i, (run, key, before) in enumerate(_stages(runs), 1):
            folder = Path(out)/'stages'/key
            if (row := from_rank0(lambda: _stage(folder, progress, since))) is None:
                row, skipped = _train(run, past, folder, accuracies, progress, dict(key=key, before=before, stage=i, task=accuracies.names[i])), False
            rows.append(row)
            if row['status'] != 'ok': break
            if i < len(runs): past.append(_left(run, folder))
    _tell(rows, runs, skipped, progress)
    return rows


def _tell(rows, runs, skipped, progress):
    run, last = runs[len(rows) - 1], rows[-1]
    head = [v for k, v in last.items() if k.startswith('head.')]
    run = asdict(run) | {k:last[k] for k in ('strategy', 'lam', 'lr', 'seed', 'final')}
    progress.done(run | dict(status=last['status'], error=f'{last["task"]}: {last["error"]}', seconds=sum(r['seconds'] for r in rows), source_acc=last.get('head.source'),
                                  valid_acc1=_score(rows, runs) if last['status'] == 'ok' else None, acc1=float(np.mean(head)) if head else None), skipped=skipped)


def _score(rows, runs):
    "What strengths are chosen by: the mean over source and tasks of the accuracy on valid, with old heads, after the last stage; nan if it was not reached"
    valid = [v for k, v in rows[-1].items() if k.startswith('valid.')]
    return float(np.mean(valid)) if len(valid) == len(runs) + 1 else float('nan')


def _left(run, folder):
    "The `SourceModel` that a finished stage is for the next"
    task, dls, _ = target_data(run)
    model = create_model(run.model, len(task.vocab), **run.options())
    load_encoder(model[0], folder/'encoder.safetensors')
    model[1].load_state_dict(load_file(folder/'head.safetensors'))
    return SourceModel(model.to(dls.device), None, balanced_loader(task, dls, 120 if run.quick else FISHER_CLIPS), state_hash(model[0].state_dict()), load_path_integral(folder))


def _train(run, past, folder, accuracies, progress, row):
    "Train one stage, or go on with it, measure it and write its folder"
    def measure(cbs):
        beside = _beside(run, past)
        learn, why = train_run(run, Carried(past), progress, [*beside, *cbs])
        if rank_distrib(): return 'ok', {}, ''  # the first process measures
        write_epochs(learn, folder)
        if why: return 'diverged', {}, why
        encoder, head = learn.model
        measured = accuracies(encoder, [*(s.model[1] for s in past), head], run.final)
        save_weights(encoder, folder/'encoder.safetensors')
        save_weights(head, folder/'head.safetensors')
        for path in (cb.importance() for cb in beside if isinstance(cb, TaskPath)): store.write(folder/'path.safetensors', dump_importance(path))
        return 'ok', measured, ''
    row |= {k:getattr(run, k) for k in ('strategy', 'strategy_args', 'lam', 'lr', 'seed', 'epochs', 'final')} | dict(anchor=past[-1].id)
    return write_run(run, folder, progress, measure, row, before=row['before'])


def compare_sequences(
    bases:list, # A `Run` for each task in order: what all strategies share
    grids:dict, # Strategy -> its `strength_grid`; all of one length
    out:str|Path, # Folder of the study
    seeds:int=6, # Final chains of each strategy
    trial_seeds:int=1, # Trials of each strength
    progress:Progress=Progress(), # Is told what happens
    launcher:Launcher|None=None, # Where to run; `None`: in this process
)->pd.DataFrame: # A row a stage, trials too, and one each for the model before ('untouched', stage 0) and for a random encoder ('random')
    """Train every strategy through the chain. Its strength is the one with the best mean accuracy over source and tasks on their valid parts,
    with old heads, after the last stage; then it is run with every seed and reads test"""
    if len({len(g) for g in grids.values()}) > 1:
        raise InputError('each strategy must get the same number of trials, not ' + ', '.join(f'{s} {len(g)}' for s, g in grids.items()))
    study = ChainPlan(bases, grids, seeds, trial_seeds)
    first, last = study.first(), study.last(dict.fromkeys(grids, 0))
    progress.plan([c[-1] for c in first + last])
    prepare_source(bases[0], out, progress, launcher)
    found = iter(run_all(first, ChainJob(str(out), tuple(bases)), out, progress, launcher, total=len(first + last) + 1, then=study))
    trials = {s:[r for same in settings for _ in same for r in next(found)] for s, settings in study.trials().items()}
    final = {s:[r for _ in range(seeds) for r in next(found)] for s in grids}
    return pd.DataFrame([*(r for s in grids for r in trials[s] + final[s]), *next(found)])


class ChainPlan(Plan):
    "The same of chains: `base` is a list of `Run`s, one for each task. Behind the final chains comes `()`, see `ChainJob`"
    by = 'on valid, mean of all tasks'
    def runs(self, strategy:str, g:dict, n:int, final:bool)->list: return [[replace(r, strategy=strategy, seed=i, final=final, **g) for r in self.base] for i in range(n)]
    def scores(self, row:list)->tuple[float, float]: return _score(row, self.base), float('nan')
    def __call__(self, found:list, progress:Progress)->list: return [*super().__call__(found, progress), ()]


@lru_cache(maxsize=1)
def _shared(bases, out):
    return Accuracies(list(bases)), replace(load_source(bases[0], out), retention=None)


@dataclass(frozen=True)
class ChainJob(Job):
    "The chains of one study, for `run_all`: pieces are lists of `Run`s, and `()`, which measures the models that nothing was trained with"
    out: str # Folder of the study
    bases: tuple # A `Run` for each task

    def _key(self, chain): return next(iter(_stages(chain)))[1] if chain else hash_fields([asdict(r) for r in self.bases])
    def folder(self, chain:tuple)->Path: return Path(self.out)/'stages'/self._key(chain)

    def read(self, chain:tuple, since:float|None, progress:Progress)->list|None:
        if chain: return finished_chain(chain, self.out, progress, since)
        d = read_sealed(self.folder(chain), 'result.json', progress, 'measured again')
        return d and d['rows']

    def do(self, chain:tuple, since:float|None, progress:Progress)->list:
        if (rows := from_rank0(lambda: self.read(chain, since, progress))) is not None:
            self.report(rows, True, progress)
            return rows
        accuracies, source = _shared(self.bases, self.out)
        if chain: return train_chain(chain, source, self.out, accuracies, progress, False, since)
        with claim_folder(self.folder(chain), progress, False) as folder:
            set_seed(0)
            random = create_model(self.bases[0].model, 1, **self.bases[0].options())[0].to(next(source.model.parameters()).device)
            shared = dict(status='ok', error='', final=True)
            rows = [dict(strategy='untouched', key=self.bases[0].source_key, stage=0, task='source', anchor=source.id) | shared | accuracies(source.model[0], [source.head]),
                    dict(strategy='random') | shared | accuracies(random, [])]
            if not rank_distrib(): store.write_json(folder/'result.json', dict(rows=rows, files={}))
        return rows

    def at(self, chain:tuple)->tuple: return (chain or self.bases)[-1], epochs_done(self.folder(chain))
    def listener(self)->Progress: return LiveProgress()
    def report(self, rows:list, skipped:bool, progress:Progress)->None:
        if rows[0]['strategy'] != 'untouched': _tell(rows, self.bases, skipped, progress)

    def fail(self, chain:tuple, error:str)->None:
        if not chain: raise RuntimeError(f'the models before training cannot be measured: {error}')
        for run, key, before in _stages(chain):
            folder = Path(self.out)/'stages'/key
            if _stage(folder, Progress(), None) is None:
                with store.claim(folder):
                    row = {k:getattr(run, k) for k in ('strategy', 'strategy_args', 'lam', 'lr', 'seed', 'epochs', 'final')} | dict(key=key, before=before, seconds=0., status='failed', error=error)
                    store.write_json(folder/'result.json', row | dict(ended=time.time(), files={}))
                return
