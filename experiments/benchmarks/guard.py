"""Did a change make something slower? The working tree compared with a commit.

    python experiments/benchmarks/guard.py HEAD      # about 8 minutes on one CPU core
    python experiments/benchmarks/guard.py main~5 --only step,decode --rounds 9

To be run before a change lands that touches decoding, training steps, importance, reports or the start of commands.
The commit is checked out into a temporary folder. In each round two new processes, one with each version and in
alternating order, do the pieces of work in `guard_work.py` a few times; a piece counts with the least of its times.
`help` and `import` are new processes themselves. Times are seconds of the process on the CPU, which other work on the
machine disturbs less than the wall clock.

Prints for each piece the ratio of the working tree to the commit, a mean over rounds of its logarithm with a 95 % t
interval, and writes guard.json to --out. Exits with 1 if an interval lies above --fail-above, which speaks of a piece
that became slower by more than that."""
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastcore.script import call_parse
from measure import require_device, show, write

from sdfast.stats import mean_interval

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().with_name('guard_work.py')
PIECES = 'decode', 'first_pass', 'step', 'measure', 'fisher', 'report'
STARTS = dict(help=['-m', 'sdfast', '--help'], **{'import': ['-W', 'ignore', '-c', 'import sdfast.all']})


@contextmanager
def checked_out(commit):
    "A temporary folder with the files of a commit"
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)/'tree'
        added = _git('worktree', 'add', '--detach', str(tree), commit)
        if added.returncode: sys.exit(f'guard.py: {commit} cannot be checked out: {last_line(added.stderr)}')
        try: yield tree
        finally: _git('worktree', 'remove', '--force', str(tree))


def _git(*words): return subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)


def last_line(text): return (text.strip().splitlines() or ['no message'])[-1]


def run(words, tree, home):
    "Run Python with the package in `tree`; its output, and its seconds on the CPU"
    env = os.environ | dict(PYTHONPATH=str(tree), SDFAST_HOME=str(home), OMP_NUM_THREADS='1')
    before = os.times()
    done = subprocess.run([sys.executable, *words], env=env, cwd=home, capture_output=True, text=True)
    after = os.times()
    if done.returncode: sys.exit(f'guard.py: {" ".join(words)} failed: {last_line(done.stderr)}')
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, seconds


def one_round(tree, home, pieces, repeats):
    "Piece -> seconds"
    inside = [p for p in pieces if p in PIECES]
    found = {}
    if inside:
        out, _ = run([str(WORK), ','.join(inside), str(repeats)], tree, home)
        found |= json.loads(out.splitlines()[-1])
    for p in pieces:
        if p in STARTS: found[p] = min(run(STARTS[p], tree, home)[1] for _ in range(repeats))
    return found


@call_parse
def main(
    commit:str, # Commit to compare the working tree with
    only:str='', # Pieces, separated by commas; by default all
    rounds:int=7, # Rounds that count; one more is run before them
    repeats:int=3, # Repetitions in a process, of which the fastest counts
    fail_above:float=0., # Exit with 1 if an interval lies above this ratio, such as 1.05; 0: never
    device:str='cpu', # For uniformity with the other benchmarks
    out:str='runs/benchmarks', # Folder for guard.json
):
    "Ratios of the working tree's times to a commit's"
    require_device(device)
    known = [*PIECES, *STARTS]
    pieces = [p.strip() for p in only.split(',') if p.strip()] or known
    unknown = [p for p in pieces if p not in known]
    if unknown: sys.exit(f'guard.py: unknown piece {unknown[0]!r}; known are {", ".join(known)}')
    if rounds < 2: sys.exit(f'guard.py: an interval needs 2 rounds or more, not {rounds}')
    logs = {p:[] for p in pieces}
    seconds = {p:[] for p in pieces}
    with checked_out(commit) as before, tempfile.TemporaryDirectory() as home:
        for i in range(rounds + 1):
            trees = [ROOT, before] if i % 2 else [before, ROOT]
            found = {tree:one_round(tree, Path(home), pieces, repeats) for tree in trees}
            if i == 0: continue  # files are read from disk, and videos written
            for p in pieces:
                logs[p].append(np.log(found[ROOT][p]/found[before][p]))
                seconds[p].append((found[before][p], found[ROOT][p]))
    rows = []
    for p in pieces:
        interval = mean_interval(np.array(logs[p]))
        ratio, low, high = (float(np.exp(v)) for v in (interval.mean, interval.low, interval.high))
        then, now = np.median(seconds[p], 0)
        rows.append(dict(piece=p, commit=then, tree=now, ratio=ratio, low=low, high=high))
    name = _git('rev-parse', '--short', commit).stdout.strip()
    show(f'CPU seconds with {name} and with the working tree, and their ratio with its 95 % interval', rows)
    write(out, 'guard', device, commit=name, rounds=rounds, repeats=repeats, rows=rows)
    slower = [row['piece'] for row in rows if fail_above and row['low'] > fail_above]
    if slower: sys.exit(f'guard.py: slower than {fail_above:g} times: {", ".join(slower)}')
