"""Do tables 1 and 2 of the paper come out again, under the protocol that its code base really runs?

    python experiments/paper_tables.py table2 --data DATA --weights WEIGHTS --dry-run   # runs, steps and hours
    python experiments/paper_tables.py table2 --data DATA --weights WEIGHTS             # two encoders and data sets
    python experiments/paper_tables.py table1 --data DATA --weights WEIGHTS             # the same runs, a chosen λ
    python experiments/paper_tables.py table2 --data DATA --nets r2plus1d=r2plus1d_18 --weights r2plus1d=pretrained

DATA has the folders UCF-101 and hmdb51 and the official lists (experiments/get_data.py makes it). WEIGHTS has
RSPNet's checkpoints, whose file names contain c3d, and r2plus1d or r21d. Other nets and weights can take their place,
as in the last line, with torchvision's Kinetics weights, and the tables name them. What is missing leaves empty cells.
Three selections are shown next to each other: the last epoch of a run on all of train; the epoch that is best on a
held-out part of train; and the epoch that is best on test, as the paper's code base selects, labelled `paper
protocol`. Writes TABLE_runs.csv, TABLE.csv and TABLE.md to --out; both tables share their runs."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

import os
from pathlib import Path

import pandas as pd
from fastai.torch_core import default_device
from fastcore.script import call_parse, store_true
from rich.table import Table

from sdfast.commands.common import make_folder, one_line_errors, pick_names, pick_strengths
from sdfast.data.datasets import create_task
from sdfast.data.official import OFFICIAL
from sdfast.errors import InputError
from sdfast.report.paper import paper_markdown, paper_notes, table_1, table_2
from sdfast.runtime import store
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.runtime.output import make_console
from sdfast.study.estimate import estimate_run, loading_processes, time_loading, time_steps
from sdfast.study.execute import RunJob
from sdfast.study.paper import DATA_SETS, NAMES, RECIPES, SELECTIONS, PaperStudy
from sdfast.study.progress import LiveProgress

SCRIPT = 'paper_tables.py'


def print_estimate(study, cells, out, console):
    "Print what would be done: runs, steps and hours, from a few timed steps"
    table = Table(title='plan')
    for name in ('encoder', 'data'): table.add_column(name)
    for name in ('runs', 'finished', 'epochs', 'steps', 'hours'): table.add_column(name, justify='right')
    table.add_column('missing')
    seconds = {}
    total = 0.
    for cell in cells:
        first = cell.runs[0]
        if cell.encoder not in seconds: seconds[cell.encoder] = time_steps(first)
        if cell.missing == 'no data':
            load = 0.
            n_train, n_test = OFFICIAL[cell.data][study.fold - 1]
        else:
            load = time_loading(first)/loading_processes(first)
            task = create_task(first.task)
            n_train, n_test = task.count('train'), task.count('test')
        todo = [r for r in cell.runs if not (out/'runs'/r.key/'result.json').exists()]
        found = [estimate_run(r, n_train, n_test, seconds[cell.encoder], load) for r in todo]
        steps = sum(n for n, _ in found)
        hours = sum(h for _, h in found)
        total += hours
        runs = len(cell.runs)
        counts = [str(runs), str(runs - len(todo)), str(first.epochs), f'{steps:,.0f}', f'{hours:,.1f}']
        table.add_row(NAMES[cell.encoder], NAMES[cell.data], *counts, cell.missing)
    console.print(table)
    console.print(f'{total:,.1f} hours in all on this machine ({default_device()}), one run after another. Estimated '
                  'from two timed steps of each encoder and 8 decoded videos of each data set that is present; '
                  'decoding is not counted for one that is not.', highlight=False)


def run_cells(cells, out, progress, launcher):
    "Run what can be run: key of a run -> its row, with the number of test videos"
    runs = [r for cell in cells if not cell.missing for r in cell.runs]
    progress.plan(runs)
    rows = run_all(runs, RunJob(str(out)), out, progress, launcher)
    return {r.key:row | dict(n_test=create_task(r.task).count('test')) for r, row in zip(runs, rows)}


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    table:str, # table1 or table2
    data:str=None, # Folder with UCF-101 and hmdb51
    weights:str=None, # Folder of RSPNet's checkpoints, or c3d=FILE,r2plus1d=FILE with these or any others
    nets:str='', # Other nets in place of the paper's: c3d=NAME,r2plus1d=NAME, such as r2plus1d=r2plus1d_18
    splits:str=None, # Folder of the official lists, by default in and next to the data
    out:str='runs/paper', # Folder to write to; finished runs in it are not done again
    encoders:str='c3d,r2plus1d', # Which encoders
    datasets:str='ucf101,hmdb51', # Which data sets
    lams:str='.1,1,10,100,1000', # Strengths; the baseline is always included
    seeds:int=1, # Runs of each cell and selection; the paper has one
    fold:int=1, # Official split
    selections:str='last,valid,paper', # Epochs to test: last, best on valid (another run), best on test
    valid_frac:float=.2, # Part of train held out for `valid`
    reduction:str='mean', # Of the squared distance: mean, batchmean or sum; the paper does not say
    teacher_bn:str='batch', # Statistics in the teacher's batch norm: batch or running; the paper does not say
    schedule:str='epoch_cosine', # Or steps: a tenth at 50, 70 and 90 %, as the code base has it for C3D on HMDB51
    epochs:int=100, # Epochs of fine-tuning
    lr:float=None, # By default .005 (C3D) and .1 (R(2+1)D)
    bs:int=None, # By default 24 (C3D) and 32 (R(2+1)D)
    frames:int=16, # Frames in a clip
    size:int=112, # Side of the square in pixels
    clips:int=10, # Clips of each test video
    workers:int=min(8, os.cpu_count()), # Loading processes; 0 keeps decoded videos in memory if they fit
    allow_missing:store_true=False, # Use the videos that are present
    dry_run:store_true=False, # Print the plan with runs, steps and hours, and do nothing
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they run: local, or slurm
    slurm:str='', # Of Slurm's jobs, see compare.py
):
    "Regenerate table 1 or 2 of the paper"
    fields = dict(schedule=schedule, epochs=epochs, lr=lr, bs=bs, frames=frames, size=size, clips=clips,
                  workers=workers)
    with one_line_errors(SCRIPT, out):
        pick_names(table, ['table1', 'table2'], 'the first argument')
        where = Launcher(jobs, launcher, slurm)
        study = PaperStudy(data, weights, splits, pick_names(encoders, list(RECIPES), '--encoders'), nets,
                           pick_names(datasets, DATA_SETS, '--datasets'), pick_strengths(lams, '--lams'), seeds, fold,
                           pick_names(selections, list(SELECTIONS), '--selections'), valid_frac, reduction, teacher_bn,
                           allow_missing, {k:v for k, v in fields.items() if v is not None})
        study.check()
        cells, notes = study.plan()
        if dry_run:
            console = make_console()
            for note in notes: console.print(note, highlight=False, soft_wrap=True)
            print_estimate(study, cells, Path(out), console)
            return
        if all(cell.missing for cell in cells): raise InputError('nothing can be run: ' + '; '.join(notes))
        folder = make_folder(out)
        console = make_console()
        with LiveProgress(console) as progress:
            for note in notes: progress.say(note)
            results = run_cells(cells, folder, progress, where)
        rows = table_2(cells, results, folder, study)
        if table == 'table1': rows = table_1(rows, study.selections)
        text = paper_markdown(rows, study.selections, [*paper_notes(study, cells, table == 'table1'), *notes])
        store.write(folder/f'{table}_runs.csv', pd.DataFrame(list(results.values())).to_csv(index=False))
        store.write(folder/f'{table}.csv', rows.to_csv(index=False, float_format='%.6g'))
        store.write(folder/f'{table}.md', text)
        console.print(text, highlight=False, markup=False, soft_wrap=True)
