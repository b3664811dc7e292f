"Read the folders of studies, and merge studies with the same set-up."
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError
from ..metrics.columns import REPORTED
from ..strategies.registry import STRATEGIES
from ..study.choose import choose
from ..study.settings import recorded_command
from .clips import clips_note
from .results import Results
from .rows import has_strength, settings_of

__all__ = ['load_results']

SETUP = ('source', 'task', 'model', 'anchor')  # studies are merged if they share these, and the epochs of fine-tuning
# columns that a study's runs.csv must have
NEEDED = ('key', *SETUP, 'strategy', 'lam', 'lr', 'seed', 'epochs', 'acc1', 'status', 'final')
NUMBERS = ('lam', 'lr', 'seed', 'epochs', *REPORTED)  # columns of numbers
RUN = ['strategy', 'strategy_args', 'lam', 'lr', 'seed', 'final']  # two runs that share these must have equal numbers


def load_results(
    *folders, # Of studies, as `compare` wrote them
)->list[Results]: # One for each set-up: source, target, model, weights before fine-tuning, and epochs
    """Read the folders of studies, and merge studies with the same set-up.

    Equal runs count once. If folders chose different strengths of a strategy, or none, the one with the best accuracy
    on valid is used. Raises `InputError` for a folder without a finished comparison, and for runs with equal settings
    but different numbers."""
    groups: dict[tuple, list[Study]] = {}
    for folder in folders:
        study = _read(folder)
        groups.setdefault(study.setup, []).append(study)
    return [_merge(studies) for studies in groups.values()]


@dataclass
class Study:
    "The files of one folder"
    folder: str|Path
    rows: pd.DataFrame
    command: str  # command that repeats the study, or ''
    notes: list

    @property
    def setup(self)->tuple:
        values = [self.rows[c].dropna().iloc[0] for c in (*SETUP, 'epochs')]
        return (*values[:-1], int(values[-1]))


def _read(folder):
    file = Path(folder)/'runs.csv'
    if not file.exists():
        raise InputError(
            f'{folder} has no runs.csv, so it holds no finished study: give the --out folder of compare.py; '
            'to finish an interrupted study, repeat its command')
    rows = _read_rows(file)
    _check(rows, file)
    for column in ('strategy_args', 'chosen'):
        if column not in rows: rows[column] = None
    return Study(folder, rows, recorded_command(folder), _read_notes(Path(folder)/'notes.json') + clips_note(rows))


def _read_rows(file):
    text = dict.fromkeys(('task', 'source', 'model', 'error', 'strategy_args'), str)
    try:
        rows = pd.read_csv(file, keep_default_na=False, na_values=[''], dtype=text)
        if not file.read_bytes().endswith(b'\n'): raise ValueError('its end is missing')
        for column in rows.columns.intersection(NUMBERS): rows[column].astype(float)
        if 'final' in rows and rows.final.dtype != bool: raise ValueError('a cell of the column final')
    except (ValueError, OSError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f'{file} is damaged ({reason}): repeat the command of the study, which reads its finished '
                         'runs and writes the file again') from None
    return rows


def _read_notes(file):
    "The notes on the tasks; a note instead if the file is damaged"
    if not file.exists(): return []
    try: notes = json.loads(file.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError): notes = None
    if isinstance(notes, list) and all(isinstance(n, str) for n in notes): return notes
    warnings.warn(f'{file} is damaged: the notes on the tasks are left out; the command of the study writes it again')
    return ['notes.json is damaged, so what it said of the tasks is missing here.']


def _check(rows, file):
    "Raise `InputError` unless the rows are a comparison of strategies with plain fine-tuning"
    missing = [c for c in NEEDED if c not in rows]
    if missing:
        chain = '; a chain of tasks (sequence.py) has tables of its own' if 'stage' in rows else ''
        raise InputError(f'{file} is not of a comparison of strategies: it has no column {missing[0]!r}{chain}')
    unknown = sorted(set(rows.strategy) - {'untouched', *STRATEGIES})
    if unknown: raise InputError(f'{file}: unknown strategy {unknown[0]!r}')
    if not (rows.strategy == 'finetune').any():
        raise InputError(f'{file} has no runs of finetune, which all others are compared with')


