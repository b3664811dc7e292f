"""How many clips a second does a training step take in, in which precision and layout, eager or compiled?

    python experiments/benchmarks/throughput.py                                    # 1 minute on 2 CPU cores: the tiny net at 8x40x40
    python experiments/benchmarks/throughput.py --models r2plus1d,c3d,r2plus1d_18 --device cuda

The same fit on a batch that is on the device already, plain and with self-distillation, in turns in one process, which keeps freed memory on a CPU, as studies do: in float32 in PyTorch's default layout, in
sdfast's (channels last), that compiled (`encoder.compile()`; a teacher is then compiled, too), and on a GPU that in bf16 (fastai's MixedPrecision), and both. Compiling,
in rounds before the first, is timed by itself. What loading adds, and how long the device waits for clips, is loader.py's --model to tell. On a GPU the peak memory
stands beside. Prints a table a net and writes throughput.json to --out."""
import sys
import time
import warnings
from functools import partial

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
from bench import Timer, in_turns, prepare, record
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastcore.script import call_parse
from rich.console import Console
from rich.table import Table

from sdfast.models.encoders import create_model
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import SelfDistill

WAYS = {'float32, contiguous':'contiguous', 'float32':'', 'float32, compiled':'compiled', 'bf16':'bf16', 'bf16, compiled':'bf16 compiled'}
STEPS = 4  # of a fit, so that an epoch's beginning weighs little


def fit(how, distil, name, batch, device, timer):
    "A function that trains for `STEPS` batches and returns its seconds"
    torch.manual_seed(0)
    net = create_model(name, 101).to(device)
    if 'contiguous' in how:
        net[0].body.to(memory_format=torch.contiguous_format)
        net[0].forward = lambda x: net[0].body(x.transpose(1, 2).contiguous())
    if 'compiled' in how: net[0].compile()
    cbs = [SelfDistill(10.)]*distil + [MixedPrecision(amp_mode=AMPMode.BF16)]*('bf16' in how)
    learn = Learner(DataLoaders([batch]*STEPS, [batch], device=device), net, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), lr=.001, wd=0., cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger, learn._do_epoch_validate = (lambda *a: None), lambda *a, **k: None
    peak = []

    def once():
        if device == 'cuda': torch.cuda.reset_peak_memory_stats()
        since = timer.now()
        learn.fit(1)
        taken = timer.now() - since
        if device == 'cuda': peak.append(torch.cuda.max_memory_allocated())
        return taken
    return once, peak


@call_parse
def main(
    models:str='tiny', # Nets, by commas
    ways:str='', # Which, by commas, such as float32,bf16+compiled; by default all that the device has
    bs:int=0, # Clips of a batch; 0: 8 on a CPU, 24 on a GPU
    frames:int=0, # Of a clip; 0: 8 for tiny, else 16
    size:int=0, # Height and width; 0: 40 for tiny, else 112
    rounds:int=5, # Of all ways
    threads:int=2, # Of torch
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for throughput.json
):
    "Clips a second trained on"
    prepare(device, threads)
    kept = device == 'cpu' and keep_freed_memory()
    there = [w for w in WAYS if device == 'cuda' or 'bf16' not in w]  # fastai's MixedPrecision is for GPUs
    names = [w.replace('+', ', ') for w in ways.split(',')] if ways else there
    if unknown := [w for w in names if w not in there]: sys.exit(f'throughput.py: there is no way {unknown[0]!r} on {device}; there are {", ".join(w.replace(", ", "+") for w in there)}')
    bs, timer, found = bs or (8 if device == 'cpu' else 24), Timer(device), {}
    for name in models.split(','):
        f, s = frames or (8 if name == 'tiny' else 16), size or (40 if name == 'tiny' else 112)
        g = torch.Generator().manual_seed(0)
        batch = torch.randn(bs, f, 3, s, s, generator=g).to(device), torch.randint(0, 101, (bs,), generator=g).to(device)
        made, first = {(w, d):fit(WAYS[w], d, name, batch, device, timer) for w in names for d in (False, True)}, {}
        for k, (once, _) in made.items():
            since = time.perf_counter()
            once(), once()  # the second epoch's teacher, too
            first[k] = time.perf_counter() - since
        taken = in_turns({k:once for k, (once, _) in made.items()}, rounds)
        rows = {}
        for w in names:
            rows[w] = row = dict(first_seconds=first[w, False] + first[w, True])
            for d, what in ((False, 'plain'), (True, 'self_distill')):
                t = taken[w, d][:, 0]
                row |= {what:bs*STEPS/float(sorted(t)[len(t)//2]), f'{what}_best':bs*STEPS/float(t.min())}
                if made[w, d][1]: row[f'{what}_peak_gb'] = max(made[w, d][1])/1e9
            row['ratio'] = float(sorted(taken[w, True][:, 0]/taken[w, False][:, 0])[rounds//2])
        found[name] = dict(bs=bs, frames=f, size=s, rows=rows)
        table = Table(title=f'{name}: clips a second in training, {bs} clips of {f}x{s}x{s}, {device}, {threads} threads')
        for c in ('', 'plain', 'self-distillation', 'time to plain', 'first rounds, s', *(['peak GB, plain', 'with'] if device == 'cuda' else [])): table.add_column(c, justify='right' if c else 'left')
        for w, r in rows.items():
            table.add_row(w, f'{r["plain"]:.1f}', f'{r["self_distill"]:.1f}', f'{r["ratio"]:.2f}', f'{r["first_seconds"]:.0f}', *([f'{r[f"{k}_peak_gb"]:.2f}' for k in ('plain', 'self_distill')] if device == 'cuda' else []))
        Console().print(table)
        record(out, 'throughput', dict(rounds=rounds, kept_freed_memory=kept, models=found), device)
