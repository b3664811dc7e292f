"What the benchmarks share: ways to do the same thing, timed in turns in one process, a table and a JSON file of their ratios."
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import torch
from measure import write
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def prepare(device, threads):
    "Before any model: errors where there is no such device"
    if device == 'cuda' and not torch.cuda.is_available(): sys.exit(f'{Path(sys.argv[0]).name}: there is no CUDA device here')
    import fastai.torch_core as core
    core.defaults.use_cuda = device != 'cpu'
    torch.set_num_threads(threads)


class Timer:
    "Seconds of the wall clock and of the process on the CPU, which other work on the machine moves less"
    def __init__(self, device): self.device = device
    def now(self):
        if self.device == 'cuda': torch.cuda.synchronize()
        return np.array([time.perf_counter(), time.process_time()])


class LiveBytes(TorchDispatchMode):
    "Counts inside the bytes of the storages that operations made and that are still alive: `now`, and the most at once, `peak`"
    def __init__(self):
        super().__init__()
        self.now, self.peak, self.seen = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for t in tree_leaves((args, kwargs)):  # views and what is changed in place share a storage that was there before
            if isinstance(t, torch.Tensor): self.seen.setdefault(t.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if not isinstance(t, torch.Tensor) or (s := t.untyped_storage()) in self.seen: continue
            self.seen[s] = n = s.nbytes()
            self.now += n
            self.peak = max(self.peak, self.now)
            weakref.finalize(s, self.drop, n)
        return out

    def drop(self, n): self.now -= n


def peak_bytes(
    f, # Called once, without arguments
    device:str='cpu',
)->int: # Of tensors made meanwhile; what there was before does not count
    "Most bytes at once: what operations return and what is kept of it on a CPU (not what they need inside), CUDA's own counter there"
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live: f()
    return live.peak


def in_turns(
    ways:dict, # Name -> function that returns `Timer` seconds `(wall, cpu)`
    rounds:int, # Of all ways, after one that does not count
)->dict: # Name -> array (rounds, 2)
    "Times of all ways, one after another, in another order in each round"
    taken, names = {n:[] for n in ways}, list(ways)
    for i in range(rounds + 1):
        for n in names[i % len(names):] + names[:i % len(names)]:
            t = ways[n]()
            if i: taken[n].append(t)
    return {n:np.array(t) for n, t in taken.items()}


def summary(taken:dict, base:str, device:str)->dict:
    "Of each way the least and median seconds and their ratios to `base`: of the process on a CPU, of the wall clock on a GPU"
    which = 1 if device == 'cpu' else 0
    of = {n:t[:, which] for n, t in taken.items()}
    return {n:dict(min=t.min(), median=np.median(t), wall=np.median(taken[n][:, 0]), ratio_min=t.min()/of[base].min(), ratio=float(np.median(t/of[base]))) for n, t in of.items()}


def show(title, rows):
    table = Table(title=title)
    for c in ('', 's, least', 's, median', 's, wall clock', 'ratio of least', 'median ratio'): table.add_column(c, justify='left' if not c else 'right')
    for n, r in rows.items(): table.add_row(n, f'{r["min"]:.4f}', f'{r["median"]:.4f}', f'{r["wall"]:.4f}', f'{r["ratio_min"]:.3f}', f'{r["ratio"]:.3f}')
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def record(out, name, found, device):
    "Write `found` with the command, the day and the machine"
    write(out, name, device, threads=torch.get_num_threads(), **found)
