"The model before fine-tuning, trained once for all runs of a study, and what strategies and metrics derive from it."
import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from safetensors.torch import load_file
from torch import nn

from ..data.datasets import create_task
from ..errors import Damaged, InputError
from ..metrics.extra import split_extra
from ..metrics.features import probe_head
from ..metrics.kept import KeptAccuracy
from ..metrics.retention import Retention
from ..models.encoders import create_model
from ..models.features import extract
from ..models.weights import load_encoder, save_weights, state_hash
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.memory import keep_freed_memory
from ..runtime.progress import Progress
from ..runtime.resume import Resume
from ..strategies.feature_maps import channel_attention
from ..strategies.importance import Importance, empirical_fisher, mas_importance
from ..strategies.path_integral import PathIntegral
from .check_data import check_data
from .config import Run
from .failures import source_errors
from .fit import SkipValidation, fit_model
from .folder import claim_folder, read_sealed, versions
from .loaders import FISHER_CLIPS, PROBE_CLIPS, balanced_loader, importance_loader, load_part, source_data
from .source_files import (
    dump_importance,
    load_importance,
    load_path_integral,
    read_reference,
    source_folder,
    write_path_integral,
    write_reference,
)

__all__ = ['SourceModel', 'untouched', 'load_source']

BARRIER_AT = (.25, .5, .75)  # places between the weights before and after fine-tuning where `Run.with_barrier` measures


@dataclass
class SourceModel:
    "The model before fine-tuning, and what strategies need from it; importances are computed at first use"
    model: nn.Sequential  # encoder and head of the source task
    retention: Retention|None  # measures what an encoder kept; `None` without a source task
    batches: object  # loader of source clips with balanced classes; `None` without a source task
    id: str  # hash of the encoder's weights
    path_integral: Importance|None = None  # SI's importance, if the source was trained
    folder: Path|None = None  # where importances are stored for other processes
    measures: dict = field(default_factory=dict)  # what `kept` has made, by its argument

    @property
    def head(self)->nn.Module:
        head = self.model[1] if self.batches is not None else None
        return self._need('the old head is of', head)

    @cached_property
    def fisher(self)->Importance:
        def compute():
            batches = self._need('Fisher information is of', self.batches)
            return empirical_fisher(self.model, batches, FISHER_CLIPS)
        return self._importance('fisher', compute)

    @cached_property
    def mas(self)->Importance:
        def compute():
            batches = self._need('the importance of memory-aware synapses is of', self.batches)
            return mas_importance(self.model, batches, FISHER_CLIPS)
        return self._importance('mas', compute)

    @property
    def si(self)->Importance:
        return self._need('SI needs to see how the weights were learned (--source-epochs): its importance is of '
                          'training on', self.path_integral)

    @cached_property
    def attention(self)->dict: return channel_attention(self.model, self._need("DELTA's attention is of", self.batches))

    @property
    def reference(self)->dict:
        "Scores of the untouched encoder"
        return self._need('what an untouched encoder scores is of', self.retention).reference.recorded

    def kept(self, by:str)->KeptAccuracy:
        "The measure of what is left of the source, on its valid part, by which budgets adapt strengths"
        retention = self._need('what is kept is measured on', self.retention)
        if retention.valid_dl is None:
            raise InputError('retain is measured on a held-out part of the source: take a Run with source_valid=True')
        if by not in self.measures:
            self.measures[by] = KeptAccuracy(self.model, retention.valid_dl, retention.train_dl, by)
        return self.measures[by]

    def _need(self, what, value):
        if value is None: raise InputError(f'{what} a source task, and this study has none')
        return value

    def _importance(self, name, compute):
        "An importance, computed once and stored, so that all processes and resumed runs use the same one"
        if self.folder is None or num_distrib() > 1: return compute()
        file = self._stored(name)
        # read it back even if it was just computed: the file's order of parameters decides how its mean is rounded
        if file is None: file = store.put(self.folder, name, dump_importance(compute()), 'safetensors')
        return load_importance(file).to(next(self.model.parameters()).device)

    def _stored(self, name):
        try: files = store.find(self.folder, name, 'safetensors')
        except Damaged as e:
            warnings.warn(f'{e}; it is computed again')
            return None
        return files[0] if files else None


@dataclass
class Untouched:
    "The stored facts about a finished study's `SourceModel`, for which no clip has to be read"
    id: str  # hash of the encoder's weights
    reference: dict  # scores of the untouched encoder


_sources: dict[str, SourceModel] = {}  # folder and settings of retention -> `SourceModel`


def forget_sources()->None:
    "Drop the source models that this process has loaded: their files have changed"
    _sources.clear()


def untouched(
    run:Run, # Any run of the study
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
)->Untouched|SourceModel: # Has `id` and `reference`
    "The scores of a study's untouched encoder, for `compare_rows`: read from the study's folder, or measured"
    known = read_reference(run, out, progress)
    return Untouched(**known) if known else load_source(run, out, progress)


