"""The settings of runs and studies, each declared once.

`Run` has the settings that decide a run's numbers, `Study` all others. The comment above a field is its help text;
`setting` adds its group and its limits. `study.settings` turns these declarations into command lines and study files.
So a new field of `Run` is a command-line option, and it changes no existing key: keys hash only the fields that differ
from their defaults."""
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import InputError
from ..runtime.limits import MAX_COUNT, MAX_FRAMES, MAX_PROCESSES, MAX_REPEATS, MAX_SIZE
from ..runtime.options import format_options, parse_options
from ..runtime.store import file_id
from .values import check_value

__all__ = ['RSPNET', 'Run', 'Study', 'file_id']

# The names of functions in modules that take long to import
RULES = 'accuracy', 'equal_learning'  # in `choose`
ADJUSTMENTS = 'holm', 'bh', 'none'  # in `stats`
# clips of each class that a quick study uses
QUICK = dict(train=12, valid=8, test=6)
# fields of a `Run` under the protocol of RSPNet's code (commit e069052), for both encoders and data sets
RSPNET = dict(frames=16, stride=1, size=112, clips=10, area=.25, flip=True, wrap=True, wd=1e-4, schedule='epoch_cosine',
              epochs=100)

# groups of settings, in the order in which --help lists them
DATA, MODEL, TRAINING = 'data', 'model', 'training'
CHOICE, STATISTICS, EXECUTION = 'strategies and their strengths', 'measures and statistics', 'execution'
GROUPS = (DATA, MODEL, TRAINING, CHOICE, STATISTICS, EXECUTION)
# defaults of sequence.py that differ from compare.py's
SEQUENCE = dict(epochs=8, strategies='self_distill,fixed_teacher,l2sp,ewc,linear_probe', out='runs/sequence', jobs=1)


@dataclass(frozen=True)
class Setting:
    "Properties of a setting in addition to its name, type, default and help"
    group: str = ''  # one of `GROUPS`; '': users cannot set it
    option: str = ''  # its name on the command line, by default the field's
    command: str = ''  # the only command that has it; '': all have it
    recorded: bool = True  # in study.yaml, and in the command that repeats a study
    automatic: bool = False  # if not given, it is derived from other settings
    of_source: bool = False  # it also decides the model before fine-tuning
    minimum: float|None = None
    above: float|None = None  # it must be greater than this
    maximum: float|None = None
    below: float|None = None  # it must be less than this
    choices: tuple = ()  # allowed values, in addition to its default
    separator: str = ''  # joins the items if a study file gives a list
    from_mapping: Callable|None = None  # converts to text if a study file gives a mapping


def setting(
    default:object,
    group:str='', # One of `GROUPS`; '': users cannot set it
    **more, # Other fields of `Setting`
)->Any: # With a `Setting` as its metadata
    "Declare a field of `Run` or `Study`"
    return field(default=default, metadata=dict(setting=Setting(group, **more)))


def _format_lams(lams):
    "`{'l2sp': [.1, 1]}` as `l2sp=0.1,1`"
    lists = {s:v if isinstance(v, list) else [v] for s, v in lams.items()}
    return ';'.join(f'{s}={",".join(map(str, v))}' for s, v in lists.items())


def _format_strategy_args(args):
    "`{'ewc': {'implicit': True}}` as `ewc:implicit=true`"
    return ';'.join(f'{s}:{v if isinstance(v, str) else format_options(v)}' for s, v in args.items())


