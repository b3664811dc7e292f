"""How long does the default comparison take from nothing, and what does one more strategy cost afterwards?

    python experiments/benchmarks/study.py              # about 6 minutes on 2 CPU cores
    python experiments/benchmarks/study.py --quick      # with compare.py's --quick, about 2 minutes

compare.py in a process of its own, with nothing in its cache: seconds of the wall clock, of which `source` is its source stage as source.json has it, and `runs` what the runs say they took,
added up and dealt out to the workers. Then the same command with one strategy more, on the same study: what it takes beyond its own runs is `beyond`. Prints both and writes study.json to --out.
Goals: 4 minutes; one more strategy costs its training only."""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fastcore.script import call_parse, store_true
from measure import show, write

COMPARE = Path(__file__).resolve().parents[1]/'compare.py'
DEFAULT, MORE = 'self_distill,fixed_teacher,ema_teacher,l2sp,ewc', 'mas'


def timed(study, cache, *args):
    "One invocation of compare.py on `study`, as a row"
    start = time.time()
    done = subprocess.run([sys.executable, COMPARE, '--out', study, *args], env=os.environ | dict(SDFAST_HOME=str(cache)), capture_output=True, text=True)
    seconds = time.time() - start
    if done.returncode: sys.exit(f'study.py: compare.py failed: {done.stderr.strip().splitlines()[-1]}')
    results = [d for f in study.glob('runs/*/result.json') if (d := json.loads(f.read_text()))['ended'] > start]
    workers = max(1, sum(f.stat().st_mtime > start for f in study.glob('workers/*submitted.pkl')))
    source, = study.glob('source/*/source.json')
    row = dict(strategies=args[1], seconds=seconds, source=json.loads(source.read_text())['seconds']*(source.stat().st_mtime > start), n_runs=len(results),
               runs=sum(d['seconds'] for d in results)/workers, workers=workers)
    return row | dict(beyond=seconds - row['source'] - row['runs'])


@call_parse
def main(
    quick:store_true=False, # compare.py's
    study:str='', # New folder that keeps the study; by default a temporary one
    device:str='cpu', # As of the other benchmarks; compare.py takes a GPU where there is one
    out:str='runs/benchmarks', # Folder for study.json
):
    "Seconds of compare.py, and of one more strategy"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(study or f'{folder}/study')
        if place.exists(): sys.exit(f'study.py: {place} exists; the time of a study that is begun says nothing')
        rows = [timed(place, f'{folder}/cache', '--strategies', s, *['--quick']*quick) for s in (DEFAULT, f'{DEFAULT},{MORE}')]
    show('compare.py, seconds', rows)
    write(out, 'study', device, quick=quick, rows=rows)
