"""Six ways to fine-tune the same pre-trained video encoder: what was learned, and what was forgotten?

    python experiments/compare.py                    # the embedded task, 2 CPU cores: see experiments/README.md for times
    python experiments/compare.py --quick            # the same at a reduced size, to see that everything works
    python experiments/compare.py --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112

A model is trained on the source task (or comes from --init), fine-tuned on the target task by each strategy, and measured on
both. Each strategy's strength is chosen on held-out data from the same number of trials; plain fine-tuning, which has no
strength, chooses among as many learning rates. Writes report.html, a page to look at, runs.csv, table.csv, table.md, notes.json and figure.png to --out.

Killed at any moment, the same command goes on from each run's last finished epoch. Invocations on one --out share the work:

    python experiments/compare.py --jobs 4                            # worker processes, one for each GPU where there are several
    python experiments/compare.py --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 experiments/compare.py --bs 128       # four processes for each run
    python experiments/status.py runs/compare                         # how far it is, in another terminal"""
from pathlib import Path

import torch

from ..data.datasets import create_task
from ..data.text import as_markdown
from ..errors import InputError
from ..models.encoders import create_model, is_model
from ..stats import ADJUSTMENTS
from ..strategies.registry import STRATEGIES
from .choose import RULES, strength_grid
from .config import QUICK, Run, file_id
from .fit import fit_batch_size


def parse_lams(text, strategies):
    "`'.1,1,10'` for every strategy that has a strength, or `'l2sp=.01,.1;ewc=.1,1'`"
    def numbers(t):
        try: values = [float(x) for x in t.split(',')]
        except ValueError: raise InputError(f'--lams: {t!r} are not numbers separated by commas') from None
        if bad := [v for v in values if not 0 <= v < float('inf')]: raise InputError(f'--lams: strengths must be finite and at least 0, not {bad[0]:g}')
        return values
    if not text: return {}
    strategies = [s for s in strategies if STRATEGIES[s].lams]
    if '=' not in text: return {s:numbers(text) for s in strategies}
    lams = dict(part.split('=', 1) for part in text.split(';') if '=' in part)
    if unknown := [s for s in lams if s not in strategies]: raise InputError(f'--lams: {unknown[0]!r} is not among the strategies that have a strength')
    return {s:numbers(t) for s, t in lams.items()}


def parse_args(text, strategies):
    "`'ewc:implicit=true;self_distill:reduction=sum,teacher_bn=running'` by strategy"
    parts = [p.partition(':') for p in text.split(';') if p]
    if bad := [s for s, _, _ in parts if s not in strategies]: raise InputError(f'--strategy-args: {bad[0]!r} is not among the strategies: write STRATEGY:name=value,...;STRATEGY:...')
    args = {s:a for s, _, a in parts}
    for a in args.values(): Run(strategy_args=a).options('strategy_args')  # raises where it is not name=value
    return args


