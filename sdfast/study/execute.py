"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import gc
import json
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.torch_core import num_distrib, rank_distrib, set_seed

from ..data.video import VideoError
from ..errors import InputError, StoreError
from ..metrics.columns import COLUMNS
from ..metrics.curve import RetentionCurve
from ..models.encoders import create_model
from ..runtime import store
from ..runtime.distributed import from_rank0, single_process
from ..runtime.launch import Job
from ..runtime.loggers import loggers
from ..runtime.progress import Progress
from ..runtime.resume import Resume, epochs_done
from ..strategies.registry import STRATEGIES
from ..strategies.telemetry import Telemetry
from .config import Run
from .fit import KeepBest, error_message, fit_model
from .folder import claim_folder, finished, retention_columns, versions, write_answers, write_epochs
from .loaders import source_data, target_data
from .progress import LiveProgress
from .source import SourceModel, load_source

__all__ = ['execute', 'train_run', 'RunJob']



def execute(
    run:Run, # What to do
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what happens
    wait:bool=True, # For another process that is at it; else raise `Busy`
    since:float|None=None, # See `finished`
    log:Sequence[str]=(), # Also 'tensorboard' or 'wandb', below `out`
)->dict: # A row with the fields of `COLUMNS`, and `anchor`
    """Do one run, go on with it, or read its result if it is finished. A run that fails is a row with its error: it diverged, ran
    out of memory, or its data are bad. Raises `StoreError` if the folder cannot be written to"""
    def ready(): return from_rank0(lambda: finished(run, out, progress, since))
    if (row := ready()) is None:
        with claim_folder(Path(out)/'runs'/run.key, progress, wait) as folder:
            if not rank_distrib() and (folder/'result.json').exists(): # by another process meanwhile, else worth nothing
                row = finished(run, out, Progress(), since)
            if (row := from_rank0(lambda: row)) is None:
                row = _execute(run, out, folder, progress, log)
                progress.done(row)
                return row
    progress.done(row, skipped=True)
    return row


def _execute(run, out, folder, progress, log):
    source = load_source(run, out, progress)
    def measure(cbs):
        with loggers(log, run, out) as more: return _measure(run, source, folder, progress, [*cbs, *more])
    return write_run(run, folder, progress, measure, {c:None for c in COLUMNS} | {k:v for k, v in asdict(run).items() if k in COLUMNS} | dict(key=run.key, anchor=source.id))


def write_run(
    run:Run,
    folder:str|Path, # Claimed; what an earlier try left in it is removed, but for its last finished epoch
    progress:Progress,
    measure:Callable, # Function of callbacks for the learner: trains, measures, writes to `folder` and returns `(status, numbers, error)`
    row:dict, # What is known of the result
    **more, # Also written to `run.json`
)->dict: # `row` with numbers, status, error and seconds
    "Do a run, and write down what it found or how it failed"
    if not rank_distrib():
        folder.mkdir(parents=True, exist_ok=True)
        leave = [store.LOCK, store.OWNER, *(f.name for f in store.find(folder, 'epoch-*', 'pt', check=False))]
        for f in folder.iterdir():
            if f.is_file() and f.name not in leave: f.unlink()
        store.write_json(folder/'run.json', asdict(run) | more)
    start, resume, numbers, trace = time.time(), Resume(folder, progress.say), {}, ''
    progress.start(run, run.epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: status, numbers, error = measure([resume])
        except StoreError: raise
        except Exception as e: status, error, trace = failure_status(e), f'{type(e).__name__}: {error_message(e)}', traceback.format_exc()
    if trace:  # what the exception held on to
        gc.collect()
        if torch.cuda.is_available(): torch.cuda.empty_cache()
    row = row | numbers | dict(seconds=round(time.time() - start + resume.seconds, 2), status=status, error=error)
    if not rank_distrib() or trace:
        notes = '\n'.join(dict.fromkeys(f'{w.category.__name__}: {w.message}' for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))))
        store.write(folder/'log.txt', f'{time.strftime("%F %T")}\n{run}\n{versions()}\n{notes}\n{trace}')
        leave = ['result.json', *(f.name for f in store.find(folder, 'epoch-*', 'pt', check=False))]
        store.write_json(folder/'result.json', row | dict(ended=time.time(), files=store.seal(folder, leave), **versions()))
        resume.remove()
    # the processes of one run are no longer in step; torchrun ends the others, and the next start reads the row
    if trace and num_distrib() > 1: raise SystemExit(f'{error}; start torchrun again to go on')
    return from_rank0(lambda: row)


def failure_status(e):
    if isinstance(e, FloatingPointError): return 'diverged'
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or isinstance(e, RuntimeError) and "can't allocate memory" in str(e): return 'out of memory'
    return 'bad data' if isinstance(e, VideoError) else 'failed'


