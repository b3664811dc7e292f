"The paper's tables: the printed numbers, the settings of its code base, and the runs that fill each cell."
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from ..data.datasets import create_task
from ..errors import InputError
from ..models.checkpoints import read_nodes
from ..models.encoders import create_model
from ..strategies.distill import REDUCTIONS
from .config import RSPNET, Run, file_id
from .fit import learning_rates

__all__ = ['PaperCell', 'PaperStudy', 'find_data', 'find_weights']

LAMS = (.1, 1., 10., 100., 1000.)  # the strengths of table 2
RECIPES = dict(c3d=dict(lr=.005, bs=24), r2plus1d=dict(lr=.1, bs=32))  # settings of RSPNet's code for each encoder
DATA_SETS = ('ucf101', 'hmdb51')
NAMES = dict(c3d='C3D', r2plus1d='R(2+1)D', ucf101='UCF101', hmdb51='HMDB51')  # for the reader
FOLDERS = dict(ucf101=('UCF-101', 'UCF101', 'ucf101'), hmdb51=('hmdb51', 'HMDB51', 'hmdb51_org'))  # where videos may be
FILES = dict(c3d=('c3d',), r2plus1d=('r2plus1d', 'r21d', 'r2p1d'))  # a checkpoint's file name contains one of these
SELECTIONS = dict(last='last epoch', valid='best on valid', paper='paper protocol')  # which epoch is tested
TEACHER_BN = ('batch', 'running')
NO_FILE = ('pretrained', 'random')  # values of `Run.init` that name no file
# What the paper does not say -> what the runs take, and the option that changes it
OPEN_IN_PAPER = {
    'whether the squared distance is summed or averaged': '--reduction mean',
    "which statistics the teacher's batch norm uses": '--teacher-bn batch',
    'the batch size': "--bs 24 (C3D) and 32 (R(2+1)D): that its 24×512 and 32×512 features are batch × channels is an "
                      'inference',
    'how many GPUs share a batch': 'one process; torchrun divides --bs',
    'the schedule of the learning rate': "--schedule epoch_cosine, as in RSPNet's code",
    'weight decay and momentum': "1e-4 and .9, as in RSPNet's code",
    'clips, crops and augmentation': "those of RSPNet's code: --frames 16, --size 112, --clips 10",
    'which epoch is reported, and on which part it and λ were chosen': '--selections last,valid,paper',
    'the number of runs behind a number': '--seeds 1'}

# Table 2, top-1 and top-5 in %: encoder -> λ (0 is the baseline) -> UCF101, HMDB51
TABLE_2 = dict(
    c3d={0.: ((77.1, 93.5), (43.9, 76.5)), .1: ((76.7, 93.7), (45.8, 76.5)), 1.: ((77.1, 94.1), (43.9, 76.7)),
         10.: ((77.9, 94.1), (44.2, 76.7)), 100.: ((78.6, 94.6), (42.9, 77.4)), 1000.: ((77.5, 94.7), (41.4, 75.9))},
    r2plus1d={0.: ((80.2, 95.0), (44.1, 75.6)), .1: ((80.8, 94.4), (44.8, 74.3)), 1.: ((80.3, 94.8), (43.3, 75.1)),
              10.: ((81.4, 95.4), (45.6, 76.1)), 100.: ((82.3, 96.3), (46.3, 76.3)),
              1000.: ((81.5, 96.1), (47.3, 77.8))})
PRINTED = {(encoder, data, lam): values[i] for encoder, rows in TABLE_2.items() for lam, values in rows.items()
           for i, data in enumerate(DATA_SETS)}  # (encoder, data set, λ) -> (top-1, top-5)
# top-1 in % on UCF101 and HMDB51 that table 1 quotes from other papers
QUOTED = {('c3d', '3D ST puzzles'): (60.6, 28.3), ('c3d', 'MAS'): (61.2, 33.4), ('c3d', 'RSPNet'): (76.7, 44.6),
          ('r2plus1d', 'Pace'): (77.1, 36.6), ('r2plus1d', 'RSPNet'): (81.1, 44.6)}


RSPNET_START = 'RSPNet'  # what the paper's encoders start from


