"The sentences of the page: the question, the findings, what is missing, and how the runs were made."
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from ..metrics.columns import measure_title
from .clips import clip_counts, clips_sentence
from .results import Results
from .rows import final_runs, has_all_strengths
from .table import MISSING, capitalised, count_of
from .tables import strategy_cell

# a sign for each verdict, so that it is understood without colour
SIGNS = {'better': '▲ ', 'worse': '▼ ', 'not distinguishable': '≈ '}


# names of csv files that say nothing about the data; the folder's name does
GENERIC = 'manifest', 'labels', 'videos', 'annotations', 'annotation', 'data', 'dataset', 'index', 'metadata', 'clips'


def task_name(
    spec:str, # As for `create_task`, such as `csv:/data/arid6/manifest.csv,test=seen`
)->str: # `arid6`
    "The name of a task for titles: that of its folder or file"
    head = re.split(r',(?=[a-z_]+=)', spec)[0]
    kind, _, path = head.partition(':')
    if not kind.isidentifier(): return spec  # not one of sdfast
    place = PurePosixPath(path.rstrip('/'))
    if not place.name: return kind
    if kind in ('ucf101', 'hmdb51', 'kinetics', 'ssv2', 'moving_digits', 'moving_photos'): return kind
    if kind not in ('csv', 'shards'): return place.name
    named = place.stem if place.stem.lower() not in GENERIC and '{' not in place.stem else place.parent.name
    return named or place.stem


def _names(r):
    "Names of source, target and model of a study; in full where two specs would have one name"
    source, task, model = (r.rows[c].dropna().iloc[0] for c in ('source', 'task', 'model'))
    short = task_name(source), task_name(task)
    if short[0] == short[1] and source != task: short = source, task
    return *short, (PurePosixPath(model).name if model.startswith(('hf:', 'sdfast:')) else model)


def study_title(
    r:Results, # A study
)->str: # Source → target, model
    "Name a study"
    source, task, model = _names(r)
    return f'{source} → {task}, {model}'


def page_title(
    studies:list, # Of `Results`
)->str: # For the page's head
    "Ask the question of a study, or name several"
    if len(studies) > 1: return f'What was learned and what was forgotten: {len(studies)} studies'
    source, _, model = _names(studies[0])
    return f'What does {model} forget of {source} when it learns {_target_name(studies[0])}?'


def _target_name(r):
    source, task, _ = _names(r)
    return task if task != source else 'its target task'  # moving_digits is both


def lead(
    r:Results, # A study
    table:pd.DataFrame, # Its `summary`
)->str: # A paragraph
    "Describe the question and the set-up"
    rows = r.rows
    n_seeds = int(final_runs(rows, chosen=False).seed.nunique())
    n_others = int((~table.strategy.isin(['finetune', 'untouched'])).sum())
    others = 'one other strategy' if n_others == 1 else f'{n_others} other strategies'
    epochs = count_of(int(rows.epochs.dropna().iloc[0]), 'epoch')
    seeds = 'one seed' if n_seeds == 1 else f'the same {n_seeds} seeds'
    measured = clips_sentence(clip_counts(rows), ['acc1', 'source_acc'])
    source, _, model = _names(r)
    return (
        f'An encoder ({model}) that knows {source}{_origin(r.run)} is fine-tuned on '
        f'{_target_name(r)} for {epochs}: by plain fine-tuning, and by {others}. How much of the source is left '
        f'afterwards, and at what price in target accuracy? Each was run with {seeds}; the strength of each was chosen '
        f'on held-out data, not on test{_selected_on_test(rows)}. {measured}')


def _selected_on_test(rows):
    if not has_all_strengths(rows): return ''
    return ', except for places on paths of strengths: what keeping costs selects them by target accuracy on test'


def _origin(run):
    "How the encoder learned the source"
    if not run: return ''
    epochs = run['source_epochs']
    text = f', trained on it for {count_of(epochs, "epoch")}' if epochs else ', with the weights it came with'
    return f'{text} ({Path(run["init"]).name}),' if run.get('init') else f'{text},'


def findings(
    table:pd.DataFrame, # From `summary`
    measures:list, # Some of its columns
)->list[dict]: # For each measure what it is and the parts of its line: verdict, sign, text
    "List the verdicts of the table, a line for each measure"
    by = table.set_index('strategy')
    out = []
    for m in measures:
        parts = [dict(verdict='', sign='', text=_reference_text(by, m)), *_verdict_parts(by, m)]
        out.append(dict(what=capitalised(measure_title(m)), parts=parts))
    return out


def _reference_text(by, m):
    "The values of plain fine-tuning and of the untouched encoder"
    text = f'{strategy_cell(by.loc["finetune"], m).mean} % with plain fine-tuning'
    before = strategy_cell(by.loc['untouched'], m).mean if 'untouched' in by.index else MISSING
    return text if before == MISSING else f'{text}, {before} % before'


def _verdict_parts(by, m):
    "The strategies of each verdict"
    verdicts = by.get(f'{m}_verdict', pd.Series(dtype=object))
    n_others = len(by) - sum(s in by.index for s in ('finetune', 'untouched'))
    parts = []
    for verdict in ('better', 'worse', 'not distinguishable', 'no interval'):
        names = [s for s in by.index if verdicts.get(s) == verdict]
        if not names: continue
        if verdict in ('better', 'worse'):
            text = ', '.join(f'{s} {strategy_cell(by.loc[s], m).diff}' for s in names)
        elif 1 < len(names) == n_others: text = f'all {len(names)} others'
        else: text = ', '.join(names)
        parts.append(dict(verdict=verdict, sign=SIGNS.get(verdict, ''), text=text))
    return parts


def missing_answers(
    r:Results, # A study
)->list[str]: # Sentences
    "Say which answers are missing in the folder, and which files of those that were read are damaged"
    out = []
    if not len(r.source):
        out.append(
            'What was forgotten of each class and clip is unknown: this folder has no answers of the old head on the '
            "source's test videos (runs/…/source_scores.csv, and source/…/scores.csv for the untouched encoder).")
    if not len(r.target): out.append("It has no answers on the target's test videos (runs/…/scores.csv).")
    if r.left_out:
        names = ', '.join('/'.join(Path(f).parts[-3:]) for f in r.left_out)
        out.append(f'Damaged files are left out: {names}. The command of the study makes them again.')
    return out


def facts(
    r:Results, # A study
)->list[tuple[str, str]]: # Names and texts
    "List versions, time, weights and data of the runs"
    rows = r.rows[r.rows.strategy != 'untouched']
    out = [_version_fact(v, len(r.versions)) for v in r.versions] or [('Versions', 'not recorded in this folder')]
    out.append(('Time', f'{count_of(len(rows), "run")}, {_duration(rows.seconds.astype(float).sum())}'))
    for what, column in (('Source', 'source'), ('Target', 'task'), ('Model', 'model')):
        out.append((what, r.rows[column].dropna().iloc[0]))
    out.append(('Encoder before fine-tuning', f'weights {r.rows.anchor.dropna().iloc[0]}'))
    if r.run.get('data'): out.append(('Fingerprint of the data', r.run['data']))
    out.append(('Read from', ', '.join(Path(f).resolve().name for f in r.folders)))
    return out


def _version_fact(versions, n):
    text = ', '.join(f'{name} {version}' for name, version in versions.items() if name != 'runs')
    return f'Versions of {count_of(versions["runs"], "run")}' if n > 1 else 'Versions', text


def _duration(seconds):
    hours = seconds/3600
    return f'{hours:.1f} hours' if hours >= 1 else count_of(round(60*hours), 'minute')
