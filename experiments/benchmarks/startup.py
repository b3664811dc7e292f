"""How long does it take to import sdfast, compared with fastai?

    python experiments/benchmarks/startup.py              # about three minutes on a quiet CPU core

Each import in a process of its own, in turns, after one round that does not count (files come from the disk there); seconds of the process on a CPU from the first line to the last, without
the interpreter's own start. Prints a table and writes startup.json to --out. Goal: `import sdfast` in at most 1.15 of `import fastai.vision.all`."""
import subprocess
import sys

import numpy as np
from fastcore.script import call_parse
from measure import need, ratio, show, write

CODE = 'import time; start = time.process_time(); import {}; print(time.process_time() - start)'
BASE = 'fastai.vision.all'


def seconds(module):
    "Of one import"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE.format(module)], capture_output=True, text=True)
    if done.returncode: sys.exit(f'startup.py: import {module} failed: {done.stderr.strip().splitlines()[-1]}')
    return float(done.stdout.split()[-1])


@call_parse
def main(
    rounds:int=7, # Of all imports
    modules:str='sdfast,sdfast.study,sdfast.strategies,sdfast.all', # To compare, by commas
    device:str='cpu', # As of the other benchmarks; nothing here runs on one
    out:str='runs/benchmarks', # Folder for startup.json
):
    "Seconds of imports, and ratios to fastai.vision.all"
    need(device)
    names = [BASE, *modules.split(',')]
    took = {n:np.array([]) for n in names}
    for i in range(rounds + 1):
        for n in names[i % len(names):] + names[:i % len(names)]:
            s = seconds(n)
            if i: took[n] = np.append(took[n], s)
    rows = [dict(module=n, median=float(np.median(t)), least=float(t.min()), **ratio(t, took[BASE])) for n, t in took.items()]
    show('seconds of the process for an import, and ratios to fastai.vision.all', rows)
    write(out, 'startup', device, rounds=rounds, rows=rows)
