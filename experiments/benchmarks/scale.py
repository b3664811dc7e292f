"""How does the cost of bookkeeping grow with the number of videos, and of runs?

    python experiments/benchmarks/scale.py              # 1e2 to 1e5 videos, 10 to 10,000 runs; about two minutes
    python experiments/benchmarks/scale.py --quick      # up to 1e4 and 1,000, a quarter of a minute

No video is decoded and nothing is trained: empty files stand for videos, in up to 100 classes, and the check that
opens each video is skipped (it would add some milliseconds a video, in parallel).

Videos: `build` reads a csv list with a group for each 25 videos and computes the fingerprint, `build alone` a list in
which each video is its own group; `split` and `split alone` hold out a valid part of each; `folder` finds class
folders and splits off test. `collect` reads the answers of four runs (two strategies, two seeds) on test videos of
source and target, with McNemar's test; `report` writes their page.
Runs: a study as compare.py --all-strengths leaves it, twenty strategies with six seeds each, so that more runs mean
more strengths, with 24 test videos. `status` is what status.py shows, `report` what make_report.py writes, without
figures as files.

Measures seconds of the process, the best of `rounds`. `growth` is the exponent by which they grew over the last step:
1 where ten times more costs ten times more. Prints a table and writes scale.json to --out. Goals: linear; 1e5 videos
in 10 s, 10,000 runs in 5 s, each row."""
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import numpy as np
import pandas as pd
from fastcore.script import call_parse, store_true
from measure import require_device, show, write
from rich.console import Console

from sdfast.data import tables as tables_module
from sdfast.data.task import Task
from sdfast.metrics.columns import COLUMNS
from sdfast.report.load import load_results
from sdfast.report.page import html_page, write_page
from sdfast.report.summary import summary
from sdfast.runtime import store
from sdfast.strategies import STRATEGIES
from sdfast.study.config import Run
from sdfast.study.status import show_status

