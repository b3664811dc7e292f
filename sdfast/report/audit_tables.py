"The results of an audit as the content of `audit.json`, and as tables."
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from ..metrics.audit import OLD_HEAD, Change
from ..metrics.columns import AUDIT_MEASURES
from ..runtime import store
from ..stats import Difference
from ..study.audit import AuditResult, AuditSettings
from ..study.checkpoints import Checkpoint
from .audit_file import FORMAT, VERSION

__all__ = ['audit_content', 'write_audit']

PARTS = 'before', 'after', 'change'
OF_CLIP = ('path', 'label', 'answer.before', 'answer.after', 'probability.before', 'probability.after')


def audit_content(
    before:Checkpoint, # The untouched encoder, from `audit_checkpoints`
    results:Sequence[AuditResult], # From `audit_checkpoints`
    settings:AuditSettings, # Of the audit
    command:str='', # That made it
)->dict: # See `audit_file`
    "The content of `audit.json`"
    names = ('title', 'about', 'share', 'more_is_better', 'compares')
    used = {m for r in results for m in r.found.measures}
    measures = {m:{n:getattr(row, n) for n in names} for m, row in AUDIT_MEASURES.items() if m in used}
    for row in measures.values(): row['title'] = row['title'].removeprefix('source, ')
    return dict(format=FORMAT, version=VERSION, sdfast=version('sdfast'), command=command, settings=asdict(settings),
                before=dict(name=before.name, weights=before.id), measures=measures, results=[*map(_result, results)])


def _result(r):
    lost, gained = ([], []) if OLD_HEAD not in r.found.measures else map(_clips, r.found.flips())
    layers = {n:{m:_number(v) for m, v in found.items()} for n, found in r.found.layers.items()}
    return dict(after=r.after.name, weights=r.after.id, task=r.task, groups=r.found.groups, **r.about,
                notes=list(r.notes), measures=_measures(r.found.measures),
                classes={label:_of_class(r, label, found) for label, found in r.found.classes.items()},
                layers=layers, flips=dict(lost=lost, gained=gained))


def _of_class(r, label, found):
    groups = next(iter(found.values())).after.n
    return dict(clips=int((r.found.clips.label == label).sum()), groups=groups, measures=_measures(found))


def _measures(found:dict[str, Change]): return {m:{p:_interval(getattr(c, p)) for p in PARTS} for m, c in found.items()}
def _interval(d:Difference): return dict(value=_number(d.mean), low=_number(d.low), high=_number(d.high))
def _number(x): return float(x) if math.isfinite(x) else None


def _clips(table):
    "Clips that flipped, those whose probability changed most first"
    moved = (table['probability.after'] - table['probability.before']).abs()
    table = table.loc[moved.sort_values(ascending=False, kind='stable').index]
    return table[list(OF_CLIP)].to_dict('records')


def audit_rows(
    content:dict, # Of `audit.json`
)->pd.DataFrame: # Columns after, task, class ('' for all), measure, before, after, change, their ends, clips and groups
    "All numbers of an audit as a table, a row for each measure of each task and class"
    rows = []
    for r in content['results']:
        whole = dict(clips=r['clips'], groups=r['groups'], measures=r['measures'])
        for label, part in {'':whole, **r['classes']}.items():
            for m, found in part['measures'].items():
                row = dict(after=r['after'], task=r['task'], measure=m) | {'class':label}
                for p in PARTS: row |= {f'{p}_{k}':v for k, v in found[p].items()}
                rows.append(row | dict(clips=part['clips'], groups=part['groups']))
    first = ['after', 'task', 'class', 'measure']
    table = pd.DataFrame(rows)
    return table[first + [c for c in table if c not in first]]


def write_audit(
    folder:str|Path, # Created if need be
    content:dict, # From `audit_content`
    results:Sequence[AuditResult], # From `audit_checkpoints`
)->Path: # `audit.json`
    "Write `audit.json`, `audit.csv` (all numbers), `layers.csv` and `clips.csv` (each test clip)"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    store.write(folder/'audit.json', json.dumps(content, indent=1, allow_nan=False) + '\n')
    tables = dict(audit=audit_rows(content), layers=_layers(content), clips=_all_clips(results))
    for name, table in tables.items(): store.write(folder/f'{name}.csv', table.to_csv(index=False))
    return folder/'audit.json'


def _layers(content):
    return pd.DataFrame([dict(after=r['after'], task=r['task'], layer=layer) | found
                         for r in content['results'] for layer, found in r['layers'].items()])


def _all_clips(results):
    tables = []
    for r in results:
        table = r.found.clips.copy()
        table.insert(0, 'task', r.task)
        table.insert(0, 'after', r.after.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
