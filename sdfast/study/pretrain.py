"""Pre-train a video encoder without labels: the paper's first stage, by RSPNet and the methods that the paper compares with.

    python experiments/pretrain.py --method rspnet                     # on the source videos of the embedded task: see experiments/README.md for the time
    python experiments/pretrain.py --method pace --task videos:FOLDER --model r2plus1d
    python experiments/compare.py --init runs/pretrain/KEY/weights.safetensors --source-epochs 0      # then fine-tune what it wrote

Hyper-parameters are those of each method's reference code, or for `moving_digits` (8 frames of 40x40) what fits it; options replace them.
Labels of a task are not used. Writes to --out, in a folder for each setting: weights.safetensors (encoder, heads; `load_encoder` and
`read_checkpoint` read it), for RSPNet rspnet.pth.tar in its own layout, epochs.csv and result.json. A run that was stopped goes on from
its last finished epoch and ends with the same weights."""
import hashlib
import json
import math
import random
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed

from ..data.datasets import create_task
from ..data.tables import VIDEO_SUFFIXES
from ..errors import Damaged, InputError
from ..models.encoders import create_encoder, model_stats
from ..models.weights import load_encoder
from ..pretext.loaders import video_dls
from ..pretext.registry import METHODS
from ..pretext.rspnet_checkpoint import save_rspnet
from ..runtime import store
from ..runtime.progress import Progress
from ..runtime.resume import Resume, epochs_done
from ..stats import proportion_interval
from .fit import Seeded, StopDiverged, fit_batch_size, learning_rates
from .progress import LiveProgress

# each reference's own; RSPNet's lr is .05 for R(2+1)D, and both times (global batch)/64
RECIPES = dict(rspnet=dict(epochs=200, bs=64, lr=.1, wd=1e-4, schedule='epoch_cosine'), pace=dict(epochs=18, bs=30, lr=1e-3, wd=5e-3, schedule='thirds'),
               order=dict(epochs=300, bs=8, lr=1e-3, wd=5e-4, schedule='constant'),
               puzzle=dict(epochs=18, bs=30, lr=.01, wd=5e-4, schedule='thirds', size=80),  # of the puzzle only the size of pieces is known: the rest is ours
               cvrl=dict(epochs=200, bs=1024, lr=.32, wd=1e-6, schedule='warm_cosine', stride=2, size=224),
               iic=dict(epochs=240, bs=16, lr=.01, wd=1e-4, schedule='fifths'), mas=dict(epochs=18, bs=30, lr=5e-4, wd=5e-3, schedule='thirds'))
PAPER = dict(frames=16, stride=1, size=112, method_args='')
# what fits 8 frames: clips short enough that another speed, or several clips with a gap, find room in them, and that RSPNet's two windows, of
# 6 frames, start at different ones: with 8, query and positive key would show the same frames. A queue shorter than an epoch.
# The digits are grey: jitter of saturation and hue would change nothing and cost half of the time
SHORT = dict(rspnet=dict(frames=3, method_args='queue=1024,momentum=.99,jitter=[.4,.4,0,0],grey=0'), pace=dict(frames=4, method_args='paces=[1,2],restart=false,jitter=[.8,.8,0,0]'),
             order=dict(frames=2, method_args='gap=1'), puzzle=dict(frames=2, size=20, method_args='span=1,replicate=0,hidden=128'),
             cvrl=dict(frames=4, method_args='layers=1,hidden=128,jitter=[.4,.4,0,0],grey=0,blur=[0,0],solarise=[0,0]'),
             iic=dict(frames=6, method_args='negatives=128,unit=true'), mas=dict(frames=6, lr=.005, method_args=''))
DIGITS = dict(stride=1, size=40, epochs=10, bs=64, lr=.05, wd=1e-4, schedule='cosine')
ARCH = dict(c3d='c3d', r2plus1d='r2plus1d-vcop')  # RSPNet's names of our encoders


def stage_defaults(method, digits):
    "Fields of a `Stage` for a method, on `moving_digits` or elsewhere"
    return DIGITS | SHORT[method] if digits else PAPER | RECIPES[method]


