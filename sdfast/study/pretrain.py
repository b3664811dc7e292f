"""Pre-training of a video encoder, without labels or with them, the first stage of the paper: `make_stage`, then
`pretrain`.

Each stage has its own folder:

    weights.safetensors   encoder and heads; `load_encoder` and `read_checkpoint` read it
    rspnet.pth.tar        for RSPNet only, in the layout of its code
    epochs.csv            losses and scores of each epoch
    result.json           written last: settings, scores on held-out videos, digests

A finished stage is read, not trained again. A stopped one resumes from its last finished epoch and ends with the same
weights."""
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as run_fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.callback.training import GradientClip
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam
from fastai.torch_core import set_seed

from ..data.datasets import create_task
from ..data.folders import find_videos
from ..data.tables import distinct_files
from ..errors import Damaged, InputError
from ..models.encoders import create_encoder, model_stats
from ..models.weights import load_encoder
from ..pretext.base import Pretext
from ..pretext.loaders import video_dls
from ..pretext.registry import METHODS
from ..pretext.rspnet import RSPNet
from ..pretext.rspnet_checkpoint import save_rspnet
from ..runtime import store
from ..runtime.options import parse_options
from ..runtime.progress import Progress
from ..runtime.resume import Resume, epochs_done
from ..stats import proportion_interval
from .config import Run
from .fit import Seeded, StopDiverged, fit_batch_size
from .pretrain_recipes import recipe, stage_rates
from .progress import LiveProgress
from .supervised import SUPERVISED, Supervised, check_supervised
from .values import check_value

__all__ = ['Stage', 'make_stage', 'pretrain', 'read_result']

OPTIMIZERS = dict(sgd=SGD, adam=partial(Adam, sqr_mom=.999, eps=1e-8))  # as in PyTorch
RSPNET_NAMES = dict(c3d='c3d', r2plus1d='r2plus1d-vcop')  # our encoders -> their names in RSPNet's code


@dataclass(frozen=True)
class Stage:
    "All settings that decide a pre-trained encoder; equal stages have equal `key`s"
    method: str  # one of `METHODS`, or 'supervised'
    task: str  # videos: see `create_task`, or `videos:FOLDER`
    epochs: int  # of training
    lr: float  # of the optimizer
    schedule: str  # see `stage_rates`
    wd: float  # L2 regularisation of all parameters
    bs: int  # batch size
    frames: int  # in a clip
    stride: int  # frames of the video from one frame of the clip to the next
    size: int  # side of the square in pixels
    method_args: str = ''  # for the method's constructor, `name=value,...`
    model: str = 'tiny'  # see `create_encoder`
    model_args: str = ''  # for the model's constructor, `name=value,...`
    init: str|None = None  # weights to start from
    seed: int = 0  # random seed of weights, order, clips and augmentation
    clips: int = 0  # number of videos of each class to train on; 0: all
    workers: int = 0  # processes that load clips
    files: str = ''  # fingerprint of the videos
    opt: str = 'sgd'  # or 'adam'
    mom: float = .9  # momentum of SGD, or the first of Adam's decays
    grad_clip: float = 0.  # largest norm of all gradients together; 0: any

    @property
    def key(self)->str:
        later = {f.name:f.default for f in run_fields(self) if f.name in ('opt', 'mom', 'grad_clip')}
        # a later field counts if it is set, so that it does not change the keys of finished stages
        given = {k:v for k, v in asdict(self).items() if k not in later or v != later[k]}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def make_method(
    stage:Stage, # Only `method` and `method_args` matter
)->Pretext|Supervised: # The callback, or what trains with labels
    "Make the stage's method; raises `InputError` for arguments that the method does not take"
    _check_method(stage.method)
    if stage.method == SUPERVISED:
        check_supervised(stage)
        return Supervised()
    try: return METHODS[stage.method](**parse_options(stage.method_args, '--method-args'))
    except TypeError as e: raise InputError(f'--method-args {stage.method_args!r}: {e}') from None


def _check_method(method):
    known = [*METHODS, SUPERVISED]
    if method not in known: raise InputError(f'unknown method {method!r}; known are {", ".join(known)}')


@dataclass(frozen=True)
class StageData:
    "The videos of a stage"
    train: list  # paths
    valid: list  # paths of held-out videos
    fingerprint: str  # hash that identifies the files
    loaders: Callable  # function without arguments that makes `DataLoaders`


