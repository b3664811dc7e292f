"A study's folder written by hand, with names that would do harm on a page that does not escape them."
import json

import numpy as np
import pandas as pd

from sdfast.metrics.columns import COLUMNS
from sdfast.study.config import Run

EVIL = '<img src="https://example.invalid/x.png" onerror="document.title=\'owned\'">'
CLASSES = ['<script>document.title="owned"</script>', 'a&b "quoted" $x_1$', 'Übung 漢字', '_plain_ & %']
SETTINGS = dict(
    finetune=[(0., .05), (0., .025)], self_distill=[(1., .05), (10., .05)], l2sp=[(.1, .05), (1., .05)])
CHOSEN = dict(finetune=(0., .05), self_distill=(10., .05), l2sp=(.1, .05))


def write_scores(file, paths, labels, right, p):
    "Write probability `p` for a video's own class where `right`, else for the next class"
    probs = np.full((len(paths), len(CLASSES)), (1 - p)/(len(CLASSES) - 1))
    for row, label, is_right in zip(probs, labels, right):
        answer = label if is_right else (label + 1) % len(CLASSES)
        row[answer] = p
    scores = pd.DataFrame(probs, columns=CLASSES)
    scores.insert(0, 'path', paths)
    scores.insert(1, 'label', [CLASSES[label] for label in labels])
    scores.to_csv(file, index=False)


def make(folder, videos, seeds=3):
    "Write a study's folder as a study leaves it; what each run got right follows from strategy and seed"
    rng = np.random.default_rng(0)
    labels = [i % len(CLASSES) for i in range(len(videos))]
    before = folder/'source'/'src'
    before.mkdir(parents=True)
    write_scores(before/'scores.csv', videos, labels, [True]*len(videos), .9)
    rows = []
    for strategy, settings in SETTINGS.items():
        for lam, lr in settings:
            for seed in range(seeds):
                run = Run(task=EVIL, source='source & co', data='12-34', model='tiny', strategy=strategy, lam=lam,
                          lr=lr, seed=seed, epochs=3, final=True)
                rows.append(_make_run(folder/'runs'/run.key, run, videos, labels, rng))
    rows.append(dict.fromkeys(COLUMNS) | dict(
        key='src', task=EVIL, source='source & co', model='tiny', strategy='untouched', status='ok', error='',
        final=True, chosen=True, anchor='abc', source_acc=.95, source_probe=.93, cka_unbiased=1., drift=0.))
    pd.DataFrame(rows).to_csv(folder/'runs.csv', index=False)
    return folder


def _make_run(folder, run, videos, labels, rng):
    "Write a run's files; its row"
    versions = dict(versions=dict(sdfast='0.1.0', torch='2.9'), python='3.11', threads=1)
    folder.mkdir(parents=True)
    (folder/'run.json').write_text(json.dumps(run.__dict__))
    (folder/'result.json').write_text(json.dumps(versions))
    (folder/'log.txt').write_text(f'2026-01-01 10:00:00\n{run}\n{EVIL}')
    row = dict.fromkeys(COLUMNS) | {name: value for name, value in run.__dict__.items() if name in COLUMNS}
    row |= dict(key=run.key, anchor='abc', seconds=2., chosen=CHOSEN[run.strategy] == (run.lam, run.lr))
    if run.strategy == 'l2sp' and run.lam == 1. and run.seed == 1:
        return row | dict(status='failed', error=f'</script>{CLASSES[0]}')
    kept = dict(finetune=.4, self_distill=.7, l2sp=.5)[run.strategy] + .02*run.lam**.5
    row |= dict(status='ok', error='', valid_acc1=.9 + .001*run.seed, acc1=.9 + .01*rng.normal(),
                source_acc=kept + .01*rng.normal(), source_probe=kept + .1 + .01*rng.normal(), cka_unbiased=.9,
                drift=.2 + .01*run.seed)
    course = [_epoch(e, kept, run.seed) for e in range(run.epochs)]
    pd.DataFrame(course).to_csv(folder/'curve.csv', index=False)
    source_right = [not _is_forgotten(i, label, run) for i, label in enumerate(labels)]
    target_right = [not (run.strategy == 'l2sp' and label == 3) for label in labels]
    write_scores(folder/'source_scores.csv', videos, labels, source_right, .6)
    write_scores(folder/'scores.csv', videos, labels, target_right, .7)
    return row


def _epoch(e, kept, seed):
    drift = {f'layers.<b>{n}</b>.drift': .1*(n + 1)*(e + 1) + .01*seed for n in range(2)}
    return dict(epoch=e, source_acc=kept + .01*seed - .1*e, cka_unbiased=1 - .1*e) | drift


def _is_forgotten(i, label, run):
    "Finetune forgets the first class, and one video of the second in the first seed"
    return run.strategy == 'finetune' and (label == 0 or i == 1 and run.seed == 0)
