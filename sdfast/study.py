"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import gc, hashlib, json, math, random, sys, time, traceback, warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from . import store
from .decoded import decoded_folder
from .errors import Damaged, InputError, StoreError
from .forgetting import Retention, RetentionCurve, probe_head
from .launch import Dealt, Launcher, Watch, Work, agree, alone, share
from .loggers import loggers
from .memory import hand_back_memory, keep_freed_memory
from .models import create_model, encoder_head_split, extract, load_encoder, model_stats, save_weights
from .resume import Resume, Stateful, epochs_done
from .strategies import STRATEGIES, Importance, PathIntegral, Telemetry, channel_attention, empirical_fisher, mas_importance
from .strategies.penalty import Penalty, state_hash
from .tasks import create_task
from .video import MultiClip, VideoError

__all__ = ['Run', 'Runs', 'Source', 'Watch', 'source_model', 'untouched', 'fine_tune', 'execute', 'finished', 'compare', 'compare_rows', 'strength_grid', 'fit_batch_size',
           'learning_rates', 'file_id', 'choose', 'COLUMNS', 'RSPNET', 'RULES']

KEPT = ['source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50', 'other_probe', 'cka', 'procrustes', 'drift', 'weight_distance',
        'barrier', 'valid_source_acc', 'valid_source_probe']  # fields of `forgetting.Kept` that are columns; the others are in kept.json
COLUMNS = ['key', 'task', 'source', 'model', 'strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1', 'acc1', 'acc5', *KEPT, 'select',
           'best_epoch', 'best_valid_acc1', 'best_acc1', 'best_acc5', 'seconds', 'status', 'error', 'final', 'chosen']
RULES = ('accuracy', 'equal_learning')  # see `choose`
PROBE_CLIPS, FISHER_CLIPS = 1200, 500  # of the source's train part, classes balanced
LASTING = ('ok', 'diverged')  # results that another try would not change
QUICK = dict(train=12, valid=8, test=6)
# fields of a `Run` under the protocol of RSPNet's code (commit e069052), for both encoders and data sets
RSPNET = dict(frames=16, stride=1, size=112, clips=10, area=.25, flip=True, wrap=True, wd=1e-4, schedule='epoch_cosine', epochs=100)


@dataclass(frozen=True)
class Run:
    "All that decides a run's numbers; equal runs have equal `key`s"
    task: str = 'moving_digits'  # see `create_task`
    source: str = 'moving_digits'  # what is not to be forgotten, see `create_task`; none if empty
    data: str = ''  # fingerprints of both: changed files are another run
    model: str = 'tiny'  # see `create_model`
    model_args: str = ''  # for the model's constructor, `name=value,...`
    init: str|None = None  # weights before the source stage
    strategy: str = 'finetune'  # one of `STRATEGIES`
    strategy_args: str = ''  # for its callbacks, `name=value,...`
    lam: float = 0.  # its strength
    seed: int = 0  # of head, data order, clips and augmentation
    epochs: int = 12  # of fine-tuning
    lr: float = .05  # learning rate at the start
    schedule: str = 'cosine'  # see `learning_rates`
    wd: float = 0.  # L2 regularisation of all parameters
    bs: int = 32  # batch size, over all processes
    frames: int = 8  # in a clip
    stride: int = 1  # frames of the video from one of the clip to the next
    size: int = 40  # side of the square in pixels
    area: float = 0.  # smallest part of the frame that a training crop covers; 0: a square of the scaled frame
    flip: bool = False  # mirror half of the training clips
    wrap: bool = False  # a short video begins again instead of repeating its last frame
    clips: int = 1  # of each test video; the valid part is seen by its middle clip
    valid_frac: float = .2  # of train, held out by group where there is no valid part; 0: train on all
    select: str = 'last'  # the epoch to measure: the last, the best on 'valid', or 'paper': the last, and beside it the best on test (not honest)
    patience: int = 0  # stop after so many epochs without a better accuracy on valid; 0: never
    workers: int = 0  # processes that load clips
    source_epochs: int = 6  # of training on the source
    source_lr: float = .1  # learning rate of it
    source_bs: int = 32  # batch size of it
    source_valid: bool = False  # hold out a part of the source, too, to choose strengths by what was kept
    others: str = ''  # other tasks to probe, joined by `;`
    with_barrier: bool = False  # measure the loss on the way from the weights before
    processes: int = 1  # that train together on each batch, under torchrun
    quick: bool = False  # use only `QUICK` clips of each class
    final: bool = False  # reads test and measures retention; a trial does neither

    def __post_init__(self):
        if self.select == 'test': raise InputError("choosing an epoch on test is not honest: select='valid' chooses on held-out groups of train; for the "
                                                   "paper's protocol, labelled as such beside the last epoch, select='paper'")
        if self.select not in ('last', 'valid', 'paper'): raise InputError(f"select must be last, valid or paper, not {self.select!r}")
        if self.bs % self.processes or self.source_bs % self.processes: raise InputError(f'batches of {self.bs} and {self.source_bs} cannot be dealt out to {self.processes} processes alike')
        if self.patience < 0: raise InputError(f'patience must be at least 0 epochs, not {self.patience}')

    @property
    def key(self)->str: return _key(asdict(self))

    @property
    def source_key(self)->str:
        "Of what decides the model before fine-tuning"
        names = 'source data model model_args init frames stride size area flip wrap clips workers source_epochs source_lr source_bs source_valid processes quick'
        return _key({n:getattr(self, n) for n in names.split()})

    @property
    def stage(self)->str: return 'final' if self.final else 'trial'

    def options(self, field:str='model_args')->dict:
        "`model_args` or `strategy_args` as keyword arguments"
        pairs = [a.split('=', 1) for a in filter(None, getattr(self, field).split(','))]
        if bad := [p for p in pairs if len(p) < 2]: raise InputError(f'{field} must be name=value,..., not {bad[0][0]!r}')
        def value(v):
            try: return json.loads(v)
            except ValueError: return v
        return {k:value(v) for k, v in pairs}


