"Forgetting events of a study's final runs: which clips of the target and of the source go from right to wrong."
from pathlib import Path

import pandas as pd
from fastai.learner import Learner

from ..metrics.events import ForgettingEvents
from ..runtime import store
from .config import Run
from .loaders import source_data, target_data
from .source import SourceModel

__all__ = ['event_counters']


def event_counters(
    run:Run, # Only `events` and `final` matter
    source:SourceModel, # From `load_source`
)->list[ForgettingEvents]: # None, one for the target, or another one for the source
    "The callbacks that count the forgetting events of a run"
    if not (run.events and run.final): return []
    found = [ForgettingEvents()]
    if source.retention is not None: found.append(ForgettingEvents(source.retention.test_dl, source.head))
    return found


def write_events(
    run:Run, # That has ended
    learn:Learner, # Its learner
    folder:Path, # Of the run
)->None:
    "Write path, label and counts of each clip to `events.csv` and, of the source, to `source_events.csv`"
    for counter in learn.cbs:
        if not isinstance(counter, ForgettingEvents): continue
        task, part = (target_data(run)[0], 'train') if counter.trained else (source_data(run)[0], 'test')
        clips = pd.DataFrame(task.items(part), columns=['path', 'label']).rename_axis('clip')
        name = 'events.csv' if counter.trained else 'source_events.csv'
        store.write(folder/name, clips.join(counter.table(), how='inner').to_csv())