@dataclass(frozen=True)
class Stage:
    "All that decides a pre-trained encoder"
    method: str
    task: str  # see `stage_data`
    epochs: int
    lr: float
    schedule: str
    wd: float
    bs: int
    frames: int
    stride: int
    size: int
    method_args: str = ''
    model: str = 'tiny'
    model_args: str = ''
    init: str|None = None
    seed: int = 0
    clips: int = 0  # of each class of a task to train on; 0: all
    workers: int = 0
    files: str = ''  # fingerprint of the videos

    @property
    def key(self)->str: return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def parse_options(text):
    "`name=value,...` as keyword arguments; values are JSON, or text"
    pairs = [a.split('=', 1) for a in re.split(r',(?=[a-z_]+=)', text) if a]
    if bad := [p for p in pairs if len(p) < 2]: raise InputError(f'--method-args and --model-args must be name=value,..., not {bad[0][0]!r}')
    def value(v):
        try: return json.loads(re.sub(r'(?<!\d)\.(?=\d)', '0.', v))  # JSON has no .4
        except ValueError: return v
    return {k:value(v) for k, v in pairs}


def make_method(stage):
    "The stage's method; raises `InputError` for arguments that it does not take"
    if stage.method not in METHODS: raise InputError(f'unknown method {stage.method!r}; known are {", ".join(METHODS)}')
    try: return METHODS[stage.method](**parse_options(stage.method_args))
    except TypeError as e: raise InputError(f'--method-args {stage.method_args!r}: {e}') from None