@dataclass
class PaperCell:
    "An encoder on a data set"
    encoder: str  # of `RECIPES`
    data: str  # of `DATA_SETS`
    runs: list  # all runs of both tables
    missing: str = ''  # why the runs are impossible; '' if they are possible
    start: str = RSPNET_START  # net and weights that take the place of the paper's

    def select(self,
        lam:float, # Strength; 0 for the baseline
        kind:str, # One of `SELECTIONS`
    )->list[Run]: # One for each seed
        "The runs with one strength for a selection: 'valid' has runs of its own, which hold out a part of train"
        return [r for r in self.runs if r.lam == lam and (r.select == 'valid') == (kind == 'valid')]


@dataclass(frozen=True)
class PaperStudy:
    "Which cells of the paper's tables to fill, and with which data; missing data sets or weights leave empty cells"
    data: str|None = None  # folder with UCF-101 and hmdb51
    # Folder of RSPNet's checkpoints, or c3d=FILE,r2plus1d=FILE with these or others, or `pretrained` or `random`
    weights: str|None = None
    splits: str|None = None  # folder of the official lists, by default in and next to the data
    encoders: Sequence[str] = tuple(RECIPES)  # of `RECIPES`
    nets: str = ''  # other nets in their place: c3d=NAME,r2plus1d=NAME, see `create_model`
    datasets: Sequence[str] = DATA_SETS  # of `DATA_SETS`
    lams: Sequence[float] = LAMS  # strengths; the baseline is always included
    seeds: int = 1  # runs of each cell and selection
    fold: int = 1  # official split
    selections: Sequence[str] = tuple(SELECTIONS)  # which epochs are tested, of `SELECTIONS`
    valid_frac: float = .2  # part of train held out for the selection 'valid'
    reduction: str = 'mean'  # of the squared distance; the paper does not say
    teacher_bn: str = 'batch'  # statistics in the teacher's batch norm; the paper does not say
    allow_missing: bool = False  # use the videos that are present
    fields: dict = field(default_factory=dict)  # fields of `Run` that replace the protocol's

    def check(self)->None:
        "Raise `InputError` for a setting that cannot work"
        for name in ('epochs', 'frames', 'size', 'clips'):
            if self.fields.get(name, 1) < 1: raise InputError(f'--{name} must be at least 1, not {self.fields[name]}')
        if self.seeds < 1: raise InputError(f'--seeds must be at least 1, not {self.seeds}')
        for name in ('bs', 'lr'):
            value = self.fields.get(name, 1)
            if not 0 < value < float('inf'): raise InputError(f'--{name} must be positive, not {value}')
        if self.fold not in (1, 2, 3): raise InputError(f'--fold must be 1, 2 or 3, not {self.fold}')
        if not 0 < self.valid_frac < 1: raise InputError(f'--valid-frac must be between 0 and 1, not {self.valid_frac}')
        workers = self.fields.get('workers', 0)
        if workers < 0: raise InputError(f'--workers must be at least 0, not {workers}')
        if self.data and not Path(self.data).is_dir(): raise InputError(f'--data: folder {self.data} does not exist')
        check_among('--reduction', self.reduction, REDUCTIONS)
        check_among('--teacher-bn', self.teacher_bn, TEACHER_BN)
        learning_rates(self.fields.get('schedule', 'epoch_cosine'), 1., 1)  # raises for an unknown schedule

    def plan(self)->tuple[list[PaperCell], list[str]]:
        "Return `(cells, notes)`: the runs of each cell, and notes on data and weights for the reader"
        notes: list[str] = []
        specs = {name:self._find_task(name, notes) for name in self.datasets}
        nets = named_pairs('--nets', self.nets)
        nets = {encoder:nets.get(encoder, encoder) for encoder in self.encoders}
        weights = {encoder:self._find_checkpoint(encoder, net, notes) for encoder, net in nets.items()}
        cells = []
        for encoder, name in product(self.encoders, self.datasets):
            spec, init = specs[name], weights[encoder]
            missing = 'no data' if spec is None else 'no weights' if init is None else ''
            runs = self._runs(encoder, nets[encoder], name, spec, init)
            cells.append(PaperCell(encoder, name, runs, missing, start_name(encoder, nets[encoder], init)))
        return cells, notes

    def _find_task(self, name, notes):
        spec = find_data(self.data, name, self.fold, self.splits, self.allow_missing) if self.data else None
        if spec is None:
            notes.append(f'{NAMES[name]} is not in {self.data or "--data, which was not given"}: its cells are empty')
            return None
        task = create_task(spec)
        notes += [f'{task.name}: {note}' for note in task.notes]
        return spec

    def _find_checkpoint(self, encoder, net, notes):
        init = find_weights(self.weights, encoder)
        if init is None:
            where = self.weights or '--weights, which was not given'
            notes.append(f'no weights of {NAMES[encoder]} in {where}: its cells are empty')
            return None
        create_model(net, 2, init)  # raises if they do not fit
        content = f', content {file_id(init)}' if file_id(init) else ''
        start = start_name(encoder, net, init)
        instead = '' if start == RSPNET_START else f": NOT the paper's start, {start} in place of RSPNet"
        notes.append(f'{NAMES[encoder]} starts from {Path(init).name}{content}{instead}')
        return init

    def _runs(self, encoder, net, name, spec, init):
        "Runs with all strengths and seeds, for each selection that needs its own"
        data = f'{create_task(spec).fingerprint}-{file_id(init)}' if spec else ''
        fields = RSPNET | RECIPES[encoder] | self.fields
        base = Run(task=spec or f'{name}:', source='', model=net, init=init, final=True, data=data, **fields)
        options = f'reduction={self.reduction},teacher_bn={self.teacher_bn}'
        variants = []
        if 'paper' in self.selections: variants.append(dict(valid_frac=0., select='paper'))  # has the last epoch, too
        elif 'last' in self.selections: variants.append(dict(valid_frac=0., select='last'))
        if 'valid' in self.selections: variants.append(dict(valid_frac=self.valid_frac, select='valid'))
        runs = []
        for lam in (0., *self.lams):
            run = replace(base, strategy='self_distill', strategy_args=options, lam=lam) if lam else base
            runs += [replace(run, seed=seed, **variant) for seed in range(self.seeds) for variant in variants]
        return runs


