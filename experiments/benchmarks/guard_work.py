"""The pieces of work that guard.py times, in one process: `guard_work.py PIECE,PIECE REPEATS` prints the least seconds
of each as JSON. It uses only what both versions of the package have; each piece first makes what it needs."""
import json
import os
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # else waiting threads count as work
warnings.filterwarnings('ignore')

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD

from sdfast.data.digits import write_video
from sdfast.data.task import Task
from sdfast.data.video import VideoFile
from sdfast.metrics.retention import Retention
from sdfast.models.encoders import create_model
from sdfast.report.write import write_report
from sdfast.strategies import SelfDistill, empirical_fisher

MOST = 5  # repetitions
ROWS = Path(__file__).resolve().parents[1]/'results'/'moving_digits'/'runs.csv'


def videos(folder, n, frames, shape):
    "Class folders of noisy videos with a square that moves; those of an earlier process are used again"
    if folder.exists(): return folder
    rng = np.random.default_rng(0)
    for i in range(n):
        clip = rng.integers(0, 60, (frames, *shape), np.uint8)
        for t in range(frames): clip[t, 10:40, t % shape[1]:t % shape[1] + 30] = 250
        file = folder/'ab'[i % 2]/f'{i}.mp4'
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, clip)
    return folder


def clips(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, 3, 40, 40, generator=g), torch.randint(0, 60, (n,), generator=g)


def batches(n, bs=32):
    x, y = clips(n)
    return list(zip(x.split(bs), y.split(bs)))


# ---- pieces: functions of a folder that return what is timed

def decode(folder):
    files = sorted(videos(Path('large'), 4, 96, (240, 320)).rglob('*.mp4'))
    def work():
        for file in files: VideoFile(file).read(range(0, 96, 2))
    return work


def first_pass(folder):
    # other files in each repetition, as those that were read are kept in memory
    tasks = iter([Task.from_folder(videos(Path(f'small_{i}'), 32, 24, (120, 160))) for i in range(MOST)])
    def work():
        for _ in next(tasks).dls(8, 1, 56, 4, train_only=True).train: pass
    return work


def step(folder):
    torch.manual_seed(0)
    net, data = create_model('tiny', 60), batches(256)
    def work():
        dls = DataLoaders(data, data[:1], device='cpu')
        learn = Learner(dls, net, CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), cbs=SelfDistill(10.))
        learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
        learn.logger = lambda *values: None
        learn.fit(1, .01)
    return work


def measure(folder):
    torch.manual_seed(0)
    net = create_model('tiny', 60)
    retention = Retention(net, batches(512), batches(512), barrier_at=())
    _ = retention.reference  # computed once
    return lambda: retention(net[0])


def fisher(folder):
    torch.manual_seed(0)
    net, data = create_model('tiny', 60), batches(64, 16)
    return lambda: empirical_fisher(net, data)


def report(folder):
    rows = pd.read_csv(ROWS, keep_default_na=True).fillna(dict(error='', strategy_args=''))
    return lambda: write_report(rows, folder)


def least(make, repeats):
    with tempfile.TemporaryDirectory() as folder:
        work, taken = make(Path(folder)), []
        for _ in range(repeats):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return min(taken)


if __name__ == '__main__':
    torch.set_num_threads(1)
    names, repeats = sys.argv[1].split(','), min(MOST, int(sys.argv[2]))
    print(json.dumps({name:least(globals()[name], repeats) for name in names}))
