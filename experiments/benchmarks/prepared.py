"""How much faster are prepared copies, and what do they cost in accuracy?

    python experiments/prepare.py csv:videos/manifest.csv --to copies
    python experiments/benchmarks/prepared.py csv:videos/manifest.csv copies

Decodes the same clips of 16 frames, stride 2, short side 112, with one thread, from originals and from copies in
turns. Prints milliseconds of the processor, and how many times more clips a second the copies give. Then fits a
linear probe on frozen features of the middle clip of each video, from originals and from copies, and compares
accuracies over --splits splits by group (or --by-clip): the same splits for both, with the paired difference and its
95 % t interval, which is rather too narrow, since splits share videos. Writes prepared_NAME.json to --out. Goal: at
least 4 times."""
import os
import random
import sys
import time
import warnings
from dataclasses import asdict

warnings.filterwarnings('ignore', category=FutureWarning)

import numpy as np
import torch
from fastcore.script import call_parse, store_true
from measure import ratio, require_device, show, side_by_side, write
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.data.datasets import create_task
from sdfast.data.video import VideoFile
from sdfast.models.encoders import create_model, model_stats
from sdfast.models.features import extract
from sdfast.stats import mean_interval, paired_difference

FRAMES = 16
STRIDE = 2
SIZE = 112
SPAN = (FRAMES - 1)*STRIDE  # from the first frame of a clip to the last


def load_tasks(spec, copies):
    "The task with its original videos, and with the copies in the folder `copies`"
    tasks = {}
    for kind, folder in dict(originals='', copies=copies).items():
        os.environ['SDFAST_PREPARED'] = folder
        create_task.cache_clear()
        tasks[kind] = create_task(spec)
    if tasks['copies'].prepared is None:
        sys.exit(f'prepared.py: {copies} has no copies of {spec}; make them with experiments/prepare.py')
    return tasks


def draw_clips(tasks, videos):
    "Kind of file -> `(path, frame numbers)` of one random clip of each of some videos"
    rng = random.Random(0)
    originals = tasks['originals'].df
    jobs = {kind:[] for kind in tasks}
    for i in rng.sample(range(len(originals)), min(videos, len(originals))):
        n = VideoFile(originals.path[i]).index.n
        start = int(rng.random()*(max(0, n - SPAN - 1) + 1))
        idx = np.unique(np.minimum(start + np.arange(FRAMES)*STRIDE, n - 1))
        for kind, task in tasks.items(): jobs[kind].append((task.df.path[i], idx))
    return jobs


def decode(jobs):
    for path, idx in jobs: VideoFile(path).read(idx, SIZE)


def measure_speed(tasks, videos, rounds):
    "A row for originals and for copies"
    jobs = draw_clips(tasks, videos)
    n = len(jobs['copies'])
    taken = side_by_side({kind:lambda j=j: decode(j) for kind, j in jobs.items()}, rounds, clock=time.process_time)
    rows = []
    for kind, seconds in taken.items():
        faster = {f'{k}_more_clips':v for k, v in ratio(taken['originals'], seconds).items()}
        rows.append(dict(source=kind, ms_min=1e3*seconds.min()/n, ms_median=1e3*np.median(seconds)/n, **faster))
    show(f'{tasks["originals"].describe()}: {n} clips, {rounds} rounds', rows)
    return rows


def extract_features(tasks, model, model_args, init, device):
    "`(kind of file -> features, labels)` of the middle clips of all videos"
    options = dict(a.split('=', 1) for a in model_args.split(',') if a)
    encoder = create_model(model, 2, init, **options)[0].to(device)
    features = {}
    for kind, task in tasks.items():
        dls = task.dls(8, 4, SIZE, bs=8, stats=model_stats(model), device=torch.device(device))
        x, y = extract(encoder, task.dl(dls, 'train', 'valid', 'test'))
        features[kind] = x.numpy()
    return features, y.numpy()


def probe_accuracies(features, y, group, splits):
    "Kind of file -> accuracy in % of a linear probe on each split"
    accuracies = {kind:[] for kind in features}
    for seed in range(splits):
        folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        train, test = next(folds.split(y, y, group))
        for kind, x in features.items():
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=.01, max_iter=2000))
            probe.fit(x[train], y[train])
            accuracies[kind].append(100*probe.score(x[test], y[test]))
    return accuracies


def correlation(a, b):
    "Mean correlation of two features of the same videos"
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)]))


@call_parse
def main(
    task:str, # As for prepare.py
    to:str, # Folder with the copies
    model:str='mobilenetv2_100', # See `create_model`
    model_args:str='pad_type=same', # For its constructor
    init:str=None, # Its weights
    videos:int=40, # Videos to measure the speed on
    rounds:int=15, # Rounds, in each of which a clip of each video is decoded both ways
    splits:int=20, # Splits of the probe
    by_clip:store_true=False, # Split at random instead of by group: for sets where by group both are at chance
    device:str='cpu', # Device of the model: cpu or cuda
    out:str='runs/benchmarks', # Folder for prepared_NAME.json
    name:str='', # NAME of the JSON file
):
    "Clips a second from originals and copies, and the accuracy of a linear probe"
    require_device(device)
    torch.set_num_threads(1)
    tasks = load_tasks(task, to)
    speed = measure_speed(tasks, videos, rounds)

    features, y = extract_features(tasks, model, model_args, init, device)
    copies = tasks['copies'].df
    group = np.arange(len(copies)) if by_clip else copies.group.values
    accuracies = probe_accuracies(features, y, group, splits)
    same = correlation(features['originals'], features['copies'])
    intervals = {kind:mean_interval(a) for kind, a in accuracies.items()}
    intervals['difference'] = paired_difference(accuracies['copies'], accuracies['originals'])
    rows = {kind:asdict(d) for kind, d in intervals.items()}
    by = 'clip' if by_clip else 'group'
    show(f'accuracy of the probe in %, {splits} splits by {by}; features correlate by {same:.4f}',
         [dict(source=k, **r) for k, r in rows.items()])
    settings = dict(task=tasks['originals'].describe(), frames=FRAMES, stride=STRIDE, size=SIZE, rounds=rounds)
    probe = dict(model=model, splits=splits, by=by, accuracy=accuracies, summary=rows, feature_correlation=same)
    write(out, f'prepared_{name}' if name else 'prepared', device, **settings, speed=speed, probe=probe)
