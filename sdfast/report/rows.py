"Rows of runs: selecting final runs, naming settings, making data frames."
from collections.abc import Sequence
from typing import cast

import pandas as pd

from ..runtime.options import parse_options
from ..strategies.registry import STRATEGIES
from ..study.merge import OF_TASKS

PANELS = ('source_acc', 'source_probe')  # measures of the source that are set against target accuracy


def final_runs(
    rows:pd.DataFrame, # From `compare`
    chosen:bool=True, # Only those of the chosen strengths, instead of all that were run to the end
)->pd.DataFrame: # Some of the rows
    "Select the runs that read test; in old files, which have no column `chosen`, all of them count as chosen"
    final = rows[rows.final.astype(bool)]
    if not chosen or 'chosen' not in final: return final
    return final[[pd.isna(c) or bool(c) for c in final.chosen]]


def has_all_strengths(
    rows:pd.DataFrame, # From `compare`
)->bool: # False in a study with only the chosen ones
    "Whether more than the chosen strengths were run to the end"
    return len(final_runs(rows, chosen=False)) > len(final_runs(rows))


def has_strength(
    name:str, # A strategy; after it there may be `+` and a method that merges, and options, separated by a space
)->bool: # False for plain fine-tuning and others that try learning rates
    "Whether a strategy has a strength λ, instead of learning rates to choose from"
    strategy, _, merge = name.split()[0].partition('+')
    return merge in OF_TASKS if merge else bool(STRATEGIES[strategy].lams)


def setting_name(
    strategy:str, # Its name
    lam:float, # Its strength
    lr:float, # Its learning rate
)->str: # Such as 'λ10' or 'lr0.05'
    "Name a strategy's setting in one word"
    return f'λ{lam:g}' if has_strength(strategy) else f'lr{lr:g}'


def retain_text(
    args:object, # Options of a strategy as text; nan or '' if there are none
)->str: # Such as 'retain 98 %', '' if its strength was fixed
    "Name the budget by which a strategy has adapted its strength"
    if not isinstance(args, str) or 'retain' not in args: return ''
    retain = parse_options(args).get('retain')
    return '' if retain is None else f'retain {100*float(retain):g} %'


def settings_of(
    rows:pd.DataFrame, # Runs of a strategy
)->list[tuple]: # `(lam, lr)` of each
    "List a strategy's settings, weak ones first: small λ, large learning rates"
    found = {(lam, lr) for lam, lr in zip(rows.lam, rows.lr)}
    return sorted(found, key=lambda setting: (setting[0], -setting[1]))


def frame_of(
    rows:list, # Dicts, not all with the same keys
)->pd.DataFrame: # A row for each; columns in the order in which they first occur
    "Make a data frame of dicts"
    columns = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame(rows).reindex(columns=list(columns))


def insert_after(
    table:pd.DataFrame, # Changed in place
    column:str, # One of its columns
    name:str, # The new column, to its right
    values:Sequence, # One for each row
)->None:
    "Insert a column after another one"
    place = cast(int, table.columns.get_loc(column))  # not a slice, as names of columns are unique
    table.insert(place + 1, name, values)
