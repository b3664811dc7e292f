"""Tables 1 and 2 of the paper, ours beside the printed numbers, under the protocol that its code base really runs.

    python experiments/paper_tables.py table2 --data DATA --weights WEIGHTS --dry-run   # what would be done, and how long it takes
    python experiments/paper_tables.py table2 --data DATA --weights WEIGHTS             # C3D and R(2+1)D, UCF101 and HMDB51, six lambdas
    python experiments/paper_tables.py table1 --data DATA --weights WEIGHTS             # the same runs, lambda chosen for each cell

DATA has the folders UCF-101 and hmdb51 and the official lists (experiments/get_data.py makes it); WEIGHTS RSPNet's checkpoints,
whose file names contain c3d, and r2plus1d or r21d. What is not there are empty cells. Three selections stand side by side:
the last epoch of a run on all of train; the epoch that is best on a held-out part of train; and the epoch that is best on test, as the
paper's code base selects, labelled `paper protocol`. Writes runs.csv, TABLE.csv and TABLE.md to --out; both tables share their runs."""
import itertools
import os
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)  # of the libraries about each other
warnings.filterwarnings('ignore', category=DeprecationWarning)

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import default_device
from fastcore.script import call_parse, store_true
from rich.console import Console
from rich.table import Table
from torch import nn

from sdfast.data.clips import SampleClips
from sdfast.data.datasets import OFFICIAL, create_task
from sdfast.data.video import VideoFile
from sdfast.errors import InputError, StoreError
from sdfast.models.encoders import create_model
from sdfast.report.tables import number
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.stats import mcnemar, mean_interval, paired_difference, proportion_interval
from sdfast.strategies.distill import REDUCTIONS
from sdfast.study.config import RSPNET, Run, file_id
from sdfast.study.execute import RunJob
from sdfast.study.fit import learning_rates
from sdfast.study.progress import LiveProgress

LAMS = (.1, 1., 10., 100., 1000.)
RECIPE = dict(c3d=dict(lr=.005, bs=24), r2plus1d=dict(lr=.1, bs=32))
FOLDERS = dict(ucf101=('UCF-101', 'UCF101', 'ucf101'), hmdb51=('hmdb51', 'HMDB51', 'hmdb51_org'))
FILES = dict(c3d=('c3d',), r2plus1d=('r2plus1d', 'r21d', 'r2p1d'))
NAMES = dict(c3d='C3D', r2plus1d='R(2+1)D', ucf101='UCF101', hmdb51='HMDB51')
SELECTIONS = dict(last='last epoch', valid='best on valid', paper='paper protocol')
# top-1 and top-5 in %: lambda, UCF101, HMDB51; lambda 0 is the baseline
PRINTED = {(enc, data, lam):row[i] for enc, rows in dict(
    c3d=[(0., (77.1, 93.5), (43.9, 76.5)), (.1, (76.7, 93.7), (45.8, 76.5)), (1., (77.1, 94.1), (43.9, 76.7)),
         (10., (77.9, 94.1), (44.2, 76.7)), (100., (78.6, 94.6), (42.9, 77.4)), (1000., (77.5, 94.7), (41.4, 75.9))],
    r2plus1d=[(0., (80.2, 95.0), (44.1, 75.6)), (.1, (80.8, 94.4), (44.8, 74.3)), (1., (80.3, 94.8), (43.3, 75.1)),
              (10., (81.4, 95.4), (45.6, 76.1)), (100., (82.3, 96.3), (46.3, 76.3)), (1000., (81.5, 96.1), (47.3, 77.8))]).items()
    for lam, *row in rows for i, data in enumerate(('ucf101', 'hmdb51'))}
QUOTED = {('c3d', '3D ST puzzles'): (60.6, 28.3), ('c3d', 'MAS'): (61.2, 33.4), ('c3d', 'RSPNet'): (76.7, 44.6),
          ('r2plus1d', 'Pace'): (77.1, 36.6), ('r2plus1d', 'RSPNet'): (81.1, 44.6)}


def find_data(root, name, fold, splits, allow_missing):
    "Spec of a data set below `root`, or `None` if it is not there"
    bases = [b for b in (root, root/name) if any((b/f).is_dir() for f in FOLDERS[name])]
    if not bases: return None
    return f'{name}:{bases[0]},fold={fold}' + (f',splits={splits}' if splits else '') + (',allow_missing=1' if allow_missing else '')


