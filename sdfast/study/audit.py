"Audits of checkpoints on tasks: from names to the contents of `audit.json`."
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from ..data.checked import check_files
from ..data.datasets import create_task
from ..data.decoded import decoded_folder
from ..data.folders import find_videos
from ..data.splits import group_names
from ..data.tables import distinct_files
from ..errors import InputError
from ..metrics.audit import Audit, audit
from ..metrics.extra import are_chosen, split_extra
from ..metrics.features import probe_head
from ..metrics.reading import preserve_rng
from ..metrics.resample import Resamples
from ..metrics.retention import Retention
from ..models.clip_spec import ClipSpec
from ..models.encoders import model_stats
from ..models.features import extract
from ..models.fits import check_fits
from ..pretext.loaders import video_dls
from ..runtime.options import parse_options
from ..stats import above_chance
from .checkpoints import Checkpoint, load_checkpoint
from .loaders import PROBE_CLIPS, balanced_loader

__all__ = ['AuditSettings', 'audit_checkpoints']

VIDEOS = 'videos:'  # how the spec of a folder of videos without labels begins
NO_PRETEXT = ('the pretext loss is not measured: checkpoints of encoders hold no head of a pretext task, and a new '
              'head would be measured rather than the encoder; in Python, audit(..., pretext=FUNCTION) measures it')


@dataclass(frozen=True)
class AuditSettings:
    "How checkpoints are audited"
    model: str = ''  # net of files of weights, see `create_model`; '': their names say it
    model_args: str = ''  # for the net's constructor, `name=value,...`
    frames: int = 0  # in a clip; 0: as the net expects, else 8
    stride: int = 1  # frames of the video from one frame of the clip to the next
    size: int = 0  # side of the square crop in pixels; 0: as the net expects, else 40 for moving_digits and 112
    bs: int = 32  # clips in a batch
    workers: int = 0  # processes that load clips
    videos: int = 0  # largest number of test videos of each class; 0: all
    barrier: bool = True  # also measure between the weights
    extra: str = ''  # more measures of tasks with labels, joined by ',', see `EXTRA`
    resamples: int = 2000  # bootstrap samples
    level: float = .95  # coverage of intervals
    seed: int = 0  # of the bootstrap and of a choice of videos


@dataclass(frozen=True, eq=False)
class AuditResult:
    "One fine-tuned encoder on one task"
    after: Checkpoint
    task: str  # its spec
    found: Audit
    about: dict  # clips, train_clips, n_classes, head, chance, grouped
    notes: tuple  # what is doubtful, as text


def audit_checkpoints(
    before:str, # Weights of the untouched encoder, see `load_checkpoint`
    after:Sequence[str], # Weights of the fine-tuned ones
    tasks:Sequence[str], # Specs of tasks, see `create_task`, or `videos:FOLDER` for videos without labels
    settings:AuditSettings=AuditSettings(), # How
    say:Callable[[str], Any]=lambda text: None, # Called with what is being done
)->tuple[Checkpoint, list[AuditResult]]: # The untouched encoder, and a result for each fine-tuned one and task
    "Audit checkpoints on tasks. Raises `InputError` for those that cannot be compared"
    if not after or not tasks: raise InputError('an audit needs at least one checkpoint after, and one task')
    for what, names in (('checkpoint', after), ('task', tasks)):
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice: raise InputError(f'{what} {twice} is given twice')
    Resamples(['any'], settings.resamples, settings.level)  # raises before anything is read
    split_extra(settings.extra)
    kwargs = parse_options(settings.model_args, '--model-args')
    say(f'loading {before}')
    base = load_checkpoint(before, settings.model, **kwargs)
    tuned = []
    for name in after:
        say(f'loading {name}')
        tuned.append(load_checkpoint(name, settings.model or base.model, **kwargs))
        _check_same_net(base, tuned[-1])
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    for checkpoint in (base, *tuned): checkpoint.encoder.to(device)
    results = []
    for spec in tasks:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always', UserWarning)
            say(f'{spec}: reading the videos')
            data = _videos(spec, base, settings) if spec.startswith(VIDEOS) else _task(spec, base, settings)
            say(f'{spec}: {before}')
            try: retention, head = _retention(base, data, settings)
            except FloatingPointError as e: raise InputError(f'{before} on {spec}: {e}') from None
            of_task = _messages(caught)
        for checkpoint in tuned:
            say(f'{spec}: {checkpoint.name}')
            results.append(_result(retention, checkpoint, data, head, settings, of_task))
    return base, results


def _check_same_net(base, other):
    before, after = (c.encoder.num_features for c in (base, other))
    names = [{n for n, _ in c.encoder.named_parameters()} for c in (base, other)]
    if before == after and names[0] & names[1]: return
    raise InputError(f'{other.name} is another net than {base.name} ({after} and {before} features, '
                     f'{len(names[0] & names[1])} weights of the same name): only encoders of one architecture can be '
                     'compared')


# ---- data

