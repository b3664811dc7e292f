"Two gloo processes with a strategy on equal one process."
import os
import socket
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Source, learner, model
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from torch import nn

from sdfast.strategies import R3F, STRATEGIES, fisher_information


class SineR3F(R3F):
    "Noise that is a function of the pixels: drawn, it would be another for the same image in another process"
    def noisy(self, x): return x + .1*(1000*x).sin()


def net(name=''):
    m = model()
    # batch norm itself depends on which images share a process, unless it is frozen
    if name not in ('frozen_bn', 'linear_probe', 'lora', 'stoch_norm'): m[0].bn = nn.GroupNorm(2, 4)
    return m


def loaders(rank, world, n=48, bs=16):
    "The same global batches, dealt out over the processes"
    g = torch.Generator().manual_seed(0)
    items = list(zip(torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 3, (n,), generator=g)))
    mine = [i for i in range(n) if i % world == rank]
    sets = Datasets(items, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[mine, range(8)])
    return DataLoaders(TfmdDL(sets.train, bs=bs//world, num_workers=0), TfmdDL(sets.valid, bs=8, num_workers=0), device='cpu')


def train(name, rank=0, world=1):
    from fastai.callback.core import Callback
    class DDP(Callback):
        "What `DistributedTrainer` does to the model, which on a CPU fails in `.cuda()` of its loader"
        order = 11
        def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.learn.model)
        def after_fit(self): self.learn.model = self.learn.model.module
    m = net(name)
    source = Source(m)
    source.batches = loaders(0, 1).valid
    cbs, dls = [SineR3F(.5)] if name == 'r3f' else STRATEGIES[name].callbacks(.5, source), loaders(rank, world)
    if name == 'bss' and world == 1:  # a property of each process's batch: micro-batches of the same images, one process's and then the other's
        cbs, parts = [*cbs, GradientAccumulation(16)], [list(loaders(r, 2).train) for r in range(2)]
        dls = DataLoaders([b for pair in zip(*parts) for b in pair], dls.valid)
    learn = learner([*cbs, *([DDP()] if world > 1 else [])], dls=dls, net=m)
    learn.fit(3)
    return [p.detach() for p in learn.model.parameters()]


# stochastic normalisation is by the statistics of a process's own batch: its two processes agree, but not with one
SAME = [n for n in STRATEGIES if n != 'stoch_norm']
needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason="LoRA needs PEFT: pip install -e '.[peers]'")


def fisher(rank, world):
    "Of each process's part of the samples, put together"
    return fisher_information(net(), loaders(rank, world).train).diag


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
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
    for a, b in zip(two[0][name], train(name)): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES])
def test_two_processes_agree(two, name):
    assert name not in two[1]['failed'], two[1]['failed'][name]
    assert all(torch.equal(a, b) for a, b in zip(two[0][name], two[1][name]))


def test_fisher_of_two_processes_is_that_of_all_samples(two):
    for a, b in zip(two[0]['fisher'].values(), fisher(0, 1).values()): torch.testing.assert_close(a, b)
