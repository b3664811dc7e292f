"Splits by group: no person, scene or recording is on both sides."
import re
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ..errors import InputError
from .text import as_markdown

__all__ = ['group_names', 'split_groups', 'without_leaks']


def group_names(
    paths:Sequence[str], # Paths of videos
    rule:str|None, # Regular expression whose parentheses match the group's name; `None`: each path is a group
)->list[str]: # Group of each path
    "Name the group of each path"
    if rule is None: return list(paths)
    try: pattern = re.compile(rule)
    except re.error as e: raise InputError(f'group rule {rule!r} is not a regular expression: {e}') from None
    if pattern.groups < 1:
        raise InputError(f'group rule {rule!r} needs a parenthesis around the part that names the group')
    matches = [pattern.search(p) for p in paths]
    unmatched = [p for p, m in zip(paths, matches) if m is None]
    if unmatched:
        counts = f'{len(unmatched)} of {len(paths)} paths'
        raise InputError(f'group rule {rule!r} does not match {counts}, such as {unmatched[0]!r}')
    # a path without any part has no group
    return ['/'.join(part for part in m.groups() if part is not None) if any(m.groups()) else '' for m in matches]


def without_leaks(
    df:pd.DataFrame, # Columns split and group
)->tuple[pd.DataFrame, list[str]]: # The table without some rows, and notes
    "Leave clips out of train whose group is also in valid or test, and out of valid those whose group is in test"
    notes = []
    for split, later in (('valid', ('test',)), ('train', ('valid', 'test'))):
        held_out = set(df.group[df.split.isin(later)])
        leaks = (df.split == split) & df.group.isin(held_out)
        if not leaks.any(): continue
        notes.append(f'left out of {split}, as clips of the same source are in {" or ".join(later)}: {leaks.sum()}, '
                     f'such as those of {as_markdown(str(df.group[leaks].iloc[0]))}')
        df = df[~leaks]
    return df.reset_index(drop=True), notes


def split_groups(
    df:pd.DataFrame, # Columns label and group
    frac:float, # Part of the rows to choose
    seed:int, # Random seed of the choice
    failure:str, # Start of error messages: what could not be done
)->np.ndarray: # Positions of the rows
    """Choose about `frac` of the rows: whole groups, with balanced classes, such that the rest still has every class.

    Raises `InputError` for a class that has only one group."""
    _check_two_groups(df, failure)
    fold = _best_fold(df, frac, seed)
    return _smallest_groups(df, frac, seed) if fold is None else fold


def _check_two_groups(df, failure):
    groups = df.groupby('label').group.nunique()
    single = groups[groups < 2]
    if not len(single): return
    label = single.index[0]
    rows = df[df.label == label]
    raise InputError(f'{failure}: all {len(rows)} clips of class {label!r} are of one group ({rows.group.iloc[0]!r}); '
                     'each class needs at least two groups')


def _best_fold(df, frac, seed):
    """The stratified fold with the most classes and, among several, with the size closest to `frac`.

    `None` if every fold would leave the rest without some class, or if it has most of the rows where fewer were asked
    for, as scikit-learn before 1.9 makes some."""
    y = df.label.values
    n_groups = df.group.nunique()
    k = min(max(2, round(1/frac)), n_groups, df.label.value_counts().max())
    # the first compares each group with each fold, which takes minutes and has no effect if each row is a group
    kind = StratifiedGroupKFold if n_groups < len(df) else StratifiedKFold
    folds = kind(k, shuffle=True, random_state=seed)
    best, best_score = None, None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # small classes cannot be in every fold
        for rest, chosen in folds.split(np.zeros(len(df)), y, df.group.values):
            if not len(chosen) or set(y[rest]) != set(y) or len(chosen) > max(frac, .75)*len(df): continue
            score = len(set(y[chosen])), -abs(len(chosen) - frac*len(df))
            if best is None or score > best_score: best, best_score = chosen, score
    return best


def _smallest_groups(df, frac, seed):
    "The smallest groups that leave every class in the rest, up to `frac` of the rows, but at least one group"
    class_of = pd.factorize(df.label.values)[0]
    rows_of = df.groupby('group').indices
    left = np.bincount(class_of)  # rows of each class in the rest
    chosen = []
    by_size = df.group.sample(frac=1, random_state=seed).value_counts(sort=False).sort_values(kind='stable').index
    for group in by_size:
        rows = rows_of[group]
        classes, n = np.unique(class_of[rows], return_counts=True)
        too_many = chosen and len(chosen) + len(rows) > frac*len(df)
        if too_many or (left[classes] == n).any(): continue
        left[classes] -= n
        chosen += rows.tolist()
    return np.sort(np.array(chosen, int))