def find_weights(text, encoder):
    "Checkpoint of an encoder: from `c3d=FILE,r2plus1d=FILE`, or by its name in a folder; `None` if there is none"
    if not text: return None
    if '=' in text:
        given = dict(p.split('=', 1) for p in text.split(',') if '=' in p)
        if unknown := [k for k in given if k not in RECIPE]: raise InputError(f'--weights: unknown encoder {unknown[0]!r}; known are {", ".join(RECIPE)}')
        found = [Path(given[encoder])] if encoder in given else []
    else:
        if not Path(text).is_dir(): raise InputError(f'--weights {text} is neither a folder nor c3d=FILE,r2plus1d=FILE')
        found = [f for f in sorted(Path(text).iterdir()) if f.is_file() and any(n in f.name.lower() for n in FILES[encoder])]
    if len(found) > 1: raise InputError(f'--weights {text}: {", ".join(f.name for f in found)} could all be {encoder}; name one: {encoder}=FILE')
    if found and not found[0].is_file(): raise InputError(f'weights {found[0]} do not exist')
    return str(found[0]) if found else None


@dataclass
class Cell:
    "An encoder on a data set: its runs, and why they cannot be done"
    encoder: str
    data: str
    runs: list
    missing: str = ''

    def select(self, lam, kind):
        "Runs of one lambda that were trained for a selection, one a seed"
        return [r for r in self.runs if r.lam == lam and (r.select == 'valid') == (kind == 'valid')]


def plan(data, weights, splits, fold, encoders, datasets, lams, seeds, selections, valid_frac, reduction, teacher_bn, allow_missing, **shared):
    "`(cells, notes)`: all runs of both tables, and what a reader must know"
    notes, cells, specs, inits = [], [], {}, {}
    for name in datasets:
        specs[name] = find_data(Path(data), name, fold, splits, allow_missing) if data else None
        if specs[name] is None: notes.append(f'{NAMES[name]} is not in {data or "--data, which was not given"}: its cells are empty')
        else: notes += [f'{t.name}: {n}' for t in [create_task(specs[name])] for n in t.notes]
    for encoder in encoders:
        inits[encoder] = init = find_weights(weights, encoder)
        if init is None: notes.append(f'no weights of {NAMES[encoder]} in {weights or "--weights, which was not given"}: its cells are empty')
        else:
            create_model(encoder, 2, init)  # raises if they do not fit
            notes.append(f'{NAMES[encoder]} starts from {Path(init).name}, content {file_id(init)}')
    for encoder, name in itertools.product(encoders, datasets):
        spec, init = specs[name], inits[encoder]
        fields = RSPNET | RECIPE[encoder] | {k:v for k, v in shared.items() if v is not None}
        base = Run(task=spec or f'{name}:', source='', model=encoder, init=init, final=True, data=f'{create_task(spec).fingerprint}-{file_id(init)}' if spec else '', **fields)
        runs = []
        for lam in (0., *lams):
            run = replace(base, lam=lam, **dict(strategy='self_distill', strategy_args=f'reduction={reduction},teacher_bn={teacher_bn}') if lam else {})
            for seed in range(seeds):
                if {'last', 'paper'} & set(selections): runs.append(replace(run, seed=seed, valid_frac=0., select='paper' if 'paper' in selections else 'last'))
                if 'valid' in selections: runs.append(replace(run, seed=seed, valid_frac=valid_frac, select='valid'))
        cells.append(Cell(encoder, name, runs, 'no data' if spec is None else 'no weights' if init is None else ''))
    return cells, notes


def seconds_per_clip(run):
    "Measured `(training step, step with teacher, forward)`: two steps each; on a CPU with two clips, on a GPU with the run's batch"
    device = default_device()
    model, n = create_model(run.model, 101).to(device), run.bs if device.type == 'cuda' else 2
    teacher, opt = create_model(run.model, 101)[0].to(device), torch.optim.SGD(model.parameters(), lr=1e-5, momentum=.9)
    x, y = torch.randn(n, run.frames, 3, run.size, run.size, device=device), torch.zeros(n, dtype=torch.long, device=device)
    def step(lam):
        f = model[0](x)
        loss = nn.functional.cross_entropy(model[1](f), y)
        if lam:
            with torch.no_grad(): t = teacher(x)
            loss = loss + lam*(f - t).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad()
    def forward():
        with torch.no_grad(): model[0](x)
    def clock(f, *args):
        f(*args)
        if device.type == 'cuda': torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(2): f(*args)
        if device.type == 'cuda': torch.cuda.synchronize()
        return (time.perf_counter() - start)/2/n
    return clock(step, 0), clock(step, 1), clock(forward)


