"""Check the files of a table of videos: which can be decoded, and which are damaged.

All frames of each video are decoded once per machine, see `VideoFile.damaged`."""
import os
import warnings

import pandas as pd

from ..errors import InputError
from ..runtime.progress import track
from .parallel import map_in_threads
from .text import CONTROL, FORMULA, as_markdown, list_names
from .video import VideoError, VideoFile

__all__ = ['FEW_DAMAGED']

FEW_DAMAGED = 3  # a video with more damaged frames is listed, and left out if so asked
DAMAGED = 'keep', 'drop', 'fail'  # what to do with such videos
DROPPED = 'it is damaged: '  # how the reason begins for which such a video is left out
MAX_LISTED = 10  # largest number of videos that notes and errors list


def check_files(
    name:str, # Name of the task, for messages
    df:pd.DataFrame, # Columns path and label, one row per video
    damaged:str='keep', # One of `DAMAGED`, for videos with more than `FEW_DAMAGED` damaged frames
# The table without unusable files; the reason for each of those; path -> number of damaged frames, if any; and notes
)->tuple[pd.DataFrame, dict[str, str], dict[str, int], list[str]]:
    "Open and decode all videos of a table. Raises `InputError` for damaged ones if `damaged` is 'fail'"
    if damaged not in DAMAGED: raise InputError(f'damaged must be {", ".join(DAMAGED)}, not {damaged!r}')
    paths = list(dict.fromkeys(df.path))
    checked = track(map_in_threads(_check_file, paths), f'{name}: looking for damaged videos', len(paths))
    found = dict(zip(paths, checked))
    skipped = {_printable(path):why for path, (why, _, _) in found.items() if why}
    counts = {path:n for path, (_, n, _) in found.items() if n}
    bad = {path:text for path, (_, _, text) in found.items() if text}
    notes = []
    if bad:
        if damaged == 'fail':
            listed = '; '.join(_list_damaged(bad))
            raise InputError(f'{name}: {len(bad)} of {len(paths)} videos are damaged: {listed}. Replace them, or leave '
                             'them out with damaged=drop, or use them as they are with damaged=keep')
        then = 'they are left out' if damaged == 'drop' else 'they are used as they are; damaged=drop leaves them out'
        summary = f'{len(bad)} of {len(paths)} videos have more than {FEW_DAMAGED} damaged frames: {then}'
        warnings.warn(f'{name}: {summary}')
        notes += [summary, *map(as_markdown, _list_damaged(bad))]
    if damaged == 'drop':
        skipped |= {path:DROPPED + text for path, text in bad.items()}
        counts = {path:n for path, n in counts.items() if path not in bad}
    kept = df[[_printable(path) not in skipped for path in df.path]]
    lost = [label for label in df.label.unique() if label not in set(kept.label)]
    if lost: notes.append(f'no video of {list_names(lost)} can be decoded')
    return kept, skipped, counts, notes


def _check_file(path):
    "Why a video cannot be used, or `None`; its number of damaged frames; and how many, in words, if they are not few"
    if CONTROL.search(path): return 'its path contains a control character; rename it', 0, ''
    if FORMULA.search(path):
        return 'its path has a formula after a semicolon, which spreadsheets would run in scores.csv; rename it', 0, ''
    video = VideoFile(path)
    why = video.problem()
    if why: return why, 0, ''
    try: damaged, index = len(video.damaged), video.index
    except VideoError: return None, 0, ''  # it has changed meanwhile; reading it will raise the error
    total, bad = index.n + index.lost, damaged + index.lost
    return None, damaged, f'{bad} of {total} frames are damaged' if bad > FEW_DAMAGED else ''


def _list_damaged(bad):
    "`a.avi: 25 of 377 frames are damaged`, for the first"
    lines = [f'{os.path.basename(path)}: {text}' for path, text in list(bad.items())[:MAX_LISTED]]
    return lines + [f'and {len(bad) - MAX_LISTED} more'] if len(bad) > MAX_LISTED else lines


def _printable(path): return repr(path)[1:-1] if CONTROL.search(path) else path
