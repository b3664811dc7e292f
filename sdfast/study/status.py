"The progress of a study, read from its folder only, so that it works in another terminal or on another machine."
import time
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import Damaged, InputError
from ..runtime import store
from ..runtime.resume import epochs_done
from .progress import run_cost, run_name

__all__ = ['snapshot', 'show_status']

DAY = 86400  # seconds


# ---- reading

def snapshot(
    out:str|Path, # Folder of the study
)->dict: # `command`, `total` number of runs, and `pieces`: a dict for each known run with `folder`, `run`, `result`...
    """Read what a study has done so far.

    Each piece has `folder`, `run` and `result` (`None` if not yet written), `owner` (the process that works on it, or
    ''), `epoch` (epochs done) and `state`: ok, failed, running, stopped or waiting. Raises `InputError` if there is no
    study."""
    out = Path(out)
    plan = _read(out/'plan.json')
    if plan is None and (out/'plan.json').exists():
        raise InputError(f'{out/"plan.json"} is damaged: the command of the study writes it again when it starts')
    if plan is None: raise InputError(f'{out} has no study: a study writes plan.json when it starts')
    return dict(command=plan['command'], total=plan['total'], pieces=[_look(out/f) for f in plan['folders']])


def _read(file):
    try: return store.read_json(file)
    except (FileNotFoundError, Damaged): return None


def _look(folder):
    "The state of one run"
    run, result = _read(folder/'run.json'), _read(folder/'result.json')
    owner = '' if result else store.owner(folder)
    epoch = epochs_done(folder) if run else 0
    return dict(folder=folder, run=run, result=result, owner=owner, state=_state(run, result, owner), epoch=epoch)


def _state(run, result, owner):
    if result: return 'ok' if result['status'] == 'ok' else 'failed'
    if owner: return 'running'
    return 'waiting' if run is None else 'stopped'


def time_left(pieces:list, total:int)->float:
    "Seconds left, from the pace of the finished runs; nan if none is finished or none is running"
    done = [p for p in pieces if p['result'] and p['run'] and p['result'].get('seconds')]
    running = sum(p['state'] == 'running' for p in pieces)
    if not done or not running: return float('nan')
    cost = sum(run_cost(p['run']) for p in done)
    pace = sum(p['result']['seconds'] for p in done)/cost  # seconds for an epoch
    begun = sum(run_cost(p['run']) - p['epoch'] for p in pieces if p['run'] and not p['result'])
    waiting = total - sum(p['run'] is not None for p in pieces)
    return (begun + waiting*cost/len(done))*pace/running


# ---- showing

def show_status(
    out:str|Path, # Folder of the study
)->Group: # For rich to print
    "Counts, time left, the best on valid so far, and a table of runs that are running, stopped or failed"
    s = snapshot(out)
    lines = [Text(s['command']), Text(_counts(s['pieces'], s['total']))]
    best = _best(s['pieces'])
    if best:
        name = run_name(best['run'])
        lines.append(Text(f'best on valid so far: {best["result"]["valid_acc1"]:.1%}, {name}'))
    shown = [p for p in s['pieces'] if p['state'] in ('running', 'stopped', 'failed')]
    if shown: lines.append(_table(shown))
    return Group(*lines)


def _counts(pieces, total):
    n = {state:sum(p['state'] == state for p in pieces) for state in ('ok', 'failed', 'running', 'stopped')}
    text = f'{n["ok"]} of {total} done, {n["running"]} running, {n["failed"]} failed'
    if n['stopped']: text += f', {n["stopped"]} stopped'
    left = time_left(pieces, total)
    return text if np.isnan(left) else f'{text}, about {_duration(left)} left'


def _duration(seconds):
    if seconds >= DAY: return f'{seconds/DAY:.1f} days'
    return time.strftime('%H:%M:%S', time.gmtime(seconds))


def _best(pieces):
    "The run with the best accuracy on valid, or `None`"
    measured = [p for p in pieces if p['state'] == 'ok' and p['result'].get('valid_acc1') is not None]
    return max(measured, key=lambda p: p['result']['valid_acc1'], default=None)


def _table(pieces):
    table = Table('run', 'epoch', 'state')
    for p in pieces:
        name = run_name(p['run']) if p['run'] else p['folder'].name
        epoch = f'{p["epoch"]}/{p["run"]["epochs"]}' if p['run'] and not p['result'] else ''
        table.add_row(Text(name), epoch, Text(_state_text(p)))
    return table


def _state_text(piece):
    if piece['state'] == 'running': return piece['owner']
    if piece['result']: return f'{piece["result"]["status"]}: {piece["result"]["error"]}'
    return 'stopped; the same command resumes it'
