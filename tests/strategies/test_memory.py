"What strategies add to the memory of training: the storages alive after each operation, against closed forms."
import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.optimizer import SGD
from helpers import learner
from torch import nn

from sdfast.models.surgery import frozen_copy
from sdfast.strategies import EWC, L2SP, EMATeacher, FixedTeacher, Importance, SelfDistill

SLACK = 50_000  # bytes: features, losses, what the recorder keeps


def _load_measure():
    "The module of the benchmarks that counts bytes"
    sys.path.insert(0, str(Path(__file__).parents[2]/'experiments'/'benchmarks'))
    try: return importlib.import_module('measure')
    finally: del sys.path[0]


peak_bytes = _load_measure().peak_bytes


def net(depth=8, width=8):
    "Convolutions that keep the size, so that all activations have the same size"
    torch.manual_seed(0)
    layers = []
    for i in range(depth):
        conv = nn.Conv2d(width if i else 1, width, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(encoder, nn.Linear(width, 3))


def wide(n=1000):
    "A net whose memory is nearly all weights"
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 16))
    return nn.Sequential(encoder, nn.Linear(16, 3))


def weights_of(m): return sum(t.numel()*t.element_size() for t in m.state_dict().values())


def train(make, cbs, size=32, bs=16, epochs=4):
    "Peak of bytes in a fit of one step an epoch: the model, gradients, momenta and all that the callbacks hold"
    batch = torch.randn(bs, 1, size, size), torch.zeros(bs, dtype=torch.long)
    def fit():
        model = make()
        dls = DataLoaders([batch], [batch], device='cpu')
        learn = learner(cbs(model), dls=dls, net=model, lr=.01, opt_func=partial(SGD, mom=.9))
        learn._do_epoch_validate = lambda *a, **k: None
        learn.fit(epochs)
    return peak_bytes(fit)


def test_the_counter_counts():
    def f():
        a = torch.zeros(1000, 250)  # a million bytes
        b = a + 1
        del a
        return b*2 + 1  # with b two more
    assert 3_000_000 <= peak_bytes(f) < 3_001_000
    assert peak_bytes(lambda: torch.zeros(1000)) < 5000
    old = torch.zeros(250_000)
    assert peak_bytes(lambda: old.view(500, 500).add_(1)) < 100  # what was there before does not count


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, EMATeacher])
@pytest.mark.parametrize('depth', [4, 16])
def test_a_teacher_adds_its_weights_and_one_activation_at_a_time(cls, depth):
    make, x = partial(net, depth), torch.randn(16, 1, 32, 32)
    activation, teacher = 16*8*32*32*4, frozen_copy(make()[0]).train()
    with torch.no_grad(): alone = peak_bytes(lambda: teacher(x))
    assert alone <= 2*activation + SLACK  # what a layer reads and what it writes, however deep the net
    plain = train(make, lambda m: [])
    assert plain > depth*activation  # the student keeps every activation
    assert train(make, lambda m: [cls(1.)]) <= plain + weights_of(teacher) + alone + SLACK


def l2sp(m): return L2SP(.1, which='all')


def ewc(m):
    parameters = {n:p.detach() for n, p in m[0].named_parameters()}
    importance = Importance({n:torch.ones_like(p) for n, p in parameters.items()},
                            {n:p.clone() for n, p in parameters.items()}, 1)
    return EWC(.1, importance)


class CountNodes(Callback):
    "Counts the nodes of the graph of a penalty's term"
    order = 6  # after penalties
    def __init__(self, counts): self.counts = counts

    def after_loss(self):
        penalty = next(cb for cb in self.learn.cbs if isinstance(cb, (L2SP, EWC)))
        todo, seen = [penalty.pull.grad_fn], set()
        while todo:
            f = todo.pop()
            if f is None or f in seen or type(f).__name__ == 'AccumulateGrad': continue
            seen.add(f)
            todo += [g for g, _ in f.next_functions]
        self.counts.append(len(seen))


@pytest.mark.parametrize('make_cb', [l2sp, ewc])
def test_a_weight_penalty_has_one_node_whatever_the_number_of_weights(make_cb):
    counts = []
    for depth in (4, 16): train(partial(net, depth), lambda m: [make_cb(m), CountNodes(counts)])
    assert set(counts) == {2}  # the penalty and its product with lam


@pytest.mark.parametrize('make_cb, held', [(l2sp, 1), (ewc, 2)])
def test_a_weight_penalty_adds_a_few_copies_of_the_weights(make_cb, held):
    "What it holds (anchors, importances), its gradient, that times lam, and its sum with the task's"
    plain, weights = train(wide, lambda m: [], 8), weights_of(wide()[0])
    assert train(wide, lambda m: [make_cb(m)], 8) <= plain + (held + 3)*weights + SLACK