def named_pairs(option:str, text:str)->dict[str, str]:
    "Read `c3d=A,r2plus1d=B`; raises `InputError` for another encoder"
    words = [part.partition('=') for part in text.split(',') if part.strip()]
    for encoder, equals, value in words:
        if encoder not in RECIPES:
            raise InputError(f'{option}: unknown encoder {encoder!r}; known are {", ".join(RECIPES)}')
        if not value: raise InputError(f'{option}: {encoder} has no value; write {encoder}=VALUE')
    return {encoder:value for encoder, _, value in words}


def start_name(encoder:str, net:str, init:str|None)->str:
    "`RSPNET_START` for a checkpoint in RSPNet's layout, or none, on the paper's net; else net and weights"
    if init is None: return RSPNET_START if net == encoder else net
    names = [] if init in NO_FILE else [name for node in read_nodes(init).values() for name in node]
    if net == encoder and any(name.startswith('encoder_q.') for name in names): return RSPNET_START
    return f'{net} from {Path(init).name}'


def check_among(option, value, known):
    if value not in known: raise InputError(f'{option}: unknown {value!r}; known are {", ".join(known)}')


def find_data(
    root:str|Path, # Folder of the data sets
    name:str, # One of `DATA_SETS`
    fold:int=1, # Official split
    splits:str|None=None, # Folder of the official lists
    allow_missing:bool=False, # Use the videos that are present
)->str|None: # See `create_task`; `None` if the data set is not there
    "Find a data set below a folder and return its task spec"
    root = Path(root)
    places = [p for p in (root, root/name) if any((p/f).is_dir() for f in FOLDERS[name])]
    if not places: return None
    spec = f'{name}:{places[0]},fold={fold}'
    if splits: spec += f',splits={splits}'
    if allow_missing: spec += ',allow_missing=1'
    return spec


def find_weights(
    text:str|None, # `c3d=FILE,r2plus1d=FILE`, or a folder whose file names contain the encoders' names
    encoder:str, # One of `RECIPES`
)->str|None: # Its checkpoint; `None` if there is none
    "Find the checkpoint of an encoder; raises `InputError` if several files match"
    if not text: return None
    if '=' in text:
        given = named_pairs('--weights', text)
        if given.get(encoder) in NO_FILE: return given[encoder]
        found = [Path(given[encoder])] if encoder in given else []
    else:
        if not Path(text).is_dir(): raise InputError(f'--weights {text} is neither a folder nor c3d=FILE,r2plus1d=FILE')
        files = sorted(f for f in Path(text).iterdir() if f.is_file())
        found = [f for f in files if any(n in f.name.lower() for n in FILES[encoder])]
    if not found: return None
    if len(found) > 1:
        names = ', '.join(f.name for f in found)
        raise InputError(f'--weights {text}: {names} could all be {encoder}; name one: {encoder}=FILE')
    if not found[0].is_file(): raise InputError(f'weights {found[0]} do not exist')
    return str(found[0])
