"""Merging the models of finished runs: soups and Model Stock over seeds, task arithmetic and TIES over tasks.

Nothing is trained but what is missing. A merged model is measured as a run or a stage is, and its folder,
`out/merged/KEY`, is claimed, written and sealed as theirs are. KEY hashes the method, and keys and weights of what is
merged: models that were trained again are merged again."""
import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from safetensors.torch import load_file

from ..data.block import MultiClip
from ..errors import InputError
from ..metrics.columns import COLUMNS
from ..models.encoders import create_model
from ..models.merging import greedy_soup, model_stock, soup, task_arithmetic, ties
from ..models.statistics import reestimate_bn, statistics_moved
from ..models.weights import load_encoder, save_weights
from ..runtime import store
from ..runtime.progress import Progress
from .accuracies import Accuracies
from .chain import train_chain
from .config import Run, hash_fields
from .execute import WEIGHTS, copy_rows, execute, known_columns, measure_final, valid_accuracy
from .folder import claim_folder, read_sealed, run_folder
from .loaders import PROBE_CLIPS, balanced_loader, target_data
from .record import Outcome, write_run
from .source import SourceModel, load_source
from .stage import NOT_IN_ROW, RUN_COLUMNS, load_stage, stage_folder

__all__ = ['merge_seeds', 'merge_tasks']

OF_SEEDS = 'soup', 'greedy_soup', 'model_stock'
OF_TASKS: dict[str, Callable] = dict(task_arithmetic=task_arithmetic, ties=ties)


# ---- seeds

def merge_seeds(
    runs:Sequence[Run], # Final runs that differ in their seed only; the barrier may be measured for some of them
    out:str|Path, # Folder of the study
    method:str='soup', # Or 'greedy_soup', which chooses on valid, or 'model_stock'
    per:int=2, # Models in each merge
    progress:Progress=Progress(), # Progress listener
)->list[dict]: # A row for each merge, with the fields of `COLUMNS` and `anchor`
    """Merge the models of several seeds, `per` at a time: with 2 those of seeds 0 and 1, then of 2 and 3.

    No run is in two merges, so rows are independent. A row has the first seed of its runs; its strategy is named after
    the method, such as 'finetune+soup'. Runs that were finished without their weights are done again.

    Heads, and by 'model_stock' too, are averaged: they have no weights from before training in common. Batch-norm
    statistics are recomputed from train clips of the target."""
    if method not in OF_SEEDS: raise InputError(f'seeds are merged by {", ".join(OF_SEEDS)}, not {method!r}')
    _check_seeds(runs, per)
    groups = [runs[i:i + per] for i in range(0, len(runs) - per + 1, per)]
    return [_merge_group(group, Path(out), method, progress) for group in groups]


def _check_seeds(runs, per):
    if not isinstance(per, int) or not 2 <= per <= len(runs):
        raise InputError(f'per must be a whole number from 2 to the number of runs, {len(runs)}, not {per!r}')
    first = runs[0]
    if len({r.seed for r in runs}) < len(runs) or any(_but_seed(r) != _but_seed(first) for r in runs):
        raise InputError('merge_seeds needs runs that differ in their seed, and in nothing else')
    if not first.final or first.select != 'last' or first.strategy == 'lora':
        raise InputError("merge_seeds needs final runs with select='last', and not those of lora, whose encoders have "
                         'other layers')


def _but_seed(run): return {k:v for k, v in vars(run).items() if k not in ('seed', 'with_barrier')}


def _merge_group(group, out, method, progress):
    run = group[0]
    rows = [execute(r, out, progress, weights=True) for r in group]
    weights = [_weights_id(run_folder(r, out)) for r in group]
    key = hash_fields(dict(merge=method, runs=[r.key for r in group], weights=weights))
    folder = out/'merged'/key
    with claim_folder(folder, progress):
        row = read_sealed(folder, 'result.json', progress, 'merged again')
        if row is None or row['status'] != 'ok':
            source = load_source(run, out, progress)

            def measure(cbs):
                _check_rows(rows)
                model = _merged([_load_run(r, out) for r in group], run, source, method)
                learn = _learner(run, model)
                valid = target_data(run)[0].count('valid')
                found = dict(valid_acc1=valid_accuracy(learn) if valid else None, valid_clips=valid)
                for part, name in zip(model, WEIGHTS): save_weights(part, folder/name)
                return Outcome(found | measure_final(run, source, learn, folder))
            row = known_columns(run) | dict(key=key, strategy=f'{run.strategy}+{method}', anchor=source.id)
            row = write_run(run, folder, measure, row, progress, merge=method, runs=[r.key for r in group])
    return {c:row.get(c) for c in [*COLUMNS, 'anchor']}


def _weights_id(folder):
    "Digest of a finished model's encoder; '' if it has none, as its training failed"
    file = folder/WEIGHTS[0]
    return store.digest(file) if file.exists() else ''


def _check_rows(rows):
    bad = [r for r in rows if r['status'] != 'ok']
    if bad: raise InputError(f'{bad[0]["key"]}, one of the runs to merge, has status {bad[0]["status"]}: '
                             f'{bad[0]["error"]}')


