"""How does the cost of bookkeeping grow with videos, and with runs?

    python experiments/benchmarks/scale.py              # 1e2 to 1e5 videos, 10 to 10,000 runs; about two minutes on a quiet CPU core
    python experiments/benchmarks/scale.py --quick      # up to 1e4 and 1,000, a quarter of a minute

No video is decoded and nothing is trained: files of no bytes stand for videos, up to 100 classes, and what `VideoFile` finds wrong with a file is taken to be nothing (opening each is what it
costs in addition, some milliseconds, in parallel). `build` reads a csv list with a group for each 25 videos and makes the fingerprint; `build alone` a list in which each video is its
own group; `split` holds out a valid part of each, `folder` finds class folders and splits off test. `collect` reads what four runs (two strategies, two seeds) answered on test videos of
source and target, with McNemar's test; `report` writes the page of it. For runs: a study as compare.py --path leaves it, twenty strategies with six seeds each, so with more runs each has
more strengths, 24 test videos; `status` is what status.py shows, `report` what make_report.py writes without figures as files.
Seconds of the process, the best of `rounds`; `growth` is the exponent by which they grew over the last step, 1 where ten times as much costs ten times as much. Prints a table and writes scale.json
to --out. Goals: linear; 1e5 videos in 10 s, 10,000 runs in 5 s, each row."""
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import numpy as np
import pandas as pd
from fastcore.script import call_parse, store_true
from measure import need, show, write
from rich.console import Console

from sdfast.data import datasets as datasets_module
from sdfast.data import task as task_module
from sdfast.metrics.columns import COLUMNS
from sdfast.report.page import html_page, write_page
from sdfast.report.results import load_results
from sdfast.report.summary import summary
from sdfast.runtime import store
from sdfast.strategies import STRATEGIES
from sdfast.study.config import Run
from sdfast.study.status import show_status

CLASSES = [f'class_{i:02}' for i in range(100)]


def answers(file, paths, labels, rng, classes):
    "Probabilities as a run writes them"
    probs = rng.dirichlet(np.ones(len(classes)), len(paths)).round(6)
    s = pd.DataFrame(probs, columns=classes)
    s.insert(0, 'path', paths)
    s.insert(1, 'label', labels)
    s.to_csv(file, index=False)


