"Tables and sentences of an audit, from the content of `audit.json`."
from pathlib import PurePath
from typing import Any

from .table import Cell, Column, Table, count_of

__all__ = ['summary_table']

MAIN = 'source_acc', 'source_probe', 'source_knn', 'cka_unbiased', 'drift', 'kl', 'neighbours'
OF_CLASS = 'source_acc', 'source_probe', 'source_knn', 'kl'


def short_names(
    content:dict, # Of `audit.json`
)->dict[str, str]: # Name of a checkpoint or task -> the end of its path, as much of it as tells it from the others
    "What is shown of names in tables and titles"
    names = [content['before']['name'], *(r[k] for r in content['results'] for k in ('after', 'task'))]
    names = list(dict.fromkeys(names))
    deepest = max(len(_parts(n)) for n in names)
    for k in range(1, deepest + 1):
        shown = {n:_end(n, k) for n in names}
        if len(set(shown.values())) == len(names): break
    return shown


def _parts(name): return PurePath(name.partition(',')[0]).parts


def _end(name, k):
    "The last parts of a path, with the prefix and options around it"
    path, comma, options = name.partition(',')
    prefix, colon, path = path.rpartition(':')
    return prefix + colon + '/'.join(PurePath(path).parts[-k:]) + comma + options


def verdict(
    found:dict, # before, after and change of a measure
    measure:dict, # Its row in `measures`
)->str: # '' for a measure that compares encoders: it cannot become better
    "Whether a measure became better or worse, by the interval of its change"
    change = found['change']
    if measure['compares'] or change['low'] is None: return ''
    if change['low'] <= 0 <= change['high']: return 'unchanged' if change == _ZERO else 'not distinguishable'
    return 'better' if (change['low'] > 0) == measure['more_is_better'] else 'worse'


_ZERO = dict(value=0., low=0., high=0.)


def change_cell(
    found:dict, # before, after and change of a measure
    measure:dict, # Its row in `measures`
)->Cell:
    "The value after, and its change with interval; of a measure that compares encoders, the value with interval"
    form = _form(measure)
    after, change = found['after'], found['change']
    if measure['compares']: return Cell.of(_nan(after['value']), _nan(after['low']), _nan(after['high']), **form)
    return Cell.of(_nan(after['value']), _nan(change['low']), _nan(change['high']), _nan(change['value']),
                   verdict(found, measure), **form)


def value_cell(
    part:dict, # value, low and high
    measure:dict, # Its row in `measures`
    sign:str='', # '+' for changes
)->Cell:
    "A value with its interval"
    form = _form(measure)
    is_constant = part['low'] is not None and part['low'] == part['high']
    if measure['compares'] and is_constant: return Cell.of(_nan(part['value']), **form)
    return Cell.of(_nan(part['value']), _nan(part['low']), _nan(part['high']), sign=sign, **form)


def _form(measure)->dict[str, Any]:
    return dict(scale=100, digits=1) if measure['share'] else dict(scale=1, digits=3)


def _nan(x): return float('nan') if x is None else x
def _heading(measure): return measure['title'] + (' %' if measure['share'] else '')


def summary_table(
    content:dict, # Of `audit.json`
)->Table: # A row for each fine-tuned encoder and task
    "The main measures of an audit"
    shown, names = [m for m in MAIN if m in content['measures']], short_names(content)
    tasks, rows = {r['task'] for r in content['results']}, []
    for r in content['results']:
        cells = [change_cell(r['measures'][m], content['measures'][m]) if m in r['measures'] else Cell('–')
                 for m in shown]
        rows.append([names[r['after']], *([names[r['task']]] if len(tasks) > 1 else []), *cells])
    headings = [Column('checkpoint', False), Column('task', False)][:1 + (len(tasks) > 1)]
    columns = [*headings, *(Column(_heading(content['measures'][m]), main=m in shown[:3]) for m in shown)]
    on = '' if len(tasks) > 1 else f' on {names[tasks.pop()]}'
    return Table(columns, rows, caption_of(content), headings=len(headings),
                 title=f'What was forgotten since {names[content["before"]["name"]]}{on}')