def _load_run(run, out):
    "The model that a finished run has stored"
    folder = run_folder(run, out)
    model = create_model(run.model, len(target_data(run)[1].vocab), **run.options())
    load_encoder(model[0], folder/WEIGHTS[0])
    model[1].load_state_dict(load_file(folder/WEIGHTS[1]))
    return model.to(target_data(run)[1].device)


def _merged(models, run, source, method):
    task, dls, _ = target_data(run)
    batches, start = [balanced_loader(task, dls, PROBE_CLIPS)], source.model[0]

    def measure(model):
        _recompute(model, start, batches)
        return valid_accuracy(_learner(run, model))
    if method == 'greedy_soup':
        if not task.count('valid'): raise InputError(f'{task.name} has no valid part for greedy_soup to choose on')
        state, _ = greedy_soup(models, measure)
    else: state = soup(models)
    model = copy.deepcopy(models[0])
    model.load_state_dict(state)
    if method == 'model_stock': model[0].load_state_dict(model_stock([m[0] for m in models], start))
    return _recompute(model, start, batches)


def _recompute(model, start, loaders):
    "Recompute batch-norm statistics from loaders, unless training has left them as they were"
    if not statistics_moved(model[0].state_dict(), start.state_dict()): return model
    return reestimate_bn(model, (batch for dl in loaders for batch in dl), model[0])


def _learner(run, model):
    return Learner(target_data(run)[1], model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[MultiClip()])


# ---- tasks

def merge_tasks(
    runs:Sequence[Run], # A `Run` for each task in order, as for `train_chain`
    source:SourceModel, # From `load_source`
    out:str|Path, # Folder of the study
    accuracies:Accuracies, # Measures all tasks: `Accuracies(runs)`
    method:str='ties', # Or 'task_arithmetic'
    lam:float=1., # Weight of what was learned, see `ties` and `task_arithmetic`
    progress:Progress=Progress(), # Progress listener
)->list[dict]: # A row for each number of tasks, as of the stages of a chain
    """Fine-tune the source's encoder on each task by itself, and merge the encoders of the first task, of the first
    two, and so on.

    Rows are those of `train_chain`, with a strategy such as 'finetune+ties': they say what is left of the source and of
    each task after so many tasks. A model of one task is the first stage of a chain; a finished one is read.

    Batch-norm statistics are recomputed from train clips of the tasks so far."""
    if method not in OF_TASKS: raise InputError(f'tasks are merged by {" and ".join(OF_TASKS)}, not {method!r}')
    merge = partial(OF_TASKS[method], lam=lam)
    models: list = []
    keys: list[tuple] = []
    rows: list[dict] = []
    for run, name in zip(runs, accuracies.names[1:]):
        single, = train_chain([run], source, out, Accuracies([run]), progress)
        if single['status'] != 'ok': return [*rows, single]
        models.append(load_stage(run, stage_folder(single['key'], out)).model)
        keys.append((single['key'], _weights_id(stage_folder(single['key'], out))))
        about = {k:getattr(run, k) for k in RUN_COLUMNS} | dict(strategy=f'{run.strategy}+{method}', lam=lam)
        about |= dict(before=runs[0].source_key, stage=len(models), task=name, anchor=source.id)
        made = partial(_merge_tasks, models, list(runs[:len(models)]), source, merge)
        rows.append(_task_row(run, made, accuracies, about, hash_fields(dict(merge=method, lam=lam, runs=keys)),
                              Path(out), progress))
    return rows


def _merge_tasks(models, runs, source, merge):
    "The merged encoder, and the heads of source and tasks, or one head for all of their classes"
    model = copy.deepcopy(models[0])
    start = source.model[0]
    model[0].load_state_dict(merge([m[0] for m in models], start))
    parts = [target_data(r) for r in runs]
    _recompute(model, start, [balanced_loader(task, dls, PROBE_CLIPS) for task, dls, _ in parts])
    heads = [source.model[1], *(m[1] for m in models)]
    return model[0], [_join(heads, parts)]*len(heads) if runs[0].earlier else heads


def _join(heads, parts):
    "One head, in which each class has the weights of the last model that was trained on it"
    joint = copy.deepcopy(heads[-1])
    copy_rows(heads[0], joint)
    with torch.no_grad():
        for head, (task, dls, _) in zip(heads[1:], parts):
            numbers = [list(dls.vocab).index(c) for c in task.vocab]
            for a, b in zip(joint.parameters(), head.parameters()): a[numbers] = b[numbers]
    return joint


def _task_row(run, make, accuracies, about, key, out, progress):
    folder = out/'merged'/key
    with claim_folder(folder, progress):
        row = read_sealed(folder, 'result.json', progress, 'merged again')
        if row is None or row['status'] != 'ok':
            def measure(cbs):
                encoder, heads = make()
                save_weights(encoder, folder/WEIGHTS[0])
                return Outcome(accuracies(encoder, heads, run.final))
            row = write_run(run, folder, measure, about | dict(key=key), progress)
    return {k:v for k, v in row.items() if k not in NOT_IN_ROW}
