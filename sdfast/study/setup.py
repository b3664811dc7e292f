"""From settings to a study: its tasks, strengths to try, and the `Run` that its runs share.

Impossible settings raise an `InputError` before anything is trained."""
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ..data.datasets import create_task, task_options
from ..data.task import Task
from ..data.text import as_markdown
from ..errors import InputError
from ..metrics.extra import are_chosen
from ..runtime.launcher import has_submitit
from ..runtime.options import parse_options, split_list
from ..strategies.registry import STRATEGIES, check_options
from .choose import check_strengths, strength_grid
from .config import QUICK, Run
from .fit import fit_batch_size
from .model_settings import check_model, check_name, default_size, source_epochs, starts_trained, weight_ids
from .retain import add_retain, check_retain, retains
from .settings import Settings

__all__ = ['Setup', 'build', 'build_chain', 'default_jobs']


@dataclass(frozen=True)
class Setup:
    "A study that is ready to run"
    runs: list  # what all strategies share: a `Run` for each target task, so one for compare.py
    grids: dict  # strategy -> its `strength_grid`
    seeds: int  # final runs of each strategy
    trial_seeds: int  # trials of each strength
    messages: list  # lines for the reader
    notes: list  # notes on the tasks for readers of the tables, as Markdown


@dataclass(frozen=True)
class StudyTasks:
    "The tasks of a study"
    source: Task
    target: Task
    others: list  # tasks to probe
    train_source: Task  # the source, with a valid part if strengths are chosen on it; reduced if the study is quick
    train_target: Task  # the target, with a valid part; reduced if the study is quick
    held_out: list  # lines for the reader about the valid parts that were made

    @property
    def every(self)->list: return [self.source, self.target, *self.others]


def build(
    settings:Settings, # Of compare.py
    processes:int=1, # Number of processes that train together on each batch
)->Setup: # All that `compare` or `compare_sequences` needs
    "Set up a comparison of strategies. Raises `InputError` for impossible settings"
    settings = add_task_options(reduce_if_quick(settings))
    names = check_names(settings)
    grids = strength_grids(settings, names)
    tasks = load_tasks(settings)
    if not tasks.train_target.count('valid') and len(grids['finetune']) > 1:
        raise InputError(f'--valid-frac 0 leaves no valid part of {tasks.target.name} to choose strengths on')
    run, batch_messages = make_run(settings, tasks, processes)
    messages = task_messages(tasks) + batch_messages
    if starts_trained(settings) and not run.source_epochs:
        messages.append(f'{tasks.source.name}: the encoder stays as {settings.init or settings.model} has it; '
                        'the source head is a linear probe')
    return Setup([run], grids, settings.seeds, settings.trial_seeds, messages, task_notes(tasks))


def build_chain(
    settings:Settings, # Of sequence.py
    processes:int=1, # Number of processes that train together on each batch
)->Setup: # All that `compare` or `compare_sequences` needs
    "Set up a chain of tasks. Raises `InputError` for impossible settings"
    specs = [t.strip() for t in settings.tasks.split(';') if t.strip()]
    if not specs:
        raise InputError("--tasks names no task: write TASK;TASK;..., such as 'moving_digits,part=motion;ucf101:PATH'")
    size = settings.size or default_size([settings.source, *specs])
    # strengths are chosen by accuracy on source and tasks, so hold out a part of the source, as this rule does
    settings = settings.replace(size=size, rule='equal_learning')
    setups = [build(settings.replace(task=spec), processes) for spec in specs]
    runs = [run for s in setups for run in s.runs]
    # equal fingerprints, so that all runs have the same `source_key`
    data = '-'.join(_each_once(part for run in runs for part in run.data.split('-')))
    earlier = [';'.join([runs[0].source, *(r.task for r in runs[:i])]) for i in range(len(runs))]
    if not settings.growing: earlier = ['']*len(runs)
    return replace(setups[0], runs=[replace(run, data=data, earlier=e) for run, e in zip(runs, earlier)],
                   messages=_each_once(line for s in setups for line in s.messages),
                   notes=_each_once(note for s in setups for note in s.notes))


def _each_once(items): return list(dict.fromkeys(items))


def reduce_if_quick(
    settings:Settings,
)->Settings:
    "Reduce epochs, seeds and trials if the study is quick"
    if not settings.quick: return settings
    source_epochs = settings.source_epochs
    if source_epochs is None and not starts_trained(settings): source_epochs = 5
    return settings.replace(epochs=min(settings.epochs, 2), seeds=min(settings.seeds, 2), trial_seeds=1,
                            source_epochs=source_epochs)


