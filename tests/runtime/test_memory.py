"What protection adds to the memory of training, by the storages that are alive after each operation, against closed forms and bare forward passes."
import importlib
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.optimizer import SGD
from helpers import learner, small_run
from torch import nn

from sdfast.models.surgery import frozen_copy
from sdfast.runtime import memory as memory_module
from sdfast.runtime.memory import CHOSEN, keep_freed_memory
from sdfast.strategies import EWC, L2SP, EMATeacher, FixedTeacher, Importance, SelfDistill
from sdfast.study import source as source_module

ENV = {k:v for k, v in os.environ.items() if k not in CHOSEN}
SLACK = 50_000  # bytes: features, losses, what the recorder keeps


def _bench():
    sys.path.insert(0, str(Path(__file__).parents[2]/'experiments'/'benchmarks'))
    try: return importlib.import_module('measure')
    finally: del sys.path[0]


peak_bytes = _bench().peak_bytes


def net(depth=8, width=8):
    "Convolutions that keep the size, so that each makes one activation as large as all others"
    torch.manual_seed(0)
    layers = [m for i in range(depth) for m in (nn.Conv2d(width if i else 1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))]
    return nn.Sequential(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(width, 3))


def wide(n=1000):
    "Nearly all of it weights"
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 16)), nn.Linear(16, 3))


def weights_of(m): return sum(t.numel()*t.element_size() for t in m.state_dict().values())


def train(make, cbs, size=32, bs=16, epochs=4):
    "Bytes at the peak of a fit of a step an epoch: the model, gradients, momenta and all that the callbacks hold"
    batch = torch.randn(bs, 1, size, size), torch.zeros(bs, dtype=torch.long)
    def fit():
        model = make()
        learn = learner(cbs(model), dls=DataLoaders([batch], [batch], device='cpu'), net=model, lr=.01, opt_func=partial(SGD, mom=.9))
        learn._do_epoch_validate = lambda *a, **k: None
        learn.fit(epochs)
    return peak_bytes(fit)


def test_the_counter_counts():
    def f():
        a = torch.zeros(1000, 250)  # a million bytes
        b = a + 1
        del a
        return b*2 + 1  # with b two more
    old = torch.zeros(250_000)
    assert peak_bytes(lambda: old.view(500, 500).add_(1)) < 100, 'what was there before'
    assert 3_000_000 <= peak_bytes(f) < 3_001_000 and peak_bytes(lambda: torch.zeros(1000)) < 5000


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
@pytest.mark.parametrize('depth', [4, 16])
def test_a_teacher_adds_its_weights_and_one_activation_at_a_time(cls, depth):
    make, x = partial(net, depth), torch.randn(16, 1, 32, 32)
    one, teacher = 16*8*32*32*4, frozen_copy(make()[0]).train()
    with torch.no_grad(): alone = peak_bytes(lambda: teacher(x))
    assert alone <= 2*one + SLACK, 'what a layer reads and what it writes, however deep the net'
    plain = train(make, lambda m: [])
    assert plain > depth*one, 'the student keeps every activation'
    assert train(make, lambda m: [cls(1.)]) <= plain + weights_of(teacher) + alone + SLACK


def ewc(m):
    names = dict(m[0].named_parameters())
    return EWC(.1, Importance({n:torch.ones_like(p).detach() for n, p in names.items()}, {n:p.detach().clone() for n, p in names.items()}, 1))


@pytest.mark.parametrize('make_cb, held', [(lambda m: L2SP(.1, which='all'), 1), (ewc, 2)])
def test_a_weight_penalty_keeps_no_graph_over_the_weights(make_cb, held):
    "One node whatever the number of weights; in bytes what it holds on to (anchors, importances), its gradient, that times lam, and its sum with the task's"
    found = []
    class Spy(Callback):
        order = 6
        def after_loss(self):
            todo, seen = [next(cb for cb in self.learn.cbs if isinstance(cb, (L2SP, EWC))).pull.grad_fn], set()
            while todo:
                f = todo.pop()
                if f is None or f in seen or type(f).__name__ == 'AccumulateGrad': continue
                seen.add(f)
                todo += [g for g, _ in f.next_functions]
            found.append(len(seen))
    train(partial(net, 4), lambda m: [make_cb(m), Spy()])
    train(partial(net, 16), lambda m: [make_cb(m), Spy()])
    assert set(found) == {2}, 'the penalty and its product with lam'
    whole = weights_of(wide()[0])
    assert train(wide, lambda m: [make_cb(m)], 8) <= train(wide, lambda m: [], 8) + (held + 3)*whole + SLACK


# --- what a process does with the memory it frees -----------------------------------------------------------------------

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
print(sorted(new() for _ in range(21))[10])  # the median: now and then a small block lies in the way of a large one
"""


def _faults(keep, **env):
    p = subprocess.run([sys.executable, '-c', FAULTS.format(keep=keep)], capture_output=True, text=True, env=ENV | env, cwd=Path(__file__).parents[2])
    assert p.returncode == 0, p.stderr
    kept, faults = p.stdout.split()
    return kept, float(faults)


GLIBC = pytest.mark.skipif(not (sys.platform == 'linux' and platform.libc_ver()[0] == 'glibc'), reason='how glibc keeps memory')


@GLIBC
def test_freed_memory_is_kept_for_the_next_batch():
    "Counted by the kernel: pages that were touched for the first time since the system gave them, of 20,000 in a batch. Without it each is new"
    assert (new := _faults(False))[0] == 'None' and new[1] > 10_000
    assert (kept := _faults(True))[0] == 'True' and kept[1] < 100


@GLIBC
def test_what_is_free_is_handed_back():
    code = """
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
    assert int(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV, cwd=Path(__file__).parents[2], check=True).stdout) > 250


@GLIBC
def test_what_the_user_chose_for_glibc_stays():
    assert _faults(True)[0] == 'True'
    assert _faults(True, MALLOC_TRIM_THRESHOLD_='131072')[0] == _faults(True, GLIBC_TUNABLES='glibc.malloc.trim_threshold=131072')[0] == 'False'


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'darwin')
    assert not keep_freed_memory()


@pytest.mark.parametrize('cuda', [False, True])
def test_studies_keep_memory_where_there_is_no_gpu(clips, tmp_path, monkeypatch, cuda):
    called = []
    monkeypatch.setattr(source_module, 'keep_freed_memory', lambda: called.append(1))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    source_module.load_source(small_run(clips, source=''), tmp_path)
    assert called == [1]*(not cuda)
