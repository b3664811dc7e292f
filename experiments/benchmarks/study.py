"""How long does the default comparison take from nothing, and what does one more strategy cost afterwards?

    python experiments/benchmarks/study.py              # about 6 minutes on 2 CPU cores
    python experiments/benchmarks/study.py --quick      # with compare.py's --quick, about 2 minutes

Runs compare.py in a process of its own with an empty cache and measures seconds of the wall clock. `source` are the
seconds of its source stage, from source.json; `runs` the sum of the seconds of all runs, divided by the number of
workers. Then runs the same command with one more strategy on the same study. `beyond` is what a command takes in
addition to source and runs. Prints both and writes study.json to --out.
Goals: 4 minutes; one more strategy costs only its training."""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastcore.script import call_parse, store_true
from measure import require_device, show, write

COMPARE = Path(__file__).resolve().parents[1]/'compare.py'
DEFAULT = 'self_distill,fixed_teacher,ema_teacher,l2sp,ewc'
MORE = 'mas'


def timed(study, cache, strategies, quick):
    "Run compare.py on the folder `study`; a row of the table"
    command = [sys.executable, COMPARE, '--out', study, '--strategies', strategies] + ['--quick']*quick
    start = time.time()
    done = subprocess.run(command, env=os.environ | dict(SDFAST_HOME=str(cache)), capture_output=True, text=True)
    seconds = time.time() - start
    if done.returncode: sys.exit(f'study.py: compare.py failed: {done.stderr.strip().splitlines()[-1]}')

    results = [json.loads(f.read_text()) for f in study.glob('runs/*/result.json')]
    results = [r for r in results if r['ended'] > start]
    workers = max(1, sum(f.stat().st_mtime > start for f in study.glob('workers/*submitted.pkl')))
    runs = sum(r['seconds'] for r in results)/workers
    source_file, = study.glob('source/*/source.json')
    trained = source_file.stat().st_mtime > start
    source = json.loads(source_file.read_text())['seconds'] if trained else 0.
    return dict(strategies=strategies, seconds=seconds, source=source, n_runs=len(results), runs=runs, workers=workers,
                beyond=seconds - source - runs)


@call_parse
def main(
    quick:store_true=False, # compare.py's
    study:str='', # New folder that keeps the study; by default a temporary one
    device:str='cpu', # For uniformity with the other benchmarks; compare.py uses a GPU where there is one
    out:str='runs/benchmarks', # Folder for study.json
):
    "Seconds of compare.py, and of one more strategy"
    require_device(device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(study or f'{temporary}/study')
        if folder.exists(): sys.exit(f'study.py: {folder} exists; only a study from nothing can be timed')
        rows = [timed(folder, f'{temporary}/cache', strategies, quick) for strategies in (DEFAULT, f'{DEFAULT},{MORE}')]
    show('compare.py, seconds', rows)
    write(out, 'study', device, quick=quick, rows=rows)
