"""What does measuring retention during training cost?

    python experiments/benchmarks/retention_curve.py        # about 3 minutes on 2 CPU cores

Fine-tunes on the embedded task without and with `RetentionCurve`, in turns in one process. Prints the median epoch of
both, their ratio for each pair of fits, the share of an epoch spent in the callback, and what is paid once at the
start of a fit: in seconds of the process on the CPU, which other work on the machine hardly affects, or of the wall
clock with CUDA. Writes retention_curve.json to --out. Goals: a ratio below 1.10, a share below .10."""
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import numpy as np
import torch
from fastai.callback.core import Callback
from fastcore.script import call_parse
from measure import set_device

from sdfast.metrics.curve import RetentionCurve
from sdfast.study.config import Run
from sdfast.study.execute import train_run
from sdfast.study.source import load_source


class Clock(Callback):
    "Seconds before the first epoch, and of each epoch; starts before all other callbacks"
    order = -100
    def __init__(self, now): self.now = now

    def before_fit(self):
        self.start = self.now()
        self.setup = None
        self.epochs = []

    def before_epoch(self):
        now = self.now()
        if self.setup is None: self.setup = now - self.start
        self.since = now


class ClockEnd(Callback):
    "Ends an epoch after all other callbacks"
    order = 1000
    def after_epoch(self):
        clock = self.learn.clock
        clock.epochs.append(clock.now() - clock.since)


class TimedCurve(RetentionCurve):
    "Records how long each measurement takes"
    def after_train(self):
        start = self.learn.clock.now()
        super().after_train()
        self.taken.append(self.learn.clock.now() - start)


@call_parse
def main(
    fits:int=6, # Pairs of fits
    epochs:int=12, # Epochs of each
    threads:int=1, # Threads of torch
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for the source model and retention_curve.json
):
    "Time of an epoch with and without `RetentionCurve`"
    set_device(device, threads)
    run = Run(source_epochs=1, epochs=epochs)
    source = load_source(run, out)
    now = time.process_time if device == 'cpu' else time.perf_counter

    def fit(seed, cbs=()):
        "`(seconds of the median epoch, seconds before the first)`"
        clock = Clock(now)
        train_run(replace(run, seed=seed), source, cbs=[clock, ClockEnd(), *cbs])
        return np.median(clock.epochs), clock.setup

    fit(0, [RetentionCurve(source.retention)])  # warm-up: decodes the videos, which stay in memory
    rows = []
    for i in range(fits):
        source.retention._samples.clear()
        curve = TimedCurve(source.retention)
        curve.taken = []
        plain, plain_setup = fit(i)
        with_curve, curve_setup = fit(i, [curve])
        spent = np.median(curve.taken)
        row = dict(plain=plain, curve=with_curve, ratio=with_curve/plain, share=spent/(with_curve - spent),
                   once=curve_setup - plain_setup, clips=len(curve._sample[0]))
        rows.append(row)
        print(f'{i + 1}/{fits}: epoch {plain:.3f} s, with the curve {with_curve:.3f} s, ratio {row["ratio"]:.3f}, '
              f'{row["share"]:.1%} in the callback; once {row["once"]:.2f} s', flush=True)
    ratios = [r['ratio'] for r in rows]
    share = float(np.median([r['share'] for r in rows]))
    clips = rows[0]['clips']
    found = dict(ratio=float(np.median(ratios)), low=min(ratios), high=max(ratios), share=share, clips=clips,
                 threads=threads, device=device, torch=torch.__version__, rows=rows)
    (Path(out)/'retention_curve.json').write_text(json.dumps(found, indent=1))
    print(f'an epoch with RetentionCurve ({clips} clips) takes {found["ratio"]:.3f} times as long '
          f'[{found["low"]:.3f}, {found["high"]:.3f}]; the callback itself takes {share:.1%} of the rest')
