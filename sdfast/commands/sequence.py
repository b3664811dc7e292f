"""A chain of tasks, one after another: which way to fine-tune keeps the most of all of them?

    python experiments/sequence.py                   # the embedded task, source → target → motion → digit: see experiments/README.md for the time
    python experiments/sequence.py --quick           # the same at a reduced size
    python experiments/sequence.py --source folder:A --tasks 'folder:B;ucf101:C' --model r2plus1d_18 --init weights.pth --size 112

Every strategy trains through the whole chain. Accuracies after each stage are measured with each task's own head, as it was left, and
with new linear probes on the encoder. Strengths are chosen by the mean accuracy on the valid parts of source and tasks after the last
stage, from the same number of trials. Writes runs.csv (a row a stage), matrix.csv, table.csv and table.md to --out."""
import inspect
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fastai.torch_core import rank_distrib
from fastcore.script import call_parse, store_true

from ..errors import InputError, StoreError
from ..report.chains import chain_markdown, chain_rich_table, matrix_table, sequence_summary, task_names
from ..runtime.distributed import join_processes
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress
from ..study.compare_chains import compare_sequences
from ..study.progress import LiveProgress
from ..study.setup import build
from .compare import main as compare_main


def build_chain(tasks, source, size, **options):
    "`(a run for each task, grids, number of seeds, lines to tell the reader, notes of the tasks)`; `InputError` for anything that cannot work"
    tasks = [t.strip() for t in tasks.split(';') if t.strip()]
    if not tasks: raise InputError("--tasks names no task: write TASK;TASK;..., such as 'moving_digits,part=motion;moving_digits,part=digit'")
    size = size or (40 if all(t.startswith('moving_digits') for t in [source, *tasks]) else 112)
    # what compare.py asks beside this stays at its default; its rule is for the source's part that it holds out
    options = {n:p.default for n, p in inspect.signature(compare_main).parameters.items() if n in inspect.signature(build).parameters} | options | dict(source=source, size=size, rule='equal_learning')
    built = [build(**options | dict(task=t)) for t in tasks]
    data = '-'.join(dict.fromkeys(part for run, *_ in built for part in run.data.split('-')))  # one source for all
    _, grids, how, _, _ = built[0]
    say, notes = (list(dict.fromkeys(line for b in built for line in b[i])) for i in (3, 4))
    return [replace(run, data=data) for run, *_ in built], grids, {k:how[k] for k in ('seeds', 'trial_seeds')}, say, notes


def _fail(message, status=2):
    print(f'sequence.py: {message}', file=sys.stderr)
    return status


@call_parse  # runs at once in a script, so it comes last
def main(
    tasks:str='moving_digits,part=target;moving_digits,part=motion;moving_digits,part=digit', # Joined by `;`, see compare.py's --task
    source:str='moving_digits', # Source task, the first of the chain
    init:str=None, # Weights of the encoder before the source stage: a file, or `pretrained`
    model:str='tiny', # tiny, the paper's c3d and r2plus1d, a video net of torchvision, or any image model of timm
    model_args:str='', # For the model's constructor, such as pad_type=same
    strategies:str='self_distill,fixed_teacher,l2sp,ewc,linear_probe', # Which to compare, or `all`; finetune, the reference, is always in
    lams:str='', # Strengths to choose from: .1,1,10 for all, or l2sp=.01,.1;ewc=.1,1
    strategy_args:str='', # Options of strategies: ewc:implicit=true;self_distill:reduction=sum,teacher_bn=running
    seeds:int=6, # Final chains of each strategy
    trial_seeds:int=1, # Trials of each strength
    epochs:int=8, # Of each stage
    lr:float=.05, # Of each stage: SGD, momentum .9, cosine to 0
    wd:float=0., # Of each stage: L2 regularisation of all parameters
    bs:int=32, # Batch size
    frames:int=8, # Frames in a clip
    stride:int=1, # Frames between two of the clip
    size:int=None, # Side of the square crop; default 40 for moving_digits, else 112
    area:float=0., # Smallest part of the frame that a training crop covers, such as .25; 0: squares of the scaled frame
    flip:store_true=False, # Mirror half of the training clips
    clips:int=1, # Clips of each video in tests
    source_epochs:int=None, # Of the source stage; default 6, or 0 with --init
    source_lr:float=.1, # Of the source stage
    source_bs:int=None, # Batch size of the source stage, by default --bs
    splits:str=None, # Folder of the official lists of ucf101 and hmdb51, by default in and beside the videos
    allow_missing:store_true=False, # Use what is there of ucf101 and hmdb51
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    out:str='runs/sequence', # Folder to write to; finished stages in it are not done again
    quick:store_true=False, # All strategies at a reduced size
    jobs:int=1, # Worker processes, one for each GPU where there are several
    launcher:str='', # Where they are: local, or slurm
    slurm:str='', # Of Slurm's jobs: partition=NAME,time=MINUTES,gpus=N,cpus=N,mem=GB,account=NAME,qos=NAME
):
    "Train ways to fine-tune through a chain of tasks: what was learned, what was forgotten of each"
    options = {k:v for k, v in locals().items() if k not in ('out', 'jobs', 'launcher', 'slurm')}
    try:
        processes, launcher = join_processes(), Launcher(jobs, launcher, slurm)
        runs, grids, how, say, notes = build_chain(**options, processes=processes)
        out = Path(out)
        try: out.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
        with nullcontext(Progress()) if rank_distrib() else LiveProgress() as progress:
            for line in say: progress.say(line)
            rows = compare_sequences(runs, grids, out, progress=progress, launcher=launcher, **how)
        if rank_distrib(): return
        rows.to_csv(out/'runs.csv', index=False)
        table, title = sequence_summary(rows), ' → '.join([source, *task_names(rows)[1:]]) + f', {model}'
    except (InputError, StoreError) as e: sys.exit(_fail(e))
    except KeyboardInterrupt: sys.exit(_fail(f'stopped; finished stages are in {out}, the same command goes on from there', 130))
    matrix_table(rows).to_csv(out/'matrix.csv', index=False, float_format='%.6g')
    table.to_csv(out/'table.csv', index=False, float_format='%.6g')
    (out/'table.md').write_text(chain_markdown(table, notes))
    progress.console.print(chain_rich_table(table, title, progress.console.width, notes))
    progress.say(f'written to {out}: runs.csv, matrix.csv, table.csv, table.md')
