"""What do different ways to fine-tune the same pre-trained video encoder learn, and what do they forget?

    python experiments/compare.py            # on moving_digits, with CPUs; see experiments/README.md for times
    python experiments/compare.py --quick    # the same at a reduced size, to check that everything works
    python experiments/compare.py --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112
    python experiments/compare.py --config study.yaml --epochs 4    # a study file; options override it

A model is trained on the source task, or its weights come from --init. Each strategy fine-tunes it on the target task,
and the result is measured on both tasks. Each strategy's strength is chosen on held-out data from the same number of
trials. Plain fine-tuning has no strength, so its trials have different learning rates instead. The results are written
to the folder --out: report.html (a page to look at), runs.csv, table.csv, table.md, notes.json, figure.png, and
study.yaml, which repeats the study.

If the command is stopped, calling it again resumes each run after its last finished epoch. Several calls with the same
--out share the work:

    python experiments/compare.py --jobs 4    # worker processes, one for each GPU where there are several
    python experiments/compare.py --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 experiments/compare.py --bs 128    # four processes for each run
    python experiments/status.py runs/compare                      # its progress, in another terminal"""
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
from fastai.torch_core import rank_distrib

from ..report.page import write_page
from ..report.tables import strategy_table
from ..report.write import write_report
from ..runtime.distributed import join_processes
from ..runtime.launcher import Launcher
from ..runtime.loggers import check_loggers
from ..runtime.progress import Progress
from ..study.compare import compare
from ..study.earlier import begin_report
from ..study.progress import LiveProgress
from ..study.reuse import version_notes
from ..study.settings import Settings, parse_command_line
from ..study.setup import Setup, build, default_jobs
from ..study.source_files import source_folder
from .common import make_folder, one_line_errors, report_errors

__all__ = ['main']


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status; errors end the process with 2, Ctrl-C with 130
    "Compare ways to fine-tune a pre-trained video encoder: what they learn, and what they forget"
    with one_line_errors('compare.py'): settings = parse_command_line('compare', argv, __doc__)
    with one_line_errors('compare.py', settings.out): run_comparison(settings)
    return 0


def run_comparison(
    settings:Settings,
)->None:
    "Run a comparison and write its results to `--out`"
    processes = join_processes()
    jobs = settings.jobs
    if jobs is None: jobs = default_jobs(settings) if not settings.launcher and processes == 1 else 1
    launcher, log = Launcher(jobs, settings.launcher, settings.slurm), check_loggers(settings.log)
    setup = build(settings, processes)
    out = make_folder(settings.out)
    with nullcontext(Progress()) if rank_distrib() else LiveProgress() as progress:
        if not rank_distrib(): begin_report(settings, out, progress)
        for line in setup.messages: progress.say(line)
        rows = compare(setup.runs[0], setup.grids, out, seeds=setup.seeds, trial_seeds=setup.trial_seeds,
                       progress=progress, all_strengths=settings.all_strengths, rule=settings.rule, kept=settings.kept,
                       launcher=launcher, log=log, fresh=settings.fresh)
    if rank_distrib(): return
    with report_errors(out, f'python experiments/make_report.py {out} the page alone'):
        write_results(rows, settings, setup, launcher)


def write_results(
    rows:pd.DataFrame, # From `compare`
    settings:Settings,
    setup:Setup,
    launcher:Launcher|None=None, # Where runs were done; `None`: in this process
)->None:
    "Write tables, figures and the page, and show the table"
    run, out = setup.runs[0], Path(settings.out)
    title = f'{run.source} → {run.task}, {run.model}'
    progress = LiveProgress()
    begin_report(settings, out, progress)  # again, as another study may have written here meanwhile
    of_versions = version_notes([*(out/'runs'/key for key in rows.key), source_folder(run, out)], launcher)
    for note in of_versions: progress.say(note)
    notes = setup.notes + of_versions
    table = write_report(rows, out, title, notes, settings.adjust)
    shown = strategy_table(table, None, notes, settings.adjust, title)
    progress.console.print(shown.to_rich(progress.console.width))
    page = write_page(out, method=settings.adjust, figures=False)
    more = ', paths.png, trade_off_*.csv and .md' if settings.all_strengths else ''
    progress.say(f'written: {page}, to open in a browser; next to it runs.csv, table.csv, table.md, figure.png{more}')


if __name__ == '__main__': sys.exit(main())
