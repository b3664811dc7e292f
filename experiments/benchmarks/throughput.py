"""How many clips a second does training take in, by precision and memory layout, eager or compiled?

    python experiments/benchmarks/throughput.py              # 1 minute on 2 CPU cores: the tiny net at 8x40x40
    python experiments/benchmarks/throughput.py --models r2plus1d,c3d,r2plus1d_18 --device cuda

Runs the same fit on a batch that is already on the device, plain and with self-distillation, in turns in one process,
which keeps freed memory on a CPU, as studies do: in float32 in PyTorch's default layout; in sdfast's layout (channels
last); that compiled (`encoder.compile()`, with which a teacher is compiled too); and on a GPU also in bf16 (fastai's
MixedPrecision), eager and compiled. Compilation, in rounds before the first, is timed separately. What loading adds,
and how long the device waits for clips, loader.py --model measures. On a GPU the peak memory is shown as well. Prints
a table a net and writes throughput.json to --out."""
import sys
import time
import warnings
from functools import partial

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastcore.script import call_parse
from measure import Timer, in_turns, set_device, write
from rich.console import Console
from rich.table import Table

from sdfast.models.encoders import create_model
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import SelfDistill

WAYS = {'float32, contiguous':'contiguous', 'float32':'', 'float32, compiled':'compiled',
        'bf16':'bf16', 'bf16, compiled':'bf16 compiled'}
STEPS = 4  # of a fit, so that the start of an epoch counts for little


def make_net(how, name, device):
    torch.manual_seed(0)
    net = create_model(name, 101).to(device)
    if 'contiguous' in how:
        net[0].body.to(memory_format=torch.contiguous_format)
        net[0].forward = lambda x: net[0].body(x.transpose(1, 2).contiguous())
    if 'compiled' in how: net[0].compile()
    return net


def fit(how, distil, name, batch, device, timer):
    "`(function that trains for STEPS batches and returns its seconds, list of its peak memories on a GPU)`"
    net = make_net(how, name, device)
    cbs = []
    if distil: cbs.append(SelfDistill(10.))
    if 'bf16' in how: cbs.append(MixedPrecision(amp_mode=AMPMode.BF16))
    dls = DataLoaders([batch]*STEPS, [batch], device=device)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), lr=.001, wd=0., cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda *a: None
    learn._do_epoch_validate = lambda *a, **k: None
    peaks = []

    def once():
        if device == 'cuda': torch.cuda.reset_peak_memory_stats()
        taken = timer.of(lambda: learn.fit(1))
        if device == 'cuda': peaks.append(torch.cuda.max_memory_allocated())
        return taken
    return once, peaks


def first_seconds(once):
    "Seconds of the first two fits: compilation, and in the second that of the renewed teacher"
    start = time.perf_counter()
    once()
    once()
    return time.perf_counter() - start


def median(values): return float(sorted(values)[len(values)//2])


def measure_net(name, names, batch, rounds, device, timer):
    "Way -> clips a second, plain and with self-distillation"
    made = {}
    for way in names:
        for distil in (False, True): made[way, distil] = fit(WAYS[way], distil, name, batch, device, timer)
    first = {k:first_seconds(once) for k, (once, _) in made.items()}
    taken = in_turns({k:once for k, (once, _) in made.items()}, rounds)
    clips = len(batch[0])*STEPS
    rows = {}
    for way in names:
        row = dict(first_seconds=first[way, False] + first[way, True])
        for distil, what in ((False, 'plain'), (True, 'self_distill')):
            seconds = taken[way, distil][:, 0]
            row[what] = clips/median(seconds)
            row[f'{what}_best'] = clips/float(seconds.min())
            peaks = made[way, distil][1]
            if peaks: row[f'{what}_peak_gb'] = max(peaks)/1e9
        row['ratio'] = median(taken[way, True][:, 0]/taken[way, False][:, 0])
        rows[way] = row
    return rows


def show_throughput(title, rows, device):
    table = Table(title=title)
    table.add_column('')
    columns = ['plain', 'self-distillation', 'time to plain', 'first rounds, s']
    if device == 'cuda': columns += ['peak GB, plain', 'with']
    for c in columns: table.add_column(c, justify='right')
    for way, r in rows.items():
        cells = [f'{r["plain"]:.1f}', f'{r["self_distill"]:.1f}', f'{r["ratio"]:.2f}', f'{r["first_seconds"]:.0f}']
        if device == 'cuda': cells += [f'{r["plain_peak_gb"]:.2f}', f'{r["self_distill_peak_gb"]:.2f}']
        table.add_row(way, *cells)
    Console().print(table)


def pick_ways(text, device):
    "The ways to measure; exits with one line if one is unknown or needs a GPU"
    available = [w for w in WAYS if device == 'cuda' or 'bf16' not in w]  # fastai's MixedPrecision is for GPUs
    if not text: return available
    names = [w.replace('+', ', ') for w in text.split(',')]
    unknown = [w for w in names if w not in available]
    if unknown:
        known = ', '.join(w.replace(', ', '+') for w in available)
        sys.exit(f'throughput.py: unknown way {unknown[0]!r} on {device}; known are {known}')
    return names


@call_parse
def main(
    models:str='tiny', # Nets, separated by commas
    ways:str='', # Ways, separated by commas, such as float32,bf16+compiled; by default all that the device has
    bs:int=0, # Clips in a batch; 0: 8 on a CPU, 24 on a GPU
    frames:int=0, # Frames in a clip; 0: 8 for tiny, else 16
    size:int=0, # Height and width; 0: 40 for tiny, else 112
    rounds:int=5, # Rounds of all ways
    threads:int=2, # Threads of torch
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for throughput.json
):
    "Clips a second trained on"
    set_device(device, threads)
    kept = device == 'cpu' and keep_freed_memory()
    names = pick_ways(ways, device)
    bs = bs or (8 if device == 'cpu' else 24)
    timer = Timer(device)
    found = {}
    for name in models.split(','):
        tiny = name == 'tiny'
        f = frames or (8 if tiny else 16)
        s = size or (40 if tiny else 112)
        g = torch.Generator().manual_seed(0)
        x = torch.randn(bs, f, 3, s, s, generator=g).to(device)
        y = torch.randint(0, 101, (bs,), generator=g).to(device)
        rows = measure_net(name, names, (x, y), rounds, device, timer)
        found[name] = dict(bs=bs, frames=f, size=s, rows=rows)
        title = f'{name}: clips a second in training, {bs} clips of {f}x{s}x{s}, {device}, {threads} threads'
        show_throughput(title, rows, device)
        write(out, 'throughput', device, threads=threads, rounds=rounds, kept_freed_memory=kept, models=found)
