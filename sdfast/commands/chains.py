"The work of `sdfast sequence`: from settings to chains of stages and tables."
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
from fastai.torch_core import rank_distrib

from ..errors import InputError
from ..report.chains import matrix_table, sequence_summary, task_names
from ..report.tables import chain_table
from ..runtime import store
from ..runtime.distributed import join_processes
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress
from ..study.compare_chains import compare_sequences
from ..study.earlier import begin_report
from ..study.merge_chains import check_merges, merge_chains
from ..study.progress import LiveProgress
from ..study.reuse import version_notes
from ..study.settings import Settings
from ..study.setup import build_chain
from ..study.source_files import source_folder
from .common import make_folder, report_errors

__all__ = ['run_chains']


def run_chains(
    settings:Settings,
)->None:
    "Train every strategy through the chain and write the results to `--out`"
    processes = join_processes()
    launcher = Launcher(settings.jobs, settings.launcher, settings.slurm)
    with nullcontext(Progress()) if rank_distrib() else LiveProgress() as progress:
        merges = check_merges(settings.merges)
        if merges and processes > 1: raise InputError('--merges works in one process: leave out torchrun, or --merges')
        setup = build_chain(settings, processes)
        out = make_folder(settings.out)
        if not rank_distrib(): begin_report(settings, out, progress)
        for line in setup.messages: progress.say(line)
        rows = compare_sequences(setup.runs, setup.grids, out, seeds=setup.seeds, trial_seeds=setup.trial_seeds,
                                 progress=progress, launcher=launcher, fresh=settings.fresh,
                                 merge=partial(merge_chains, merges) if merges else None)
    if rank_distrib(): return
    with report_errors(out):
        keys = rows.key.dropna()
        of_versions = version_notes([*(out/'stages'/key for key in keys), source_folder(setup.runs[0], out)], launcher)
        write_results(rows, settings, setup.notes + of_versions)
        for note in of_versions: LiveProgress().say(note)


def write_results(
    rows:pd.DataFrame, # From `compare_sequences`
    settings:Settings,
    notes:list, # About the tasks, as Markdown
)->None:
    "Write rows and tables, and show the table. Raises `InputError` if no chain reached its end"
    out, progress = Path(settings.out), LiveProgress()
    begin_report(settings, out, progress)  # again, as another study may have written here meanwhile
    store.write(out/'runs.csv', rows.to_csv(index=False))
    table = sequence_summary(rows)
    store.write(out/'matrix.csv', matrix_table(rows).to_csv(index=False, float_format='%.6g'))
    store.write(out/'table.csv', table.to_csv(index=False, float_format='%.6g'))
    title = ' → '.join([settings.source, *task_names(rows)[1:]]) + f', {settings.model}'
    shown = chain_table(table, notes, title, settings.growing)
    store.write(out/'table.md', shown.to_markdown())
    progress.console.print(shown.to_rich(progress.console.width))
    progress.say(f'written to {out}: runs.csv, matrix.csv, table.csv, table.md')

