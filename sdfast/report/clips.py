"How many clips the numbers of a report are based on."
from collections.abc import Iterable, Mapping

import pandas as pd

from ..errors import InputError
from ..metrics.columns import CLIP_COLUMNS, MEASURES
from ..stats import above_chance
from .table import count_of

__all__ = ['clip_counts']

# column -> what it counts
WHAT = dict(test_clips='of the target', source_clips='of the source', other_clips='of the other tasks')
UNKNOWN = 'How many test clips the numbers are based on was not recorded.'


def clip_counts(
    rows:pd.DataFrame, # From `compare`, or the row of a table with these columns
)->dict[str, int]: # Column of `CLIP_COLUMNS` -> number of clips, without those that were not recorded
    "Look up how many clips runs were measured on. Raises `InputError` if not all on the same number"
    counts = {}
    for column in CLIP_COLUMNS:
        found = sorted(set(rows[column].dropna().astype(int))) if column in rows else []
        if len(found) > 1:
            raise InputError(f'the runs were not measured on the same clips: {column} is {found[0]} and {found[-1]}; '
                             'compare runs on the same data')
        if found and found[0]: counts[column] = found[0]
    return counts


def clips_text(
    counts:Mapping[str, int], # From `clip_counts`
    columns:Iterable[str]=WHAT, # Those to name
)->str: # Such as '400 test clips of the target and 1200 of the source'; '' if none is known
    "Name numbers of test clips"
    known = [(counts[c], WHAT[c]) for c in WHAT if c in columns and c in counts]
    if not known: return ''
    (n, what), *rest = known
    parts = [f'{count_of(n, "test clip")} {what}', *(f'{n} {what}' for n, what in rest)]
    return ' and '.join([', '.join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def clips_sentence(
    counts:Mapping[str, int], # From `clip_counts`
    measures:Iterable[str], # The measures that are shown
)->str: # A sentence
    "Say how many test clips measures are based on"
    columns = {MEASURES[m].clips for m in measures if m in MEASURES}
    text = clips_text(counts, columns)
    return f'Measured on {text}.' if text else UNKNOWN


def clips_of(
    rows:pd.DataFrame, # As for `clip_counts`
    m:str, # A measure
)->str: # Such as ' of 400 clips', for the label of an axis; '' if the number is not known
    "Say how many clips a measure is based on"
    n = clip_counts(rows).get(MEASURES[m].clips)
    return f' of {n} clips' if n else ''


def chance_sentence(
    rows:pd.DataFrame, # From `compare` or `summary`
)->str: # '' if the source was learned, or if this is not known
    "Say that the source was not learned, if the untouched old head is not above chance"
    needed = 'source_acc', 'source_clips', 'source_chance'
    if not set(needed) <= set(rows): return ''
    untouched = rows[rows.strategy == 'untouched'].dropna(subset=list(needed))
    if not len(untouched): return ''
    accuracy, n, chance = (float(untouched[c].iloc[0]) for c in needed)
    if above_chance(accuracy, int(n), chance): return ''
    return (f'The source was not learned: before fine-tuning its head has {100*accuracy:.1f} % of {n:.0f} clips, and '
            f'always answering its most frequent class has {100*chance:.1f} %. What it forgot means nothing.')


def clips_note(
    rows:pd.DataFrame, # As read from runs.csv
)->list[str]: # One note for readers, or none
    "Say why CKA is missing in runs of older versions"
    is_old = 'cka' in rows and rows.cka.notna().any()
    if not is_old: return []
    return ['CKA of older runs is not shown. It is the biased estimate, which is near 1 for unrelated features of few '
            'clips. To measure it without bias, repeat the study in a new folder.']