def build(task, source, init, model, model_args, strategies, lams, strategy_args, seeds, trial_seeds, epochs, lr, wd, bs, frames, stride, size, area, flip, clips,
          source_epochs, source_lr, source_bs, workers, splits, allow_missing, quick, path, rule, kept, select, patience, others, barrier, adjust, processes=1):
    "`(base run, grids, lines to tell the reader)`; `InputError` for anything that cannot work"
    for name, v in dict(seeds=seeds, trial_seeds=trial_seeds, epochs=epochs, bs=bs, frames=frames, stride=stride, clips=clips, source_bs=1 if source_bs is None else source_bs).items():
        if v < 1: raise InputError(f'--{name.replace("_", "-")} must be at least 1, not {v}')
    if size is not None and size < 8: raise InputError(f'--size must be at least 8 pixels, not {size}')
    if workers < 0: raise InputError(f'--workers must be at least 0, not {workers}')
    if source_epochs is not None and source_epochs < 0: raise InputError(f'--source-epochs must be at least 0, not {source_epochs}')
    for name, v in dict(lr=lr, source_lr=source_lr).items():
        if not 0 < v < float('inf'): raise InputError(f'--{name.replace("_", "-")} must be positive, not {v}')
    if not 0 <= wd < float('inf'): raise InputError(f'--wd must be at least 0, not {wd}')
    if not 0 <= area <= 1: raise InputError(f'--area must be a part of the frame between 0 and 1, not {area}')
    if rule not in RULES: raise InputError(f'--rule must be {" or ".join(RULES)}, not {rule!r}' + (': test is read once, at the end, and never to choose' if rule == 'test' else ''))
    if kept not in ('source_probe', 'source_acc'): raise InputError(f'--kept must be source_probe or source_acc, not {kept!r}')
    if select not in ('last', 'valid'): raise InputError(f'--select must be last or valid, not {select!r}' + (': test is read once, at the end, and never to choose' if select == 'test' else ''))
    if adjust not in ADJUSTMENTS: raise InputError(f'--adjust must be one of {", ".join(ADJUSTMENTS)}, not {adjust!r}')
    if patience < 0: raise InputError(f'--patience must be at least 0 epochs, not {patience}')
    official = (f',splits={splits}' if splits else '') + (',allow_missing=1' if allow_missing else '')
    task, source, *rest = (t + official if t.startswith(('ucf101:', 'hmdb51:')) else t for t in (task, source, *filter(None, others.split(';'))))
    others = ';'.join(rest)
    names = list(STRATEGIES) if strategies == 'all' else list(dict.fromkeys(['finetune', *filter(None, (s.strip() for s in strategies.split(',')))]))
    if unknown := [s for s in names if s not in STRATEGIES]: raise InputError(f'unknown strategy {unknown[0]!r}; known are {", ".join(STRATEGIES)}')
    given = parse_lams(lams, names)
    if not is_model(model): create_model(model, 2)  # raises, and says which are near
    if quick: epochs, seeds, trial_seeds, source_epochs = min(epochs, 2), min(seeds, 2), 1, 5 if source_epochs is None and not init else source_epochs
    # learning rates for plain fine-tuning: as many as there are strengths
    n = len(next(iter(given.values()))) if given and given.keys() == {s for s in names if STRATEGIES[s].lams} else 2 if quick else 3
    def grid(s):
        lams = given.get(s) or (STRATEGIES[s].lams[-n:])
        return strength_grid(s, lr, lams, n)
    args = parse_args(strategy_args, names)
    grids = {s:[g | dict(strategy_args=args.get(s, '')) for g in grid(s)] for s in names}

    target, src, more = create_task(task, 'target'), create_task(source, 'source'), [create_task(o) for o in filter(None, others.split(';'))]
    if twice := {t.name for t in more if [u.name for u in more].count(t.name) > 1}: raise InputError(f'--others names {twice.pop()} twice')
    say = [t.describe() for t in (src, target, *more)]
    for t in (src, target, *more):
        say += [f'{t.name}: {note}' for note in t.notes]
        say += [f'{t.name}: skipped {Path(p).name}: {why}' for p, why in list(t.skipped.items())[:10]]
        if len(t.skipped) > 10: say.append(f'{t.name}: and {len(t.skipped) - 10} more')
    held = target.hold_out()
    if not target.count('valid'): say.append(f'{target.name}: {held.count("valid")} of the train clips are held out, by group, to choose strengths')
    if rule == 'equal_learning':
        if not src.count('valid'): say.append(f'{src.name}: {src.hold_out().count("valid")} of the train clips are held out, by group, to choose strengths by what was kept')
        src = src.hold_out()
    if quick: src, held = src.subset(**QUICK), held.subset(**QUICK)
    source_epochs = source_epochs if source_epochs is not None else 0 if init else 6
    sizes = {}
    for what, t, want in (('bs', held, bs), ('source_bs', src, source_bs or bs)):
        sizes[what] = fit_batch_size(t.count('train'), want)
        if sizes[what] < want and not (what == 'source_bs' and not source_epochs): say.append(f'{t.name}: batches of {sizes[what]}, as {t.count("train")} clips make fewer than two of {want}')
    if sizes['bs'] < 2: raise InputError(f'{target.name}: {held.count("train")} train clips are too few')
    create_model(model, len(src.vocab), init, **Run(model_args=model_args).options())  # weights of another model are told now, not after minutes
    run = Run(task=task, source=source, data='-'.join(filter(None, (src.fingerprint, held.fingerprint, *(t.fingerprint for t in more), file_id(init)))), select=select, patience=patience,
              others=others, with_barrier=barrier, source_valid=rule == 'equal_learning', wd=wd, area=area, flip=flip, model=model, model_args=model_args, init=init, epochs=epochs, lr=lr,
              frames=frames, stride=stride, size=size or (40 if task.startswith('moving_digits') else 112), clips=clips, workers=workers,
              source_epochs=source_epochs, source_lr=source_lr, quick=quick, processes=processes, **sizes)
    if init and not source_epochs: say.append(f'{src.name}: the encoder stays as {init} has it; the source head is a linear probe')
    return run, grids, dict(seeds=seeds, trial_seeds=trial_seeds, all_strengths=path, rule=rule, kept=kept), say, [f'{as_markdown(t.name)}: {n}' for t in (src, target, *more) for n in t.notes]


def default_jobs(task, model, quick, **_):
    "Nets and clips of the embedded task are so small that workers of one thread do more than one with several, and memory is no question"
    return 1 if torch.cuda.is_available() or quick or model != 'tiny' or not task.startswith('moving_digits') else min(8, torch.get_num_threads())
