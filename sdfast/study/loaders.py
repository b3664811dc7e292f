"The loaders of a run's tasks, shared by all runs of a process."
from dataclasses import replace
from functools import lru_cache

from fastai.data.core import DataLoaders, TfmdDL

from ..data.datasets import create_task
from ..data.decoded import decoded_folder
from ..data.task import Task
from ..models.encoders import model_stats
from ..runtime.options import parse_options
from .config import QUICK, Run

__all__ = ['source_data', 'target_data', 'balanced_loader']

# number of clips of the source's train part, with balanced classes, for fitting probes and for computing importances
PROBE_CLIPS, FISHER_CLIPS = 1200, 500
QUICK_FISHER_CLIPS = 120  # in place of FISHER_CLIPS with `Run.quick`
SOURCE_VALID = .2  # part of the source's train part that is held out with `Run.source_valid`


def source_data(
    run:Run, # Only `source`, `source_bs` and the settings of clips matter
)->tuple: # The task, its loaders, and the loader of its test part
    "The data of the task that is not to be forgotten"
    return load_part(run, run.source, 'source', run.source_bs, SOURCE_VALID if run.source_valid else 0.)


def target_data(
    run:Run, # Only `task`, `bs`, `valid_frac` and the settings of clips matter
)->tuple: # The task, its loaders, and the loader of its test part
    "The data of the task to fine-tune on"
    return load_part(run, run.task, 'target', run.bs, run.valid_frac, run.earlier)


def load_part(run:Run, spec:str, part:str, bs:int, held:float=0., earlier:str='')->tuple:
    "`load_data` with the settings of a run"
    return load_data(spec, part, run.quick, run.frames, run.stride, run.size, run.area, run.flip, run.wrap, run.clips,
                     held, bs//run.processes, run.workers, run.model, run.model_args, earlier)


@lru_cache(maxsize=8)
def load_data(spec:str, part:str, quick:bool, frames:int, stride:int, size:int, area:float, flip:bool, wrap:bool,
              clips:int, held:float, bs:int, workers:int, model:str, model_args:str='', earlier:str='')->tuple:
    "`(task, loaders, loader of test)`, cached so that the runs of a process share decoded videos"
    task = create_task(spec, part)
    if held: task = task.hold_out(held)
    if quick: task = task.subset(**QUICK)
    if earlier: task = replace(task, label_space=joint_classes(*earlier_tasks(earlier), task))
    stats = model_stats(model, **parse_options(model_args, 'model_args'))
    augment = dict(area=(area, 1.) if area else None, flip=flip, wrap=wrap)

    def make_dls(bs, clips):
        return task.dls(frames, stride, size, bs, clips, workers, stats=stats, decoded=decoded_folder(),
                        train_only=True, **augment)
    dls = make_dls(bs, 1)
    # without gradients, twice the clips of a training batch fit into memory
    test_dls = dls if clips == 1 else make_dls(max(1, 2*bs//clips), clips)
    return task, dls, task.dl(test_dls, 'test')


def earlier_tasks(
    specs:str, # `Run.earlier`
)->list[Task]:
    "The source, and the tasks of earlier stages"
    source, *tasks = specs.split(';')
    return [create_task(source, 'source'), *map(create_task, tasks)]


def joint_classes(
    *tasks:Task, # In the order in which a head learns them
)->tuple: # Each name once
    "The class names of several tasks; a class that an earlier task has keeps its place"
    return tuple(dict.fromkeys(c for task in tasks for c in task.vocab))


def balanced_loader(
    task:Task, # From `source_data` or `target_data`
    dls:DataLoaders, # Its loaders
    n:int, # About how many clips
)->TfmdDL: # In a fixed order
    "A loader of train clips with balanced classes, without augmentation"
    per_class = -(-n//len(task.vocab))  # rounded up
    return task.subset(train=per_class).dl(dls, 'train')


def importance_loader(run:Run, task:Task, dls:DataLoaders)->TfmdDL:
    "The loader of the clips that importances of weights are computed from"
    return balanced_loader(task, dls, QUICK_FISHER_CLIPS if run.quick else FISHER_CLIPS)
