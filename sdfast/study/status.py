"How far a study is, from its folder alone: for another terminal, another machine, another day."
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



def _look(folder):
    "What is known of one piece of work"
    def read(name):
        try: return store.read_json(folder/name)
        except (FileNotFoundError, Damaged): return None
    run, result = read('run.json'), read('result.json')
    who = '' if result else store.owner(folder)
    state = 'waiting' if run is None and not who else ('ok' if result['status'] == 'ok' else 'failed') if result else 'running' if who else 'stopped'
    return dict(folder=folder, run=run, result=result, owner=who, state=state, epoch=epochs_done(folder) if run else 0)


def snapshot(
    out:str|Path, # Folder of the study
)->dict: # `command`, `total` pieces of work, and `pieces`: `folder`, `run`, `result`, `owner`, `epoch` and `state`, which is ok, failed, running, stopped or waiting
    "What a study has done and does. Raises `InputError` where there is none"
    out = Path(out)
    try: plan = store.read_json(out/'plan.json')
    except (FileNotFoundError, Damaged): raise InputError(f'{out} has no study: there is no plan.json, which a study writes when it starts') from None
    return dict(command=plan['command'], total=plan['total'], pieces=[_look(out/f) for f in plan['folders']])


def time_left(pieces:list, total:int)->float:
    "Seconds, by what the finished ones took and how many are at work now; nan if none has finished or none is at work"
    done = [(run_cost(p['run']), p['result']['seconds']) for p in pieces if p['result'] and p['run'] and p['result'].get('seconds')]
    at_work = sum(p['state'] == 'running' for p in pieces)
    if not done or not at_work: return float('nan')
    cost = np.sum([c for c, _ in done])
    each, pace = cost/len(done), np.sum([s for _, s in done])/cost
    left = sum(run_cost(p['run']) - p['epoch'] for p in pieces if p['run'] and not p['result']) + each*(total - sum(p['run'] is not None for p in pieces))
    return left*pace/at_work


def show_status(
    out:str|Path, # Folder of the study
)->Group: # For rich to print
    "Counts, what is at work, what failed, the time left and the best on valid so far"
    s = snapshot(out)
    pieces, total = s['pieces'], s['total']
    n = {k:sum(p['state'] == k for p in pieces) for k in ('ok', 'failed', 'running', 'stopped')}
    left = time_left(pieces, total)
    lines = [Text(s['command']), Text(f'{n["ok"]} of {total} done, {n["running"]} running, {n["failed"]} failed' + (f', {n["stopped"]} stopped in the middle' if n['stopped'] else '')
                                     + ('' if np.isnan(left) else f', about {time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left/86400:.1f} days"} left'))]
    best = max((p for p in pieces if p['state'] == 'ok' and p['result'].get('valid_acc1') is not None), key=lambda p: p['result']['valid_acc1'], default=None)
    if best: lines.append(Text(f'best on valid so far: {best["result"]["valid_acc1"]:.1%}, {run_name(best["run"])}'))
    if work := [p for p in pieces if p['state'] in ('running', 'stopped', 'failed')]:
        t = Table('run', 'epoch', 'state')
        for p in work:
            what = p['owner'] if p['state'] == 'running' else f'{p["result"]["status"]}: {p["result"]["error"]}' if p['result'] else 'stopped; the same command goes on from there'
            t.add_row(Text(run_name(p['run']) if p['run'] else p['folder'].name), f'{p["epoch"]}/{p["run"]["epochs"]}' if p['run'] and not p['result'] else '', Text(what))
        lines.append(t)
    return Group(*lines)