def study(folder, strategies, settings, seeds, paths, labels, classes):
    "A finished study: `settings` strengths of each strategy with every seed, answers of the chosen ones"
    rng, rows, folders = np.random.default_rng(0), [], []
    (folder/'source'/'src').mkdir(parents=True)
    answers(folder/'source'/'src'/'scores.csv', paths, labels, rng, classes)
    for s in strategies:
        for k in range(settings):
            for seed in range(seeds):
                graded = bool(STRATEGIES[s].lams)
                run = Run(strategy=s, lam=1. + k if graded else 0., lr=.05 if graded else .05/(1 + k), seed=seed, final=True)
                at, found = folder/'runs'/run.key, {m:float(rng.uniform(.4, .9)) for m in ('valid_acc1', 'acc1', 'acc5', 'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'cka', 'drift')}
                row = {c:None for c in COLUMNS} | {n:v for n, v in run.__dict__.items() if n in COLUMNS} | dict(key=run.key, anchor='0'*16, seconds=9., status='ok', error='', chosen=k == 0) | found
                at.mkdir(parents=True)
                files = {}
                if k == 0:
                    for name in ('scores.csv', 'source_scores.csv'): answers(at/name, paths, labels, rng, classes)
                    pd.DataFrame([dict(epoch=e, source_acc=.9 - .1*e, cka=1 - .1*e) for e in range(3)]).to_csv(at/'curve.csv', index=False)
                (at/'run.json').write_text(sealed(run.__dict__))
                (at/'result.json').write_text(sealed(row | dict(ended=0., files=files, versions=dict(sdfast='0', torch='2'), python='3', threads=1)))
                (at/'.lock').touch()
                rows.append(row)
                folders.append(f'runs/{run.key}')
    rows.append({c:None for c in COLUMNS} | dict(key='src', task=rows[0]['task'], source=rows[0]['source'], model='tiny', strategy='untouched', status='ok', error='', final=True, chosen=True, anchor='0'*16,
                                                 source_acc=.95, source_probe=.93, source_acc_bn=.9, source_knn=.9, cka=1., drift=0.))
    pd.DataFrame(rows).to_csv(folder/'runs.csv', index=False)
    (folder/'plan.json').write_text(sealed(dict(command='python experiments/compare.py', total=len(folders), folders=folders)))
    return len(rows) - 1


def sealed(d):
    "As `store.write_json` does, which waits for the disk"
    return json.dumps(d | dict(sha256=store._checksum(json.loads(json.dumps(d)))), indent=1)


def least(f, rounds):
    "`(seconds of the process, by the clock)`: the best round"
    took = []
    for _ in range(rounds):
        start = time.process_time(), time.perf_counter()
        f()
        took.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return min(took)


def of_videos(n, root, rounds):
    "Steps of a study of `n` videos"
    videos = root/'videos'
    classes = CLASSES[:n//10]
    per = n//len(classes)
    size = 25 if per >= 100 else 5
    rows = [(f'{c}/{c}_g{j//size:04}_c{j%size:02}.avi', c, 'train' if j < per*3//4 else 'test', f'{c}_g{j//size:04}') for c in classes for j in range(per)]
    for c in classes: (videos/c).mkdir(parents=True, exist_ok=True)
    for path, *_ in rows: (videos/path).touch()
    table = pd.DataFrame(rows, columns=['path', 'label', 'split', 'group'])
    table.to_csv(videos/'grouped.csv', index=False)
    table.drop(columns='group').to_csv(videos/'alone.csv', index=False)
    built = {name:datasets_module.csv(videos/f'{name}.csv') for name in ('grouped', 'alone')}
    steps = {'build': lambda: (datasets_module.csv(videos/'grouped.csv').fingerprint), 'build alone': lambda: datasets_module.csv(videos/'alone.csv').fingerprint,
             'split': lambda: built['grouped'].hold_out(), 'split alone': lambda: built['alone'].hold_out(), 'folder': lambda: datasets_module.folder(videos)}
    took = {k:least(f, rounds) for k, f in steps.items()}
    paths, labels = [str(videos/p) for p, *_ in rows], [c for _, c, *_ in rows]
    study(root/'out', ['finetune', 'self_distill'], 1, 2, paths, labels, classes)
    def collect():
        r, = load_results(root/'out')
        return r, (summary(r.rows, folder=r.folders), r.source, r.target)[0]
    took['collect'] = least(collect, rounds)
    took['report'] = least(lambda: html_page(*([x] for x in collect())), rounds)
    return took


def of_runs(n, root, rounds):
    "Seconds of `status` and `report` for `n` runs or a few less"
    seeds = min(6, n//2)
    names = ['finetune', *(s for s in STRATEGIES if s not in ('finetune', 'untouched'))][:min(20, n//seeds)]
    labels = [c for c in CLASSES[:8] for _ in range(3)]
    made = study(root/'out', names, max(1, n//(len(names)*seeds)), seeds, [f'{i}.avi' for i in range(24)], labels, CLASSES[:8])
    console = Console(file=open('/dev/null', 'w'))
    return made, {'status': least(lambda: console.print(show_status(root/'out')), rounds), 'report': least(lambda: write_page(root/'out', figures=False), rounds)}


@call_parse
def main(
    rounds:int=2, # Of each, the best counts
    device:str='cpu', # As of the other benchmarks; nothing here runs on one
    quick:store_true=False, # A tenth of it
    out:str='runs/benchmarks', # Folder for scale.json
):
    "Seconds against videos and runs"
    need(device)
    task_module._problem = lambda path: None
    rows = []
    for what, sizes in dict(videos=[100, 1000, 10_000, 100_000], runs=[10, 100, 1000, 10_000]).items():
        found = {}
        for n in sizes[:-1] if quick else sizes:
            root = Path(tempfile.mkdtemp(prefix='scale-'))
            try: n, took = (n, of_videos(n, root, rounds)) if what == 'videos' else of_runs(n, root, rounds)
            finally: shutil.rmtree(root)
            for k, t in took.items(): found.setdefault(k, []).append((n, *t))
        for k, points in found.items():
            growth = [float(np.log(b[1]/a[1])/np.log(b[0]/a[0])) for a, b in zip(points, points[1:])]
            for (n, cpu, wall), g in zip(points, [None, *growth]): rows.append({'': f'{what}: {k}', 'n': n, 's': cpu, 's, wall clock': wall, 'growth': g})
        show(f'{what}: seconds of the process', [r for r in rows if r[''].startswith(what)])
    write(out, 'scale', device, rounds=rounds, rows=rows)