def _merge(studies):
    "Merge studies with the same set-up"
    folders = [study.folder for study in studies]
    rows = _unique_runs(pd.concat([study.rows for study in studies], ignore_index=True), folders)
    # files from before all strengths could be run to the end have no `chosen`: their final runs are the chosen ones
    rows['chosen'] = [bool(final) if pd.isna(c) else str(c) == 'True' for c, final in zip(rows.chosen, rows.final)]
    rows['final'] = rows.final.astype(bool)
    rows['strategy'] = _names_with_options(rows)
    commands = [study.command for study in studies if study.command]
    notes = [note for study in studies for note in study.notes]
    notes = _unique(notes) + _settle_choices(rows)
    return Results(rows, folders, _unique(commands), notes)


def _unique(values): return list(dict.fromkeys(values))


def _unique_runs(rows, folders):
    "Keep each run once: prefer one that succeeded to one that failed, and one marked as chosen to one that is not"
    is_rejected = [c is False or c == 'False' for c in rows.chosen]
    rows = rows.assign(order=rows.index, bad=rows.status != 'ok', rejected=is_rejected)
    rows = rows.sort_values(['bad', 'rejected', 'order']).drop_duplicates('key')
    # an older sdfast may have given the same run another key
    is_twice = rows.duplicated(RUN, keep=False) & (rows.status == 'ok') & (rows.strategy != 'untouched')
    for (strategy, *_), runs in rows[is_twice].groupby(RUN, dropna=False):
        if runs.acc1.nunique() <= 1 and runs.valid_acc1.nunique() <= 1: continue
        raise InputError(
            f'{", ".join(map(str, folders))} cannot be merged: two runs of {strategy} with seed '
            f'{int(runs.seed.iloc[0])} differ in their numbers, so something else differs, too; make a page of each')
    rows = rows.drop_duplicates(RUN).sort_values('order')
    return rows.drop(columns=['order', 'bad', 'rejected']).reset_index(drop=True)


def _names_with_options(rows):
    "Names of strategies, followed by their options if a strategy ran with different ones"
    several = rows.groupby('strategy').strategy_args.apply(lambda args: args.fillna('').nunique() > 1)
    def name(strategy, args):
        has_options = isinstance(args, str) and args
        return f'{strategy} {args}' if several[strategy] and has_options else strategy
    return [name(*pair) for pair in zip(rows.strategy, rows.strategy_args)]


def _settle_choices(rows):
    "If several settings of a strategy are marked as chosen, choose the best on valid; returns notes that say so"
    notes = []
    candidates = rows[rows.final & rows.chosen & (rows.strategy != 'untouched')]
    for strategy, runs in candidates.groupby('strategy', sort=False):
        settings = settings_of(runs)
        if len(settings) < 2: continue
        lam, lr = settings[choose([_valid_accuracy(runs, *setting) for setting in settings])]
        is_mine = rows.final & (rows.strategy == strategy)
        rows.loc[is_mine, 'chosen'] = (rows.lam[is_mine] == lam) & (rows.lr[is_mine] == lr)
        taken = f'λ {lam:g}' if has_strength(strategy) else f'lr {lr:g}'
        notes.append(f'{strategy}: the runs leave open which of {len(settings)} settings was chosen; '
                     f'shown is {taken}, the best on valid.')
    return notes


def _valid_accuracy(runs, lam, lr):
    "Mean accuracy of a setting on valid; nan if one of its runs failed"
    runs = runs[(runs.lam == lam) & (runs.lr == lr)]
    return runs.valid_acc1.astype(float).mean() if (runs.status == 'ok').all() else np.nan
