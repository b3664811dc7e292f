"""How long does it take to import sdfast, compared with fastai?

    python experiments/benchmarks/startup.py              # about three minutes on a quiet CPU core

Each import runs in a process of its own, in turns, after a warm-up round that reads the files from disk. Measures the
seconds of the process on the CPU from the first line to the last, without the start of the interpreter. Prints a
table and writes startup.json to --out.
Goal: `import sdfast` takes at most 1.15 times as long as `import fastai.vision.all`."""
import subprocess
import sys

import numpy as np
from fastcore.script import call_parse
from measure import in_turns, ratio, require_device, show, write

CODE = 'import time; start = time.process_time(); import {}; print(time.process_time() - start)'
BASE = 'fastai.vision.all'


def import_seconds(module):
    "Seconds of one import in a new process"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', CODE.format(module)], capture_output=True, text=True)
    if done.returncode: sys.exit(f'startup.py: import {module} failed: {done.stderr.strip().splitlines()[-1]}')
    return float(done.stdout.split()[-1])


@call_parse
def main(
    rounds:int=7, # Rounds of all imports
    modules:str='sdfast,sdfast.study,sdfast.strategies,sdfast.all', # Modules to compare, separated by commas
    device:str='cpu', # For uniformity with the other benchmarks; nothing runs on it
    out:str='runs/benchmarks', # Folder for startup.json
):
    "Seconds of imports, and ratios to fastai.vision.all"
    require_device(device)
    names = [BASE, *modules.split(',')]
    taken = in_turns({n:lambda n=n: import_seconds(n) for n in names}, rounds)
    rows = []
    for name, seconds in taken.items():
        median = float(np.median(seconds))
        rows.append(dict(module=name, median=median, least=float(seconds.min()), **ratio(seconds, taken[BASE])))
    show('seconds of the process for an import, and ratios to fastai.vision.all', rows)
    write(out, 'startup', device, rounds=rounds, rows=rows)