def add_task_options(
    settings:Settings,
)->Settings:
    "Add `--splits` and `--allow-missing` to the tasks that have official splits, and `--damaged` to those of files"
    options = f',splits={settings.splits}' if settings.splits else ''
    if settings.allow_missing: options += ',allow_missing=1'
    damaged = '' if settings.damaged == 'keep' else f',damaged={settings.damaged}'
    def complete(spec):
        if spec.startswith(('ucf101:', 'hmdb51:')): spec += options
        return spec + damaged if 'damaged' in task_options(spec.partition(':')[0]) else spec
    others = ';'.join(complete(spec) for spec in settings.others.split(';') if spec)
    return settings.replace(task=complete(settings.task), source=complete(settings.source), others=others)


def check_names(
    settings:Settings,
)->list: # The strategies' names
    "Check the names of strategies and of the model"
    names = list(STRATEGIES)
    if settings.strategies != 'all':
        names = _each_once(['finetune', *filter(None, (s.strip() for s in settings.strategies.split(',')))])
    for name in names:
        if name not in STRATEGIES: raise InputError(f'unknown strategy {name!r}; known are {", ".join(STRATEGIES)}')
    check_name(settings)
    return names


def strength_grids(
    settings:Settings,
    names:list, # Of strategies
)->dict: # Strategy -> fields of `Run` to replace, for each trial
    "The settings that each strategy's trials try, the same number for all strategies"
    given, args = parse_lams(settings.lams, names), parse_strategy_args(settings.strategy_args, names)
    args = add_retain(settings.retain, names, args)
    n = n_trials(given, names, settings.quick)
    if settings.retain: given, n = {s:lams[-1:] for s, lams in given.items()}, 1  # where the strength starts
    grids = {}
    for name in names:
        lams = given.get(name) or STRATEGIES[name].lams[-n:]
        grids[name] = [g | dict(strategy_args=args.get(name, '')) for g in strength_grid(name, settings.lr, lams, n)]
    return grids


def n_trials(
    lams:dict, # Strategy -> strengths, as the user gave them
    names:list, # Of strategies
    quick:bool,
)->int:
    "Number of settings that each strategy tries: that of the strengths, if the user gave some for all strategies"
    graded = {s for s in names if STRATEGIES[s].lams}
    if lams and lams.keys() == graded: return len(next(iter(lams.values())))
    return 2 if quick else 3


def parse_lams(
    text:str, # `.1,1,10` for every strategy that has a strength, or `l2sp=.01,.1;ewc=.1,1`
    names:list, # Of strategies
)->dict: # Strategy -> strengths
    "Read strengths"
    graded = [s for s in names if STRATEGIES[s].lams]
    if not text: return {}
    if '=' not in text: return {s:_parse_numbers(text) for s in graded}
    lams = {}
    for part in split_list(text, ';'):
        name, _, numbers = (t.strip() for t in part.partition('='))
        if name not in graded: raise InputError(f'--lams: {name!r} is not among the strategies that have a strength')
        if name in lams: raise InputError(f'--lams names {name} twice')
        lams[name] = _parse_numbers(numbers)
    return lams


def _parse_numbers(text):
    try: values = [float(x) for x in text.split(',')]
    except ValueError: raise InputError(f'--lams: {text!r} are not numbers separated by commas') from None
    check_strengths(values, '--lams')
    return values


def parse_strategy_args(
    text:str, # `ewc:implicit=true;self_distill:reduction=sum,teacher_bn=running`
    names:list, # Of strategies
)->dict: # Strategy -> its options as text
    "Read the options of strategies, and check them"
    args = {}
    for part in split_list(text, ';'):
        name, colon, options = (t.strip() for t in part.partition(':'))
        if not colon: raise InputError(f'--strategy-args must be STRATEGY:name=value,...;STRATEGY:..., not {part!r}')
        if name not in names: raise InputError(f'--strategy-args: {name!r} is not among the strategies')
        if name in args: raise InputError(f'--strategy-args names {name} twice')
        parsed = parse_options(options, f'--strategy-args of {name}')
        check_options(name, parsed)
        check_retain(parsed)
        args[name] = options
    return args