CLASSES = [f'class_{i:02}' for i in range(100)]
MEASURED = ('valid_acc1', 'acc1', 'acc5', 'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'cka', 'drift')
UNTOUCHED = dict(source_acc=.95, source_probe=.93, source_acc_bn=.9, source_knn=.9, cka=1., drift=0.)
N_VIDEOS = (100, 1000, 10_000, 100_000)
N_RUNS = (10, 100, 1000, 10_000)


# ---- a study that looks finished

def sealed(d):
    "JSON text as `store.write_json` writes it, which would wait for the disk"
    return json.dumps(d | dict(sha256=store._checksum(json.loads(json.dumps(d)))), indent=1)


def write_answers(file, paths, labels, rng, classes):
    "Probabilities on test videos as a run writes them"
    probs = rng.dirichlet(np.ones(len(classes)), len(paths)).round(6)
    answers = pd.DataFrame(probs, columns=classes)
    answers.insert(0, 'path', paths)
    answers.insert(1, 'label', labels)
    answers.to_csv(file, index=False)


def make_run(strategy, k, seed):
    "A run with the strength, or the learning rate, number `k` of its strategy"
    if STRATEGIES[strategy].lams: return Run(strategy=strategy, lam=1. + k, lr=.05, seed=seed, final=True)
    return Run(strategy=strategy, lam=0., lr=.05/(1 + k), seed=seed, final=True)


def write_run(folder, run, chosen, rng, paths, labels, classes):
    "Write a finished run, with answers if its strength was chosen; its row"
    at = folder/'runs'/run.key
    at.mkdir(parents=True)
    fields = {n:v for n, v in vars(run).items() if n in COLUMNS}
    found = {m:float(rng.uniform(.4, .9)) for m in MEASURED}
    ended = dict(key=run.key, anchor='0'*16, seconds=9., status='ok', error='', chosen=chosen)
    row = {c:None for c in COLUMNS} | fields | ended | found
    if chosen:
        for name in ('scores.csv', 'source_scores.csv'): write_answers(at/name, paths, labels, rng, classes)
        curve = [dict(epoch=e, source_acc=.9 - .1*e, cka=1 - .1*e) for e in range(3)]
        pd.DataFrame(curve).to_csv(at/'curve.csv', index=False)
    (at/'run.json').write_text(sealed(vars(run)))
    seal = dict(ended=0., files={}, versions=dict(sdfast='0', torch='2'), python='3', threads=1)
    (at/'result.json').write_text(sealed(row | seal))
    (at/'.lock').touch()
    return row


def write_study(folder, strategies, settings, seeds, paths, labels, classes):
    "Write a finished study, `settings` strengths of each strategy with every seed, and return the number of its runs"
    rng = np.random.default_rng(0)
    (folder/'source'/'src').mkdir(parents=True)
    write_answers(folder/'source'/'src'/'scores.csv', paths, labels, rng, classes)
    rows = []
    for strategy in strategies:
        for k in range(settings):
            for seed in range(seeds):
                run = make_run(strategy, k, seed)
                rows.append(write_run(folder, run, k == 0, rng, paths, labels, classes))
    untouched = dict(key='src', task=rows[0]['task'], source=rows[0]['source'], model='tiny', strategy='untouched',
                     status='ok', error='', final=True, chosen=True, anchor='0'*16)
    table = pd.DataFrame([*rows, {c:None for c in COLUMNS} | untouched | UNTOUCHED])
    table.to_csv(folder/'runs.csv', index=False)
    folders = [f'runs/{r["key"]}' for r in rows]
    plan = dict(command='python experiments/compare.py', total=len(folders), folders=folders)
    (folder/'plan.json').write_text(sealed(plan))
    return len(rows)


# ---- measurements

def least(f, rounds):
    "`(seconds of the process, seconds of the clock)` of the best round"
    taken = []
    for _ in range(rounds):
        cpu = time.process_time()
        wall = time.perf_counter()
        f()
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(taken)


def list_videos(n):
    "Rows `(path, label, split, group)` of `n` videos"
    classes = CLASSES[:n//10]
    per_class = n//len(classes)
    group_size = 25 if per_class >= 100 else 5
    rows = []
    for c in classes:
        for j in range(per_class):
            group = f'{j//group_size:04}'
            split = 'train' if j < per_class*3//4 else 'test'
            rows.append((f'{c}/{c}_g{group}_c{j % group_size:02}.avi', c, split, f'{c}_g{group}'))
    return rows


def write_videos(folder, rows):
    "Empty files, and csv lists with groups and without"
    for _, label, _, _ in rows: (folder/label).mkdir(parents=True, exist_ok=True)
    for path, *_ in rows: (folder/path).touch()
    table = pd.DataFrame(rows, columns=['path', 'label', 'split', 'group'])
    table.to_csv(folder/'grouped.csv', index=False)
    table.drop(columns='group').to_csv(folder/'alone.csv', index=False)


def measure_videos(n, root, rounds):
    "Seconds of each step of a study of `n` videos"
    videos = root/'videos'
    rows = list_videos(n)
    write_videos(videos, rows)
    built = {name:Task.from_csv(videos/f'{name}.csv') for name in ('grouped', 'alone')}
    steps = {'build': lambda: Task.from_csv(videos/'grouped.csv').fingerprint,
             'build alone': lambda: Task.from_csv(videos/'alone.csv').fingerprint,
             'split': lambda: built['grouped'].hold_out(),
             'split alone': lambda: built['alone'].hold_out(),
             'folder': lambda: Task.from_folder(videos)}
    taken = {k:least(f, rounds) for k, f in steps.items()}

    paths = [str(videos/path) for path, *_ in rows]
    labels = [label for _, label, *_ in rows]
    write_study(root/'out', ['finetune', 'self_distill'], 1, 2, paths, labels, list(dict.fromkeys(labels)))
    def collect():
        results, = load_results(root/'out')
        table = summary(results.rows, folder=results.folders)
        _ = results.source, results.target  # read the answers
        return results, table
    taken['collect'] = least(collect, rounds)
    taken['report'] = least(lambda: html_page(*([x] for x in collect())), rounds)
    return taken


def measure_runs(n, root, rounds):
    "`(runs, seconds of each step)` of a study of `n` runs or a few less"
    seeds = min(6, n//2)
    others = [s for s in STRATEGIES if s != 'finetune']
    names = ['finetune', *others][:min(20, n//seeds)]
    settings = max(1, n//(len(names)*seeds))
    classes = CLASSES[:8]
    labels = [c for c in classes for _ in range(3)]
    n = write_study(root/'out', names, settings, seeds, [f'{i}.avi' for i in range(24)], labels, classes)
    with open(os.devnull, 'w') as nowhere:
        console = Console(file=nowhere)
        status = least(lambda: console.print(show_status(root/'out')), rounds)
    report = least(lambda: write_page(root/'out', figures=False), rounds)
    return n, dict(status=status, report=report)


def growth_rows(what, points):
    "Rows of one step for each size, with the exponent of the growth since the size before"
    rows = []
    before = None
    for n, cpu, wall in points:
        growth = None if before is None else float(np.log(cpu/before[1])/np.log(n/before[0]))
        rows.append({'':what, 'n':n, 's':cpu, 's, wall clock':wall, 'growth':growth})
        before = n, cpu
    return rows


@call_parse
def main(
    rounds:int=2, # Rounds of each, the best counts
    device:str='cpu', # For uniformity with the other benchmarks; nothing runs on it
    quick:store_true=False, # A tenth of it
    out:str='runs/benchmarks', # Folder for scale.json
):
    "Seconds against videos and runs"
    require_device(device)
    tables_module._problem = lambda path: None
    rows = []
    for what, sizes in dict(videos=N_VIDEOS, runs=N_RUNS).items():
        found = {}
        for n in sizes[:-1] if quick else sizes:
            with tempfile.TemporaryDirectory(prefix='scale-') as folder:
                root = Path(folder)
                if what == 'videos': taken = measure_videos(n, root, rounds)
                else: n, taken = measure_runs(n, root, rounds)
            for step, seconds in taken.items(): found.setdefault(step, []).append((n, *seconds))
        new = [row for step, points in found.items() for row in growth_rows(f'{what}: {step}', points)]
        show(f'{what}: seconds of the process', new)
        rows += new
    write(out, 'scale', device, rounds=rounds, rows=rows)