def stage_data(
    stage:Stage, # Only `task` and the fields of clips and batches matter
)->StageData: # Its videos and loaders
    """The train and valid parts of a task; for `videos:FOLDER` all videos below a folder, with one in twenty held out.

    Raises `InputError` for a folder with fewer than four videos."""
    shape: dict[str, Any] = dict(frames=stage.frames, stride=stage.stride, size=stage.size, bs=stage.bs,
                                 workers=stage.workers, stats=_stats(stage))
    if stage.task.startswith('videos:'): return _folder_data(stage, shape)
    task = create_task(stage.task, 'source').hold_out()
    if stage.clips: task = task.subset(train=stage.clips)
    train, valid = ([path for path, _ in task.items(part)] for part in ('train', 'valid'))
    return StageData(train, valid, task.fingerprint, partial(task.dls, **shape))


def _stats(stage): return model_stats(stage.model, **parse_options(stage.model_args, '--model-args'))


def _folder_data(stage, shape):
    root = Path(stage.task.removeprefix('videos:'))
    if not root.is_dir(): raise InputError(f'folder {root} does not exist')
    if stage.clips: raise InputError('--clips is for tasks, which have classes')
    found = distinct_files(f for f in find_videos(root)[0] if f.is_file())
    if len(found) < 4: raise InputError(f'{root} has {len(found)} videos; at least four are needed')
    valid = sorted(random.Random(0).sample(found, max(1, len(found)//20)))
    train = sorted(set(found) - set(valid))
    files = repr([(str(f.relative_to(root)), f.stat().st_size) for f in found])
    fingerprint = hashlib.sha256(files.encode()).hexdigest()[:16]
    return StageData(train, valid, fingerprint, partial(video_dls, train, valid, **shape))


def make_stage(
    method:str, # One of `METHODS`, or 'supervised'
    task:str, # Videos, see `stage_data`
    **given, # Other fields of a `Stage`; `None` for the recipe's
)->tuple[Stage, str]: # The stage, and a line for the reader
    "Complete the settings of a stage from the method's recipe. Raises `InputError` for settings that cannot work"
    _check_method(method)
    fields = recipe(method, digits=task.startswith('moving_digits'))
    fields |= {name:value for name, value in given.items() if value is not None}
    for f in run_fields(Run):
        if f.name in fields and f.name not in ('schedule', 'clips'): check_value(f, fields[f.name], f'--{f.name}')
    stage = Stage(method, task, **fields)
    if stage.opt not in OPTIMIZERS: raise InputError(f'--opt must be sgd or adam, not {stage.opt!r}')
    if not 0 <= stage.mom < 1 or stage.grad_clip < 0:
        raise InputError('--mom must be at least 0 and below 1, and --grad-clip at least 0, not '
                         f'{stage.mom} and {stage.grad_clip}')
    # these raise for impossible settings, before anything is written
    stage_rates(stage.schedule, stage.lr, stage.epochs)
    make_method(stage)
    create_encoder(stage.model, **parse_options(stage.model_args, '--model-args'))
    data = stage_data(stage)
    stage = replace(stage, files=data.fingerprint, bs=fit_batch_size(len(data.train), stage.bs))
    train, valid = len(data.train), len(data.valid)
    unused = 'test videos' if method == SUPERVISED else 'labels and test videos'
    return stage, (f'{task}: {train} videos to train on in batches of {stage.bs}, {valid} held out; {unused} are not '
                   'used')


class StageProgress(LiveProgress):
    "A progress bar for the current stage; a new plan resets the bars of the previous one"

    def plan(self, runs:list)->None:
        self.bars.update(self.now, visible=False)
        super().plan(runs)
        if not runs: self.bars.update(self.study, visible=False)


class EpochReporter(Callback):
    "Reports batches to a progress listener, and the numbers of each epoch once `Resume` has saved it"
    order = 98  # after `Resume`

    def __init__(self,
        progress:Progress, # Progress listener
    ): self.progress = progress

    def after_batch(self):
        if self.learn.training: self.progress.epoch(self.learn.epoch, (self.learn.iter + 1)/self.learn.n_iter)

    def after_epoch(self):
        recorder = self.learn.recorder
        found = dict(zip(recorder.metric_names[1:], recorder.log[1:]))
        if 'time' not in found: return
        time = found.pop('time')
        numbers = ', '.join(f'{name} {value:.3f}' for name, value in found.items())
        self.progress.say(f'epoch {self.learn.epoch + 1}/{self.learn.n_epoch}: {numbers}, {time}')


def pretrain(
    stage:Stage, # From `make_stage`
    out:str|Path, # Folder of all stages
    progress:Progress=Progress(), # Progress listener
)->dict: # The stage's fields, scores on held-out videos with intervals and chance, and `weights`, the file
    """Pre-train a stage, resume it if it was stopped, or read it if it is finished.

    Raises `InputError` if training diverges, `StoreError` if `out` cannot be written to."""
    folder = Path(out)/stage.key
    with store.claim(folder, say=progress.say):
        try: return read_result(folder)
        except FileNotFoundError: pass
        except Damaged as e: progress.say(f'{e}; the stage is trained again')
        data, method = stage_data(stage), make_method(stage)
        if stage.files not in ('', data.fingerprint):
            raise InputError(f'{stage.task}: these are other videos than the stage was made with ({len(data.train)} to '
                             f'train on, {len(data.valid)} held out); make all of them visible here, or a new stage')
        if isinstance(method, Supervised):
            log, resume = method.fit(stage, data.loaders, folder, progress, EpochReporter(progress))
        else: log, resume = _fit(stage, method, data, folder, progress)
        store.write(folder/'epochs.csv', log.rename_axis('epoch').to_csv(float_format='%.6g'))
        method.save(folder/'weights.safetensors')
        if isinstance(method, RSPNet):
            arch = RSPNET_NAMES.get(stage.model, stage.model)
            save_rspnet(method, folder/'rspnet.pth.tar', arch, stage.epochs, float(log.train_loss.min()))
        result = _result(stage, method, data, log) | dict(weights=str(folder/'weights.safetensors'))
        checkpoints = [f.name for f in store.find(folder, 'epoch-*', 'pt', check=False)]
        store.write_json(folder/'result.json', result | dict(files=store.seal(folder, ['result.json', *checkpoints])))
        resume.remove()
    return result


def read_result(
    folder:Path, # Of a stage
)->dict: # As from `pretrain`
    "Read a finished stage. Raises `FileNotFoundError` if it is not finished, `Damaged` if its files have changed"
    result = store.read_json(folder/'result.json')
    store.verify(folder, result['files'])
    return result | dict(weights=str(folder/'weights.safetensors'))


def _fit(stage, method, data, folder, progress):
    "Train `method` and its encoder; returns a table of the epochs, and the `Resume` that holds the checkpoint"
    set_seed(stage.seed)
    encoder = create_encoder(stage.model, **parse_options(stage.model_args, '--model-args'))
    if stage.init: load_encoder(encoder, stage.init)
    resume, check = Resume(folder, progress.say), StopDiverged()
    rates = ParamScheduler(dict(lr=stage_rates(stage.schedule, stage.lr, stage.epochs)))
    cbs = [method, Seeded(stage.seed), check, resume, EpochReporter(progress), rates]
    if stage.grad_clip: cbs.append(GradientClip(stage.grad_clip))
    opt = partial(OPTIMIZERS[stage.opt], mom=stage.mom, decouple_wd=False)
    learn = Learner(data.loaders(), encoder, opt_func=opt, lr=stage.lr, wd=stage.wd, wd_bn_bias=True, cbs=cbs)
    progress.start(f'{stage.method}, {stage.model}', stage.epochs)
    done = epochs_done(folder)
    if done: progress.say(f'resumes after epoch {done}')
    with learn.no_bar(), learn.no_logging(): learn.fit(stage.epochs)
    if check.why: raise InputError(f'{stage.method} {check.why}; try a smaller lr than {stage.lr}')
    return pd.DataFrame(list(learn.recorder.values), columns=learn.recorder.metric_names[1:-1]), resume


def _result(stage, method, data, log):
    n, last = len(data.valid), log.iloc[-1]
    scores = [held_out_score(name, float(last[name]), n, method.chances[name]) for name in method.score_names]
    return asdict(stage) | dict(key=stage.key, config=method.config, train=len(data.train), valid=n,
                                valid_loss=float(last.valid_loss), scores=scores)


def held_out_score(
    name:str, # Name of the score
    value:float, # A share of videos
    n:int, # Number of held-out videos
    chance:float, # Its value by chance
)->dict: # The arguments, and the interval's ends `low` and `high`
    "A score on held-out videos with Wilson's 95 % interval"
    d = proportion_interval(round(value*n), n)
    return dict(name=name, value=value, low=d.low, high=d.high, n=n, chance=chance)


def score_text(
    score:dict, # From `held_out_score`
)->str: # One line
    "A score for the reader, with its interval and chance"
    s = score
    return (f'{s["name"]} {s["value"]:.1%} of {s["n"]} videos [{s["low"]:.1%}, {s["high"]:.1%}], '
            f'chance {s["chance"]:.1%}')