def caption_of(
    content:dict, # Of `audit.json`
)->str: # Sentences
    "How to read the numbers"
    intervals = f'{100*content["settings"]["level"]:g} % intervals by bootstrap over clips'
    compared = 'CKA, drift, KL and neighbours kept compare the features before and after'
    if all(m['compares'] for m in content['measures'].values()): return f'{compared}, with {intervals}.'
    return f'Accuracies after fine-tuning, and their change in points with {intervals}. {compared}.'


def measure_table(
    r:dict, # A result of an audit
    measures:dict, # Of the audit
)->Table:
    "All measures of a task, before and after"
    rows = []
    for m, found in r['measures'].items():
        row = measures[m]
        change = Cell('–') if row['compares'] else value_cell(found['change'], row, '+')
        rows.append([_heading(row), value_cell(found['before'], row), value_cell(found['after'], row), change,
                     verdict(found, row), row['about']])
    columns = [Column('measure', False), *map(Column, ('before', 'after', 'change')), Column('', False),
               Column('what it is', False)]
    return Table(columns, rows, title=f'All measures on {r["task"]}')


def class_table(
    r:dict, # A result of an audit
    measures:dict, # Of the audit
)->Table: # Classes that lost most first
    "What became of each class"
    shown = [m for m in OF_CLASS if m in r['measures']]
    lead = shown[0]
    def lost(item): return item[1]['measures'][lead]['change']['value'] or 0
    rows = [[label, str(found['clips']), *(change_cell(found['measures'][m], measures[m]) for m in shown)]
            for label, found in sorted(r['classes'].items(), key=lost)]
    columns = [Column('class', False), Column('clips'), *(Column(_heading(measures[m])) for m in shown)]
    return Table(columns, rows, title=f'Classes of {r["task"]}')


def findings(
    r:dict, # A result of an audit
    measures:dict, # Of the audit
)->list[dict]: # what, verdict and text of each
    "The main changes in sentences"
    found = []
    for m in [m for m in MAIN if m in r['measures']][:3]:
        change = r['measures'][m]
        if measures[m]['compares']:
            text = f'{value_cell(change["after"], measures[m])}, {measures[m]["about"]}'
            found.append(dict(what=measures[m]['title'], verdict='', text=text))
            continue
        before, after = (value_cell(change[p], measures[m]).mean for p in ('before', 'after'))
        diff = value_cell(change['change'], measures[m], '+')
        found.append(dict(what=measures[m]['title'], verdict=verdict(change, measures[m]),
                          text=f'{before} % before, {after} % after: {diff} points'))
    flips = r['flips']
    if 'source_acc' in r['measures']:
        text = (f'{count_of(len(flips["lost"]), "clip")} of {r["clips"]} went from right to wrong, '
                f'{len(flips["gained"])} from wrong to right (old head)')
        found.append(dict(what='clips that flipped', verdict='', text=text))
    worst = _worst_classes(r)
    if worst: found.append(dict(what='classes that lost most', verdict='', text=worst))
    moved = {n:v['weight_distance'] for n, v in r['layers'].items() if v.get('weight_distance')}
    if moved:
        most = sorted(moved, key=lambda n: -moved[n])[:3]
        text = ', '.join(f'{n} ({moved[n]:.3f})' for n in most)
        found.append(dict(what='layers that moved most', verdict='', text=f'{text}, relative to their weights'))
    return found


def _worst_classes(r):
    changes = {c:v['measures']['source_acc']['change']['value'] for c, v in r['classes'].items()
               if 'source_acc' in v['measures']}
    worst = sorted((c for c in changes if (changes[c] or 0) < 0), key=lambda c: changes[c])[:3]
    return ', '.join(f'{c} ({100*changes[c]:+.1f})' for c in worst)
