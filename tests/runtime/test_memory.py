"What a process does with the memory that it frees."
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sdfast.runtime.memory import CHOSEN, keep_freed_memory

ENV = {k:v for k, v in os.environ.items() if k not in CHOSEN}
GLIBC = pytest.mark.skipif(not (sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc'),
                           reason='how glibc keeps memory')

FAULTS = """
import ctypes, resource
import torch
from sdfast.runtime.memory import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: small pages, however this system is set up
print(keep_freed_memory() if {keep} else None)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def batch(): return sum(torch.ones(n).sum() for n in (20_000_000, 2_000_000, 200_000))  # 80, 8 and .8 MB
def new():
    before = faults()
    batch()
    return faults() - before
print(sorted(new() for _ in range(21))[10])  # the median: sometimes a small block is in the way of a large one
"""

HELD = """
import torch
from sdfast.runtime.memory import hand_back_memory, keep_freed_memory
def held(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS'))//1024
assert keep_freed_memory()
x = [torch.ones(250_000) for _ in range(300)]  # 300 MB
del x
kept = held()
hand_back_memory()
print(kept - held())
"""


def python(code, **env):
    "The words that a program prints"
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV | env,
                       cwd=Path(__file__).parents[2])
    assert p.returncode == 0, p.stderr
    return p.stdout.split()


@GLIBC
@pytest.mark.nightly
def test_freed_memory_is_kept_for_the_next_batch():
    "The kernel counts pages that are touched for the first time since it gave them, of 20,000 in a batch"
    kept, faults = python(FAULTS.format(keep=False))
    assert kept == 'None'
    assert int(faults) > 10_000
    kept, faults = python(FAULTS.format(keep=True))
    assert kept == 'True'
    assert int(faults) < 100


@GLIBC
def test_free_memory_is_handed_back():
    megabytes, = python(HELD)
    assert int(megabytes) > 250


@GLIBC
@pytest.mark.parametrize('chosen', [dict(MALLOC_TRIM_THRESHOLD_='131072'),
                                    dict(GLIBC_TUNABLES='glibc.malloc.trim_threshold=131072')])
def test_what_the_user_chose_for_glibc_stays(chosen):
    code = 'from sdfast.runtime.memory import keep_freed_memory; print(keep_freed_memory())'
    assert python(code) == ['True']
    assert python(code, **chosen) == ['False']


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert not keep_freed_memory()
