"""What do prepared copies give, and what do they cost in accuracy?

    python experiments/benchmarks/prepared.py csv:videos/manifest.csv --to copies        # after experiments/prepare.py ... --to copies

Decodes the same clips of 16 frames, stride 2, short side 112, one thread, from originals and from copies, in turns, and prints milliseconds (of the
processor) and how many times as many clips a second the copies give. Then a linear probe on frozen features of the middle clip of each video, from
originals and from copies: accuracy over --splits splits by group (or --by-clip), the same for both, with the paired difference and its 95 % t interval (splits share
videos, so that the interval is rather too narrow). Writes JSON to --out. The goal is at least 4 times."""
import os
import random
import sys
import time
import warnings
from dataclasses import asdict

warnings.filterwarnings('ignore', category=FutureWarning)

import numpy as np
import torch
from fastcore.script import call_parse
from measure import need, ratio, show, side_by_side, write
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.data.datasets import create_task
from sdfast.data.video import VideoFile
from sdfast.models.encoders import create_model, model_stats
from sdfast.models.features import extract
from sdfast.stats import mean_interval, paired_difference

FRAMES, STRIDE, SIZE = 16, 2, 112


def decode(jobs):
    for path, idx in jobs: VideoFile(path).read(idx, SIZE)


@call_parse
def main(
    task:str, # As for prepare.py
    to:str, # Folder with the copies
    model:str='mobilenetv2_100', # See `create_model`
    model_args:str='pad_type=same', # For its constructor
    init:str=None, # Its weights
    videos:int=40, # To measure the speed on
    rounds:int=15, # In each of which a clip of each of them is decoded both ways
    splits:int=20, # Of the probe
    by_clip:bool=False, # Split at random instead of by group: for sets whose classes cannot be told in new scenes, where by group both are at chance
    device:str='cpu', # Of the model: cpu or cuda
    out:str='runs/benchmarks', # Folder for prepared_NAME.json
    name:str='', # Of the JSON file
):
    "Clips a second from originals and copies, and the accuracy of a linear probe"
    need(device)
    torch.set_num_threads(1)
    tasks = {}
    for kind, place in dict(originals='', copies=to).items():
        os.environ['SDFAST_PREPARED'] = place
        create_task.cache_clear()
        tasks[kind] = create_task(task)
    if tasks['copies'].prepared is None: sys.exit(f'prepared.py: {to} has no copies of {task}; make them with experiments/prepare.py')
    rng, jobs = random.Random(0), {k:[] for k in tasks}
    for i in rng.sample(range(len(tasks['originals'].df)), min(videos, len(tasks['originals'].df))):
        n, start = VideoFile(tasks['originals'].df.path[i]).index.n, rng.random()
        idx = np.unique(np.minimum(int(start*(max(0, n - (FRAMES - 1)*STRIDE - 1) + 1)) + np.arange(FRAMES)*STRIDE, n - 1))
        for k, t in tasks.items(): jobs[k].append((t.df.path[i], idx))
    took = side_by_side({k:(lambda j=j: decode(j)) for k, j in jobs.items()}, rounds, clock=time.process_time)
    speed = [dict(source=k, ms_min=1e3*t.min()/len(jobs[k]), ms_median=1e3*np.median(t)/len(jobs[k]), **{f'{n}_more_clips':v for n, v in ratio(took['originals'], t).items()})
             for k, t in took.items()]
    show(f'{tasks["originals"].describe()}: {len(jobs["copies"])} clips, {rounds} rounds', speed)

    net, feats = create_model(model, 2, init, **dict(a.split('=', 1) for a in filter(None, model_args.split(','))))[0].to(device), {}
    for k, t in tasks.items():
        dls = t.dls(8, 4, SIZE, bs=8, stats=model_stats(model), device=torch.device(device))
        feats[k] = extract(net, t.dl(dls, 'train', 'valid', 'test'))
    x = {k:f[0].numpy() for k, f in feats.items()}
    y, group = feats['copies'][1].numpy(), np.arange(len(tasks['copies'].df)) if by_clip else tasks['copies'].df.group.values
    acc = {k:[] for k in x}
    for seed in range(splits):
        train, test = next(StratifiedGroupKFold(4, shuffle=True, random_state=seed).split(y, y, group))
        for k in x: acc[k].append(100*make_pipeline(StandardScaler(), LogisticRegression(C=.01, max_iter=2000)).fit(x[k][train], y[train]).score(x[k][test], y[test]))
    same = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*x.values())]))
    rows = {k:asdict(d) for k, d in dict(**{k:mean_interval(a) for k, a in acc.items()}, difference=paired_difference(acc['copies'], acc['originals'])).items()}
    show(f'accuracy of the probe in %, {splits} splits by {"clip" if by_clip else "group"}; features correlate by {same:.4f}', [dict(source=k, **r) for k, r in rows.items()])
    write(out, f'prepared_{name}' if name else 'prepared', device, task=tasks['originals'].describe(), frames=FRAMES, stride=STRIDE, size=SIZE, rounds=rounds, speed=speed,
          probe=dict(model=model, splits=splits, by='clip' if by_clip else 'group', accuracy=acc, summary=rows, feature_correlation=same))
