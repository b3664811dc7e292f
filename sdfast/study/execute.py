"""One run: fine-tune the source model as a `Run` says, measure it, and store the result.

The life of a run, in `out/runs/KEY`:

1. *Claimed.* One process at a time works in the folder. If it has an undamaged result, the result is read and nothing
   else happens. Otherwise the files of an earlier attempt are removed, except its last checkpoint, and `run.json` is
   written.
2. *Trained.* After each epoch `Resume` replaces the checkpoint `epoch-NNNNN-DIGEST.pt`. A run whose process died
   resumes from it and ends with the same numbers.
3. *Measured.* Trials are measured on the valid part. Only final runs read test, and only they measure what was kept.
4. *Sealed.* `result.json` is written last, with the digests of all other files; then the checkpoint is removed.

A run that fails is sealed, too, with a status, an error, and a traceback in `log.txt`. A later call tries it again,
unless it diverged. A run with a missing or damaged file is repeated.

    run.json              settings
    epochs.csv            losses and the strategy's terms of each epoch; validation of those that something reads
    scores.csv            class probabilities of the target's test videos; final runs
    scores_best.csv       the same at the epoch that is best on test; final runs with `select='paper'`
    source_scores.csv     the old head's class probabilities of the source's test videos; final runs
    budget.csv            strength and what was kept at each measurement; runs with `retain`
    events.csv            how often each train clip of the target went from right to wrong; final runs with `events`
    source_events.csv     the same of the source's test clips, by the old head
    kept.json, curve.csv  retention scores, and their course over the epochs; final runs
    encoder.safetensors, head.safetensors  the model after training; final runs, on demand
    log.txt               time, settings, versions, warnings, traceback
    result.json           the row, digests, versions"""
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.torch_core import rank_distrib, set_seed
from torch import nn

from ..errors import InputError
from ..metrics.columns import COLUMNS
from ..metrics.curve import RetentionCurve
from ..models.encoders import create_model
from ..models.weights import save_weights
from ..runtime import store
from ..runtime.distributed import from_rank0, single_process
from ..runtime.jobs import Job
from ..runtime.loggers import loggers
from ..runtime.progress import Progress, begin_phase
from ..runtime.resume import epochs_done
from ..strategies.budgeted import Budgeted
from ..strategies.registry import STRATEGIES
from ..strategies.telemetry import Telemetry
from .check_data import check_data
from .config import Run
from .events import event_counters, write_events
from .fit import KeepBest, SkipValidation, fit_model
from .folder import claim_folder, finished, retention_columns, run_folder, write_answers, write_epochs
from .loaders import source_data, target_data
from .progress import LiveProgress
from .record import Outcome, write_failure, write_run
from .retain import strategy_options
from .source import SourceModel, load_source

__all__ = ['execute', 'train_run', 'RunJob']

WEIGHTS = 'encoder.safetensors', 'head.safetensors'


def execute(
    run:Run, # What to do
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
    wait:bool=True, # Wait for another process that works on the run; else raise `Busy`
    call:str='', # See `finished`
    log:Sequence[str]=(), # Loggers in addition to the files, 'tensorboard' or 'wandb'; they write below `out`
    weights:bool=False, # Also store the trained model, for `merge_seeds`; a finished run without it is done again
)->dict: # A row with the fields of `COLUMNS`, and `anchor`
    """Do a run, resume it, or read its result if it is finished.

    A run that fails is a row with a status and an error. Raises `StoreError` if the folder cannot be written."""
    row = from_rank0(lambda: _finished(run, out, progress, call, weights))
    if row is None:
        with claim_folder(run_folder(run, out), progress, wait) as folder:
            row = from_rank0(lambda: _finished_meanwhile(run, out, folder, call, weights))
            if row is None:
                row = _execute(run, out, folder, progress, call, log, weights)
                progress.done(row)
                return row
    progress.done(row, skipped=True)
    return row


def _finished(run, out, progress, call, weights):
    row = finished(run, out, progress, call)
    has_all = not weights or all((run_folder(run, out)/name).exists() for name in WEIGHTS)
    return row if row is None or has_all or row['status'] != 'ok' else None