@dataclass(frozen=True, eq=False)
class _Data:
    spec: str
    test_dl: Any
    paths: list
    groups: list
    train_dl: Any = None  # `None` without labels
    valid_dl: Any = None  # to choose the settings of extra measures
    classes: int = 0
    notes: tuple = ()


def _clip_shape(settings, encoder, digits):
    "Frames and size of clips: as given, as the net expects, or the default"
    spec = getattr(encoder, 'clips', None) or ClipSpec()
    frames, size = (8, 40) if digits else (spec.frames or 8, spec.size or 112)
    if not spec.any_frames: frames = spec.frames or frames
    if not spec.any_size: size = spec.size or size
    frames, size = settings.frames or frames, settings.size or size
    try: check_fits(encoder, frames, size)
    except InputError as e: raise InputError(f'--frames {frames} --size {size}: {e}') from None
    return frames, size


def _task(spec, base, settings):
    try: task = create_task(spec, 'source')
    except InputError as e:
        if not spec.startswith('folder:'): raise
        raise InputError(f'{e}; for videos without labels write {VIDEOS}FOLDER') from None
    if settings.videos: task = task.subset(settings.seed, test=settings.videos)
    if are_chosen(settings.extra): task = task.hold_out()
    frames, size = _clip_shape(settings, base.encoder, spec.startswith('moving_digits'))
    stats = model_stats(base.model, **parse_options(settings.model_args))
    dls = task.dls(frames, settings.stride, size, settings.bs, 1, settings.workers, stats=stats,
                   decoded=decoded_folder(), train_only=True)
    rows = task.df[task.df.split == 'test']
    valid = task.dl(dls, 'valid') if are_chosen(settings.extra) else None
    return _Data(spec, task.dl(dls, 'test'), list(rows.path), list(rows.group), balanced_loader(task, dls, PROBE_CLIPS),
                 valid, len(task.vocab), task.notes)


def _videos(spec, base, settings):
    "Videos without labels: all below a folder, but those that cannot be decoded"
    folder, _, rule = spec.removeprefix(VIDEOS).partition(',group=')
    root = Path(folder)
    if not root.is_dir(): raise InputError(f'folder {root} does not exist')
    files = [str(f.absolute()) for f in distinct_files(f for f in find_videos(root)[0] if f.is_file())]
    df, skipped, _, notes = check_files(spec, pd.DataFrame(dict(path=files, label='')))
    paths = list(df.path)[:settings.videos or None]
    if len(paths) < 2: raise InputError(f'{root} has {len(paths)} videos that can be decoded; at least two are needed')
    groups = group_names(paths, rule or None)
    frames, size = _clip_shape(settings, base.encoder, False)
    stats = model_stats(base.model, **parse_options(settings.model_args))
    dls = video_dls(paths, paths, frames, settings.stride, size, settings.bs, settings.workers, stats=stats)
    if skipped: notes = [*notes, f'{len(skipped)} videos cannot be decoded and are left out']
    return _Data(spec, dls.valid, paths, groups, notes=(*notes, NO_PRETEXT))


# ---- measuring

def _retention(base, data, settings):
    "The measurements of a task, and which head they ask"
    more: dict[str, Any] = {} if settings.barrier else dict(barrier_at=())
    more |= dict(extra=split_extra(settings.extra), valid_dl=data.valid_dl)
    if data.train_dl is None:
        head = base.head()
        retention = Retention(_pair(base, head), clips=data.test_dl, head=head, encoder='0')
        return retention, None if head is None else 'checkpoint'
    head = base.head(data.classes)
    if head is not None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that it is at chance is said below
            retention = Retention(_pair(base, head), data.train_dl, data.test_dl, **more)
        test = retention.readings['test_dl']
        if above_chance(test.accuracy(), len(test), test.chance): return retention, 'checkpoint'
        warnings.warn(f'the head in {base.name} has {data.classes} outputs, but is at chance on {data.spec}, so it is '
                      'not of these classes; a probe on its features is the old head instead')
    with preserve_rng(): features = extract(base.encoder, data.train_dl)
    head = probe_head(*features, data.classes)
    return Retention(_pair(base, head), data.train_dl, data.test_dl, **more), 'probe'


def _pair(base, head):
    device = next(base.encoder.parameters()).device
    return nn.Sequential(base.encoder, nn.Identity() if head is None else head.to(device))


def _result(retention, checkpoint, data, head, settings, notes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', UserWarning)
        try: found = audit(retention, checkpoint.encoder, groups=data.groups, resamples=settings.resamples,
                           level=settings.level, seed=settings.seed)
        except FloatingPointError as e: raise InputError(f'{checkpoint.name} on {data.spec}: {e}') from None
    found.clips.insert(0, 'path', data.paths)
    about = dict(clips=len(data.paths), train_clips=len(retention.readings['train_dl']) if data.train_dl else 0,
                 n_classes=data.classes, head=head, chance=retention.about.get('source_chance'),
                 grouped=found.groups < len(data.paths))
    return AuditResult(checkpoint, data.spec, found, about, (*data.notes, *dict.fromkeys([*notes, *_messages(caught)])))


def _messages(caught): return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
