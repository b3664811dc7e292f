"Two gloo processes that train together through fastai's `distrib_ctx`, with each strategy, equal one process."
import os
import socket
from importlib.util import find_spec

import fastai.distributed  # noqa: F401 (patches `distrib_ctx` into `Learner`)
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from fastai.metrics import accuracy
from helpers import Net, Source, learner, model
from torch import nn

from sdfast.runtime.distributed import join_processes
from sdfast.strategies import BSS, R3F, STRATEGIES, bss, fisher_information
from sdfast.study.fit import Seeded, train_together


class HalvesBSS(BSS):
    "A spectrum is a property of each process's batch: here of either half of one process's, dealt out as to two"
    def term(self): return sum(bss(self.calls()[0][2][i::2], self.k) for i in range(2))/2


class SineR3F(R3F):
    "Noise that is a function of the pixels: drawn, it would be another for the same image in another process"
    def noisy(self, x): return x + .1*(1000*x).sin()


class Smooth(Net):
    "Without a kink, at which the last bit of a sum would decide"
    def forward(self, x): return self.out(self.drop(nn.functional.softplus(self.bn(self.conv(x)))).flatten(1))


def net(name=''):
    m = model()
    m[0].__class__ = Smooth
    # batch norm itself depends on which images share a process, unless it is frozen
    if name not in ('frozen_bn', 'linear_probe', 'lora', 'stoch_norm'): m[0].bn = nn.GroupNorm(2, 4)
    return m.double()


def loaders(rank, world, n=48, bs=16):
    """Loaders of all items, shuffled for training, with each process's share of a batch.

    The valid part is no whole number of batches."""
    g = torch.Generator().manual_seed(0)
    # double: training magnifies what a sum's order rounds, in single precision up to any tolerance that still sees a
    # mistake
    items = list(zip(torch.randn(n, 1, 6, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)))
    sets = Datasets(items, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(11)])
    return DataLoaders(TfmdDL(sets.train, bs=bs//world, num_workers=0, shuffle=True, drop_last=True),
                       TfmdDL(sets.valid, bs=8//world, num_workers=0), device='cpu')


def train(name, rank=0, world=1):
    m = net(name)
    source = Source(m)
    source.batches, source.head = loaders(0, 1).valid, source.head.double()
    if name == 'r3f': cbs = [SineR3F(.5)]
    elif name == 'bss' and world == 1: cbs = [HalvesBSS(.5)]
    else: cbs = STRATEGIES[name].callbacks(.5, source)
    learn = learner([*cbs, Seeded(3)], dls=loaders(rank, world), net=m, metrics=accuracy)
    with train_together(learn): learn.fit(3)
    return [p.detach() for p in learn.model.parameters()] + [torch.tensor(learn.recorder.values[-1][2])]


# stochastic normalisation is by the statistics of a process's own batch: its two processes agree, but not with one
SAME = [n for n in STRATEGIES if n != 'stoch_norm']
needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason="LoRA needs PEFT: pip install -e '.[lora]'")


def fisher(rank, world):
    "Of each process's part of the samples, put together"
    return fisher_information(net(), list(loaders(0, 1).valid)[rank::world]).diag


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', RANK=str(rank),
                      LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    join_processes()
    out, failed = {}, {}
    for name in STRATEGIES:
        if name == 'lora' and not find_spec('peft'): continue
        try: out[name] = train(name, rank, 2)
        except Exception as e: failed[name] = repr(e)
    out |= dict(fisher=fisher(rank, 2), failed=failed)
    torch.save(out, f'{folder}/ddp{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ddp')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, folder), nprocs=2)
    return [torch.load(folder/f'ddp{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in SAME])
def test_two_processes_equal_one(two, name):
    assert name not in two[0]['failed'], two[0]['failed'][name]
    for a, b in zip(two[0][name], train(name)): torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize('name', [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES])
def test_two_processes_agree(two, name):
    assert name not in two[1]['failed'], two[1]['failed'][name]
    assert all(torch.equal(a, b) for a, b in zip(two[0][name], two[1][name]))


def test_fisher_of_two_processes_is_that_of_all_samples(two):
    for a, b in zip(two[0]['fisher'].values(), fisher(0, 1).values()): torch.testing.assert_close(a, b)
