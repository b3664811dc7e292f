"""One stage of a chain of tasks: fine-tuning the previous stage's encoder on one task.

A strategy protects the encoder as it is when the stage begins. From earlier stages, EWC, memory-aware synapses and SI
use the sum of all importances, each scaled to mean 1 so that tasks have equal weight (online EWC with gamma 1, Schwarz
et al., ICML 2018). LwF and Replay have a term for each old head, summed as by Li & Hoiem (2016). Co-Tuning and DELTA
use only the previous stage.

A stage's folder is `out/stages/KEY`; it is claimed, written and sealed as a run's folder is, see `execute`:

    run.json                  settings, and the key of the previous stage
    encoder.safetensors, head.safetensors
    path.safetensors          how much each weight lowered the loss, for SI
    epochs.csv, log.txt
    result.json               written last: accuracies on all tasks, digests, versions"""
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import torch
from fastai.torch_core import rank_distrib
from safetensors.torch import load_file

from ..models.encoders import create_model
from ..models.weights import load_encoder, save_weights, state_hash
from ..runtime.progress import Progress
from ..strategies.importance import Importance
from ..strategies.path_integral import PathIntegral
from ..strategies.registry import STRATEGIES
from .accuracies import Accuracies
from .config import Run, changed_fields, hash_fields
from .execute import train_run
from .folder import is_settled, read_sealed, write_epochs
from .loaders import importance_loader, target_data
from .record import Outcome, write_run
from .retain import strategy_options
from .source import SourceModel
from .source_files import load_path_integral, write_path_integral

__all__ = ['Carried', 'TaskPath']

NOT_IN_ROW = ('files', 'ended', 'calls', 'versions', 'python', 'threads')  # of `result.json`, not in a row
RUN_COLUMNS = ('strategy', 'strategy_args', 'lam', 'lr', 'seed', 'epochs', 'final')  # fields of `Run` in a row


# ---- folders

def stage_keys(runs:Sequence[Run])->Iterator[tuple[Run, str, str]]:
    "`(run, key, key of the previous stage)` of each stage of a chain"
    before = runs[0].source_key
    for run in runs:
        key = hash_fields(changed_fields(run) | dict(before=before))
        yield run, key, before
        before = key


def stage_folder(key:str, out:str|Path)->Path: return Path(out)/'stages'/key


def read_stage(folder:Path, progress:Progress=Progress(), call:str='')->dict|None:
    "The row of a finished stage, else `None`; `call` as in `finished`"
    result = read_sealed(folder, 'result.json', progress, 'trained again')
    if result is None or not is_settled(result, call): return None
    return {k:v for k, v in result.items() if k not in NOT_IN_ROW}


def load_stage(run:Run, folder:Path)->SourceModel:
    "Load a finished stage as the `SourceModel` of the next one"
    task, dls, _ = target_data(run)
    model = create_model(run.model, len(dls.vocab), **run.options())
    load_encoder(model[0], folder/'encoder.safetensors')
    model[1].load_state_dict(load_file(folder/'head.safetensors'))
    id = state_hash(model[0].state_dict())
    batches = importance_loader(run, task, dls)
    return SourceModel(model.to(dls.device), None, batches, id, load_path_integral(folder))


# ---- training

def train_stage(run:Run, past:list, folder:Path, accuracies:Accuracies, row:dict, progress:Progress=Progress(),
                call:str='')->dict:
    "Train a stage or resume it, measure it and write its folder; returns `row` with the results"
    def measure(cbs):
        more = _callbacks(run, past)
        learn, why = train_run(run, Carried(past), progress, [*more, *cbs])
        if rank_distrib(): return Outcome()  # the first process measures
        write_epochs(learn, folder)
        if why: return Outcome(status='diverged', error=why)
        encoder, head = learn.model
        heads = [head]*(len(past) + 1) if run.earlier else [*(s.model[1] for s in past), head]
        numbers = accuracies(encoder, heads, run.final)
        save_weights(encoder, folder/'encoder.safetensors')
        save_weights(head, folder/'head.safetensors')
        for cb in more:
            if isinstance(cb, TaskPath): write_path_integral(cb.importance(), folder)
        return Outcome(numbers)
    row |= {k:getattr(run, k) for k in RUN_COLUMNS} | dict(anchor=past[-1].id)
    return write_run(run, folder, measure, row, progress, call, before=row['before'])


def _callbacks(run, past):
    "Callbacks that a stage needs in addition to the strategy's own"
    if run.strategy == 'si': return [TaskPath()]
    if run.strategy not in ('lwf', 'kl_base', 'replay'): return []
    if run.earlier and run.strategy != 'replay': return []  # one head has all older classes
    strategy, options = STRATEGIES[run.strategy], strategy_options(run, past[-1])
    return [cb for source in past[:-1] for cb in strategy.callbacks(run.lam, source, **options)]  # for each older head


class Carried(SourceModel):
    "The model that a stage protects: the previous stage's, with the importances of all stages"
    def __init__(self,
        past:list, # A `SourceModel` for the source and for each stage since
    ):
        last = past[-1]
        super().__init__(last.model, None, last.batches, last.id, last.path_integral)
        self.past = list(past)

    def _sum(self, name):
        parts = [getattr(source, name) for source in self.past]
        return parts[0] if len(parts) == 1 else reduce(Importance.then, [p.normalized() for p in parts])

    @property
    def fisher(self)->Importance: return self._sum('fisher')
    @property
    def mas(self)->Importance: return self._sum('mas')
    @property
    def si(self)->Importance: return self._sum('si')


class TaskPath(PathIntegral):
    """A `PathIntegral` of the task's loss alone, in a fit with penalties.

    It computes the task's gradient before penalties add theirs, which takes a second backward pass."""
    _task = None

    def before_train(self):
        if self.integral is not None: return
        self.start = {n:p.detach().clone() for n, p in self._weights().items()}
        self.integral = {n:torch.zeros_like(p, dtype=torch.float32) for n, p in self._weights().items()}

    def after_loss(self):  # its order is 4; penalties come later, from order 5
        trained = {n:p for n, p in self._weights().items() if p.requires_grad}
        self._task = {}
        if not trained: return
        grads = torch.autograd.grad(self.learn.loss_grad, list(trained.values()), retain_graph=True, allow_unused=True)
        self._task = dict(zip(trained, grads))

    def before_step(self):
        weights, self._skipped = self._weights(), False
        self._before = {n:(weights[n].detach().clone(), g.float()) for n, g in self._task.items() if g is not None}