def _key(d): return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:12]


class _Ticker(Callback):
    "Reports progress to a `Watch`"
    order, run_valid = 70, False
    def __init__(self, watch): self.watch = watch
    def after_batch(self): self.watch.epoch(self.epoch, (self.iter + 1)/self.n_iter)


class _Unwatched(Callback):
    "Leaves validation out where nobody reads it"
    order = 51  # behind the recorder, which has forgotten the last epoch's
    def before_validate(self): raise CancelValidException


class Seeded(Callback):
    "Makes order, clips and augmentation of each epoch a function of seed and epoch alone, whatever ran before"
    order = 100
    def __init__(self, seed:int): self.seed = seed
    def before_train(self):
        s = self.seed*100_003 + self.epoch
        set_seed(s + 10_000_019*rank_distrib())  # processes that train together draw other clips, in one order
        vars(self.dl).get('dl', self.dl).rng = random.Random(s)


class StopDiverged(Callback):
    "Ends a fit at the first epoch after which the loss, the penalty, a weight or a statistic is not finite; `why` says which"
    order, why = 60, None
    def after_train(self):
        terms = {cb.name:cb.mean_term() for cb in self.learn.cbs if isinstance(cb, Penalty)}
        bad = [n for n, v in dict(loss=self.learn.loss_grad.item(), **terms).items() if not np.isfinite(v)]
        if not bad and not all(torch.isfinite(t).all() for t in self.learn.model.state_dict().values() if t.is_floating_point()): bad = ['a weight or statistic']
        for who in _gathered(bad): bad = bad or who
        if not bad: return
        self.why = f'diverged in epoch {self.epoch}: {", ".join(bad)} is not finite'
        raise CancelFitException


def _gathered(x):
    "`x` of each process that trains together"
    if num_distrib() < 2: return [x]
    parts = [None]*num_distrib()
    torch.distributed.all_gather_object(parts, x)
    return parts


class KeepBest(Stateful, Callback):
    "Remembers the weights of the epoch with the best validation accuracy, of equals the first, and loads them after the fit"
    order, epoch_, best, state = 61, None, -1., None  # after_fit before recipes that change what was trained
    _kept = ('epoch_', 'best', 'state')

    def __init__(self,
        load:bool=True, # Load the best epoch's weights when the fit is over
        patience:int=0, # End the fit after so many epochs without a better one; 0: never
    ): self.load, self.patience = load, patience

    def after_epoch(self):
        if self.learn.lock.locked(): return  # `get_preds`
        acc = dict(zip(self.recorder.metric_names, self.recorder.log))['accuracy']
        if acc > self.best: self.best, self.epoch_, self.state = acc, self.epoch, {k:v.detach().cpu().clone() for k, v in self.learn.model.state_dict().items()}
        elif self.patience and self.epoch - self.epoch_ >= self.patience: raise CancelFitException

    def after_fit(self):
        if self.load and self.state is not None and not self.learn.lock.locked(): self.learn.model.load_state_dict(self.state)


def learning_rates(
    name:str, # 'cosine': to 0, each batch; 'epoch_cosine': to lr/1000, each epoch; 'steps': a tenth at 50, 70 and 90 % of the epochs
    lr:float, # The first
    epochs:int, # Of the whole training
)->Callable: # From the part of training that is done, 0 to 1, to the learning rate
    "A learning rate schedule; the last two are RSPNet's"
    def epoch(pos): return int(pos*epochs + 1e-6)
    if name == 'cosine': return SchedCos(lr, 0.)
    if name == 'epoch_cosine': return lambda pos: lr/1000 + (lr - lr/1000)*(1 + math.cos(math.pi*epoch(pos)/epochs))/2
    if name == 'steps': return lambda pos: lr*.1**sum(epoch(pos) >= part*epochs/10 for part in (5, 7, 9))
    raise InputError(f'unknown schedule {name!r}; known are cosine, epoch_cosine and steps')