@source_errors()
def load_source(
    run:Run, # Only the settings that decide this model matter
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
)->SourceModel: # The same object at each call in a process
    """The model to fine-tune: `init` or random weights, trained on the source for `source_epochs` with `source_seed`.

    With no source epochs the encoder stays as it is, and the source head is a linear probe on its features. The model
    is stored in `out/source/<source_key>`; one process trains it, and the others wait. Without a source task there is
    no `retention`. Raises `InputError` if training diverges."""
    folder = source_folder(run, out)
    place = f'{folder.resolve()} {run.others} {run.with_barrier} {run.extra}'
    if place in _sources: return _sources[place]
    model, path_integral = source_weights(run, out, progress)
    id = state_hash(model[0].state_dict())
    if not run.source:
        _sources[place] = SourceModel(model, None, None, id)
        return _sources[place]
    task, dls, _ = source_data(run)
    retention = _make_retention(run, model, folder/'features')
    _sources[place] = SourceModel(model, retention, importance_loader(run, task, dls), id, path_integral, folder)
    _store_reference(run, out, _sources[place], progress)
    return _sources[place]


@source_errors()
def source_weights(
    run:Run, # Only the settings that decide this model matter
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
)->tuple: # The model, and SI's importance of its weights, `None` if it was not trained
    "The model of `load_source`, loaded from the study's folder, or trained if no process has trained it yet"
    if not torch.cuda.is_available(): keep_freed_memory()
    check_data(run, out)
    if not run.source:
        set_seed(run.source_seed)
        return create_model(run.model, 1, run.init, **run.options()), None
    task, dls, _ = source_data(run)
    set_seed(run.source_seed)
    model = create_model(run.model, len(task.vocab), run.init, **run.options())
    folder = source_folder(run, out)
    with claim_folder(folder, progress):
        if from_rank0(lambda: read_sealed(folder, 'source.json', progress, 'trained again')):
            load_encoder(model[0], folder/'encoder.safetensors')
            model[1].load_state_dict(load_file(folder/'head.safetensors'))
        else: _train_source(run, model, folder, progress)
        path_integral = load_path_integral(folder)
    for p in model.parameters(): p.requires_grad_(True)
    return model.to(dls.device), path_integral


def _train_source(run, model, folder, progress):
    "Train `model` on the source task, or only fit its head, and store it"
    task, dls, _ = source_data(run)
    start, resume, importance = time.time(), Resume(folder, progress.say), None
    progress.start('source task', run.source_epochs)
    if run.source_epochs: importance = _fit_source(run, model, dls, resume, progress)
    else:
        model.to(dls.device)
        features = extract(model[0], balanced_loader(task, dls, PROBE_CLIPS))
        model[1] = probe_head(*features, len(task.vocab)).to(dls.device)
    if not rank_distrib():
        _write_source(model, importance, folder, time.time() - start + resume.seconds)
        resume.remove()
    from_rank0(lambda: None)  # wait until all files are there


def _fit_source(run, model, dls, resume, progress):
    integral = PathIntegral()
    cbs = [integral, resume, SkipValidation()]
    _, why = fit_model(dls, model, run.source_epochs, run.source_lr, run.source_seed, cbs, progress)
    if why: raise InputError(f'training on the source task {why}; try a smaller source_lr than {run.source_lr}')
    return integral.importance()


def _write_source(model, importance, folder, seconds):
    encoder, head = model
    save_weights(encoder, folder/'encoder.safetensors')
    save_weights(head, folder/'head.safetensors')
    if importance is not None: write_path_integral(importance, folder)
    names = [f'{n}.safetensors' for n in ('encoder', 'head', 'path')]
    files = {n:store.digest(folder/n) for n in names if (folder/n).exists()}
    store.write_json(folder/'source.json', dict(seconds=seconds, encoder=state_hash(encoder.state_dict()),
                                                **versions(), files=files))


def _make_retention(run, model, cache):
    task, dls, test = source_data(run)
    valid = task.dl(dls, 'valid') if run.source_valid else None
    others = {create_task(spec).name:_probe_loaders(run, spec) for spec in run.others.split(';') if spec}
    return Retention(model, balanced_loader(task, dls, PROBE_CLIPS), test, valid_dl=valid, others=others,
                     barrier_at=BARRIER_AT if run.with_barrier else (), extra=split_extra(run.extra), cache=cache)


def _probe_loaders(run, spec):
    "The loaders on which a probe of another task is fitted and measured"
    task, dls, test = load_part(run, spec, 'target', run.bs)
    return balanced_loader(task, dls, PROBE_CLIPS), test


def _store_reference(run, out, source, progress):
    "Store the scores of the untouched encoder, unless another process has done so"
    if rank_distrib() or read_reference(run, out, progress) is not None: return
    with store.claim(source.folder, say=progress.say):
        # look again, as another process may have stored them during the wait; damage was reported before
        if read_reference(run, out, Progress()) is None:
            write_reference(run, out, source.id, source.retention.reference, source_data(run)[0])
