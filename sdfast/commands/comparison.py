"The work of `sdfast compare`: from settings to runs, tables and the page."
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
from ..runtime.program import invocation
from ..runtime.progress import Progress, begin_phase
from ..study.compare import compare
from ..study.earlier import begin_report
from ..study.progress import LiveProgress
from ..study.reuse import version_notes
from ..study.settings import Settings
from ..study.setup import Setup, build, default_jobs
from ..study.source_files import source_folder
from .common import make_folder, report_errors

__all__ = ['run_comparison']


def run_comparison(
    settings:Settings,
)->None:
    "Run a comparison and write its results to `--out`"
    processes = join_processes()
    jobs = settings.jobs
    if jobs is None: jobs = default_jobs(settings) if not settings.launcher and processes == 1 else 1
    launcher, log = Launcher(jobs, settings.launcher, settings.slurm), check_loggers(settings.log)
    with nullcontext(Progress()) if rank_distrib() else LiveProgress() as progress:
        setup = build(settings, processes)
        out = make_folder(settings.out)
        if not rank_distrib(): begin_report(settings, out, progress)
        for line in setup.messages: progress.say(line)
        rows = compare(setup.runs[0], setup.grids, out, seeds=setup.seeds, trial_seeds=setup.trial_seeds,
                       progress=progress, all_strengths=settings.all_strengths, rule=settings.rule, kept=settings.kept,
                       launcher=launcher, log=log, fresh=settings.fresh)
    if rank_distrib(): return
    with report_errors(out, f'{invocation("report")} {out} the page alone'), LiveProgress() as progress:
        begin_phase('writing the report')
        write_results(rows, settings, setup, progress, launcher)


def write_results(
    rows:pd.DataFrame, # From `compare`
    settings:Settings,
    setup:Setup,
    progress:LiveProgress, # For the reader
    launcher:Launcher|None=None, # Where runs were done; `None`: in this process
)->None:
    "Write tables, figures and the page, and show the table"
    run, out = setup.runs[0], Path(settings.out)
    title = f'{run.source} → {run.task}, {run.model}'
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