def _finished_meanwhile(run, out, folder, call, weights):
    "The result of another process that did the run while this one waited for the claim"
    # no progress listener: damage was reported at the first look
    return _finished(run, out, Progress(), call, weights) if (folder/'result.json').exists() else None


def _execute(run, out, folder, progress, call, log, weights):
    check_data(run, out)
    source = load_source(run, out, progress)

    def measure(cbs):
        with loggers(log, run, out) as more:
            return _train_and_measure(run, source, folder, progress, [*cbs, *more], weights, validate=bool(log))
    return write_run(run, folder, measure, known_columns(run) | dict(anchor=source.id), progress, call)


def known_columns(run:Run)->dict:
    "A row of runs.csv with the columns that are known before a run"
    settings = {k:v for k, v in asdict(run).items() if k in COLUMNS}
    return {c:None for c in COLUMNS} | settings | dict(key=run.key, anchor=None)


# ---- training

def _train_and_measure(run, source, folder, progress, cbs, weights, validate):
    learn, why = train_run(run, source, progress, cbs, validate)
    if rank_distrib(): return Outcome()  # the first process measures
    if weights:
        for part, name in zip(learn.model, WEIGHTS): save_weights(part, folder/name)
    with single_process(): return _measure(run, source, folder, learn, why)


def train_run(
    run:Run, # Settings
    source:SourceModel, # From `load_source`
    progress:Progress=Progress(), # Progress listener
    cbs:Sequence[Callback]=(), # More callbacks
    validate:bool=False, # Validate each epoch, even if no epoch is chosen, as for loggers
)->tuple: # The learner after training, and the reason if it diverged, else `None`
    "Train the source's encoder with a new head on the target task"
    task, dls, _ = target_data(run)
    set_seed(run.seed)
    model = create_model(run.model, len(dls.vocab), **run.options())
    model[0].load_state_dict(source.model[0].state_dict())
    if run.earlier: copy_rows(source.model[1], model[1])
    strategy = STRATEGIES[run.strategy].callbacks(run.lam, source, **strategy_options(run, source))
    cbs = [*strategy, Telemetry(), *cbs]
    if run.final and source.retention is not None: cbs.append(RetentionCurve(source.retention))
    cbs += event_counters(run, source)
    if run.select == 'paper': dls = DataLoaders(dls.train, task.dl(dls, 'test'), device=dls.device)
    elif (run.select == 'valid' or run.patience) and not task.count('valid'):
        raise InputError(f'{task.name} has no valid part to choose an epoch or to stop by: '
                         f'valid_frac is {run.valid_frac:g}')
    if run.select != 'last' or run.patience: cbs.append(KeepBest(run.select == 'valid', run.patience))
    elif not validate: cbs.append(SkipValidation(last=False))
    return fit_model(dls, model, run.epochs, run.lr, run.seed, cbs, progress, run.schedule, run.wd)


def copy_rows(
    old:nn.Module, # The head so far, a linear layer
    new:nn.Module, # With more classes; its first ones get the weights of the head so far
)->None:
    "Let a head begin with what another one has learned"
    with torch.no_grad():
        for a, b in zip(new.parameters(), old.parameters()): a[:len(b)] = b.to(a.device)


# ---- measuring

# with `select='paper'` the fit validates on test
PAPER_NAMES = dict(valid_loss='test_loss', accuracy='test_accuracy')


def _measure(run, source, folder, learn, why):
    write_epochs(learn, folder, PAPER_NAMES if run.select == 'paper' else {})
    _write_budget(learn, folder)
    write_events(run, learn, folder)
    if why: return Outcome(status='diverged', error=why)
    numbers = _valid_columns(run, learn)
    if run.final:
        numbers |= measure_final(run, source, learn, folder)
        if source.retention is not None:
            store.write(folder/'curve.csv', pd.DataFrame(learn.retention_curve.history).to_csv(index=False))
        if run.select == 'paper': numbers |= _best_test_columns(run, learn, folder)
    elif run.source_valid and source.retention is not None:
        numbers |= retention_columns(source.retention.held_out(learn.model[0]).flat())
    return Outcome(numbers)