def holds_out_source(
    settings:Settings,
)->bool:
    "Whether strengths or probes are chosen, or strengths adapted, on a held-out part of the source"
    if are_chosen(settings.extra) or settings.rule == 'equal_learning' or settings.retain: return True
    return retains(parse_strategy_args(settings.strategy_args, list(STRATEGIES)))


def load_tasks(
    settings:Settings,
)->StudyTasks:
    "Load source, target and other tasks, and hold out the parts on which strengths are chosen"
    target, source = create_task(settings.task, 'target'), create_task(settings.source, 'source')
    others = [create_task(spec) for spec in settings.others.split(';') if spec]
    names = [t.name for t in others]
    for name in names:
        if names.count(name) > 1: raise InputError(f'--others names {name} twice')
    train_target = target.hold_out(settings.valid_frac) if settings.valid_frac else target
    train_source = source.hold_out() if holds_out_source(settings) else source
    held_out = []
    for task, split, purpose in ((target, train_target, ''), (source, train_source, ' by what was kept')):
        if task.count('valid') or not split.count('valid'): continue
        held_out.append(f'{task.name}: {split.count("valid")} of the train clips are held out, by group, to choose '
                        f'strengths{purpose}')
    if settings.quick: train_target, train_source = train_target.subset(**QUICK), train_source.subset(**QUICK)
    return StudyTasks(source, target, others, train_source, train_target, held_out)


def task_messages(
    tasks:StudyTasks,
)->list: # Lines for the reader
    "Describe the tasks: their parts, missing and skipped videos, and held-out parts"
    lines = [t.describe() for t in tasks.every]
    for t in tasks.every:
        lines += [f'{t.name}: {note}' for note in t.notes]
        lines += [f'{t.name}: skipped {Path(p).name}: {why}' for p, why in list(t.skipped.items())[:10]]
        if len(t.skipped) > 10: lines.append(f'{t.name}: and {len(t.skipped) - 10} more')
    return lines + tasks.held_out


def task_notes(
    tasks:StudyTasks,
)->list: # Markdown
    "Notes on the tasks for readers of the tables"
    return [f'{as_markdown(t.name)}: {note}' for t in tasks.every for note in t.notes]


def make_run(
    settings:Settings,
    tasks:StudyTasks,
    processes:int, # Number of processes that train together on each batch
)->tuple[Run, list]: # The run, and lines for the reader
    "Make the `Run` that all strategies share, from the settings and the tasks"
    sizes, messages = batch_sizes(settings, tasks)
    size = settings.size or default_size([settings.task])
    check_model(settings, len(tasks.source.vocab), size)  # before anything slow starts
    fingerprints = [t.fingerprint for t in (tasks.train_source, tasks.train_target, *tasks.others)]
    given = {}
    for f in fields(Run):
        setting = f.metadata['setting']
        if setting.group: given[f.name] = getattr(settings, setting.option or f.name)
    follows = sizes | dict(
        data='-'.join([*filter(None, fingerprints), *weight_ids(settings)]),
        size=size,
        source_epochs=source_epochs(settings),
        source_valid=holds_out_source(settings),
        processes=processes)
    return Run(**given | follows), messages


def batch_sizes(
    settings:Settings,
    tasks:StudyTasks,
)->tuple[dict, list]: # `bs` and `source_bs`, and lines for the reader
    "Batch sizes with which an epoch has at least two batches"
    sizes, messages = {}, []
    source_bs = settings.source_bs or settings.bs
    for name, task, wanted in (('bs', tasks.train_target, settings.bs), ('source_bs', tasks.train_source, source_bs)):
        n = task.count('train')
        sizes[name] = fit_batch_size(n, wanted)
        unused = name == 'source_bs' and not source_epochs(settings)
        if sizes[name] < wanted and not unused:
            messages.append(f'{task.name}: batches of {sizes[name]}, as {n} clips make fewer than two of {wanted}')
    if sizes['bs'] < 2:
        raise InputError(f'{tasks.target.name}: {tasks.train_target.count("train")} train clips are too few')
    return sizes, messages


def default_jobs(
    settings:Settings, # Of a study
)->int: # At least 1
    """Default number of worker processes: 1, or for the tiny net on moving_digits one for each CPU thread, up to 8.

    With so small a net, several workers with one thread each are faster than one worker with several threads. Workers
    need submitit; without it, it is 1."""
    small = settings.model == 'tiny' and settings.task.startswith('moving_digits') and not settings.quick
    if not small or torch.cuda.is_available() or not has_submitit(): return 1
    return min(8, torch.get_num_threads())
