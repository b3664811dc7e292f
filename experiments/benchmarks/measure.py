"What the benchmarks share: rounds side by side, the machine, a table, a JSON file."
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

SHARED = Path(__file__).resolve().parents[3]/'shared'/'data'


def need(device):
    "Leave, if there is no such device"
    if device.startswith('cuda') and not torch.cuda.is_available(): sys.exit(f'{Path(sys.argv[0]).name}: there is no CUDA device here')


def machine(device='cpu')->dict:
    "Command, date, processor and how busy it was, versions"
    cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '') if os.path.exists('/proc/cpuinfo') else ''
    args = [Path(a).name if os.path.isabs(a) else a for a in sys.argv[1:]]  # no folders of the machine
    return dict(command=shlex.join(['python', f'experiments/benchmarks/{Path(sys.argv[0]).name}', *args]), date=time.strftime('%F'), cpu=cpu or platform.processor(),
                cores=os.cpu_count(), load_average=round(os.getloadavg()[0], 1), device=torch.cuda.get_device_name() if device.startswith('cuda') else 'cpu', python=platform.python_version(),
                versions={n:version(n) for n in ('torch', 'fastai', 'av', 'decord', 'torchcodec') if find_spec(n)})


def side_by_side(
    ways:dict, # Name to what does a round of it
    rounds:int,
    device:str='cpu', # Waited for at the end of a round
    clock=time.perf_counter, # Or `time.process_time`, the processor's seconds of one thread, whatever else the machine does
)->dict: # Name to an array of seconds, one a round
    "Each round does all ways, each time another one first, as what else the machine does changes; one round before is not counted"
    names, took = list(ways), {n:[] for n in ways}
    for i in range(rounds + 1):
        for n in names[i % len(names):] + names[:i % len(names)]:
            start = clock()
            ways[n]()
            if device.startswith('cuda'): torch.cuda.synchronize()
            if i: took[n].append(clock() - start)
    return {n:np.array(t) for n, t in took.items()}


def ratio(a, b)->dict:
    "Of two ways of `side_by_side`: median of the rounds' ratios with their quartiles, and the ratio of the fastest rounds"
    low, mid, high = np.percentile(a/b, [25, 50, 75])
    return dict(ratio=round(mid, 3), low=round(low, 3), high=round(high, 3), ratio_of_min=round(a.min()/b.min(), 3))


def show(title, rows):
    "Print dictionaries of one kind as a table"
    t = Table(title=title, title_justify='left')
    for c in rows[0]: t.add_column(c, justify='left' if isinstance(rows[0][c], str) else 'right')
    for r in rows: t.add_row(*('' if v is None else f'{v:.4g}' if isinstance(v, float) else str(v) for v in r.values()))
    Console(width=None if sys.stdout.isatty() else 160).print(t)


def write(out, name, device, **found):
    "`out/name.json`, with the machine"
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out)/f'{name}.json').write_text(json.dumps(machine(device) | found, indent=1, default=float) + '\n')
