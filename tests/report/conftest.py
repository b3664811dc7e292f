"Rows of studies made by hand, and a study's folder with its page."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import numbered
from made_study import make

from sdfast.data.digits import write_video
from sdfast.metrics.columns import COLUMNS
from sdfast.report.page import write_page

KEPT = 'source_acc', 'source_probe', 'source_knn', 'cka_unbiased', 'drift', 'weight_distance'


def row(**values):
    "A row of runs.csv"
    return dict.fromkeys(COLUMNS) | values


@pytest.fixture
def rows():
    "Two strategies with four seeds, a trial and a final run each"
    rng, out = np.random.default_rng(0), []
    for strategy in ('finetune', 'self_distill'):
        gain = .3 if strategy == 'self_distill' else 0
        run = dict(strategy=strategy, lam=3., lr=.05, status='ok', seconds=1., valid_acc1=.5)
        for seed in range(4):
            measured = {m: rng.uniform(.4, .6) + gain for m in ('acc1', 'acc5', *KEPT)}
            out.append(row(**run, seed=seed, final=False))
            out.append(row(**run, seed=seed, final=True, **measured))
    before = dict(source_acc=.9, source_probe=.9, source_knn=.9, cka_unbiased=1., drift=0., weight_distance=0.)
    out.append(row(strategy='untouched', status='ok', final=True, **before))
    return pd.DataFrame(out)


@pytest.fixture
def path():
    """Six seeds; l2sp trades 2 points of source for 1 of target, linearly; lwf never learns enough; finetune has three
    learning rates"""
    rng, out = np.random.default_rng(0), []

    def add(strategy, seed, lam, lr, acc, kept, chosen, status='ok'):
        key = f'{strategy}{lam}{lr}{seed}'
        out.append(row(key=key, strategy=strategy, seed=seed, lam=lam, lr=lr, status=status, final=True, chosen=chosen,
                       seconds=1., acc1=acc, valid_acc1=acc, source_acc=kept, source_probe=kept))

    for seed in range(6):
        e, k = rng.normal(0, .002, 2)
        for lr, acc, kept in ((.05, .9, .80), (.025, .895, .81), (.0125, .86, .82)):
            add('finetune', seed, 0., lr, acc + e, kept + k, lr == .05)
        for lam, acc in ((1., .898), (2., .894), (3., .884), (4., .874)):
            add('l2sp', seed, lam, .05, acc + e, .80 + 2*(.9 - acc) + k + .001*(-1)**seed, lam == 2.)
        for lam in (1., 2.):
            add('lwf', seed, lam, .05, .7 + e, .85 + k, lam == 1., 'diverged' if lam == 2. and seed == 3 else 'ok')
    out.append(row(strategy='untouched', status='ok', final=True, chosen=True, source_acc=.9, source_probe=.9))
    return pd.DataFrame(out)


@pytest.fixture(scope='session')
def study(tmp_path_factory):
    "A study's folder with eight videos, of which one is missing and one is broken"
    root = tmp_path_factory.mktemp('study')
    videos = []
    for i in range(8):
        videos.append(str(root/f'v & <i>{i}.mp4'))
        write_video(videos[-1], numbered(12))
    Path(videos[0]).unlink()
    Path(videos[4]).write_bytes(b'no video')
    return make(root/'out', videos)


@pytest.fixture(scope='session')
def page(study): return write_page(study)
