"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import time
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from safetensors.torch import load_file
from torch import nn

from ..data.datasets import create_task
from ..errors import Damaged, InputError
from ..metrics.features import probe_head
from ..metrics.retention import Retention
from ..models.encoders import create_model
from ..models.features import extract
from ..models.weights import load_encoder, save_weights, state_hash
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.memory import keep_freed_memory
from ..runtime.progress import Progress
from ..runtime.resume import Resume
from ..strategies.distill import channel_attention
from ..strategies.importance import Importance, PathIntegral, empirical_fisher, mas_importance
from .config import Run
from .fit import SkipValidation, fit_model
from .folder import (
    claim_folder,
    dump_importance,
    load_importance,
    load_path_integral,
    read_reference,
    read_sealed,
    source_folder,
    versions,
    write_reference,
)
from .loaders import FISHER_CLIPS, PROBE_CLIPS, balanced_loader, load_part, source_data

__all__ = ['SourceModel', 'untouched', 'load_source']



@dataclass
class SourceModel:
    "The model before fine-tuning, what it scores, and what strategies ask of it"
    model: nn.Sequential  # encoder and the head of the source
    retention: Retention|None  # `None` without a source task
    batches: object  # loader of source clips, classes balanced
    id: str  # hash of the encoder's weights
    path_integral: Importance|None = None  # what each weight contributed, where we trained the source
    folder: Path|None = None  # keeps the importances for other processes

    def _need(self, what, value):
        if value is None: raise InputError(f'{what} a source task, and this study has none')
        return value

    def _importance(self, name, make):
        "Computed once for all processes, and the same for a run that goes on in another"
        if self.folder is None or num_distrib() > 1: return make()
        device = next(self.model.parameters()).device
        try: files = store.find(self.folder, name, 'safetensors')
        except Damaged as e: files = warnings.warn(f'{e}; it is computed anew')
        # read back by who computed it, too: in another order its mean would be rounded in another way
        return load_importance(files[0] if files else store.put(self.folder, name, dump_importance(make()), 'safetensors')).to(device)

    @property
    def head(self)->nn.Module: return self._need('the old head is of', self.model[1] if self.batches is not None else None)
    @cached_property
    def fisher(self)->Importance: return self._importance('fisher', lambda: empirical_fisher(self.model, self._need('Fisher information is of', self.batches), FISHER_CLIPS))
    @cached_property
    def mas(self)->Importance: return self._importance('mas', lambda: mas_importance(self.model, self._need('the importance for MAS is of', self.batches), FISHER_CLIPS))
    @cached_property
    def attention(self)->dict: return channel_attention(self.model, self._need("DELTA's attention is of", self.batches))
    @property
    def si(self)->Importance: return self._need('SI needs the way in which the weights were learned (--source-epochs): its importance is of training on', self.path_integral)
    @property
    def reference(self)->dict: return self._need('what an untouched encoder scores is of', self.retention).reference.flat()


@dataclass
class Untouched:
    "What a finished study knows of a `SourceModel` without reading a clip"
    id: str
    reference: dict


_sources = {}


def untouched(
    run:Run, # One of the study
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what happens
)->Untouched|SourceModel: # Has `id` and `retention`
    "What the untouched encoder of a study scores, for `compare_rows`: as a run wrote it down, else measured"
    return Untouched(**known) if (known := read_reference(run, out, progress)) else load_source(run, out, progress)


def load_source(
    run:Run, # Of which only what decides this model counts
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what happens
)->SourceModel: # The same object the next time
    """The model to fine-tune: `init` or random weights, trained on the source for `source_epochs`; seed 0 for all runs.

    With no source epochs the encoder stays as it is, and the source head is a linear probe on its features. Saved in
    `out/source/<source_key>` and loaded from there the next time; of several processes one trains it, and the others wait. With
    no source task nothing of it is measured. Raises `InputError` if training diverges."""
    folder = source_folder(run, out)
    place = f'{folder.resolve()} {run.others} {run.with_barrier}'
    if (hit := _sources.get(place)) is not None: return hit
    model, path = source_weights(run, out, progress)
    if not run.source:
        _sources[place] = hit = SourceModel(model, None, None, state_hash(model[0].state_dict()))
        return hit
    task, dls, test = source_data(run)
    def loaders(spec):
        task, dls, test = load_part(run, spec, 'target', run.bs)
        return balanced_loader(task, dls, PROBE_CLIPS), test
    retention = Retention(model, balanced_loader(task, dls, PROBE_CLIPS), test, valid_dl=task.dl(dls, 'valid') if run.source_valid else None,
                          others={create_task(spec).name:loaders(spec) for spec in filter(None, run.others.split(';'))}, barrier_at=(.25, .5, .75) if run.with_barrier else (),
                          cache=folder/'features')
    _sources[place] = hit = SourceModel(model, retention, balanced_loader(task, dls, 120 if run.quick else FISHER_CLIPS), state_hash(model[0].state_dict()), path, folder)
    if not rank_distrib() and read_reference(run, out, progress) is None:
        with store.claim(folder, told=progress.say):
            if read_reference(run, out, Progress()) is None: write_reference(run, out, hit, task)  # else one was first, while this process waited
    return hit


def source_weights(
    run:Run, # Of which only what decides this model counts
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what happens
)->tuple: # The model, and what each weight contributed where it was trained
    "What `load_source` measures: trained if nobody has trained it yet, else loaded"
    if not torch.cuda.is_available(): keep_freed_memory()
    task, dls, _ = source_data(run) if run.source else (None,)*3
    set_seed(0)
    model = create_model(run.model, len(task.vocab) if task else 1, run.init, **run.options())
    if task is None: return model, None
    folder = source_folder(run, out)
    with claim_folder(folder, progress):
        if from_rank0(lambda: read_sealed(folder, 'source.json', progress, 'trained again')):
            load_encoder(model[0], folder/'encoder.safetensors')
            model[1].load_state_dict(load_file(folder/'head.safetensors'))
            path = load_path_integral(folder)
        else: path = _train_source(run, model, task, dls, folder, progress)
    for p in model.parameters(): p.requires_grad_(True)
    return model.to(dls.device), path


def _train_source(run, model, task, dls, folder, progress):
    "Train `model` on the source, or fit its head, and write it down; returns what each weight contributed, if it was trained"
    start, path, resume = time.time(), None, Resume(folder, progress.say)
    progress.start('source task', run.source_epochs)
    if run.source_epochs:
        integral = PathIntegral()
        learn, why = fit_model(dls, model, run.source_epochs, run.source_lr, 0, [integral, resume, SkipValidation()], progress)
        if why: raise InputError(f'training on the source task {why}; try a smaller source_lr than {run.source_lr}')
        path = integral.importance()
    else:
        model.to(dls.device)
        model[1] = probe_head(*extract(model[0], balanced_loader(task, dls, PROBE_CLIPS)), len(task.vocab)).to(dls.device)
    if not rank_distrib():
        for part, name in zip(model, ('encoder', 'head')): save_weights(part, folder/f'{name}.safetensors')
        if path is not None: store.write(folder/'path.safetensors', dump_importance(path))
        names = [f'{n}.safetensors' for n in ('encoder', 'head', 'path')]
        store.write_json(folder/'source.json', dict(seconds=time.time() - start + resume.seconds, encoder=state_hash(model[0].state_dict()), **versions(),
                                                    files={n:store.digest(folder/n) for n in names if (folder/n).exists()}))
        resume.remove()
    from_rank0(lambda: None)  # it is all there
    return load_path_integral(folder)  # as those have it who come later
