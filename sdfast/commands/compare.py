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
import sys
from contextlib import nullcontext
from pathlib import Path

from fastai.torch_core import rank_distrib
from fastcore.script import call_parse, store_true

from ..errors import InputError, StoreError
from ..report.page import write_page
from ..report.tables import rich_table
from ..report.write import write_report
from ..runtime.distributed import join_processes
from ..runtime.launcher import Launcher
from ..runtime.loggers import check_loggers
from ..runtime.progress import Progress
from ..study.compare import compare
from ..study.progress import LiveProgress
from ..study.setup import build, default_jobs


def _fail(message, status=2):
    print(f'compare.py: {message}', file=sys.stderr)
    return status


@call_parse  # runs at once in a script, so it comes last
def main(
    task:str='moving_digits', # Target task: moving_digits, ucf101:PATH, hmdb51:PATH, folder:PATH or csv:PATH, options as ,name=value
    source:str='moving_digits', # Source task, on which forgetting is measured
    init:str=None, # Weights of the encoder before the source stage: a file, or `pretrained`
    model:str='tiny', # tiny, the paper's c3d and r2plus1d, a video net of torchvision, or any image model of timm
    model_args:str='', # For the model's constructor, such as pad_type=same
    strategies:str='self_distill,fixed_teacher,ema_teacher,l2sp,ewc', # Which to compare, or `all`; finetune, the reference, is always in
    lams:str='', # Strengths to choose from: .1,1,10 for all, or l2sp=.01,.1;ewc=.1,1
    strategy_args:str='', # Options of strategies: ewc:implicit=true;self_distill:reduction=sum,teacher_bn=running
    seeds:int=6, # Final runs of each strategy
    trial_seeds:int=1, # Trials of each strength
    epochs:int=12, # Of fine-tuning
    lr:float=.05, # Of fine-tuning: SGD, momentum .9, cosine to 0
    wd:float=0., # Of fine-tuning: L2 regularisation of all parameters
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
    out:str='runs/compare', # Folder to write to; finished runs in it are not done again
    quick:store_true=False, # All strategies at a reduced size
    path:store_true=False, # Run every strength with every seed to the end: shows what each keeps at which price, and chooses by all seeds
    rule:str='accuracy', # Choose strengths by the best `accuracy` on valid, or by `equal_learning`: what keeps most among those within 1 point of it
    kept:str='source_probe', # What equal learning keeps, on a held-out part of the source: source_probe or source_acc (old head)
    select:str='last', # Which epoch is measured: the last, or the best on valid
    patience:int=0, # Stop after so many epochs without a better accuracy on valid; 0: never
    others:str='', # More tasks, joined by `;`, on which a probe measures what was kept, such as 'moving_digits,part=motion;moving_digits,part=digit'
    barrier:store_true=False, # Measure the loss on the straight path from the weights before fine-tuning
    adjust:str='holm', # How p values are adjusted for the number of strategies: holm, bh (false discovery rate) or none
    jobs:int=None, # Worker processes, one for each GPU where there are several; by default 1, or on CPUs one for each thread that torch would use, up to 8, for the whole embedded task
    launcher:str='', # Where they are: local, or slurm
    slurm:str='', # Of Slurm's jobs: partition=NAME,time=MINUTES,gpus=N,cpus=N,mem=GB,account=NAME,qos=NAME
    log:str='', # Also log each run to tensorboard, wandb or both, in --out
):
    "Compare ways to fine-tune a pre-trained video encoder: what was learned, what was forgotten"
    options = {k:v for k, v in locals().items() if k not in ('out', 'jobs', 'launcher', 'slurm', 'log')}
    try:
        processes = join_processes()
        if jobs is None: jobs = default_jobs(**options) if not launcher and processes == 1 else 1
        launcher, log = Launcher(jobs, launcher, slurm), check_loggers(log)
        run, grids, how, say, notes = build(**options, processes=processes)
        out = Path(out)
        try: out.mkdir(parents=True, exist_ok=True)
        except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
        with nullcontext(Progress()) if rank_distrib() else LiveProgress() as progress:
            for line in say: progress.say(line)
            rows = compare(run, grids, out, progress=progress, launcher=launcher, log=log, **how)
    except (InputError, StoreError) as e: sys.exit(_fail(e))
    except KeyboardInterrupt: sys.exit(_fail(f'stopped; what is finished is in {out}, the same command goes on from there', 130))
    if rank_distrib(): return
    title = f'{run.source} → {run.task}, {run.model}'
    progress.console.print(rich_table(write_report(rows, out, title, notes, adjust), title, progress.console.width, notes, adjust))
    page = write_page(out, method=adjust, figures=False)
    progress.say(f'written: {page}, to open in a browser; beside it runs.csv, table.csv, table.md, figure.png' + (', paths.png, trade_off_*.csv and .md' if path else ''))