def stage_data(stage):
    "`(train, valid, fingerprint, loaders)`: videos of a task's train and valid parts, or of all below `videos:FOLDER`, a twentieth of them held out"
    shape = dict(frames=stage.frames, stride=stage.stride, size=stage.size, bs=stage.bs, workers=stage.workers, stats=model_stats(stage.model))
    if not stage.task.startswith('videos:'):
        task = create_task(stage.task, 'source').hold_out()
        if stage.clips: task = task.subset(train=stage.clips)
        train, valid = ([p for p, _ in task.items(s)] for s in ('train', 'valid'))
        return train, valid, task.fingerprint, lambda: task.dls(**shape)
    root = Path(stage.task.removeprefix('videos:'))
    if not root.is_dir(): raise InputError(f'folder {root} does not exist')
    if stage.clips: raise InputError('--clips is for tasks, which have classes')
    found = sorted(f for f in root.rglob('*') if f.suffix.lower() in VIDEO_SUFFIXES and f.is_file())
    if len(found) < 4: raise InputError(f'{root} has {len(found)} videos; at least four are needed')
    valid = sorted(random.Random(0).sample(found, max(1, len(found)//20)))
    train, files = sorted(set(found) - set(valid)), repr([(str(f.relative_to(root)), f.stat().st_size) for f in found])
    return train, valid, hashlib.sha256(files.encode()).hexdigest()[:16], lambda: video_dls(train, valid, **shape)


def make_stage(method, task, **given)->tuple[Stage, str]:
    "`(stage, a line for the reader)` from what is given and the defaults for the rest; `InputError` for what cannot work"
    if method not in METHODS: raise InputError(f'unknown method {method!r}; known are {", ".join(METHODS)}')
    fields = stage_defaults(method, task.startswith('moving_digits')) | {k:v for k, v in given.items() if v is not None}
    for k in ('epochs', 'bs', 'frames', 'stride', 'size'):
        if fields[k] < 1: raise InputError(f'--{k} must be at least 1, not {fields[k]}')
    if not 0 < fields['lr'] < float('inf') or not 0 <= fields['wd'] < float('inf'): raise InputError(f'--lr must be positive and --wd at least 0, not {fields["lr"]} and {fields["wd"]}')
    stage = Stage(method, task, **fields)
    stage_rates(stage), make_method(stage), create_encoder(stage.model, **parse_options(stage.model_args))  # raise
    train, valid, files, _ = stage_data(stage)
    stage = replace(stage, files=files, bs=fit_batch_size(len(train), stage.bs))
    return stage, f'{task}: {len(train)} videos to train on in batches of {stage.bs}, {len(valid)} held out; no label is used, nor any test video'


def stage_rates(stage):
    "Learning rate by the part of training that is done"
    if stage.schedule == 'constant': return lambda pos: stage.lr
    if stage.schedule == 'thirds': return lambda pos: stage.lr*.1**int(3*pos + 1e-6)
    if stage.schedule == 'fifths': return lambda pos: stage.lr*.2**sum(pos*240 > e - 1e-3 for e in (45, 90, 125, 160))  # IIC's
    if stage.schedule == 'warm_cosine':  # CVRL's
        warm = 1787/71488
        return lambda pos: stage.lr*min(pos/warm, 1)*(1 + math.cos(math.pi*pos))/2
    try: return learning_rates(stage.schedule, stage.lr, stage.epochs)
    except InputError: raise InputError(f'unknown schedule {stage.schedule!r}; known are constant, thirds, fifths, cosine, warm_cosine, epoch_cosine and steps') from None


class StageProgress(LiveProgress):
    "A bar over the stage at work; a new plan takes the place of the one before"
    def plan(self, runs):
        for t in list(self.bars.task_ids): self.bars.remove_task(t)
        super().plan(runs)
        if not runs: self.bars.update(self.study, visible=False)


class EpochReporter(Callback):
    "Tells a `Progress` of batches, and of the numbers of each epoch, once it is safe"
    order = 98  # behind `Resume`

    def __init__(self, progress): self.progress = progress

    def after_batch(self):
        if self.learn.training: self.progress.epoch(self.learn.epoch, (self.learn.iter + 1)/self.learn.n_iter)

    def after_epoch(self):
        found = dict(zip(self.learn.recorder.metric_names[1:], self.learn.recorder.log[1:]))
        if 'time' in found: self.progress.say(f'epoch {self.learn.epoch + 1}/{self.learn.n_epoch}: ' + ', '.join(f'{n} {v:.3f}' for n, v in found.items() if n != 'time') + f', {found["time"]}')


def pretrain(
    stage:Stage,
    out, # Folder of all stages
    progress:Progress=Progress(),
)->dict: # Stage, scores on held-out videos with intervals and chance, `weights`, the file
    "Pre-train, go on with a stage that was stopped, or read one that is finished. Raises `InputError` if it diverges, `StoreError` if `out` cannot be written to"
    folder = Path(out)/stage.key
    with store.claim(folder, say=progress.say):
        try:
            result = store.read_json(folder/'result.json')
            store.verify(folder, result['files'])
            return result | dict(weights=str(folder/'weights.safetensors'))
        except FileNotFoundError: pass
        except Damaged as e: progress.say(f'{e}; it is done again')
        method, (train, valid, _, loaders) = make_method(stage), stage_data(stage)
        set_seed(stage.seed)
        encoder = create_encoder(stage.model, **parse_options(stage.model_args))
        if stage.init: load_encoder(encoder, stage.init)
        resume, check = Resume(folder, progress.say), StopDiverged()
        cbs = [method, Seeded(stage.seed), check, resume, EpochReporter(progress), ParamScheduler(dict(lr=stage_rates(stage)))]
        learn = Learner(loaders(), encoder, opt_func=partial(SGD, mom=.9, decouple_wd=False), lr=stage.lr, wd=stage.wd, wd_bn_bias=True, cbs=cbs)
        progress.start(f'{stage.method}, {stage.model}', stage.epochs)
        if done := epochs_done(folder): progress.say(f'goes on behind epoch {done}')
        with learn.no_bar(), learn.no_logging(): learn.fit(stage.epochs)
        if check.why: raise InputError(f'{stage.method} {check.why}; try a smaller lr than {stage.lr}')
        log = pd.DataFrame(list(learn.recorder.values), columns=learn.recorder.metric_names[1:-1])
        log.rename_axis('epoch').to_csv(folder/'epochs.csv', float_format='%.6g')
        method.save(folder/'weights.safetensors')
        if stage.method == 'rspnet': save_rspnet(method, folder/'rspnet.pth.tar', ARCH.get(stage.model, stage.model), stage.epochs, float(log.train_loss.min()))
        result = asdict(stage) | dict(key=stage.key, config=method.config, train=len(train), valid=len(valid), valid_loss=float(log.valid_loss.iloc[-1]), weights=str(folder/'weights.safetensors'),
                                      scores=[score(n, float(log[n].iloc[-1]), len(valid), method.chances[n]) for n in method.score_names])
        leave = ['result.json', *(f.name for f in store.find(folder, 'epoch-*', 'pt', check=False))]
        store.write_json(folder/'result.json', result | dict(files=store.seal(folder, leave)))
        resume.remove()
    return result


def score(name, value, n, chance):
    "A score on held-out videos with Wilson's 95 % interval"
    d = proportion_interval(round(value*n), n)
    return dict(name=name, value=value, low=d.low, high=d.high, n=n, chance=chance)


def score_text(s): return f'{s["name"]} {s["value"]:.1%} [{s["low"]:.1%}, {s["high"]:.1%}], chance {s["chance"]:.1%}'