@dataclass(frozen=True)
class Run:
    """All settings that decide a run's numbers; equal runs have equal `key`s.

    `select='paper'` is the paper's protocol: it measures the last epoch and, in separate columns, the best epoch on
    test. As choosing on test is not honest, compare.py does not offer it."""
    # Target task: moving_digits, or moving_photos, ucf101, hmdb51, kinetics, ssv2, folder, csv, hf_dataset or shards
    # with :PATH, then options as ,name=value
    task: str = setting('moving_digits', DATA, command='compare')
    # Source task, on which forgetting is measured
    source: str = setting('moving_digits', DATA, of_source=True)
    # Fingerprints of the files of both tasks, so that a run with changed files has another key
    data: str = setting('', of_source=True)
    # tiny, the paper's c3d and r2plus1d, a video net of torchvision, any image model of timm, hf:FOLDER, hf:OWNER/NAME,
    # torchvision:NAME, timm:NAME, sdfast:FOLDER or MODULE:FUNCTION
    model: str = setting('tiny', MODEL, of_source=True)
    # Options of the model's constructor, such as pad_type=same or weights=KINETICS400_V1
    model_args: str = setting('', MODEL, of_source=True, from_mapping=format_options)
    # Weights of the encoder before the source stage: a checkpoint or a folder of one, `pretrained` or `random`; models
    # with hf: and sdfast: have theirs
    init: str|None = setting(None, MODEL, of_source=True)
    # One of `STRATEGIES`
    strategy: str = setting('finetune')
    # Options of the strategy's callbacks, `name=value,...`
    strategy_args: str = setting('')
    # Strength of the strategy
    lam: float = setting(0., minimum=0)
    # Random seed of head, data order, clips and augmentation
    seed: int = setting(0, minimum=0, maximum=2**32 - 1)
    # Epochs of fine-tuning; in a chain, of each stage
    epochs: int = setting(12, TRAINING, minimum=1, maximum=MAX_COUNT)
    # Learning rate at the start of fine-tuning: SGD, momentum .9
    lr: float = setting(.05, TRAINING, above=0)
    # Learning rate schedule, see `learning_rates`
    schedule: str = setting('cosine', TRAINING, choices=('cosine', 'epoch_cosine', 'steps'))
    # L2 regularisation of all parameters during fine-tuning
    wd: float = setting(0., TRAINING, minimum=0)
    # In a chain with one head for all classes so far: source and tasks whose classes it has before this one, joined by
    # `;`. It gets those of this task in addition
    earlier: str = setting('')
    # Batch size, over all processes
    bs: int = setting(32, TRAINING, minimum=1, maximum=MAX_COUNT)
    # Frames in a clip
    frames: int = setting(8, DATA, of_source=True, minimum=1, maximum=MAX_FRAMES)
    # Frames of the video from one frame of the clip to the next
    stride: int = setting(1, DATA, of_source=True, minimum=1, maximum=MAX_FRAMES)
    # Side of the square crop in pixels; by default 40 for moving_digits, 48 for moving_photos, else 112
    size: int = setting(40, DATA, of_source=True, automatic=True, minimum=8, maximum=MAX_SIZE)
    # Smallest share of the frame that a training crop covers, such as .25; 0: square crops of the scaled frame
    area: float = setting(0., DATA, of_source=True, minimum=0, maximum=1)
    # Mirror half of the training clips
    flip: bool = setting(False, DATA, of_source=True)
    # Repeat a short video from its start instead of repeating its last frame
    wrap: bool = setting(False, DATA, of_source=True)
    # Clips of each test video; of a valid video only the middle clip is used
    clips: int = setting(1, DATA, of_source=True, minimum=1, maximum=MAX_FRAMES)
    # Part of train to hold out, by group, if the task has no valid part; 0: train on all
    valid_frac: float = setting(.2, DATA, minimum=0, below=1)
    # Epoch that is measured: the last, or the best on valid
    select: str = setting('last', TRAINING, command='compare', choices=('last', 'valid'))
    # Stop after this many epochs without improvement on valid; 0: never
    patience: int = setting(0, TRAINING, command='compare', minimum=0, maximum=MAX_COUNT)
    # Processes that load clips; 0 keeps decoded videos in memory if they fit
    workers: int = setting(0, EXECUTION, of_source=True, minimum=0, maximum=MAX_PROCESSES)
    # Epochs of the source stage; by default 6, or 0 with --init
    source_epochs: int = setting(6, TRAINING, of_source=True, automatic=True, minimum=0, maximum=MAX_COUNT)
    # Learning rate of the source stage
    source_lr: float = setting(.1, TRAINING, of_source=True, above=0)
    # Batch size of the source stage, by default --bs
    source_bs: int = setting(32, TRAINING, of_source=True, automatic=True, minimum=1, maximum=MAX_COUNT)
    # Random seed of the source stage: of initial weights, data order, clips and augmentation
    source_seed: int = setting(0, TRAINING, of_source=True, minimum=0, maximum=2**32 - 1)
    # Hold out a part of the source as well, to choose strengths by what was kept
    source_valid: bool = setting(False, of_source=True)
    # More tasks, joined by `;`, on which a probe measures what was kept, such as 'moving_digits,part=motion'
    others: str = setting('', STATISTICS, command='compare', separator=';')
    # More measures of the source, joined by `,`: source_probe_tuned and source_knn_tuned, a probe and neighbours with
    # settings that are chosen on a held-out part of the source; source_attentive, a probe that attends to tokens
    extra: str = setting('', STATISTICS, command='compare', separator=',')
    # Count how often each clip of the target's train part, and of the source's test part by the old head, goes from
    # right to wrong while final runs train: events.csv and source_events.csv
    events: bool = setting(False, STATISTICS, command='compare')
    # Measure the loss on the straight line between the weights before and after fine-tuning
    with_barrier: bool = setting(False, STATISTICS, option='barrier', command='compare')
    # Processes that train together on each batch, under torchrun
    processes: int = setting(1, of_source=True, minimum=1, maximum=MAX_PROCESSES)
    # What --retain is a share of: the accuracy on a held-out part of the source by the old head, by the old head with
    # recomputed batch-norm statistics or by a new probe; or drift, of features of target clips
    retain_by: str = setting('old_head', CHOICE, command='compare',
                             choices=('old_head', 'old_head_bn', 'probe', 'drift'))
    # Run all strategies at a reduced size
    quick: bool = setting(False, DATA, of_source=True)
    # Read test and measure retention; a trial does neither
    final: bool = setting(False)

    def __post_init__(self):
        if self.select == 'test':
            raise InputError("choosing an epoch on test is not honest: select='valid' chooses on held-out groups of "
                             "train; for the paper's protocol, labelled as such next to the last epoch, select='paper'")
        if self.select not in ('last', 'valid', 'paper'):
            raise InputError(f'select must be last, valid or paper, not {self.select!r}')
        for f in fields(self):
            if f.name != 'select': object.__setattr__(self, f.name, check_value(f, getattr(self, f.name)))
        if self.bs % self.processes or self.source_bs % self.processes:
            raise InputError(f'batches of {self.bs} and {self.source_bs} cannot be divided among {self.processes} '
                             'processes')

    @property
    def key(self)->str: return hash_fields(changed_fields(self))

    @property
    def source_key(self)->str:
        "Key of the settings that decide the model before fine-tuning"
        decisive = {f.name for f in fields(self) if f.metadata['setting'].of_source}
        return hash_fields({k:v for k, v in changed_fields(self).items() if k in decisive})

    @property
    def stage(self)->str: return 'final' if self.final else 'trial'

    def options(self,
        field:str='model_args', # Or 'strategy_args'
    )->dict: # Keyword arguments
        "Options of the model or of the strategy"
        return parse_options(getattr(self, field), field)