def train_run(
    run:Run, # What to do
    source:SourceModel, # From `load_source`
    progress:Progress=Progress(), # Is told of epochs
    cbs:Sequence[Callback]=(), # More callbacks
)->tuple: # The learner after training, and why it stopped early or `None`
    "Train the source's encoder with a new head on the target task, as `run` says"
    task, dls, _ = target_data(run)
    set_seed(run.seed)
    model = create_model(run.model, len(task.vocab), **run.options())
    model[0].load_state_dict(source.model[0].state_dict())
    cbs = [*STRATEGIES[run.strategy].callbacks(run.lam, source, **run.options('strategy_args')), Telemetry(), *cbs]
    if run.final and source.retention is not None: cbs.append(RetentionCurve(source.retention))
    if run.select == 'paper': dls = DataLoaders(dls.train, task.dl(dls, 'test'), device=dls.device)
    elif not task.count('valid') and (run.select == 'valid' or run.patience):
        raise InputError(f'{task.name} has no valid part to choose an epoch or to stop by: valid_frac is {run.valid_frac:g}')
    if run.select != 'last' or run.patience: cbs.append(KeepBest(run.select == 'valid', run.patience))
    return fit_model(dls, model, run.epochs, run.lr, run.seed, cbs, progress, run.schedule, run.wd)


def _measure(run, source, folder, progress, cbs):
    "Fine-tune and measure: `(status, numbers, error)`"
    learn, why = train_run(run, source, progress, cbs)
    if rank_distrib(): return 'ok', {}, ''  # the first process measures
    with single_process(): return _found(run, source, folder, learn, why)


def _found(run, source, folder, learn, why):
    write_epochs(learn, folder, dict(valid_loss='test_loss', accuracy='test_accuracy') if run.select == 'paper' else {})
    if why: return 'diverged', {}, why
    measured, best = dict(valid_acc1=_valid(learn) if run.select != 'paper' and target_data(run)[0].count('valid') else None), getattr(learn, 'keep_best', None)
    if run.select != 'last': measured |= dict(best_epoch=best.epoch_, best_valid_acc1=best.best if run.select == 'valid' else None)
    if run.final:
        measured |= _score(run, learn, folder/'scores.csv')
        if source.retention is not None:
            kept = source.retention(learn.model[0])
            write_answers(kept.answers, source_data(run)[0], folder/'source_scores.csv')
            kept = kept.flat()
            store.write(folder/'kept.json', json.dumps(kept, indent=1))
            store.write(folder/'curve.csv', pd.DataFrame(learn.retention_curve.history).to_csv(index=False))
            measured |= retention_columns(kept)
        if run.select == 'paper':
            learn.model.load_state_dict(best.state)
            measured |= {f'best_{k}':v for k, v in _score(run, learn, folder/'scores_best.csv').items()}
    elif run.source_valid and source.retention is not None: measured |= retention_columns(source.retention.held_out(learn.model[0]).flat())
    return 'ok', measured, ''


def _valid(learn):
    "Accuracy on valid as the model is now: some strategies change it when the fit is over"
    with learn.no_bar(), learn.no_logging(): return float(learn.validate()[1])


def _score(run, learn, file):
    "Accuracies on test; each video's answer goes to `file`"
    task, _, test = target_data(run)
    probs, y = _predict(learn, test)
    write_answers(probs, task, file)
    ranked = probs.argsort(1, descending=True) == y[:, None]
    return dict(acc1=ranked[:, :1].any(1).float().mean().item(), acc5=ranked[:, :5].any(1).float().mean().item())


def _predict(learn, dl):
    "Class probabilities of each video and labels, in the order of `dl`"
    with learn.no_bar(), learn.no_logging(): probs, y = learn.get_preds(dl=dl, reorder=False)  # nor does `dl` shuffle; to reorder, fastai would load it anew
    return probs.as_subclass(torch.Tensor).float(), y.as_subclass(torch.Tensor)


@dataclass(frozen=True)
class RunJob(Job):
    "The runs of one study, for `run_all`: pieces are `Run`s"
    out: object # Folder of the study
    log: tuple = () # See `execute`

    def folder(self, run:Run)->Path: return Path(self.out)/'runs'/run.key
    def read(self, run:Run, since:float|None, progress:Progress)->dict|None: return finished(run, self.out, progress, since)
    def do(self, run:Run, since:float|None, progress:Progress)->dict: return execute(run, self.out, progress, False, since, self.log)
    def at(self, run:Run)->tuple: return run, epochs_done(self.folder(run))
    def report(self, row:dict, skipped:bool, progress:Progress)->None: progress.done(row, skipped)
    def listener(self)->Progress: return LiveProgress()

    def fail(self, run:Run, error:str)->None:
        with store.claim(self.folder(run)) as folder:
            row = {c:None for c in [*COLUMNS, 'anchor']} | {k:v for k, v in asdict(run).items() if k in COLUMNS} | dict(key=run.key, seconds=0., status='failed', error=error)
            store.write_json(folder/'run.json', asdict(run))
            store.write_json(folder/'result.json', row | dict(ended=time.time(), files=dict(), **versions()))
