"An earlier report in the folder of a study: kept under another name before a study with other settings replaces it."
import os
from pathlib import Path

from ..errors import InputError, StoreError
from ..runtime.progress import Progress
from .config import EXECUTION
from .settings import STUDY_FILE, Settings, all_options, read_study_file, write_study_file

__all__ = ['begin_report']

# what a study writes next to its runs; study.yaml comes last, as a folder that has it is complete
REPORT = ('runs.csv', 'matrix.csv', 'table.csv', 'table.md', 'notes.json', 'figure.png', 'paths.png', 'trade_off_*.csv',
          'trade_off_*.md', 'report.html', 'figures', STUDY_FILE)


def begin_report(
    settings:Settings, # Of the study
    out:str|Path, # Its folder
    progress:Progress=Progress(), # Progress listener, for a line about a report that is kept
)->None:
    """Write `study.yaml`, and keep the report of an earlier study with other settings in `earlier-1`, `earlier-2`...

    Settings of execution, such as `jobs`, make no other study. Runs and source models stay where they are, and studies
    share them. Raises `StoreError` if the report cannot be moved."""
    out = Path(out)
    found = [f for pattern in REPORT for f in sorted(out.glob(pattern))]
    has_report = any(f.name != STUDY_FILE for f in found)
    if has_report and not _is_same(settings, out/STUDY_FILE): _keep(found, out, progress)
    write_study_file(settings, out)


def _is_same(settings, file):
    "Whether a study file has the same settings, but for those of execution"
    try: earlier = read_study_file(file)
    except InputError: return False
    if earlier.command != settings.command: return False
    names = [name for name, o in all_options(settings.command).items() if o.setting.group != EXECUTION]
    return all(getattr(earlier, name) == getattr(settings, name) for name in names)


def _keep(found, out, progress):
    n = 1
    while (out/f'earlier-{n}'/STUDY_FILE).exists(): n += 1
    folder = out/f'earlier-{n}'
    try:
        folder.mkdir(exist_ok=True)
        for f in found: os.replace(f, folder/f.name)
        # a report without a study file: the next one gets another folder, too
        if not (folder/STUDY_FILE).exists(): (folder/STUDY_FILE).touch()
    except OSError as e:
        raise StoreError(f'the earlier report in {out} cannot be moved to {folder}: {e.strerror or e}; '
                         'give this study another --out') from None
    progress.say(f'the report in {out} is of other settings: it is kept in {folder}; finished runs are shared')