def measure_final(
    run:Run, # Settings
    source:SourceModel, # From `load_source`
    learn:Learner, # Its model is measured
    folder:Path, # Gets the answers and scores
)->dict: # Columns of a row
    "Measure a model on the target's test part, and what its encoder kept"
    numbers = dict(test_clips=target_data(run)[0].count('test'))
    numbers |= _test_columns(run, learn, folder/'scores.csv')
    return numbers if source.retention is None else numbers | _retention(run, source, learn, folder)


def _write_budget(learn, folder):
    "Write how a strategy with a budget has adapted its strength"
    for cb in learn.cbs:
        history = getattr(cb, 'kept_history', None) if isinstance(cb, Budgeted) else None
        if history: store.write(folder/'budget.csv', pd.DataFrame(history).to_csv(index=False))


def _valid_columns(run, learn):
    "Accuracy on valid, and the best epoch where one is chosen"
    has_valid = run.select != 'paper' and target_data(run)[0].count('valid')
    columns = dict(valid_acc1=valid_accuracy(learn) if has_valid else None, valid_clips=has_valid)
    if run.select != 'last':
        best = learn.keep_best
        columns |= dict(best_epoch=best.epoch_, best_valid_acc1=best.best if run.select == 'valid' else None)
    return columns


def valid_accuracy(learn:Learner)->float:
    "Accuracy of the final model, which can differ from the last epoch's: some strategies change it after training"
    with learn.no_bar(), learn.no_logging(): return float(learn.validate()[1])


def _test_columns(run, learn, file):
    "Accuracies on test; writes the class probabilities of each video to `file`"
    task, _, test = target_data(run)
    probs, y = _predict(learn, test)
    write_answers(probs, task, file)
    ranked = probs.argsort(1, descending=True) == y[:, None]
    def accuracy(k): return ranked[:, :k].any(1).float().mean().item()
    return dict(acc1=accuracy(1), acc5=accuracy(5))


def _predict(learn:Learner, dl):
    "Class probabilities of each video, and labels, in the order of `dl`"
    begin_phase('reading test')
    # `dl` does not shuffle, and with `reorder` fastai would load all clips a second time
    with learn.no_bar(), learn.no_logging(): probs, y = learn.get_preds(dl=dl, reorder=False)
    return probs.as_subclass(torch.Tensor).float(), y.as_subclass(torch.Tensor)


def _retention(run, source, learn, folder):
    "Measure what the encoder kept, and write it"
    scores = source.retention(learn.model[0])
    write_answers(scores.answers, source_data(run)[0], folder/'source_scores.csv')
    kept = scores.recorded
    store.write(folder/'kept.json', json.dumps(kept, indent=1))
    return retention_columns(kept)


def _best_test_columns(run, learn, folder):
    "Accuracies at the epoch that is best on test, as the paper's code reports them"
    learn.model.load_state_dict(learn.keep_best.state)
    return {f'best_{k}':v for k, v in _test_columns(run, learn, folder/'scores_best.csv').items()}


# ---- sharing

@dataclass(frozen=True)
class RunJob(Job):
    "The runs of a study as pieces of work for `run_all`"
    out: str # Folder of the study
    log: Sequence[str] = () # See `execute`
    weights: bool = False # Also store the models of final runs, see `execute`

    def folder(self, run:Run)->Path: return run_folder(run, self.out)

    def read(self, run:Run, call:str, progress:Progress=Progress())->dict|None:
        return _finished(run, self.out, progress, call, self.weights and run.final)

    def do(self, run:Run, call:str, progress:Progress=Progress())->dict:
        weights = self.weights and run.final
        return execute(run, self.out, progress, wait=False, call=call, log=self.log, weights=weights)

    def fail(self, run:Run, call:str, error:str)->None:
        with store.claim(self.folder(run)) as folder:
            store.write_json(folder/'run.json', asdict(run))
            write_failure(folder, known_columns(run), call, error)

    def at(self, run:Run)->tuple: return run, epochs_done(self.folder(run))
    def report(self, row:dict, skipped:bool, progress:Progress=Progress())->None: progress.done(row, skipped)
    def listener(self)->Progress: return LiveProgress()