@dataclass(frozen=True)
class Study:
    "The settings of a study that are not settings of a `Run`"
    # Target tasks in order, joined by `;`, see compare.py's --task
    tasks: str = setting('moving_digits,part=target;moving_digits,part=motion;moving_digits,part=digit', DATA,
                         command='sequence', separator=';')
    # One head for the classes of source and tasks so far, which grows with each stage (class-incremental learning), in
    # place of a head for each task
    growing: bool = setting(False, TRAINING, command='sequence')
    # Models of single tasks to merge, in addition to the strategies: task_arithmetic, ties
    merges: str = setting('', CHOICE, command='sequence', separator=',')
    # Folder of the official lists of ucf101 and hmdb51, by default in the videos' folder or next to it
    splits: str|None = setting(None, DATA)
    # Use ucf101 and hmdb51 even if some of their videos are missing
    allow_missing: bool = setting(False, DATA)
    # Videos with more than 3 damaged frames: keep them and list them, drop them, or fail
    damaged: str = setting('keep', DATA, choices=('keep', 'drop', 'fail'))
    # Strategies to compare, or `all`; finetune, the reference, is always included
    strategies: str = setting('self_distill,fixed_teacher,ema_teacher,l2sp,ewc', CHOICE, separator=',')
    # Strengths to choose from: .1,1,10 for all strategies, or l2sp=.01,.1;ewc=.1,1
    lams: str = setting('', CHOICE, separator=',', from_mapping=_format_lams)
    # Options of strategies: ewc:implicit=true;self_distill:reduction=sum,teacher_bn=running
    strategy_args: str = setting('', CHOICE, from_mapping=_format_strategy_args)
    # Keep this share of what the encoder knew, such as .98, instead of choosing strengths: each strategy adapts its own
    # while it trains, starting from the last of --lams; 0: strengths are fixed
    retain: float = setting(0., CHOICE, command='compare', minimum=0, below=1)
    # Final runs of each strategy
    seeds: int = setting(6, CHOICE, minimum=1, maximum=MAX_REPEATS)
    # Trials of each strength
    trial_seeds: int = setting(1, CHOICE, minimum=1, maximum=MAX_REPEATS)
    # Run every strength with every seed to the end, to show its trade-off and to choose by all seeds
    all_strengths: bool = setting(False, CHOICE, command='compare')
    # How to choose: the best on valid, or, of all settings within 1 point of it, the one that keeps most
    rule: str = setting('accuracy', CHOICE, command='compare', choices=RULES)
    # Accuracy that equal_learning compares on a held-out part of the source: of a new probe, or of the old head
    kept: str = setting('source_probe', CHOICE, command='compare', choices=('source_probe', 'source_acc'))
    # How p values are adjusted for the number of strategies: holm, bh (false discovery rate) or none
    adjust: str = setting('holm', STATISTICS, command='compare', choices=ADJUSTMENTS)
    # Folder to write to; finished runs in it are not repeated
    out: str = setting('runs/compare', EXECUTION)
    # Redo all runs of this study and its source model that --out has, whatever version of sdfast or of its libraries,
    # or number of threads, they are of. If it is stopped, the same command continues
    fresh: bool = setting(False, EXECUTION, recorded=False)
    # Worker processes, such as one for each GPU; by default 1, or on CPUs up to 8 for moving_digits
    jobs: int|None = setting(None, EXECUTION, automatic=True, minimum=1, maximum=MAX_PROCESSES)
    # Where workers run: local, or slurm
    launcher: str = setting('', EXECUTION)
    # Options of Slurm's jobs: partition=NAME,time=MINUTES,gpus=N,cpus=N,mem=GB,account=NAME,qos=NAME
    slurm: str = setting('', EXECUTION, from_mapping=format_options)
    # Also log each run to tensorboard, wandb or both, in --out
    log: str = setting('', EXECUTION, command='compare', separator=',')


def changed_fields(
    run:Run,
)->dict: # Name -> value, in the order of the fields
    """The fields that differ from their defaults, and the `definition` of the strategy.

    Those of type `float` are floats, so that equal runs have equal keys."""
    from ..strategies import STRATEGIES  # takes seconds, and a command's help needs no keys
    values = asdict(run)
    changed = {f.name:float(values[f.name]) if f.type is float else values[f.name]
               for f in fields(run) if values[f.name] != f.default}
    known = STRATEGIES.get(run.strategy)
    return changed | dict(definition=known.definition) if known and known.definition else changed


def hash_fields(
    values:object, # Anything that JSON can hold
)->str: # Twelve hex digits
    "Hash of settings, as used for keys"
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