def seconds_to_load(run):
    "Measured time to decode and crop a training clip in one process"
    sample = SampleClips(run.frames, run.stride, run.size, area=(run.area, 1.) if run.area else None, wrap=run.wrap)
    sample.train, videos = True, [VideoFile(p) for p in create_task(run.task).df.path.sample(8, random_state=0, replace=True)]
    start = time.perf_counter()
    for v in videos: sample.encodes(v)
    return (time.perf_counter() - start)/len(videos)


def estimate(cells, fold, out, console):
    "Print what would be done: runs, steps and hours, from a few timed steps"
    device, timed, total = default_device(), {}, 0.
    t = Table(title='plan')
    for c in ('encoder', 'data', 'runs', 'finished', 'epochs', 'steps', 'hours', 'missing'): t.add_column(c, justify='left' if c in ('encoder', 'data', 'missing') else 'right')
    for cell in cells:
        first = cell.runs[0]
        todo = [r for r in cell.runs if not (out/'runs'/r.key/'result.json').exists()]
        if cell.encoder not in timed: timed[cell.encoder] = seconds_per_clip(first)
        plain, taught, forward = timed[cell.encoder]
        load = 0. if cell.missing == 'no data' else seconds_to_load(first)/max(1, min(first.workers, os.cpu_count()))
        n_train, n_test = OFFICIAL[cell.data][fold - 1] if cell.missing == 'no data' else [create_task(first.task).count(s) for s in ('train', 'test')]
        hours = steps = 0.
        for r in todo:
            valid = round(n_train*r.valid_frac)
            trained, seen = r.epochs*(n_train - valid), r.epochs*(n_test if r.select == 'paper' else valid) + r.clips*n_test*(1 + (r.select != 'last'))
            compute, read = trained*(taught if r.lam else plain) + seen*forward, (trained + seen)*load
            hours += (max(compute, read) if r.workers and device.type == 'cuda' else compute + read)/3600
            steps += r.epochs*((n_train - valid)//r.bs)
        total += hours
        t.add_row(NAMES[cell.encoder], NAMES[cell.data], str(len(cell.runs)), str(len(cell.runs) - len(todo)), str(first.epochs), f'{steps:,.0f}', f'{hours:,.1f}', cell.missing)
    console.print(t)
    console.print(f'{total:,.1f} hours in all on this machine ({device}), one run after another. Estimated from two timed steps of each encoder'
                  ' and 8 decoded videos of each data set that is there; no decoding is counted for one that is not.', highlight=False)


def accuracy(rows, best):
    "`(top-1 with interval, top-5)` in %: over seeds, or of one run over its videos"
    p = 'best_' if best else ''
    acc1, acc5 = [100*r[f'{p}acc1'] for r in rows], 100*np.mean([r[f'{p}acc5'] for r in rows])
    if len(rows) > 1: return mean_interval(acc1), acc5
    d = proportion_interval(round(rows[0][f'{p}acc1']*rows[0]['n_test']), rows[0]['n_test'])
    return replace(d, mean=100*d.mean, low=100*d.low, high=100*d.high), acc5


def right(out, row, best):
    "For each test video whether it was classified correctly"
    scores = pd.read_csv(out/'runs'/row['key']/('scores_best.csv' if best else 'scores.csv'), dtype=dict(label=str), keep_default_na=False)
    return scores.drop(columns=['path', 'label']).idxmax(axis=1).to_numpy() == scores.label.to_numpy()


def measure(cells, results, out, lams, selections):
    "A row for each encoder, data set, lambda and selection that was run"
    table = []
    for cell, lam, kind in itertools.product(cells, (0., *lams), selections):
        best = kind == 'paper'
        printed = PRINTED.get((cell.encoder, cell.data, lam), (np.nan, np.nan))
        row = dict(encoder=cell.encoder, data=cell.data, lam=lam, selection=SELECTIONS[kind], printed_acc1=printed[0], printed_acc5=printed[1])
        rows = [results[r.key] for r in cell.select(lam, kind) if r.key in results]
        ok = [r for r in rows if r['status'] == 'ok']
        row |= dict(runs=len(ok), failed=len(rows) - len(ok))
        if ok:
            d, acc5 = accuracy(ok, best)
            row |= dict(acc1=d.mean, acc1_low=d.low, acc1_high=d.high, acc5=acc5)
            if kind == 'valid': row['valid_acc1'] = 100*np.mean([r['best_valid_acc1'] for r in ok])
            base = {r['seed']:r for k in cell.select(0., kind) if (r := results.get(k.key)) and r['status'] == 'ok'}
            pairs = [(r, base[r['seed']]) for r in ok if r['seed'] in base] if lam else []
            if pairs:
                acc = 'best_acc1' if best else 'acc1'
                diff = paired_difference([100*a[acc] for a, _ in pairs], [100*b[acc] for _, b in pairs])
                row |= dict(diff=diff.mean, diff_low=diff.low, diff_high=diff.high, mcnemar=np.median([mcnemar(right(out, a, best), right(out, b, best)) for a, b in pairs]))
        table.append(row)
    return pd.DataFrame(table).reindex(columns=COLUMNS)


COLUMNS = ['encoder', 'data', 'method', 'lam', 'selection', 'printed_acc1', 'printed_acc5', 'acc1', 'acc1_low', 'acc1_high', 'acc5', 'diff', 'diff_low', 'diff_high', 'mcnemar',
           'valid_acc1', 'runs', 'failed']


def choose(t, selections):
    "Table 1: quoted methods, the baseline, and self-distillation with the lambda that a selection may choose"
    table = []
    for (encoder, data), g in t.groupby(['encoder', 'data'], sort=False):
        i = list(FOLDERS).index(data)
        table += [dict(encoder=encoder, data=data, method=m, selection=SELECTIONS[k], printed_acc1=v[i]) for (e, m), v in QUOTED.items() if e == encoder for k in selections]
        theirs = max(LAMS, key=lambda lam: PRINTED[encoder, data, lam][0])
        on_valid = g[(g.selection == SELECTIONS['valid']) & (g.lam > 0)].set_index('lam').valid_acc1.dropna()
        for kind in selections:
            mine = g[g.selection == SELECTIONS[kind]].set_index('lam', drop=False)
            table.append(dict(mine.loc[0.], method='RSPNet, 100 epochs'))
            score = mine.acc1.drop(0.).dropna() if kind == 'paper' else on_valid
            lam = score.idxmax() if len(score) else theirs
            printed = dict(zip(('printed_acc1', 'printed_acc5'), PRINTED[encoder, data, theirs]))
            table.append((dict(mine.loc[lam]) if lam in mine.index else dict(encoder=encoder, data=data, selection=SELECTIONS[kind])) | dict(method='self-distillation') | printed)
    return pd.DataFrame(table).reindex(columns=COLUMNS)


def cell_text(r):
    "Ours in a table: top-1 with interval, top-5, and against the baseline the difference and McNemar's p"
    if r is None or not (r.runs or r.failed) or pd.isna(r.runs): return ''
    if not r.runs: return f'{r.failed} of {r.failed} failed'
    text = f'{r.acc1:.1f}' + (f' [{r.acc1_low:.1f}, {r.acc1_high:.1f}]' if pd.notna(r.acc1_low) else ' (no interval)') + f' / {r.acc5:.1f}'
    if r.lam: text += f'; λ {r.lam:g}' if pd.notna(r.method) else ''
    if pd.notna(r['diff']): text += f'; {number(r["diff"], "+")}' + (f' [{number(r.diff_low, "+")}, {number(r.diff_high, "+")}]' if pd.notna(r.diff_low) else '') + f', p {r.mcnemar:.2g}'
    return text + (f'; {r.failed} failed' if r.failed else '')


def markdown(t, selections, notes):
    "One table a data set"
    lines = []
    for data, d in t.groupby('data', sort=False):
        first = 'method' if d.method.notna().all() else 'λ'
        lines += [f'**{NAMES[data]}**, top-1 / top-5 in %', '', f'| encoder | {first} | printed | ' + ' | '.join(SELECTIONS[k] for k in selections) + ' |', '|---'*(3 + len(selections)) + '|']
        key = d.method if first == 'method' else d.lam
        for (encoder, k), g in d.groupby(['encoder', key], sort=False):
            ours = {r.selection:r for _, r in g.iterrows()}
            r = next(iter(ours.values()))
            printed = '' if pd.isna(r.printed_acc1) else f'{r.printed_acc1:.1f} / ' + ('–' if pd.isna(r.printed_acc5) else f'{r.printed_acc5:.1f}')
            label = k if first == 'method' else 'baseline' if not k else f'{k:g}'
            lines.append(f'| {NAMES[encoder]} | {label} | {printed} | ' + ' | '.join(cell_text(ours.get(SELECTIONS[s])) for s in selections) + ' |')
        lines.append('')
    return '\n'.join([*lines, *(f'- {n}' for n in notes), ''])


def explain(cells, selections, seeds, fold, valid_frac, reduction, teacher_bn):
    "What the numbers mean, and where the runs leave the protocol"
    one = cells[0].runs[0]
    steps = f'{one.schedule}' if one.schedule != 'epoch_cosine' else 'cosine to lr/1000 by epoch'
    notes = [f'λ·distance with reduction={reduction!r}, teacher_bn={teacher_bn!r}; fold {fold}; {steps}; test accuracy of the mean logits of {one.clips} clips a video.',
             ('Intervals (95 %) are Student\'s t over ' + f'{seeds} seeds' if seeds > 1 else 'Intervals (95 %) are Wilson\'s over test videos, of one trained model: the spread of repeated training is not in them')
             + '; behind them the paired difference to the baseline' + (' with its interval' if seeds > 1 else '') + ' and McNemar\'s exact p per video' + (', the median over seeds' if seeds > 1 else '') + ', not corrected for the number of cells.']
    if 'last' in selections: notes.append('last epoch: trained on all of train.')
    if 'valid' in selections: notes.append(f'best on valid: {valid_frac:.0%} of train held out by group, the epoch chosen on it.')
    if 'paper' in selections: notes.append('paper protocol: trained on all of train, the epoch chosen by one-clip accuracy on test. Too high by construction; beside the printed numbers only.')
    usual = {f'{NAMES[e]} {k}':v for e in RECIPE for k, v in RECIPE[e].items()} | {k:RSPNET[k] for k in ('epochs', 'frames', 'size', 'clips')}
    mine = {f'{NAMES[c.encoder]} {k}':getattr(c.runs[0], k) for c in cells for k in ('lr', 'bs')} | {k:getattr(one, k) for k in ('epochs', 'frames', 'size', 'clips')}
    if other := [f'{k} {v} instead of {usual[k]}' for k, v in mine.items() if v != usual[k]]: notes.append('NOT the paper\'s protocol: ' + ', '.join(other) + '.')
    return notes


def numbers(text, option):
    try: values = [float(x) for x in text.split(',') if x.strip()]
    except ValueError: raise InputError(f'{option}: {text!r} are not numbers separated by commas') from None
    if bad := [v for v in values if not 0 < v < float('inf')]: raise InputError(f'{option}: must be finite and above 0 (the baseline is always in), not {bad[0]:g}')
    return sorted(set(values))


def among(text, known, option):
    names = list(dict.fromkeys(filter(None, (n.strip() for n in text.split(',')))))
    if unknown := [n for n in names if n not in known]: raise InputError(f'{option}: unknown {unknown[0]!r}; known are {", ".join(known)}')
    if not names: raise InputError(f'{option} must name at least one of {", ".join(known)}')
    return [k for k in known if k in names]


def work(table, out, dry_run, **o):
    "Check the options, plan, run and write"
    among(table, ['table1', 'table2'], 'the first argument')
    launcher = Launcher(*(o.pop(k) for k in ('jobs', 'launcher', 'slurm')))
    for k in ('seeds', 'epochs', 'frames', 'size', 'clips'):
        if o[k] < 1: raise InputError(f'--{k} must be at least 1, not {o[k]}')
    for k in ('bs', 'lr'):
        if o[k] is not None and not 0 < o[k] < float('inf'): raise InputError(f'--{k} must be positive, not {o[k]}')
    if o['fold'] not in (1, 2, 3): raise InputError(f'--fold must be 1, 2 or 3, not {o["fold"]}')
    if not 0 < o['valid_frac'] < 1: raise InputError(f'--valid-frac must be between 0 and 1, not {o["valid_frac"]}')
    if o['workers'] < 0: raise InputError(f'--workers must be at least 0, not {o["workers"]}')
    if o['data'] and not Path(o['data']).is_dir(): raise InputError(f'--data: folder {o["data"]} does not exist')
    o |= dict(encoders=among(o['encoders'], list(RECIPE), '--encoders'), datasets=among(o['datasets'], list(FOLDERS), '--datasets'),
              selections=among(o['selections'], list(SELECTIONS), '--selections'), lams=numbers(o['lams'], '--lams'))
    among(o['reduction'], REDUCTIONS, '--reduction'), among(o['teacher_bn'], ('batch', 'running'), '--teacher-bn'), learning_rates(o['schedule'], 1., 1)
    out, console = Path(out), Console()
    cells, notes = plan(**o)
    if dry_run:
        for n in notes: console.print(n, highlight=False, soft_wrap=True)
        return estimate(cells, o['fold'], out, console)
    todo = [r for c in cells if not c.missing for r in c.runs]
    if not todo: raise InputError('nothing can be run: ' + '; '.join(notes))
    try: out.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
    with LiveProgress(console) as progress:
        for n in notes: progress.say(n)
        progress.plan(todo)
        rows = run_all(todo, RunJob(str(out)), out, progress, launcher)
        results = {r.key:row | dict(n_test=create_task(r.task).count('test')) for r, row in zip(todo, rows)}
    rows = measure(cells, results, out, o['lams'], o['selections'])
    if table == 'table1': rows = choose(rows, o['selections'])
    text = markdown(rows, o['selections'], [*explain(cells, *(o[k] for k in ('selections', 'seeds', 'fold', 'valid_frac', 'reduction', 'teacher_bn'))),
                    *(['λ of table 1: for the paper protocol the best on test, as the paper does; else the best on valid'
                       + ('' if 'valid' in o['selections'] else ', or without one the best of the printed numbers') + '.'] if table == 'table1' else []), *notes])
    pd.DataFrame(list(results.values())).to_csv(out/f'{table}_runs.csv', index=False)
    rows.to_csv(out/f'{table}.csv', index=False, float_format='%.6g')
    (out/f'{table}.md').write_text(text)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@call_parse  # runs at once in a script, so it comes last
def main(
    table:str, # table1 or table2
    data:str=None, # Folder with UCF-101 and hmdb51
    weights:str=None, # Folder of RSPNet's checkpoints, or c3d=FILE,r2plus1d=FILE
    splits:str=None, # Folder of the official lists, by default in and beside the data
    out:str='runs/paper', # Folder to write to; finished runs in it are not done again
    encoders:str='c3d,r2plus1d', # Which encoders
    datasets:str='ucf101,hmdb51', # Which data sets
    lams:str='.1,1,10,100,1000', # Strengths; the baseline is always in
    seeds:int=1, # Runs of each cell and selection; the paper has one
    fold:int=1, # Official split
    selections:str='last,valid,paper', # Which epoch is tested: last, best on valid (a second run, on less of train), best on test
    valid_frac:float=.2, # Part of train held out for `valid`
    reduction:str='mean', # Of the squared distance: mean, batchmean or sum; the paper does not say
    teacher_bn:str='batch', # Statistics in the teacher's batch norm: batch or running; the paper does not say
    schedule:str='epoch_cosine', # Or steps: a tenth at 50, 70 and 90 %, as the code base has it for C3D on HMDB51
    epochs:int=100, # Of fine-tuning
    lr:float=None, # By default .005 (C3D) and .1 (R(2+1)D)
    bs:int=None, # By default 24 (C3D) and 32 (R(2+1)D)
    frames:int=16, # Frames in a clip
    size:int=112, # Side of the square in pixels
    clips:int=10, # Of each test video
    workers:int=min(8, os.cpu_count()), # Loading processes; 0 keeps decoded videos in memory if they fit
    allow_missing:store_true=False, # Use the videos that are there
    dry_run:store_true=False, # Print the plan with runs, steps and hours, and do nothing
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they are: local, or slurm
    slurm:str='', # Of Slurm's jobs, see compare.py
):
    "Regenerate table 1 or 2 of the paper"
    options = dict(locals())
    try: work(**options)
    except (InputError, StoreError) as e:
        print(f'paper_tables.py: {e}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'paper_tables.py: stopped; finished runs are in {out}, the same command goes on from there', file=sys.stderr)
        sys.exit(130)