def file_id(
    path:str|Path, # A file; `None` and `pretrained` are none
)->str: # Of SHA-256
    "Sixteen hex digits of a file's content, '' without a file"
    if path in (None, 'pretrained'): return ''
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()[:16] if hasattr(hashlib, 'file_digest') else hashlib.sha256(f.read()).hexdigest()[:16]


def fit_batch_size(
    n:int, # Training clips
    bs:int, # Batch size that was asked for
)->int: # `bs` or a smaller one
    "`bs`, halved until `n` clips make two batches: with one batch an epoch the teacher of an epoch never differs from its student"
    while bs > 1 and n < 2*bs: bs //= 2
    return bs


@lru_cache(maxsize=8)
def _data(spec, part, quick, frames, stride, size, area, flip, wrap, clips, held, bs, workers, model):
    "`(task, dls, loader of test)`, kept so that runs of one process share decoded videos"
    task = create_task(spec, part)
    if held: task = task.hold_out(held)
    if quick: task = task.subset(**QUICK)
    def dls(bs, k): return task.dls(frames, stride, size, bs, k, workers, stats=model_stats(model), area=(area, 1.) if area else None, flip=flip, wrap=wrap, decoded=decoded_folder())
    train = dls(bs, 1)
    return task, train, task.dl(train if clips == 1 else dls(max(1, 2*bs//clips), clips), 'test')


def _loaded(run, spec, part, bs, held=0.):
    return _data(spec, part, run.quick, run.frames, run.stride, run.size, run.area, run.flip, run.wrap, run.clips, held, bs//run.processes, run.workers, run.model)


def _target(run): return _loaded(run, run.task, 'target', run.bs, run.valid_frac)
def _source(run): return _loaded(run, run.source, 'source', run.source_bs, .2*run.source_valid)


@contextmanager
def _together(learn):
    "Inside, what torchrun started trains as one"
    if num_distrib() < 2:
        yield
        return
    cuda = torch.cuda.is_available()
    with learn.distrib_ctx(sync_bn=cuda, cpu=not cuda):  # SyncBatchNorm is for GPUs
        # each process validates on all: what counts is exact
        learn.distributed_trainer._wrap_dl = lambda dl: Dealt(dl, device=learn.dls.device) if dl.drop_last and not isinstance(dl, Dealt) else dl
        yield


def _fit(dls, model, epochs, lr, seed, cbs, watch, schedule='cosine', wd=0.):
    "Train with SGD, momentum .9; returns the learner and why it stopped early, if it did"
    check = StopDiverged()
    cbs = [*cbs, Seeded(seed), check, _Ticker(watch), MultiClip(), ParamScheduler(dict(lr=learning_rates(schedule, lr, epochs)))]
    # fastai's default, decoupled and without batch norm and biases, is another weight decay than torch's and RSPNet's
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9, decouple_wd=False), lr=lr, wd=wd, wd_bn_bias=True,
                    splitter=encoder_head_split, metrics=accuracy, cbs=cbs)
    try:
        with learn.no_bar(), learn.no_logging(), _together(learn): learn.fit(epochs)
    except StoreError as e: raise StoreError(_message(e)) from None
    return learn, check.why


@dataclass
class Source:
    "The model before fine-tuning, what it scores, and what strategies ask of it"
    model: nn.Sequential  # encoder and the head of the source
    retention: Retention|None  # `None` without a source task
    batches: object  # loader of source clips, classes balanced
    id: str  # hash of the encoder's weights
    path: Importance|None = None  # what each weight contributed, where we trained the source
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
        return _load_importance(files[0] if files else store.put(self.folder, name, _importance_bytes(make()), 'safetensors')).to(device)

    @property
    def head(self)->nn.Module: return self._need('the old head is of', self.model[1] if self.batches is not None else None)
    @cached_property
    def fisher(self)->Importance: return self._importance('fisher', lambda: empirical_fisher(self.model, self._need('Fisher information is of', self.batches), FISHER_CLIPS))
    @cached_property
    def mas(self)->Importance: return self._importance('mas', lambda: mas_importance(self.model, self._need('the importance for MAS is of', self.batches), FISHER_CLIPS))
    @cached_property
    def attention(self)->dict: return channel_attention(self.model, self._need("DELTA's attention is of", self.batches))
    @property
    def si(self)->Importance: return self._need('SI needs the way in which the weights were learned (--source-epochs): its importance is of training on', self.path)
    @property
    def reference(self)->dict: return self._need('what an untouched encoder scores is of', self.retention).reference.flat()


@dataclass
class Untouched:
    "What a finished study knows of a `Source` without reading a clip"
    id: str
    reference: dict


_sources = {}


def _source_folder(run, out): return Path(out)/'source'/run.source_key
def _reference_file(run, out): return _source_folder(run, out)/f'reference-{_key(dict(others=run.others, barrier=run.with_barrier))}.json'


def _reference(run, out, watch):
    file = _reference_file(run, out)
    return (d := _intact(file.parent, file.name, watch, 'measured again')) and dict(id=d['id'], reference=d['reference'])


def untouched(
    run:Run, # One of the study
    out:str|Path, # Folder of the study
    watch:Watch=Watch(), # Is told what happens
)->Untouched|Source: # Has `id` and `retention`
    "What the untouched encoder of a study scores, for `compare_rows`: as a run wrote it down, else measured"
    return Untouched(**known) if (known := _reference(run, out, watch)) else source_model(run, out, watch)


def source_model(
    run:Run, # Of which only what decides this model counts
    out:str|Path, # Folder of the study
    watch:Watch=Watch(), # Is told what happens
)->Source: # The same object the next time
    """The model to fine-tune: `init` or random weights, trained on the source for `source_epochs`; seed 0 for all runs.

    With no source epochs the encoder stays as it is, and the source head is a linear probe on its features. Saved in
    `out/source/<source_key>` and loaded from there the next time; of several processes one trains it, and the others wait. With
    no source task nothing of it is measured. Raises `InputError` if training diverges."""
    folder = _source_folder(run, out)
    place = f'{folder.resolve()} {run.others} {run.with_barrier}'
    if (hit := _sources.get(place)) is not None: return hit
    model, path = source_weights(run, out, watch)
    if not run.source:
        _sources[place] = hit = Source(model, None, None, state_hash(model[0].state_dict()))
        return hit
    task, dls, test = _source(run)
    def loaders(spec):
        task, dls, test = _loaded(run, spec, 'target', run.bs)
        return _balanced(task, dls, PROBE_CLIPS), test
    retention = Retention(model, _balanced(task, dls, PROBE_CLIPS), test, valid_dl=task.dl(dls, 'valid') if run.source_valid else None,
                          others={create_task(spec).name:loaders(spec) for spec in filter(None, run.others.split(';'))}, path=(.25, .5, .75) if run.with_barrier else (),
                          cache=folder/'features')
    _sources[place] = hit = Source(model, retention, _balanced(task, dls, 120 if run.quick else FISHER_CLIPS), state_hash(model[0].state_dict()), path, folder)
    if not rank_distrib() and _reference(run, out, watch) is None:
        with store.claim(folder, told=watch.say):
            if _reference(run, out, Watch()) is None: _write_reference(run, out, hit, task)  # else one was first, while this process waited
    return hit


def source_weights(
    run:Run, # Of which only what decides this model counts
    out:str|Path, # Folder of the study
    watch:Watch=Watch(), # Is told what happens
)->tuple: # The model, and what each weight contributed where it was trained
    "What `source_model` measures: trained if nobody has trained it yet, else loaded"
    if not torch.cuda.is_available(): keep_freed_memory()
    task, dls, _ = _source(run) if run.source else (None,)*3
    set_seed(0)
    model = create_model(run.model, len(task.vocab) if task else 1, run.init, **run.options())
    if task is None: return model, None
    folder = _source_folder(run, out)
    with _claimed(folder, watch):
        if agree(lambda: _intact(folder, 'source.json', watch, 'trained again')):
            load_encoder(model[0], folder/'encoder.safetensors')
            model[1].load_state_dict(load_file(folder/'head.safetensors'))
            path = _load_path(folder)
        else: path = _train_source(run, model, task, dls, folder, watch)
    for p in model.parameters(): p.requires_grad_(True)
    return model.to(dls.device), path


def _write_reference(run, out, source, task):
    "What the untouched encoder scores, sealed with its answers; those that another of the references is sealed with stay"
    file = _reference_file(run, out)
    scores = file.parent/'scores.csv'
    def other(f):
        try: store.verify(f.parent, files := store.read_json(f)['files'])
        except (Damaged, OSError): return False
        return scores.name in files
    if not any(other(f) for f in file.parent.glob('reference-*.json')): _write_answers(source.retention.reference.answers, task, scores)
    store.write_json(file, dict(id=source.id, reference=source.reference, files={scores.name:store.digest(scores)}))


def _train_source(run, model, task, dls, folder, watch):
    "Train `model` on the source, or fit its head, and write it down; returns what each weight contributed, if it was trained"
    start, path, resume = time.time(), None, Resume(folder, watch.say)
    watch.start('source task', run.source_epochs)
    if run.source_epochs:
        integral = PathIntegral()
        learn, why = _fit(dls, model, run.source_epochs, run.source_lr, 0, [integral, resume, _Unwatched()], watch)
        if why: raise InputError(f'training on the source task {why}; try a smaller source_lr than {run.source_lr}')
        path = integral.importance()
    else:
        model.to(dls.device)
        model[1] = probe_head(*extract(model[0], _balanced(task, dls, PROBE_CLIPS)), len(task.vocab)).to(dls.device)
    if not rank_distrib():
        for part, name in zip(model, ('encoder', 'head')): save_weights(part, folder/f'{name}.safetensors')
        if path is not None: store.write(folder/'path.safetensors', _importance_bytes(path))
        names = [f'{n}.safetensors' for n in ('encoder', 'head', 'path')]
        store.write_json(folder/'source.json', dict(seconds=time.time() - start + resume.seconds, encoder=state_hash(model[0].state_dict()), **_versions(),
                                                    files={n:store.digest(folder/n) for n in names if (folder/n).exists()}))
        resume.remove()
    agree(lambda: None)  # it is all there
    return _load_path(folder)  # as those have it who come later


def _importance_bytes(imp):
    return save({f'{part}.{k}':v.detach().cpu().contiguous() for part in ('diag', 'anchor') for k, v in getattr(imp, part).items()}, dict(n=str(imp.n)))


def _load_importance(file):
    d = load_file(file)
    with safe_open(file, 'pt') as f: n = int((f.metadata() or {}).get('n', 0))
    return Importance(*({k.removeprefix(f'{part}.'):v for k, v in d.items() if k.startswith(f'{part}.')} for part in ('diag', 'anchor')), n)


def _load_path(folder): return _load_importance(folder/'path.safetensors') if (folder/'path.safetensors').exists() else None


def _balanced(task, dls, n):
    "Loader of about `n` train clips, classes balanced, without augmentation"
    return task.subset(train=-(-n//len(task.vocab))).dl(dls, 'train')


def _versions(): return dict(versions={n:version(n) for n in ('sdfast', 'torch', 'fastai', 'av')}, python=sys.version.split()[0], threads=torch.get_num_threads())


def _claimed(folder, watch, wait=True):
    "`store.claim` by the first of the processes that train together"
    @contextmanager
    def together():
        claim = nullcontext() if rank_distrib() else store.claim(folder, wait, watch.say)
        agree(claim.__enter__)
        try: yield folder
        finally: claim.__exit__(None, None, None)
    return together()


def _intact(folder, name, watch, then):
    "What the sealed file says that is written last, if all that it names is as it was; else `None`, and the reader is told of damage"
    try:
        d = store.read_json(folder/name)
        store.verify(folder, d['files'])
        return d
    except FileNotFoundError: return None
    except Damaged as e: watch.say(f'{e}; it is {then}')


def finished(
    run:Run, # What was done
    out:str|Path, # Folder of the study
    watch:Watch=Watch(), # Is told what is damaged
    since:float|None=None, # Failures from before this time, in seconds since the epoch, do not count: their cause may be gone. `None`: none counts
)->dict|None: # A row with the fields of `COLUMNS`, and `anchor`
    "What a run found, if it is finished and its files are what they were. Raises `StoreError` if the folder is another run's"
    folder = Path(out)/'runs'/run.key
    if (d := _intact(folder, 'result.json', watch, 'done again')) is None: return None
    if store.read_json(folder/'run.json') != json.loads(json.dumps(asdict(run))): raise StoreError(f'{folder} is of another run; take another folder for this study')
    if d['status'] in LASTING or since is not None and d['ended'] >= since: return {c:d.get(c) for c in [*COLUMNS, 'anchor']}


def execute(
    run:Run, # What to do
    out:str|Path, # Folder of the study
    watch:Watch=Watch(), # Is told what happens
    wait:bool=True, # For another process that is at it; else raise `Busy`
    since:float|None=None, # See `finished`
    log:Sequence[str]=(), # Also 'tensorboard' or 'wandb', below `out`
)->dict: # A row with the fields of `COLUMNS`, and `anchor`
    """Do one run, go on with it, or read its result if it is finished. A run that fails is a row with its error: it diverged, ran
    out of memory, or its data are bad. Raises `StoreError` if the folder cannot be written to"""
    def ready(): return agree(lambda: finished(run, out, watch, since))
    if (row := ready()) is None:
        with _claimed(Path(out)/'runs'/run.key, watch, wait) as folder:
            if not rank_distrib() and (folder/'result.json').exists(): # by another process meanwhile, else worth nothing
                row = finished(run, out, Watch(), since)
            if (row := agree(lambda: row)) is None:
                row = _execute(run, out, folder, watch, log)
                watch.done(row)
                return row
    watch.done(row, skipped=True)
    return row


def _execute(run, out, folder, watch, log):
    source = source_model(run, out, watch)
    def measure(cbs):
        with loggers(log, run, out) as more: return _measure(run, source, folder, watch, [*cbs, *more])
    return write_run(run, folder, watch, measure, {c:None for c in COLUMNS} | {k:v for k, v in asdict(run).items() if k in COLUMNS} | dict(key=run.key, anchor=source.id))


def write_run(
    run:Run,
    folder:str|Path, # Claimed; what an earlier try left in it is removed, but for its last finished epoch
    watch:Watch,
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
    start, resume, numbers, trace = time.time(), Resume(folder, watch.say), {}, ''
    watch.start(run, run.epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try: status, numbers, error = measure([resume])
        except StoreError: raise
        except Exception as e: status, error, trace = _status(e), f'{type(e).__name__}: {_message(e)}', traceback.format_exc()
    if trace:  # what the exception held on to
        gc.collect()
        if torch.cuda.is_available(): torch.cuda.empty_cache()
    row = row | numbers | dict(seconds=round(time.time() - start + resume.seconds, 2), status=status, error=error)
    if not rank_distrib() or trace:
        notes = '\n'.join(dict.fromkeys(f'{w.category.__name__}: {w.message}' for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))))
        store.write(folder/'log.txt', f'{time.strftime("%F %T")}\n{run}\n{_versions()}\n{notes}\n{trace}')
        leave = ['result.json', *(f.name for f in store.find(folder, 'epoch-*', 'pt', check=False))]
        store.write_json(folder/'result.json', row | dict(ended=time.time(), files=store.seal(folder, leave), **_versions()))
        resume.remove()
    # the processes of one run are no longer in step; torchrun ends the others, and the next start reads the row
    if trace and num_distrib() > 1: raise SystemExit(f'{error}; start torchrun again to go on')
    return agree(lambda: row)


def _message(e):
    "Of an exception, without what fastai puts in front"
    text = str(e).split(':\n\t')[-1].strip()
    return text.splitlines()[0] if text else ''


def _status(e):
    if isinstance(e, FloatingPointError): return 'diverged'
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or isinstance(e, RuntimeError) and "can't allocate memory" in str(e): return 'out of memory'
    return 'bad data' if isinstance(e, VideoError) else 'failed'


def fine_tune(
    run:Run, # What to do
    source:Source, # From `source_model`
    watch:Watch=Watch(), # Is told of epochs
    cbs:Sequence[Callback]=(), # More callbacks
)->tuple: # The learner after training, and why it stopped early or `None`
    "Train the source's encoder with a new head on the target task, as `run` says"
    task, dls, _ = _target(run)
    set_seed(run.seed)
    model = create_model(run.model, len(task.vocab), **run.options())
    model[0].load_state_dict(source.model[0].state_dict())
    cbs = [*STRATEGIES[run.strategy].callbacks(run.lam, source, **run.options('strategy_args')), Telemetry(), *cbs]
    if run.final and source.retention is not None: cbs.append(RetentionCurve(source.retention))
    if run.select == 'paper': dls = DataLoaders(dls.train, task.dl(dls, 'test'), device=dls.device)
    elif not task.count('valid') and (run.select == 'valid' or run.patience):
        raise InputError(f'{task.name} has no valid part to choose an epoch or to stop by: valid_frac is {run.valid_frac:g}')
    if run.select != 'last' or run.patience: cbs.append(KeepBest(run.select == 'valid', run.patience))
    return _fit(dls, model, run.epochs, run.lr, run.seed, cbs, watch, run.schedule, run.wd)


def _measure(run, source, folder, watch, cbs):
    "Fine-tune and measure: `(status, numbers, error)`"
    learn, why = fine_tune(run, source, watch, cbs)
    if rank_distrib(): return 'ok', {}, ''  # the first process measures
    with alone(): return _found(run, source, folder, learn, why)


def _found(run, source, folder, learn, why):
    _log_csv(learn, folder, dict(valid_loss='test_loss', accuracy='test_accuracy') if run.select == 'paper' else {})
    if why: return 'diverged', {}, why
    measured, best = dict(valid_acc1=_valid(learn) if run.select != 'paper' and _target(run)[0].count('valid') else None), getattr(learn, 'keep_best', None)
    if run.select != 'last': measured |= dict(best_epoch=best.epoch_, best_valid_acc1=best.best if run.select == 'valid' else None)
    if run.final:
        measured |= _score(run, learn, folder/'scores.csv')
        if source.retention is not None:
            kept = source.retention(learn.model[0])
            _write_answers(kept.answers, _source(run)[0], folder/'source_scores.csv')
            kept = kept.flat()
            store.write(folder/'kept.json', json.dumps(kept, indent=1))
            store.write(folder/'curve.csv', pd.DataFrame(learn.retention_curve.history).to_csv(index=False))
            measured |= _columns(kept)
        if run.select == 'paper':
            learn.model.load_state_dict(best.state)
            measured |= {f'best_{k}':v for k, v in _score(run, learn, folder/'scores_best.csv').items()}
    elif run.source_valid and source.retention is not None: measured |= _columns(source.retention.held_out(learn.model[0]).flat())
    return 'ok', measured, ''


def _log_csv(learn, folder, names=None):
    log = pd.DataFrame(list(learn.recorder.values), columns=[(names or {}).get(n, n) for n in learn.recorder.metric_names[1:] if n != 'time'])
    store.write(folder/'epochs.csv', log.rename_axis('epoch').to_csv())


def _columns(kept): return {k:v for k, v in kept.items() if k in KEPT}


def _valid(learn):
    "Accuracy on valid as the model is now: some strategies change it when the fit is over"
    with learn.no_bar(), learn.no_logging(): return float(learn.validate()[1])


def _write_answers(probs, task, file):
    "Path, label and class probabilities of each test video"
    scores = pd.DataFrame(probs.numpy(), columns=task.vocab)
    paths, labels = zip(*task.items('test'))
    scores.insert(0, 'path', paths)
    scores.insert(1, 'label', labels)
    store.write(file, scores.to_csv(index=False, float_format='%.6g'))


def _score(run, learn, file):
    "Accuracies on test; each video's answer goes to `file`"
    task, _, test = _target(run)
    probs, y = _predict(learn, test)
    _write_answers(probs, task, file)
    ranked = probs.argsort(1, descending=True) == y[:, None]
    return dict(acc1=ranked[:, :1].any(1).float().mean().item(), acc5=ranked[:, :5].any(1).float().mean().item())


def _predict(learn, dl):
    "Class probabilities of each video and labels, in the order of `dl`"
    with learn.no_bar(), learn.no_logging(): probs, y = learn.get_preds(dl=dl, reorder=False)  # nor does `dl` shuffle; to reorder, fastai would load it anew
    return probs.as_subclass(torch.Tensor).float(), y.as_subclass(torch.Tensor)


def strength_grid(
    strategy:str, # One of `STRATEGIES`
    lr:float, # Of the study
    lams:Sequence[float]|None=None, # Strengths to try; by default the registry's
    n:int=3, # How many learning rates one without strengths tries
)->list[dict]: # Fields of `Run` to replace, from weak to strong protection
    "What a strategy's trials try: strengths or, for plain fine-tuning and others that have none, as many learning rates (lr, lr/2, lr/4...)"
    if not STRATEGIES[strategy].lams: return [dict(lam=0., lr=lr/2**i) for i in range(n)]
    return [dict(lam=float(lam), lr=lr) for lam in sorted(lams or STRATEGIES[strategy].lams)]


def choose(
    valid:Sequence[float], # Accuracy on the target's valid part of each setting, from weak to strong protection; nan for one that failed
    kept:Sequence[float]|None=None, # What each kept on the source's valid part
    rule:str='accuracy', # 'accuracy': the best on valid; 'equal_learning': of those within `margin` of it, the one that keeps most
    margin:float=.01, # Accuracy that may be lost
)->int: # The setting to take; of equals the strongest
    "Choose a setting by held-out data"
    if rule == 'test': raise InputError(f'strengths cannot be chosen on test: it is read once, at the end; choose by {" or ".join(RULES)}')
    if rule not in RULES: raise InputError(f'unknown rule {rule!r} to choose by; known are {" and ".join(RULES)}')
    valid = np.nan_to_num(np.asarray(valid, float), nan=-1.)
    score = valid
    if rule == 'equal_learning':
        if kept is None: raise InputError('equal_learning chooses by what was kept of a held-out part of the source: a Run with source_valid measures it')
        # accuracies are counts of clips: rounding must not decide what is within the margin
        score = np.where(valid >= valid.max() - margin - 1e-9, np.nan_to_num(np.asarray(kept, float), nan=-1.), -2.)
    return int(max(range(len(score)), key=lambda i: (score[i], i)))


def compare(
    base:Run, # What all runs share
    grids:dict, # Strategy -> its `strength_grid`; all of one length
    out:str|Path, # Folder of the study
    seeds:int=6, # Final runs of each strategy
    trial_seeds:int=1, # Trials of each strength
    watch:Watch=Watch(), # Is told what happens
    path:bool=False, # Run every strength with every seed to the end; these are the trials then
    rule:str='accuracy', # How to choose a strength, see `choose`
    kept:str='source_probe', # What equal learning keeps: 'source_probe' or 'source_acc', on the source's valid part
    launcher:Launcher|None=None, # Where to run; `None`: in this process
    log:Sequence[str]=(), # See `execute`
)->pd.DataFrame: # A row a run, trials too, and one `untouched`; columns `COLUMNS`. `chosen` are those of the chosen strengths
    "Choose each strategy's strength on valid parts, then run it with every seed and read test"
    if len({len(g) for g in grids.values()}) > 1:
        raise InputError('each strategy must get the same number of trials, not ' + ', '.join(f'{s} {len(g)}' for s, g in grids.items()))
    if f'valid_{kept}' not in KEPT: raise InputError(f'equal learning can keep source_probe or source_acc, not {kept!r}')
    choose([0.], [0.], rule)  # raises for what cannot be chosen by
    if rule == 'equal_learning': base = replace(base, source_valid=True)
    study = Plan(base, grids, seeds, trial_seeds, path, rule, kept)
    first, last = study.first(), [] if path else study.last(dict.fromkeys(grids, 0))
    watch.plan(first + last)
    begin(base, out, watch, launcher)
    found = share(first, Runs(str(out), log), out, watch, launcher, total=len(first + last), then=None if path else study)
    best, rows = study.best(found, watch if path else Watch()), iter(found)
    trials = {s:[next(rows) | dict(chosen=path and i == best[s]) for i, same in enumerate(settings) for _ in same] for s, settings in study.trials().items()}
    final = {s:[next(rows) | dict(chosen=True) for _ in range(0 if path else seeds)] for s in grids}
    return compare_rows([r for s in grids for r in trials[s] + final[s]], untouched(base, out, watch), base)


def begin(
    run:Run, # One of the study
    out:str|Path, # Folder of the study
    watch:Watch, # Is told what happens
    launcher:Launcher|None, # Whoever does the runs; on a cluster the first of them trains the source
)->None:
    "The source stage, trained with all of this machine's threads before workers share them; they read it from the folder"
    if launcher is None or launcher.inside: source_model(run, out, watch)
    elif launcher.cluster == 'local' and run.source:
        source_weights(run, out, watch)
        _data.cache_clear()
        hand_back_memory()


@dataclass(frozen=True)
class Plan:
    "Which runs a study is made of; called with the trials' results, the final runs that follow from them. Picklable: workers know what follows"
    base: Run  # what all runs share
    grids: dict  # strategy -> its `strength_grid`; all of one length
    seeds: int  # final runs of each strategy
    trial_seeds: int  # trials of each strength
    path: bool = False  # the trials have every seed and are final, and nothing follows
    rule: str = 'accuracy'  # see `choose`
    kept: str = 'source_probe'  # see `compare`
    by = 'on valid'  # what strengths are chosen by, for the reader

    def runs(self, strategy:str, g:dict, n:int, final:bool)->list:
        "Of a strategy with a setting, those that differ in their seeds"
        return [replace(self.base, strategy=strategy, seed=i, final=final, **g) for i in range(n)]

    def trials(self)->dict[str, list]:
        "Strategy -> setting -> runs; no setting where there is nothing to choose"
        several = len(next(iter(self.grids.values()))) > 1
        return {s:[self.runs(s, g, self.seeds if self.path else self.trial_seeds, self.path) for g in grid] if several or self.path else [] for s, grid in self.grids.items()}

    def first(self)->list:
        "All trials"
        return [r for settings in self.trials().values() for same in settings for r in same]

    def last(self, best:dict)->list:
        "The final runs of the settings number `best[strategy]`"
        return [r for s, i in best.items() for r in self.runs(s, self.grids[s][i], self.seeds, True)]

    def scores(self, row:dict)->tuple[float, float]:
        "Of a trial's result: accuracy on valid, and what was kept of the source's valid part; nan for what was not measured"
        return tuple(np.nan if row[c] is None else row[c] for c in ('valid_acc1', f'valid_{self.kept}'))

    def best(self, found:list, watch:Watch)->dict[str, int]:
        "Strategy -> number of the setting to take, by the trials' results"
        rows, best = iter(found), {}
        for s, settings in self.trials().items():
            best[s], grid = 0, self.grids[s]
            done = [np.mean([self.scores(next(rows)) for _ in same], 0).tolist() for same in settings]
            if len(done) < 2: continue
            valid, keeps = zip(*done)
            best[s] = choose(valid, keeps, self.rule)
            watch.say(f'{s}: ' + ', '.join(f'{_strength(s, g)} {"failed" if np.isnan(v) else f"{v:.1%}"}{f" ({k:.1%} kept)" if k == k else ""}' for g, v, k in zip(grid, valid, keeps))
                      + f' {self.by}; takes {_strength(s, grid[best[s]])}')
        return best

    def __call__(self, found:list, watch:Watch)->list: return self.last(self.best(found, watch))


@dataclass(frozen=True)
class Runs(Work):
    "The runs of one study, for `share`: pieces are `Run`s"
    out: object # Folder of the study
    log: tuple = () # See `execute`

    def folder(self, run:Run)->Path: return Path(self.out)/'runs'/run.key
    def read(self, run:Run, since:float|None, watch:Watch)->dict|None: return finished(run, self.out, watch, since)
    def do(self, run:Run, since:float|None, watch:Watch)->dict: return execute(run, self.out, watch, False, since, self.log)
    def at(self, run:Run)->tuple: return run, epochs_done(self.folder(run))
    def report(self, row:dict, skipped:bool, watch:Watch)->None: watch.done(row, skipped)

    def fail(self, run:Run, error:str)->None:
        with store.claim(self.folder(run)) as folder:
            row = {c:None for c in [*COLUMNS, 'anchor']} | {k:v for k, v in asdict(run).items() if k in COLUMNS} | dict(key=run.key, seconds=0., status='failed', error=error)
            store.write_json(folder/'run.json', asdict(run))
            store.write_json(folder/'result.json', row | dict(ended=time.time(), files=dict(), **_versions()))


def compare_rows(
    rows:list, # From `execute`
    source:Source|Untouched, # From `source_model` or `untouched`
    base:Run, # What the runs share
)->pd.DataFrame: # A row a run, and one `untouched`; columns `COLUMNS` and the hash of the weights before fine-tuning
    "Rows of runs beside what the untouched encoder scores; raises `InputError` without a source task"
    if not base.source: raise InputError('a comparison needs a source task, on which to measure what was kept')
    start = {c:None for c in COLUMNS} | dict(key=base.source_key, task=base.task, source=base.source, model=base.model, strategy='untouched',
                 status='ok', error='', final=True, chosen=True, anchor=source.id) | _columns(source.reference)
    return pd.DataFrame([*({**r, 'chosen': r['final'] if r['chosen'] is None else r['chosen']} for r in rows), start], columns=[*COLUMNS, 'anchor'])


def _strength(strategy, g): return f'lam {g["lam"]:g}' if STRATEGIES[strategy].lams else f'lr {g["lr"]:g}'
