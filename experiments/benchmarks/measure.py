"What the benchmarks share: timing ways to do the same thing in turns, peak memory, tables, and JSON files."
import json
import os
import platform
import shlex
import sys
import time
import weakref
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import fastai.torch_core
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

SHARED = Path(__file__).resolve().parents[3]/'shared'/'data'  # videos that some benchmarks read where they are present
PACKAGES = ('torch', 'fastai', 'av', 'decord', 'torchcodec')  # their versions are recorded


# ---- device

def script(): return Path(sys.argv[0]).name


def is_cuda(device): return device.startswith('cuda')


def require_device(device):
    "Exit with one line if this machine lacks the device"
    if is_cuda(device) and not torch.cuda.is_available(): sys.exit(f'{script()}: there is no CUDA device here')


def set_device(device, threads):
    "Make `device` fastai's default and set the number of torch's threads; to be called before a model is made"
    require_device(device)
    fastai.torch_core.defaults.use_cuda = device != 'cpu'
    torch.set_num_threads(threads)


def synchronize(device):
    if is_cuda(device): torch.cuda.synchronize()


# ---- time

class Timer:
    "Seconds of the wall clock and of this process on the CPU. Other work on the machine disturbs the latter less"
    def __init__(self, device): self.device = device

    def now(self):
        "Array `[wall, cpu]`"
        synchronize(self.device)
        return np.array([time.perf_counter(), time.process_time()])

    def of(self, f):
        "Seconds `[wall, cpu]` of a call of `f`"
        start = self.now()
        f()
        return self.now() - start


def in_turns(
    ways:dict, # Name -> function that returns the seconds it took: a number, or an array of `Timer`
    rounds:int, # Rounds that count; one more is run before them as warm-up
)->dict: # Name -> array of seconds, a row a round
    "Run all ways in each round, beginning with another one each time, since the load of the machine changes"
    names = list(ways)
    taken = {n:[] for n in names}
    for i in range(rounds + 1):
        first = i % len(names)
        for n in names[first:] + names[:first]:
            seconds = ways[n]()
            if i: taken[n].append(seconds)
    return {n:np.array(t) for n, t in taken.items()}


def side_by_side(
    ways:dict, # Name -> function that does one round
    rounds:int, # See `in_turns`
    device:str='cpu', # Synchronised at the end of a round
    clock:Callable=time.perf_counter, # Or `time.process_time`: seconds on the processor, whatever else the machine does
)->dict: # Name -> array of seconds, one a round
    "Time functions in turns by one clock"
    def timed(f):
        start = clock()
        f()
        synchronize(device)
        return clock() - start
    return in_turns({n:lambda f=f: timed(f) for n, f in ways.items()}, rounds)


def ratio(a, b)->dict:
    "Compare seconds of two ways: median and quartiles of the rounds' ratios, and the ratio of the fastest rounds"
    low, mid, high = np.percentile(a/b, [25, 50, 75])
    return dict(ratio=round(mid, 3), low=round(low, 3), high=round(high, 3), ratio_of_min=round(a.min()/b.min(), 3))


def summary(
    taken:dict, # From `in_turns` with a `Timer`: name -> array (rounds, 2)
    base:str, # Name of the way that the others are compared with
    device:str, # On a CPU processor seconds count, on a GPU those of the wall clock
)->dict: # Name -> least and median seconds, and their ratios to `base`
    "Summarise times of ways and compare them with one of them"
    column = 1 if device == 'cpu' else 0
    base_seconds = taken[base][:, column]
    rows = {}
    for name, t in taken.items():
        seconds = t[:, column]
        rows[name] = dict(min=seconds.min(), median=np.median(seconds), wall=np.median(t[:, 0]),
                          ratio_min=seconds.min()/base_seconds.min(), ratio=float(np.median(seconds/base_seconds)))
    return rows


# ---- memory

class LiveBytes(TorchDispatchMode):
    "Counts the bytes of storages that operations made and that are still alive: `now`, and the most at once, `peak`"
    def __init__(self):
        super().__init__()
        self.now = 0
        self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # views and results of in-place operations share a storage that existed before
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, torch.Tensor): self.seen.setdefault(t.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor): self.add(t.untyped_storage())
        return out

    def add(self, storage):
        if storage in self.seen: return
        n = storage.nbytes()
        self.seen[storage] = n
        self.now += n
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, n)

    def drop(self, n): self.now -= n


def peak_bytes(
    f:Callable, # Called once, without arguments
    device:str='cpu',
)->int: # Bytes of tensors made during the call; tensors from before do not count
    """Measure the peak memory of a call

    On a CPU it counts what operations return and what is kept of it, not what they need internally. On a GPU it
    reads CUDA's own counter."""
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live: f()
    return live.peak


# ---- output

def machine(device='cpu')->dict:
    "Describe the measurement: command, date, processor and its load, versions"
    args = [Path(a).name if os.path.isabs(a) else a for a in sys.argv[1:]]  # without folders of this machine
    command = shlex.join(['python', f'experiments/benchmarks/{script()}', *args])
    return dict(command=command, date=time.strftime('%F'), cpu=cpu_name(), cores=os.cpu_count(),
                load_average=round(os.getloadavg()[0], 1),
                device=torch.cuda.get_device_name() if is_cuda(device) else 'cpu', python=platform.python_version(),
                versions={n:version(n) for n in PACKAGES if find_spec(n)})


def cpu_name():
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [l.split(':')[1].strip() for l in lines if l.startswith('model name')]
    return names[0] if names and names[0] else platform.processor()


def print_table(table, width=160): Console(width=None if sys.stdout.isatty() else width).print(table)


def cell(value):
    if value is None: return ''
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def show(title, rows):
    "Print dictionaries with the same keys as a table"
    table = Table(title=title, title_justify='left')
    for name, value in rows[0].items(): table.add_column(name, justify='left' if isinstance(value, str) else 'right')
    for row in rows: table.add_row(*map(cell, row.values()))
    print_table(table)


def show_ratios(title, rows):
    "Print what `summary` returns"
    table = Table(title=title)
    table.add_column('')
    columns = ('s, least', 's, median', 's, wall clock', 'ratio of least', 'median ratio')
    for name in columns: table.add_column(name, justify='right')
    for name, r in rows.items():
        seconds = [f'{r[k]:.4f}' for k in ('min', 'median', 'wall')]
        ratios = [f'{r[k]:.3f}' for k in ('ratio_min', 'ratio')]
        table.add_row(name, *seconds, *ratios)
    print_table(table, 140)


def write(out, name, device, **found):
    "Write `out/name.json`: what was found, with the machine"
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(machine(device) | found, indent=1, default=float)
    (folder/f'{name}.json').write_text(text + '\n')
