"""What does watching retention during training cost?

    python experiments/benchmarks/retention_curve.py        # about 3 minutes on 2 CPU cores

Fine-tunes the embedded task without and with `RetentionCurve`, in turns in one process, and prints the median epoch of both, their
ratio for each pair of fits, the share of an epoch that passes in the callback itself, and what is paid once at the start of a fit: in seconds of the process on the CPU, which other work on the
machine hardly moves, or of the wall clock with CUDA. Writes JSON to --out. The goal is a ratio below 1.10, a share below .10."""
import json
import sys
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

from sdfast.metrics.curve import RetentionCurve
from sdfast.study.config import Run
from sdfast.study.execute import train_run
from sdfast.study.source import load_source


class Clock(Callback):
    "Seconds before the first epoch, and of each epoch"
    order = -100
    def __init__(self, now): self.now = now
    def before_fit(self): self.start, self.setup, self.epochs = self.now(), None, []
    def before_epoch(self):
        now = self.now()
        if self.setup is None: self.setup = now - self.start
        self.since = now


class TimedCurve(RetentionCurve):
    "Notes what each measurement takes"
    def after_train(self):
        start = self.learn.clock.now()
        super().after_train()
        self.taken.append(self.learn.clock.now() - start)


class ClockEnd(Callback):
    "Behind all others"
    order = 1000
    def after_epoch(self):
        clock = self.learn.clock
        clock.epochs.append(clock.now() - clock.since)


@call_parse
def main(
    fits:int=6, # Pairs of fits
    epochs:int=12, # Of each
    threads:int=1, # Of torch
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for the source model and retention_curve.json
):
    "Time of an epoch with and without `RetentionCurve`"
    if device == 'cuda' and not torch.cuda.is_available(): sys.exit('retention_curve.py: there is no CUDA device here')
    import fastai.torch_core as core
    core.defaults.use_cuda = device != 'cpu'
    torch.set_num_threads(threads)
    run = Run(source_epochs=1, epochs=epochs)
    source = load_source(run, out)

    def fit(seed, cbs=()):
        clock = Clock(time.process_time if device == 'cpu' else time.perf_counter)
        train_run(replace(run, seed=seed), source, cbs=[clock, ClockEnd(), *cbs])
        return np.median(clock.epochs), clock.setup
    fit(0, [RetentionCurve(source.retention)])  # decodes, and fills what is kept in memory
    rows = []
    for i in range(fits):
        source.retention._samples.clear()
        curve = TimedCurve(source.retention)
        curve.taken = []
        plain, with_curve = fit(i), fit(i, [curve])
        rows.append(dict(plain=plain[0], curve=with_curve[0], ratio=with_curve[0]/plain[0], share=np.median(curve.taken)/(with_curve[0] - np.median(curve.taken)), once=with_curve[1] - plain[1], clips=len(curve._sample[0])))
        print(f'{i + 1}/{fits}: epoch {plain[0]:.3f} s, with the curve {with_curve[0]:.3f} s, ratio {rows[-1]["ratio"]:.3f}, {rows[-1]["share"]:.1%} in the callback; once {rows[-1]["once"]:.2f} s', flush=True)
    ratios, share = [r['ratio'] for r in rows], float(np.median([r['share'] for r in rows]))
    found = dict(ratio=float(np.median(ratios)), low=min(ratios), high=max(ratios), share=share, clips=rows[0]['clips'], threads=threads, device=device, torch=torch.__version__, rows=rows)
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out)/'retention_curve.json').write_text(json.dumps(found, indent=1))
    print(f'an epoch with RetentionCurve ({found["clips"]} clips) takes {found["ratio"]:.3f} times as long [{min(ratios):.3f}, {max(ratios):.3f}]; the callback itself takes {share:.1%} of what is left')
